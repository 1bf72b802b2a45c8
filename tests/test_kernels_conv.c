/* The convolution kernels on the soft GPU: every case against ref by the rule of op_cases.h, on several claimed chips, in several orders
 * of threads and landings; the same bytes each time; bands of any height; what they cost by the soft GPU's counters. */
#include "support/accesses.h"
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/conv/conv_launch.h"
#include "../kernels/conv/conv_pick.h"
#include "../kernels/pointwise/pointwise.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

/* ---- the kernels as a device -------------------------------------------------------------------------------------------- */

static int vectors_as_they_are; /* not made F32 */
static size_t scratch_limit;    /* 0: what conv_scratch says */

static enum klein_status allocate(struct gpu *g, struct tensor *t, struct klein_error *e)
{
    return gpu_alloc(g, (size_t)t->rows * (size_t)t->ld * dtype_size(t->dtype), &t->ptr, e);
}

/* What a device does once, when the model is placed on it: packed weights, F32 bias. */
static enum klein_status place(struct gpu *g, struct conv_args *a, struct klein_error *e)
{
    const struct tensor w = a->w;
    a->w = conv_packed(w.rows, a->x.cols, a->ksize, a->x.dtype);
    TRY(allocate(g, &a->w, e));
    TRY(conv_pack(g, a->w, w, a->ksize, e));
    if (!a->bias.ptr || vectors_as_they_are) return KLEIN_OK;
    const struct tensor bias = a->bias;
    a->bias = tensor_of(NULL, DT_F32, 1, bias.cols);
    TRY(allocate(g, &a->bias, e));
    return pointwise_copy(g, &(struct copy_args){a->bias, bias}, e);
}

static enum klein_status run_conv(struct device *dev, const struct conv_args *args, struct klein_error *e)
{
    struct gpu *g = ((struct gpu_device *)dev)->gpu;
    struct conv_args a = *args;
    size_t bytes = conv_scratch(&a);
    void *scratch = NULL;
    if (scratch_limit && bytes > scratch_limit) bytes = scratch_limit;
    enum klein_status status = place(g, &a, e);
    if (status == KLEIN_OK && bytes)
        status = gpu_alloc(g, bytes, &scratch, e); /* exact: its end is guarded */
    if (status == KLEIN_OK) status = conv_launch(g, &a, scratch, bytes, e);
    if (status == KLEIN_OK) status = gpu_sync(g, e);
    gpu_free(g, scratch);
    gpu_free(g, a.w.ptr);
    if (a.bias.ptr != args->bias.ptr) gpu_free(g, a.bias.ptr);
    return status;
}

static const struct op_table ops = {.conv = run_conv};

static struct gpu_device *open_chip(const char *arch, uint64_t seed, enum softgpu_async async, int count)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.seed = seed;
    c.async = async;
    c.count_accesses = count;
    c.multiprocessors = 3; /* so that persistent blocks have several tiles */
    cr_assert(softgpu_configure(&c));
    return gpu_device_open(&ops);
}

static int is_test_case(const struct op_case *c)
{
    return c->op == OP_conv && !c->bench;
}

static uint64_t bytes_of(const struct op_case *c, enum dtype act, struct gpu_device *d)
{
    struct op_call call;
    op_call_make(&call, c, act, act, &d->base);
    OK(op_call_run(&call, &err));
    uint64_t hash = 0;
    for (int i = 0; i < (c->options & WITH_STATS ? 2 : 1); i++) {
        struct tensor y = op_call_output(&call, i);
        hash = hash * 31 + fnv1a(y.ptr, (size_t)y.rows * (size_t)y.cols * sizeof(float));
        free(y.ptr);
    }
    op_call_free(&call);
    return hash;
}

/* ---- every case --------------------------------------------------------------------------------------------------------- */

struct chip {
    const char *arch;
    uint64_t seed;
    enum softgpu_async async;
};

