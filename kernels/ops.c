#include "backend.h"

#include <stdio.h>

const char *op_name(enum op_id op)
{
    static const char *const names[OP_COUNT] = {
#define X(op, args) #op,
        KLEIN_OPS(X)
#undef X
    };
    return (unsigned)op < OP_COUNT ? names[op] : op == OP_exchange ? "exchange" : "?";
}

/* Sets of dtypes that an operand may have. */
#define F32    (1u << DT_F32)
#define BF16   (1u << DT_BF16)
#define ACT    (F32 | BF16)
#define WEIGHT (F32 | BF16 | 1u << DT_F16)
#define E4M3   (1u << DT_F8E4M3)
#define I32    (1u << DT_I32)
#define U8     (1u << DT_U8)
#define ANY    0 /* for rows or cols: any positive number */

static enum klein_status operand(const char *op, const char *name, struct tensor t, unsigned types,
                                 int64_t rows, int64_t cols, struct klein_error *err)
{
    if (!t.ptr) return fail(err, KLEIN_E_INTERNAL, "%s: operand %s is absent", op, name);
    if (!(types >> t.dtype & 1))
        return fail(err, KLEIN_E_INTERNAL, "%s: operand %s cannot be %s", op, name, dtype_name(t.dtype));
    if (t.rows < 1 || t.cols < 1 || (rows != ANY && t.rows != rows) || (cols != ANY && t.cols != cols))
        return fail(err, KLEIN_E_INTERNAL, "%s: operand %s is %dx%d, expected %lldx%lld (0: any)", op, name,
                    t.rows, t.cols, (long long)rows, (long long)cols);
    if (t.ld < t.cols)
        return fail(err, KLEIN_E_INTERNAL, "%s: operand %s has rows of %d elements %lld apart", op, name,
                    t.cols, (long long)t.ld);
    return KLEIN_OK;
}

/* In the checks below `op` and `err` are in scope. */
#define NEED(t, types, rows, cols)                                                                           \
    TRY(operand(op, &#t[3], t, types, rows, cols, err)) /* [3]: without "a->" */
#define SAME_TYPE(t, u)                                                                                      \
    do {                                                                                                     \
        if ((t).dtype != (u).dtype)                                                                          \
            return fail(err, KLEIN_E_INTERNAL, "%s: %s is %s but %s is %s", op, &#t[3],                      \
                        dtype_name((t).dtype), &#u[3], dtype_name((u).dtype));                               \
    } while (0)
#define RULE(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) return fail(err, KLEIN_E_INTERNAL, "%s: needs %s", op, #condition);                \
    } while (0)

static double bytes_of(struct tensor t)
{
    double scales = t.scale ? (double)t.rows * tensor_groups(t) * sizeof *t.scale : 0;
    return t.ptr ? (double)t.rows * t.cols * (double)dtype_size(t.dtype) + scales : 0;
}

#define COST(cost, flops_, bytes_, ...)                                                                      \
    do {                                                                                                     \
        if (cost) {                                                                                          \
            *(cost) = (struct op_cost){.flops = (flops_), .bytes = (bytes_)};                                \
            snprintf((cost)->shape, sizeof(cost)->shape, __VA_ARGS__);                                       \
        }                                                                                                    \
    } while (0)

enum klein_status ops_check_embed(const struct embed_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "embed";
    NEED(a->table, WEIGHT, ANY, ANY);
    NEED(a->ids, I32, 1, ANY);
    NEED(a->y, ACT, a->ids.cols, a->table.cols);
    double rows = (double)a->ids.cols * a->table.cols * (double)dtype_size(a->table.dtype);
    COST(cost, 0, rows + bytes_of(a->ids) + bytes_of(a->y), "%dx%d of %d", a->y.rows, a->y.cols,
         a->table.rows);
    return KLEIN_OK;
}

enum klein_status ops_check_rmsnorm(const struct rmsnorm_args *a, struct op_cost *cost,
                                    struct klein_error *err)
{
    const char *op = "rmsnorm";
    NEED(a->x, ACT, ANY, ANY);
    NEED(a->y, ACT, a->x.rows, a->x.cols);
    SAME_TYPE(a->y, a->x);
    NEED(a->w, WEIGHT, 1, a->x.cols);
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y) + bytes_of(a->w), "%dx%d", a->x.rows, a->x.cols);
    return KLEIN_OK;
}

