#include "amx.h"
#include "product.h"

#include "../dnn.h"

#include <omp.h>

/* The result is cut into equal tiles of at most TILE_H by TILE_W pixels. A tile's input is gathered with its
 * border into scratch, normalised, enlarged and rounded on the way, so that oneDNN sees one plain convolution
 * of one shape. In F32 it is one product (product.h) for each of the kernel's pixels, on AMX one over all of them (amx.h). Measured: 4 to 16 by 32 to 128 are within 3 %; this makes more jobs than most. */
enum { TILE_H = 8, TILE_W = 32 };

struct job {
    const struct conv_args *a;
    struct dnn_conv shape; /* of one tile, input with border */
    int rows, ow, tile_h, tile_w, across, tiles, amx;
    int cin, cout;             /* elements of a pixel in scratch: as many as channels, rounded up for AMX */
    struct norm_channels norm; /* of the input; empty without */
    const void *weights;       /* packed: for oneDNN, product.h or amx.h */
};

static void make_job(struct job *j, const struct cpu_device *cpu, const struct conv_args *a)
{
    *j = (struct job){.a = a};
    int up = a->upsample ? 2 : 1;
    j->rows = a->rows ? a->rows : conv_rows_of_y(a);
    j->ow = a->w_px * up / a->stride;
    j->tile_h = ceil_div(j->rows, ceil_div(j->rows, TILE_H));
    j->tile_w = ceil_div(j->ow, ceil_div(j->ow, TILE_W));
    j->across = ceil_div(j->ow, j->tile_w);
    enum dtype type = a->x.dtype == DT_BF16 && cpu->products != PRODUCTS_F32 ? DT_BF16 : DT_F32;
    j->amx = type == DT_BF16 && cpu->products == PRODUCTS_AMX;
    if (j->amx) j->tile_w = round_up(j->tile_w, AMX_M); /* what lies beyond the image is dropped */
    j->cin = round_up(a->x.cols, j->amx ? AMX_K : 1);
    j->cout = round_up(a->y.cols, j->amx ? AMX_N : 1);
    j->tiles = j->across * ceil_div(j->rows, j->tile_h);
    j->shape = (struct dnn_conv){.h = (j->tile_h - 1) * a->stride + a->ksize,
                                 .w = (j->tile_w - 1) * a->stride + a->ksize,
                                 .cin = a->x.cols,
                                 .cout = a->y.cols,
                                 .ksize = a->ksize,
                                 .stride = a->stride,
                                 .type = type};
}

/* One pixel of x as the convolution sees it. */
static void gather_pixel(const struct job *j, char *to, const void *from)
{
    enum dtype type = j->shape.type, x = j->a->x.dtype;
    int cin = j->shape.cin;
    memset((char *)to + (size_t)cin * dtype_size(type), 0, (size_t)(j->cin - cin) * dtype_size(type));
    if (!j->norm.mean) {
        ISA(convert)(to, type, from, x, cin);
        return;
    }
    for (int c = 0; c < cin; c += VL)
        vput(to, type, c, cin, vsilu(norm_at(&j->norm, vget(from, x, c, cin), c, cin)));
}

/* The input of the tile whose result begins at (row, col). */
static void gather(const struct job *j, char *to, int row, int col)
{
    const struct conv_args *a = j->a;
    int up = a->upsample ? 2 : 1, pad = a->ksize == 3 && a->stride == 1;
    size_t pixel = (size_t)j->cin * dtype_size(j->shape.type);
    for (int y = 0; y < j->shape.h; y++)
        for (int x = 0; x < j->shape.w; x++, to += pixel) {
            int r = row * a->stride + y - pad, c = col * a->stride + x - pad;
            if (r < 0 || c < 0 || r >= a->h * up || c >= a->w_px * up)
                memset(to, 0, pixel);
            else if (up == 2 && x && c % 2)
                memcpy(to, to - pixel, pixel); /* enlarged: the same as its left neighbour */
            else
                gather_pixel(j, to, row_of(a->x, r / up * a->w_px + c / up));
        }
}

static void scatter(const struct job *j, const float *from, int row, int col)
{
    const struct conv_args *a = j->a;
    int n = a->y.cols;
    for (int y = 0; y < j->tile_h && row + y < a->row0 + j->rows; y++)
        for (int x = 0; x < j->tile_w && col + x < j->ow; x++) {
            int pixel = (row + y) * j->ow + col + x;
            const float *z = from + ((size_t)y * (size_t)j->tile_w + (size_t)x) * (size_t)j->cout;
            for (int c = 0; c < n; c += VL) {
                vf v = vget(z, DT_F32, c, n);
                if (a->bias.ptr) v += vget(a->bias.ptr, a->bias.dtype, c, n);
                if (a->residual.ptr) v += vget(row_of(a->residual, pixel), a->residual.dtype, c, n);
                vput(row_of(a->y, pixel), a->y.dtype, c, n, v);
            }
        }
}

