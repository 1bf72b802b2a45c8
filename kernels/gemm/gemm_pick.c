#include "gemm_pick.h"

#include "../names.h"

#include <stdio.h>
#include <string.h>

#define MMA_TO(e4m3_y_, name_, kinds_, type_, groups_, arch_, bm_, bn_, stages_, threads_, blocks_, rate_)   \
    {                                                                                                        \
        .name = name_, .kinds = kinds_, .groups = groups_, .e4m3_y = e4m3_y_, .type = type_, .arch = arch_,  \
        .bm = bm_, .bn = bn_, .threads = threads_, .shared = GEMM_SM80_SHARED(bm_, bn_, stages_),            \
        .blocks = blocks_, .rate = rate_                                                                     \
    }
#define MMA(name_, kinds_, type_, arch_, bm_, ...)                                                           \
    MMA_TO(0, name_, kinds_, type_, 0, arch_, bm_, 128, __VA_ARGS__)
/* e4m3 */
#define MMA_GROUPS(e4m3_y_, name_, bm_, stages_, threads_, blocks_, rate_)                                   \
    MMA_TO(e4m3_y_, name_, GEMM_LINEAR, DT_F8E4M3, 1, 89, bm_, 128, stages_, threads_, blocks_, rate_)
#define MMA_256(e4m3_y_, name_, bm_, rate_)                                                                  \
    MMA_TO(e4m3_y_, name_, GEMM_QKV, DT_F8E4M3, 0, 89, bm_, 256, 2, GEMM_SM89_THREADS(128), 1, rate_)

#define WGMMA_TO(e4m3_y_, name_, kinds_, type_, groups_, bm_, bn_, rate_)                                    \
    {                                                                                                        \
        .name = name_, .kinds = kinds_, .groups = groups_, .e4m3_y = e4m3_y_, .type = type_, .arch = 90,     \
        .arch_exact = 1, .bm = bm_, .bn = bn_, .threads = GEMM_SM90_THREADS(bm_),                            \
        .shared = GEMM_SM90_SHARED(bm_, bn_), .blocks = 1, .rate = rate_                                     \
    }
#define WGMMA(...) WGMMA_TO(0, __VA_ARGS__)

/* Results in e4m3 have their scales per 128 columns, so a tile has them whole: one of 256 has two groups, or one of SwiGLU. */
enum {
    SWIGLU = 1 << LINEAR_SEGMENT_SWIGLU,
    COLUMNS = 1 << LINEAR_SEGMENT_PLAIN | 1 << LINEAR_SEGMENT_RESIDUAL
};

#define GEMM_BY_INSTRUCTION "gemm_sm89_qkv_128x256_s2" /* has no code for chips without e4m3 in mma.sync */

/* Of equals the first. rate: a tile of 64 x 128 reads 3/2 of the operands' bytes per product that one of 128 x 128 reads, 64 x 256 5/4, 128 x 256
 * 3/4, and the warps of small ones issue fewer mma per load; how much that costs was not measured. wgmma, as predict.c has it: twice mma.sync, and by
 * the bytes per product that a tile reads from the L2, which holds small tiles back: 128 x 128 4/3 of 128 x 256, 64 x 192 16/9, 192 x 192 8/9. 192
 * and 144 columns do not hold whole heads. 144: 3072 columns are 22 tiles then, and 4608, 2304 or 1536 rows of 22 tiles fill whole rounds of 132
 * multiprocessors. */
