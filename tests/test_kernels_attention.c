/* The attention kernels on the soft GPU: every case against ref by the rule of op_cases.h, on several claimed chips, in several orders
 * of threads and landings; the same bytes each time; what they cost by the soft GPU's counters. */
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/attention/attention_launch.h"
#include "../kernels/attention/attention_pick.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

static int o_was_e4m3; /* in the last run */

static enum klein_status run_attention(struct device *dev, const struct attention_args *a,
                                       struct klein_error *e)
{
    o_was_e4m3 = a->o.dtype == DT_F8E4M3;
    return attention_launch(((struct gpu_device *)dev)->gpu, a, e);
}

static const struct op_table ops = {.attention = run_attention};

static int multiprocessors; /* that the chip is said to have; 0: its own */

static struct gpu_device *open_chip(const char *arch, uint64_t seed, enum softgpu_async async, int count)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.multiprocessors = multiprocessors;
    c.seed = seed;
    c.async = async;
    c.count_accesses = count;
    cr_assert(softgpu_configure(&c));
    return gpu_device_open(&ops);
}

/* The chip to run a kernel on. */
static const char *arch_of(const char *kernel)
{
    return strstr(kernel, "sm90") ? "sm_90a" : strstr(kernel, "sm89") ? "sm_89" : "sm_80";
}

static int is_test_case(const struct op_case *c)
{
    return c->op == OP_attention && !c->bench;
}

/* ---- every case ------------------------------------------------------------------------------------------------------- */

/* What asks for a result in e4m3 has it where there is e4m3. */
static void check_case(const struct op_case *c, enum dtype act, const char *arch, struct gpu_device *d)
{
    op_case_check(c, act, &d->base);
    cr_assert(o_was_e4m3 == (c->options & Y_E4M3 && act == DT_BF16 && strcmp(arch, "sm_80")),
              "%s on %s: o was%s in F8_E4M3", c->name, arch, o_was_e4m3 ? "" : " not");
}

static void check_cases(const char *arch, enum dtype act, uint64_t seed, enum softgpu_async async)
{
    struct gpu_device *d = open_chip(arch, seed, async, 0);
    for (int i = 0; i < op_case_count; i++)
        if (is_test_case(&op_cases[i])) check_case(&op_cases[i], act, arch, d);
    device_close(&d->base);
}

Test(kernels_attention, cases_sm80)
{
    check_cases("sm_80", DT_BF16, 0, SOFTGPU_LATE);
}

Test(kernels_attention, cases_sm89)
{
    check_cases("sm_89", DT_BF16, 11, SOFTGPU_RANDOM);
}

Test(kernels_attention, cases_sm90a)
{
    check_cases("sm_90a", DT_BF16, 5, SOFTGPU_NOW);
}

Test(kernels_attention, cases_sm120a)
{
    check_cases("sm_120a", DT_BF16, 13, SOFTGPU_LATE);
}

Test(kernels_attention, cases_f32)
{
    check_cases("sm_80", DT_F32, 3, SOFTGPU_RANDOM);
}

/* Each kernel with every case that it takes, whatever attention_pick would choose. */
static void check_forced(const char *kernel, uint64_t seed, enum softgpu_async async, int at_least)
{
    struct gpu_device *d = open_chip(arch_of(kernel), seed, async, 0);
    setenv("KLEIN_ATTENTION", kernel, 1);
    int taken = 0, e4m3 = 0;
    for (int i = 0; i < op_case_count; i++) {
        struct op_call call;
        if (!is_test_case(&op_cases[i])) continue;
        op_call_make(&call, &op_cases[i], DT_BF16, DT_BF16, &d->base);
        const enum klein_status status = op_call_run(&call, &err);
        if (status != KLEIN_E_UNSUPPORTED) OK(gpu_sync(d->gpu, &err));
        op_call_free(&call);
        if (status == KLEIN_E_UNSUPPORTED) continue;
        check_case(&op_cases[i], DT_BF16, arch_of(kernel), d);
        taken++;
        e4m3 += o_was_e4m3;
    }
    cr_assert(taken >= at_least, "%s took %d cases", kernel, taken);
    cr_assert(e4m3 >= (strcmp(arch_of(kernel), "sm_80") ? 2 : 0), "%s wrote e4m3 in %d cases", kernel, e4m3);
    device_close(&d->base);
}

