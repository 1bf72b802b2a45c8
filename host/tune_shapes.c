#include "tune.h"

#include "../kernels/cuda/dry.h"

#include <stdlib.h>
#include <string.h>

struct walk {
    struct dry_device *dry;
    struct tune_shapes *shapes;
    int rank; /* of the card whose share this is */
    struct klein_error *err;
};

/* ---- an op as a case ------------------------------------------------------------------------------------ */

static int option(int present, enum op_option o)
{
    return present ? o : 0;
}

static struct op_case linear_case(const struct linear_args *a)
{
    struct op_case c = {
        .op = OP_linear, .m = a->x.rows, .k = a->x.cols, .split = a->split, .epilogue = a->epilogue};
    const struct linear_group *g = &a->group[0];
    const int e4m3 = a->x.dtype == DT_F8E4M3;
    c.options = option(g->bias.ptr != NULL, WITH_BIAS) | option(g->gate.ptr != NULL, WITH_GATE) |
                option(e4m3, X_E4M3) | option(e4m3 && a->x.ldscale, X_GROUPS) |
                option(a->y.dtype == DT_F8E4M3 || a->qkv.mlp.dtype == DT_F8E4M3, Y_E4M3) |
                option(!e4m3 && g->w.part[0].dtype == DT_F8E4M3, QUANTISED) |
                option(a->x.dtype == DT_F32, X_F32);
    if (a->epilogue == LINEAR_QKV) {
        c.heads = a->qkv.heads;
        c.kv_heads = a->qkv.kv_heads;
        c.hd = a->qkv.head_dim;
        c.pairs = a->qkv.pairs;
        c.n = a->qkv.mlp.ptr ? a->qkv.mlp.cols : 0;
        c.options |= option(a->qkv.mlp.ptr != NULL, WITH_MLP) | option(a->qkv.k.dtype == DT_F8E4M3, QKV_E4M3);
    } else {
        c.n = a->y.cols;
        c.options |= option(a->y.dtype == DT_F32, Y_F32);
    }
    return c;
}

static struct op_case attention_case(const struct attention_args *a)
{
    return (struct op_case){.op = OP_attention,
                            .m = a->q.rows,
                            .n = a->k.rows,
                            .heads = a->heads,
                            .kv_heads = a->kv_heads,
                            .hd = a->head_dim,
                            .key_len = a->keys.ptr ? a->k.rows : 0,
                            .causal = a->causal,
                            .options = option(a->o.dtype == DT_F8E4M3, Y_E4M3)};
}

static struct op_case conv_case(const struct conv_args *a)
{
    return (struct op_case){
        .op = OP_conv,
        .h = a->h,
        .w = a->w_px,
        .k = a->x.cols,
        .n = a->y.cols,
        .ksize = a->ksize,
        .stride = a->stride,
        .groups = a->norm.stats.ptr ? norm_groups(&a->norm) : a->stats.rows,
        .bands = a->norm.stats.ptr && a->norm.bands > 1 ? a->norm.bands : 0,
        .row0 = a->row0,
        .rows = a->rows,
        .options = option(a->upsample, UPSAMPLE) | option(a->bias.ptr != NULL, WITH_BIAS) |
                   option(a->residual.ptr != NULL, WITH_RESIDUAL) |
                   option(a->norm.stats.ptr != NULL, WITH_NORM) | option(a->stats.ptr != NULL, WITH_STATS)};
}

/* ---- the walk ------------------------------------------------------------------------------------------- */

static struct tune_shape *add(struct walk *w, const char *key)
{
    struct tune_shapes *s = w->shapes;
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->shape[i].key, key)) return &s->shape[i];
    if (s->n == s->capacity) {
        const int capacity = s->capacity ? 2 * s->capacity : 32;
        struct tune_shape *more = realloc(s->shape, (size_t)capacity * sizeof *more);
        if (!more) {
            fail(w->err, KLEIN_E_NO_MEMORY, "no memory for %d shapes", capacity);
            return NULL;
        }
        s->shape = more;
        s->capacity = capacity;
    }
    struct tune_shape *shape = &s->shape[s->n++];
    *shape = (struct tune_shape){0};
    snprintf(shape->key, sizeof shape->key, "%s", key);
    return shape;
}

static void on_pick(void *user, enum op_id op, const char *key, const void *shape, const char *kernel)
{
    struct walk *w = user;
    struct tune_shape *s = add(w, key);
    if (!s || (s->calls && s->rank != w->rank) || s->calls++) return;
    s->rank = w->rank;
    s->op = op;
    s->built_in = kernel;
    if (op == OP_linear) {
        s->shape.gemm = *(const struct gemm_shape *)shape;
        s->c = linear_case(w->dry->args);
    } else if (op == OP_attention) {
        s->shape.attention = *(const struct attention_shape *)shape;
        s->c = attention_case(w->dry->args);
    } else {
        s->shape.conv = *(const struct conv_shape *)shape;
        s->c = conv_case(w->dry->args);
    }
    s->c.name = s->built_in;
}

enum klein_status tune_shapes_find(struct device *dev, const struct model_config *config, int fp8,
                                   const struct klein_request *request, int gpus, struct tune_shapes *out,
                                   struct klein_error *err)
{
    struct walk w = {.shapes = out, .err = err};
    struct gpu *g = gpu_of(dev);
    *out = (struct tune_shapes){0};
    TRY(dry_device_open(dev, &w.dry, err));
    g->picked = on_pick;
    g->picked_user = &w;
    for (; w.rank < gpus && !err->status; w.rank++) /* their shares may differ by a row */
        plan_walk(config, DT_BF16, fp8, request, (struct share){.rank = w.rank, .size = gpus}, &w.dry->base,
                  err);
    g->picked = NULL;
    device_close(&w.dry->base);
    return err->status;
}

void tune_shapes_free(struct tune_shapes *s)
{
    free(s->shape);
    *s = (struct tune_shapes){0};
}

void tune_reason(const struct tune_shape *s, char out[TUNE_TEXT])
{
    if (s->op == OP_linear)
        gemm_reason(&s->shape.gemm, gemm_named(&s->shape.gemm, s->built_in), out, TUNE_TEXT);
    else if (s->op == OP_attention)
        attention_reason(&s->shape.attention, attention_named(&s->shape.attention, s->built_in), out,
                         TUNE_TEXT);
    else
        conv_reason(&s->shape.conv, conv_named(&s->shape.conv, s->built_in), out, TUNE_TEXT);
}
