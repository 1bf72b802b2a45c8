#include "conv_launch.h"
#include "conv_pick.h"

#include "../norm/norm.h"
#include "../pointwise/launch_rows.h"
#include "../pointwise/pointwise.h"

#include <limits.h>
#include <stdlib.h>

enum { BAND_BYTES = 24 << 20, SCRATCH_MAX = 40 << 20 }; /* half of the smallest L2 of the large chips */
enum { MOMENTS_MAX = 24 << 20 };

static int aligned(struct tensor t)
{
    return ((uintptr_t)t.ptr | (size_t)t.ld * dtype_size(t.dtype)) % 16 == 0;
}

/* ---- weights ------------------------------------------------------------------------------------------------------ */

struct tensor conv_packed(int cout, int cin, int ksize, enum dtype act)
{
    const int taps = ksize * ksize;
    struct tensor t = tensor_of(NULL, act, cout, cin * taps);
    t.ld = (int64_t)taps * CONV_PADDED(cin);
    return t;
}

enum klein_status conv_pack(struct gpu *g, struct tensor packed, struct tensor w, int ksize,
                            struct klein_error *err)
{
    const int taps = ksize * ksize, cin = w.cols / taps;
    if (!packed.ptr || !w.ptr || w.cols % taps || packed.rows != w.rows || packed.cols != w.cols ||
        packed.ld != (int64_t)taps * CONV_PADDED(cin) ||
        (packed.dtype != DT_BF16 && packed.dtype != DT_F32) ||
        (w.dtype != DT_BF16 && w.dtype != DT_F16 && w.dtype != DT_F32))
        return fail(err, KLEIN_E_INTERNAL, "conv: weights %dx%d of %s do not pack into %dx%d of %s", w.rows,
                    w.cols, dtype_name(w.dtype), packed.rows, packed.cols, dtype_name(packed.dtype));
    const struct conv_layout_args k = {matrix_of(packed), matrix_of(w), w.rows, cin, taps};
    return launch_rows(g, "conv_layout_pack",
                       (packed.rows * packed.ld + CONV_LAYOUT_THREADS - 1) / CONV_LAYOUT_THREADS,
                       CONV_LAYOUT_THREADS, 0, &k, err);
}

/* ---- bands -------------------------------------------------------------------------------------------------------- */

/* Rows of y, and the rows of x that they read. */
struct band {
    int first, rows, x_first, x_rows;
    int top; /* row of x_first's pixels, enlarged if so, that tap (0, 0) of `first` reads */
};

static int padding(const struct conv_args *a)
{
    return a->ksize == 3 && a->stride == 1;
}
static int enlarged(const struct conv_args *a)
{
    return a->upsample != 0;
}
static int rows_at_least(const struct conv_args *a) /* of a band; bands are multiples of it */
{
    return enlarged(a) ? 2 : 1;
}
static int rows_made(const struct conv_args *a)
{
    return a->rows ? a->rows : conv_rows_of_y(a);
}
static int width_of_y(const struct conv_args *a)
{
    return (a->w_px << enlarged(a)) / a->stride;
}

static struct band band_of(const struct conv_args *a, int first, int rows)
{
    struct band b = {.first = first, .rows = rows};
    b.x_rows = conv_rows_of_x(a, first, rows, &b.x_first);
    b.top = first * a->stride - padding(a) - (b.x_first << enlarged(a));
    return b;
}

/* The most rows of x that `rows` rows of y read, wherever they begin. */
static int rows_read(const struct conv_args *a, int rows)
{
    const int n = (rows - 1) * a->stride + a->ksize, most = enlarged(a) ? n / 2 + 1 : n;
    return most < a->h ? most : a->h;
}

/* Whether x, or its norm, is copied before it is read. Simple kernels read any x, but have no use for speed. */
static int goes_through_scratch(const struct conv_args *a)
{
    return a->norm.stats.ptr != NULL || (a->x.dtype == DT_BF16 && !aligned(a->x));
}

static size_t row_bytes(const struct conv_args *a)
{
    return (size_t)a->w_px * (size_t)CONV_PADDED(a->x.cols) * dtype_size(a->x.dtype);
}

/* Bytes of a chunk of pixels: moments of y for 4 couts each, and their count. */
static size_t chunk_bytes(const struct conv_args *a)
{
    return ((size_t)a->y.cols / 4 * 2 + 1) * sizeof(float);
}

