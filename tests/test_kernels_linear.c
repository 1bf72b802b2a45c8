/* Op linear on the soft GPU: every case against ref by the rule of op_cases.h, on several claimed chips, in several orders of threads
 * and landings; the same bytes each time; what the kernels cost by the soft GPU's counters; refusals. */
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/gemm/gemm_pick.h"
#include "../kernels/gemm/linear_launch.h"
#include "../kernels/gemm/quantise.h"
#include "../kernels/names.h"
#include "../kernels/pointwise/pointwise.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

/* How the op is run. */
static int place_vectors; /* vectors become F32 first, as a device does when it opens a model */
static int cut_weights;   /* a weight of one part becomes q, k, v, the rest; or two halves */
static size_t scratch_limit;
static struct softgpu_counters cost; /* of the last run */
static int x_was_e4m3;               /* in it */
static char kernels_run[4096];       /* names of the matrix kernels so far, each once, with commas */

static void note_kernel(void *user, enum op_id op, const char *key, const void *shape, const char *kernel)
{
    const size_t n = strlen(kernels_run);
    if (!names_have(kernels_run, kernel))
        snprintf(kernels_run + n, sizeof kernels_run - n, "%s%s", n ? "," : "", kernel);
}

enum { TEMPORARIES = 32 };
struct temporaries {
    struct gpu *gpu;
    void *memory[TEMPORARIES];
    int count;
};

static void *temporary(struct temporaries *t, size_t bytes)
{
    cr_assert(t->count < TEMPORARIES);
    OK(gpu_alloc(t->gpu, bytes ? bytes : 1, &t->memory[t->count], &err));
    return t->memory[t->count++];
}

static void release(struct temporaries *t)
{
    while (t->count) gpu_free(t->gpu, t->memory[--t->count]);
}

static struct tensor placed(struct temporaries *t, struct tensor v)
{
    if (!v.ptr || v.dtype == DT_F32) return v;
    struct tensor f = tensor_of(temporary(t, (size_t)v.cols * sizeof(float)), DT_F32, 1, v.cols);
    OK(pointwise_copy(t->gpu, &(struct copy_args){.y = f, .x = v}, &err));
    return f;
}

static void cut_weight(const struct linear_args *a, struct weight *w)
{
    if (w->parts != 1) return;
    const struct tensor all = w->part[0];
    const int piece = a->y.ldscale && a->epilogue != LINEAR_SWIGLU ? TENSOR_GROUP : 8; /* is not cut */
    const int q = a->qkv.q.cols, kv = a->qkv.k.cols, half = all.rows / (2 * piece) * piece;
    const int qkv[] = {0, q, q + kv, q + 2 * kv, all.rows}, halves[] = {0, half, all.rows};
    if (a->epilogue != LINEAR_QKV && !half) return;
    const int *edges = a->epilogue == LINEAR_QKV ? qkv : halves;
    w->parts = a->epilogue == LINEAR_QKV ? 3 + (a->qkv.mlp.ptr != NULL) : 2;
    for (int i = 0; i < w->parts; i++) w->part[i] = tensor_rows(all, edges[i], edges[i + 1] - edges[i]);
}

static enum klein_status run_linear(struct device *dev, const struct linear_args *args, struct klein_error *e)
{
    struct linear_args a = *args;
    struct temporaries t = {.gpu = ((struct gpu_device *)dev)->gpu};
    size_t bytes = linear_scratch(&a);
    if (scratch_limit && bytes > scratch_limit) bytes = scratch_limit;
    for (int g = 0; g < 2; g++) {
        struct tensor *const vectors[] = {&a.group[g].bias, &a.group[g].q_norm, &a.group[g].k_norm};
        for (int i = 0; place_vectors && i < 3; i++) *vectors[i] = placed(&t, *vectors[i]);
        if (cut_weights) cut_weight(&a, &a.group[g].w);
    }
    void *scratch = temporary(&t, bytes);
    OK(gpu_sync(t.gpu, &err));
    softgpu_reset_counters();
    x_was_e4m3 = a.x.dtype == DT_F8E4M3;
    t.gpu->picked = note_kernel;
    enum klein_status status = linear_launch(t.gpu, &a, scratch, bytes, e);
    if (status == KLEIN_OK) status = gpu_sync(t.gpu, e);
    softgpu_read_counters(&cost);
    release(&t);
    return status;
}

static const struct op_table ops = {.linear = run_linear};

static struct gpu_device *open_chip(const char *arch, uint64_t seed, enum softgpu_async async, int count)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.seed = seed;
    c.async = async;
    c.count_accesses = count;
    cr_assert(softgpu_configure(&c));
    return gpu_device_open(&ops);
}

static int is_test_case(const struct op_case *c)
{
    return c->op == OP_linear && !c->bench;
}

static const struct op_case *case_named(const char *name)
{
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == OP_linear && !strcmp(op_cases[i].name, name)) return &op_cases[i];
    cr_assert(0, "no case %s", name);
    return NULL;
}

/* ---- every case ------------------------------------------------------------------------------------------------------- */

