/* Op linear with quantised weights on the soft GPU against ref on what the quantised numbers stand for; what it refuses. Networks:
 * test_fp8.c. The e4m3 kernels by themselves: test_kernels_linear.c, test_kernels_gemm_sm90.c. */
#include "support/judge.h"
#include "support/support.h"

#include "../base/hash.h"
#include "../kernels/cuda/cuda.h"
#include "../kernels/gemm/linear_launch.h"
#include "../kernels/gemm/quantise.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

enum { M = 150, K = 208, COLS = 136, HEADS = 2, HD = 128, KEPT = 128 };

/* Two devices and what a call has on them; `host` is what ref computes with. */
struct bench {
    struct device *dev, *ref;
    void *on_device[KEPT], *on_host[KEPT];
    int devices, hosts;
    uint64_t seed;
};

static struct bench bench_open(const char *chip, const char *seed, const char *async)
{
    struct bench b = {.seed = 1};
    struct softgpu_config c;
    setenv("KLEIN_SOFT_SEED", seed, 1);
    setenv("KLEIN_SOFT_ASYNC", async, 1);
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", chip);
    c.check_races = c.count_accesses = 1;
    cr_assert(softgpu_configure(&c));
    OK(device_open("soft", &(struct device_options){0}, &b.dev, &err));
    OK(device_open("ref", &(struct device_options){.threads = 1}, &b.ref, &err));
    return b;
}

static void forget(struct bench *b)
{
    while (b->devices) b->dev->free(b->dev, b->on_device[--b->devices], 0);
    while (b->hosts) free(b->on_host[--b->hosts]);
}

static void bench_close(struct bench *b)
{
    forget(b);
    device_close(b->dev);
    device_close(b->ref);
}

static struct tensor on_host(struct bench *b, enum dtype type, int rows, int cols)
{
    void *p = malloc((size_t)rows * (size_t)cols * dtype_size(type));
    cr_assert(p && b->hosts < KEPT);
    b->on_host[b->hosts++] = p;
    return tensor_of(p, type, rows, cols);
}

static size_t bytes_of(struct tensor t)
{
    return (size_t)t.rows * (size_t)t.cols * dtype_size(t.dtype);
}

/* A copy of t on the device; memory of 0xff, NaN, if t has none. */
static struct tensor on_device(struct bench *b, struct tensor t)
{
    struct tensor d = t;
    d.ptr = b->dev->alloc(b->dev, bytes_of(t));
    cr_assert(d.ptr && b->devices < KEPT);
    b->on_device[b->devices++] = d.ptr;
    void *from = t.ptr ? t.ptr : memset(malloc(bytes_of(t)), 0xff, bytes_of(t));
    OK(b->dev->upload(b->dev, d.ptr, from, bytes_of(t), &err));
    if (!t.ptr) free(from);
    return d;
}

static struct tensor from_device(struct bench *b, struct tensor d)
{
    struct tensor t = on_host(b, d.dtype, d.rows, d.cols);
    OK(b->dev->download(b->dev, t.ptr, d.ptr, bytes_of(t), &err));
    return t;
}

static float draw(uint64_t *state) /* most near 0, some large */
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    const float f = (float)(*state >> 40) * 0x1p-23f - 1;
    return f * f * f;
}

static struct tensor numbers(struct bench *b, enum dtype type, int rows, int cols, float about)
{
    struct tensor t = on_host(b, type, rows, cols);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) tensor_set(t, r, c, about + draw(&b->seed));
    return t;
}

/* A quantised matrix, with the scale, on the host. */
static struct tensor quantised_from_device(struct bench *b, struct tensor d)
{
    struct tensor t = from_device(b, d), scale = from_device(b, tensor_of(d.scale, DT_F32, 1, d.rows));
    t.scale = scale.ptr;
    return t;
}

/* x that the kernels will see, by the numbers that it stands for; and as it is on the device. */
static struct tensor quantised_numbers(struct bench *b, struct tensor x, struct tensor *quantised)
{
    struct tensor q = on_device(b, tensor_of(NULL, DT_F8E4M3, x.rows, x.cols)), f,
                  scale = on_device(b, tensor_of(NULL, DT_F32, 1, x.rows));
    OK(quantise_rows(gpu_of(b->dev), q, scale, x, &err));
    q.scale = scale.ptr;
    *quantised = q;
    q = quantised_from_device(b, q);
    f = on_host(b, DT_F32, x.rows, x.cols);
    for (int r = 0; r < f.rows; r++)
        for (int c = 0; c < f.cols; c++) tensor_set(f, r, c, tensor_get(q, r, c) * q.scale[r]);
    return f;
}

/* Weights of `parts` unequal parts, as the engine places them. */
static void weights(struct bench *b, int rows, int k, int parts, struct weight *device, struct weight *host)
{
    static const enum dtype types[] = {DT_BF16, DT_F32};
    device->parts = host->parts = parts;
    for (int i = 0, left = rows; i < parts; i++) {
        int n = i + 1 < parts ? rows / parts / HD * HD + (rows / parts < HD ? 40 : 0) : left;
        struct tensor t = numbers(b, types[b->hosts % 2], n, k, 0), q = t;
        OK(b->dev->place(b->dev, WEIGHT_MATRIX_E4M3, DT_BF16, &q, &err));
        cr_assert(q.dtype == DT_F8E4M3 && q.scale && q.rows == n && q.cols == k);
        device->part[i] = q;
        q = host->part[i] = quantised_from_device(b, q);
        for (int r = 0; r < n; r++) {
            float largest = 0;
            for (int c = 0; c < k; c++) largest = fmaxf(largest, fabsf(tensor_get(t, r, c)));
            cr_assert(fabsf(q.scale[r] * 448 / largest - 1) < 0x1p-8f, "row %d: scale %g, largest %g", r,
                      (double)q.scale[r], (double)largest);
        }
        left -= n;
    }
}