Test(kernels_attention, large_tiles)
{
    check_forced("attention_sm80_128x48", 1, SOFTGPU_LATE, 10);
}

Test(kernels_attention, large_tiles_in_another_order)
{
    check_forced("attention_sm80_128x48", 77, SOFTGPU_RANDOM, 10);
}

Test(kernels_attention, small_tiles)
{
    check_forced("attention_sm80_64x64", 2, SOFTGPU_LATE, 10);
}

/* The cases whose result is in e4m3. */
Test(kernels_attention, to_e4m3)
{
    static const char *const kernels[] = {"attention_e4m3_sm89_128x48", "attention_e4m3_sm89_64x64"};
    for (int i = 0; i < 2; i++) {
        check_forced(kernels[i], 3, SOFTGPU_LATE, 4);
        check_forced(kernels[i], 12, SOFTGPU_RANDOM, 4);
        check_forced(kernels[i], 27, SOFTGPU_NOW, 4);
    }
}

Test(kernels_attention, one_warpgroup)
{
    check_forced("attention_sm90_64x128", 0, SOFTGPU_LATE, 16);
}

Test(kernels_attention, one_warpgroup_in_other_orders)
{
    check_forced("attention_sm90_64x128", 31, SOFTGPU_RANDOM, 16);
    check_forced("attention_sm90_64x128", 8, SOFTGPU_NOW, 16);
}

/* One multiprocessor has no rest to halve; the chip's own 132 halve nearly all cases. */
Test(kernels_attention, producer_and_consumers)
{
    multiprocessors = 1;
    check_forced("attention_sm90_128x128", 0, SOFTGPU_LATE, 16);
    multiprocessors = 0;
    check_forced("attention_sm90_128x128", 2, SOFTGPU_LATE, 16);
}

Test(kernels_attention, producer_and_consumers_in_other_orders)
{
    multiprocessors = 1;
    check_forced("attention_sm90_128x128", 45, SOFTGPU_RANDOM, 16);
    multiprocessors = 5;
    check_forced("attention_sm90_128x128", 6, SOFTGPU_NOW, 16);
}

Test(kernels_attention, wide)
{
    check_forced("attention_wide_sm80", 4, SOFTGPU_LATE, 15);
}

Test(kernels_attention, simple)
{
    check_forced("attention_simple_bf16", 6, SOFTGPU_LATE, 20);
}

/* ---- crafted operands -------------------------------------------------------------------------------------------------- */

enum { HD = 128 };