/* --- F32 and AMX --- */

/* A row of weights, [cin][taps], as [taps][n][cin]; `size` is a constant where this is used. */
static inline __attribute__((always_inline)) void spread(char *to, const char *row, size_t size, int taps,
                                                         int n, int cin)
{
    for (int t = 0; t < taps; t++)
        for (int c = 0; c < cin; c++)
            memcpy(to + (size_t)(t * n * cin + c) * size, row + (size_t)(c * taps + t) * size, size);
}

/* Weights as slivers, each of all taps (pixels of the kernel) one after another. plain: [threads][sliver + 1][w.cols] scratch. */
static void pack_weights(const struct job *j, int threads, char *plain, char *packed)
{
    int taps = j->a->ksize * j->a->ksize, cin = j->a->x.cols, cout = j->a->y.cols,
        width = j->amx ? AMX_N : PRODUCT_N;
    size_t size = dtype_size(j->shape.type), row = (size_t)(cin * taps) * size,
           sliver = (size_t)(j->cin * width) * size;
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < ceil_div(cout, width); t++) {
        int n = min_int(width, cout - t * width);
        char *mine = plain + (size_t)omp_get_thread_num() * (size_t)(width + 1) * row,
             *one = mine + (size_t)width * row;
        for (int o = 0; o < n; o++) {
            ISA(convert)(one, j->shape.type, row_of(j->a->w, t * width + o), j->a->w.dtype, j->a->w.cols);
            if (j->amx)
                spread(mine + (size_t)(o * cin) * size, one, sizeof(bf16), taps, n, cin);
            else
                spread(mine + (size_t)(o * cin) * size, one, sizeof(float), taps, n, cin);
        }
        for (int tap = 0; tap < taps; tap++) {
            void *to = packed + (size_t)(t * taps + tap) * sliver;
            struct tensor of_tap = tensor_of(mine + (size_t)(tap * n * cin) * size, j->shape.type, n, cin);
            if (j->amx)
                ISA(amx_transposed)(to, of_tap, 0, cin);
            else
                ISA(pack_rows)(to, of_tap, 0, cin);
        }
    }
}

/* y of one tile. */
static void multiply(const struct job *j, const float *x, float *y)
{
    int k = j->shape.ksize, cin = j->shape.cin, cout = j->shape.cout, pixels = j->tile_h * j->tile_w;
    const float *row[TILE_H * TILE_W];
    for (int i = 0; i < pixels; i++)
        row[i] = x + (size_t)((i / j->tile_w * j->shape.w + i % j->tile_w) * j->shape.stride) * (size_t)cin;
    for (int tap = 0; tap < k * k; tap++) ISA(product)
    (&(struct product){pixels, cout, cin, row, (size_t)(tap / k * j->shape.w + tap % k) * (size_t)cin,
                       (const float *)j->weights + (size_t)tap * (size_t)cin * PRODUCT_N,
                       (size_t)(k * k * cin) * PRODUCT_N, y, cout, tap > 0});
}

static void multiply_amx(const struct job *j, const char *x, float *y)
{
    enum { TAPS = 9 };
    int k = j->shape.ksize, tiles = j->tile_h * j->tile_w / AMX_M, across = j->tile_w / AMX_M;
    size_t pixel = (size_t)j->cin * sizeof(bf16), tap[TAPS];
    const char *left[TILE_H * TILE_W / AMX_M];
    CHECK(k * k <= TAPS);
    for (int i = 0; i < k * k; i++) tap[i] = (size_t)(i / k * j->shape.w + i % k) * pixel;
    for (int i = 0; i < tiles; i++)
        left[i] = x + (size_t)((i / across * j->shape.w + i % across * AMX_M) * j->shape.stride) * pixel;
    for (int c = 0; c < j->cout; c += AMX_N) ISA(amx_product)
    (&(struct amx_product){.tiles = tiles,
                           .parts = k * k,
                           .steps = j->cin / AMX_K,
                           .left = left,
                           .part = tap,
                           .row = pixel * (size_t)j->shape.stride,
                           .step = AMX_ROW,
                           .right = (const bf16 *)j->weights + (size_t)c * (size_t)(k * k * j->cin),
                           .c = y + c,
                           .ldc = j->cout});
}

