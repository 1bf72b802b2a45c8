/* Weights on their way to a GPU (kernels/cuda/place.c): one that takes several parts is what its rows are when they come alone. */
#include "support/support.h"

#include "../kernels/device.h"
#include "../kernels/soft/softgpu.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

/* Of F32 a part of 16 MiB holds 1040 of these rows, of BF16 2080. */
enum { ROWS = 2500, COLS = 9 * 448, LAST = 6 };

static struct tensor numbers(enum dtype type)
{
    struct tensor t = tensor_of(malloc((size_t)ROWS * COLS * dtype_size(type)), type, ROWS, COLS);
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++) {
        const float f = (float)((int)(i * 2654435761u >> 8 & 0xffff) - 32768) / 4096;
        if (type == DT_F32)
            ((float *)t.ptr)[i] = f;
        else
            ((bf16 *)t.ptr)[i] = bf16_from_f32(f);
    }
    return t;
}

/* Rows [first, first + n) of a weight, from the device. */
static void *rows_of(struct device *dev, struct tensor t, int first, int n, size_t *bytes)
{
    *bytes = (size_t)n * (size_t)t.ld * dtype_size(t.dtype);
    char *out = malloc(*bytes + (size_t)n * sizeof(float));
    OK(dev->download(dev, out, tensor_at(t, first, 0), *bytes, &err));
    if (t.scale) {
        OK(dev->download(dev, out + *bytes, t.scale + first, (size_t)n * sizeof(float), &err));
        *bytes += (size_t)n * sizeof(float);
    }
    return out;
}

static void check(enum weight_kind kind, enum dtype from, const char *async)
{
    static const int slices[][2] = {{0, 4}, {1038, 5}, {2078, 5}, {ROWS - LAST, LAST}};
    struct device *dev;
    setenv("KLEIN_SOFT_ASYNC", async, 1);
    OK(device_open(test_device("soft sm_90a"), &(struct device_options){0}, &dev, &err));
    const struct tensor host = numbers(from);
    struct tensor whole = host;
    OK(dev->place(dev, kind, DT_BF16, &whole, &err));
    for (size_t i = 0; i < sizeof slices / sizeof *slices; i++) {
        const int first = slices[i][0], n = slices[i][1];
        struct tensor alone = tensor_rows(host, first, n);
        size_t bytes, same;
        OK(dev->place(dev, kind, DT_BF16, &alone, &err));
        char *want = rows_of(dev, alone, 0, n, &bytes), *got = rows_of(dev, whole, first, n, &same);
        cr_assert(alone.dtype == whole.dtype && bytes == same && !memcmp(want, got, bytes),
                  "kind %d, %s, %s: rows from %d", (int)kind, dtype_name(from), async, first);
        free(want), free(got);
    }
    free(host.ptr);
    device_close(dev);
}

Test(cuda_ops, weights_of_several_parts)
{
    static const char *const async[] = {"late", "random"};
    for (int i = 0; i < (SANITIZED ? 1 : 2); i++) {
        check(WEIGHT_MATRIX, DT_BF16, async[i]);      /* as it is */
        check(WEIGHT_MATRIX, DT_F32, async[i]);       /* converted */
        check(WEIGHT_MATRIX_E4M3, DT_BF16, async[i]); /* quantised */
        check(WEIGHT_MATRIX_E4M3, DT_F32, async[i]);
        check(WEIGHT_CONV_3X3, DT_F32, async[i]); /* packed */
    }
}
