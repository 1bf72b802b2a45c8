#include "linear_launch.h"
#include "gemm_sm90_launch.h"
#include "quantise.h"
#include "../backend.h"
#include "../group/exchange_launch.h"
#include "../pointwise/launch_rows.h"
#include "../pointwise/pointwise.h"

#include <limits.h>
#include <stdlib.h>

enum { SCRATCH_MAX = 32 << 20, GRID_Y_MAX = 65535, FAST_HEAD = 128, FEW_ROWS = 8, E4M3_ARCH = 89 };

/* ---- the op in pieces ------------------------------------------------------------------------------------------------- */

/* Columns of the result that have one epilogue, with their rows of W and their place in the outputs. */
struct piece {
    int kind, cols;
    int w, up;  /* first row in W; up: SWIGLU */
    int y_col;  /* first column in the whole result */
    int routed; /* y is the whole result of the group's devices */
    struct tensor y, residual;
    struct tensor bias[LINEAR_GROUPS], gate[LINEAR_GROUPS], norm[LINEAR_GROUPS];
};
struct pieces {
    struct piece piece[LINEAR_SEGMENTS];
    int count;
};

/* devices: y has one's columns */
static struct piece *add_piece(struct pieces *p, int kind, struct tensor y, int w, int devices)
{
    struct piece *piece = &p->piece[p->count++];
    *piece = (struct piece){
        .kind = kind, .cols = y.cols * (devices ? devices : 1), .w = w, .y = y, .routed = devices != 0};
    if (kind == LINEAR_SEGMENT_SWIGLU) piece->up = w + y.cols;
    return piece;
}

static struct pieces pieces_of_qkv(const struct linear_args *a)
{
    struct pieces p = {.count = 0};
    const int q = a->qkv.heads * a->qkv.head_dim, kv = a->qkv.kv_heads * a->qkv.head_dim,
              devices = a->qkv.to.size;
    struct piece *of_q = q ? add_piece(&p, LINEAR_SEGMENT_NORM_ROPE, a->qkv.q, 0, devices) : NULL,
                 *of_k = add_piece(&p, LINEAR_SEGMENT_NORM_ROPE, a->qkv.k, q, devices);
    for (int g = 0; g < LINEAR_GROUPS; g++) {
        if (of_q) of_q->norm[g] = a->group[g].q_norm;
        of_k->norm[g] = a->group[g].k_norm;
    }
    add_piece(&p, LINEAR_SEGMENT_PLAIN, a->qkv.v, q + kv, devices);
    if (a->qkv.mlp.ptr) add_piece(&p, LINEAR_SEGMENT_SWIGLU, a->qkv.mlp, q + 2 * kv, 0);
    return p;
}

static struct pieces pieces_of(const struct linear_args *a)
{
    static const int kinds[] = {[LINEAR_PLAIN] = LINEAR_SEGMENT_PLAIN,
                                [LINEAR_SILU] = LINEAR_SEGMENT_SILU,
                                [LINEAR_RESIDUAL] = LINEAR_SEGMENT_RESIDUAL,
                                [LINEAR_SWIGLU] = LINEAR_SEGMENT_SWIGLU};
    if (a->epilogue == LINEAR_QKV) return pieces_of_qkv(a);
    struct pieces p = {.count = 0};
    struct piece *only = add_piece(&p, kinds[a->epilogue], a->y, 0, 0);
    if (a->epilogue == LINEAR_RESIDUAL) only->residual = a->residual;
    for (int g = 0; g < LINEAR_GROUPS; g++) {
        only->bias[g] = a->group[g].bias;
        if (a->epilogue == LINEAR_RESIDUAL) only->gate[g] = a->group[g].gate;
    }
    return p;
}

static struct tensor columns(struct tensor t, int from, int n)
{
    return t.ptr ? tensor_cols(t, from, n) : t;
}

/* Keeps columns [from, from + n) of a piece. */
static void keep(struct piece *p, int from, int n)
{
    p->cols = n, p->w += from, p->up += from, p->y_col += from;
    if (!p->routed) p->y = columns(p->y, from, n);
    p->residual = columns(p->residual, from, n);
    for (int g = 0; g < LINEAR_GROUPS; g++) {
        p->bias[g] = columns(p->bias[g], from, n);
        p->gate[g] = columns(p->gate[g], from, n);
    }
}

