#include "gemm_pick.h"

#include <stdio.h>
#include <string.h>

#define SM80(shape, bm_, stages_, blocks_, rate_)                                                            \
    {                                                                                                        \
        .name = "gemm_sm80_" shape, .kernel = {"gemm_sm80_linear_" shape, "gemm_sm80_qkv_" shape},           \
        .type = DT_BF16, .arch = 80, .bm = bm_, .bn = 128, .threads = GEMM_SM80_THREADS,                     \
        .shared = GEMM_SM80_SHARED(bm_, stages_), .blocks = blocks_, .rate = rate_                           \
    }

/* Of equals the first. rate: a tile of 64 x 128 reads 3/2 of the operands' bytes per product that one of 128 x 128 reads, and its warps
 * issue fewer mma per load; how much that costs was not measured. */
static const struct gemm_variant variants[] = {
    SM80("128x128_s3", 128, 3, 2, 1.0),
    SM80("128x128_s2", 128, 2, 2, 1.0),
    SM80("64x128_s2", 64, 2, 3, 0.85),
};
enum { VARIANTS = sizeof variants / sizeof *variants };

const struct gemm_variant *gemm_variant(int i)
{
    return i >= 0 && i < VARIANTS ? &variants[i] : NULL;
}

int gemm_takes(const struct gemm_variant *v, const struct gemm_shape *s)
{
    return v->type == s->type && v->kernel[s->family] &&
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

/* forced: NULL or the variant that does not take s. */
static enum klein_status refuse(const struct gemm_shape *s, const char *forced, struct klein_error *err)
{
    return fail(err, KLEIN_E_UNSUPPORTED, "linear: %s%s %s products with %s on sm_%d", forced ? forced : "",
                forced ? " does not take" : "no kernel takes", dtype_name(s->type),
                s->family == GEMM_QKV ? "QKV or SWIGLU results" : "plain results", s->arch);
}

static enum klein_status no_such(const char *name, struct klein_error *err)
{
    char names[512] = "";
    for (int i = 0; i < VARIANTS; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), " %s", variants[i].name);
    return fail(err, KLEIN_E_INPUT, "KLEIN_GEMM=%s: no such kernel; one of linear_simple%s", name, names);
}

enum klein_status gemm_pick(const struct gemm_shape *s, const char *forced, const struct gemm_variant **out,
                            struct klein_error *err)
{
    *out = NULL;
    if (forced && *forced) {
        for (int i = 0; i < VARIANTS; i++)
            if (!strcmp(variants[i].name, forced)) *out = &variants[i];
        if (!*out) return no_such(forced, err);
        if (gemm_takes(*out, s)) return KLEIN_OK;
        *out = NULL;
        return refuse(s, forced, err);
    }
    for (int i = 0; i < VARIANTS; i++)
        if (gemm_takes(&variants[i], s) && (!*out || cost(&variants[i], s) < cost(*out, s)))
            *out = &variants[i];
    return *out ? KLEIN_OK : refuse(s, NULL, err);
}