struct form {
    const char *name;
    enum linear_epilogue epilogue;
    enum rope_pairs pairs;
    int split, parts, bias, y_f32, mlp;
};
static const struct form forms[] = {
    {"plain", LINEAR_PLAIN, 0, 0, 1, 0, 0, 0},
    {"plain f32, bias, split, parts", LINEAR_PLAIN, 0, 60, 2, 1, 1, 0},
    {"residual, gate, bias, split", LINEAR_RESIDUAL, 0, 60, 1, 1, 0, 0},
    {"residual, parts", LINEAR_RESIDUAL, 0, 0, 3, 0, 0, 0},
    {"swiglu, split", LINEAR_SWIGLU, 0, 22, 1, 0, 0, 0},
    {"swiglu, parts", LINEAR_SWIGLU, 0, 0, 2, 0, 0, 0},
    {"qkv, split, parts", LINEAR_QKV, ROPE_INTERLEAVED, 60, 3, 0, 0, 0},
    {"qkv and mlp", LINEAR_QKV, ROPE_HALF, 0, 1, 0, 0, 1},
};
enum { FORMS = sizeof forms / sizeof *forms, OUTPUTS = 4 };

static int weight_rows_of(const struct form *f)
{
    return f->epilogue == LINEAR_QKV      ? 3 * HEADS * HD + f->mlp * 2 * COLS
           : f->epilogue == LINEAR_SWIGLU ? 2 * COLS
                                          : COLS;
}

/* An output: F32 on the host, of `type` and full of NaN on the device. */
static void output(struct bench *b, enum dtype type, int cols, struct tensor *device, struct tensor *host)
{
    *device = on_device(b, tensor_of(NULL, type, M, cols));
    *host = on_host(b, DT_F32, M, cols);
}

static void both(struct bench *b, struct tensor t, struct tensor *device, struct tensor *host)
{
    *device = on_device(b, t);
    *host = t;
}

static void add_group(struct bench *b, const struct form *f, int g, struct linear_args *d,
                      struct linear_args *h)
{
    struct linear_group *dg = &d->group[g], *hg = &h->group[g];
    weights(b, weight_rows_of(f), K, f->parts, &dg->w, &hg->w);
    if (f->bias) both(b, numbers(b, DT_F32, 1, COLS, 0), &dg->bias, &hg->bias);
    if (f->bias && f->epilogue == LINEAR_RESIDUAL)
        both(b, numbers(b, DT_F32, 1, COLS, 1), &dg->gate, &hg->gate);
    if (f->epilogue != LINEAR_QKV) return;
    both(b, numbers(b, DT_F32, 1, HD, 1), &dg->q_norm, &hg->q_norm);
    both(b, numbers(b, DT_F32, 1, HD, 1), &dg->k_norm, &hg->k_norm);
}

/* Operands of both devices; returns how many outputs there are. */
static int make_call(struct bench *b, const struct form *f, struct linear_args *d, struct linear_args *h,
                     struct tensor *x_e4m3)
{
    *d = *h = (struct linear_args){.split = f->split, .epilogue = f->epilogue};
    d->x = on_device(b, numbers(b, DT_BF16, M, K, 0));
    h->x = quantised_numbers(b, d->x, x_e4m3);
    for (int g = 0; g < (f->split ? 2 : 1); g++) add_group(b, f, g, d, h);
    if (f->epilogue != LINEAR_QKV) {
        output(b, f->y_f32 ? DT_F32 : DT_BF16, COLS, &d->y, &h->y);
        if (f->epilogue == LINEAR_RESIDUAL)
            both(b, numbers(b, DT_BF16, M, COLS, 0), &d->residual, &h->residual);
        return 1;
    }
    output(b, DT_BF16, HEADS * HD, &d->qkv.q, &h->qkv.q);
    output(b, DT_BF16, HEADS * HD, &d->qkv.k, &h->qkv.k);
    output(b, DT_BF16, HEADS * HD, &d->qkv.v, &h->qkv.v);
    if (f->mlp) output(b, DT_BF16, COLS, &d->qkv.mlp, &h->qkv.mlp);
    both(b, numbers(b, DT_F32, M, HD / 2, 0), &d->qkv.cos, &h->qkv.cos);
    both(b, numbers(b, DT_F32, M, HD / 2, 0), &d->qkv.sin, &h->qkv.sin);
    d->qkv.heads = d->qkv.kv_heads = h->qkv.heads = h->qkv.kv_heads = HEADS;
    d->qkv.head_dim = h->qkv.head_dim = HD;
    d->qkv.pairs = h->qkv.pairs = f->pairs;
    d->qkv.eps = h->qkv.eps = 1e-6f;
    return f->mlp ? 4 : 3;
}

static struct tensor output_of(const struct linear_args *a, int i)
{
    const struct tensor qkv[] = {a->qkv.q, a->qkv.k, a->qkv.v, a->qkv.mlp};
    return a->epilogue == LINEAR_QKV ? qkv[i] : a->y;
}

static uint64_t hash_of(struct bench *b, const struct linear_args *a, int outputs)
{
    uint64_t hash = 0;
    for (int i = 0; i < outputs; i++) {
        struct tensor y = from_device(b, output_of(a, i));
        hash = hash * 31 + fnv1a(y.ptr, bytes_of(y));
    }
    return hash;
}