/* Makes two pieces of piece i, the second from column `at`. */
static int cut(struct pieces *p, int i, int at)
{
    if (p->count == LINEAR_SEGMENTS) return 0;
    for (int j = p->count++; j > i; j--) p->piece[j] = p->piece[j - 1];
    keep(&p->piece[i + 1], at, p->piece[i + 1].cols - at);
    keep(&p->piece[i], 0, at);
    return 1;
}

/* Cuts the pieces at row `edge` of W, where a part ends. 0: a head or what shares a scale would be cut, or there are too many pieces. */
static int cut_at(struct pieces *p, int edge, int head_dim)
{
    for (int i = 0; i < p->count; i++) {
        const struct piece *piece = &p->piece[i];
        int at = edge - piece->w;
        if (piece->kind == LINEAR_SEGMENT_SWIGLU && edge > piece->up) at = edge - piece->up;
        if (at <= 0 || at >= piece->cols) continue;
        if ((piece->kind == LINEAR_SEGMENT_NORM_ROPE || piece->routed) && at % head_dim) return 0;
        if (piece->y.ldscale && at % TENSOR_GROUP) return 0;
        if (!cut(p, i, at)) return 0;
    }
    return 1;
}

static int groups_of(const struct linear_args *a)
{
    return a->split ? 2 : 1;
}

/* Cuts them so that each has all its rows of W in one part, in both groups. */
static int cut_at_parts(struct pieces *p, const struct linear_args *a)
{
    for (int g = 0; g < groups_of(a); g++)
        for (int i = 0, edge = 0; i + 1 < a->group[g].w.parts; i++)
            if (!cut_at(p, edge += a->group[g].w.part[i].rows, a->qkv.head_dim)) return 0;
    return 1;
}

/* Rows [from, from + n) of W; they are in one part. */
static struct tensor weight_rows_from(const struct weight *w, int from, int n)
{
    int i = 0;
    while (from >= w->part[i].rows) from -= w->part[i++].rows;
    return tensor_rows(w->part[i], from, n);
}

/* ---- the matrix kernels --------------------------------------------------------------------------------------------------- */

/* What linear_launch, which gives BF16, has made sure of already. */
static enum klein_status check_e4m3(const struct linear_kernel_args *a, struct klein_error *err)
{
    int scaled = a->x_scale != NULL;
    for (int i = 0; i < a->segments; i++)
        for (int g = 0; g < (a->split ? 2 : 1); g++) {
            const struct linear_segment_weights *w = &a->segment[i].group[g];
            scaled = scaled && w->w_scale && (a->segment[i].kind != LINEAR_SEGMENT_SWIGLU || w->up_scale);
        }
    if (!scaled) return fail(err, KLEIN_E_INTERNAL, "linear: F8_E4M3 operands without scales");
    if (a->k % 16 || a->ldx % 16 || (uintptr_t)a->x % 16)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "linear: F8_E4M3 rows of %d: they must be whole, aligned 16 bytes", a->k);
    return KLEIN_OK;
}

/* By KLEIN_GEMM, else by the tuned table, else by the rules. */
static enum klein_status choose(struct gpu *g, const struct gemm_shape *s, const struct gemm_variant **v,
                                struct klein_error *err)
{
    const char *among = getenv("KLEIN_GEMM");
    char key[TUNED_KEY] = "";
    if (g->tuned || g->picked) gemm_key(s, key);
    *v = among && *among ? NULL : gemm_named(s, tuned_kernel(g->tuned, key));
    if (!*v) TRY(gemm_pick(s, among, v, err));
    if (g->picked) g->picked(g->picked_user, OP_linear, key, s, (*v)->name);
    return KLEIN_OK;
}

enum klein_status gemm_launch(struct gpu *g, enum dtype type, const struct linear_kernel_args *args,
                              struct klein_error *err)
{
    if (type == DT_F8E4M3) TRY(check_e4m3(args, err));
    struct gemm_shape shape = {
        .arch = g->arch,
        .multiprocessors = g->multiprocessors,
        .shared_max = g->shared_max,
        .type = type,
        .groups = args->ldscale != 0,
        .rows = {args->split ? args->split : args->m, args->split ? args->m - args->split : 0},
        .segments = args->segments,
        .k = args->k};
    for (int i = 0; i < args->segments; i++) {
        const struct linear_segment *s = &args->segment[i];
        const int swiglu = s->kind == LINEAR_SEGMENT_SWIGLU;
        shape.w_rows[i] = swiglu ? 2 * s->cols : s->cols;
        shape.kinds |= 1 << s->kind;
        if (s->y_type == ELEMENT_E4M3) shape.e4m3_y |= 1 << s->kind;
    }
    const struct gemm_variant *v;
    TRY(choose(g, &shape, &v, err));
    if (v->arch_exact) return gemm_sm90_launch(g, v, args, err);
    return launch_rows(g, v->name, gemm_tiles(v, &shape), v->threads, v->shared, args, err);
}