/* Queries and keys such that score(i, j) = slope * j + ripple; v counts in halves. The result against ref on the same values. */
static void check_slope(const char *kernel, float slope, int queries, int keys, int key_len)
{
    struct gpu_device *d = open_chip(arch_of(kernel), 9, SOFTGPU_LATE, 0);
    struct device *ref, *devices[2] = {&d->base, NULL};
    setenv("KLEIN_ATTENTION", kernel, 1);
    OK(device_open("ref", NULL, &ref, &err));
    devices[1] = ref;
    bf16 *q = calloc((size_t)queries * HD, sizeof *q), *k = calloc((size_t)keys * HD, sizeof *k),
         *v = calloc((size_t)keys * HD, sizeof *v), *o[2];
    cr_assert(q && k && v);
    for (int i = 0; i < queries * HD; i++)
        q[i] = bf16_from_f32(i % HD == 0 ? 1 : (float)(i * 7 % 13 - 6) / 64);
    for (int i = 0; i < keys * HD; i++) {
        k[i] = bf16_from_f32(i % HD == 0 ? slope * (float)(i / HD) : (float)(i * 5 % 11 - 5) / 64);
        v[i] = bf16_from_f32((float)(i * 3 % 17 - 8) / 2);
        if (key_len && i / HD >= key_len) k[i] = v[i] = bf16_from_f32((float)NAN); /* does not exist */
    }
    const void *host[3] = {q, k, v};
    const int rows[4] = {queries, keys, keys, queries};
    for (int x = 0; x < 2; x++) {
        struct tensor t[4];
        for (int i = 0; i < 4; i++) {
            const size_t bytes = (size_t)rows[i] * HD * sizeof(bf16);
            t[i] = tensor_of(devices[x]->alloc(devices[x], bytes), DT_BF16, rows[i], HD);
            cr_assert(t[i].ptr);
            if (i < 3) OK(devices[x]->upload(devices[x], t[i].ptr, host[i], bytes, &err));
        }
        struct tensor count = {0};
        if (key_len) {
            count = tensor_of(devices[x]->alloc(devices[x], 4), DT_I32, 1, 1);
            OK(devices[x]->upload(devices[x], count.ptr, &(int32_t){key_len}, 4, &err));
        }
        OK(devices[x]->ops->attention(devices[x],
                                      &(struct attention_args){.q = t[0],
                                                               .k = t[1],
                                                               .v = t[2],
                                                               .o = t[3],
                                                               .heads = 1,
                                                               .kv_heads = 1,
                                                               .head_dim = HD,
                                                               .keys = count,
                                                               .scale = 1},
                                      &err));
        o[x] = malloc((size_t)queries * HD * sizeof(bf16));
        cr_assert(o[x]);
        OK(devices[x]->download(devices[x], o[x], t[3].ptr, (size_t)queries * HD * sizeof(bf16), &err));
        for (int i = 0; i < 4; i++)
            devices[x]->free(devices[x], t[i].ptr, (size_t)rows[i] * HD * sizeof(bf16));
        if (key_len) devices[x]->free(devices[x], count.ptr, 4);
    }
    /* Both round to bf16 once (2^-9), and P V has bf16 probabilities (2^-9): at most 2^-7 of the largest |v| apart. */
    double most = max_abs_diff(tensor_of(o[0], DT_BF16, queries, HD), tensor_of(o[1], DT_BF16, queries, HD));
    cr_assert(most <= 4 * 0x1p-7, "%s, slope %g: %g", kernel, (double)slope, most);
    free(q), free(k), free(v), free(o[0]), free(o[1]);
    device_close(ref);
    device_close(&d->base);
}

Test(kernels_attention, scores_that_rise_fall_and_overwhelm)
{
    static const char *const kernels[] = {"attention_sm80_128x48", "attention_sm80_64x64",
                                          "attention_sm90_64x128", "attention_sm90_128x128",
                                          "attention_wide_sm80",   "attention_simple_bf16"};
    static const float slopes[] = {0.015625f, -0.015625f, 4, -4, 1000, 0};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++) check_slope(kernels[i], slopes[j], 70, 200, j % 2 ? 0 : 190);
}

Test(kernels_attention, tokens_around_the_edges_of_tiles)
{
    static const int counts[] = {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 383, 385};
    enum { COUNTS = sizeof counts / sizeof *counts };
    for (int i = 0; i < COUNTS; i++) {
        const int keys = counts[(i * 7 + 3) % COUNTS];
        check_slope("attention_sm90_64x128", 0.015625f, counts[i], keys, 0);
        check_slope("attention_sm90_128x128", 0.015625f, counts[i], keys, 0);
        check_slope("attention_sm90_64x128", -0.015625f, counts[i], 400, keys);
        check_slope("attention_sm90_128x128", -0.015625f, counts[i], 400, keys);
    }
}

/* ---- the same bytes in every order ---------------------------------------------------------------------------------------- */

static uint64_t bytes_of_case(const struct op_case *c, const char *kernel, uint64_t seed,
                              enum softgpu_async async)
{
    struct gpu_device *d = open_chip(arch_of(kernel), seed, async, 0);
    struct op_call call;
    setenv("KLEIN_ATTENTION", kernel, 1);
    op_call_make(&call, c, DT_BF16, DT_BF16, &d->base);
    OK(op_call_run(&call, &err));
    struct tensor y = op_call_output(&call, 0);
    uint64_t hash = fnv1a(y.ptr, (size_t)y.rows * (size_t)y.cols * sizeof(float));
    free(y.ptr);
    op_call_free(&call);
    device_close(&d->base);
    return hash;
}

static const struct op_case *case_named(const char *name)
{
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == OP_attention && !strcmp(op_cases[i].name, name)) return &op_cases[i];
    cr_assert(0, "no case %s", name);
    return NULL;
}

