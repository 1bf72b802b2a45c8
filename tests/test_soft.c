/* The soft GPU: it computes what the hardware is documented to compute, in every order, and it reports what is wrong. */
#include "support/support.h"

#include "../kernels/cuda/gpu.h"
#include "../kernels/soft/softgpu.h"
#include "soft/args.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static struct driver cu;
static struct klein_error err;

static const struct kernel_module test_modules[] = {
    {"basic", "sm_80", "klein soft image: sm_80 compute_80"},
    {"bugs_sm80", "sm_80", "klein soft image: sm_80 compute_80"},
    {"bugs_sm90", "sm_90a", "klein soft image: sm_90a"},
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
        struct basic_args args = {dy, dx};
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

/* ---- planted bugs: each is reported, whatever the seed and the landing of asynchronous work ---------------------------- */

static const enum softgpu_async modes[] = {SOFTGPU_LATE, SOFTGPU_RANDOM, SOFTGPU_NOW};

/* Runs bugs_sm80's `kernel`; the message of its failure, "" if it did not fail. */
static const char *run_bug_sm80(const char *kernel, enum bug_sm80 bug, uint64_t seed, enum softgpu_async mode)
{
    enum { X = 4 * BUG80_THREADS * BUG80_BLOCKS, Y = 4 * BUG80_THREADS };
    static uint32_t x[X], y[Y];
    struct gpu *g = open_gpu("sm_80", seed, mode);
    for (int i = 0; i < X; i++) x[i] = (uint32_t)i * 2654435761u;
    void *dx = to_device(g, x, sizeof x), *dy;
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    struct bug_sm80_args args = {dy, dx, bug};
    gpu_op(g, "test", kernel);
    struct launch l = {
        .kernel = kernel, .threads = BUG80_THREADS, .shared = 2 * BUG80_THREADS * 16, .args = &args};
    if (strstr(kernel, "misc")) l.shared = 48;
    err = (struct klein_error){0};
    enum klein_status status = gpu_launch(g, &l, &err);
    if (status == KLEIN_OK) status = gpu_download(g, y, dy, sizeof y, &err);
    if (status == KLEIN_OK && bug == BUG80_NONE && strstr(kernel, "pipeline"))
        for (int i = 0; i < Y; i++) {
            uint32_t sum = 0;
            for (int k = 0; k < BUG80_BLOCKS; k++) sum += x[Y * k + (i + Y / 2) % Y];
            cr_assert(y[i] == sum, "y[%d]", i);
        }
    gpu_free(g, dx);
    gpu_free(g, dy);
    close_gpu(g);
    return status == KLEIN_OK ? "" : err.message;
}

/* Does the message hold one of the texts "a|b"? None of them empty: it must be empty. */
static bool says(const char *message, const char *texts)
{
    char copy[256], *rest = copy;
    if (!*texts) return !*message;
    snprintf(copy, sizeof copy, "%s", texts);
    for (char *text; (text = strsep(&rest, "|"));)
        if (strstr(message, text)) return true;
    return false;
}

static void expect_sm80(const char *kernel, enum bug_sm80 bug, const char *text)
{
    for (uint64_t seed = 0; seed < 4; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const char *message = run_bug_sm80(kernel, bug, seed, modes[mode]);
            cr_assert(says(message, text), "seed %d mode %d: \"%s\", expected \"%s\"", (int)seed, mode,
                      message, text);
            cr_assert(!*text || strstr(message, kernel), "%s is not named in \"%s\"", kernel, message);
        }
}

Test(planted, sm80_right)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NONE, "");
    expect_sm80("bugs_sm80_misc", BUG80_NONE, "");
}

Test(planted, missing_barrier)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NO_BARRIER, "race: reads shared|race: overwrites shared");
}

Test(planted, wait_and_barrier_swapped)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_SWAPPED, "race: reads shared");
}

Test(planted, stage_refilled_early)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_EARLY_REFILL, "race: overwrites shared|race: reads shared");
}

Test(planted, wait_allows_too_many_groups)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_WAITS_TOO_LITTLE,
                "cp.async.wait_group is missing or allows too many groups");
}

Test(planted, copy_never_waited_for)
{
    expect_sm80("bugs_sm80_pipeline", BUG80_NOT_WAITED, "ends with a cp.async that it never waited for");
}

Test(planted, out_of_bounds)
{
    expect_sm80("bugs_sm80_misc", BUG80_WRAPPED_BOUNDS, "0 bytes past the end of allocation");
    expect_sm80("bugs_sm80_misc", BUG80_PLAIN_READ, "bytes past the end of allocation");
    expect_sm80("bugs_sm80_misc", BUG80_SHARED_BOUNDS, "outside the dynamic shared memory");
}

Test(planted, plain_store_past_the_end)
{
    for (uint64_t seed = 0; seed < 3;
         seed++) { /* found when the guard bytes are looked at: names the allocation, not the kernel */
        const char *message = run_bug_sm80("bugs_sm80_misc", BUG80_PLAIN_WRITE, seed, modes[seed]);
        cr_assert(strstr(message, "past the end of allocation"), "%s", message);
    }
}

Test(planted, misaligned)
{
    expect_sm80("bugs_sm80_misc", BUG80_MISALIGNED, "not a multiple of 16");
}

Test(planted, divergence)
{
    expect_sm80("bugs_sm80_misc", BUG80_DIVERGENCE, "divergence");
}

Test(planted, deadlock_names_who_waits_where)
{
    expect_sm80("bugs_sm80_misc", BUG80_BARRIER_SHORT,
                "threads 0-31: barrier 2: 32 of 64 threads arrived (bugs_sm80.cu");
}

Test(planted, reduction_without_barrier)
{
    expect_sm80("bugs_sm80_misc", BUG80_REDUCTION, "race: ");
}