static int is_f32_vector(struct tensor t)
{
    return !t.ptr || (t.dtype == DT_F32 && vectors_fit(t, 2));
}

static int is_table(struct tensor t)
{
    return t.ld == t.cols && vectors_fit(t, 2);
}

/* The segment of a piece, if the matrix kernels take it. */
static int segment_of(const struct piece *p, const struct linear_args *a, struct linear_segment *s)
{
    *s = (struct linear_segment){.kind = p->kind,
                                 .cols = p->cols,
                                 .y_type = matrix_of(p->y).type,
                                 .y_col = p->y_col,
                                 .ldy = p->y.ld,
                                 .ldr = p->residual.ld,
                                 .y = p->y.ptr,
                                 .residual = p->residual.ptr};
    const int y_vector = p->y.dtype == DT_F8E4M3 ? 16 : p->y.dtype == DT_BF16 ? 8 : 2;
    if (p->cols % 8 || !vectors_fit(p->y, y_vector)) return 0;
    if (p->residual.ptr && !vectors_fit(p->residual, p->residual.dtype == DT_BF16 ? 8 : 2)) return 0;
    for (int g = 0; g < groups_of(a); g++) {
        const struct tensor w = weight_rows_from(&a->group[g].w, p->w, p->cols),
                            up = p->kind == LINEAR_SEGMENT_SWIGLU
                                     ? weight_rows_from(&a->group[g].w, p->up, p->cols)
                                     : w;
        const int vector = 16 / (int)dtype_size(w.dtype);
        if (w.dtype != DT_BF16 && !w.scale) return 0;
        if (!vectors_fit(w, vector) || !vectors_fit(up, vector)) return 0;
        if (!is_f32_vector(p->bias[g]) || !is_f32_vector(p->gate[g]) || !is_f32_vector(p->norm[g])) return 0;
        s->group[g] = (struct linear_segment_weights){.w = w.ptr,
                                                      .up = up.ptr,
                                                      .w_scale = w.scale,
                                                      .up_scale = up.scale,
                                                      .bias = p->bias[g].ptr,
                                                      .gate = p->gate[g].ptr,
                                                      .norm = p->norm[g].ptr,
                                                      .ldw = w.ld,
                                                      .ldup = up.ld};
    }
    return 1;
}

/* The kernel's arguments, x apart. 0: the matrix kernels do not take the op. */
static int kernel_args_of(const struct gpu *g, const struct linear_args *a, struct linear_kernel_args *k)
{
    struct pieces p = pieces_of(a);
    if (linear_act(a) != DT_BF16 || a->x.cols % 8 || !cut_at_parts(&p, a)) return 0;
    const int qkv = a->epilogue == LINEAR_QKV;
    if (qkv && (a->qkv.head_dim != FAST_HEAD || !is_table(a->qkv.cos) || !is_table(a->qkv.sin))) return 0;
    *k = (struct linear_kernel_args){.m = a->x.rows, .k = a->x.cols, .split = a->split, .segments = p.count};
    if (qkv) {
        k->cos = a->qkv.cos.ptr, k->sin = a->qkv.sin.ptr;
        k->half = a->qkv.pairs == ROPE_HALF, k->eps = a->qkv.eps;
        k->route = exchange_route_of(g, &a->qkv.to, a->qkv.k.cols);
    }
    for (int i = 0; i < p.count; i++) {
        if ((qkv || a->epilogue == LINEAR_SWIGLU) && p.piece[i].y.dtype == DT_F32) return 0;
        if (!segment_of(&p.piece[i], a, &k->segment[i])) return 0;
        const int64_t ldscale = p.piece[i].y.ldscale;
        if (!ldscale) continue;
        if (ldscale > INT_MAX || (k->ldy_scale && k->ldy_scale != ldscale)) return 0;
        k->y_scale[i] = p.piece[i].y.scale, k->ldy_scale = (int)ldscale;
    }
    return 1;
}

/* ---- bands of rows -------------------------------------------------------------------------------------------------------- */

static struct tensor rows_if(struct tensor t, int from, int n)
{
    return t.ptr ? tensor_rows(t, from, n) : t;
}