/* One rounding to bf16 is at most 2^-9 of the result; sums of f32 and the approximations of exp2 and rsqrt are far finer. */
static uint64_t check_form(struct bench *b, const struct form *f)
{
    struct linear_args d, h;
    struct tensor x;
    uint64_t hash = 0;
    int outputs = make_call(b, f, &d, &h, &x);
    OK(ops_check_linear(&d, NULL, &err));
    OK(b->dev->ops->linear(b->dev, &d, &err));
    OK(b->ref->ops->linear(b->ref, &h, &err));
    for (int i = 0; i < outputs; i++) {
        struct tensor y = from_device(b, output_of(&d, i));
        double l2 = relative_l2(y, output_of(&h, i)), limit = y.dtype == DT_F32 ? 1e-5 : 0x1.03p-9;
        cr_assert(l2 <= limit, "%s: output %d: relative L2 %g, allowed %g", f->name, i, l2, limit);
        hash = hash * 31 + fnv1a(y.ptr, bytes_of(y));
    }
    /* the same with scratch memory for a tile of rows, then for a few */
    static const int bands[] = {128, 21};
    void *scratch = on_device(b, tensor_of(NULL, DT_U8, 128, K + 4)).ptr;
    for (int band = 0; band < 2 && f->epilogue != LINEAR_RESIDUAL; band++) {
        OK(linear_launch(gpu_of(b->dev), &d, scratch, (size_t)bands[band] * (K + 4), &err));
        cr_assert(hash_of(b, &d, outputs) == hash, "%s: bands of %d rows give other bytes", f->name,
                  bands[band]);
    }
    d.x = x;
    cr_assert(linear_scratch(&d) == 0);
    OK(ops_check_linear(&d, NULL, &err));
    OK(linear_launch(gpu_of(b->dev), &d, NULL, 0, &err));
    cr_assert(hash_of(b, &d, outputs) == hash, "%s: x that comes quantised gives other bytes", f->name);
    forget(b);
    return hash;
}

/* A hash of all results. */
static uint64_t check_forms(const char *chip, const char *seed, const char *async)
{
    struct bench b = bench_open(chip, seed, async);
    uint64_t hash = 0;
    for (int i = 0; i < FORMS; i++) hash = hash * 31 + check_form(&b, &forms[i]);
    bench_close(&b);
    return hash;
}

static void check_chip(const char *chip)
{
    const uint64_t first = check_forms(chip, "0", "late");
    if (SANITIZED) return; /* one order: slow */
    cr_assert(check_forms(chip, "5", "random") == first);
    cr_assert(check_forms(chip, "9", "now") == first);
}

Test(fp8_linear, sm_89)
{
    check_chip("sm_89");
}

Test(fp8_linear, sm_90a)
{
    check_chip("sm_90a");
}

/* ---- scales per 128 columns ----------------------------------------------------------------------------------------------- */

enum { F = 272 }; /* columns: two groups and a piece */

/* A result in e4m3 on the device, full of NaN. */
static struct tensor groups_on_device(struct bench *b, int cols)
{
    struct tensor t = on_device(b, tensor_of(NULL, DT_F8E4M3, M, cols));
    t.ldscale = M;
    t.scale = on_device(b, tensor_of(NULL, DT_F32, tensor_groups(t), M)).ptr;
    return t;
}

/* What d stands for, and that each group's largest number is e4m3's. */
static struct tensor read_groups(struct bench *b, struct tensor d)
{
    struct tensor t = from_device(b, d), f = on_host(b, DT_F32, M, d.cols);
    t.scale = from_device(b, tensor_of(d.scale, DT_F32, tensor_groups(d), M)).ptr;
    t.ldscale = M;
    for (int r = 0; r < M; r++) {
        float largest[(F + 127) / 128] = {0};
        for (int c = 0; c < d.cols; c++) {
            tensor_set(f, r, c, tensor_get(t, r, c) * tensor_scale(t, r, c));
            largest[c / 128] = fmaxf(largest[c / 128], fabsf(tensor_get(t, r, c)));
        }
        for (int g = 0; g < tensor_groups(d); g++) cr_assert(largest[g] == 448, "row %d, group %d", r, g);
    }
    return f;
}

/* SwiGLU to e4m3, its product with a residual; attention to e4m3: by what ref makes of the same without quantising. 16 numbers per
 * power of two are at most 1/32 apart from what they stand for, 1/50 on average. Returns a hash of all bytes. */
