/* Makes the operands of an op case, runs it, and applies the rule of op_cases.h. */
#include "op_cases.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { GUARD = 256, FILL = 0xff }; /* 0xff...: NaN in F32, BF16, F16 */

/* How an operand's values are drawn. */
enum draw {
    NOTHING,  /* output */
    NORMAL,   /* about N(0, 1) */
    WEIGHT,   /* N(0, 1 / cols) */
    NEAR_ONE, /* 1 +- 0.3 */
    VARIANCE, /* 0.5 .. 3.5 */
    UNIT,     /* 0 .. 1 */
    COSINE,
    SINE,
    BYTE,
    INDEX, /* 0 .. n - 1 of the case */
    KEYS,  /* key_len of the case */
    STEP   /* a step of the sampler */
};

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double uniform(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return (double)(mix(*state) >> 11) * 0x1p-53;
}

static double normal(uint64_t *state)
{
    return (uniform(state) + uniform(state) + uniform(state) + uniform(state) - 2) * 1.7320508;
}

static double draw_value(enum draw how, const struct op_case *c, struct tensor t, int row, int col,
                         uint64_t *state)
{
    switch (how) {
    case NORMAL:
        return normal(state);
    case WEIGHT:
        return normal(state) / sqrt(t.cols);
    case NEAR_ONE:
        return 1 + 0.3 * normal(state);
    case VARIANCE:
        return 0.5 + 3 * uniform(state);
    case UNIT:
        return uniform(state);
    case COSINE:
        return cos(row * pow(2000, -(double)col / t.cols));
    case SINE:
        return sin(row * pow(2000, -(double)col / t.cols));
    case BYTE:
        return (double)((row * 3 + col) % 256);
    case INDEX:
        return floor(uniform(state) * c->k);
    case KEYS:
        return c->key_len;
    case STEP:
        return -0.0326;
    default:
        return 0;
    }
}

static uint16_t f16_from_f32(float f) /* to nearest even; test values are neither huge nor subnormal */
{
    if (fabsf(f) < 0x1p-14f) return 0;
    uint32_t u = f32_bits(f);
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)((u >> 16 & 0x8000) | (((u & 0x7fffffff) >> 13) - (112u << 10)));
}

static float rounded(enum dtype t, float f)
{
    if (t == DT_BF16) return f32_from_bf16(bf16_from_f32(f));
    if (t == DT_F16) return f32_from_f16(f16_from_f32(f));
    return f;
}

static void store(char *p, enum dtype t, float f)
{
    if (t == DT_F16)
        *(uint16_t *)p = f16_from_f32(f);
    else if (t == DT_U8)
        *(uint8_t *)p = (uint8_t)f;
    else if (t == DT_I32)
        *(int32_t *)p = (int32_t)f;
    else
        f32_store(p, t, 0, f);
}

/* What tells the values of one case from another's: its place in the list; of a test's own case its name. */
static uint64_t number_of(const struct op_case *c)
{
    for (int i = 0; i < op_case_count; i++)
        if (c == &op_cases[i]) return (uint64_t)i;
    return fnv1a(c->name, strlen(c->name)) & 0xffffffff;
}

/* What operand() needs besides the operand. */
struct maker {
    struct op_call *call;
    enum dtype act, values, weights;
};

/* Adds an operand; returns its index. Its values are exact in `exact`. */
static int add(struct maker *m, struct tensor *slot, enum dtype dtype, enum dtype exact, int rows, int cols,
               enum draw how)
{
    struct op_call *call = m->call;
    cr_assert(call->operands < OPERANDS);
    struct operand *o = &call->operand[call->operands];
    *o = (struct operand){.slot = slot, .output = how == NOTHING, .same_as = -1};
    *slot = tensor_of(NULL, dtype, rows, cols);
    slot->ld += rows > 1 ? call->c->gap : 0;
    if (how != NOTHING) {
        o->values = malloc((size_t)rows * (size_t)cols * sizeof *o->values);
        cr_assert(o->values);
        uint64_t state = (uint64_t)call->operands << 32 | number_of(call->c);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                o->values[(size_t)r * (size_t)cols + (size_t)c] =
                    rounded(exact, (float)draw_value(how, call->c, *slot, r, c, &state));
    }
    return call->operands++;
}

static int add_act(struct maker *m, struct tensor *slot, int rows, int cols, enum draw how, int always_f32)
{
    return always_f32 ? add(m, slot, DT_F32, DT_F32, rows, cols, how)
                      : add(m, slot, m->act, m->values, rows, cols, how);
}