Test(kernels_attention, same_bytes_in_every_order)
{
    static const struct {
        const char *kernel, *name;
    } runs[] = {{"attention_sm80_128x48", "causal, a tile and one"},
                {"attention_sm80_64x64", "causal, a tile and one"},
                {"attention_e4m3_sm89_128x48", "to e4m3, causal, gqa, key length"},
                {"attention_e4m3_sm89_64x64", "to e4m3, causal, gqa, key length"},
                {"attention_sm90_64x128", "causal, two tiles and one"},
                {"attention_sm90_64x128", "many tiles of keys"},
                {"attention_sm90_128x128", "causal, two tiles and one"},
                {"attention_sm90_128x128", "many tiles of keys"},
                {"attention_wide_sm80", "head of 192, causal, gqa"},
                {"attention_simple_bf16", "a tile less one"}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        const struct op_case *c = case_named(runs[i].name);
        multiprocessors = 0;
        uint64_t first = bytes_of_case(c, runs[i].kernel, 0, SOFTGPU_LATE);
        for (int seed = 1; seed < 9; seed++) {
            multiprocessors = seed % 4; /* which blocks are halves */
            uint64_t again = bytes_of_case(c, runs[i].kernel, (uint64_t)seed, (enum softgpu_async)(seed % 3));
            cr_assert(again == first, "%s, seed %d", runs[i].kernel, seed);
        }
    }
}

/* ---- counters: what a run costs ------------------------------------------------------------------------------------------- */

static struct softgpu_counters count(const char *kernel, int queries, int keys, int heads, int hd)
{
    struct gpu_device *d = open_chip(arch_of(kernel), 0, SOFTGPU_LATE, 1);
    setenv("KLEIN_ATTENTION", kernel, 1);
    struct tensor t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = tensor_of(NULL, DT_BF16, i == 0 || i == 3 ? queries : keys, heads * hd);
        const size_t bytes = (size_t)t[i].rows * (size_t)t[i].cols * sizeof(bf16);
        t[i].ptr = d->base.alloc(&d->base, bytes);
        cr_assert(t[i].ptr);
        OK(gpu_fill(d->gpu, t[i].ptr, 0x3c, bytes, &err));
    }
    softgpu_reset_counters();
    OK(attention_launch(d->gpu,
                        &(struct attention_args){.q = t[0],
                                                 .k = t[1],
                                                 .v = t[2],
                                                 .o = t[3],
                                                 .heads = heads,
                                                 .kv_heads = heads,
                                                 .head_dim = hd,
                                                 .scale = 0.088f},
                        &err));
    OK(gpu_sync(d->gpu, &err));
    struct softgpu_counters c;
    softgpu_read_counters(&c);
    for (int i = 0; i < 4; i++) gpu_free(d->gpu, t[i].ptr);
    device_close(&d->base);
    return c;
}

/* Full tiles: no conflict anywhere in the kernel, every sector used, every multiplication needed, each key once per block. */
static void check_counts(const char *kernel, int rows, int tile, int hd, uint64_t barriers_per_block,
                         uint64_t barriers_per_tile)
{
    enum { KEYS = 192, HEADS = 2 };
    const int queries = 2 * rows, blocks = 2 * HEADS;
    struct softgpu_counters c = count(kernel, queries, KEYS, HEADS, hd);
    cr_assert(c.blocks == (uint64_t)blocks);
    cr_assert(c.shared_wavefronts > 0 && c.bank_conflicts == 0, "%s: %llu bank conflicts", kernel,
              (unsigned long long)c.bank_conflicts);
    cr_assert(c.global_sectors == c.global_sectors_ideal, "%s: %llu sectors, ideal %llu", kernel,
              (unsigned long long)c.global_sectors, (unsigned long long)c.global_sectors_ideal);
    cr_assert(c.tensor_flops == 4ull * (uint64_t)(queries * KEYS * HEADS * hd));
    cr_assert(c.cp_async_bytes == 2ull * (uint64_t)(blocks * hd * (rows + 2 * KEYS)));
    const uint64_t o_bytes = 2ull * (uint64_t)(queries * HEADS * hd); /* all by 16 bytes a lane */
    for (int i = 0; i < SOFTGPU_WIDTHS; i++)
        cr_assert_eq(c.global_requests[i], i < 4 ? 0 : (c.cp_async_bytes + o_bytes) / 512);
    cr_assert(c.barriers ==
                  (uint64_t)blocks * (barriers_per_block + barriers_per_tile * (uint64_t)(KEYS / tile)),
              "%s: %llu barriers", kernel, (unsigned long long)c.barriers);
}