/* Every case in both types, against ref on the first of three chips, which all give the same bytes. */
static void check_cases(const struct chip *chips)
{
    static uint64_t first[2][1024];
    cr_assert(op_case_count <= 1024);
    for (int i = 0; i < 3; i++) {
        const struct chip *chip = &chips[i];
        struct gpu_device *d = open_chip(chip->arch, chip->seed, chip->async, 0);
        for (int j = 0; j < op_case_count; j++)
            for (int f32 = 0; f32 < 2; f32++) {
                const enum dtype act = f32 ? DT_F32 : DT_BF16;
                if (!is_test_case(&op_cases[j])) continue;
                if (i == 0) op_case_check(&op_cases[j], act, &d->base);
                const uint64_t hash = bytes_of(&op_cases[j], act, d);
                if (i == 0) first[f32][j] = hash;
                cr_assert(hash == first[f32][j], "%s on %s: %s, seed %d differs", op_cases[j].name,
                          dtype_name(act), chip->arch, (int)chip->seed);
            }
        device_close(&d->base);
    }
}

Test(kernels_conv, cases_mma)
{
    check_cases((const struct chip[3]){
        {"sm_80", 0, SOFTGPU_LATE}, {"sm_80", 7, SOFTGPU_RANDOM}, {"sm_89", 23, SOFTGPU_NOW}});
}

Test(kernels_conv, cases_wgmma)
{
    check_cases((const struct chip[3]){
        {"sm_90a", 5, SOFTGPU_LATE}, {"sm_90a", 11, SOFTGPU_RANDOM}, {"sm_90a", 2, SOFTGPU_NOW}});
}

Test(kernels_conv, cases_with_vectors_as_in_the_file)
{
    vectors_as_they_are = 1;
    struct gpu_device *d = open_chip("sm_90a", 2, SOFTGPU_NOW, 0);
    for (int i = 0; i < op_case_count; i++)
        if (is_test_case(&op_cases[i])) op_case_check(&op_cases[i], DT_BF16, &d->base);
    device_close(&d->base);
}

/* Each kernel with every case that it takes, whatever conv_pick would choose. */
static void check_forced(const char *kernel, const char *arch, uint64_t seed, enum softgpu_async async,
                         int expected)
{
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    setenv("KLEIN_CONV", kernel, 1);
    int taken = 0;
    for (int i = 0; i < op_case_count; i++) {
        struct op_call call;
        if (!is_test_case(&op_cases[i])) continue;
        op_call_make(&call, &op_cases[i], DT_BF16, DT_BF16, &d->base);
        const enum klein_status status = op_call_run(&call, &err);
        op_call_free(&call);
        if (status == KLEIN_E_UNSUPPORTED) continue;
        cr_assert(status == KLEIN_OK, "%s, %s: %s", kernel, op_cases[i].name, err.message);
        op_case_check(&op_cases[i], DT_BF16, &d->base);
        taken++;
    }
    cr_assert(taken == expected, "%s took %d cases", kernel, taken);
    device_close(&d->base);
}

enum { CASES = 32, ALIGNED = 27, ALIGNED_STRIDE_1 = 24 };

Test(kernels_conv, large_tiles)
{
    check_forced("conv_sm80_128x128_s2", "sm_80", 1, SOFTGPU_LATE, ALIGNED);
}

Test(kernels_conv, large_tiles_of_three_stages)
{
    check_forced("conv_sm80_128x128_s3", "sm_89", 77, SOFTGPU_RANDOM, ALIGNED);
}

Test(kernels_conv, half_tiles)
{
    check_forced("conv_sm80_128x64", "sm_80", 2, SOFTGPU_LATE, ALIGNED);
}

Test(kernels_conv, narrow_tiles)
{
    check_forced("conv_sm80_128x8", "sm_80", 4, SOFTGPU_LATE, CASES);
}

Test(kernels_conv, simple)
{
    check_forced("conv_simple", "sm_80", 6, SOFTGPU_RANDOM, CASES);
}

Test(kernels_conv, wgmma_256)
{
    check_forced("conv_sm90_128x256", "sm_90a", 1, SOFTGPU_LATE, ALIGNED_STRIDE_1);
}

Test(kernels_conv, wgmma_192)
{
    check_forced("conv_sm90_128x192", "sm_90a", 8, SOFTGPU_RANDOM, ALIGNED_STRIDE_1);
}

Test(kernels_conv, wgmma_128)
{
    check_forced("conv_sm90_128x128", "sm_90a", 3, SOFTGPU_LATE, ALIGNED_STRIDE_1);
}

/* ---- the autoencoder's widths, few pixels ----------------------------------------------------------------------------------- */

