/* The soft GPU: it computes what the hardware is documented to compute, in every order, and it reports what is wrong. */
#include "support/support.h"

#include "../kernels/cuda/gpu.h"
#include "../kernels/soft/softgpu.h"
#include "soft/args.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct driver cu;
static struct klein_error err;

static const struct kernel_module test_modules[] = {
    {"basic", "sm_80", "klein soft image: sm_80 compute_80"},
    {0},
};

/* A device that claims `arch`, with a seed and a mode of asynchrony. */
static struct gpu *open_gpu(const char *arch, uint64_t seed, enum softgpu_async async)
{
    struct gpu *g;
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.seed = seed;
    c.async = async;
    cr_assert(softgpu_configure(&c));
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    OK(gpu_add_modules(g, test_modules, &err));
    return g;
}

static void close_gpu(struct gpu *g)
{
    gpu_close(g);
    driver_close(&cu);
}

static void *to_device(struct gpu *g, const void *host, size_t bytes)
{
    void *p;
    OK(gpu_alloc(g, bytes, &p, &err));
    OK(gpu_upload(g, p, host, bytes, &err));
    return p;
}

/* Numbers in [-1, 1) that differ everywhere. */
static float number(uint64_t i)
{
    i = (i + 1) * 0x9e3779b97f4a7c15ull;
    i ^= i >> 29, i *= 0xbf58476d1ce4e5b9ull, i ^= i >> 32;
    return (float)(int32_t)(uint32_t)i * 0x1p-31f;
}

/* c[m, n] of gemm kernel `kernel` against the product in f64 of the same bf16 operands; c may err by a bf16 rounding. */
static void check_gemm(struct gpu *g, const char *kernel, int m, int n, int k, unsigned threads,
                       unsigned shared)
{
    bf16 *a = malloc(sizeof *a * (size_t)(m * k)), *b = malloc(sizeof *b * (size_t)(n * k)),
         *c = malloc(sizeof *c * (size_t)(m * n));
    for (int i = 0; i < m * k; i++) a[i] = bf16_from_f32(number((uint64_t)i));
    for (int i = 0; i < n * k; i++) b[i] = bf16_from_f32(number((uint64_t)i + 1000000007));
    void *da = to_device(g, a, sizeof *a * (size_t)(m * k)),
         *db = to_device(g, b, sizeof *b * (size_t)(n * k)), *dc;
    OK(gpu_alloc(g, sizeof *c * (size_t)(m * n), &dc, &err));
    struct gemm_args args = {dc, da, db, m, n, k, k, k, n};
    unsigned blocks = (unsigned)((m + 127) / 128 * ((n + 127) / 128));
    OK(gpu_launch(
        g,
        &(struct launch){
            .kernel = kernel, .grid = {blocks}, .threads = threads, .shared = shared, .args = &args},
        &err));
    OK(gpu_download(g, c, dc, sizeof *c * (size_t)(m * n), &err));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int x = 0; x < k; x++) {
                double product = (double)f32_from_bf16(a[i * k + x]) * f32_from_bf16(b[j * k + x]);
                sum += product;
                size += fabs(product);
            }
            double d = fabs(f32_from_bf16(c[i * n + j]) - sum);
            cr_assert(d <= fabs(sum) * 0x1p-8 + size * k * 0x1p-24, "%s %dx%dx%d: c[%d, %d] = %g, not %g",
                      kernel, m, n, k, i, j, (double)f32_from_bf16(c[i * n + j]), sum);
        }
    gpu_free(g, da);
    gpu_free(g, db);
    gpu_free(g, dc);
    free(a);
    free(b);
    free(c);
}

Test(soft, block_sum_in_any_order)
{
    for (uint64_t seed = 0; seed < 5; seed++) {
        struct gpu *g = open_gpu("sm_80", seed, (enum softgpu_async)(seed % 3));
        enum { N = 256 * 20 };
        static float x[N], y[N];
        for (int i = 0; i < N; i++) x[i] = (float)(i % 61);
        void *dx = to_device(g, x, sizeof x), *dy;
        OK(gpu_alloc(g, sizeof y, &dy, &err));
        struct basic_args args = {dy, dx, 0};
        OK(gpu_launch(g,
                      &(struct launch){
                          .kernel = "basic_sum", .grid = {20}, .threads = 256, .shared = 32, .args = &args},
                      &err));
        OK(gpu_download(g, y, dy, sizeof y, &err));
        for (int b = 0; b < 20; b++) {
            float sum = 0;
            for (int i = 0; i < 256; i++) sum += x[256 * b + i];
            for (int i = 0; i < 256; i++)
                cr_assert(y[256 * b + i] == sum, "seed %d: y[%d] = %g", (int)seed, 256 * b + i,
                          y[256 * b + i]);
        }
        gpu_free(g, dx);
        gpu_free(g, dy);
        close_gpu(g);
    }
}

Test(soft, gemm_sm80)
{
    static const int shapes[][3] = {{128, 128, 64}, {1, 8, 8}, {130, 264, 200}, {257, 136, 72}};
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct gpu *g = open_gpu("sm_80", seed, (enum softgpu_async)(seed % 3));
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int *s = shapes[i];
            check_gemm(g, "gemm_sm80_128x128_s3", s[0], s[1], s[2], GEMM_SM80_THREADS, 3 * GEMM_SM80_STAGE);
            check_gemm(g, "gemm_sm80_128x128_s2", s[0], s[1], s[2], GEMM_SM80_THREADS, 2 * GEMM_SM80_STAGE);
        }
        close_gpu(g);
    }
}