/* Whether x of case c should be in e4m3 on that chip. */
static int wants_e4m3(const struct op_case *c, enum dtype act, const char *arch)
{
    return act == DT_BF16 && c->options & X_E4M3 && strcmp(arch, "sm_80") && strcmp(arch, "sm_86");
}

static void check_case(const struct op_case *c, enum dtype act, const char *arch, struct gpu_device *d)
{
    op_case_check(c, act, &d->base);
    cr_assert(x_was_e4m3 == wants_e4m3(c, act, arch), "%s on %s: x was%s in F8_E4M3", c->name, arch,
              x_was_e4m3 ? "" : " not");
}

/* Every case; returns how many of them the matrix kernels computed. */
static int check_cases(const char *arch, enum dtype act, uint64_t seed, enum softgpu_async async)
{
    int matrix = 0;
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    for (int i = 0; i < op_case_count; i++) {
        if (!is_test_case(&op_cases[i])) continue;
        check_case(&op_cases[i], act, arch, d);
        matrix += cost.tensor_flops > 0;
    }
    device_close(&d->base);
    return matrix;
}

/* Most of the aligned cases and some of the others; of them in e4m3 with scales per row. */
enum { MATRIX_CASES = 20, E4M3_CASES = 4 };

Test(kernels_linear, cases_sm80)
{
    place_vectors = 1;
    const int matrix = check_cases("sm_80", DT_BF16, 0, SOFTGPU_LATE);
    cr_assert(matrix >= MATRIX_CASES, "%d", matrix);
}

Test(kernels_linear, cases_sm89)
{
    place_vectors = 1;
    const int matrix = check_cases("sm_89", DT_BF16, 11, SOFTGPU_RANDOM);
    cr_assert(matrix >= MATRIX_CASES, "%d", matrix);
}

Test(kernels_linear, cases_sm120)
{
    place_vectors = cut_weights = 1;
    const int matrix = check_cases("sm_120a", DT_BF16, 5, SOFTGPU_NOW);
    cr_assert(matrix >= MATRIX_CASES - 2, "%d", matrix);
}

Test(kernels_linear, cases_sm90a)
{
    place_vectors = 1;
    const int matrix = check_cases("sm_90a", DT_BF16, 13, SOFTGPU_RANDOM);
    cr_assert(matrix >= MATRIX_CASES, "%d", matrix);
}

Test(kernels_linear, cases_with_vectors_of_any_type)
{
    check_cases("sm_80", DT_BF16, 7, SOFTGPU_RANDOM);
}

Test(kernels_linear, cases_f32)
{
    cr_assert(check_cases("sm_80", DT_F32, 3, SOFTGPU_RANDOM) == 0);
}

Test(kernels_linear, cases_simple)
{
    setenv("KLEIN_GEMM", "linear_simple", 1);
    cr_assert(check_cases("sm_86", DT_BF16, 9, SOFTGPU_LATE) == 0);
}

/* Each of these matrix kernels, whatever gemm_pick would choose, with every case that some of them takes; in e4m3 or not. */
static void check_forced(const char *kernels, const char *arch, uint64_t seed, enum softgpu_async async,
                         int at_least, int e4m3)
{
    int taken = 0;
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    place_vectors = 1;
    *kernels_run = 0;
    setenv("KLEIN_GEMM", kernels, 1);
    for (int i = 0; i < op_case_count; i++) {
        const struct op_case *c = &op_cases[i];
        struct op_call call;
        if (!is_test_case(c) || wants_e4m3(c, DT_BF16, arch) != e4m3) continue;
        op_call_make(&call, c, DT_BF16, DT_BF16, &d->base);
        const enum klein_status status = op_call_run(&call, &err);
        op_call_free(&call);
        if (status == KLEIN_E_UNSUPPORTED || (status == KLEIN_OK && !cost.tensor_flops)) continue;
        cr_assert(status == KLEIN_OK, "%s, %s: %s", kernels, c->name, err.message);
        check_case(c, DT_BF16, arch, d);
        taken++;
    }
    cr_assert(taken >= at_least, "%s took %d cases", kernels, taken);
    cr_assert(strlen(kernels_run) == strlen(kernels), "of %s only %s ran", kernels, kernels_run);
    device_close(&d->base);
}

static void check_forced_bf16(const char *kernels, const char *arch, uint64_t seed, enum softgpu_async async)
{
    check_forced(kernels, arch, seed, async, MATRIX_CASES, 0);
}

Test(kernels_linear, large_tiles_two_stages)
{
    check_forced_bf16("gemm_sm80_linear_128x128_s2,gemm_sm80_qkv_128x128_s2", "sm_80", 1, SOFTGPU_LATE);
}

Test(kernels_linear, large_tiles_three_stages)
{
    check_forced_bf16("gemm_sm80_linear_128x128_s3,gemm_sm80_qkv_128x128_s3", "sm_80", 77, SOFTGPU_RANDOM);
}

Test(kernels_linear, small_tiles)
{
    check_forced_bf16("gemm_sm80_linear_64x128_s2,gemm_sm80_qkv_64x128_s2", "sm_80", 2, SOFTGPU_LATE);
}