#define CONV(height, width, cin, cout, size)                                                                 \
    .op = OP_conv, .h = height, .w = width, .k = cin, .n = cout, .ksize = size
#define BLOCK .groups = 32, .options = WITH_BIAS | WITH_NORM | WITH_RESIDUAL | WITH_STATS

static const struct op_case wide[] = {
    {"512 to 512", CONV(4, 4, 512, 512, 3), BLOCK},
    {"512 in place", CONV(9, 17, 512, 512, 3), .groups = 32,
     .options = WITH_BIAS | WITH_NORM | WITH_RESIDUAL | IN_PLACE | WITH_STATS},
    {"256 to 256", CONV(11, 18, 256, 256, 3), BLOCK},
    {"128 to 128", CONV(16, 16, 128, 128, 3), BLOCK},
    {"256 enlarged", CONV(6, 7, 256, 256, 3), .groups = 32, .options = WITH_BIAS | UPSAMPLE | WITH_STATS},
    {"128 halved", CONV(16, 20, 128, 128, 3), .stride = 2, .options = WITH_BIAS},
    {"512 to 256, shortcut", CONV(7, 9, 512, 256, 1), .options = WITH_BIAS},
    {"latents to 512", CONV(8, 8, 32, 512, 3), .options = WITH_BIAS},
    {"rgb to 128", CONV(12, 19, 3, 128, 3), .options = WITH_BIAS},
    {"128 to rgb", CONV(12, 19, 128, 3, 3), .groups = 32, .options = WITH_BIAS | WITH_NORM},
    {"512 to 64", CONV(5, 6, 512, 64, 3), .groups = 32, .options = WITH_BIAS | WITH_NORM},
    {"21 in rows of 24", CONV(9, 18, 21, 40, 3), .gap = 3, .options = WITH_BIAS},
    {"64 enlarged, residual", CONV(9, 17, 64, 64, 3), .options = WITH_BIAS | UPSAMPLE | WITH_RESIDUAL},
    {"192 to 384", CONV(10, 9, 192, 384, 3), .groups = 32, .options = WITH_BIAS | WITH_NORM},
    {"96 to 96", CONV(10, 21, 96, 96, 3), BLOCK},
};
enum { WIDE = sizeof wide / sizeof *wide };

static void check_wide(const char *arch, uint64_t seed, enum softgpu_async async)
{
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    for (int i = 0; i < WIDE; i++) op_case_check(&wide[i], DT_BF16, &d->base);
    device_close(&d->base);
}

Test(kernels_conv, wide_sm80)
{
    check_wide("sm_80", 3, SOFTGPU_RANDOM);
}

Test(kernels_conv, wide_sm90a)
{
    check_wide("sm_90a", 12, SOFTGPU_LATE);
}

/* ---- the same bytes: in every order, on every chip that runs the kernel, in bands of any height ------------------------------- */

static const struct op_case *case_named(const char *name)
{
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == OP_conv && !strcmp(op_cases[i].name, name)) return &op_cases[i];
    cr_assert(0, "no case %s", name);
    return NULL;
}

Test(kernels_conv, same_bytes_in_every_order)
{
    static const struct {
        const char *kernel, *arch, *also, *name;
    } runs[] = {{"conv_sm80_128x128_s2", "sm_80", "sm_90a", "3x3 norm residual"},
                {"conv_sm80_128x128_s3", "sm_80", "sm_89", "3x3 upsample"},
                {"conv_sm80_128x64", "sm_80", "sm_89", "3x3 stride 2"},
                {"conv_sm80_128x8", "sm_80", "sm_90a", "3x3, more than a tile"},
                {"conv_simple", "sm_80", "sm_89", "3x3 odd channels, gap"},
                {"conv_sm90_128x256", "sm_90a", "sm_90a", "3x3 norm residual in place"},
                {"conv_sm90_128x192", "sm_90a", "sm_90a", "1x1 residual"},
                {"conv_sm90_128x128", "sm_90a", "sm_90a", "3x3 norm residual"}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        uint64_t first = 0;
        setenv("KLEIN_CONV", runs[i].kernel, 1);
        for (int seed = 0; seed < 6; seed++) {
            struct gpu_device *d = open_chip(seed % 2 ? runs[i].also : runs[i].arch, (uint64_t)seed,
                                             (enum softgpu_async)(seed % 3), 0);
            const uint64_t again = bytes_of(case_named(runs[i].name), DT_BF16, d);
            if (!seed) first = again;
            cr_assert(again == first, "%s, seed %d", runs[i].kernel, seed);
            device_close(&d->base);
        }
    }
}