static const struct gemm_variant variants[] = {
    MMA("gemm_sm80_linear_128x128_s3", GEMM_LINEAR, DT_BF16, 80, 128, 3, GEMM_SM80_THREADS, 2, 1.0),
    MMA("gemm_sm80_linear_128x128_s2", GEMM_LINEAR, DT_BF16, 80, 128, 2, GEMM_SM80_THREADS, 2, 1.0),
    MMA("gemm_sm80_linear_64x128_s2", GEMM_LINEAR, DT_BF16, 80, 64, 2, GEMM_SM80_THREADS, 3, 0.85),
    MMA("gemm_sm80_qkv_128x128_s3", GEMM_QKV, DT_BF16, 80, 128, 3, GEMM_SM80_THREADS, 2, 1.0),
    MMA("gemm_sm80_qkv_128x128_s2", GEMM_QKV, DT_BF16, 80, 128, 2, GEMM_SM80_THREADS, 2, 1.0),
    MMA("gemm_sm80_qkv_64x128_s2", GEMM_QKV, DT_BF16, 80, 64, 2, GEMM_SM80_THREADS, 3, 0.85),
    MMA("gemm_sm89_linear_128x128_s3", GEMM_LINEAR, DT_F8E4M3, 89, 128, 3, GEMM_SM89_THREADS(128), 1, 1.0),
    MMA("gemm_sm89_linear_64x128_s2", GEMM_LINEAR, DT_F8E4M3, 89, 64, 2, GEMM_SM89_THREADS(64), 2, 0.85),
    MMA("gemm_sm89_qkv_128x128_s3", GEMM_QKV, DT_F8E4M3, 89, 128, 3, GEMM_SM89_THREADS(128), 1, 1.0),
    MMA("gemm_sm89_qkv_64x128_s2", GEMM_QKV, DT_F8E4M3, 89, 64, 2, GEMM_SM89_THREADS(64), 2, 0.85),
    MMA_256(SWIGLU, GEMM_BY_INSTRUCTION, 128, 1.1),
    MMA_256(SWIGLU, "gemm_sm89_qkv_64x256_s2", 64, 0.95),
    MMA_GROUPS(0, "gemm_sm89_linear_groups_128x128_s3", 128, 3, GEMM_SM89_THREADS(128), 1, 1.0),
    MMA_GROUPS(0, "gemm_sm89_linear_groups_64x128_s2", 64, 2, GEMM_SM89_THREADS(64), 2, 0.85),
    MMA_TO(COLUMNS, "gemm_to_e4m3_sm89_linear_128x128_s3", GEMM_LINEAR, DT_F8E4M3, 0, 89, 128, 128, 3,
           GEMM_SM89_THREADS(128), 1, 1.0),
    MMA_GROUPS(COLUMNS, "gemm_to_e4m3_sm89_linear_groups_128x128_s3", 128, 3, GEMM_SM89_THREADS(128), 1, 1.0),
    MMA_256(GEMM_QKV, "gemm_to_e4m3_sm89_qkv_64x256_s2", 64, 0.95),
    WGMMA("gemm_linear_sm90_128x256", GEMM_LINEAR, DT_BF16, 0, 128, 256, 2.2),
    WGMMA("gemm_linear_sm90_192x192", GEMM_LINEAR, DT_BF16, 0, 192, 192, 2.4),
    WGMMA("gemm_linear_sm90_128x192", GEMM_LINEAR, DT_BF16, 0, 128, 192, 2.0),
    WGMMA("gemm_linear_sm90_128x144", GEMM_LINEAR, DT_BF16, 0, 128, 144, 1.75),
    WGMMA("gemm_linear_sm90_128x128", GEMM_LINEAR, DT_BF16, 0, 128, 128, 1.65),
    WGMMA("gemm_linear_sm90_64x192", GEMM_LINEAR, DT_BF16, 0, 64, 192, 1.25),
    WGMMA("gemm_qkv_sm90_128x256", GEMM_QKV, DT_BF16, 0, 128, 256, 2.2),
    WGMMA("gemm_qkv_sm90_128x128", GEMM_QKV, DT_BF16, 0, 128, 128, 1.65),
    WGMMA("gemm_linear_e4m3_sm90_128x256", GEMM_LINEAR, DT_F8E4M3, 0, 128, 256, 2.2),
    WGMMA("gemm_linear_e4m3_sm90_128x128", GEMM_LINEAR, DT_F8E4M3, 0, 128, 128, 1.65),
    WGMMA_TO(SWIGLU, "gemm_qkv_e4m3_sm90_128x256", GEMM_QKV, DT_F8E4M3, 0, 128, 256, 2.2),
    WGMMA("gemm_qkv_e4m3_sm90_128x128", GEMM_QKV, DT_F8E4M3, 0, 128, 128, 1.65),
    WGMMA("gemm_linear_e4m3_groups_sm90_128x192", GEMM_LINEAR, DT_F8E4M3, 1, 128, 192, 2.0),
    WGMMA("gemm_linear_e4m3_groups_sm90_128x144", GEMM_LINEAR, DT_F8E4M3, 1, 128, 144, 1.75),
    WGMMA("gemm_linear_e4m3_groups_sm90_128x128", GEMM_LINEAR, DT_F8E4M3, 1, 128, 128, 1.65),
    WGMMA_TO(COLUMNS, "gemm_to_e4m3_sm90_linear_128x256", GEMM_LINEAR, DT_F8E4M3, 0, 128, 256, 2.2),
    WGMMA_TO(COLUMNS, "gemm_to_e4m3_sm90_linear_128x128", GEMM_LINEAR, DT_F8E4M3, 0, 128, 128, 1.65),
    WGMMA_TO(COLUMNS, "gemm_to_e4m3_sm90_linear_groups_128x128", GEMM_LINEAR, DT_F8E4M3, 1, 128, 128, 1.65),
    WGMMA_TO(GEMM_QKV, "gemm_to_e4m3_sm90_qkv_128x256", GEMM_QKV, DT_F8E4M3, 0, 128, 256, 2.2),
};
enum { VARIANTS = sizeof variants / sizeof *variants };

