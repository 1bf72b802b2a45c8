/* Makes the operands of an op case, runs it, and applies the rule of op_cases.h. */
#include "op_cases.h"

#include "../../base/clock.h"
#include "../../base/hash.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* The scale that a case gives a row, or a group of its columns: a power of two, so that what a number stands for is exact. */
static float scale_of(int row, int group)
{
    return ldexpf(1, (row + 2 * group) % 3 - 6);
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

static size_t row_bytes(struct tensor t)
{
    return (size_t)t.ld * dtype_size(t.dtype);
}

/* Bytes of the scales of a quantised operand, which follow its rows. */
static size_t scale_bytes(struct tensor t)
{
    return t.dtype == DT_F8E4M3 ? (size_t)t.rows * (size_t)tensor_groups(t) * sizeof *t.scale : 0;
}

/* Row r of values that are to lie at p, as an operand of t's type holds it. */
static void store_row(char *p, struct tensor t, int r, const float *values)
{
    const int quantised = t.dtype == DT_F8E4M3;
    for (int c = 0; c < t.cols; c++)
        store(p + (size_t)c * dtype_size(t.dtype), t.dtype,
              values[c] / (quantised ? scale_of(r, c / tensor_group(t)) : 1));
}

static void store_scales(float *p, struct tensor t)
{
    for (int g = 0; scale_bytes(t) && g < tensor_groups(t); g++)
        for (int r = 0; r < t.rows; r++) p[g * t.rows + r] = scale_of(r, g);
}

/* What tells the values of one case from another's: its place in the list; of a test's own case its name. */
static uint64_t number_of(const struct op_case *c)
{
    for (int i = 0; i < op_case_count; i++)
        if (c == &op_cases[i]) return (uint64_t)i;
    return fnv1a(c->name, strlen(c->name)) & 0xffffffff;
}

/* What add() needs besides the operand. */
struct maker {
    struct op_call *call;
    enum dtype act, values, weights;
    struct klein_error *err; /* sticky: no memory for an operand */
};

static int takes_e4m3(const struct maker *m)
{
    return m->act == DT_BF16 && m->call->dev->e4m3;
}

/* Adds an operand; returns its index. Its values are exact in `exact`. */
static int add(struct maker *m, struct tensor *slot, enum dtype dtype, enum dtype exact, int rows, int cols,
               enum draw how)
{
    struct op_call *call = m->call;
    CHECK(call->operands < OPERANDS);
    struct operand *o = &call->operand[call->operands];
    *o = (struct operand){.slot = slot, .output = how == NOTHING, .same_as = -1};
    *slot = tensor_of(NULL, dtype, rows, cols);
    slot->ld += rows > 1 ? call->c->gap : 0;
    if (how != NOTHING) {
        o->values = malloc((size_t)rows * (size_t)cols * sizeof *o->values);
        if (!o->values) fail(m->err, KLEIN_E_NO_MEMORY, "no memory for an operand of %dx%d", rows, cols);
        uint64_t state = (uint64_t)call->operands << 32 | number_of(call->c);
        for (int r = 0; o->values && r < rows; r++)
            for (int c = 0; c < cols; c++)
                o->values[(size_t)r * (size_t)cols + (size_t)c] =
                    rounded(exact, (float)draw_value(how, call->c, *slot, r, c, &state));
    }
    return call->operands++;
}

/* Operand i as e4m3 can hold it with the scales of its rows, or of their groups, and in that form if `quantised`. */
static void quantise(struct maker *m, int i, int groups, int quantised)
{
    struct operand *o = &m->call->operand[i];
    struct tensor *t = o->slot;
    t->ldscale = groups ? t->rows : 0;
    for (int r = 0; o->values && r < t->rows; r++)
        for (int c = 0; c < t->cols; c++) {
            float *p = &o->values[(size_t)r * (size_t)t->cols + (size_t)c];
            const float scale = scale_of(r, c / tensor_group(*t));
            *p = f32_from_f8e4m3(f8e4m3_from_f32(*p / scale)) * scale;
        }
    if (quantised)
        t->dtype = DT_F8E4M3;
    else
        t->ldscale = 0;
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
    for (int r = 0; m->call->operand[i].values && r < rows; r++)
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

/* An operand that comes from a model's files: the device may place it. */
static int add_weight(struct maker *m, struct tensor *slot, enum weight_kind kind, int rows, int cols,
                      enum draw how)
{
    int i = add(m, slot, m->weights, m->weights, rows, cols, how);
    m->call->operand[i].weight = 1;
    m->call->operand[i].kind = kind;
    return i;
}

static void add_vector(struct maker *m, struct tensor *slot, int cols, enum draw how)
{
    add_weight(m, slot, WEIGHT_VECTOR, 1, cols, how);
}

/* The output; the same memory as operand `input` if the case is in place. */
static void add_y(struct maker *m, struct tensor *slot, int rows, int cols, int input)
{
    int i = add_act(m, slot, rows, cols, NOTHING, m->call->c->options & Y_F32);
    if (m->call->c->options & IN_PLACE) m->call->operand[i].same_as = input;
}

/* The output of the last add_y in e4m3, if the case has the option. */
static void quantise_y(struct maker *m, struct tensor *slot, enum op_option option, int groups)
{
    if (!(m->call->c->options & option) || !takes_e4m3(m)) return;
    slot->dtype = DT_F8E4M3;
    slot->ldscale = groups ? slot->rows : 0;
}

static void add_quantised_y(struct maker *m, struct tensor *slot, int rows, int cols, int input, int groups)
{
    add_y(m, slot, rows, cols, input);
    quantise_y(m, slot, Y_E4M3, groups);
}

/* q, k or v. */
static void add_head_columns(struct maker *m, struct tensor *slot, int heads)
{
    add_y(m, slot, m->call->c->m, heads * m->call->c->hd, -1);
    quantise_y(m, slot, QKV_E4M3, 1);
}

static void add_norm(struct maker *m, struct group_norm *norm, int channels)
{
    norm->bands = m->call->c->bands;
    for (int i = 0; i < norm->bands; i++) norm->weight[i] = 2 + i;
    add_f32(m, &norm->stats, norm_bands(norm) * m->call->c->groups, 2, VARIANCE);
    add_vector(m, &norm->gamma, channels, NEAR_ONE);
    add_vector(m, &norm->beta, channels, NORMAL);
}

static void make_linear(struct maker *m, const struct op_case *c, struct linear_args *a)
{
    a->epilogue = c->epilogue;
    a->split = c->split;
    int x = add_x(m, &a->x, c->m, c->k), e4m3 = c->options & X_E4M3, groups = (c->options & X_GROUPS) != 0,
        quantised = takes_e4m3(m);
    if (e4m3) quantise(m, x, groups, quantised);
    int n = c->epilogue == LINEAR_SWIGLU ? 2 * c->n : c->n;
    if (c->epilogue == LINEAR_QKV)
        n = (c->heads + 2 * c->kv_heads) * c->hd + (c->options & WITH_MLP ? 2 * c->n : 0);
    for (int g = 0; g < (c->split ? 2 : 1); g++) {
        struct linear_group *group = &a->group[g];
        int parts = c->parts ? c->parts : 1, left = n;
        group->w.parts = parts;
        for (int i = 0; i < parts; i++) { /* unequal, so that boundaries fall anywhere */
            int rows = i == parts - 1 ? left : left / (parts - i) - i;
            int w =
                add_weight(m, &group->w.part[i], c->options & QUANTISED ? WEIGHT_MATRIX_E4M3 : WEIGHT_MATRIX,
                           rows, c->k, WEIGHT);
            if (e4m3) quantise(m, w, 0, quantised);
            left -= rows;
        }
        if (c->options & WITH_BIAS) add_vector(m, &group->bias, n, NORMAL);
        if (c->options & WITH_GATE) add_f32(m, &group->gate, 1, n, NORMAL);
        if (c->epilogue == LINEAR_QKV) {
            if (c->heads) add_vector(m, &group->q_norm, c->hd, NEAR_ONE);
            add_vector(m, &group->k_norm, c->hd, NEAR_ONE);
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
        if (c->heads) add_head_columns(m, &a->qkv.q, c->heads);
        add_head_columns(m, &a->qkv.k, c->kv_heads);
        add_head_columns(m, &a->qkv.v, c->kv_heads);
        if (c->options & WITH_MLP) add_quantised_y(m, &a->qkv.mlp, c->m, c->n, -1, 1);
        return;
    }
    int residual = -1;
    if (c->epilogue == LINEAR_RESIDUAL)
        residual = add_act(m, &a->residual, c->m, c->n, NORMAL, c->options & Y_F32);
    add_quantised_y(m, &a->y, c->m, c->n, residual, 1);
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
    add_quantised_y(m, &a->o, c->m, c->heads * c->hd, -1, 1);
}

/* A band of y: what it does not need of x is not a number, and the rest of y must stay. */
static void make_band(struct maker *m, struct conv_args *a, int x, int y, int ow)
{
    struct operand *of_x = &m->call->operand[x], *of_y = &m->call->operand[y];
    int first, rows = conv_rows_of_x(a, a->row0, a->rows, &first), pixel = a->x.cols;
    of_y->first = a->row0 * ow;
    of_y->rows = a->rows * ow;
    for (int i = 0; of_x->values && i < a->x.rows * pixel; i++)
        if (i / pixel < first * a->w_px || i / pixel >= (first + rows) * a->w_px) of_x->values[i] = NAN;
}

static void make_conv(struct maker *m, const struct op_case *c, struct conv_args *a)
{
    a->h = c->h;
    a->w_px = c->w;
    a->ksize = c->ksize;
    a->stride = c->stride ? c->stride : 1;
    a->upsample = (c->options & UPSAMPLE) != 0;
    a->row0 = c->row0;
    a->rows = c->rows;
    int ow = c->w * (a->upsample ? 2 : 1) / a->stride, pixels = conv_rows_of_y(a) * ow, residual = -1,
        x = add_x(m, &a->x, c->h * c->w, c->k);
    add_weight(m, &a->w, c->ksize == 1 ? WEIGHT_CONV_1X1 : WEIGHT_CONV_3X3, c->n, c->k * c->ksize * c->ksize,
               WEIGHT);
    if (c->options & WITH_BIAS) add_vector(m, &a->bias, c->n, NORMAL);
    if (c->options & WITH_NORM) add_norm(m, &a->norm, c->k);
    if (c->options & WITH_RESIDUAL) residual = add_act(m, &a->residual, pixels, c->n, NORMAL, 0);
    add_y(m, &a->y, pixels, c->n, residual);
    if (c->rows) make_band(m, a, x, m->call->operands - 1, ow);
    if (c->options & WITH_STATS) add_f32(m, &a->stats, c->groups, 2, NOTHING);
    a->eps = 1e-6f;
}

static void make_patch(struct maker *m, const struct op_case *c, struct patch_args *a, int inverse)
{
    a->h = c->h;
    a->w = c->w;
    a->eps = 1e-4f;
    int tokens = c->h * c->w / 4;
    add_act(m, &a->x, inverse ? tokens : c->h * c->w, inverse ? 4 * c->k : c->k, NORMAL, inverse);
    add_vector(m, &a->mean, 4 * c->k, NORMAL);
    add_vector(m, &a->var, 4 * c->k, VARIANCE);
    add_act(m, &a->y, inverse ? c->h * c->w : tokens, inverse ? c->k : 4 * c->k, NOTHING, !inverse);
}

static void make_args(struct maker *m, const struct op_case *c)
{
    struct op_call *call = m->call;
    switch (c->op) {
    case OP_embed:
        add(m, &call->args.embed.ids, DT_I32, DT_F32, 1, c->m, INDEX);
        add_weight(m, &call->args.embed.table, WEIGHT_MATRIX, c->k, c->n, NORMAL);
        add_y(m, &call->args.embed.y, c->m, c->n, -1);
        break;
    case OP_rmsnorm: {
        int x = add_x(m, &call->args.rmsnorm.x, c->m, c->k);
        add_vector(m, &call->args.rmsnorm.w, c->k, NEAR_ONE);
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
        add_quantised_y(m, &call->args.adaln.y, c->m, c->k, x, 0);
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
            add(m, &call->args.copy.x, m->weights, m->weights, c->m, c->k, NORMAL);
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
        fail(m->err, KLEIN_E_INTERNAL, "no cases of op %d", (int)c->op);
    }
}

/* The operand's memory as it must be before the call (and, outputs apart, after it). The caller frees it; NULL: no memory. */
static char *image(const struct operand *o)
{
    struct tensor t = *o->slot;
    char *p = malloc(o->bytes);
    if (!p) return NULL;
    memset(p, FILL, o->bytes);
    for (int r = 0; o->values && r < t.rows; r++)
        store_row(p + GUARD + (size_t)r * row_bytes(t), t, r, o->values + (size_t)r * (size_t)t.cols);
    if (o->values) store_scales((float *)(p + GUARD + (size_t)t.rows * row_bytes(t)), t);
    return p;
}

/* As the device keeps weights; from then on it is the device's. */
static enum klein_status place_operand(struct op_call *call, struct operand *o, enum dtype act,
                                       struct klein_error *err)
{
    struct tensor t = *o->slot;
    t.ld = t.cols; /* files have no gaps */
    size_t bytes = (size_t)t.rows * row_bytes(t);
    char *host = malloc(bytes + scale_bytes(t));
    if (!host) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a weight of %dx%d", t.rows, t.cols);
    for (int r = 0; r < t.rows; r++)
        store_row(host + (size_t)r * row_bytes(t), t, r, o->values + (size_t)r * (size_t)t.cols);
    t.ptr = host;
    if (scale_bytes(t)) t.scale = (float *)(host + bytes);
    if (t.scale) store_scales(t.scale, t);
    enum klein_status status = call->dev->place(call->dev, o->kind, act, &t, err);
    free(host);
    *o->slot = t;
    return status;
}

static enum klein_status fill_operand(struct op_call *call, struct operand *o, struct klein_error *err)
{
    const size_t rows = (size_t)o->slot->rows * row_bytes(*o->slot), scales = scale_bytes(*o->slot);
    o->bytes = 2 * GUARD + rows + scales;
    char *host = image(o), *memory = host ? call->dev->alloc(call->dev, o->bytes) : NULL;
    enum klein_status status = KLEIN_OK;
    o->memory = memory;
    if (memory)
        status = call->dev->upload(call->dev, memory, host, o->bytes, err);
    else
        status = fail(err, KLEIN_E_NO_MEMORY, "no memory for an operand of %zu bytes", o->bytes);
    free(host);
    o->slot->ptr = memory + GUARD;
    if (scales) o->slot->scale = (float *)(memory + GUARD + rows);
    return status;
}

enum klein_status op_call_open(struct op_call *call, const struct op_case *c, enum dtype act,
                               enum dtype values, struct device *dev, struct klein_error *err)
{
    *call = (struct op_call){.c = c, .dev = dev};
    make_args(&(struct maker){call, act, values, c->weights ? c->weights : DT_BF16, err}, c);
    for (int i = 0; i < call->operands && !err->status; i++) {
        struct operand *o = &call->operand[i];
        if (o->same_as >= 0)
            o->slot->ptr = call->operand[o->same_as].slot->ptr;
        else if (o->weight && dev->place)
            place_operand(call, o, act, err);
        else
            fill_operand(call, o, err);
    }
    if (err->status) op_call_free(call);
    return err->status;
}

enum klein_status op_call_cost(struct op_call *call, struct op_cost *cost, struct klein_error *err)
{
    switch (call->c->op) {
#define X(op, a)                                                                                             \
    case OP_##op:                                                                                            \
        return ops_check_##op(&call->args.op, cost, err);
        KLEIN_OPS(X)
#undef X
    default:
        return KLEIN_E_INTERNAL;
    }
}

enum klein_status op_call_run(struct op_call *call, struct klein_error *err)
{
    TRY(op_call_cost(call, NULL, err));
    switch (call->c->op) {
#define X(op, a)                                                                                             \
    case OP_##op:                                                                                            \
        return call->dev->ops->op(call->dev, &call->args.op, err);
        KLEIN_OPS(X)
#undef X
    default:
        return KLEIN_E_INTERNAL;
    }
}

enum klein_status op_call_clear(struct op_call *call, struct klein_error *err)
{
    for (int i = 0; i < call->operands && !err->status; i++) {
        struct operand *o = &call->operand[i];
        char *host = o->output ? image(o) : NULL;
        if (o->output && !host)
            fail(err, KLEIN_E_NO_MEMORY, "no memory for an output of %zu bytes", o->bytes);
        if (host) call->dev->upload(call->dev, o->memory, host, o->bytes, err);
        free(host);
    }
    return err->status;
}

/* The output that is in the operand's memory; NULL: none. */
static const struct operand *shared(const struct op_call *call, int operand)
{
    for (int i = 0; i < call->operands; i++)
        if (call->operand[i].same_as == operand) return &call->operand[i];
    return NULL;
}

/* Whether the memory is as it was, elements of outputs apart. */
static enum klein_status check_untouched(struct op_call *call, int i, const char *now,
                                         struct klein_error *err)
{
    struct operand *o = &call->operand[i];
    struct tensor t = *o->slot;
    char *before = image(o);
    if (!before) return fail(err, KLEIN_E_NO_MEMORY, "no memory to compare an operand");
    size_t start = GUARD, used = (size_t)t.cols * dtype_size(t.dtype), b = 0;
    const struct operand *writer = o->output ? o : shared(call, i);
    if (writer)
        for (int r = writer->first; r < writer->first + (writer->rows ? writer->rows : t.rows); r++)
            memcpy(before + start + (size_t)r * row_bytes(t), now + start + (size_t)r * row_bytes(t), used);
    if (o->output)
        memcpy(before + start + (size_t)t.rows * row_bytes(t), now + start + (size_t)t.rows * row_bytes(t),
               scale_bytes(t));
    while (b < o->bytes && before[b] == now[b]) b++;
    free(before);
    if (b == o->bytes) return KLEIN_OK;
    return fail(err, KLEIN_E_INTERNAL, "%s %s: operand %d was written at byte %lld of its memory",
                op_name(call->c->op), call->c->name, i, (long long)b - GUARD);
}

/* What an output's elements stand for, from host memory with the operand's layout. */
static enum klein_status read_values(struct tensor t, struct tensor *out, struct klein_error *err)
{
    *out = tensor_of(malloc((size_t)t.rows * (size_t)t.cols * sizeof(float)), DT_F32, t.rows, t.cols);
    if (!out->ptr) return fail(err, KLEIN_E_NO_MEMORY, "no memory for an output");
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) tensor_set(*out, r, c, tensor_get(t, r, c) * tensor_scale(t, r, c));
    return KLEIN_OK;
}

enum klein_status op_call_read(struct op_call *call, int wanted, struct tensor *out, struct klein_error *err)
{
    *out = (struct tensor){0};
    for (int i = 0, outputs = 0; i < call->operands && !err->status; i++) {
        struct operand *o = &call->operand[i], *holder = o->same_as >= 0 ? &call->operand[o->same_as] : o;
        if (!holder->memory) continue; /* placed: no longer ours to look at */
        char *host = malloc(holder->bytes);
        struct tensor t = *o->slot;
        if (!host)
            fail(err, KLEIN_E_NO_MEMORY, "no memory for an operand of %zu bytes", holder->bytes);
        else
            call->dev->download(call->dev, host, holder->memory, holder->bytes, err);
        if (!err->status && holder == o) check_untouched(call, i, host, err);
        t.ptr = host + GUARD;
        if (scale_bytes(t)) t.scale = (float *)(host + GUARD + (size_t)t.rows * row_bytes(t));
        if (o->rows) t = tensor_rows(t, o->first, o->rows);
        if (!err->status && o->output && outputs++ == wanted) read_values(t, out, err);
        free(host);
    }
    if (err->status) {
        free(out->ptr);
        *out = (struct tensor){0};
    }
    return err->status;
}

void op_call_free(struct op_call *call)
{
    for (int i = 0; i < call->operands; i++) {
        struct operand *o = &call->operand[i];
        if (o->memory) call->dev->free(call->dev, o->memory, o->bytes);
        free(o->values);
        o->memory = NULL;
        o->values = NULL;
    }
}