Test(kernels_attention, no_bank_conflicts_no_wasted_sectors)
{
    check_counts("attention_sm80_128x48", 128, 48, 128, 1, 2);
    check_counts("attention_sm80_64x64", 64, 64, 128, 1, 2);
    check_counts("attention_wide_sm80", 64, 64, 512, 2, 2 * 8 + 2);
    check_counts("attention_wide_sm80", 64, 64, 192, 2, 2 * 3 + 2);
}

/* Three tiles of keys each: every stage is used again. `rows` of a block: queries. */
static void check_counts_sm90(const char *kernel, int rows, uint64_t barriers_per_block,
                              uint64_t barriers_per_further_tile)
{
    enum { KEYS = 384, TILES = KEYS / 128, HEADS = 2 };
    const int queries = 256;
    const uint64_t blocks = (uint64_t)(queries / rows * HEADS);
    struct softgpu_counters c = count(kernel, queries, KEYS, HEADS, HD);
    cr_assert(c.blocks == blocks && c.dependents == 1);
    cr_assert(c.shared_wavefronts > 0 && c.bank_conflicts == 0, "%s: %llu bank conflicts", kernel,
              (unsigned long long)c.bank_conflicts);
    cr_assert(c.global_sectors == 0 && c.cp_async_bytes == 0);
    cr_assert(c.tensor_flops == 4ull * (uint64_t)(queries * KEYS * HEADS * HD));
    cr_assert(c.tma_bytes == 2ull * blocks * HD * (uint64_t)(2 * rows + 2 * KEYS)); /* q, o; k, v */
    cr_assert(c.barriers == blocks * (barriers_per_block + barriers_per_further_tile * (TILES - 1)),
              "%s: %llu barriers", kernel, (unsigned long long)c.barriers);
}

Test(kernels_attention, what_the_sm90_kernels_move)
{
    check_counts_sm90("attention_sm90_64x128", 64, 4, 2); /* further tiles: two stages are filled again */
    multiprocessors = 2;
    check_counts_sm90("attention_sm90_128x128", 128, 5, 2); /* further tiles: the two take turns */
    multiprocessors = 8;
    check_counts_sm90("attention_sm90_128x128", 64, 3, 0); /* halves */
}

/* ---- dependent launches --------------------------------------------------------------------------------------------------- */

/* Three launches, each of which reads what the one before has written; waited for one by one if `apart`. */
static uint64_t chain(const char *kernel, uint64_t seed, enum softgpu_async async, int apart)
{
    enum { ROWS = 200, BYTES = ROWS * HD * sizeof(bf16) };
    struct gpu_device *d = open_chip("sm_90a", seed, async, 0);
    setenv("KLEIN_ATTENTION", kernel, 1);
    bf16 *host = malloc(BYTES);
    cr_assert(host);
    struct tensor t[4];
    for (int i = 0; i < ROWS * HD; i++) host[i] = bf16_from_f32((float)(i * 31 % 509 - 254) / 128);
    for (int i = 0; i < 4; i++) {
        t[i] = tensor_of(d->base.alloc(&d->base, BYTES), DT_BF16, ROWS, HD);
        cr_assert(t[i].ptr);
    }
    OK(d->base.upload(&d->base, t[0].ptr, host, BYTES, &err));
    softgpu_reset_counters();
    for (int i = 0; i < 3; i++) {
        OK(attention_launch(d->gpu,
                            &(struct attention_args){.q = t[0],
                                                     .k = t[i],
                                                     .v = t[i],
                                                     .o = t[i + 1],
                                                     .heads = 1,
                                                     .kv_heads = 1,
                                                     .head_dim = HD,
                                                     .scale = 0.088f},
                            &err));
        if (apart) OK(gpu_sync(d->gpu, &err));
    }
    OK(d->base.download(&d->base, host, t[3].ptr, BYTES, &err));
    struct softgpu_counters c;
    softgpu_read_counters(&c);
    cr_assert(c.kernels == 3 && c.dependents == 3);
    const uint64_t hash = fnv1a(host, BYTES);
    cr_assert(isfinite(f32_from_bf16(host[0])));
    for (int i = 0; i < 4; i++) gpu_free(d->gpu, t[i].ptr);
    free(host);
    device_close(&d->base);
    return hash;
}