/* Through 24 MiB of scratch in one band, then through as little as holds the input of one row, or of a few. */
static void check_bands(const struct op_case *c, const char *kernel, enum dtype act, const char *arch)
{
    struct gpu_device *d = open_chip(arch, 1, SOFTGPU_RANDOM, 0);
    setenv("KLEIN_CONV", kernel, 1);
    const size_t row = (size_t)c->w * CONV_PADDED((size_t)c->k) * dtype_size(act);
    const size_t least = (c->ksize == 1 ? 1 : 3) * row; /* enlarged: of two rows */
    scratch_limit = 0;
    softgpu_reset_counters();
    const uint64_t whole = bytes_of(c, act, d);
    struct softgpu_counters n;
    softgpu_read_counters(&n);
    const uint64_t kernels = n.kernels;
    static const int more[] = {0, 1, 3, 6};
    for (int i = 0; i < 4; i++) {
        scratch_limit = least + (size_t)more[i] * row;
        softgpu_reset_counters();
        const uint64_t banded = bytes_of(c, act, d);
        softgpu_read_counters(&n);
        cr_assert(banded == whole, "%s, %s: scratch for %d rows more differs", kernel, c->name, more[i]);
        const int bands = c->stride == 2 ? c->h / 2 : c->h; /* enlarged: of two rows */
        if (i == 0)
            cr_assert(n.kernels == kernels + 2 * (uint64_t)(bands - 1), "%s: %d kernels", c->name,
                      (int)n.kernels);
        cr_assert(n.kernels > kernels, "%s: one band", c->name);
    }
    device_close(&d->base);
}

Test(kernels_conv, bands_change_nothing)
{
    static const struct op_case cases[] = {
        {"norm residual in place", CONV(19, 21, 64, 64, 3), .groups = 32,
         .options = WITH_BIAS | WITH_NORM | WITH_RESIDUAL | IN_PLACE},
        {"norm, 1x1", CONV(19, 9, 32, 40, 1), .groups = 4, .options = WITH_NORM},
        {"norm, halved", CONV(22, 18, 32, 32, 3), .stride = 2, .groups = 8, .options = WITH_BIAS | WITH_NORM},
        {"norm, enlarged", CONV(19, 9, 32, 32, 3), .groups = 8, .options = WITH_BIAS | WITH_NORM | UPSAMPLE},
        {"unaligned, enlarged", CONV(19, 9, 21, 24, 3), .gap = 4, .options = WITH_BIAS | UPSAMPLE},
    };
    for (int i = 0; i < 5; i++) {
        if (i < 4) check_bands(&cases[i], "conv_sm80_128x64", DT_BF16, "sm_80");
        check_bands(&cases[i], "conv_sm80_128x8", DT_BF16, "sm_89");
        if (i < 4 && i != 2) check_bands(&cases[i], "conv_sm90_128x128", DT_BF16, "sm_90a");
        if (i < 4) check_bands(&cases[i], "conv_simple", DT_F32, "sm_80");
    }
    scratch_limit = 0;
    setenv("KLEIN_CONV", "", 1);
    struct gpu_device *d = open_chip("sm_80", 1, SOFTGPU_LATE, 0);
    for (int i = 0; i < 5; i++) { /* and one row after the other is right */
        scratch_limit = 3 * (size_t)cases[i].w * CONV_PADDED((size_t)cases[i].k) * sizeof(bf16);
        op_case_check(&cases[i], DT_BF16, &d->base);
    }
    device_close(&d->base);
}

/* ---- counters: what a run costs ------------------------------------------------------------------------------------------- */

static struct tensor on_gpu(struct gpu_device *d, struct tensor t)
{
    OK(allocate(d->gpu, &t, &err));
    OK(gpu_fill(d->gpu, t.ptr, 0x3c, (size_t)t.rows * (size_t)t.ld * dtype_size(t.dtype), &err));
    return t;
}

/* Whole tiles: no bank conflicts, whole sectors, every multiplication needed, and each operand as often as it must be. accesses: by width; the
 * bias is fetched by 8 bytes, and 8 couts leave one by one. */
