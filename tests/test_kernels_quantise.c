/* quantise_sm89 on the soft GPU: every byte is what its formula gives on the host, in several orders of threads; what it moves. */
#include "support/accesses.h"
#include "support/gpu_device.h"
#include "support/support.h"

#include "../kernels/gemm/quantise.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

static struct gpu_device *open_chip(uint64_t seed, enum softgpu_async async, int count)
{
    static const struct op_table none;
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "sm_89");
    c.seed = seed, c.async = async, c.count_accesses = count;
    cr_assert(softgpu_configure(&c));
    return gpu_device_open(&none);
}

static struct tensor on_gpu(struct gpu_device *d, enum dtype type, int rows, int cols)
{
    struct tensor t =
        tensor_of(d->base.alloc(&d->base, (size_t)rows * (size_t)cols * dtype_size(type)), type, rows, cols);
    cr_assert(t.ptr);
    return t;
}

/* Rows of outliers, of zeros, of the smallest numbers, of one number. */
static float number(int row, int column)
{
    switch (row % 4) {
    case 0:
        return (float)(sin(0.37 * column + row) + (column % 61 == 7 ? 30 * cos(0.05 * column) : 0));
    case 1:
        return 0;
    case 2:
        return (float)(column % 5 - 2) * 0x1p-132f;
    default:
        return column == 11 ? -3e38f : (float)(column % 7) * 1e30f;
    }
}

static void check(int rows, int cols, uint64_t seed, enum softgpu_async async)
{
    enum { PAD = 16 };
    struct gpu_device *d = open_chip(seed, async, 0);
    struct tensor x = on_gpu(d, DT_BF16, rows, cols + PAD), y = on_gpu(d, DT_F8E4M3, rows, cols + PAD),
                  scale = on_gpu(d, DT_F32, 1, rows);
    const size_t n = (size_t)rows * (size_t)(cols + PAD);
    bf16 *from = malloc(n * sizeof *from);
    uint8_t *to = malloc(n);
    float *scales = malloc((size_t)rows * sizeof *scales);
    cr_assert(from && to && scales);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols + PAD; c++)
            from[r * (cols + PAD) + c] = bf16_from_f32(c < cols ? number(r, c) : NAN);
    OK(d->base.upload(&d->base, x.ptr, from, n * sizeof *from, &err));
    OK(gpu_fill(d->gpu, y.ptr, 0x55, n, &err));
    x.cols = y.cols = cols;
    OK(quantise_rows(d->gpu, y, scale, x, &err));
    OK(d->base.download(&d->base, to, y.ptr, n, &err));
    OK(d->base.download(&d->base, scales, scale.ptr, (size_t)rows * sizeof *scales, &err));
    for (int r = 0; r < rows; r++) {
        float largest = 0x1p-100f;
        for (int c = 0; c < cols; c++)
            largest = fmaxf(largest, fabsf(f32_from_bf16(from[r * (cols + PAD) + c])));
        cr_assert(scales[r] == largest / 448, "%d columns, row %d: %g", cols, r, (double)scales[r]);
        for (int c = 0; c < cols + PAD; c++) {
            const int i = r * (cols + PAD) + c;
            const uint8_t want = c < cols ? f8e4m3_from_f32(f32_from_bf16(from[i]) * (448 / largest)) : 0x55;
            cr_assert(to[i] == want, "%d columns, row %d, column %d: %#x, not %#x", cols, r, c, to[i], want);
        }
    }
    free(from), free(to), free(scales);
    device_close(&d->base);
}

/* Widths of the models, odd pieces, and beyond what registers hold. */
Test(kernels_quantise, every_byte)
{
    static const int widths[] = {16, 48, 272, 2048, 3072, 4096, 4112, 9216, 12288, 16384, 16400, 21520};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) check(5, widths[i], 0, SOFTGPU_LATE);
    check(9, 4112, 7, SOFTGPU_RANDOM);
    check(9, 16400, 11, SOFTGPU_NOW);
}

Test(kernels_quantise, refuses)
{
    struct gpu_device *d = open_chip(0, SOFTGPU_LATE, 0);
    struct tensor x = on_gpu(d, DT_BF16, 2, 64), y = on_gpu(d, DT_F8E4M3, 2, 64),
                  scale = on_gpu(d, DT_F32, 1, 2);
    struct tensor wrong = y, narrow = x;
    wrong.cols = narrow.cols = 24;
    FAILS(quantise_rows(d->gpu, wrong, scale, narrow, &err), KLEIN_E_UNSUPPORTED, "multiple of 16");
    wrong = y, wrong.ptr = (char *)y.ptr + 8;
    FAILS(quantise_rows(d->gpu, wrong, scale, x, &err), KLEIN_E_UNSUPPORTED, "aligned");
    FAILS(quantise_rows(d->gpu, x, scale, x, &err), KLEIN_E_UNSUPPORTED, "needs BF16, F8_E4M3, F32");
    device_close(&d->base);
}

/* One pass over memory by 16 bytes; 4 bytes of a row are its scale. */
Test(kernels_quantise, counters)
{
    static const struct {
        int cols;
        const char *accesses;
    } cases[] = {{3072, "4: 8, 16: 160"}, {9216, "4: 8, 16: 448"}, {12288, "4: 8, 16: 576"}};
    enum { ROWS = 8 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gpu_device *d = open_chip(0, SOFTGPU_LATE, 1);
        const int cols = cases[i].cols;
        struct tensor x = on_gpu(d, DT_BF16, ROWS, cols), y = on_gpu(d, DT_F8E4M3, ROWS, cols),
                      scale = on_gpu(d, DT_F32, 1, ROWS);
        struct softgpu_counters n;
        OK(gpu_fill(d->gpu, x.ptr, 0x3c, (size_t)ROWS * (size_t)cols * sizeof(bf16), &err));
        OK(gpu_sync(d->gpu, &err));
        softgpu_reset_counters();
        OK(quantise_rows(d->gpu, y, scale, x, &err));
        OK(gpu_sync(d->gpu, &err));
        softgpu_read_counters(&n);
        cr_expect_eq(n.kernels, 1);
        cr_expect_eq(n.global_sectors, n.global_sectors_ideal);
        cr_expect_eq(n.global_sectors, (uint64_t)ROWS * (uint64_t)(3 * cols / 32 + 1)); /* x, y, the scale */
        cr_expect_eq(n.bank_conflicts, 0);
        expect_accesses(&n, "quantise", cases[i].accesses);
        device_close(&d->base);
    }
}