const struct gemm_variant *gemm_variant(int i)
{
    return i >= 0 && i < VARIANTS ? &variants[i] : NULL;
}

int gemm_to_e4m3(const struct gemm_variant *v)
{
    return (v->e4m3_y & ~SWIGLU) != 0;
}

int gemm_e4m3_by_f16(int arch)
{
    return arch == 90 || arch / 10 == 10;
}

int gemm_takes(const struct gemm_variant *v, const struct gemm_shape *s)
{
    const int family = s->kinds & ~GEMM_LINEAR ? GEMM_QKV : GEMM_LINEAR; /* PLAIN may have a bias */
    if (gemm_e4m3_by_f16(s->arch) && !strcmp(v->name, GEMM_BY_INSTRUCTION)) return 0;
    if (s->e4m3_y & ~v->e4m3_y || gemm_to_e4m3(v) != ((s->e4m3_y & ~SWIGLU) != 0)) return 0;
    return v->type == s->type && v->groups == s->groups && v->kinds == family && !(s->kinds & ~family) &&
           (v->arch_exact ? s->arch == v->arch : s->arch >= v->arch) && (int)v->shared <= s->shared_max;
}

static int64_t tiles_of(int64_t n, int tile)
{
    return (n + tile - 1) / tile;
}

int64_t gemm_tiles(const struct gemm_variant *v, const struct gemm_shape *s)
{
    int64_t down = 0, across = 0;
    for (int g = 0; g < LINEAR_GROUPS; g++) down += tiles_of(s->rows[g], v->bm);
    for (int i = 0; i < s->segments; i++) across += tiles_of(s->w_rows[i], v->bn);
    return down * across;
}

/* How many blocks of v a multiprocessor has at a time: it has 1 KiB more shared memory than a block may ask for, and each block needs
 * 1 KiB more than it asks for. */
static int resident(const struct gemm_variant *v, const struct gemm_shape *s)
{
    const int fit = (s->shared_max + 1024) / ((int)v->shared + 1024);
    return fit < v->blocks ? fit : v->blocks;
}

/* Time of the busiest multiprocessor: the blocks that it has at a time share the tensor cores, so the number of its tiles counts. One that
 * has a single block waits whenever that block waits. */