enum klein_status ops_check_adaln(const struct adaln_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "adaln";
    NEED(a->x, ACT, ANY, ANY);
    NEED(a->y, ACT | E4M3, a->x.rows, a->x.cols);
    if (a->y.dtype == DT_F8E4M3) {
        RULE(a->y.scale && !a->y.ldscale && a->y.ptr != a->x.ptr);
    } else {
        SAME_TYPE(a->y, a->x);
    }
    RULE(a->split >= 0 && a->split <= a->x.rows);
    NEED(a->shift[0], F32, 1, a->x.cols);
    NEED(a->scale[0], F32, 1, a->x.cols);
    if (a->split) {
        NEED(a->shift[1], F32, 1, a->x.cols);
        NEED(a->scale[1], F32, 1, a->x.cols);
    }
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y) + (a->split ? 16.0 : 8.0) * a->x.cols, "%dx%d%s", a->x.rows,
         a->x.cols, a->y.dtype == DT_F8E4M3 ? " e4m3" : "");
    if (cost) cost->m = a->x.rows, cost->n = a->x.cols;
    return KLEIN_OK;
}

static enum klein_status check_weight(const char *op, const struct weight *w, int64_t k,
                                      struct klein_error *err)
{
    if (w->parts < 1 || w->parts > WEIGHT_PARTS)
        return fail(err, KLEIN_E_INTERNAL, "%s: weight of %d parts", op, w->parts);
    for (int i = 0; i < w->parts; i++) {
        TRY(operand(op, "weight", w->part[i], WEIGHT | E4M3, ANY, k, err));
        if ((w->part[i].dtype == DT_F8E4M3) != (w->part[i].scale != NULL) || w->part[i].ldscale)
            return fail(err, KLEIN_E_INTERNAL, "%s: weight of %s %s scales", op, dtype_name(w->part[i].dtype),
                        w->part[i].scale ? "with" : "without");
        if (w->part[i].dtype != w->part[0].dtype)
            return fail(err, KLEIN_E_INTERNAL, "%s: weight parts of %s and %s", op,
                        dtype_name(w->part[0].dtype), dtype_name(w->part[i].dtype));
    }
    return KLEIN_OK;
}

/* A result that is of type act, or quantised with scales per TENSOR_GROUP columns. */
static enum klein_status check_result(const char *op, const char *name, struct tensor t, enum dtype act,
                                      struct klein_error *err)
{
    if (t.dtype == DT_F8E4M3 ? act == DT_BF16 && t.scale && t.ldscale >= t.rows : t.dtype == act)
        return KLEIN_OK;
    return fail(err, KLEIN_E_INTERNAL,
                "%s: %s is %s beside %s; needs that type, or BF16 and F8_E4M3 with scales per %d columns", op,
                name, dtype_name(t.dtype), dtype_name(act), TENSOR_GROUP);
}

/* What else holds when a weight is quantised: the other group's is too. When x is: all weights are. */
static enum klein_status check_quantised(const struct linear_args *a, struct klein_error *err)
{
    const char *op = "linear";
    int quantised = 0, groups = a->split ? 2 : 1;
    for (int g = 0; g < groups; g++) quantised += a->group[g].w.part[0].dtype == DT_F8E4M3;
    if (a->x.dtype == DT_F8E4M3)
        RULE(a->x.scale && quantised && (!a->x.ldscale || a->x.ldscale >= a->x.rows));
    if (!quantised) return KLEIN_OK;
    RULE(quantised == groups);
    RULE(a->epilogue != LINEAR_SILU);
    return KLEIN_OK;
}

/* A result of which `rows` are made here, for the devices of a group. */
static enum klein_status check_to(const char *op, const struct exchange_to *to, int rows,
                                  struct klein_error *err)
{
    RULE(to->size <= GROUP_MAX && to->rank >= 0 && to->rank < to->size);
    return operand(op, "to.place", to->place, I32, 1, rows, err);
}