static void check_counts(const char *kernel, const char *arch, int side, int cin, int cout, int ksize,
                         uint64_t cp_async, uint64_t tma, const char *accesses)
{
    struct gpu_device *d = open_chip(arch, 0, SOFTGPU_LATE, 1);
    setenv("KLEIN_CONV", kernel, 1);
    const int pixels = side * side;
    struct conv_args a = {.x = on_gpu(d, tensor_of(NULL, DT_BF16, pixels, cin)),
                          .w = on_gpu(d, conv_packed(cout, cin, ksize, DT_BF16)),
                          .bias = on_gpu(d, tensor_of(NULL, DT_F32, 1, cout)),
                          .y = on_gpu(d, tensor_of(NULL, DT_BF16, pixels, cout)),
                          .h = side,
                          .w_px = side,
                          .ksize = ksize,
                          .stride = 1};
    a.residual = a.y;
    cr_assert(conv_scratch(&a) == 0);
    OK(gpu_sync(d->gpu, &err));
    softgpu_reset_counters();
    OK(conv_launch(d->gpu, &a, NULL, 0, &err));
    OK(gpu_sync(d->gpu, &err));
    struct softgpu_counters n;
    softgpu_read_counters(&n);
    cr_expect(n.bank_conflicts == 0, "%s: %llu bank conflicts", kernel, (unsigned long long)n.bank_conflicts);
    if (cout >= 64) /* else the results leave one by one */
        cr_expect(n.global_sectors <= n.global_sectors_ideal, "%s: %llu sectors, %llu would do", kernel,
                  (unsigned long long)n.global_sectors, (unsigned long long)n.global_sectors_ideal);
    cr_expect(n.tensor_flops == 2ull * (uint64_t)(pixels * cin * ksize * ksize) * (uint64_t)cout,
              "%s: %llu flops", kernel, (unsigned long long)n.tensor_flops);
    cr_expect(n.cp_async_bytes == cp_async, "%s: cp.async %llu", kernel,
              (unsigned long long)n.cp_async_bytes);
    cr_expect(n.tma_bytes == tma, "%s: tma %llu", kernel, (unsigned long long)n.tma_bytes);
    expect_accesses(&n, kernel, accesses);
    void *const all[] = {a.x.ptr, a.w.ptr, a.bias.ptr, a.y.ptr};
    for (int i = 0; i < 4; i++) gpu_free(d->gpu, all[i]);
    device_close(&d->base);
}

Test(kernels_conv, no_bank_conflicts_no_wasted_sectors)
{
    enum { PIXELS = 256, K = 9 * 128 };
    /* x once per tile of couts, w once per tile of 128 pixels, the residual once */
    check_counts("conv_sm80_128x128_s2", "sm_80", 16, 128, 128, 3,
                 2 * (PIXELS * K + 2 * 128 * K + PIXELS * 128), 0, "8: 64, 16: 2608");
    check_counts("conv_sm80_128x128_s3", "sm_80", 16, 128, 256, 1,
                 2 * (2 * PIXELS * 128 + 2 * 256 * 128 + PIXELS * 256), 0, "8: 128, 16: 1024");
    check_counts("conv_sm80_128x64", "sm_80", 16, 128, 128, 3,
                 2 * (2 * PIXELS * K + 2 * 128 * K + PIXELS * 128), 0, "8: 128, 16: 3712");
    check_counts("conv_sm80_128x8", "sm_80", 16, 128, 8, 3, 2 * (PIXELS * K + 2 * 8 * K), 0,
                 "2: 128, 4: 64, 16: 1188");
    check_counts("conv_sm90_128x128", "sm_90a", 16, 128, 128, 3, 0,
                 2 * (PIXELS * K + 2 * 128 * K + 2 * PIXELS * 128), "8: 256");
    check_counts("conv_sm90_128x192", "sm_90a", 16, 128, 192, 1, 0,
                 2 * (PIXELS * 128 + 2 * 192 * 128 + 2 * PIXELS * 192), "8: 384");
    check_counts("conv_sm90_128x256", "sm_90a", 16, 128, 256, 3, 0,
                 2 * (PIXELS * K + 2 * 256 * K + 2 * PIXELS * 256), "8: 512");
}

