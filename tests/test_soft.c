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

/* A matrix [rows, cols] of bf16 as the sm_90 kernels want it: boxes of 64 columns, 128-byte swizzle. */
static struct tensor_map map_of(struct gpu *g, void *p, int rows, int cols, int box_rows)
{
    struct tensor_map map;
    struct tensor_box box = {.ptr = p,
                             .dtype = DT_BF16,
                             .rank = 2,
                             .dims = {(uint64_t)cols, (uint64_t)rows},
                             .strides = {(uint64_t)cols * 2},
                             .box = {64, (uint32_t)box_rows},
                             .swizzle = 128};
    OK(gpu_tensor_map(g, &box, &map, &err));
    return map;
}

/* Runs a product [m, n] = a b^T of device matrices. */
typedef void gemm_fn(struct gpu *g, void *c, void *a, void *b, int m, int n, int k);

static void run_sm80(struct gpu *g, void *c, void *a, void *b, int m, int n, int k, const char *kernel,
                     unsigned stages)
{
    struct gemm_args args = {c, a, b, m, n, k, k, k, n};
    unsigned blocks = (unsigned)((m + 127) / 128 * ((n + 127) / 128));
    OK(gpu_launch(g,
                  &(struct launch){.kernel = kernel,
                                   .grid = {blocks},
                                   .threads = GEMM_SM80_THREADS,
                                   .shared = stages * GEMM_SM80_STAGE,
                                   .args = &args},
                  &err));
}

static void gemm_sm80_s2(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_sm80(g, c, a, b, m, n, k, "gemm_sm80_128x128_s2", 2);
}

static void gemm_sm80_s3(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_sm80(g, c, a, b, m, n, k, "gemm_sm80_128x128_s3", 3);
}

static void run_sm90(struct gpu *g, void *c, void *a, void *b, int m, int n, int k, const char *kernel,
                     int bn, unsigned shared)
{
    struct gemm_sm90_args args = {
        map_of(g, a, m, k, 128), map_of(g, b, n, k, bn), map_of(g, c, m, n, 64), m, n, k};
    int tiles = (m + 127) / 128 * ((n + bn - 1) / bn);
    unsigned blocks = (unsigned)(tiles < g->multiprocessors ? tiles : g->multiprocessors);
    OK(gpu_launch(g,
                  &(struct launch){.kernel = kernel,
                                   .grid = {blocks},
                                   .threads = GEMM_SM90_THREADS,
                                   .shared = shared,
                                   .args = &args},
                  &err));
}

static void gemm_sm90_256(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_sm90(g, c, a, b, m, n, k, "gemm_sm90_128x256", 256, GEMM_SM90_SHARED(256, 4));
}

static void gemm_sm90_128(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_sm90(g, c, a, b, m, n, k, "gemm_sm90_128x128", 128, GEMM_SM90_SHARED(128, 6));
}

/* Against the product in f64 of the same bf16 operands: c may err by a bf16 rounding and by f32 sums. */
static void check_gemm(struct gpu *g, gemm_fn *gemm, int m, int n, int k)
{
    size_t sizes[] = {sizeof(bf16) * (size_t)(m * k), sizeof(bf16) * (size_t)(n * k),
                      sizeof(bf16) * (size_t)(m * n)};
    bf16 *a = malloc(sizes[0]), *b = malloc(sizes[1]), *c = malloc(sizes[2]);
    for (int i = 0; i < m * k; i++) a[i] = bf16_from_f32(number((uint64_t)i));
    for (int i = 0; i < n * k; i++) b[i] = bf16_from_f32(number((uint64_t)i + 1000000007));
    void *da = to_device(g, a, sizes[0]), *db = to_device(g, b, sizes[1]), *dc;
    OK(gpu_alloc(g, sizes[2], &dc, &err));
    gemm(g, dc, da, db, m, n, k);
    OK(gpu_download(g, c, dc, sizes[2], &err));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int x = 0; x < k; x++) {
                double product = (double)f32_from_bf16(a[i * k + x]) * f32_from_bf16(b[j * k + x]);
                sum += product;
                size += fabs(product);
            }
            double d = fabs(f32_from_bf16(c[i * n + j]) - sum);
            cr_assert(d <= fabs(sum) * 0x1p-8 + size * k * 0x1p-24, "%dx%dx%d: c[%d, %d] = %g, not %g", m, n,
                      k, i, j, (double)f32_from_bf16(c[i * n + j]), sum);
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
            check_gemm(g, gemm_sm80_s2, shapes[i][0], shapes[i][1], shapes[i][2]);
            check_gemm(g, gemm_sm80_s3, shapes[i][0], shapes[i][1], shapes[i][2]);
        }
        close_gpu(g);
    }
}

Test(soft, gemm_sm90)
{
    static const int shapes[][3] = {{128, 256, 64}, {1, 8, 8}, {130, 264, 200}, {257, 520, 584}};
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)(seed % 3));
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            check_gemm(g, gemm_sm90_256, shapes[i][0], shapes[i][1], shapes[i][2]);
            check_gemm(g, gemm_sm90_128, shapes[i][0], shapes[i][1], shapes[i][2]);
        }
        close_gpu(g);
    }
}