/* Those that are not quantised have one type. */
static enum klein_status check_qkv_results(const struct linear_args *a, struct klein_error *err)
{
    static const char *const names[] = {"qkv.mlp", "qkv.v", "qkv.k", "qkv.q"};
    const struct tensor results[] = {a->qkv.mlp, a->qkv.v, a->qkv.k, a->qkv.q};
    enum dtype act = DT_BF16;
    for (int i = 0; i < 4; i++)
        if (results[i].ptr && results[i].dtype != DT_F8E4M3) act = results[i].dtype;
    for (int i = 0; i < 4; i++)
        if (results[i].ptr) TRY(check_result("linear", names[i], results[i], act, err));
    return KLEIN_OK;
}

static enum klein_status check_qkv(const struct linear_args *a, int64_t n, struct klein_error *err)
{
    const char *op = "linear";
    int m = a->x.rows, hd = a->qkv.head_dim, devices = a->qkv.to.size ? a->qkv.to.size : 1;
    int64_t heads = a->qkv.heads, kv = a->qkv.kv_heads, rows = a->qkv.to.size ? a->qkv.k.rows : m;
    RULE(a->qkv.heads >= 0 && a->qkv.kv_heads > 0 && a->qkv.head_dim > 0 && a->qkv.head_dim % 2 == 0);
    if (a->qkv.to.size) {
        TRY(check_to(op, &a->qkv.to, m, err));
        RULE((heads == kv || heads == 0) && kv % devices == 0);
    }
    if (heads)
        NEED(a->qkv.q, ACT | E4M3, rows, heads / devices * hd);
    else
        RULE(!a->qkv.q.ptr);
    NEED(a->qkv.k, ACT | E4M3, rows, kv / devices * hd);
    NEED(a->qkv.v, ACT | E4M3, rows, kv / devices * hd);
    NEED(a->qkv.cos, F32, m, hd / 2);
    NEED(a->qkv.sin, F32, m, hd / 2);
    int64_t rest = n - (heads + 2 * kv) * hd;
    if (a->qkv.mlp.ptr) {
        RULE(rest > 0 && rest % 2 == 0);
        NEED(a->qkv.mlp, ACT | E4M3, m, rest / 2);
    } else {
        RULE(rest == 0);
    }
    TRY(check_qkv_results(a, err));
    for (int g = 0; g < (a->split ? 2 : 1); g++) {
        if (heads) NEED(a->group[g].q_norm, WEIGHT, 1, hd);
        NEED(a->group[g].k_norm, WEIGHT, 1, hd);
        RULE(!a->group[g].bias.ptr);
    }
    return KLEIN_OK;
}