Test(planted, trap_and_stack)
{
    expect_sm80("bugs_sm80_misc", BUG80_TRAP, "precondition");
    expect_sm80("bugs_sm80_misc", BUG80_STACK, "stack overflow");
}

Test(planted, too_much_shared_memory)
{
    struct gpu *g = open_gpu("sm_89", 0, SOFTGPU_LATE);
    struct bug_sm80_args args = {0};
    struct launch l = {
        .kernel = "bugs_sm80_misc", .threads = BUG80_THREADS, .shared = 120 << 10, .args = &args};
    FAILS(gpu_launch(g, &l, &err), KLEIN_E_INTERNAL, "too much shared memory");
    cr_assert(strstr(err.message, "101376"), "%s", err.message); /* what sm_89 has */
    l.shared = 16;                                               /* fewer than the kernel's struct */
    OK(gpu_launch(g, &l, &err));
    FAILS(gpu_sync(g, &err), KLEIN_E_INTERNAL, "but was launched with 16");
    close_gpu(g);
}

Test(planted, wrong_number_of_threads)
{
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    struct bug_sm80_args args = {0};
    FAILS(gpu_launch(
              g, &(struct launch){.kernel = "bugs_sm80_misc", .threads = 128, .shared = 48, .args = &args},
              &err),
          KLEIN_E_INTERNAL, "its bounds say (64, 1, 1)");
    close_gpu(g);
}

static const char *run_bug_sm90(enum bug_sm90 bug, uint64_t seed, enum softgpu_async mode)
{
    enum { K = 384 };
    static bf16 a[64 * K], b[64 * K], y[64 * 64];
    struct gpu *g = open_gpu("sm_90a", seed, mode);
    for (int i = 0; i < 64 * K; i++) {
        a[i] = bf16_from_f32(number((uint64_t)i));
        b[i] = bf16_from_f32(number((uint64_t)i + 99999));
    }
    void *da = to_device(g, a, sizeof a), *db = to_device(g, b, sizeof b), *dy;
    OK(gpu_alloc(g, sizeof y, &dy, &err));
    struct bug_sm90_args args = {map_of(g, da, 64, K, 64), map_of(g, db, 64, K, 64),
                                 map_of(g, dy, 64, 64, 64), K, bug};
    gpu_op(g, "test", "bugs_sm90");
    struct launch l = {.kernel = "bugs_sm90_gemm", .threads = BUG90_THREADS, .shared = 50176, .args = &args};
    err = (struct klein_error){0};
    l.dependent = bug == BUG90_NO_GRID_WAIT;
    enum klein_status status = gpu_launch(g, &l, &err);
    if (status == KLEIN_OK) status = gpu_download(g, y, dy, sizeof y, &err);
    if (status == KLEIN_OK && bug == BUG90_NONE)
        for (int i = 0; i < 64 * 64; i++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)f32_from_bf16(a[i / 64 * K + k]) * f32_from_bf16(b[i % 64 * K + k]);
            cr_assert(fabs(f32_from_bf16(y[i]) - sum) <= fabs(sum) * 0x1p-8 + 1e-4, "y[%d]", i);
        }
    close_gpu(g);
    return status == KLEIN_OK ? "" : err.message;
}

static void expect_sm90(enum bug_sm90 bug, const char *text)
{
    for (uint64_t seed = 0; seed < 4; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const char *message = run_bug_sm90(bug, seed, modes[mode]);
            cr_assert(says(message, text), "seed %d mode %d: \"%s\", expected \"%s\"", (int)seed, mode,
                      message, text);
        }
}

Test(planted, sm90_right)
{
    expect_sm90(BUG90_NONE, "");
}

Test(planted, full_wait_skipped)
{
    expect_sm90(BUG90_NO_FULL_WAIT, "this thread has not waited for that phase");
}

Test(planted, stage_released_early)
{
    expect_sm90(
        BUG90_EARLY_RELEASE,
        "race: overwrites shared|or the stage was released before it was read|before this thread looked");
}

Test(planted, missing_wgmma_wait)
{
    expect_sm90(BUG90_NO_WGMMA_WAIT, "ends with a wgmma (line");
}

Test(planted, missing_wgmma_fence)
{
    expect_sm90(BUG90_NO_WGMMA_FENCE, "wgmma.fence is missing");
}

Test(planted, missing_proxy_fence)
{
    expect_sm90(BUG90_NO_PROXY_FENCE, "fence.proxy.async is missing");
}

Test(planted, wrong_expect_tx)
{
    expect_sm90(BUG90_EXPECT_LESS, "expect_tx announced");
    expect_sm90(BUG90_EXPECT_MORE, "16 bytes missing");
}

Test(planted, deadlocks_of_mbarriers)
{
    expect_sm90(BUG90_NO_ARRIVE, "deadlock");
    expect_sm90(BUG90_NO_ARRIVE, "0 of 4 arrivals");
    expect_sm90(BUG90_TOO_MANY_ARRIVE, "more arrivals than its count of 1");
}

Test(planted, wrong_parity)
{
    expect_sm90(BUG90_WRONG_PARITY, "shared+0x");
}

Test(planted, misaligned_tile)
{
    expect_sm90(BUG90_MISALIGNED_TILE, "misaligned tile");
}

Test(planted, store_not_waited_for)
{
    expect_sm90(BUG90_STORE_NOT_WAITED, "cp.async.bulk.wait_group is missing");
}

Test(planted, not_an_mbarrier)
{
    expect_sm90(BUG90_NOT_INITIALISED, "is not an initialised mbarrier");
}

Test(planted, register_budget)
{
    expect_sm90(BUG90_REGISTERS, "registers are free in the block");
}