static uint64_t check_groups(const char *chip, const char *seed, const char *async)
{
    struct bench b = bench_open(chip, seed, async);
    softgpu_reset_counters();
    struct linear_args up = {.split = 22, .epilogue = LINEAR_SWIGLU}, down = {.epilogue = LINEAR_RESIDUAL};
    struct linear_args up_host = up, down_host = down;
    struct tensor x = on_device(&b, numbers(&b, DT_BF16, M, K, 0));
    up_host.x = quantised_numbers(&b, x, &up.x);
    for (int g = 0; g < 2; g++) weights(&b, 2 * F, K, 1, &up.group[g].w, &up_host.group[g].w);
    up.y = groups_on_device(&b, F);
    up_host.y = on_host(&b, DT_F32, M, F);
    weights(&b, COLS, F, 1, &down.group[0].w, &down_host.group[0].w);
    output(&b, DT_BF16, COLS, &down.y, &down_host.y);
    both(&b, numbers(&b, DT_BF16, M, COLS, 0), &down.residual, &down_host.residual);
    down.x = up.y;
    OK(ops_check_linear(&up, NULL, &err));
    OK(ops_check_linear(&down, NULL, &err));
    OK(b.dev->ops->linear(b.dev, &up, &err));
    OK(b.dev->ops->linear(b.dev, &down, &err));
    OK(b.ref->ops->linear(b.ref, &up_host, &err));
    down_host.x = read_groups(&b, up.y);
    OK(b.ref->ops->linear(b.ref, &down_host, &err));
    double l2 = relative_l2(down_host.x, up_host.y);
    cr_assert(l2 <= 0.03 && l2 > 0.005, "swiglu: relative L2 %g", l2);
    l2 = relative_l2(from_device(&b, down.y), down_host.y);
    cr_assert(l2 <= 0x1.03p-9, "residual: relative L2 %g", l2);

    struct attention_args a = {.heads = 2, .kv_heads = 2, .head_dim = HD, .scale = 1}, a_host = a;
    both(&b, numbers(&b, DT_BF16, M, 2 * HD, 0), &a.q, &a_host.q);
    both(&b, numbers(&b, DT_BF16, M, 2 * HD, 0), &a.k, &a_host.k);
    both(&b, numbers(&b, DT_BF16, M, 2 * HD, 0), &a.v, &a_host.v);
    a.o = groups_on_device(&b, 2 * HD);
    a_host.o = on_host(&b, DT_BF16, M, 2 * HD);
    OK(ops_check_attention(&a, NULL, &err));
    OK(b.dev->ops->attention(b.dev, &a, &err));
    OK(b.ref->ops->attention(b.ref, &a_host, &err));
    struct tensor o = read_groups(&b, a.o);
    l2 = relative_l2(o, a_host.o);
    cr_assert(l2 <= 0.03 && l2 > 0.005, "attention: relative L2 %g", l2);

    struct softgpu_counters cost;
    softgpu_read_counters(&cost);
    cr_assert(cost.shared_wavefronts > 0 && cost.bank_conflicts == 0, "%d bank conflicts",
              (int)cost.bank_conflicts);

    uint64_t hash = fnv1a(o.ptr, bytes_of(o));
    hash = hash * 31 + fnv1a(down_host.x.ptr, bytes_of(down_host.x));
    struct tensor y = from_device(&b, down.y);
    hash = hash * 31 + fnv1a(y.ptr, bytes_of(y));
    bench_close(&b);
    return hash;
}

static uint64_t check_groups_in_every_order(const char *chip)
{
    const uint64_t first = check_groups(chip, "0", "late");
    if (SANITIZED) return first; /* one order: slow */
    cr_assert(check_groups(chip, "5", "random") == first);
    cr_assert(check_groups(chip, "9", "now") == first);
    return first;
}

Test(fp8_linear, groups_sm_90a)
{
    check_groups_in_every_order("sm_90a");
}

/* Other tiles on a chip without the instruction, the same sums. */
Test(fp8_linear, groups_sm_89)
{
    cr_assert(check_groups_in_every_order("sm_89") == check_groups("sm_100a", "3", "random"));
}

/* ---- results of every kind with scales per 128 columns -------------------------------------------------------------------- */

/* Kernels by what they have, on Hopper and on chips with mma.sync. */
enum tiles { LINEAR_TILES, GROUP_TILES, QKV_TILES };
static const char *const kernels_of[2][3][2] = {
    {{"gemm_to_e4m3_sm90_linear_128x128", "gemm_to_e4m3_sm90_linear_128x256"},
     {"gemm_to_e4m3_sm90_linear_groups_128x128"},
     {"gemm_to_e4m3_sm90_qkv_128x256"}},
    {{"gemm_to_e4m3_sm89_linear_128x128_s3"},
     {"gemm_to_e4m3_sm89_linear_groups_128x128_s3"},
     {"gemm_to_e4m3_sm89_qkv_64x256_s2"}}};

/* What a product has. Each of its kernels computes it, and then the one that the rule picks. */
struct to_e4m3 {
    const char *name;
    enum tiles tiles;
    enum linear_epilogue epilogue;
    enum rope_pairs pairs;
    int m, split, cols, k; /* cols: of y, or of mlp */
    int heads, kv_heads, parts;
    int bias, gate, x_groups, mlp_e4m3, v_bf16;
};
static const struct to_e4m3 to_e4m3[] = {
    {"one row", LINEAR_TILES, LINEAR_PLAIN, .m = 1, .cols = 128, .k = 208, .parts = 1},
    {"plain, bias, split", LINEAR_TILES, LINEAR_PLAIN, .m = 149, .split = 60, .cols = 400, .k = 144,
     .parts = 1, .bias = 1},
    {"plain, parts", LINEAR_TILES, LINEAR_PLAIN, .m = 33, .cols = 640, .k = 80, .parts = 2},
    {"residual, gate, bias, split", LINEAR_TILES, LINEAR_RESIDUAL, .m = 151, .split = 67, .cols = 640,
     .k = 208, .parts = 1, .bias = 1, .gate = 1},
    {"residual", LINEAR_TILES, LINEAR_RESIDUAL, .m = 1, .cols = 272, .k = 80, .parts = 1},
    {"groups, plain", GROUP_TILES, LINEAR_PLAIN, .m = 17, .cols = 256, .k = 208, .parts = 1, .x_groups = 1},
    {"groups, residual, gate, split", GROUP_TILES, LINEAR_RESIDUAL, .m = 141, .split = 5, .cols = 400,
     .k = 336, .parts = 1, .gate = 1, .x_groups = 1},
    {"qkv, split", QKV_TILES, LINEAR_QKV, ROPE_INTERLEAVED, .m = 139, .split = 60, .k = 208, .heads = 3,
     .kv_heads = 1, .parts = 1},
    {"qkv, one row", QKV_TILES, LINEAR_QKV, ROPE_HALF, .m = 1, .k = 80, .heads = 2, .kv_heads = 2,
     .parts = 3},
    {"qkv half, mlp", QKV_TILES, LINEAR_QKV, ROPE_HALF, .m = 67, .cols = 272, .k = 208, .heads = 1,
     .kv_heads = 1, .parts = 1, .mlp_e4m3 = 1},
    {"qk, v and mlp in bf16", QKV_TILES, LINEAR_QKV, ROPE_INTERLEAVED, .m = 35, .cols = 136, .k = 144,
     .heads = 2, .kv_heads = 2, .parts = 1, .v_bf16 = 1},
    {"kv", QKV_TILES, LINEAR_QKV, ROPE_HALF, .m = 21, .k = 144, .kv_heads = 3, .parts = 1},
};
enum { TO_E4M3 = sizeof to_e4m3 / sizeof *to_e4m3, SCALE_GAP = 5, CALLS = 3 };