enum klein_status ops_check_linear(const struct linear_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "linear";
    NEED(a->x, ACT | E4M3, ANY, ANY);
    int m = a->x.rows, k = a->x.cols, n = 0;
    RULE(a->split >= 0 && a->split <= m);
    double bytes = bytes_of(a->x);
    for (int g = 0; g < (a->split ? 2 : 1); g++) {
        const struct weight *w = &a->group[g].w;
        TRY(check_weight(op, w, k, err));
        if (g) RULE(weight_rows(&a->group[1].w) == weight_rows(&a->group[0].w));
        n = weight_rows(w);
        if (a->group[g].bias.ptr) NEED(a->group[g].bias, WEIGHT, 1, n);
        for (int i = 0; i < w->parts; i++) bytes += bytes_of(w->part[i]);
    }
    TRY(check_quantised(a, err));
    switch (a->epilogue) {
    case LINEAR_PLAIN:
        NEED(a->y, ACT | E4M3, m, n);
        break;
    case LINEAR_SILU:
        NEED(a->y, ACT, m, n);
        break;
    case LINEAR_RESIDUAL:
        NEED(a->y, ACT | E4M3, m, n);
        if (a->y.dtype == DT_F8E4M3) {
            NEED(a->residual, BF16, m, n);
            RULE(a->y.ptr != a->residual.ptr);
        } else {
            NEED(a->residual, ACT, m, n);
            SAME_TYPE(a->residual, a->y);
        }
        for (int g = 0; g < (a->split ? 2 : 1); g++)
            if (a->group[g].gate.ptr) NEED(a->group[g].gate, F32, 1, n);
        bytes += bytes_of(a->residual);
        break;
    case LINEAR_SWIGLU:
        RULE(n % 2 == 0);
        NEED(a->y, ACT | E4M3, m, n / 2);
        for (int g = 0; g < (a->split ? 2 : 1); g++) RULE(!a->group[g].bias.ptr);
        break;
    case LINEAR_QKV:
        TRY(check_qkv(a, n, err));
        break;
    default:
        return fail(err, KLEIN_E_INTERNAL, "linear: no epilogue %d", (int)a->epilogue);
    }
    const struct exchange_to *to = &a->qkv.to;
    if (a->epilogue != LINEAR_QKV) {
        if (a->y.dtype == DT_F8E4M3) TRY(check_result(op, "y", a->y, linear_act(a), err));
        bytes += bytes_of(a->y);
    } else {
        bytes += to->size ? (double)m * (a->qkv.heads + 2 * a->qkv.kv_heads) * a->qkv.head_dim *
                                (double)dtype_size(a->qkv.k.dtype)
                          : bytes_of(a->qkv.q) + bytes_of(a->qkv.k) + bytes_of(a->qkv.v);
        bytes += bytes_of(a->qkv.mlp) + bytes_of(a->qkv.cos) + bytes_of(a->qkv.sin);
    }
    static const char *const kinds[] = {"", " silu", " residual", " swiglu", " qkv"};
    char whereto[16] = "";
    if (to->size) snprintf(whereto, sizeof whereto, " to %d", to->size);
    COST(cost, 2.0 * m * n * k, bytes, "%dx%d @ %d%s%s", m, k, n, kinds[a->epilogue], whereto);
    if (cost) {
        if (to->size)
            cost->sent = (a->qkv.heads ? 3.0 : 2.0) * m * (to->size - 1) * a->qkv.k.cols *
                         (double)dtype_size(a->qkv.k.dtype);
        cost->m = m, cost->n = n, cost->k = k, cost->split = a->split;
        cost->epilogue = a->epilogue;
        cost->swiglu = a->epilogue == LINEAR_SWIGLU || a->qkv.mlp.ptr;
    }
    return KLEIN_OK;
}

enum klein_status ops_check_attention(const struct attention_args *a, struct op_cost *cost,
                                      struct klein_error *err)
{
    const char *op = "attention";
    RULE(a->heads > 0 && a->kv_heads > 0 && a->heads % a->kv_heads == 0 && a->head_dim > 0);
    NEED(a->q, ACT, ANY, (int64_t)a->heads * a->head_dim);
    NEED(a->k, ACT, ANY, (int64_t)a->kv_heads * a->head_dim);
    NEED(a->v, ACT, a->k.rows, a->k.cols);
    SAME_TYPE(a->k, a->q);
    SAME_TYPE(a->v, a->q);
    if (a->to.size) {
        TRY(check_to(op, &a->to, a->q.rows, err));
        NEED(a->o, ACT | E4M3, ANY, (int64_t)a->to.size * a->q.cols);
    } else {
        NEED(a->o, ACT | E4M3, a->q.rows, a->q.cols);
    }
    TRY(check_result(op, "o", a->o, a->q.dtype, err));
    RULE(a->o.dtype != DT_F8E4M3 || a->head_dim == TENSOR_GROUP);
    if (a->keys.ptr) NEED(a->keys, I32, 1, 1);
    RULE(!a->causal || a->q.rows == a->k.rows);
    RULE(a->scale > 0);
    char whereto[16] = "";
    if (a->to.size) snprintf(whereto, sizeof whereto, " to %d", a->to.size);
    struct tensor made = a->o;
    made.rows = a->q.rows, made.cols = a->q.cols;
    COST(cost, 4.0 * a->q.rows * a->k.rows * a->head_dim * a->heads,
         bytes_of(a->q) + bytes_of(a->k) + bytes_of(a->v) + bytes_of(made), "%dx%d, %d/%d heads x %d%s%s",
         a->q.rows, a->k.rows, a->heads, a->kv_heads, a->head_dim, a->causal ? ", causal" : "", whereto);
    if (cost) {
        if (a->to.size)
            cost->sent = (double)a->q.rows * (a->to.size - 1) / a->to.size * a->q.cols *
                         (double)dtype_size(a->o.dtype);
        cost->m = a->q.rows, cost->n = a->k.rows, cost->k = a->head_dim;
        cost->heads = a->heads, cost->causal = a->causal;
    }
    return KLEIN_OK;
}

