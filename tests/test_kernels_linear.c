/* Op linear on the soft GPU: every case against ref by the rule of op_cases.h, on several claimed chips, in several orders of threads
 * and landings; the same bytes each time; what the kernels cost by the soft GPU's counters; choice and refusals. */
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/gemm/gemm_pick.h"
#include "../kernels/gemm/linear_launch.h"
#include "../kernels/pointwise/pointwise.h"
#include "../kernels/soft/softgpu.h"

#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

/* How the op is run. */
static int place_vectors; /* vectors become F32 first, as a device does when it opens a model */
static int cut_weights;   /* a weight of one part becomes q, k, v, the rest; or two halves */
static size_t scratch_limit;
static struct softgpu_counters cost; /* of the last run */

enum { TEMPORARIES = 16 };
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
    const int q = a->qkv.q.cols, kv = a->qkv.k.cols, half = all.rows / 16 * 8;
    const int qkv[] = {0, q, q + kv, q + 2 * kv, all.rows}, halves[] = {0, half, all.rows};
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
    enum klein_status status = linear_launch(t.gpu, &a, scratch, bytes, e);
    if (status == KLEIN_OK) status = gpu_sync(t.gpu, e);
    softgpu_read_counters(&cost);
    while (t.count) gpu_free(t.gpu, t.memory[--t.count]);
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

/* Every case; returns how many of them the matrix kernels computed. */
static int check_cases(const char *arch, enum dtype act, uint64_t seed, enum softgpu_async async)
{
    int matrix = 0;
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    for (int i = 0; i < op_case_count; i++) {
        if (!is_test_case(&op_cases[i])) continue;
        op_case_check(&op_cases[i], act, &d->base);
        matrix += cost.tensor_flops > 0;
    }
    device_close(&d->base);
    return matrix;
}

/* Most of the aligned cases and some of the others. */
enum { MATRIX_CASES = 20 };

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

/* Each matrix kernel, whatever gemm_pick would choose. */
static void check_forced(const char *kernel, const char *arch, uint64_t seed, enum softgpu_async async)
{
    place_vectors = 1;
    setenv("KLEIN_GEMM", kernel, 1);
    const int matrix = check_cases(arch, DT_BF16, seed, async);
    cr_assert(matrix >= MATRIX_CASES, "%s: %d", kernel, matrix);
}

Test(kernels_linear, large_tiles_two_stages)
{
    check_forced("gemm_sm80_128x128_s2", "sm_80", 1, SOFTGPU_LATE);
}

Test(kernels_linear, large_tiles_three_stages)
{
    check_forced("gemm_sm80_128x128_s3", "sm_80", 77, SOFTGPU_RANDOM);
}

Test(kernels_linear, small_tiles)
{
    check_forced("gemm_sm80_64x128_s2", "sm_80", 2, SOFTGPU_LATE);
}

Test(kernels_linear, single_block_input_of_real_width)
{
    struct gpu_device *d = open_chip("sm_80", 1, SOFTGPU_NOW, 0);
    place_vectors = 1;
    op_case_check(case_named("single in, three rows"), DT_BF16, &d->base);
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
} runs[] = {{"gemm_sm80_128x128_s2", "tiles, residual, gate, split, in place", DT_BF16},
            {"gemm_sm80_128x128_s3", "tiles, qkv mlp, split", DT_BF16},
            {"gemm_sm80_64x128_s2", "tiles, qkv mlp, split", DT_BF16},
            {"gemm_sm80_64x128_s2", "tiles, f32 y", DT_BF16},
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
}

static const struct {
    const char *name;
    int bm;
} kernels[] = {{"gemm_sm80_128x128_s2", 128}, {"gemm_sm80_128x128_s3", 128}, {"gemm_sm80_64x128_s2", 64}};