Test(kernels_linear, wgmma_largest_tiles)
{
    check_forced_bf16("gemm_linear_sm90_192x192,gemm_qkv_sm90_128x256", "sm_90a", 3, SOFTGPU_LATE);
}

Test(kernels_linear, wgmma_middle_tiles)
{
    check_forced_bf16("gemm_linear_sm90_128x256,gemm_qkv_sm90_128x128", "sm_90a", 8, SOFTGPU_NOW);
}

/* Some cases of each kind of linear are left to those that have the cases of QKV as well. */
Test(kernels_linear, wgmma_other_tiles)
{
    enum { LINEAR_CASES = 9 };
    check_forced("gemm_linear_sm90_128x192", "sm_90a", 14, SOFTGPU_RANDOM, LINEAR_CASES, 0);
    check_forced("gemm_linear_sm90_128x144", "sm_90a", 21, SOFTGPU_LATE, LINEAR_CASES, 0);
    check_forced("gemm_linear_sm90_128x128", "sm_90a", 6, SOFTGPU_RANDOM, LINEAR_CASES, 0);
    check_forced("gemm_linear_sm90_64x192", "sm_90a", 35, SOFTGPU_LATE, LINEAR_CASES, 0);
}

Test(kernels_linear, e4m3_tiles)
{
    check_forced("gemm_sm89_linear_128x128_s3,gemm_sm89_qkv_128x128_s3", "sm_89", 3, SOFTGPU_LATE, E4M3_CASES,
                 1);
    check_forced("gemm_sm89_linear_64x128_s2,gemm_sm89_qkv_64x128_s2", "sm_120a", 19, SOFTGPU_RANDOM,
                 E4M3_CASES, 1);
}

/* Scales per 128 columns, and SwiGLU to e4m3. Each of linear has the cases of scales per 128 columns, each of qkv those of heads and SwiGLU. */
Test(kernels_linear, e4m3_groups_and_wide_tiles)
{
    static const enum softgpu_async orders[] = {SOFTGPU_LATE, SOFTGPU_RANDOM, SOFTGPU_NOW};
    static const char *const chips[] = {"sm_89", "sm_120a", "sm_89"};
    for (uint64_t i = 0; i < 3; i++) {
        check_forced("gemm_sm89_linear_groups_128x128_s3", chips[i], 5 * i, orders[i], 5, 1);
        check_forced("gemm_sm89_linear_groups_64x128_s2", chips[i], 7 * i, orders[i], 5, 1);
        check_forced("gemm_sm89_qkv_128x256_s2", chips[i], 11 * i, orders[i], 7, 1);
        check_forced("gemm_sm89_qkv_64x256_s2", i ? chips[i] : "sm_100a", 13 * i, orders[i], 7, 1);
    }
}

/* Scales per row, and per 128 columns; results in e4m3 are one variant's. */
Test(kernels_linear, e4m3_wgmma_tiles)
{
    static const enum softgpu_async orders[] = {SOFTGPU_LATE, SOFTGPU_RANDOM, SOFTGPU_NOW};
    for (uint64_t i = 0; i < 3; i++) {
        check_forced("gemm_linear_e4m3_sm90_128x256,gemm_qkv_e4m3_sm90_128x256", "sm_90a", 5 * i, orders[i],
                     E4M3_CASES + 4, 1);
        check_forced("gemm_linear_e4m3_sm90_128x128,gemm_qkv_e4m3_sm90_128x128", "sm_90a", 7 * i, orders[i],
                     E4M3_CASES, 1);
        check_forced("gemm_linear_e4m3_groups_sm90_128x192", "sm_90a", 11 * i, orders[i], 5, 1);
        check_forced("gemm_linear_e4m3_groups_sm90_128x144", "sm_90a", 13 * i, orders[i], 5, 1);
        check_forced("gemm_linear_e4m3_groups_sm90_128x128", "sm_90a", 17 * i, orders[i], 5, 1);
    }
}

Test(kernels_linear, single_block_input_of_real_width)
{
    struct gpu_device *d = open_chip("sm_80", 1, SOFTGPU_NOW, 0);
    place_vectors = 1;
    op_case_check(case_named("single in, three rows"), DT_BF16, &d->base);
    device_close(&d->base);
}

/* Modulation vectors go to linear_rows: one launch per part, of the size that it should have. */
Test(kernels_linear, few_rows)
{
    static const struct {
        const char *name;
        unsigned kernels, blocks;
    } cases[] = {{"four rows", 1, 13}, {"eight rows, silu, parts, split", 6, 12}, {"f32 x and y", 1, 8}};
    struct gpu_device *d = open_chip("sm_80", 1, SOFTGPU_RANDOM, 0);
    for (int i = 0; i < 3; i++) {
        op_case_check(case_named(cases[i].name), DT_BF16, &d->base);
        cr_assert(cost.kernels == cases[i].kernels && cost.blocks == cases[i].blocks,
                  "%s: %d kernels, %d blocks", cases[i].name, (int)cost.kernels, (int)cost.blocks);
    }
    device_close(&d->base);
}