/* --- oneDNN --- */

/* The weights dense, in a type that oneDNN reads; `plain` is scratch for that. */
static const void *plain_weights(const struct conv_args *a, char *plain, enum dtype *type)
{
    *type = a->w.dtype == DT_F16 ? DT_F32 : a->w.dtype;
    if (*type == a->w.dtype && a->w.ld == a->w.cols) return a->w.ptr;
    struct tensor dense = tensor_of(plain, *type, a->w.rows, a->w.cols);
    for (int i = 0; i < dense.rows; i++)
        ISA(convert)(row_of(dense, i), *type, row_of(a->w, i), a->w.dtype, dense.cols);
    return plain;
}

static enum klein_status pack_for_dnn(struct job *j, struct cpu_device *cpu, char *packed, char *plain)
{
    enum dtype from;
    const void *weights = plain_weights(j->a, plain, &from);
    return dnn_conv_pack(cpu->dnn, &j->shape, weights, from, packed);
}

enum klein_status ISA(cpu_conv)(struct device *dev, const struct conv_args *a, struct klein_error *err)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct job j;
    make_job(&j, cpu, a);
    int f32 = j.shape.type == DT_F32, taps = a->ksize * a->ksize;
    size_t weights = (size_t)a->w.rows * (size_t)a->w.cols * sizeof(float), packed = 0, plain = weights;
    enum klein_status status = KLEIN_OK;
    if (f32 || j.amx) {
        packed = f32 ? packed_floats(a->w.cols, a->w.rows) * sizeof(float)
                     : (size_t)j.cout * (size_t)(taps * j.cin) * sizeof(bf16);
        plain = (size_t)dev->threads * (size_t)(((j.amx ? AMX_N : PRODUCT_N) + 1) * a->w.cols) *
                dtype_size(j.shape.type);
    } else {
        status = dnn_conv_bytes(cpu->dnn, &j.shape, &packed);
    }
    if (status != KLEIN_OK)
        return fail(err, status, "conv: oneDNN has no convolution of %d > %d channels", a->x.cols, a->y.cols);
    size_t pixels = (size_t)j.shape.h * (size_t)j.shape.w; /* of a tile's input */
    size_t input = aligned(pixels * (size_t)j.cin * dtype_size(j.shape.type));
    size_t output = aligned((size_t)(j.tile_h * j.tile_w) * (size_t)j.cout * sizeof(float));
    size_t norm = aligned((size_t)a->x.cols * 3 * sizeof(float));
    packed = aligned(packed);
    plain = aligned(plain);
    char *scratch;
    TRY(cpu_scratch(cpu, packed + plain + norm + (size_t)dev->threads * (input + output), &scratch, err));
    if (f32 || j.amx)
        pack_weights(&j, dev->threads, scratch + packed, scratch);
    else
        status = pack_for_dnn(&j, cpu, scratch, scratch + packed);
    if (status != KLEIN_OK) return fail(err, status, "conv: oneDNN failed to pack weights");
    j.weights = scratch;
    if (a->norm.stats.ptr) j.norm = norm_channels(&a->norm, a->x.cols, (float *)(scratch + packed + plain));
    char *tiles = scratch + packed + plain + norm;
#pragma omp parallel num_threads(dev->threads)
    {
        dnn_enter();
        if (j.amx) ISA(amx_begin)();
        char *x = tiles + (size_t)omp_get_thread_num() * (input + output);
        float *y = (float *)(x + input);
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < j.tiles; t++) {
            int row = a->row0 + t / j.across * j.tile_h, col = t % j.across * j.tile_w;
            enum klein_status s = KLEIN_OK;
            gather(&j, x, row, col);
            if (j.amx)
                multiply_amx(&j, x, y);
            else if (f32)
                multiply(&j, (const float *)x, y);
            else
                s = dnn_conv(cpu->dnn, omp_get_thread_num(), &j.shape, x, j.weights, y);
            if (s == KLEIN_OK) {
                scatter(&j, y, row, col);
            } else {
#pragma omp atomic write
                status = s;
            }
        }
        if (j.amx) ISA(amx_end)();
    }
    if (status != KLEIN_OK) return fail(err, status, "conv: oneDNN failed on a tile");
    if (!a->stats.ptr) return KLEIN_OK;
    struct tensor made = tensor_rows(a->y, a->row0 * j.ow, j.rows * j.ow);
    return ISA(cpu_gn_stats)(dev, &(struct gn_stats_args){a->stats, made, a->eps}, err);
}
