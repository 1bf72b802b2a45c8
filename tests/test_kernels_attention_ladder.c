/* bench/ladder/attention: every step computes the same attention, and what its first comment says of its cost is so. */
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/attention/attention_launch.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

static const struct kernel_module modules[] = {
    {"ladder_attention", "sm_80", "klein soft image: sm_80 compute_80"},
    {0},
};

/* The counters of the case below, 128 queries, 192 keys, 2 heads of 128: 4 blocks of 4 warps, 3 tiles of keys. */
enum { QUERIES = 128, KEYS = 192, HEADS = 2, WIDTH = 128, WARPS = 16, TILES = 3 };
/* ldmatrix reads 8 rows per phase, 4 phases each: q once, then 32 for K and 32 for V per tile; and 32 stores of o. */
enum { PHASES = WARPS * (8 * 4 + TILES * (32 + 32) * 4), STORES = WARPS * 32 };
#define FLOPS  (4ull * QUERIES * KEYS * HEADS * WIDTH)
#define COPIED (2ull * 4 * WIDTH * (64 + 2 * KEYS))

static const struct step {
    const char *kernel;
    unsigned shared, threads;
    uint64_t tensor_flops, bank_conflicts, cp_async_bytes;
} steps[] = {
    {"ladder_attention_naive", 0, 64, 0, 0, 0},
    {"ladder_attention_one_pass", 0, 64, 0, 0, 0},
    {"ladder_attention_tensor_cores", 49152, 128, FLOPS, 7ull * (PHASES + STORES), 0},
    {"ladder_attention_swizzle", 49152, 128, FLOPS, 0, 0},
    {"ladder_attention_async", 49152, 128, FLOPS, 0, COPIED},
};
static const struct step *step;

static enum klein_status run_step(struct device *dev, const struct attention_args *a, struct klein_error *e)
{
    const struct flash_args args = {
        .o = a->o.ptr,
        .q = a->q.ptr,
        .k = a->k.ptr,
        .v = a->v.ptr,
        .ldo = (int)a->o.ld,
        .ldq = (int)a->q.ld,
        .ldk = (int)a->k.ld,
        .ldv = (int)a->v.ld,
        .queries = a->q.rows,
        .keys = a->k.rows,
        .head_dim = WIDTH,
        .group = 1,
        .scale_log2 = (float)(a->scale * M_LOG2E),
    };
    return gpu_launch(((struct gpu_device *)dev)->gpu,
                      &(struct launch){.kernel = step->kernel,
                                       .grid = {(unsigned)a->q.rows / 64, (unsigned)a->heads},
                                       .threads = step->threads,
                                       .shared = step->shared,
                                       .args = &args},
                      e);
}

static const struct op_table ops = {.attention = run_step};

static void check_step(const struct op_case *c)
{
    struct softgpu_config config;
    struct softgpu_counters n;
    cr_assert(softgpu_config_from_env(&config));
    snprintf(config.arch, sizeof config.arch, "sm_80");
    config.count_accesses = 1;
    cr_assert(softgpu_configure(&config));
    struct gpu_device *d = gpu_device_open(&ops);
    OK(gpu_add_modules(d->gpu, modules, &err));
    softgpu_reset_counters();
    op_case_check(c, DT_BF16, &d->base);
    softgpu_read_counters(&n);
    cr_assert(n.kernels == 1 && n.blocks == 4, "%s", step->kernel);
    cr_assert(n.tensor_flops == step->tensor_flops, "%s: %llu FLOP", step->kernel,
              (unsigned long long)n.tensor_flops);
    cr_assert(n.bank_conflicts == step->bank_conflicts, "%s: %llu bank conflicts", step->kernel,
              (unsigned long long)n.bank_conflicts);
    cr_assert(n.cp_async_bytes == step->cp_async_bytes, "%s: %llu bytes", step->kernel,
              (unsigned long long)n.cp_async_bytes);
    if (step->shared) cr_assert(n.global_sectors == n.global_sectors_ideal, "%s", step->kernel);
    device_close(&d->base);
}

Test(kernels_attention_ladder, every_step)
{
    int checked = 0;
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == OP_attention && !strcmp(op_cases[i].name, "whole tiles"))
            for (step = steps; step < steps + sizeof steps / sizeof *steps; step++, checked++)
                check_step(&op_cases[i]);
    cr_assert(checked == 5);
}