enum klein_status ops_check_timestep(const struct timestep_args *a, struct op_cost *cost,
                                     struct klein_error *err)
{
    const char *op = "timestep";
    NEED(a->t, F32, 1, ANY);
    NEED(a->y, F32, a->t.cols, ANY);
    RULE(a->y.cols % 2 == 0);
    COST(cost, 0, bytes_of(a->t) + bytes_of(a->y), "%dx%d", a->y.rows, a->y.cols);
    return KLEIN_OK;
}

static enum klein_status check_norm(const char *op, struct group_norm norm, int channels,
                                    struct klein_error *err)
{
    TRY(operand(op, "norm.stats", norm.stats, F32, ANY, 2, err));
    RULE(norm.bands >= 0 && norm.bands <= GROUP_MAX && norm.stats.rows % norm_bands(&norm) == 0);
    for (int i = 0; i < norm.bands && norm.bands > 1; i++) RULE(norm.weight[i] > 0);
    if (channels % norm_groups(&norm))
        return fail(err, KLEIN_E_INTERNAL, "%s: %d channels in %d groups", op, channels, norm_groups(&norm));
    TRY(operand(op, "norm.gamma", norm.gamma, WEIGHT, 1, channels, err));
    return operand(op, "norm.beta", norm.beta, WEIGHT, 1, channels, err);
}

int conv_rows_of_y(const struct conv_args *a)
{
    return a->h * (a->upsample ? 2 : 1) / a->stride;
}

int conv_rows_of_x(const struct conv_args *a, int row0, int rows, int *first)
{
    const int padding = a->ksize == 3 && a->stride == 1, up = a->upsample ? 2 : 1,
              top = row0 * a->stride - padding, last = (top + (rows - 1) * a->stride + a->ksize - 1) / up;
    *first = top < 0 ? 0 : top / up;
    return (last < a->h ? last + 1 : a->h) - *first;
}

enum klein_status ops_check_conv(const struct conv_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "conv";
    RULE(a->ksize == 1 || a->ksize == 3);
    RULE(a->stride == 1 || (a->stride == 2 && a->ksize == 3 && !a->upsample));
    RULE(a->h > 0 && a->w_px > 0 && a->h % a->stride == 0 && a->w_px % a->stride == 0);
    int64_t taps = a->ksize * a->ksize, oh = conv_rows_of_y(a),
            ow = a->w_px * (a->upsample ? 2 : 1) / a->stride;
    RULE(a->rows > 0 ? a->row0 >= 0 && a->row0 + a->rows <= oh : a->rows == 0 && a->row0 == 0);
    RULE(!a->upsample || (a->row0 % 2 == 0 && a->rows % 2 == 0));
    NEED(a->x, ACT, (int64_t)a->h * a->w_px, ANY);
    NEED(a->w, WEIGHT, ANY, a->x.cols * taps);
    NEED(a->y, ACT, oh * ow, a->w.rows);
    SAME_TYPE(a->y, a->x);
    if (a->bias.ptr) NEED(a->bias, WEIGHT, 1, a->w.rows);
    if (a->residual.ptr) {
        NEED(a->residual, ACT, oh * ow, a->w.rows);
        SAME_TYPE(a->residual, a->y);
    }
    if (a->norm.stats.ptr) TRY(check_norm(op, a->norm, a->x.cols, err));
    if (a->stats.ptr) {
        NEED(a->stats, F32, ANY, 2);
        RULE(a->y.cols % a->stats.rows == 0 && a->stats.ptr != a->norm.stats.ptr);
    }
    int first, made = a->rows ? a->rows : (int)oh;
    char band[32] = "";
    if (a->rows) snprintf(band, sizeof band, ", rows %d-%d", a->row0, a->row0 + a->rows - 1);
    const double read = bytes_of(a->x) * conv_rows_of_x(a, a->row0, made, &first) / a->h,
                 pixels = (double)(made * ow), of_y = (double)made / (double)oh;
    COST(cost, 2 * pixels * a->w.rows * a->w.cols,
         read + bytes_of(a->w) + bytes_of(a->bias) + (bytes_of(a->y) + bytes_of(a->residual)) * of_y,
         "%dx%d, %d > %d, %dx%d%s%s%s%s%s", a->w_px, a->h, a->x.cols, a->w.rows, a->ksize, a->ksize,
         a->stride == 2 ? " /2" : "", a->upsample ? " x2" : "", a->norm.stats.ptr ? " norm" : "",
         a->stats.ptr ? " stats" : "", band);
    if (cost) {
        cost->m = pixels, cost->n = a->w.rows, cost->k = a->w.cols;
        cost->norm_bytes = a->norm.stats.ptr ? 2 * read : 0;
        cost->stats = a->stats.ptr != NULL;
    }
    return KLEIN_OK;
}