/* A quantised matrix in the memory of the device (or in the host's, full of NaN): its scales' rows are apart. */
static struct tensor result_of(struct bench *b, int rows, int cols, int device)
{
    struct tensor t = tensor_of(NULL, DT_F8E4M3, rows, cols);
    t.ldscale = rows + SCALE_GAP;
    const int groups = tensor_groups(t);
    const struct tensor scale = tensor_of(NULL, DT_F32, groups, rows + SCALE_GAP);
    struct tensor r = device ? on_device(b, t) : on_host(b, DT_F8E4M3, rows, cols);
    r.ldscale = t.ldscale;
    r.scale = device ? on_device(b, scale).ptr : on_host(b, DT_F32, groups, rows + SCALE_GAP).ptr;
    return r;
}

/* x with scales per 128 columns, in both memories. */
static struct tensor x_by_groups(struct bench *b, int rows, int cols, struct tensor *device)
{
    struct tensor f = numbers(b, DT_F32, rows, cols, 0), t = result_of(b, rows, cols, 0);
    memset(t.scale, 0xff, sizeof(float) * (size_t)tensor_groups(t) * (size_t)t.ldscale);
    for (int r = 0; r < rows; r++)
        for (int from = 0; from < cols; from += TENSOR_GROUP) {
            const int end = cols < from + TENSOR_GROUP ? cols : from + TENSOR_GROUP;
            float largest = 0;
            for (int c = from; c < end; c++) largest = fmaxf(largest, fabsf(tensor_get(f, r, c)));
            t.scale[from / TENSOR_GROUP * t.ldscale + r] = largest / 448;
            for (int c = from; c < end; c++) tensor_set(t, r, c, tensor_get(f, r, c) * 448 / largest);
        }
    *device = on_device(b, t);
    device->scale = on_device(b, tensor_of(t.scale, DT_F32, tensor_groups(t), (int)t.ldscale)).ptr;
    return t;
}

/* The same call on the device, on ref, and on ref with results in F32. */
static int make_calls(struct bench *b, const struct to_e4m3 *f, struct linear_args a[CALLS])
{
    enum { DEVICE, QUANTISED, F32 };
    const int qkv = f->epilogue == LINEAR_QKV, m = f->m,
              n = qkv ? (f->heads + 2 * f->kv_heads) * HD + 2 * f->cols : f->cols;
    for (int i = 0; i < CALLS; i++)
        a[i] = (struct linear_args){
            .split = f->split,
            .epilogue = f->epilogue,
            .qkv = {
                .heads = f->heads, .kv_heads = f->kv_heads, .head_dim = HD, .pairs = f->pairs, .eps = 1e-6f}};
    if (f->x_groups) {
        a[QUANTISED].x = x_by_groups(b, m, f->k, &a[DEVICE].x);
    } else {
        quantised_numbers(b, on_device(b, numbers(b, DT_BF16, m, f->k, 0)), &a[DEVICE].x);
        a[QUANTISED].x = quantised_from_device(b, a[DEVICE].x);
    }
    for (int g = 0; g < (f->split ? 2 : 1); g++) {
        struct linear_group *d = &a[DEVICE].group[g], *q = &a[QUANTISED].group[g];
        weights(b, n, f->k, f->parts, &d->w, &q->w);
        if (f->bias) both(b, numbers(b, DT_F32, 1, n, 0), &d->bias, &q->bias);
        if (f->gate) both(b, numbers(b, DT_F32, 1, n, 1), &d->gate, &q->gate);
        if (qkv) both(b, numbers(b, DT_F32, 1, HD, 1), &d->q_norm, &q->q_norm);
        if (qkv) both(b, numbers(b, DT_F32, 1, HD, 1), &d->k_norm, &q->k_norm);
        a[F32].group[g] = *q;
    }
    if (f->epilogue == LINEAR_RESIDUAL)
        both(b, numbers(b, DT_BF16, m, n, 0), &a[DEVICE].residual, &a[QUANTISED].residual);
    if (qkv) both(b, numbers(b, DT_F32, m, HD / 2, 0), &a[DEVICE].qkv.cos, &a[QUANTISED].qkv.cos);
    if (qkv) both(b, numbers(b, DT_F32, m, HD / 2, 0), &a[DEVICE].qkv.sin, &a[QUANTISED].qkv.sin);
    a[F32].x = a[QUANTISED].x, a[F32].residual = a[QUANTISED].residual;
    a[F32].qkv.cos = a[QUANTISED].qkv.cos, a[F32].qkv.sin = a[QUANTISED].qkv.sin;
    return qkv ? 4 : 1;
}