/* x, changed as the case says. */
static int add_x(struct maker *m, struct tensor *slot, int rows, int cols)
{
    int i = add_act(m, slot, rows, cols, NORMAL, m->call->c->options & X_F32), options = m->call->c->options;
    enum dtype exact = options & X_F32 ? DT_F32 : m->values;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            float *p = &m->call->operand[i].values[(size_t)r * (size_t)cols + (size_t)c];
            if (options & OUTLIERS && c % 61 == 7) *p *= 100;
            if (options & OFFSET) *p += 50;
            *p = rounded(exact, *p);
        }
    return i;
}

static void add_f32(struct maker *m, struct tensor *slot, int rows, int cols, enum draw how)
{
    add(m, slot, DT_F32, DT_F32, rows, cols, how);
}

static void add_weight(struct maker *m, struct tensor *slot, int rows, int cols, enum draw how)
{
    add(m, slot, m->weights, m->weights, rows, cols, how);
}

/* The output; the same memory as operand `input` if the case is in place. */
static void add_y(struct maker *m, struct tensor *slot, int rows, int cols, int input)
{
    int i = add_act(m, slot, rows, cols, NOTHING, m->call->c->options & Y_F32);
    if (m->call->c->options & IN_PLACE) m->call->operand[i].same_as = input;
}

static void add_norm(struct maker *m, struct group_norm *norm, int channels)
{
    add_f32(m, &norm->stats, m->call->c->groups, 2, VARIANCE);
    add_weight(m, &norm->gamma, 1, channels, NEAR_ONE);
    add_weight(m, &norm->beta, 1, channels, NORMAL);
}

static void make_linear(struct maker *m, const struct op_case *c, struct linear_args *a)
{
    a->epilogue = c->epilogue;
    a->split = c->split;
    add_x(m, &a->x, c->m, c->k);
    int n = c->epilogue == LINEAR_SWIGLU ? 2 * c->n : c->n;
    if (c->epilogue == LINEAR_QKV)
        n = (c->heads + 2 * c->kv_heads) * c->hd + (c->options & WITH_MLP ? 2 * c->n : 0);
    for (int g = 0; g < (c->split ? 2 : 1); g++) {
        struct linear_group *group = &a->group[g];
        int parts = c->parts ? c->parts : 1, left = n;
        group->w.parts = parts;
        for (int i = 0; i < parts; i++) { /* unequal, so that boundaries fall anywhere */
            int rows = i == parts - 1 ? left : left / (parts - i) - i;
            add_weight(m, &group->w.part[i], rows, c->k, WEIGHT);
            left -= rows;
        }
        if (c->options & WITH_BIAS) add_weight(m, &group->bias, 1, n, NORMAL);
        if (c->options & WITH_GATE) add_f32(m, &group->gate, 1, n, NORMAL);
        if (c->epilogue == LINEAR_QKV) {
            add_weight(m, &group->q_norm, 1, c->hd, NEAR_ONE);
            add_weight(m, &group->k_norm, 1, c->hd, NEAR_ONE);
        }
    }
    if (c->epilogue == LINEAR_QKV) {
        a->qkv.heads = c->heads;
        a->qkv.kv_heads = c->kv_heads;
        a->qkv.head_dim = c->hd;
        a->qkv.pairs = c->pairs;
        a->qkv.eps = 1e-6f;
        add_f32(m, &a->qkv.cos, c->m, c->hd / 2, COSINE);
        add_f32(m, &a->qkv.sin, c->m, c->hd / 2, SINE);
        add_y(m, &a->qkv.q, c->m, c->heads * c->hd, -1);
        add_y(m, &a->qkv.k, c->m, c->kv_heads * c->hd, -1);
        add_y(m, &a->qkv.v, c->m, c->kv_heads * c->hd, -1);
        if (c->options & WITH_MLP) add_y(m, &a->qkv.mlp, c->m, c->n, -1);
        return;
    }
    int residual = -1;
    if (c->epilogue == LINEAR_RESIDUAL)
        residual = add_act(m, &a->residual, c->m, c->n, NORMAL, c->options & Y_F32);
    add_y(m, &a->y, c->m, c->n, residual);
}

static void make_attention(struct maker *m, const struct op_case *c, struct attention_args *a)
{
    a->heads = c->heads;
    a->kv_heads = c->kv_heads;
    a->head_dim = c->hd;
    a->causal = c->causal;
    a->scale = (float)(1 / sqrt(c->hd));
    add_x(m, &a->q, c->m, c->heads * c->hd);
    add_x(m, &a->k, c->n, c->kv_heads * c->hd);
    add_act(m, &a->v, c->n, c->kv_heads * c->hd, NORMAL, 0);
    if (c->key_len) add(m, &a->keys, DT_I32, DT_I32, 1, 1, KEYS);
    add_y(m, &a->o, c->m, c->heads * c->hd, -1);
}

