#include "conv_pick.h"

#include "../device/args.h"
#include "../names.h"

#include <stdio.h>
#include <string.h>

enum {
    SM90_128X256,
    SM90_128X192,
    SM90_128X128,
    SM80_128X128_S2,
    SM80_128X128_S3,
    SM80_128X64,
    SM80_128X8,
    SIMPLE,
    VARIANTS
};

/* Costs are estimates, not measurements: the width of the tile; some more for narrower ones, which read more of shared memory per product
 * (8 % for 128 couts of wgmma, 15 % for 64 of mma.sync); mma.sync at 5/8 of wgmma's rate where both run. The narrowest is bound by its
 * reads of x. simple has no tensor cores: it is for what nothing else takes. */
static const struct conv_variant variants[VARIANTS] = {
    {"conv_sm90_128x256", 16, 8, 256, CONV_SM90_THREADS, CONV_SM90_SHARED(256, 4), 1, 256},
    {"conv_sm90_128x192", 16, 8, 192, CONV_SM90_THREADS, CONV_SM90_SHARED(192, 4), 1, 198},
    {"conv_sm90_128x128", 16, 8, 128, CONV_SM90_THREADS, CONV_SM90_SHARED(128, 6), 1, 138},
    {"conv_sm80_128x128_s2", 128, 1, 128, CONV_SM80_THREADS, 2 * CONV_SM80_128X128_STAGE, 0, 205},
    {"conv_sm80_128x128_s3", 128, 1, 128, CONV_SM80_THREADS, 3 * CONV_SM80_128X128_STAGE, 0, 205},
    {"conv_sm80_128x64", 128, 1, 64, CONV_SM80_THREADS, 2 * CONV_SM80_128X64_STAGE, 0, 118},
    {"conv_sm80_128x8", 128, 1, 8, CONV_SM80_THREADS, 2 * CONV_SM80_128X8_STAGE, 0, 40},
    {"conv_simple", 64, 1, 64, CONV_SIMPLE_THREADS, CONV_SIMPLE_SHARED, 0, 100000},
};

const struct conv_variant *conv_variant(int i)
{
    return i >= 0 && i < VARIANTS ? &variants[i] : NULL;
}