/* Result i of a call, its columns, and whether it is quantised. */
static struct tensor *result(struct linear_args *a, const struct to_e4m3 *f, int i, int *cols, int *e4m3)
{
    struct tensor *const qkv[] = {&a->qkv.q, &a->qkv.k, &a->qkv.v, &a->qkv.mlp};
    const int all[] = {f->heads * HD, f->kv_heads * HD, f->kv_heads * HD, f->cols},
              quantised[] = {1, 1, !f->v_bf16, f->mlp_e4m3};
    *cols = f->epilogue == LINEAR_QKV ? all[i] : f->cols;
    *e4m3 = f->epilogue == LINEAR_QKV ? quantised[i] : 1;
    return f->epilogue == LINEAR_QKV ? qkv[i] : &a->y;
}

/* The device's result with its scales, on the host; between their rows there must still be what was there. */
static struct tensor read_result(struct bench *b, struct tensor d)
{
    struct tensor t = from_device(b, d);
    if (d.dtype != DT_F8E4M3) return t;
    t.ldscale = d.ldscale;
    t.scale = from_device(b, tensor_of(d.scale, DT_F32, tensor_groups(d), (int)d.ldscale)).ptr;
    for (int g = 0; g < tensor_groups(t); g++)
        for (int i = t.rows; i < t.ldscale; i++)
            cr_assert(f32_bits(t.scale[g * t.ldscale + i]) == ~0u, "group %d: scale %d", g, i);
    return t;
}

static struct tensor values_of(struct bench *b, struct tensor t)
{
    struct tensor f = on_host(b, DT_F32, t.rows, t.cols);
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) tensor_set(f, r, c, tensor_get(t, r, c) * tensor_scale(t, r, c));
    return f;
}

/* The device has ref's scales and ref's numbers, but for sums of f32 that fall on the other side of a rounding: 1 in 1000 by one step. */
static void check_against_ref(struct tensor y, struct tensor q, const char *name)
{
    int other = 0;
    for (int r = 0; r < y.rows; r++)
        for (int c = 0; c < y.cols; c++) {
            const float s = tensor_scale(y, r, c), t = tensor_scale(q, r, c), v = tensor_get(y, r, c),
                        w = tensor_get(q, r, c);
            cr_assert(fabsf(s / t - 1) < 0x1p-17f, "%s: scale of [%d, %d] is %g, not %g", name, r, c,
                      (double)s, (double)t);
            other += v != w;
            cr_assert(fabsf(v - w) <= fmaxf(fabsf(w) / 8, 0x1p-9f), "%s: [%d, %d] is %g, not %g", name, r, c,
                      (double)v, (double)w);
        }
    cr_assert(other <= 1 + y.rows * y.cols / 1000, "%s: %d of %d differ", name, other, y.rows * y.cols);
}

static uint64_t hash_of_results(struct bench *b, struct linear_args *a, const struct to_e4m3 *f, int outputs)
{
    uint64_t hash = 0;
    for (int i = 0, cols, e4m3; i < outputs; i++) {
        const struct tensor *d = result(a, f, i, &cols, &e4m3);
        if (!cols) continue;
        const struct tensor y = read_result(b, *d);
        hash = hash * 31 + fnv1a(y.ptr, bytes_of(y));
        if (e4m3)
            hash = hash * 31 + fnv1a(y.scale, sizeof(float) * (size_t)tensor_groups(y) * (size_t)y.ldscale);
    }
    return hash;
}

/* By what ref makes with and without quantising. 16 numbers per power of two are at most 1/32 apart from what they stand for, 1/50 on
 * average. */
static uint64_t check_to_e4m3(struct bench *b, const struct to_e4m3 *f)
{
    const char *const *kernels = kernels_of[gpu_of(b->dev)->arch != 90][f->tiles];
    struct linear_args a[CALLS];
    const int outputs = make_calls(b, f, a);
    uint64_t hash = 0;
    for (int i = 0, cols, e4m3; i < outputs; i++)
        for (int call = 0; call < CALLS; call++) {
            struct tensor *t = result(&a[call], f, i, &cols, &e4m3);
            if (!cols) continue;
            if (call == 0)
                *t = e4m3 ? result_of(b, f->m, cols, 1) : on_device(b, tensor_of(NULL, DT_BF16, f->m, cols));
            else
                *t = call == 1 && e4m3 ? result_of(b, f->m, cols, 0) : on_host(b, DT_F32, f->m, cols);
            if (call == 1 && !e4m3) *t = on_host(b, DT_BF16, f->m, cols);
        }
    OK(ops_check_linear(&a[0], NULL, &err));
    OK(ops_check_linear(&a[1], NULL, &err));
    OK(b->ref->ops->linear(b->ref, &a[1], &err));
    OK(b->ref->ops->linear(b->ref, &a[2], &err));
    for (int k = 0; k < 2 && kernels[k]; k++) {
        setenv("KLEIN_GEMM", kernels[k], 1);
        OK(b->dev->ops->linear(b->dev, &a[0], &err));
        unsetenv("KLEIN_GEMM");
        const uint64_t of_kernel = hash_of_results(b, &a[0], f, outputs);
        cr_assert(!k || of_kernel == hash, "%s: %s gives other bytes", f->name, kernels[k]);
        hash = of_kernel;
    }
    OK(b->dev->ops->linear(b->dev, &a[0], &err));
    cr_assert(hash_of_results(b, &a[0], f, outputs) == hash, "%s: other bytes the second time", f->name);
    for (int i = 0, cols, e4m3; i < outputs; i++) {
        const struct tensor *d = result(&a[0], f, i, &cols, &e4m3);
        if (!cols) continue;
        const struct tensor y = read_result(b, *d), truth = *result(&a[2], f, i, &cols, &e4m3);
        const double l2 = relative_l2(values_of(b, y), truth), most = e4m3 ? 0.03 : 0x1.03p-9;
        cr_assert(l2 <= most && l2 > most / 6, "%s: output %d: relative L2 %g", f->name, i, l2);
        if (e4m3) check_against_ref(y, *result(&a[1], f, i, &cols, &e4m3), f->name);
    }
    forget(b);
    return hash;
}