/* The op on rows [from, from + n), which are of one group. */
static struct linear_args band_of(const struct linear_args *a, int from, int n)
{
    struct linear_args b = *a;
    b.split = 0;
    if (a->split && from >= a->split) b.group[0] = a->group[1];
    struct tensor *const of_rows[] = {&b.x,       &b.y,     &b.residual, &b.qkv.mlp, &b.qkv.cos,
                                      &b.qkv.sin, &b.qkv.q, &b.qkv.k,    &b.qkv.v};
    const size_t all = sizeof of_rows / sizeof *of_rows, routed = a->qkv.to.size ? 3 : 0; /* q, k, v */
    for (size_t i = 0; i < all - routed; i++) *of_rows[i] = rows_if(*of_rows[i], from, n);
    if (routed) b.qkv.to.place = tensor_cols(a->qkv.to.place, from, n);
    return b;
}

typedef enum klein_status band_fn(struct gpu *g, const struct linear_args *band, void *scratch,
                                  struct klein_error *err);

/* Calls fn on bands of at most `most` rows. */
static enum klein_status for_each_band(struct gpu *g, const struct linear_args *a, size_t most, band_fn *fn,
                                       void *scratch, struct klein_error *err)
{
    if (!most) return fail(err, KLEIN_E_INTERNAL, "linear: the scratch memory does not hold one row");
    for (int from = 0, to; from < a->x.rows; from = to) {
        const int end = from < a->split ? a->split : a->x.rows;
        to = (size_t)(end - from) > most ? from + (int)most : end;
        const struct linear_args band = band_of(a, from, to - from);
        TRY(fn(g, &band, scratch, err));
    }
    return KLEIN_OK;
}

/* ---- x of F32 in a BF16 run ------------------------------------------------------------------------------------------------- */

static size_t rounded_row(const struct linear_args *a)
{
    return a->x.dtype == DT_F32 && linear_act(a) == DT_BF16 ? (size_t)a->x.cols * sizeof(bf16) : 0;
}

static enum klein_status launch_matrix(struct gpu *g, const struct linear_args *a, struct klein_error *err)
{
    struct linear_kernel_args k;
    CHECK(kernel_args_of(g, a, &k));
    k.x = a->x.ptr, k.ldx = a->x.ld;
    return gemm_launch(g, DT_BF16, &k, err);
}

static enum klein_status launch_rounded(struct gpu *g, const struct linear_args *a, void *scratch,
                                        struct klein_error *err)
{
    struct linear_args rounded = *a;
    rounded.x = tensor_of(scratch, DT_BF16, a->x.rows, a->x.cols);
    TRY(pointwise_copy(g, &(struct copy_args){.y = rounded.x, .x = a->x}, err));
    return launch_matrix(g, &rounded, err);
}

/* ---- quantised weights ------------------------------------------------------------------------------------------------------ */

static int is_quantised(const struct linear_args *a)
{
    return a->group[0].w.part[0].dtype == DT_F8E4M3;
}

/* Scratch of a row: x in e4m3 and its scale, unless it comes like that. */
static size_t quantised_row(const struct linear_args *a)
{
    return a->x.dtype == DT_F8E4M3 ? 0 : (size_t)a->x.cols + sizeof(float);
}

static enum klein_status quantised_args(const struct gpu *g, const struct linear_args *a,
                                        struct linear_kernel_args *k, struct klein_error *err)
{
    if (kernel_args_of(g, a, k) && a->x.ldscale <= INT_MAX && a->x.cols % 16 == 0 &&
        vectors_fit(a->x, 16 / (int)dtype_size(a->x.dtype)))
        return KLEIN_OK;
    return fail(err, KLEIN_E_UNSUPPORTED,
                "linear: F8_E4M3 weights: whole, aligned 16 bytes, F32 vectors, results whose scales are "
                "equally far apart and "
                "heads of %d are needed",
                FAST_HEAD);
}

static enum klein_status launch_quantised(struct gpu *g, const struct linear_args *a, void *scratch,
                                          struct klein_error *err)
{
    struct linear_kernel_args k;
    TRY(quantised_args(g, a, &k, err));
    const struct tensor x = tensor_of(scratch, DT_F8E4M3, a->x.rows, a->x.cols),
                        scale = tensor_of(tensor_at(x, x.rows, 0), DT_F32, 1, x.rows);
    TRY(quantise_rows(g, x, scale, a->x, err));
    k.x = x.ptr, k.ldx = x.ld, k.x_scale = scale.ptr;
    return gemm_launch(g, DT_F8E4M3, &k, err);
}