/* Statistics of y come from the tiles: beside them only the blocks that add up, one per group, and no bank conflicts. */
static void check_stats_counts(const char *kernel, const char *arch, int cout, uint64_t blocks)
{
    enum { SIDE = 16, CIN = 64, SUMS = 32 };
    struct gpu_device *d = open_chip(arch, 0, SOFTGPU_LATE, 1);
    setenv("KLEIN_CONV", kernel, 1);
    struct conv_args a = {.x = on_gpu(d, tensor_of(NULL, DT_BF16, SIDE * SIDE, CIN)),
                          .w = on_gpu(d, conv_packed(cout, CIN, 3, DT_BF16)),
                          .y = on_gpu(d, tensor_of(NULL, DT_BF16, SIDE * SIDE, cout)),
                          .stats = on_gpu(d, tensor_of(NULL, DT_F32, SUMS, 2)),
                          .h = SIDE,
                          .w_px = SIDE,
                          .ksize = 3,
                          .stride = 1};
    struct tensor scratch = on_gpu(d, tensor_of(NULL, DT_U8, 1, (int)conv_scratch(&a)));
    OK(gpu_sync(d->gpu, &err));
    softgpu_reset_counters();
    OK(conv_launch(d->gpu, &a, scratch.ptr, (size_t)scratch.cols, &err));
    OK(gpu_sync(d->gpu, &err));
    struct softgpu_counters n;
    softgpu_read_counters(&n);
    cr_expect(n.bank_conflicts == 0, "%s: %llu bank conflicts", kernel, (unsigned long long)n.bank_conflicts);
    cr_expect(n.blocks == blocks + SUMS, "%s: %llu blocks", kernel, (unsigned long long)n.blocks);
    void *const all[] = {a.x.ptr, a.w.ptr, a.stats.ptr, a.y.ptr, scratch.ptr};
    for (int i = 0; i < 5; i++) gpu_free(d->gpu, all[i]);
    device_close(&d->base);
}

Test(kernels_conv, statistics_from_the_tiles)
{
    check_stats_counts("conv_sm80_128x128_s2", "sm_80", 128, 2);
    check_stats_counts("conv_sm80_128x64", "sm_80", 128, 4);
    check_stats_counts("conv_sm90_128x128", "sm_90a", 256, 3); /* persistent, 3 multiprocessors */
    check_stats_counts("conv_sm90_128x256", "sm_90a", 512, 3);
}

/* ---- choice and refusals ---------------------------------------------------------------------------------------------------- */