static void make_conv(struct maker *m, const struct op_case *c, struct conv_args *a)
{
    a->h = c->h;
    a->w_px = c->w;
    a->ksize = c->ksize;
    a->stride = c->stride ? c->stride : 1;
    a->upsample = (c->options & UPSAMPLE) != 0;
    int up = a->upsample ? 2 : 1, pixels = c->h * up / a->stride * (c->w * up / a->stride), residual = -1;
    add_x(m, &a->x, c->h * c->w, c->k);
    add_weight(m, &a->w, c->n, c->k * c->ksize * c->ksize, WEIGHT);
    if (c->options & WITH_BIAS) add_weight(m, &a->bias, 1, c->n, NORMAL);
    if (c->options & WITH_NORM) add_norm(m, &a->norm, c->k);
    if (c->options & WITH_RESIDUAL) residual = add_act(m, &a->residual, pixels, c->n, NORMAL, 0);
    add_y(m, &a->y, pixels, c->n, residual);
}

static void make_patch(struct maker *m, const struct op_case *c, struct patch_args *a, int inverse)
{
    a->h = c->h;
    a->w = c->w;
    a->eps = 1e-4f;
    int tokens = c->h * c->w / 4;
    add_act(m, &a->x, inverse ? tokens : c->h * c->w, inverse ? 4 * c->k : c->k, NORMAL, inverse);
    add_weight(m, &a->mean, 1, 4 * c->k, NORMAL);
    add_weight(m, &a->var, 1, 4 * c->k, VARIANCE);
    add_act(m, &a->y, inverse ? c->h * c->w : tokens, inverse ? c->k : 4 * c->k, NOTHING, !inverse);
}

static void make_args(struct maker *m, const struct op_case *c)
{
    struct op_call *call = m->call;
    switch (c->op) {
    case OP_embed:
        add(m, &call->args.embed.ids, DT_I32, DT_F32, 1, c->m, INDEX);
        add_weight(m, &call->args.embed.table, c->k, c->n, NORMAL);
        add_y(m, &call->args.embed.y, c->m, c->n, -1);
        break;
    case OP_rmsnorm: {
        int x = add_x(m, &call->args.rmsnorm.x, c->m, c->k);
        add_weight(m, &call->args.rmsnorm.w, 1, c->k, NEAR_ONE);
        add_y(m, &call->args.rmsnorm.y, c->m, c->k, x);
        call->args.rmsnorm.eps = 1e-6f;
        break;
    }
    case OP_adaln: {
        int x = add_x(m, &call->args.adaln.x, c->m, c->k);
        for (int g = 0; g < (c->split ? 2 : 1); g++) {
            add_f32(m, &call->args.adaln.shift[g], 1, c->k, NORMAL);
            add_f32(m, &call->args.adaln.scale[g], 1, c->k, NORMAL);
        }
        add_y(m, &call->args.adaln.y, c->m, c->k, x);
        call->args.adaln.split = c->split;
        call->args.adaln.eps = 1e-6f;
        break;
    }
    case OP_linear:
        make_linear(m, c, &call->args.linear);
        break;
    case OP_attention:
        make_attention(m, c, &call->args.attention);
        break;
    case OP_timestep:
        add_f32(m, &call->args.timestep.t, 1, c->m, UNIT);
        add_f32(m, &call->args.timestep.y, c->m, c->n, NOTHING);
        break;
    case OP_conv:
        make_conv(m, c, &call->args.conv);
        break;
    case OP_gn_stats:
        add_x(m, &call->args.gn_stats.x, c->m, c->k);
        add_f32(m, &call->args.gn_stats.stats, c->groups, 2, NOTHING);
        call->args.gn_stats.eps = 1e-6f;
        break;
    case OP_gn_apply: {
        int x = add_x(m, &call->args.gn_apply.x, c->m, c->k);
        add_norm(m, &call->args.gn_apply.norm, c->k);
        add_y(m, &call->args.gn_apply.y, c->m, c->k, x);
        call->args.gn_apply.silu = (c->options & WITH_SILU) != 0;
        break;
    }
    case OP_patchify:
        make_patch(m, c, &call->args.patchify, 0);
        break;
    case OP_unpatchify:
        make_patch(m, c, &call->args.unpatchify, 1);
        break;
    case OP_euler:
        add_f32(m, &call->args.euler.x, c->m, c->k, NORMAL);
        add_f32(m, &call->args.euler.v, c->m, c->k, NORMAL);
        add_f32(m, &call->args.euler.y, c->m, c->k, NOTHING);
        if (c->options & IN_PLACE) call->operand[2].same_as = 0;
        add_f32(m, &call->args.euler.dt, 1, 1, STEP);
        break;
    case OP_cfg:
        add_f32(m, &call->args.cfg.cond, c->m, c->k, NORMAL);
        add_f32(m, &call->args.cfg.uncond, c->m, c->k, NORMAL);
        add_f32(m, &call->args.cfg.y, c->m, c->k, NOTHING);
        if (c->options & IN_PLACE) call->operand[2].same_as = 1;
        call->args.cfg.guidance = 4;
        break;
    case OP_copy:
        if (c->weights)
            add_weight(m, &call->args.copy.x, c->m, c->k, NORMAL);
        else
            add_x(m, &call->args.copy.x, c->m, c->k);
        add_y(m, &call->args.copy.y, c->m, c->k, -1);
        break;
    case OP_to_u8:
        add_x(m, &call->args.to_u8.x, c->m, 3);
        add(m, &call->args.to_u8.y, DT_U8, DT_U8, c->m, 3, NOTHING);
        break;
    case OP_from_u8:
        add(m, &call->args.from_u8.x, DT_U8, DT_F32, c->m, 3, BYTE);
        add_y(m, &call->args.from_u8.y, c->m, 3, -1);
        break;
    default:
        cr_assert(0, "no such op");
    }
}