enum klein_status ops_check_gn_stats(const struct gn_stats_args *a, struct op_cost *cost,
                                     struct klein_error *err)
{
    const char *op = "gn_stats";
    NEED(a->x, ACT, ANY, ANY);
    NEED(a->stats, F32, ANY, 2);
    RULE(a->x.cols % a->stats.rows == 0);
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->stats), "%dx%d, %d groups", a->x.rows, a->x.cols,
         a->stats.rows);
    return KLEIN_OK;
}

enum klein_status ops_check_gn_apply(const struct gn_apply_args *a, struct op_cost *cost,
                                     struct klein_error *err)
{
    const char *op = "gn_apply";
    NEED(a->x, ACT, ANY, ANY);
    NEED(a->y, ACT, a->x.rows, a->x.cols);
    SAME_TYPE(a->y, a->x);
    TRY(check_norm(op, a->norm, a->x.cols, err));
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y), "%dx%d, %d groups%s", a->x.rows, a->x.cols,
         norm_groups(&a->norm), a->silu ? ", silu" : "");
    return KLEIN_OK;
}

static enum klein_status check_patch(const char *op, const struct patch_args *a, struct tensor image,
                                     struct tensor tokens, struct op_cost *cost, struct klein_error *err)
{
    RULE(a->h > 0 && a->w > 0 && a->h % 2 == 0 && a->w % 2 == 0);
    TRY(operand(op, "image", image, ACT, (int64_t)a->h * a->w, ANY, err));
    TRY(operand(op, "tokens", tokens, F32, (int64_t)a->h * a->w / 4, (int64_t)image.cols * 4, err));
    NEED(a->mean, WEIGHT, 1, tokens.cols);
    NEED(a->var, WEIGHT, 1, tokens.cols);
    COST(cost, 0, bytes_of(image) + bytes_of(tokens), "%dx%d, %d channels", a->w, a->h, image.cols);
    return KLEIN_OK;
}

enum klein_status ops_check_patchify(const struct patch_args *a, struct op_cost *cost,
                                     struct klein_error *err)
{
    return check_patch("patchify", a, a->x, a->y, cost, err);
}

enum klein_status ops_check_unpatchify(const struct patch_args *a, struct op_cost *cost,
                                       struct klein_error *err)
{
    return check_patch("unpatchify", a, a->y, a->x, cost, err);
}

enum klein_status ops_check_euler(const struct euler_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "euler";
    NEED(a->x, F32, ANY, ANY);
    NEED(a->v, F32, a->x.rows, a->x.cols);
    NEED(a->y, F32, a->x.rows, a->x.cols);
    NEED(a->dt, F32, 1, 1);
    COST(cost, 0, 3 * bytes_of(a->x), "%dx%d", a->x.rows, a->x.cols);
    return KLEIN_OK;
}