static uint64_t check_all_to_e4m3(const char *chip, const char *seed, const char *async,
                                  const char *multiprocessors)
{
    setenv("KLEIN_SOFT_SMS", multiprocessors, 1);
    struct bench b = bench_open(chip, seed, async);
    struct softgpu_counters cost;
    uint64_t hash = 0;
    softgpu_reset_counters();
    for (int i = 0; i < TO_E4M3; i++) hash = hash * 31 + check_to_e4m3(&b, &to_e4m3[i]);
    softgpu_read_counters(&cost);
    cr_assert(cost.shared_wavefronts > 0 && cost.bank_conflicts == 0, "%d bank conflicts",
              (int)cost.bank_conflicts);
    bench_close(&b);
    return hash;
}

Test(fp8_linear, results_sm_90a)
{
    const uint64_t first = check_all_to_e4m3("sm_90a", "0", "late", "132");
    /* others are slow there */
    if (SANITIZED) return;
    cr_assert(check_all_to_e4m3("sm_90a", "5", "random", "2") == first); /* blocks make several tiles */
    cr_assert(check_all_to_e4m3("sm_90a", "9", "now", "1") == first);
    cr_assert(check_all_to_e4m3("sm_90a", "2", "late", "1") == first);
}

Test(fp8_linear, results_sm_89)
{
    const uint64_t first = check_all_to_e4m3("sm_89", "0", "late", "128");
    /* others are slow there */
    if (SANITIZED) return;
    cr_assert(check_all_to_e4m3("sm_120a", "5", "random", "2") == first);
    cr_assert(check_all_to_e4m3("sm_89", "9", "now", "1") == first);
}

/* x that comes in BF16 is quantised first, in bands of rows if there is little scratch memory: the same bytes. */
Test(fp8_linear, results_of_bf16)
{
    struct bench b = bench_open("sm_90a", "3", "random");
    const struct tensor x = on_device(&b, numbers(&b, DT_BF16, M, K, 0));
    struct linear_args a = {.split = 61, .epilogue = LINEAR_RESIDUAL};
    struct weight host;
    for (int g = 0; g < 2; g++) weights(&b, 384, K, 1, &a.group[g].w, &host);
    a.residual = on_device(&b, numbers(&b, DT_BF16, M, 384, 0));
    a.y = groups_on_device(&b, 384);
    void *scratch = on_device(&b, tensor_of(NULL, DT_U8, M, K + 4)).ptr;
    static const int bands[] = {M, 128, 21};
    uint64_t first = 0;
    quantised_numbers(&b, x, &a.x);
    for (int i = -1; i < 3; i++) {
        OK(ops_check_linear(&a, NULL, &err));
        OK(linear_launch(gpu_of(b.dev), &a, scratch, (size_t)(i < 0 ? 0 : bands[i]) * (K + 4), &err));
        const struct tensor y = read_groups(&b, a.y);
        const uint64_t hash = fnv1a(y.ptr, bytes_of(y));
        if (i < 0) first = hash;
        cr_assert(hash == first, "band %d", i);
        a.x = x;
    }
    bench_close(&b);
}