/* Bands of whole tiles where the scratch memory does not hold all rows. */
static enum klein_status launch_e4m3(struct gpu *g, const struct linear_args *a, void *scratch,
                                     size_t scratch_bytes, struct klein_error *err)
{
    enum { TILE = 128 };
    if (g->arch < E4M3_ARCH)
        return fail(err, KLEIN_E_UNSUPPORTED, "linear: FP8 needs sm_89 (Ada) or later; %s is sm_%d", g->name,
                    g->arch);
    if (a->x.dtype == DT_F8E4M3) {
        struct linear_kernel_args k;
        TRY(quantised_args(g, a, &k, err));
        k.x = a->x.ptr, k.ldx = a->x.ld, k.x_scale = a->x.scale, k.ldscale = (int)a->x.ldscale;
        return gemm_launch(g, DT_F8E4M3, &k, err);
    }
    const size_t rows = scratch_bytes / quantised_row(a);
    if (rows >= (size_t)a->x.rows) return launch_quantised(g, a, scratch, err);
    return for_each_band(g, a, rows < TILE ? rows : rows / TILE * TILE, launch_quantised, scratch, err);
}

/* ---- few rows of F32 ----------------------------------------------------------------------------------------------------------- */

static int few_rows_take(const struct linear_args *a)
{
    if (linear_act(a) != DT_F32 || a->x.rows > FEW_ROWS || a->x.cols % 8 || !vectors_fit(a->x, 4) ||
        (a->epilogue != LINEAR_PLAIN && a->epilogue != LINEAR_SILU))
        return 0;
    for (int g = 0; g < groups_of(a); g++)
        for (int i = 0; i < a->group[g].w.parts; i++)
            if (a->group[g].w.part[i].dtype != DT_BF16 || !vectors_fit(a->group[g].w.part[i], 8)) return 0;
    return 1;
}

static enum klein_status launch_few_rows(struct gpu *g, const struct linear_args *a, void *scratch,
                                         struct klein_error *err)
{
    const struct weight *w = &a->group[0].w;
    for (int i = 0, from = 0; i < w->parts; from += w->part[i++].rows) {
        const struct linear_rows_args k = {.y = tensor_at(a->y, 0, from),
                                           .x = a->x.ptr,
                                           .w = w->part[i].ptr,
                                           .bias =
                                               matrix_of(columns(a->group[0].bias, from, w->part[i].rows)),
                                           .ldy = a->y.ld,
                                           .ldx = a->x.ld,
                                           .ldw = w->part[i].ld,
                                           .m = a->x.rows,
                                           .n = w->part[i].rows,
                                           .k = a->x.cols,
                                           .silu = a->epilogue == LINEAR_SILU};
        TRY(launch_rows(g, k.m <= 4 ? "linear_rows_4" : "linear_rows_8",
                        (k.n + LINEAR_ROWS_BLOCK - 1) / LINEAR_ROWS_BLOCK, LINEAR_ROWS_THREADS, 0, &k, err));
    }
    return KLEIN_OK;
}

/* ---- everything else ------------------------------------------------------------------------------------------------------------- */

static size_t product_row(const struct linear_args *a)
{
    return (size_t)weight_rows(&a->group[0].w) * sizeof(float);
}

static unsigned product_tiles(int n)
{
    return (unsigned)((n + LINEAR_SIMPLE_TILE - 1) / LINEAR_SIMPLE_TILE);
}

static enum klein_status launch_product(struct gpu *g, const struct linear_args *a, float *z,
                                        struct klein_error *err)
{
    const struct weight *w = &a->group[0].w;
    for (int i = 0, from = 0; i < w->parts; from += w->part[i++].rows) {
        const struct linear_product_args k = {.z = z + from,
                                              .ldz = weight_rows(w),
                                              .x = matrix_of(a->x),
                                              .w = matrix_of(w->part[i]),
                                              .rows = a->x.rows,
                                              .cols = w->part[i].rows,
                                              .k = a->x.cols,
                                              .round = linear_act(a) == DT_BF16};
        const struct launch l = {.kernel = "linear_simple_product",
                                 .grid = {product_tiles(k.rows), product_tiles(k.cols)},
                                 .threads = LINEAR_SIMPLE_THREADS,
                                 .shared = LINEAR_SIMPLE_SHARED,
                                 .args = &k};
        if (l.grid[1] > GRID_Y_MAX)
            return fail(err, KLEIN_E_UNSUPPORTED, "linear: a weight of %d rows: at most %d", k.cols,
                        GRID_Y_MAX * LINEAR_SIMPLE_TILE);
        TRY(gpu_launch(g, &l, err));
    }
    return KLEIN_OK;
}

