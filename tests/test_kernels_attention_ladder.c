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
    {"ladder_attention_sm90", "sm_90a", "klein soft image: sm_90a"},
    {0},
};

/* The counters of the case below, 128 queries, 192 keys, 2 heads of 128: 4 blocks of 4 warps (roles: 2 of 12), 3 tiles of keys. */
enum { QUERIES = 128, KEYS = 192, HEADS = 2, WIDTH = 128, WARPS = 16, TILES = 3 };
/* ldmatrix reads 8 rows per phase, 4 phases each: q once, then 32 for K and 32 for V per tile; and 32 stores of o. */
enum { PHASES = WARPS * (8 * 4 + TILES * (32 + 32) * 4), STORES = WARPS * 32 };
#define FLOPS  (4ull * QUERIES * KEYS * HEADS * WIDTH)
#define COPIED (2ull * 4 * WIDTH * (64 + 2 * KEYS))
/* The copy engine also stores o. */
#define MOVED(blocks, rows) (2ull * (blocks)*WIDTH * (2 * (rows) + 2 * KEYS))

static const struct step {
    const char *kernel;
    const char *arch;
    unsigned rows, shared, threads; /* rows: of a block */
    uint64_t tensor_flops, bank_conflicts, cp_async_bytes, tma_bytes;
} steps[] = {
    {"ladder_attention_naive", "sm_80", 64, 0, 64, 0, 0, 0, 0},
    {"ladder_attention_one_pass", "sm_80", 64, 0, 64, 0, 0, 0, 0},
    {"ladder_attention_tensor_cores", "sm_80", 64, 49152, 128, FLOPS, 7ull * (PHASES + STORES), 0, 0},
    {"ladder_attention_swizzle", "sm_80", 64, 49152, 128, FLOPS, 0, 0, 0},
    {"ladder_attention_async", "sm_80", 64, 49152, 128, FLOPS, 0, COPIED, 0},
    {"ladder_attention_sm90_wgmma", "sm_90a", 64, 50176, 128, FLOPS, 0, 0, MOVED(4, 64)},
    {"ladder_attention_sm90_roles", "sm_90a", 128, 99328, 384, FLOPS, 0, 0, MOVED(2, 128)},
};
static const struct step *step;

static enum klein_status launch(struct gpu *g, const struct attention_args *a, const void *args,
                                struct klein_error *e)
{
    return gpu_launch(g,
                      &(struct launch){.kernel = step->kernel,
                                       .grid = {(unsigned)a->q.rows / step->rows, (unsigned)a->heads},
                                       .threads = step->threads,
                                       .shared = step->shared,
                                       .args = args},
                      e);
}

/* The steps for sm_90a take boxes of 64 rows of everything. */
static enum klein_status run_sm90(struct gpu *g, const struct attention_args *a, struct klein_error *e)
{
    struct attention_sm90_args args = {
        .keys = a->k.rows, .group = 1, .scale_log2 = (float)(a->scale * M_LOG2E)};
    const struct tensor operands[] = {a->q, a->k, a->v, a->o};
    struct tensor_map *const maps[] = {&args.q, &args.k, &args.v, &args.o};
    for (int i = 0; i < 4; i++) {
        const struct tensor t = operands[i];
        const struct tensor_box box = {.ptr = t.ptr,
                                       .dtype = DT_BF16,
                                       .rank = 2,
                                       .dims = {(uint64_t)t.cols, (uint64_t)t.rows},
                                       .strides = {(uint64_t)t.ld * sizeof(bf16)},
                                       .box = {64, 64},
                                       .swizzle = 128};
        TRY(gpu_tensor_map(g, &box, maps[i], e));
    }
    return launch(g, a, &args, e);
}

static enum klein_status run_step(struct device *dev, const struct attention_args *a, struct klein_error *e)
{
    struct gpu *g = ((struct gpu_device *)dev)->gpu;
    if (strstr(step->kernel, "sm90")) return run_sm90(g, a, e);
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
    return launch(g, a, &args, e);
}

static const struct op_table ops = {.attention = run_step};

static void check_step(const struct op_case *c)
{
    struct softgpu_config config;
    struct softgpu_counters n;
    cr_assert(softgpu_config_from_env(&config));
    snprintf(config.arch, sizeof config.arch, "%s", step->arch);
    config.count_accesses = 1;
    cr_assert(softgpu_configure(&config));
    struct gpu_device *d = gpu_device_open(&ops);
    OK(gpu_add_modules(d->gpu, modules, &err));
    softgpu_reset_counters();
    op_case_check(c, DT_BF16, &d->base);
    softgpu_read_counters(&n);
    cr_assert(n.kernels == 1 && n.blocks == HEADS * QUERIES / step->rows, "%s", step->kernel);
    cr_assert(n.tensor_flops == step->tensor_flops, "%s: %llu FLOP", step->kernel,
              (unsigned long long)n.tensor_flops);
    cr_assert(n.bank_conflicts == step->bank_conflicts, "%s: %llu bank conflicts", step->kernel,
              (unsigned long long)n.bank_conflicts);
    cr_assert(n.cp_async_bytes == step->cp_async_bytes, "%s: %llu bytes", step->kernel,
              (unsigned long long)n.cp_async_bytes);
    cr_assert(n.tma_bytes == step->tma_bytes, "%s: %llu bytes", step->kernel,
              (unsigned long long)n.tma_bytes);
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
    cr_assert(checked == 7);
}