/* Of scratch that it is good to use. */
static size_t band_bytes(const struct conv_args *a)
{
    const size_t whole = (size_t)rows_read(a, rows_made(a)) * row_bytes(a),
                 one = (size_t)rows_read(a, rows_at_least(a)) * row_bytes(a);
    return whole < BAND_BYTES ? whole : one > BAND_BYTES ? one : BAND_BYTES;
}

static struct gn_stats_args stats_of_y(const struct conv_args *a)
{
    const int ow = width_of_y(a);
    return (struct gn_stats_args){a->stats, tensor_rows(a->y, a->row0 * ow, rows_made(a) * ow), a->eps};
}

/* For the statistics of y: moments of chunks of pixels, or what gn_stats needs where there are none or too many. */
static size_t stats_bytes(const struct conv_args *a)
{
    if (!a->stats.ptr) return 0;
    const struct gn_stats_args stats = stats_of_y(a);
    const size_t chunks = (size_t)stats.x.rows / 32 + 4 * (size_t)(rows_made(a) + width_of_y(a)),
                 bytes = chunks * chunk_bytes(a), most = bytes < MOMENTS_MAX ? bytes : MOMENTS_MAX,
                 least = norm_gn_stats_scratch(&stats);
    return most > least ? most : least;
}

/* Bytes of scratch before those. */
static size_t input_bytes(const struct conv_args *a)
{
    if (!goes_through_scratch(a)) return 0;
    return band_bytes(a) < SCRATCH_MAX ? band_bytes(a) : SCRATCH_MAX;
}

size_t conv_scratch(const struct conv_args *a)
{
    return input_bytes(a) + stats_bytes(a);
}

/* Rows of y whose input fits into `bytes`; 0 if there are none. */
static int rows_that_fit(const struct conv_args *a, size_t bytes)
{
    int rows = rows_made(a);
    while (rows && (size_t)rows_read(a, rows) * row_bytes(a) > bytes) rows -= rows_at_least(a);
    return rows;
}

/* x, a band's rows of it, becomes these, normalised or not, in scratch: rows of whole 16 bytes. */
static enum klein_status fill_scratch(struct gpu *g, const struct conv_args *a, void *scratch,
                                      struct tensor *x, struct klein_error *err)
{
    const struct tensor from = *x;
    *x = tensor_of(scratch, from.dtype, from.rows, from.cols);
    x->ld = CONV_PADDED(from.cols);
    if (!a->norm.stats.ptr) return pointwise_copy(g, &(struct copy_args){*x, from}, err);
    return norm_gn_apply(g, &(struct gn_apply_args){*x, from, a->norm, 1}, err);
}

/* ---- launch ------------------------------------------------------------------------------------------------------- */

/* [rows, cols] pixels of image t as boxes of 64 channels by 16 columns by `high` rows. They are `step` apart, also from row to row, of
 * rows of step * cols pixels. */
static enum klein_status map_image(struct gpu *g, struct tensor t, int rows, int cols, int step,
                                   unsigned high, struct tensor_map *out, struct klein_error *err)
{
    const uint64_t pixel = (uint64_t)step * (uint64_t)t.ld * sizeof(bf16);
    return gpu_tensor_map(g,
                          &(struct tensor_box){.ptr = t.ptr,
                                               .dtype = DT_BF16,
                                               .rank = 3,
                                               .dims = {(uint64_t)t.cols, (uint64_t)cols, (uint64_t)rows},
                                               .strides = {pixel, pixel * (uint64_t)step * (uint64_t)cols},
                                               .box = {64, 16, high},
                                               .swizzle = 128},
                          out, err);
}

/* An output (or residual) of rows x cols pixels as one image, or if enlarged as four: out[2 * odd row + odd column]. */
static enum klein_status map_output(struct gpu *g, struct tensor t, int rows, int cols, int up,
                                    struct tensor_map out[4], struct klein_error *err)
{
    if (!up) return map_image(g, t, rows, cols, 1, 4, &out[0], err);
    for (int i = 0; i < 4; i++)
        TRY(map_image(g, tensor_rows(t, i / 2 * cols + i % 2, 1), rows / 2, cols / 2, 2, 4, &out[i], err));
    return KLEIN_OK;
}