Test(kernels_linear, no_bank_conflicts_no_wasted_sectors)
{
    place_vectors = 1;
    struct op_case plain = *case_named("whole tiles"), residual = plain, swiglu = plain, qkv = plain;
    plain.m = 256, plain.n = 256, plain.k = 192;
    residual.epilogue = LINEAR_RESIDUAL, residual.options = IN_PLACE;
    swiglu.epilogue = LINEAR_SWIGLU;
    qkv.epilogue = LINEAR_QKV, qkv.heads = 2, qkv.kv_heads = 1, qkv.hd = 128;
    for (int i = 0; i < 3; i++) {
        check_counts(kernels[i].name, kernels[i].bm, &plain, 256, 0, 0);
        check_counts(kernels[i].name, kernels[i].bm, &residual, 128, 1, 0);
        check_counts(kernels[i].name, kernels[i].bm, &swiglu, 256, 0, 0);
        /* Of 16 rows of a head: 8 quads ask for the same 16 pieces of the norm, which are a sector each; of the tables of pairs
         * (2j, 2j + 1) a quad takes half a sector at a time, 2 tables x 16 pieces x 16 rows. */
        const int fragments = 3 * 128 / 16, norm = -16 * 7, halves = 2 * 16 * 16 / 2;
        qkv.pairs = ROPE_HALF;
        check_counts(kernels[i].name, kernels[i].bm, &qkv, 512, 0, fragments * norm);
        qkv.pairs = ROPE_INTERLEAVED;
        check_counts(kernels[i].name, kernels[i].bm, &qkv, 512, 0, fragments * (norm + halves));
    }
}

/* ---- choice and refusals ---------------------------------------------------------------------------------------------------- */

static struct gemm_shape shape_of(int arch, int multiprocessors, int shared_max, enum gemm_family family,
                                  int first_rows, int second_rows, int w_rows)
{
    return (struct gemm_shape){.arch = arch,
                               .multiprocessors = multiprocessors,
                               .shared_max = shared_max,
                               .family = family,
                               .type = DT_BF16,
                               .rows = {first_rows, second_rows},
                               .segments = 1,
                               .w_rows = {w_rows}};
}

Test(kernels_linear, pick)
{
    static const struct {
        int arch, multiprocessors, shared_max, family, rows[2], w_rows;
        const char *name;
    } picks[] = {
        {80, 108, 166912, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_128x128_s2"}, /* 1024 x 1024 */
        {80, 108, 166912, GEMM_LINEAR, {512, 4096}, 3072, "gemm_sm80_128x128_s2"},
        {80, 108, 166912, GEMM_LINEAR, {768, 0}, 3072, "gemm_sm80_64x128_s2"}, /* 144 large tiles: 2 rounds */
        {89, 128, 101376, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_128x128_s3"},
        {120, 170, 101376, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_128x128_s3"},
        {90, 132, 232448, GEMM_LINEAR, {512, 4096}, 3072, "gemm_sm80_128x128_s3"},
        {100, 148, 232448, GEMM_QKV, {4608, 0}, 27648, "gemm_sm80_128x128_s3"},
    };
    const struct gemm_variant *v;
    struct gemm_shape s;
    for (size_t i = 0; i < sizeof picks / sizeof *picks; i++) {
        s = shape_of(picks[i].arch, picks[i].multiprocessors, picks[i].shared_max,
                     (enum gemm_family)picks[i].family, picks[i].rows[0], picks[i].rows[1], picks[i].w_rows);
        OK(gemm_pick(&s, NULL, &v, &err));
        cr_expect(!strcmp(v->name, picks[i].name), "row %zu: %s", i, v->name);
    }
    s = shape_of(80, 108, 166912, GEMM_QKV, 130, 65, 300);
    OK(gemm_pick(&s, "gemm_sm80_128x128_s3", &v, &err));
    cr_assert(v == gemm_variant(0) && gemm_variant(-1) == NULL && gemm_variant(99) == NULL);
    cr_assert(gemm_tiles(v, &s) == (2 + 1) * 3);
    FAILS(gemm_pick(&s, "gemm_sm81", &v, &err), KLEIN_E_INPUT, "no such kernel");
    s.arch = 75;
    FAILS(gemm_pick(&s, "gemm_sm80_128x128_s3", &v, &err), KLEIN_E_UNSUPPORTED,
          "gemm_sm80_128x128_s3 does not take BF16");
    FAILS(gemm_pick(&s, "", &v, &err), KLEIN_E_UNSUPPORTED, "no kernel takes BF16 products with QKV");
}

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
    gpu_free(d->gpu, p);
    device_close(&d->base);
}

Test(kernels_linear, scratch_is_bounded)
{
    struct tensor x = tensor_of(NULL, DT_BF16, 4608, 3072), w = tensor_of(NULL, DT_BF16, 27648, 3072),
                  y = tensor_of(NULL, DT_BF16, 4608, 27648), few = x;
    few.rows = 3;
    cr_assert(linear_scratch(&(struct linear_args){.x = x, .y = y, .group[0].w = weight_of(w)}) == 32u << 20);
    cr_assert(linear_scratch(&(struct linear_args){.x = few, .y = y, .group[0].w = weight_of(w)}) ==
              3u * 27648 * 4);
}