Test(kernels_conv, pick)
{
    static const struct {
        struct conv_shape shape;
        const char *kernel;
    } picks[] = {
        /* the decoder at 1024 x 1024 */
        {{90, 132, DT_BF16, 512, 512, 3, 1, 0, 128, 128, 1, 1}, "conv_sm90_128x256"},
        {{90, 132, DT_BF16, 256, 256, 3, 1, 0, 1024, 1024, 1, 1}, "conv_sm90_128x256"},
        {{90, 132, DT_BF16, 128, 128, 3, 1, 0, 1024, 1024, 1, 1}, "conv_sm90_128x128"},
        {{90, 132, DT_BF16, 512, 512, 3, 1, 1, 256, 256, 1, 1}, "conv_sm90_128x256"}, /* enlarged */
        {{90, 132, DT_BF16, 128, 3, 3, 1, 0, 1024, 1024, 1, 0}, "conv_sm80_128x8"},
        {{90, 132, DT_BF16, 512, 512, 3, 1, 0, 64, 64, 1, 1}, "conv_sm90_128x128"}, /* 64 tiles are too few */
        {{90, 132, DT_BF16, 192, 192, 3, 1, 0, 1024, 1024, 1, 1}, "conv_sm90_128x192"},
        {{90, 132, DT_BF16, 128, 128, 3, 2, 0, 512, 512, 1, 1}, "conv_sm80_128x128_s2"},
        {{90, 132, DT_BF16, 3, 128, 3, 1, 0, 1024, 1024, 1, 1}, "conv_sm80_128x128_s2"}, /* k of 72 */
        {{80, 108, DT_BF16, 512, 512, 3, 1, 0, 128, 128, 1, 1}, "conv_sm80_128x128_s2"},
        {{80, 108, DT_BF16, 512, 64, 3, 1, 0, 128, 128, 1, 1}, "conv_sm80_128x64"},
        {{80, 108, DT_BF16, 128, 3, 3, 1, 0, 1024, 1024, 1, 0}, "conv_sm80_128x8"},
        {{89, 128, DT_BF16, 256, 256, 3, 1, 0, 512, 512, 1, 1}, "conv_sm80_128x128_s3"},
        {{120, 170, DT_BF16, 256, 256, 3, 1, 0, 512, 512, 1, 1}, "conv_sm80_128x128_s3"},
        {{100, 148, DT_BF16, 256, 256, 3, 1, 0, 512, 512, 1, 1}, "conv_sm80_128x128_s2"},
        {{90, 132, DT_BF16, 256, 256, 3, 1, 0, 512, 512, 0, 1}, "conv_simple"}, /* bias as in the file */
        {{90, 132, DT_F32, 256, 256, 3, 1, 0, 512, 512, 1, 1}, "conv_simple"},
    };
    const struct conv_variant *v;
    for (size_t i = 0; i < sizeof picks / sizeof *picks; i++) {
        OK(conv_pick(&picks[i].shape, NULL, &v, &err));
        cr_expect(!strcmp(v->name, picks[i].kernel), "row %zu: %s", i, v->name);
    }
    cr_assert(conv_variant(-1) == NULL && conv_variant(8) == NULL);
    FAILS(conv_pick(&picks[0].shape, "conv_sm81", &v, &err), KLEIN_E_INPUT, "conv_sm80_128x64");
    FAILS(conv_pick(&picks[7].shape, "conv_sm90_128x256", &v, &err), KLEIN_E_UNSUPPORTED, "stride 2");
    FAILS(conv_pick(&picks[4].shape, "conv_sm80_128x64", &v, &err), KLEIN_E_UNSUPPORTED, "not 16-byte");
    const char *two = "conv_sm80_128x64,conv_sm80_128x8";
    OK(conv_pick(&picks[0].shape, two, &v, &err));
    cr_assert(!strcmp(v->name, "conv_sm80_128x64"));
    OK(conv_pick(&picks[4].shape, two, &v, &err));
    cr_assert(!strcmp(v->name, "conv_sm80_128x8"));
    FAILS(conv_pick(&picks[0].shape, "conv_sm80_128x64,", &v, &err), KLEIN_E_INPUT, "no such kernel");
}

Test(kernels_conv, bands_fill_the_chip)
{
    const struct conv_shape s = {90, 132, DT_BF16, 256, 256, 3, 1, 0, 1024, 1024, 1, 1};
    const struct conv_variant *v;
    OK(conv_pick(&s, NULL, &v, &err));
    cr_assert(conv_tiles(v, &s, 1024) == 8192 && conv_tiles(v, &s, 33) == 320);
    cr_assert(conv_band_rows(v, &s, 46) ==
              32); /* 256 tiles: two rounds of 132, where 40 rows would take three */
    cr_assert(conv_band_rows(v, &s, 1) == 1 && conv_band_rows(v, &s, 5000) == 1024);
}

Test(kernels_conv, scratch_is_bounded)
{
    static float stats[64];
    struct conv_args a = {
        .x = tensor_of(stats, DT_BF16, 1024 * 1024, 256), .h = 1024, .w_px = 1024, .ksize = 3, .stride = 1};
    cr_assert(conv_scratch(&a) == 0);
    a.norm.stats = tensor_of(stats, DT_F32, 32, 2);
    cr_assert(conv_scratch(&a) == 24 << 20);
    a.x = tensor_of(stats, DT_BF16, 64 * 64, 256), a.h = a.w_px = 64;
    cr_assert(conv_scratch(&a) == 64 * 64 * 256 * 2);
    a.x = tensor_of(stats, DT_BF16, 8 * 65536, 512), a.h = 8, a.w_px = 65536;
    cr_assert(conv_scratch(&a) == 40 << 20); /* too little for that one, which conv_launch says */
    a.norm.stats.ptr = NULL;
    a.x = tensor_of(stats, DT_BF16, 64 * 64, 3), a.h = a.w_px = 64;
    cr_assert(conv_scratch(&a) == 64 * 64 * 8 * 2);
}