static enum klein_status launch_sm90(struct gpu *g, const struct conv_variant *v,
                                     const struct conv_kernel_args *k, const struct conv_args *band,
                                     int64_t tiles, struct klein_error *err)
{
    const int rows = k->pixels / k->ow;
    struct conv_sm90_args s = {.moments = k->moments,
                               .counts = k->counts,
                               .bias = k->bias.ptr,
                               .has_residual = k->residual.ptr != NULL,
                               .rows = rows >> k->up,
                               .ow = k->ow >> k->up,
                               .top = k->top,
                               .left = k->left,
                               .ksize = k->ksize,
                               .up = k->up,
                               .cin = k->cin,
                               .cout = k->cout};
    const uint64_t taps = (uint64_t)(k->ksize * k->ksize), tap = CONV_PADDED((uint64_t)k->cin) * sizeof(bf16);
    const struct tensor_box w = {.ptr = k->w.ptr,
                                 .dtype = DT_BF16,
                                 .rank = 3,
                                 .dims = {(uint64_t)k->cin, taps, (uint64_t)k->cout},
                                 .strides = {tap, taps * tap},
                                 .box = {64, 1, (unsigned)v->tile_n},
                                 .swizzle = 128};
    TRY(map_image(g, band->x, k->h, k->w_px, 1, 8, &s.x, err));
    TRY(gpu_tensor_map(g, &w, &s.w, err));
    TRY(map_output(g, band->y, rows, k->ow, k->up, s.y, err));
    if (s.has_residual) TRY(map_output(g, band->residual, rows, k->ow, k->up, s.residual, err));
    const int64_t blocks = tiles < g->multiprocessors ? tiles : g->multiprocessors;
    return launch_rows(g, v->name, blocks, v->threads, v->shared, &s, err);
}

/* Launches band b; x: its rows of x. */
static enum klein_status launch_band(struct gpu *g, const struct conv_variant *v, const struct conv_shape *s,
                                     const struct conv_args *a, const struct band *b, struct tensor x,
                                     float *moments, float *counts, struct klein_error *err)
{
    struct conv_args band = *a; /* the operands of these rows only */
    band.x = x;
    band.y = tensor_rows(a->y, b->first * s->ow, b->rows * s->ow);
    if (a->residual.ptr) band.residual = tensor_rows(a->residual, b->first * s->ow, b->rows * s->ow);
    const struct conv_kernel_args k = {.y = matrix_of(band.y),
                                       .x = matrix_of(band.x),
                                       .w = matrix_of(a->w),
                                       .bias = matrix_of(a->bias),
                                       .residual = matrix_of(band.residual),
                                       .moments = moments,
                                       .counts = counts,
                                       .h = b->x_rows,
                                       .w_px = a->w_px,
                                       .pixels = b->rows * s->ow,
                                       .ow = s->ow,
                                       .top = b->top,
                                       .left = -padding(a),
                                       .ksize = a->ksize,
                                       .stride = a->stride,
                                       .up = enlarged(a),
                                       .cin = a->x.cols,
                                       .cout = a->y.cols};
    const int64_t tiles = conv_tiles(v, s, b->rows);
    if (v->persistent && tiles <= INT32_MAX) return launch_sm90(g, v, &k, &band, tiles, err);
    return launch_rows(g, v->name, tiles, v->threads, v->shared, &k, err);
}

static enum klein_status check(const struct conv_args *a, const void *scratch, size_t scratch_bytes,
                               struct klein_error *err)
{
    if (!a->x.ptr || !a->y.ptr || !a->w.ptr)
        return fail(err, KLEIN_E_INTERNAL, "conv: operand %c is absent",
                    !a->x.ptr   ? 'x'
                    : !a->y.ptr ? 'y'
                                : 'w');
    if (a->x.ld > INT_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "conv: rows of x are %lld elements apart: at most %d",
                    (long long)a->x.ld, INT_MAX);
    if (a->w.dtype != a->x.dtype || a->w.ld != (int64_t)a->ksize * a->ksize * CONV_PADDED(a->x.cols))
        return fail(err, KLEIN_E_INTERNAL, "conv: weights of %s with rows of %lld are not packed for %s",
                    dtype_name(a->w.dtype), (long long)a->w.ld, dtype_name(a->x.dtype));
    const struct gn_stats_args stats = stats_of_y(a);
    if (!goes_through_scratch(a) && !a->stats.ptr) return KLEIN_OK;
    if (!scratch || (uintptr_t)scratch % 16)
        return fail(err, KLEIN_E_INTERNAL, "conv: no scratch memory, or not 16-byte aligned");
    if (a->stats.ptr && scratch_bytes < norm_gn_stats_scratch(&stats))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "conv: %zu bytes of scratch do not hold what statistics of %d channels need",
                    scratch_bytes, a->y.cols);
    if (goes_through_scratch(a) && !rows_that_fit(a, scratch_bytes))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "conv: %d rows of %d pixels of %d channels do not fit into %zu bytes of scratch",
                    rows_read(a, rows_at_least(a)), a->w_px, a->x.cols, scratch_bytes);
    return KLEIN_OK;
}