static double cost(const struct gemm_variant *v, const struct gemm_shape *s)
{
    const double alone = 1.1; /* an estimate, not measured */
    const int64_t each = tiles_of(gemm_tiles(v, s), s->multiprocessors);
    return (double)each * v->bm * v->bn / v->rate * (each < 2 || resident(v, s) < 2 ? alone : 1);
}

static enum klein_status refuse(const struct gemm_shape *s, const char *among, struct klein_error *err)
{
    return fail(err, KLEIN_E_UNSUPPORTED, "linear: no kernel%s%s takes %s products%s with %s%s on sm_%d",
                among ? " of " : "", among ? among : "", dtype_name(s->type),
                s->groups ? " of scales per 128 columns" : "",
                s->kinds & ~GEMM_LINEAR ? "QKV or SWIGLU results" : "plain results",
                s->e4m3_y ? " in F8_E4M3" : "", s->arch);
}

static const char *name_of(int i)
{
    return i == VARIANTS ? "linear_simple" : i < VARIANTS ? variants[i].name : NULL;
}

enum klein_status gemm_pick(const struct gemm_shape *s, const char *among, const struct gemm_variant **out,
                            struct klein_error *err)
{
    *out = NULL;
    if (among && !*among) among = NULL;
    if (among) TRY(names_check("KLEIN_GEMM", among, name_of, err));
    for (int i = 0; i < VARIANTS; i++) {
        const struct gemm_variant *v = &variants[i];
        if ((!among || names_have(among, v->name)) && gemm_takes(v, s) &&
            (!*out || cost(v, s) < cost(*out, s)))
            *out = v;
    }
    return *out ? KLEIN_OK : refuse(s, among, err);
}

const struct gemm_variant *gemm_named(const struct gemm_shape *s, const char *name)
{
    for (int i = 0; name && i < VARIANTS; i++)
        if (!strcmp(variants[i].name, name)) return gemm_takes(&variants[i], s) ? &variants[i] : NULL;
    return NULL;
}

void gemm_key(const struct gemm_shape *s, char out[TUNED_KEY])
{
    static const char *const kinds[] = {[LINEAR_SEGMENT_PLAIN] = "plain",
                                        [LINEAR_SEGMENT_SILU] = "silu",
                                        [LINEAR_SEGMENT_RESIDUAL] = "residual",
                                        [LINEAR_SEGMENT_NORM_ROPE] = "rope",
                                        [LINEAR_SEGMENT_SWIGLU] = "swiglu"};
    int n = snprintf(out, TUNED_KEY, "linear %s%s %d", dtype_name(s->type), s->groups ? " by 128" : "",
                     s->rows[0]);
    for (int g = 1; g < LINEAR_GROUPS && s->rows[g]; g++)
        n += snprintf(out + n, (size_t)(TUNED_KEY - n), "+%d", s->rows[g]);
    n += snprintf(out + n, (size_t)(TUNED_KEY - n), "x%d @ ", s->k);
    for (int i = 0; i < s->segments; i++)
        n += snprintf(out + n, (size_t)(TUNED_KEY - n), "%s%d", i ? "+" : "", s->w_rows[i]);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (s->kinds & 1 << i)
            n += snprintf(out + n, (size_t)(TUNED_KEY - n), " %s%s", kinds[i],
                          s->e4m3_y & 1 << i ? " to e4m3" : "");
}

void gemm_reason(const struct gemm_shape *s, const struct gemm_variant *v, char *out, size_t size)
{
    const struct gemm_variant *next = NULL;
    for (int i = 0; i < VARIANTS; i++)
        if (&variants[i] != v && gemm_takes(&variants[i], s) &&
            (!next || cost(&variants[i], s) < cost(next, s)))
            next = &variants[i];
    const long long tiles = (long long)gemm_tiles(v, s);
    if (!next)
        snprintf(out, size, "the only one that takes it");
    else
        snprintf(out, size, "%lld tiles of %dx%d on %d multiprocessors: %.0f %% of the time of %s, estimated",
                 tiles, v->bm, v->bn, s->multiprocessors, 100 * cost(v, s) / cost(next, s), next->name);
}
