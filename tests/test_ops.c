#include "support/op_cases.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

/* Every op of every host backend over the list of cases. */

static struct device *open_device(const char *name, int threads)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(name, &(struct device_options){.threads = threads}, &dev, &err));
    return dev;
}

static const struct op_case *case_named(enum op_id op, const char *name)
{
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == op && !strcmp(op_cases[i].name, name)) return &op_cases[i];
    cr_assert(0, "no case %s %s", op_name(op), name);
    return NULL;
}

static void check_all(const char *device, enum dtype act, enum op_id op)
{
    struct device *dev = open_device(device, 0);
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == op && !op_cases[i].bench) op_case_check(&op_cases[i], act, dev);
    device_close(dev);
}

#define X(op, args)                                                                                          \
    Test(ops, op##_ref)                                                                                      \
    {                                                                                                        \
        check_all("ref", DT_BF16, OP_##op);                                                                  \
    }                                                                                                        \
    Test(ops, op##_cpu_f32)                                                                                  \
    {                                                                                                        \
        check_all("cpu", DT_F32, OP_##op);                                                                   \
    }                                                                                                        \
    Test(ops, op##_cpu_bf16)                                                                                 \
    {                                                                                                        \
        check_all("cpu", DT_BF16, OP_##op);                                                                  \
    }
KLEIN_OPS(X)
#undef X

/* The code for lesser processors. oneDNN reads the variable at its first use, and every test is its own process. */
static void check_isa(const char *isa, const char *name)
{
    setenv("ONEDNN_MAX_CPU_ISA", isa, 1);
    struct device *dev = open_device("cpu", 2);
    cr_assert(strstr(dev->description, name) || strstr(dev->description, "SSE"), "%s", dev->description);
    cr_assert(dev->act == DT_F32, "without bf16 products, f32 is faster");
    for (int i = 0; i < op_case_count; i++)
        if (!op_cases[i].bench) {
            op_case_check(&op_cases[i], DT_F32, dev);
            op_case_check(&op_cases[i], DT_BF16, dev);
        }
    device_close(dev);
}

Test(ops, cpu_without_bf16)
{
    check_isa("AVX512_CORE", "AVX");
}

Test(ops, cpu_with_avx2)
{
    check_isa("AVX2", "AVX2");
}

Test(ops, cpu_with_sse)
{
    check_isa("SSE41", "SSE2");
}

/* Products on AMX: emulated where there is none, with the packing of each kind of vectors. And where there is, what else multiplies bf16. */
static void check_products(const char *isa, const char *products)
{
    if (isa) setenv("ONEDNN_MAX_CPU_ISA", isa, 1);
    setenv("KLEIN_PRODUCTS", products, 1);
    struct device *dev = open_device("cpu", 2);
    for (int i = 0; i < op_case_count; i++)
        if (!op_cases[i].bench) op_case_check(&op_cases[i], DT_BF16, dev);
    device_close(dev);
}

Test(ops, amx)
{
    check_products(NULL, "amx");
}

Test(ops, amx_emulated_with_avx512)
{
    check_products("AVX512_CORE_BF16", "amx");
}

Test(ops, amx_emulated_with_avx2)
{
    check_products("AVX2", "amx");
}

Test(ops, amx_emulated_with_sse)
{
    check_products("SSE41", "amx");
}

/* oneDNN's products where the device by itself has ours, and bf16 widened. */
Test(ops, bf16_otherwise)
{
    struct device *dev = open_device("cpu", 1);
    int bf16 = dev->act == DT_BF16;
    device_close(dev);
    if (bf16) check_products(NULL, "bf16");
    check_products(NULL, "f32");
}

/* The output's bytes, appended to *bytes. */
static void append_output(const struct op_case *c, enum dtype act, struct device *dev, float **bytes,
                          size_t *count)
{
    struct klein_error err;
    struct op_call call;
    op_call_make(&call, c, act, act, dev);
    OK(op_call_run(&call, &err));
    struct tensor y;
    for (int i = 0; (y = op_call_output(&call, i)).ptr; i++) {
        size_t n = (size_t)y.rows * (size_t)y.cols;
        *bytes = realloc(*bytes, (*count + n) * sizeof **bytes);
        cr_assert(*bytes);
        memcpy(*bytes + *count, y.ptr, n * sizeof **bytes);
        *count += n;
        free(y.ptr);
    }
    op_call_free(&call);
}

static void check_threads(enum dtype act)
{
    struct device *dev[] = {open_device("cpu", 1), open_device("cpu", 2), open_device("cpu", 3)};
    for (int i = 0; i < op_case_count; i++) {
        if (op_cases[i].bench) continue;
        float *bytes[3] = {0};
        size_t count[3] = {0};
        for (int d = 0; d < 3; d++) append_output(&op_cases[i], act, dev[d], &bytes[d], &count[d]);
        for (int d = 1; d < 3; d++)
            cr_expect(count[d] == count[0] && !memcmp(bytes[d], bytes[0], count[0] * sizeof(float)),
                      "%s %s: %d threads give other bytes than one", op_name(op_cases[i].op),
                      op_cases[i].name, d + 1);
        for (int d = 0; d < 3; d++) free(bytes[d]);
    }
    for (int d = 0; d < 3; d++) device_close(dev[d]);
}

Test(ops, same_bytes_for_any_threads_f32)
{
    check_threads(DT_F32);
}

Test(ops, same_bytes_for_any_threads_bf16)
{
    check_threads(DT_BF16);
}

/* That the cases notice mistakes: each of these is ref with one in it. */
static struct mistaken {
    struct op_table ops;
    struct device *ref;
    int which;
} mistaken;

static enum klein_status linear_with_mistake(struct device *dev, const struct linear_args *a,
                                             struct klein_error *err)
{
    struct linear_args b = *a;
    switch (mistaken.which) {
    case 1:
        b.qkv.pairs = !b.qkv.pairs;
        break;
    case 2:
        b.split = 0;
        break;
    case 3:
        b.x.rows--, b.y.rows--;
        break; /* the last row is never written */
    case 4:
        b.group[0].bias.ptr = NULL;
        break;
    case 5:
        b.qkv.eps = 0.1f;
        break;
    case 6: /* one element is its neighbour's */
        TRY(mistaken.ref->ops->linear(mistaken.ref, a, err));
        *(bf16 *)tensor_at(a->y, 3, 5) = *(bf16 *)tensor_at(a->y, 3, 6);
        return KLEIN_OK;
    }
    return mistaken.ref->ops->linear(mistaken.ref, &b, err);
}

Test(ops, cases_notice_mistakes)
{
    static const struct {
        const char *name;
        int which, noticed;
    } table[] = {
        {"qkv interleaved", 0, 0}, {"qkv interleaved", 1, 1}, {"split", 2, 1},    {"odd", 3, 1},
        {"four parts", 4, 1},      {"qkv half, 128", 5, 1},   {"outliers", 6, 1}, {"outliers", 0, 0}};
    struct device *dev = open_device("ref", 1);
    mistaken.ref = open_device("ref", 1);
    mistaken.ops = *dev->ops;
    mistaken.ops.linear = linear_with_mistake;
    dev->ops = &mistaken.ops;
    for (size_t t = 0; t < sizeof table / sizeof table[0]; t++) {
        char text[OP_CASE_TEXT];
        mistaken.which = table[t].which;
        double excess = op_case_excess(case_named(OP_linear, table[t].name), DT_BF16, dev, text);
        cr_expect((excess > 1) == table[t].noticed, "mistake %d: %s", mistaken.which, text);
    }
    device_close(dev);
    device_close(mistaken.ref);
}

/* Values worked out by hand from the formulas of ops.h, so that ref is not only compared with itself. */

#define MATRIX(rows, cols, ...) tensor_of((float[]){__VA_ARGS__}, DT_F32, rows, cols)
#define ROW(cols, ...)          MATRIX(1, cols, __VA_ARGS__)

static void expect_values(struct tensor y, struct tensor expected)
{
    cr_assert(y.rows == expected.rows && y.cols == expected.cols);
    for (int r = 0; r < y.rows; r++)
        for (int c = 0; c < y.cols; c++)
            cr_expect(fabsf(tensor_get(y, r, c) / tensor_get(expected, r, c) - 1) <= 1e-6f ||
                          tensor_get(y, r, c) == tensor_get(expected, r, c),
                      "(%d, %d): %g, expected %g", r, c, (double)tensor_get(y, r, c),
                      (double)tensor_get(expected, r, c));
}

#define RUN(dev, op, ...)                                                                                    \
    do {                                                                                                     \
        struct op##_args args_ = __VA_ARGS__;                                                                \
        OK(ops_check_##op(&args_, NULL, &err));                                                              \
        OK(dev->ops->op(dev, &args_, &err));                                                                 \
    } while (0)

static void check_by_hand(const char *name)
{
    struct klein_error err;
    struct device *dev = open_device(name, 1);
    float out[32];
    struct tensor y = tensor_of(out, DT_F32, 1, 2);

    RUN(dev, rmsnorm, {.y = y, .x = ROW(2, 3, 4), .w = ROW(2, 2, 1)}); /* rms = sqrt(12.5) */
    expect_values(y, ROW(2, 1.6970563f, 1.1313708f));
    RUN(dev, adaln, {.y = y, .x = ROW(2, 3, 5), .shift = {ROW(2, 10, 20)}, .scale = {ROW(2, 0, 1)}});
    expect_values(y, ROW(2, 9, 22)); /* LN gives -1, 1 */

    struct linear_args linear = {.y = tensor_of(out, DT_F32, 2, 2), .x = MATRIX(2, 2, 1, 2, 3, 4)};
    linear.group[0].w = weight_of(MATRIX(2, 2, 1, 0, 1, 1)); /* y = x, x + y */
    linear.group[1].w = weight_of(MATRIX(2, 2, 0, 1, 0, 2));
    linear.split = 1;
    RUN(dev, linear, linear);
    expect_values(linear.y, MATRIX(2, 2, 1, 3, 4, 8));
    linear.epilogue = LINEAR_RESIDUAL;
    linear.residual = MATRIX(2, 2, 100, 200, 300, 400);
    linear.group[0].gate = ROW(2, 2, 3);
    RUN(dev, linear, linear); /* no gate in the second group */
    expect_values(linear.y, MATRIX(2, 2, 102, 209, 304, 408));
    linear.epilogue = LINEAR_SWIGLU;
    linear.split = 0;
    linear.y = tensor_of(out, DT_F32, 2, 1);
    RUN(dev, linear, linear); /* silu(first) * second */
    expect_values(linear.y, MATRIX(2, 1, 2.1931758f, 20.0040567f));

    /* One head of four, identity weights: q normed (rms 1), rotated by 90 degrees in the first pair, 0 in the second. */
    float q[4], k[4], v[4];
    struct linear_args qkv = {.x = ROW(4, 1, -1, 1, 1), .epilogue = LINEAR_QKV};
    qkv.group[0].w.parts = 3;
    struct tensor identity = MATRIX(4, 4, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1);
    for (int i = 0; i < 3; i++) qkv.group[0].w.part[i] = identity;
    qkv.group[0].q_norm = ROW(4, 1, 2, 3, 4);
    qkv.group[0].k_norm = ROW(4, 1, 1, 1, 1);
    qkv.qkv.q = tensor_of(q, DT_F32, 1, 4);
    qkv.qkv.k = tensor_of(k, DT_F32, 1, 4);
    qkv.qkv.v = tensor_of(v, DT_F32, 1, 4);
    qkv.qkv.cos = ROW(2, 0, 1);
    qkv.qkv.sin = ROW(2, 1, 0);
    qkv.qkv.heads = qkv.qkv.kv_heads = 1;
    qkv.qkv.head_dim = 4;
    qkv.qkv.pairs = ROPE_INTERLEAVED;
    RUN(dev, linear, qkv); /* (1, -2, 3, 4): the pair (1, -2) becomes (2, 1) */
    expect_values(qkv.qkv.q, ROW(4, 2, 1, 3, 4));
    expect_values(qkv.qkv.k, ROW(4, 1, 1, 1, 1));
    expect_values(qkv.qkv.v, ROW(4, 1, -1, 1, 1));
    qkv.qkv.pairs = ROPE_HALF;
    RUN(dev, linear, qkv); /* the pair (1, 3) becomes (-3, 1) */
    expect_values(qkv.qkv.q, ROW(4, -3, -2, 1, 4));

    /* Keys 0, ln 3 with query 1: weights 1/4, 3/4. */
    struct attention_args attention = {.o = tensor_of(out, DT_F32, 2, 1),
                                       .q = MATRIX(2, 1, 1, 1),
                                       .k = MATRIX(2, 1, 0, 1.0986123f),
                                       .v = MATRIX(2, 1, 4, 8),
                                       .heads = 1,
                                       .kv_heads = 1,
                                       .head_dim = 1,
                                       .scale = 1};
    RUN(dev, attention, attention);
    expect_values(attention.o, MATRIX(2, 1, 7, 7));
    attention.causal = 1;
    RUN(dev, attention, attention);
    expect_values(attention.o, MATRIX(2, 1, 4, 7));
    attention.keys = tensor_of(&(int32_t){1}, DT_I32, 1, 1);
    RUN(dev, attention, attention); /* row 1 is beyond the keys and sees key 0 */
    expect_values(attention.o, MATRIX(2, 1, 4, 4));

    struct timestep_args timestep = {.y = tensor_of(out, DT_F32, 1, 4), .t = ROW(1, 0.001f)};
    RUN(dev, timestep, timestep); /* angles 1 and 1/100, cosines first */
    expect_values(timestep.y, ROW(4, 0.54030231f, 0.99995f, 0.84147098f, 0.0099998333f));

    /* One channel, 2 x 2 pixels 1 2 / 3 4; the weight's tap (row, column) is 10 row + column. */
    struct conv_args conv = {.x = MATRIX(4, 1, 1, 2, 3, 4),
                             .w = ROW(9, 0, 1, 2, 10, 11, 12, 20, 21, 22),
                             .h = 2,
                             .w_px = 2,
                             .ksize = 3,
                             .stride = 1,
                             .y = tensor_of(out, DT_F32, 4, 1)};
    RUN(dev, conv, conv); /* pixel (0, 0) reads taps 11 12 / 21 22 */
    expect_values(conv.y,
                  MATRIX(4, 1, 11 + 24 + 63 + 88, 10 + 22 + 60 + 84, 1 + 4 + 33 + 48, 0 + 2 + 30 + 44));
    conv.stride = 2;
    conv.y = tensor_of(out, DT_F32, 1, 1);
    RUN(dev, conv, conv); /* padded right and below: reads taps 0 1 / 10 11 */
    expect_values(conv.y, ROW(1, 0 + 2 + 30 + 44));
    conv.stride = 1;
    conv.upsample = 1;
    conv.y = tensor_of(out, DT_F32, 16, 1);
    RUN(dev, conv, conv); /* pixel (0, 0) of 4 x 4 sees 1 1 / 1 1 */
    expect_values(tensor_rows(conv.y, 0, 1), ROW(1, 11 + 12 + 21 + 22));
    expect_values(tensor_rows(conv.y, 15, 1), ROW(1, 4 * (0 + 1 + 10 + 11)));

    struct group_norm norm = {
        .stats = tensor_of(out, DT_F32, 2, 2), .gamma = ROW(4, 1, 1, 1, 2), .beta = ROW(4, 0, 0, 0, 5)};
    struct tensor x = MATRIX(2, 4, 1, 3, 7, 7, 5, 7, 9, 9);
    RUN(dev, gn_stats, {.stats = norm.stats, .x = x});
    expect_values(norm.stats, MATRIX(2, 2, 4, 0.44721360f, 8, 1));
    struct gn_apply_args apply = {.y = tensor_of(out + 8, DT_F32, 2, 4), .x = x, .norm = norm};
    RUN(dev, gn_apply, apply);
    expect_values(apply.y, MATRIX(2, 4, -1.3416408f, -0.44721360f, -1, 3, 0.44721360f, 1.3416408f, 1, 7));

    /* Channel c * 4 + dy * 2 + dx. */
    struct tensor zero = ROW(8, 0, 0, 0, 0, 0, 0, 0, 0), four = ROW(8, 4, 4, 4, 4, 4, 4, 4, 4);
    struct patch_args patch = {.y = tensor_of(out, DT_F32, 1, 8),
                               .x = MATRIX(4, 2, 2, 10, 4, 12, 6, 14, 8, 16),
                               .mean = zero,
                               .var = four,
                               .h = 2,
                               .w = 2};
    OK(ops_check_patchify(&patch, NULL, &err));
    OK(dev->ops->patchify(dev, &patch, &err));
    expect_values(patch.y, ROW(8, 1, 2, 3, 4, 5, 6, 7, 8));
    patch.x = ROW(8, 1, 2, 3, 4, 5, 6, 7, 8);
    patch.y = tensor_of(out, DT_F32, 4, 2);
    OK(ops_check_unpatchify(&patch, NULL, &err));
    OK(dev->ops->unpatchify(dev, &patch, &err));
    expect_values(patch.y, MATRIX(4, 2, 2, 10, 4, 12, 6, 14, 8, 16));

    RUN(dev, euler, {.y = y, .x = ROW(2, 1, 2), .v = ROW(2, 10, 20), .dt = ROW(1, -0.5f)});
    expect_values(y, ROW(2, -4, -8));
    RUN(dev, cfg, {.y = y, .cond = ROW(2, 3, 4), .uncond = ROW(2, 1, 5), .guidance = 4});
    expect_values(y, ROW(2, 9, 1));

    /* Half way cases go to even: 255 (x / 2 + 1 / 2) = 0.5, 1.5, 127.5. */
    uint8_t bytes[9];
    struct to_u8_args to_u8 = {.y = tensor_of(bytes, DT_U8, 3, 3),
                               .x = MATRIX(3, 3, -2, 2, NAN, -1, 1, 0, INFINITY, -INFINITY, 0.5f)};
    RUN(dev, to_u8, to_u8);
    cr_expect_arr_eq(bytes, ((uint8_t[]){0, 255, 0, 0, 255, 128, 255, 0, 191}), 9);
    struct from_u8_args from_u8 = {.y = tensor_of(out, DT_F32, 1, 3),
                                   .x = tensor_of((uint8_t[]){0, 255, 51}, DT_U8, 1, 3)};
    RUN(dev, from_u8, from_u8);
    expect_values(from_u8.y, ROW(3, -1, 1, -0.6f));
    device_close(dev);
}

Test(ops, by_hand_ref)
{
    check_by_hand("ref");
}

Test(ops, by_hand_cpu)
{
    check_by_hand("cpu");
}

/* ops_check_* refuses what does not fit, and names it. Each row makes a good call and breaks one thing in it. */
#define BREAK(which, case_name, change, text)                                                                \
    do {                                                                                                     \
        struct op_call call;                                                                                 \
        op_call_make(&call, case_named(OP_##which, case_name), DT_BF16, DT_BF16, dev);                       \
        struct which##_args *a = &call.args.which;                                                           \
        OK(ops_check_##which(a, NULL, &err));                                                                \
        change;                                                                                              \
        FAILS(ops_check_##which(a, NULL, &err), KLEIN_E_INTERNAL, text);                                     \
        cr_expect(strstr(err.message, #which), "the message does not name the op: %s", err.message);         \
        op_call_free(&call);                                                                                 \
    } while (0)

Test(ops, check_refuses)
{
    struct klein_error err;
    struct device *dev = open_device("ref", 1);
    BREAK(embed, "rows", a->y.cols++, "y");
    BREAK(embed, "rows", a->ids.dtype = DT_F32, "ids");
    BREAK(embed, "rows", a->table.dtype = DT_I32, "table");
    BREAK(rmsnorm, "one row", a->y.rows = 2, "y");
    BREAK(rmsnorm, "one row", a->y.dtype = DT_F32, "BF16");
    BREAK(rmsnorm, "one row", a->w.cols--, "w");
    BREAK(rmsnorm, "one row", a->x.rows = 0, "x");
    BREAK(rmsnorm, "one row", a->x.ld = 3, "x");
    BREAK(adaln, "split, odd", a->split = 42, "split");
    BREAK(adaln, "split, odd", a->scale[1].ptr = NULL, "scale[1]");
    BREAK(adaln, "split, odd", a->shift[0].dtype = DT_BF16, "shift[0]");
    BREAK(linear, "odd", a->x.cols--, "weight");
    BREAK(linear, "odd", a->y.cols--, "y");
    BREAK(linear, "odd", a->epilogue = 9, "epilogue");
    BREAK(linear, "odd", a->group[0].w.parts = 0, "parts");
    BREAK(linear, "odd", a->group[0].w.parts = 5, "parts");
    BREAK(linear, "four parts", a->group[0].w.part[2].dtype = DT_F16, "parts of");
    BREAK(linear, "four parts", a->group[0].bias.cols--, "bias");
    BREAK(linear, "split", a->split = -1, "split");
    BREAK(linear, "split", a->group[1].w.part[0].rows--, "weight_rows");
    BREAK(linear, "residual", a->residual.ptr = NULL, "residual");
    BREAK(linear, "residual", a->residual.dtype = DT_F32, "residual");
    BREAK(linear, "residual, bias, gate", a->group[0].gate.dtype = DT_BF16, "gate");
    BREAK(linear, "swiglu", a->y.cols *= 2, "y");
    BREAK(linear, "swiglu", a->group[0].bias = a->x, "bias");
    BREAK(linear, "qkv interleaved", a->qkv.heads--, "q");
    BREAK(linear, "qkv interleaved", a->qkv.head_dim = 0, "head_dim");
    BREAK(linear, "qkv interleaved", a->qkv.cos.cols--, "cos");
    BREAK(linear, "qkv interleaved", a->group[0].q_norm.ptr = NULL, "q_norm");
    BREAK(linear, "kv", a->qkv.q = a->qkv.k, "q.ptr");
    BREAK(linear, "kv", a->qkv.heads++, "q");
    BREAK(linear, "kv", a->qkv.heads--, "heads");
    BREAK(linear, "kv", a->group[0].k_norm.ptr = NULL, "k_norm");
    BREAK(linear, "qkv mlp", a->qkv.mlp.ptr = NULL, "rest");
    BREAK(linear, "qkv mlp", a->qkv.mlp.cols--, "mlp");
    BREAK(attention, "odd", a->v.rows--, "v");
    BREAK(attention, "odd", a->heads = 4, "kv_heads");
    BREAK(attention, "odd", a->causal = 1, "causal");
    BREAK(attention, "key length", a->keys.dtype = DT_F32, "keys");
    BREAK(attention, "key length", a->keys.cols = 2, "keys");
    BREAK(attention, "odd", a->scale = 0, "scale");
    BREAK(attention, "odd", a->k.dtype = DT_F32, "k");
    BREAK(timestep, "steps", a->y.cols--, "cols");
    BREAK(timestep, "steps", a->t.dtype = DT_BF16, "t");
    BREAK(conv, "3x3", a->ksize = 5, "ksize");
    BREAK(conv, "3x3", a->stride = 3, "stride");
    BREAK(conv, "3x3", a->h = 8, "x");
    BREAK(conv, "3x3", a->w.cols--, "w");
    BREAK(conv, "3x3", a->bias.cols--, "bias");
    BREAK(conv, "3x3 stride 2", a->upsample = 1, "stride");
    BREAK(conv, "3x3 stride 2", a->h = 11, "h % a->stride");
    BREAK(conv, "3x3 upsample", a->upsample = 0, "y");
    BREAK(conv, "3x3 norm residual", a->norm.stats.rows = 7, "groups");
    BREAK(conv, "3x3 norm residual", a->norm.beta.ptr = NULL, "beta");
    BREAK(conv, "3x3 norm residual", a->residual.rows--, "residual");
    BREAK(conv, "3x3", (a->row0 = 8, a->rows = 2), "rows");
    BREAK(conv, "3x3", a->row0 = 2, "row0");
    BREAK(conv, "3x3 upsample", (a->row0 = 1, a->rows = 2), "row0 % 2");
    BREAK(conv, "3x3 norm residual", a->norm.bands = 9, "GROUP_MAX");
    BREAK(conv, "3x3 norm residual", a->norm.bands = 3, "bands");
    BREAK(conv, "3x3 norm residual", a->norm.bands = 2, "weight");
    BREAK(gn_stats, "groups of 16", a->stats.rows = 33, "rows");
    BREAK(gn_stats, "groups of 16", a->stats.dtype = DT_BF16, "stats");
    BREAK(gn_apply, "one pixel", a->norm.gamma.cols--, "gamma");
    BREAK(euler, "odd", a->v.dtype = DT_BF16, "v");
    BREAK(euler, "odd", a->y.cols--, "y");
    BREAK(cfg, "odd", a->uncond.rows--, "uncond");
    BREAK(copy, "act to act", a->x.dtype = DT_U8, "x");
    BREAK(copy, "act to act", a->y.rows--, "y");
    BREAK(to_u8, "act", a->x.cols = 4, "x");
    BREAK(to_u8, "act", a->y.dtype = DT_F32, "y");
    BREAK(from_u8, "all values", a->x.dtype = DT_F32, "x");
    device_close(dev);
}

Test(ops, names)
{
    cr_assert_str_eq(op_name(OP_linear), "linear");
    cr_assert_str_eq(op_name(OP_from_u8), "from_u8");
    cr_assert_str_eq(op_name(OP_COUNT), "?");
}