/* ---- the same bytes -------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of_case(const char *name, enum dtype act, const char *arch, uint64_t seed,
                              enum softgpu_async async)
{
    uint64_t hash = 0;
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    struct op_call call;
    op_call_make(&call, case_named(name), act, act, &d->base);
    OK(op_call_run(&call, &err));
    for (int i = 0;; i++) {
        struct tensor y = op_call_output(&call, i);
        if (!y.ptr) break;
        hash = hash * 31 + fnv1a(y.ptr, (size_t)y.rows * (size_t)y.cols * sizeof(float));
        free(y.ptr);
    }
    op_call_free(&call);
    device_close(&d->base);
    return hash;
}

static const struct run {
    const char *kernel, *name;
    enum dtype act;
} runs[] = {{"gemm_sm80_linear_128x128_s2", "tiles, residual, gate, split, in place", DT_BF16},
            {"gemm_sm80_qkv_128x128_s3", "tiles, qkv mlp, split", DT_BF16},
            {"gemm_sm80_qkv_64x128_s2", "tiles, qkv mlp, split", DT_BF16},
            {"gemm_sm80_linear_64x128_s2", "tiles, f32 y", DT_BF16},
            {"", "tiles, f32 x", DT_BF16},
            {"", "eight rows, silu, parts, split", DT_F32},
            {"", "qkv mlp, four parts", DT_BF16},
            {"", "residual, bias, gate", DT_F32}};
enum { RUNS = sizeof runs / sizeof *runs };

Test(kernels_linear, same_bytes_in_every_order)
{
    static const char *const chips[] = {"sm_80", "sm_89", "sm_120a"};
    place_vectors = 1;
    for (int i = 0; i < RUNS; i++) {
        setenv("KLEIN_GEMM", runs[i].kernel, 1);
        const uint64_t first = bytes_of_case(runs[i].name, runs[i].act, "sm_80", 0, SOFTGPU_LATE);
        for (int seed = 1; seed < 7; seed++) {
            const char *chip = *runs[i].kernel ? chips[seed % 3] : "sm_80";
            uint64_t again = bytes_of_case(runs[i].name, runs[i].act, chip, (uint64_t)seed,
                                           (enum softgpu_async)(seed % 3));
            cr_assert(again == first, "%s %s, seed %d on %s", runs[i].kernel, runs[i].name, seed, chip);
        }
    }
}

/* A weight in one part or in several, any scratch memory: the same numbers. */
Test(kernels_linear, parts_and_bands_change_nothing)
{
    place_vectors = 1;
    for (int i = 0; i < RUNS; i++) {
        setenv("KLEIN_GEMM", runs[i].kernel, 1);
        const uint64_t first = bytes_of_case(runs[i].name, runs[i].act, "sm_80", 0, SOFTGPU_NOW);
        cut_weights = 1;
        const uint64_t cut = bytes_of_case(runs[i].name, runs[i].act, "sm_80", 0, SOFTGPU_NOW);
        cut_weights = 0;
        scratch_limit = 2600; /* a few rows */
        const uint64_t bands = bytes_of_case(runs[i].name, runs[i].act, "sm_80", 0, SOFTGPU_NOW);
        scratch_limit = 0;
        cr_assert(first == cut && first == bands, "%s %s", runs[i].kernel, runs[i].name);
    }
}

/* ---- counters: what a run costs ------------------------------------------------------------------------------------------- */

static void count(const char *kernel, const struct op_case *c)
{
    struct gpu_device *d = open_chip("sm_80", 0, SOFTGPU_LATE, 1);
    struct op_call call;
    setenv("KLEIN_GEMM", kernel, 1);
    op_call_make(&call, c, DT_BF16, DT_BF16, &d->base);
    OK(op_call_run(&call, &err));
    op_call_free(&call);
    device_close(&d->base);
}

/* Whole tiles: no conflict anywhere in the kernel, every multiplication needed, operands once per block; `sectors` more than the bytes
 * that all lanes ask for need. */
static void check_counts(const char *kernel, int bm, const struct op_case *c, int w_rows, int residual,
                         int64_t sectors)
{
    count(kernel, c);
    const uint64_t blocks = (uint64_t)(c->m / bm * (w_rows / 128)), k_blocks = (uint64_t)c->k / 64;
    const int64_t wasted = (int64_t)cost.global_sectors - (int64_t)cost.global_sectors_ideal;
    cr_assert(cost.kernels == 1 && cost.blocks == blocks, "%s, %s: %d blocks", kernel, c->name,
              (int)cost.blocks);
    cr_assert(cost.shared_wavefronts > 0 && cost.bank_conflicts == 0, "%s, %s: %d bank conflicts", kernel,
              c->name, (int)cost.bank_conflicts);
    cr_assert(wasted == sectors, "%s, %s: %d sectors more, not %d", kernel, c->name, (int)wasted,
              (int)sectors);
    cr_assert(cost.tensor_flops == 2ull * (uint64_t)c->m * (uint64_t)w_rows * (uint64_t)c->k);
    cr_assert(cost.cp_async_bytes == blocks * k_blocks * (uint64_t)(bm + 128) * 128 +
                                         (residual ? 2ull * (uint64_t)(c->m * c->n) : 0));
    cr_assert(cost.barriers == blocks * (k_blocks + 1));
    /* Operands, residual and y by 16 bytes a lane; what is narrower fetches norms and tables of heads. */
    const uint64_t *requests = cost.global_requests,
                   y_bytes = 2ull * (uint64_t)(c->m * w_rows) / (c->epilogue == LINEAR_SWIGLU ? 2 : 1);
    cr_assert(requests[4] == (cost.cp_async_bytes + y_bytes) / 512, "%s, %s: %d requests for 16 bytes",
              kernel, c->name, (int)requests[4]);
    cr_assert(requests[0] + requests[1] == 0 && (c->epilogue == LINEAR_QKV || requests[2] + requests[3] == 0),
              "%s, %s: narrow accesses", kernel, c->name);
}