/* 26 MiB in two bands, though there is memory for one. */
Test(kernels_conv, bands_stay_in_the_l2)
{
    enum { H = 26, W = 2048 };
    struct gpu_device *d = open_chip("sm_80", 0, SOFTGPU_NOW, 0);
    struct tensor scratch = on_gpu(d, tensor_of(NULL, DT_F32, 1, 16 << 20));
    struct conv_args a = {.x = on_gpu(d, tensor_of(NULL, DT_BF16, H * W, 256)),
                          .w = on_gpu(d, conv_packed(8, 256, 1, DT_BF16)),
                          .y = on_gpu(d, tensor_of(NULL, DT_BF16, H * W, 8)),
                          .h = H,
                          .w_px = W,
                          .ksize = 1,
                          .stride = 1,
                          .norm = {.stats = on_gpu(d, tensor_of(NULL, DT_F32, 32, 2)),
                                   .gamma = on_gpu(d, tensor_of(NULL, DT_F32, 1, 256)),
                                   .beta = on_gpu(d, tensor_of(NULL, DT_F32, 1, 256))}};
    OK(gpu_sync(d->gpu, &err));
    softgpu_reset_counters();
    OK(conv_launch(d->gpu, &a, scratch.ptr, 64 << 20, &err));
    OK(gpu_sync(d->gpu, &err));
    struct softgpu_counters n;
    softgpu_read_counters(&n);
    cr_assert(n.kernels == 4, "%d kernels", (int)n.kernels);
    void *const all[] = {scratch.ptr,      a.x.ptr,          a.w.ptr,        a.y.ptr,
                         a.norm.stats.ptr, a.norm.gamma.ptr, a.norm.beta.ptr};
    for (int i = 0; i < 7; i++) gpu_free(d->gpu, all[i]);
    device_close(&d->base);
}

Test(kernels_conv, refusals)
{
    struct gpu_device *d = open_chip("sm_80", 0, SOFTGPU_LATE, 0);
    struct tensor w = conv_packed(16, 16, 3, DT_BF16);
    const struct conv_args good = {.x = on_gpu(d, tensor_of(NULL, DT_BF16, 16, 16)),
                                   .w = on_gpu(d, w),
                                   .y = on_gpu(d, tensor_of(NULL, DT_BF16, 16, 16)),
                                   .h = 4,
                                   .w_px = 4,
                                   .ksize = 3,
                                   .stride = 1};
    OK(conv_launch(d->gpu, &good, NULL, 0, &err));
    struct conv_args bad = good;
    bad.x.ptr = NULL;
    FAILS(conv_launch(d->gpu, &bad, NULL, 0, &err), KLEIN_E_INTERNAL, "operand x");
    bad = good;
    bad.x.ld = (int64_t)1 << 31;
    FAILS(conv_launch(d->gpu, &bad, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "rows of x");
    bad = good;
    bad.w.dtype = DT_F32;
    FAILS(conv_launch(d->gpu, &bad, NULL, 0, &err), KLEIN_E_INTERNAL, "not packed");
    bad = good;
    bad.w.ld = 150;
    FAILS(conv_launch(d->gpu, &bad, NULL, 0, &err), KLEIN_E_INTERNAL, "not packed");
    bad = good;
    bad.norm.stats = bad.norm.gamma = bad.norm.beta = good.x;
    FAILS(conv_launch(d->gpu, &bad, NULL, 0, &err), KLEIN_E_INTERNAL, "scratch");
    FAILS(conv_launch(d->gpu, &bad, good.w.ptr, 3 * 4 * 16 * 2 - 1, &err), KLEIN_E_UNSUPPORTED,
          "3 rows of 4 pixels");
    FAILS(conv_pack(d->gpu, good.w, tensor_of(good.x.ptr, DT_U8, 16, 144), 3, &err), KLEIN_E_INTERNAL,
          "pack");
    FAILS(conv_pack(d->gpu, w, tensor_of(good.x.ptr, DT_BF16, 16, 144), 3, &err), KLEIN_E_INTERNAL, "pack");
    setenv("KLEIN_CONV", "conv9", 1);
    FAILS(conv_launch(d->gpu, &good, NULL, 0, &err), KLEIN_E_INPUT, "conv9");
    gpu_free(d->gpu, good.x.ptr), gpu_free(d->gpu, good.w.ptr), gpu_free(d->gpu, good.y.ptr);
    device_close(&d->base);
}