/* What no kernel makes in e4m3; kernels: a linear and a qkv one for other results. */
static void check_results_refused(const char *chip, const char *kernels)
{
    struct bench b = bench_open(chip, "0", "late");
    struct linear_args plain, qkv, a, h;
    struct tensor x, wide = groups_on_device(&b, 2 * HD);
    struct gpu *g = gpu_of(b.dev);
    make_call(&b, &forms[0], &plain, &h, &x);
    plain.x = x, plain.y = groups_on_device(&b, HD), plain.group[0].w.part[0].rows = HD;
    make_call(&b, &forms[6], &qkv, &h, &x);
    qkv.x = x, qkv.qkv.k = wide;
    OK(ops_check_linear(&plain, NULL, &err));
    OK(linear_launch(g, &plain, NULL, 0, &err));
    OK(ops_check_linear(&qkv, NULL, &err));
    OK(linear_launch(g, &qkv, NULL, 0, &err));
    a = plain, a.y = groups_on_device(&b, COLS), a.group[0].w.part[0].rows = COLS;
    OK(ops_check_linear(&a, NULL, &err));
    FAILS(linear_launch(g, &a, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "aligned 16 bytes");
    a = plain, a.epilogue = LINEAR_SILU;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "LINEAR_SILU");
    FAILS(linear_launch(g, &a, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "plain results in F8_E4M3");
    a = plain, a.y.ldscale = M - 1;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "linear: y is F8_E4M3");
    a = plain, a.epilogue = LINEAR_RESIDUAL, a.residual = a.y;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "residual cannot be F8_E4M3");
    a = plain, a.x = on_device(&b, tensor_of(NULL, DT_BF16, M, K));
    a.group[0].w = weight_of(on_device(&b, tensor_of(NULL, DT_BF16, HD, K)));
    OK(ops_check_linear(&a, NULL, &err));
    FAILS(linear_launch(g, &a, on_device(&b, tensor_of(NULL, DT_U8, 1024, 1024)).ptr, 1 << 20, &err),
          KLEIN_E_UNSUPPORTED, "need weights in F8_E4M3");
    setenv("KLEIN_GEMM", kernels, 1);
    FAILS(linear_launch(g, &plain, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "plain results in F8_E4M3");
    FAILS(linear_launch(g, &qkv, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "QKV or SWIGLU results in F8_E4M3");
    unsetenv("KLEIN_GEMM");
    a = qkv, a.qkv.head_dim = 64, a.qkv.heads = a.qkv.kv_heads = 2 * HEADS;
    FAILS(linear_launch(g, &a, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "heads of 128");
    a = qkv, a.qkv.to.size = 1;
    FAILS(linear_launch(g, &a, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "do not go to other devices");
    a = qkv, a.qkv.q.dtype = DT_F32;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "BF16 beside F32");
    a = plain, a.x.ldscale = M - 1;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "a->x.ldscale >= a->x.rows");
    bench_close(&b);
}

Test(fp8_linear, results_refused)
{
    check_results_refused("sm_90a", "gemm_linear_e4m3_sm90_128x256,gemm_qkv_e4m3_sm90_128x256");
    check_results_refused("sm_89", "gemm_sm89_linear_128x128_s3,gemm_sm89_qkv_128x256_s2");
}

/* A host device multiplies x as it is by what the weights stand for. */
Test(fp8_linear, on_the_processor)
{
    struct bench b = bench_open("sm_89", "0", "late");
    struct device *cpu;
    struct linear_args d, h;
    struct tensor x;
    OK(device_open("cpu", &(struct device_options){.threads = 1}, &cpu, &err));
    for (int i = 0; i < FORMS; i++) {
        int outputs = make_call(&b, &forms[i], &d, &h, &x);
        struct linear_args on_cpu = h;
        struct tensor *const to[] = {&on_cpu.y, &on_cpu.qkv.q, &on_cpu.qkv.k, &on_cpu.qkv.v, &on_cpu.qkv.mlp};
        for (int o = 0; o < 5; o++)
            if (to[o]->ptr) *to[o] = on_host(&b, DT_F32, to[o]->rows, to[o]->cols);
        OK(b.ref->ops->linear(b.ref, &h, &err));
        OK(cpu->ops->linear(cpu, &on_cpu, &err));
        on_cpu.x = x;
        FAILS(cpu->ops->linear(cpu, &on_cpu, &err), KLEIN_E_UNSUPPORTED, "linear: the cpu device");
        for (int o = 0; o < outputs; o++)
            cr_assert(relative_l2(output_of(&on_cpu, o), output_of(&h, o)) < 1e-5, "%s", forms[i].name);
        forget(&b);
    }
    device_close(cpu);
    bench_close(&b);
}

/* What op linear refuses, and that nothing takes the place of the kernels. */
Test(fp8_linear, refusals)
{
    struct bench b = bench_open("sm_89", "0", "late");
    struct linear_args d, h, a;
    struct tensor x;
    make_call(&b, &forms[1], &d, &h, &x);
    void *scratch = on_device(&b, tensor_of(NULL, DT_U8, 1, 4096)).ptr;
    a = d, a.epilogue = LINEAR_SILU;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "LINEAR_SILU");
    a = d, a.x = on_device(&b, h.x);
    FAILS(linear_launch(gpu_of(b.dev), &a, scratch, 4096, &err), KLEIN_E_UNSUPPORTED, "F8_E4M3 weights");
    a = d, a.x = x, a.x.scale = NULL;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "a->x.scale");
    a = d, a.x = x, a.x.ld = K + 8, a.x.rows = M / 2, a.split = 0;
    FAILS(linear_launch(gpu_of(b.dev), &a, NULL, 0, &err), KLEIN_E_UNSUPPORTED, "F8_E4M3 weights");
    a = d, a.group[1].w.part[1].scale = NULL;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "without scales");
    a = d, a.group[0].w.part[1].dtype = a.group[0].w.part[0].dtype = DT_BF16;
    a.group[0].w.part[1].scale = a.group[0].w.part[0].scale = NULL;
    FAILS(ops_check_linear(&a, NULL, &err), KLEIN_E_INTERNAL, "needs quantised == groups");
    FAILS(linear_launch(gpu_of(b.dev), &d, scratch, K + 3, &err), KLEIN_E_INTERNAL, "does not hold one row");
    a = d, a.x.ld = K + 4, a.x.rows = M / 2, a.split = 0;
    FAILS(linear_launch(gpu_of(b.dev), &a, scratch, 4096, &err), KLEIN_E_UNSUPPORTED, "F8_E4M3 weights");
    setenv("KLEIN_GEMM", "linear_simple", 1);
    FAILS(b.dev->ops->linear(b.dev, &d, &err), KLEIN_E_UNSUPPORTED,
          "no kernel of linear_simple takes F8_E4M3");
    setenv("KLEIN_GEMM", "gemm_sm80_linear_64x128_s2", 1);
    FAILS(b.dev->ops->linear(b.dev, &d, &err), KLEIN_E_UNSUPPORTED, "F8_E4M3");
    unsetenv("KLEIN_GEMM");
    OK(b.dev->ops->linear(b.dev, &d, &err));
    bench_close(&b);
}