Test(kernels_linear, no_bank_conflicts_no_wasted_sectors)
{
    static const struct {
        const char *linear, *qkv;
        int bm;
    } kernels[] = {{"gemm_sm80_linear_128x128_s2", "gemm_sm80_qkv_128x128_s2", 128},
                   {"gemm_sm80_linear_128x128_s3", "gemm_sm80_qkv_128x128_s3", 128},
                   {"gemm_sm80_linear_64x128_s2", "gemm_sm80_qkv_64x128_s2", 64}};
    place_vectors = 1;
    struct op_case plain = *case_named("whole tiles"), residual = plain, swiglu = plain, qkv = plain;
    plain.m = 256, plain.n = 256, plain.k = 192;
    residual.epilogue = LINEAR_RESIDUAL, residual.options = IN_PLACE;
    swiglu.epilogue = LINEAR_SWIGLU;
    qkv.epilogue = LINEAR_QKV, qkv.heads = 2, qkv.kv_heads = 1, qkv.hd = 128;
    for (int i = 0; i < 3; i++) {
        check_counts(kernels[i].linear, kernels[i].bm, &plain, 256, 0, 0);
        check_counts(kernels[i].linear, kernels[i].bm, &residual, 128, 1, 0);
        check_counts(kernels[i].qkv, kernels[i].bm, &swiglu, 256, 0, 0);
        /* Of 16 rows of a head: 8 quads ask for the same 16 pieces of the norm, which are a sector each; of the tables of pairs
         * (2j, 2j + 1) a quad takes half a sector at a time, 2 tables x 16 pieces x 16 rows. */
        const int fragments = 3 * 128 / 16, norm = -16 * 7, halves = 2 * 16 * 16 / 2;
        qkv.pairs = ROPE_HALF;
        check_counts(kernels[i].qkv, kernels[i].bm, &qkv, 512, 0, fragments * norm);
        qkv.pairs = ROPE_INTERLEAVED;
        check_counts(kernels[i].qkv, kernels[i].bm, &qkv, 512, 0, fragments * (norm + halves));
    }
}

/* ---- e4m3 ------------------------------------------------------------------------------------------------------------------ */

/* A matrix of bf16, quantised by the device: there as e4m3 with scales, here as the numbers that this stands for. */
struct quantised {
    struct tensor q, scale, values; /* values: F32, on the host */
};

static float spread_number(uint64_t i) /* most near 0, some large, as weights and activations are */
{
    i = (i + 1) * 0x9e3779b97f4a7c15ull;
    i ^= i >> 29;
    const float f = (float)(i * 0xbf58476d1ce4e5b9ull >> 40) * 0x1p-23f - 1;
    return f * f * f;
}

static struct tensor on_device(struct temporaries *t, const void *host, enum dtype type, int rows, int cols)
{
    const size_t bytes = (size_t)rows * (size_t)cols * dtype_size(type);
    struct tensor d = tensor_of(temporary(t, bytes), type, rows, cols);
    if (host) OK(gpu_upload(t->gpu, d.ptr, host, bytes, &err));
    OK(gpu_sync(t->gpu, &err));
    return d;
}

/* Row 1 is zeros. */
static struct quantised quantise(struct temporaries *t, int rows, int cols, uint64_t seed)
{
    const size_t n = (size_t)rows * (size_t)cols;
    bf16 *x = malloc(n * sizeof *x);
    uint8_t *bytes = malloc(n);
    float *scales = malloc((size_t)rows * sizeof *scales);
    struct quantised r = {on_device(t, NULL, DT_F8E4M3, rows, cols), on_device(t, NULL, DT_F32, 1, rows),
                          tensor_of(malloc(n * sizeof(float)), DT_F32, rows, cols)};
    cr_assert(x && bytes && scales && r.values.ptr);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_from_f32(i / (size_t)cols == 1 ? 0 : spread_number(seed << 32 | i));
    OK(quantise_rows(t->gpu, r.q, r.scale, on_device(t, x, DT_BF16, rows, cols), &err));
    OK(gpu_download(t->gpu, bytes, r.q.ptr, n, &err));
    OK(gpu_download(t->gpu, scales, r.scale.ptr, (size_t)rows * sizeof *scales, &err));
    for (int i = 0; i < rows; i++) {
        float largest = 0;
        for (int j = 0; j < cols; j++)
            largest = fmaxf(largest, fabsf(f32_from_bf16(x[(size_t)i * (size_t)cols + (size_t)j])));
        cr_assert(i == 1 ? scales[i] > 0 : scales[i] == largest / 448, "row %d: scale %g of %g", i,
                  (double)scales[i], (double)largest);
        for (int j = 0; j < cols; j++) {
            const size_t at = (size_t)i * (size_t)cols + (size_t)j;
            const float value = f32_from_f8e4m3(bytes[at]) * scales[i], wanted = f32_from_bf16(x[at]);
            /* half a unit of 3 fraction bits; below the normal numbers half of 2^-9 */
            const float limit = fmaxf(fabsf(wanted) * (0x1p-4f + 0x1p-20f), scales[i] * 0x1.001p-10f);
            cr_assert(fabsf(value - wanted) <= limit, "%d, %d: %g, not %g", i, j, (double)value,
                      (double)wanted);
            tensor_set(r.values, i, j, value);
        }
    }
    free(x), free(bytes), free(scales);
    return r;
}