static size_t row_bytes(struct tensor t)
{
    return (size_t)t.ld * dtype_size(t.dtype);
}

/* The operand's memory as it must be before the call (and, outputs apart, after it). The caller frees it. */
static char *image(const struct operand *o)
{
    struct tensor t = *o->slot;
    char *p = malloc(o->bytes);
    cr_assert(p);
    memset(p, FILL, o->bytes);
    for (int r = 0; o->values && r < t.rows; r++)
        for (int c = 0; c < t.cols; c++)
            store(p + GUARD + (size_t)r * row_bytes(t) + (size_t)c * dtype_size(t.dtype), t.dtype,
                  o->values[(size_t)r * (size_t)t.cols + (size_t)c]);
    return p;
}

void op_call_make(struct op_call *call, const struct op_case *c, enum dtype act, enum dtype values,
                  struct device *dev)
{
    struct klein_error err;
    *call = (struct op_call){.c = c, .dev = dev};
    make_args(&(struct maker){call, act, values, c->weights ? c->weights : DT_BF16}, c);
    for (int i = 0; i < call->operands; i++) {
        struct operand *o = &call->operand[i];
        if (o->same_as >= 0) {
            o->slot->ptr = call->operand[o->same_as].slot->ptr;
            continue;
        }
        o->bytes = 2 * GUARD + (size_t)o->slot->rows * row_bytes(*o->slot);
        o->memory = dev->alloc(dev, o->bytes);
        cr_assert(o->memory, "no memory for an operand");
        char *host = image(o);
        OK(dev->upload(dev, o->memory, host, o->bytes, &err));
        free(host);
        o->slot->ptr = o->memory + GUARD;
    }
}