int conv_takes(const struct conv_variant *v, const struct conv_shape *s)
{
    const int matrix = s->act == DT_BF16 && s->placed && s->arch >= 80;
    switch (v - variants) {
    case SM90_128X256:
    case SM90_128X192:
    case SM90_128X128:
        return matrix && s->aligned && s->arch == 90 && s->stride == 1;
    case SM80_128X128_S2:
    case SM80_128X128_S3:
    case SM80_128X64:
        return matrix && s->aligned;
    case SM80_128X8:
        return matrix;
    default:
        return 1;
    }
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

int64_t conv_tiles(const struct conv_variant *v, const struct conv_shape *s, int rows)
{
    const int64_t across_n = ceil_div(s->cout, v->tile_n);
    if (v->tile_h == 1) return ceil_div((int64_t)rows * s->ow, v->tile_w) * across_n;
    const int up = s->upsample != 0; /* then even and odd rows and columns apart */
    return (ceil_div(rows >> up, v->tile_h) * ceil_div(s->ow >> up, v->tile_w) << 2 * up) * across_n;
}

int64_t conv_chunks(const struct conv_variant *v, const struct conv_shape *s, int rows)
{
    const int i = (int)(v - variants), warp_rows = v->tile_n == 128 ? 64 : 32; /* mma.sync's */
    if (v->persistent) return 2 * conv_tiles(v, s, rows) / ceil_div(s->cout, v->tile_n);
    return i <= SM80_128X64 ? ceil_div((int64_t)rows * s->ow, warp_rows) : 0;
}

/* Tiles that the busiest multiprocessor has. */
static int64_t rounds(const struct conv_variant *v, const struct conv_shape *s, int rows)
{
    return ceil_div(conv_tiles(v, s, rows), s->multiprocessors);
}

/* Blocks of 64 along k: wgmma's do not go on from one tap to the next. */
static int k_blocks(const struct conv_variant *v, const struct conv_shape *s)
{
    const int taps = s->ksize * s->ksize;
    return (int)(v->persistent ? taps * ceil_div(s->cin, 64) : ceil_div(taps * CONV_PADDED(s->cin), 64));
}

int conv_band_rows(const struct conv_variant *v, const struct conv_shape *s, int most)
{
    if (most >= s->rows) return s->rows;
    const int step = s->upsample ? 2 : 1;
    int best = most;
    int64_t fewest = INT64_MAX;
    for (int rows = most; rows > 0 && 2 * rows >= most; rows -= step) {
        const int bands = (s->rows + rows - 1) / rows, last = s->rows - (bands - 1) * rows;
        const int64_t total = (bands - 1) * rounds(v, s, rows) + rounds(v, s, last);
        if (total < fewest) fewest = total, best = rows;
    }
    return best;
}

/* Two blocks of two stages fit on a multiprocessor, but not on the chips with 99 KiB of shared memory: one block, three stages. */
static int fits_badly(const struct conv_variant *v, const struct conv_shape *s)
{
    const int small = s->arch == 86 || s->arch == 89 || s->arch / 10 == 12;
    return v - variants == (small ? SM80_128X128_S2 : SM80_128X128_S3);
}

static int64_t cost(const struct conv_variant *v, const struct conv_shape *s)
{
    return rounds(v, s, s->rows) * v->cost * (k_blocks(v, s) + 2); /* 2: to begin and to end */
}

static const char *name_of(int i)
{
    return i < VARIANTS ? variants[i].name : NULL;
}

enum klein_status conv_pick(const struct conv_shape *s, const char *among, const struct conv_variant **out,
                            struct klein_error *err)
{
    *out = NULL;
    if (among && !*among) among = NULL;
    if (among) TRY(names_check("KLEIN_CONV", among, name_of, err));
    for (int i = 0; i < VARIANTS; i++) {
        const struct conv_variant *v = &variants[i];
        const int wanted = among ? names_have(among, v->name) : !fits_badly(v, s);
        if (wanted && conv_takes(v, s) && (!*out || cost(v, s) < cost(*out, s))) *out = v;
    }
    if (*out) return KLEIN_OK;
    return fail(err, KLEIN_E_UNSUPPORTED, "conv: none of %s takes %s, stride %d%s, %s, %s, sm_%d", among,
                dtype_name(s->act), s->stride, s->upsample ? ", upsample" : "",
                s->placed ? "f32 bias" : "a bias or weights as in the file",
                s->aligned ? "16-byte aligned y" : "y that is not 16-byte aligned", s->arch);
}

const struct conv_variant *conv_named(const struct conv_shape *s, const char *name)
{
    for (int i = 0; name && i < VARIANTS; i++)
        if (!strcmp(variants[i].name, name)) return conv_takes(&variants[i], s) ? &variants[i] : NULL;
    return NULL;
}

void conv_key(const struct conv_shape *s, char out[TUNED_KEY])
{
    snprintf(out, TUNED_KEY, "conv %s %dx%d, %dx%d @ %d to %d%s%s%s%s", dtype_name(s->act), s->ow, s->rows,
             s->ksize, s->ksize, s->cin, s->cout, s->stride > 1 ? ", stride 2" : "",
             s->upsample ? ", upsample" : "", s->placed ? "" : ", bias as in the file",
             s->aligned ? "" : ", unaligned");
}

void conv_reason(const struct conv_shape *s, const struct conv_variant *v, char *out, size_t size)
{
    const struct conv_variant *next = NULL;
    for (int i = 0; i < VARIANTS; i++)
        if (&variants[i] != v && conv_takes(&variants[i], s) && !fits_badly(&variants[i], s) &&
            (!next || cost(&variants[i], s) < cost(next, s)))
            next = &variants[i];
    if (!next)
        snprintf(out, size, "the only one that takes it");
    else
        snprintf(out, size, "%lld tiles on %d multiprocessors: %.0f %% of the time of %s, estimated",
                 (long long)conv_tiles(v, s, s->rows), s->multiprocessors,
                 100 * (double)cost(v, s) / (double)cost(next, s), next->name);
}