enum { E4M3_M = 150, E4M3_SPLIT = 60, E4M3_K = 208, E4M3_COLS = 136 };

/* An output in both memories; y on the host F32, NaN. */
struct e4m3_output {
    struct tensor device, host;
};

static struct e4m3_output e4m3_output(struct temporaries *t, int cols)
{
    const size_t n = (size_t)E4M3_M * (size_t)cols;
    struct e4m3_output o = {on_device(t, NULL, DT_BF16, E4M3_M, cols),
                            tensor_of(malloc(n * sizeof(float)), DT_F32, E4M3_M, cols)};
    cr_assert(o.host.ptr);
    return o;
}

/* One rounding to bf16 is at most 2^-9 of the result; sums of f32 and the approximations of exp2 and rsqrt are far finer. */
static uint64_t check_e4m3_output(struct temporaries *t, struct e4m3_output o, const char *what)
{
    const size_t n = (size_t)o.host.rows * (size_t)o.host.cols;
    struct tensor y = tensor_of(malloc(n * sizeof(bf16)), DT_BF16, o.host.rows, o.host.cols);
    cr_assert(y.ptr);
    OK(gpu_download(t->gpu, y.ptr, o.device.ptr, n * sizeof(bf16), &err));
    const double l2 = relative_l2(y, o.host);
    cr_assert(l2 <= 0x1.03p-9, "%s: relative L2 %g", what, l2);
    const uint64_t hash = fnv1a(y.ptr, n * sizeof(bf16));
    free(y.ptr), free(o.host.ptr);
    return hash;
}

static void launch_e4m3(struct gpu *g, const struct linear_kernel_args *k)
{
    softgpu_reset_counters();
    OK(gemm_launch(g, DT_F8E4M3, k, &err));
    OK(gpu_sync(g, &err));
    softgpu_read_counters(&cost);
    cr_assert(cost.kernels == 1 && cost.shared_wavefronts > 0 && cost.bank_conflicts == 0, "%d conflicts",
              (int)cost.bank_conflicts);
}

static struct tensor f32_vector(int n, uint64_t seed)
{
    struct tensor v = tensor_of(malloc((size_t)n * sizeof(float)), DT_F32, 1, n);
    cr_assert(v.ptr);
    for (int i = 0; i < n; i++) tensor_set(v, 0, i, 1 + spread_number(seed << 32 | (uint64_t)i) / 2);
    return v;
}

/* RESIDUAL with gate and bias, in two groups of rows. */
static uint64_t check_e4m3_residual(struct temporaries *t, struct device *ref)
{
    struct quantised x = quantise(t, E4M3_M, E4M3_K, 1), w[2];
    struct e4m3_output y = e4m3_output(t, E4M3_COLS);
    struct linear_args a = {
        .x = x.values, .y = y.host, .split = E4M3_SPLIT, .epilogue = LINEAR_RESIDUAL, .residual = y.host};
    struct linear_kernel_args k = {.x = x.q.ptr,
                                   .x_scale = x.scale.ptr,
                                   .ldx = E4M3_K,
                                   .m = E4M3_M,
                                   .k = E4M3_K,
                                   .split = E4M3_SPLIT,
                                   .segments = 1};
    k.segment[0] = (struct linear_segment){.kind = LINEAR_SEGMENT_RESIDUAL,
                                           .cols = E4M3_COLS,
                                           .y_type = ELEMENT_BF16,
                                           .ldy = E4M3_COLS,
                                           .ldr = E4M3_COLS,
                                           .y = y.device.ptr,
                                           .residual = y.device.ptr};
    bf16 *residual = malloc(sizeof *residual * E4M3_M * E4M3_COLS);
    cr_assert(residual);
    for (int i = 0; i < E4M3_M * E4M3_COLS; i++) {
        residual[i] = bf16_from_f32(spread_number((uint64_t)i));
        ((float *)y.host.ptr)[i] = f32_from_bf16(residual[i]);
    }
    OK(gpu_upload(t->gpu, y.device.ptr, residual, sizeof *residual * E4M3_M * E4M3_COLS, &err));
    for (int g = 0; g < 2; g++) {
        w[g] = quantise(t, E4M3_COLS, E4M3_K, 2 + (uint64_t)g);
        struct tensor bias = f32_vector(E4M3_COLS, 4), gate = f32_vector(E4M3_COLS, 5);
        a.group[g] = (struct linear_group){.w = weight_of(w[g].values), .bias = bias, .gate = gate};
        k.segment[0].group[g] = (struct linear_segment_weights){
            .w = w[g].q.ptr,
            .w_scale = w[g].scale.ptr,
            .bias = on_device(t, bias.ptr, DT_F32, 1, E4M3_COLS).ptr,
            .gate = on_device(t, gate.ptr, DT_F32, 1, E4M3_COLS).ptr,
            .ldw = E4M3_K,
        };
    }
    launch_e4m3(t->gpu, &k);
    OK(ref->ops->linear(ref, &a, &err));
    const uint64_t hash = check_e4m3_output(t, y, "residual");
    free(residual), free(x.values.ptr);
    for (int g = 0; g < 2; g++) free(w[g].values.ptr), free(a.group[g].bias.ptr), free(a.group[g].gate.ptr);
    return hash;
}