enum klein_status op_call_run(struct op_call *call, struct klein_error *err)
{
    switch (call->c->op) {
#define X(op, a)                                                                                             \
    case OP_##op:                                                                                            \
        TRY(ops_check_##op(&call->args.op, NULL, err));                                                      \
        return call->dev->ops->op(call->dev, &call->args.op, err);
        KLEIN_OPS(X)
#undef X
    default:
        return KLEIN_E_INTERNAL;
    }
}

static int shared(const struct op_call *call, int operand)
{
    for (int i = 0; i < call->operands; i++)
        if (call->operand[i].same_as == operand) return 1;
    return 0;
}

/* Whether the memory is as it was, elements of outputs apart. */
static void check_untouched(struct op_call *call, int i, const char *now)
{
    struct operand *o = &call->operand[i];
    struct tensor t = *o->slot;
    char *before = image(o);
    size_t start = GUARD, used = (size_t)t.cols * dtype_size(t.dtype);
    if (o->output || shared(call, i))
        for (int r = 0; r < t.rows; r++)
            memcpy(before + start + (size_t)r * row_bytes(t), now + start + (size_t)r * row_bytes(t), used);
    for (size_t b = 0; b < o->bytes; b++)
        cr_assert(before[b] == now[b], "%s %s: operand %d was written at byte %lld of its memory",
                  op_name(call->c->op), call->c->name, i, (long long)b - GUARD);
    free(before);
}

struct tensor op_call_output(struct op_call *call, int wanted)
{
    struct klein_error err;
    struct tensor result = {0};
    for (int i = 0, outputs = 0; i < call->operands; i++) {
        struct operand *o = &call->operand[i], *holder = o->same_as >= 0 ? &call->operand[o->same_as] : o;
        char *host = malloc(holder->bytes);
        cr_assert(host);
        OK(call->dev->download(call->dev, host, holder->memory, holder->bytes, &err));
        if (holder == o) check_untouched(call, i, host);
        if (o->output && outputs++ == wanted) {
            struct tensor t = *o->slot;
            t.ptr = host + GUARD;
            result =
                tensor_of(malloc((size_t)t.rows * (size_t)t.cols * sizeof(float)), DT_F32, t.rows, t.cols);
            cr_assert(result.ptr);
            for (int r = 0; r < t.rows; r++)
                for (int c = 0; c < t.cols; c++) tensor_set(result, r, c, tensor_get(t, r, c));
        }
        free(host);
    }
    return result;
}

void op_call_free(struct op_call *call)
{
    for (int i = 0; i < call->operands; i++) {
        struct operand *o = &call->operand[i];
        if (o->memory) call->dev->free(call->dev, o->memory, o->bytes);
        free(o->values);
    }
}

/* Runs c on dev; outputs into y[], their dtypes into types[]. Returns how many. */
static int evaluate(const struct op_case *c, enum dtype act, enum dtype values, struct device *dev,
                    struct tensor *y, enum dtype *types)
{
    struct klein_error err;
    struct op_call call;
    op_call_make(&call, c, act, values, dev);
    OK(op_call_run(&call, &err));
    int n = 0;
    for (int i = 0; i < call.operands; i++)
        if (call.operand[i].output) {
            types[n] = call.operand[i].slot->dtype;
            y[n] = op_call_output(&call, n);
            n++;
        }
    op_call_free(&call);
    return n;
}

/* error against limit; 1 is the limit. Exact results may have the limit 0. */
static double excess(double error, double limit)
{
    return error <= 0 ? 0 : limit > 0 ? error / limit : INFINITY;
}

static double largest(struct tensor t)
{
    double most = 0;
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) most = fmax(most, fabs((double)tensor_get(t, r, c)));
    return most;
}

double op_case_excess(const struct op_case *c, enum dtype act, struct device *dev, char text[OP_CASE_TEXT])
{
    struct klein_error err;
    struct device *ref, *naive = naive_open();
    OK(device_open("ref", NULL, &ref, &err));
    struct tensor truth[4], simple[4], y[4];
    enum dtype types[4];
    evaluate(c, DT_F32, act, ref, truth, types);
    evaluate(c, act, act, naive, simple, types);
    int n = evaluate(c, act, act, dev, y, types);
    double worst = 0;
    snprintf(text, OP_CASE_TEXT, "%s on %s, %s %s: exact", dev->name, dtype_name(act), op_name(c->op),
             c->name);
    for (int i = 0; i < n; i++) {
        double rounding = types[i] == DT_BF16  ? 0x1p-9
                          : types[i] == DT_F32 ? 0x1p-24
                                               : 0; /* of a stored value */
        struct {
            const char *name;
            double error, limit;
        } measure[] = {{"relative L2", relative_l2(y[i], truth[i]),
                        fmax(2 * relative_l2(simple[i], truth[i]), rounding)},
                       {"maximum error", max_abs_diff(y[i], truth[i]),
                        fmax(2 * max_abs_diff(simple[i], truth[i]), rounding * largest(truth[i]))}};
        for (int m = 0; m < 2; m++) {
            double e = excess(measure[m].error, measure[m].limit);
            if (e <= worst) continue;
            worst = e;
            snprintf(text, OP_CASE_TEXT, "%s on %s, %s %s, output %d: %s %.3g, limit %.3g", dev->name,
                     dtype_name(act), op_name(c->op), c->name, i, measure[m].name, measure[m].error,
                     measure[m].limit);
        }
        free(truth[i].ptr), free(simple[i].ptr), free(y[i].ptr);
    }
    device_close(ref);
    device_close(naive);
    return worst;
}

void op_case_check(const struct op_case *c, enum dtype act, struct device *dev)
{
    char text[OP_CASE_TEXT];
    double worst = op_case_excess(c, act, dev, text);
    cr_expect(worst <= 1, "%s", text);
}