enum klein_status ops_check_cfg(const struct cfg_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "cfg";
    NEED(a->cond, F32, ANY, ANY);
    NEED(a->uncond, F32, a->cond.rows, a->cond.cols);
    NEED(a->y, F32, a->cond.rows, a->cond.cols);
    COST(cost, 0, 3 * bytes_of(a->y), "%dx%d", a->y.rows, a->y.cols);
    return KLEIN_OK;
}

enum klein_status ops_check_copy(const struct copy_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "copy";
    NEED(a->x, WEIGHT, ANY, ANY);
    NEED(a->y, ACT, a->x.rows, a->x.cols);
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y), "%dx%d %s > %s", a->x.rows, a->x.cols,
         dtype_name(a->x.dtype), dtype_name(a->y.dtype));
    return KLEIN_OK;
}

enum klein_status ops_check_to_u8(const struct to_u8_args *a, struct op_cost *cost, struct klein_error *err)
{
    const char *op = "to_u8";
    NEED(a->x, ACT, ANY, 3);
    NEED(a->y, U8, a->x.rows, 3);
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y), "%dx3", a->x.rows);
    return KLEIN_OK;
}

enum klein_status ops_check_from_u8(const struct from_u8_args *a, struct op_cost *cost,
                                    struct klein_error *err)
{
    const char *op = "from_u8";
    NEED(a->x, U8, ANY, 3);
    NEED(a->y, ACT, a->x.rows, 3);
    COST(cost, 0, bytes_of(a->x) + bytes_of(a->y), "%dx3", a->x.rows);
    return KLEIN_OK;
}

/* Only what goes to other devices counts: it is what takes time. */
enum klein_status ops_check_exchange(const struct exchange_args *a, struct op_cost *cost,
                                     struct klein_error *err)
{
    const char *op = "exchange";
    double sent = 0;
    int rows = 0, cols = 0;
    RULE(a->size >= 1 && a->size <= GROUP_MAX && a->rank >= 0 && a->rank < a->size);
    RULE(a->tensors >= 0 && a->tensors <= EXCHANGE_OPERANDS);
    if (!a->tensors) {
        COST(cost, 0, 0, "%d meet", a->size);
        return KLEIN_OK;
    }
    const int element = (int)dtype_size(a->from[0].dtype);
    for (int t = 0; t < a->tensors; t++) {
        NEED(a->from[t], ACT, ANY, ANY);
        NEED(a->to[t], ACT, ANY, ANY);
        SAME_TYPE(a->from[t], a->to[t]);
        SAME_TYPE(a->from[t], a->from[0]);
        RULE((uintptr_t)a->from[t].ptr % 16 == 0 && (uintptr_t)a->to[t].ptr % 16 == 0);
        RULE(a->from[t].ld * element % 16 == 0 && a->to[t].ld * element % 16 == 0);
    }
    for (int i = 0; i < a->size; i++) {
        const struct exchange_way *w = &a->way[i];
        RULE(w->from_col * element % 16 == 0 && w->to_col * element % 16 == 0 && w->cols * element % 16 == 0);
        for (int t = 0; t < a->tensors; t++)
            RULE(w->from_col + w->cols <= a->from[t].cols && w->to_col + w->cols <= a->to[t].cols);
        for (int s = 0; s < EXCHANGE_PARTS; s++) {
            for (int t = 0; t < a->tensors && i == a->rank; t++)
                RULE(!w->span[s].rows || (w->span[s].from + w->span[s].rows <= a->from[t].rows &&
                                          w->span[s].to + w->span[s].rows <= a->to[t].rows));
            if (i == a->rank) continue;
            rows += w->span[s].rows;
            cols = w->cols;
            sent += (double)w->span[s].rows * w->cols * element * a->tensors;
        }
    }
    COST(cost, 0, sent, "%dx%dx%d to %d", a->tensors, rows, cols, a->size - 1);
    if (cost) cost->sent = sent;
    return KLEIN_OK;
}