/* One head of q, one of k, v, and SwiGLU. */
static uint64_t check_e4m3_qkv(struct temporaries *t, struct device *ref, enum rope_pairs pairs)
{
    enum { HD = 128, ROWS = 3 * HD + 2 * E4M3_COLS };
    struct quantised x = quantise(t, E4M3_M, E4M3_K, 6), w = quantise(t, ROWS, E4M3_K, 7);
    struct e4m3_output q = e4m3_output(t, HD), key = e4m3_output(t, HD), v = e4m3_output(t, HD),
                       mlp = e4m3_output(t, E4M3_COLS);
    struct tensor norm = f32_vector(HD, 8),
                  cosine = tensor_of(malloc(sizeof(float) * E4M3_M * HD / 2), DT_F32, E4M3_M, HD / 2),
                  sine = tensor_of(malloc(sizeof(float) * E4M3_M * HD / 2), DT_F32, E4M3_M, HD / 2);
    cr_assert(cosine.ptr && sine.ptr);
    for (int i = 0; i < E4M3_M; i++)
        for (int j = 0; j < HD / 2; j++) {
            tensor_set(cosine, i, j, cosf((float)(i + j)));
            tensor_set(sine, i, j, sinf((float)(i + j)));
        }
    const struct linear_args a = {.x = x.values,
                                  .epilogue = LINEAR_QKV,
                                  .group[0] = {.w = weight_of(w.values), .q_norm = norm, .k_norm = norm},
                                  .qkv = {.q = q.host,
                                          .k = key.host,
                                          .v = v.host,
                                          .mlp = mlp.host,
                                          .cos = cosine,
                                          .sin = sine,
                                          .heads = 1,
                                          .kv_heads = 1,
                                          .head_dim = HD,
                                          .pairs = pairs,
                                          .eps = 1e-6f}};
    struct linear_kernel_args k = {.x = x.q.ptr,
                                   .x_scale = x.scale.ptr,
                                   .ldx = E4M3_K,
                                   .m = E4M3_M,
                                   .k = E4M3_K,
                                   .segments = 4,
                                   .cos = on_device(t, cosine.ptr, DT_F32, E4M3_M, HD / 2).ptr,
                                   .sin = on_device(t, sine.ptr, DT_F32, E4M3_M, HD / 2).ptr,
                                   .half = pairs == ROPE_HALF,
                                   .eps = 1e-6f};
    const struct tensor outputs[] = {q.device, key.device, v.device, mlp.device};
    const float *norm_there = on_device(t, norm.ptr, DT_F32, 1, HD).ptr, *scale = w.scale.ptr;
    for (int i = 0; i < 4; i++) {
        struct linear_segment *s = &k.segment[i];
        *s = (struct linear_segment){.kind = i < 2    ? LINEAR_SEGMENT_NORM_ROPE
                                             : i == 2 ? LINEAR_SEGMENT_PLAIN
                                                      : LINEAR_SEGMENT_SWIGLU,
                                     .cols = outputs[i].cols,
                                     .y_type = ELEMENT_BF16,
                                     .ldy = outputs[i].ld,
                                     .y = outputs[i].ptr};
        s->group[0].w = tensor_at(w.q, i * HD, 0), s->group[0].w_scale = scale + i * HD;
        s->group[0].up = tensor_at(w.q, 3 * HD + E4M3_COLS, 0);
        s->group[0].up_scale = scale + 3 * HD + E4M3_COLS;
        s->group[0].ldw = s->group[0].ldup = E4M3_K;
        s->group[0].norm = norm_there;
    }
    launch_e4m3(t->gpu, &k);
    OK(ref->ops->linear(ref, &a, &err));
    uint64_t hash = check_e4m3_output(t, q, "q");
    hash = hash * 31 + check_e4m3_output(t, key, "k");
    hash = hash * 31 + check_e4m3_output(t, v, "v");
    hash = hash * 31 + check_e4m3_output(t, mlp, "mlp");
    free(x.values.ptr), free(w.values.ptr), free(norm.ptr), free(cosine.ptr), free(sine.ptr);
    return hash;
}