Test(kernels_attention, dependent_launches_wait)
{
    static const char *const kernels[] = {"attention_sm80_128x48", "attention_sm80_64x64",
                                          "attention_sm90_64x128", "attention_sm90_128x128",
                                          "attention_wide_sm80",   "attention_simple_bf16"};
    for (int i = 0; i < 6; i++) {
        const uint64_t first = chain(kernels[i], 0, SOFTGPU_NOW, 1);
        for (int seed = 0; seed < 3; seed++)
            cr_assert(chain(kernels[i], (uint64_t)seed, (enum softgpu_async)seed, 0) == first, "%s",
                      kernels[i]);
    }
}

/* ---- choice and refusals ---------------------------------------------------------------------------------------------------- */

Test(kernels_attention, pick)
{
    static const struct {
        struct attention_shape shape;
        const char *kernel;
    } picks[] = {
        {{80, 108, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_128x48"}, /* 1024 x 1024 */
        {{80, 108, DT_BF16, 24, 1536, 1536, 128, 1, 0}, "attention_sm80_128x48"}, /* 512 x 512: 288 tiles */
        {{80, 108, DT_BF16, 24, 768, 768, 128, 1, 0}, "attention_sm80_64x64"}, /* 144 large tiles: too few */
        {{80, 108, DT_BF16, 32, 512, 512, 128, 1, 0}, "attention_sm80_64x64"},
        {{90, 132, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm90_128x128"}, /* 7 waves */
        {{90, 132, DT_BF16, 24, 1536, 1536, 128, 1, 0}, "attention_sm90_128x128"},
        {{90, 132, DT_BF16, 32, 512, 512, 128, 1, 0}, "attention_sm90_128x128"}, /* 128 tiles */
        {{90, 132, DT_BF16, 24, 704, 704, 128, 1, 0},
         "attention_sm90_64x128"}, /* 144 large tiles: two waves */
        {{90, 132, DT_BF16, 24, 256, 256, 128, 1, 0}, "attention_sm90_128x128"}, /* 48 large tiles: halves */
        {{90, 132, DT_BF16, 24, 4608, 4608, 128, 0, 0}, "attention_simple_bf16"},
        {{103, 148, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_128x48"},
        {{100, 148, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_128x48"},
        {{86, 84, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_64x64"},
        {{89, 128, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_64x64"},
        {{120, 170, DT_BF16, 24, 4608, 4608, 128, 1, 0}, "attention_sm80_64x64"},
        {{89, 128, DT_BF16, 1, 16384, 16384, 512, 1, 0}, "attention_wide_sm80"},
        {{90, 132, DT_BF16, 1, 4096, 4096, 384, 1, 0}, "attention_wide_sm80"},
        {{80, 108, DT_BF16, 24, 4608, 4608, 128, 0, 0}, "attention_simple_bf16"},
        {{80, 108, DT_BF16, 2, 35, 35, 22, 1, 0}, "attention_simple_bf16"},
        {{90, 132, DT_BF16, 24, 4608, 4608, 128, 1, 1}, "attention_sm90_128x128"},
        {{90, 132, DT_BF16, 24, 704, 704, 128, 1, 1}, "attention_sm90_64x128"},
        {{89, 128, DT_BF16, 24, 4608, 4608, 128, 1, 1}, "attention_e4m3_sm89_64x64"},
        {{120, 170, DT_BF16, 24, 4608, 4608, 128, 1, 1}, "attention_e4m3_sm89_64x64"},
        {{100, 148, DT_BF16, 24, 4608, 4608, 128, 1, 1}, "attention_e4m3_sm89_128x48"},
        {{90, 132, DT_F32, 24, 4608, 4608, 128, 1, 0}, "attention_simple_f32"},
    };
    for (size_t i = 0; i < sizeof picks / sizeof *picks; i++) {
        const struct attention_variant *v;
        OK(attention_pick(&picks[i].shape, NULL, &v, &err));
        cr_expect(!strcmp(v->name, picks[i].kernel), "row %zu: %s", i, v->name);
    }
    const struct attention_variant *v;
    OK(attention_pick(&picks[0].shape, "attention_sm80_64x64", &v, &err));
    cr_assert(v == attention_variant(3) && attention_variant(-1) == NULL && attention_variant(9) == NULL);
    cr_assert(attention_blocks(v, &picks[0].shape) == 72);
    static const struct {
        int heads, queries, whole, halves;
    } cuts[] = {{12, 4608, 396, 72}, /* one of two cards: 3 rounds and 36 blocks */
                {24, 4608, 864, 0},  /* 6 rounds and 72 blocks: more than half of a round */
                {24, 1536, 264, 48}, {32, 512, 128, 0}, {1, 130, 0, 4}, {11, 1536, 132, 0}};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const struct attention_shape s = {90, 132, DT_BF16, cuts[i].heads, cuts[i].queries, 4608, 128, 1, 0};
        const struct attention_cut cut = attention_cut(attention_variant(0), &s),
                                   small = attention_cut(attention_variant(1), &s);
        cr_expect(cut.whole == cuts[i].whole && cut.halves == cuts[i].halves, "row %zu", i);
        cr_expect(small.halves == 0 && small.whole == (int64_t)cuts[i].heads * ((cuts[i].queries + 63) / 64));
    }
    FAILS(attention_pick(&picks[0].shape, "attention_sm81", &v, &err), KLEIN_E_INPUT, "no such kernel");
    FAILS(attention_pick(&picks[sizeof picks / sizeof *picks - 1].shape, "attention_sm80_64x64", &v, &err),
          KLEIN_E_UNSUPPORTED, "heads of 128");
    FAILS(attention_pick(&picks[0].shape, "attention_sm90_128x128", &v, &err), KLEIN_E_UNSUPPORTED, "sm_80");
    FAILS(attention_pick(&(struct attention_shape){80, 108, DT_BF16, 1, 9, 9, 576, 1, 0}, NULL, &v, &err),
          KLEIN_E_UNSUPPORTED, "heads of 576");
    FAILS(
        attention_pick(&(struct attention_shape){86, 128, DT_BF16, 24, 256, 256, 128, 1, 1}, NULL, &v, &err),
        KLEIN_E_UNSUPPORTED, "BF16 to F8_E4M3");
}

Test(kernels_attention, refusals)
{
    struct gpu_device *d = open_chip("sm_80", 0, SOFTGPU_LATE, 0);
    void *p = d->base.alloc(&d->base, 4096);
    struct tensor t = tensor_of(p, DT_BF16, 2, HD), far = t;
    struct attention_args good = {
        .q = t, .k = t, .v = t, .o = t, .heads = 1, .kv_heads = 1, .head_dim = HD, .scale = 1};
    struct attention_args bad = good;
    bad.scale = 0;
    FAILS(attention_launch(d->gpu, &bad, &err), KLEIN_E_UNSUPPORTED, "scale 0");
    bad.scale = (float)NAN;
    FAILS(attention_launch(d->gpu, &bad, &err), KLEIN_E_UNSUPPORTED, "scale");
    bad = good;
    bad.v.ptr = NULL;
    FAILS(attention_launch(d->gpu, &bad, &err), KLEIN_E_INTERNAL, "operand v");
    far.ld = (int64_t)1 << 31;
    bad = good;
    bad.k = far;
    FAILS(attention_launch(d->gpu, &bad, &err), KLEIN_E_UNSUPPORTED, "rows of k");
    bad = good;
    bad.heads = 70000;
    FAILS(attention_launch(d->gpu, &bad, &err), KLEIN_E_UNSUPPORTED, "70000 heads");
    setenv("KLEIN_ATTENTION", "flash9", 1);
    FAILS(attention_launch(d->gpu, &good, &err), KLEIN_E_INPUT, "flash9");
    gpu_free(d->gpu, p);
    device_close(&d->base);
}