static enum klein_status launch_simple(struct gpu *g, const struct linear_args *a, void *scratch,
                                       struct klein_error *err)
{
    TRY(launch_product(g, a, scratch, err));
    const struct pieces p = pieces_of(a);
    for (int i = 0; i < p.count; i++) {
        const struct piece *piece = &p.piece[i];
        const struct linear_finish_args k = {.z = scratch,
                                             .ldz = weight_rows(&a->group[0].w),
                                             .kind = piece->kind,
                                             .rows = a->x.rows,
                                             .cols = piece->cols,
                                             .w = piece->w,
                                             .up = piece->up,
                                             .y = matrix_of(piece->y),
                                             .residual = matrix_of(piece->residual),
                                             .bias = matrix_of(piece->bias[0]),
                                             .gate = matrix_of(piece->gate[0]),
                                             .norm = matrix_of(piece->norm[0]),
                                             .cos = matrix_of(a->qkv.cos),
                                             .sin = matrix_of(a->qkv.sin),
                                             .head_dim = a->qkv.head_dim,
                                             .half = a->qkv.pairs == ROPE_HALF,
                                             .eps = a->qkv.eps,
                                             .y_col = piece->y_col,
                                             .route = piece->routed
                                                          ? exchange_route_of(g, &a->qkv.to, a->qkv.k.cols)
                                                          : (struct exchange_route){0}};
        const int rope = piece->kind == LINEAR_SEGMENT_NORM_ROPE;
        const int64_t each = rope ? LINEAR_SIMPLE_THREADS / 32 : LINEAR_SIMPLE_THREADS,
                      units = (int64_t)k.rows * (rope ? k.cols / k.head_dim : k.cols);
        TRY(launch_rows(g, rope ? "linear_simple_rope" : "linear_simple_finish", (units + each - 1) / each,
                        LINEAR_SIMPLE_THREADS, 0, &k, err));
    }
    return KLEIN_OK;
}

/* ---- the op ------------------------------------------------------------------------------------------------------------------------- */

/* What no kernel does with results in e4m3; what only those of another chip do is found where a kernel is chosen. */
static enum klein_status check_results(const struct linear_args *a, struct klein_error *err)
{
    const struct pieces p = pieces_of(a);
    for (int i = 0; i < p.count; i++) {
        if (p.piece[i].y.dtype != DT_F8E4M3) continue;
        if (!is_quantised(a))
            return fail(err, KLEIN_E_UNSUPPORTED, "linear: results in F8_E4M3 need weights in F8_E4M3");
        if (p.piece[i].routed)
            return fail(err, KLEIN_E_UNSUPPORTED, "linear: q, k, v in F8_E4M3 do not go to other devices");
    }
    return KLEIN_OK;
}

size_t linear_scratch(const struct linear_args *a)
{
    const size_t simple = product_row(a), rounded = rounded_row(a),
                 row = is_quantised(a)    ? quantised_row(a)
                       : simple > rounded ? simple
                                          : rounded;
    const size_t all = row * (size_t)a->x.rows;
    return all <= SCRATCH_MAX ? all : row > SCRATCH_MAX ? row : SCRATCH_MAX;
}

enum klein_status linear_launch(struct gpu *g, const struct linear_args *a, void *scratch,
                                size_t scratch_bytes, struct klein_error *err)
{
    const char *forced = getenv("KLEIN_GEMM");
    if (!scratch) scratch_bytes = 0;
    struct linear_kernel_args k;
    TRY(check_results(a, err));
    if (is_quantised(a)) return launch_e4m3(g, a, scratch, scratch_bytes, err);
    if (!forced || strcmp(forced, "linear_simple")) {
        const size_t row = rounded_row(a);
        if (few_rows_take(a)) return for_each_band(g, a, FEW_ROWS, launch_few_rows, NULL, err);
        if (kernel_args_of(g, a, &k)) {
            if (!row && vectors_fit(a->x, 8)) return launch_matrix(g, a, err);
            if (row && row * (size_t)a->x.rows <= scratch_bytes) return launch_rounded(g, a, scratch, err);
            if (row) return for_each_band(g, a, scratch_bytes / row, launch_rounded, scratch, err);
        }
    }
    return for_each_band(g, a, scratch_bytes / product_row(a), launch_simple, scratch, err);
}