/* A hash of all results. */
static uint64_t check_e4m3(const char *arch, const char *kernels, uint64_t seed, enum softgpu_async async)
{
    struct device *ref;
    struct gpu_device *d = open_chip(arch, seed, async, 1);
    struct temporaries t = {.gpu = d->gpu};
    setenv("KLEIN_GEMM", kernels, 1);
    OK(device_open("ref", NULL, &ref, &err));
    uint64_t hash = check_e4m3_residual(&t, ref);
    release(&t);
    hash = hash * 31 + check_e4m3_qkv(&t, ref, ROPE_INTERLEAVED);
    release(&t);
    hash = hash * 31 + check_e4m3_qkv(&t, ref, ROPE_HALF);
    release(&t);
    device_close(ref);
    device_close(&d->base);
    return hash;
}

static void check_e4m3_in_every_order(const char *kernels)
{
    const uint64_t first = check_e4m3("sm_89", kernels, 0, SOFTGPU_LATE);
    cr_assert(check_e4m3("sm_120a", kernels, 4, SOFTGPU_RANDOM) == first);
    cr_assert(check_e4m3("sm_100a", kernels, 5, SOFTGPU_NOW) == first);
}

Test(kernels_linear, e4m3_large_tiles)
{
    check_e4m3_in_every_order("gemm_sm89_linear_128x128_s3,gemm_sm89_qkv_128x128_s3");
}

Test(kernels_linear, e4m3_small_tiles)
{
    check_e4m3_in_every_order("gemm_sm89_linear_64x128_s2,gemm_sm89_qkv_64x128_s2");
    check_e4m3_in_every_order("gemm_sm89_linear_64x128_s2,gemm_sm89_qkv_64x256_s2");
}

Test(kernels_linear, quantised_rows)
{
    static const int cols[] = {16, 256, 3072, 4096, 4112, 12288};
    struct gpu_device *d = open_chip("sm_89", 3, SOFTGPU_RANDOM, 0);
    struct temporaries t = {.gpu = d->gpu};
    for (int i = 0; i < 6; i++) {
        free(quantise(&t, 11, cols[i], (uint64_t)i).values.ptr);
        release(&t);
    }
    struct tensor x = on_device(&t, NULL, DT_BF16, 2, 16), y = on_device(&t, NULL, DT_F8E4M3, 2, 16),
                  scale = on_device(&t, NULL, DT_F32, 1, 2);
    FAILS(quantise_rows(d->gpu, x, scale, x, &err), KLEIN_E_UNSUPPORTED, "BF16 to BF16");
    FAILS(quantise_rows(d->gpu, y, tensor_cols(scale, 0, 1), x, &err), KLEIN_E_INTERNAL, "with 1 scales");
    FAILS(quantise_rows(d->gpu, tensor_cols(y, 0, 15), scale, tensor_cols(x, 0, 15), &err),
          KLEIN_E_UNSUPPORTED, "rows of 15");
    release(&t);
    device_close(&d->base);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

Test(kernels_linear, refusals)
{
    struct gpu_device *d = open_chip("sm_80", 0, SOFTGPU_LATE, 0);
    void *p = d->base.alloc(&d->base, 65536);
    struct tensor t = tensor_of(p, DT_BF16, 16, 16), odd = tensor_of(p, DT_BF16, 16, 15);
    struct linear_args fast = {.x = t, .y = t, .group[0].w = weight_of(t)},
                       simple = {.x = odd, .y = t, .group[0].w = weight_of(odd)};
    FAILS(linear_launch(d->gpu, &simple, NULL, 4096, &err), KLEIN_E_INTERNAL, "does not hold one row");
    FAILS(linear_launch(d->gpu, &simple, p, 63, &err), KLEIN_E_INTERNAL, "does not hold one row");
    simple.group[0].w.part[0].rows = 65536 * 64;
    FAILS(linear_launch(d->gpu, &simple, p, (size_t)1 << 30, &err), KLEIN_E_UNSUPPORTED,
          "a weight of 4194304 rows");
    setenv("KLEIN_GEMM", "gemm9", 1);
    FAILS(linear_launch(d->gpu, &fast, NULL, 0, &err), KLEIN_E_INPUT, "gemm9: no such kernel");
    struct linear_kernel_args e4m3 = {.x = p, .ldx = 16, .m = 16, .k = 16, .segments = 1};
    FAILS(gemm_launch(d->gpu, DT_F8E4M3, &e4m3, &err), KLEIN_E_INTERNAL, "without scales");
    e4m3.x_scale = e4m3.segment[0].group[0].w_scale = p;
    e4m3.k = 8;
    FAILS(gemm_launch(d->gpu, DT_F8E4M3, &e4m3, &err), KLEIN_E_UNSUPPORTED, "F8_E4M3 rows of 8");
    e4m3.segment[0].kind = LINEAR_SEGMENT_SWIGLU;
    FAILS(gemm_launch(d->gpu, DT_F8E4M3, &e4m3, &err), KLEIN_E_INTERNAL, "without scales");
    gpu_free(d->gpu, p);
    device_close(&d->base);
}