/* By KLEIN_CONV, else by the tuned table, else by the rules. */
static enum klein_status choose(struct gpu *g, const struct conv_shape *s, const struct conv_variant **v,
                                struct klein_error *err)
{
    const char *among = getenv("KLEIN_CONV");
    char key[TUNED_KEY] = "";
    if (g->tuned || g->picked) conv_key(s, key);
    *v = among && *among ? NULL : conv_named(s, tuned_kernel(g->tuned, key));
    if (!*v) TRY(conv_pick(s, among, v, err));
    if (g->picked) g->picked(g->picked_user, OP_conv, key, s, (*v)->name);
    return KLEIN_OK;
}

enum klein_status conv_launch(struct gpu *g, const struct conv_args *a, void *scratch, size_t scratch_bytes,
                              struct klein_error *err)
{
    TRY(check(a, scratch, scratch_bytes, err));
    const struct conv_shape s = {
        .arch = g->arch,
        .multiprocessors = g->multiprocessors,
        .act = a->x.dtype,
        .cin = a->x.cols,
        .cout = a->y.cols,
        .ksize = a->ksize,
        .stride = a->stride,
        .upsample = enlarged(a),
        .rows = rows_made(a),
        .ow = width_of_y(a),
        .placed =
            aligned(a->w) && (!a->bias.ptr || (a->bias.dtype == DT_F32 && (uintptr_t)a->bias.ptr % 8 == 0)),
        .aligned = aligned(a->y) && a->y.cols % 8 == 0 && (!a->residual.ptr || aligned(a->residual)),
    };
    const struct conv_variant *v;
    TRY(choose(g, &s, &v, err));
    const int through = goes_through_scratch(a);
    const size_t wanted = through ? band_bytes(a) : 0,
                 input = wanted < scratch_bytes ? wanted : scratch_bytes;
    const int rows = through ? conv_band_rows(v, &s, rows_that_fit(a, input)) : s.rows;
    /* Groups of whole fours of channels: their moments come from the tiles, if there is room for them. */
    const int last = (s.rows - 1) % rows + 1,
              fours = a->stats.ptr && s.aligned && a->y.cols / a->stats.rows % 4 == 0;
    const int64_t each = conv_chunks(v, &s, rows),
                  chunks = (s.rows - 1) / rows * each + conv_chunks(v, &s, last);
    const size_t room = (scratch_bytes - input) / chunk_bytes(a);
    float *moments = fours && chunks && (size_t)chunks <= room ? (float *)((char *)scratch + input) : NULL,
          *counts = moments ? moments + chunks * (a->y.cols / 4 * 2) : NULL;
    for (int first = 0, i = 0; first < s.rows; first += rows, i++) {
        const struct band b = band_of(a, a->row0 + first, first + rows < s.rows ? rows : s.rows - first);
        struct tensor x = tensor_rows(a->x, b.x_first * a->w_px, b.x_rows * a->w_px);
        if (through) TRY(fill_scratch(g, a, scratch, &x, err));
        const int64_t done = i * each;
        TRY(launch_band(g, v, &s, a, &b, x, moments ? moments + done * (a->y.cols / 4 * 2) : NULL,
                        counts ? counts + done : NULL, err));
    }
    if (!a->stats.ptr) return KLEIN_OK;
    const struct gn_stats_args stats = stats_of_y(a);
    if (!moments) return norm_gn_stats(g, &stats, scratch, err);
    return norm_gn_combine(g, a->stats, moments, counts, a->y.cols / 4, (int)chunks, a->eps, err);
}
