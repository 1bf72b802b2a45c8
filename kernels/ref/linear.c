#include "ref.h"

enum { ROWS = 64 }; /* rows of x at a time, so that scratch is bounded */

/* acc: columns of y, then as many of what they are multiplied with; overwritten. */
static void store_swiglu(struct tensor y, int i, real *acc)
{
    for (int j = 0; j < y.cols; j++) acc[j] = silu(acc[j]) * acc[y.cols + j];
    store_row(y, i, acc);
}

/* acc[n] of row i of x -> the stored values; overwritten. */
static void store_plain(const struct linear_args *a, int i, real *acc)
{
    const struct linear_group *g = &a->group[split_group(a->split, i)];
    if (a->epilogue == LINEAR_SWIGLU) {
        store_swiglu(a->y, i, acc);
        return;
    }
    for (int j = 0; j < a->y.cols; j++) {
        real z = acc[j] + (g->bias.ptr ? (real)tensor_get(g->bias, 0, j) : 0);
        if (a->epilogue == LINEAR_SILU) z = silu(z);
        if (a->epilogue == LINEAR_RESIDUAL)
            z = (real)tensor_get(a->residual, i, j) + (g->gate.ptr ? (real)tensor_get(g->gate, 0, j) : 1) * z;
        acc[j] = z;
    }
    store_row(a->y, i, acc);
}

/* One head of q or k: RMS norm, rotation. */
static void rotate(const struct linear_args *a, int i, struct tensor norm, real *acc)
{
    int hd = a->qkv.head_dim, half = hd / 2;
    real sum = 0;
    for (int d = 0; d < hd; d++) sum += acc[d] * acc[d];
    real scale = 1 / sqrt(sum / hd + (real)a->qkv.eps);
    for (int j = 0; j < half; j++) {
        int first = a->qkv.pairs == ROPE_HALF ? j : 2 * j,
            second = a->qkv.pairs == ROPE_HALF ? j + half : 2 * j + 1;
        real x = acc[first] * scale * (real)tensor_get(norm, 0, first);
        real z = acc[second] * scale * (real)tensor_get(norm, 0, second);
        real cosine = tensor_get(a->qkv.cos, i, j), sine = tensor_get(a->qkv.sin, i, j);
        acc[first] = x * cosine - z * sine;
        acc[second] = z * cosine + x * sine;
    }
}

static void store_qkv(const struct linear_args *a, int i, real *acc)
{
    const struct linear_group *g = &a->group[split_group(a->split, i)];
    int hd = a->qkv.head_dim, q = a->qkv.heads * hd, kv = a->qkv.kv_heads * hd;
    for (int h = 0; h < q; h += hd) rotate(a, i, g->q_norm, acc + h);
    for (int h = 0; h < kv; h += hd) rotate(a, i, g->k_norm, acc + q + h);
    if (q) store_row(a->qkv.q, i, acc);
    store_row(a->qkv.k, i, acc + q);
    store_row(a->qkv.v, i, acc + q + kv);
    if (a->qkv.mlp.ptr) store_swiglu(a->qkv.mlp, i, acc + q + 2 * kv);
}

enum klein_status REF(linear)(struct device *dev, const struct linear_args *a, struct klein_error *err)
{
    CHECK(!a->qkv.to.size); /* works alone */
    int m = a->x.rows, k = a->x.cols, n = weight_rows(&a->group[0].w);
    /* What a quantised x and its weights stand for is not rounded. */
    enum dtype act = a->x.dtype == DT_F8E4M3 ? DT_F32 : linear_act(a);
    float *x = load_all(a->x, act), *rows = malloc((size_t)dev->threads * (size_t)k * sizeof *rows);
    real *acc = malloc((size_t)n * ROWS * sizeof *acc);
    if (!x || !rows || !acc) {
        free(x), free(rows), free(acc);
        return NO_MEMORY("linear");
    }
    for (int from = 0, to; from < m; from = to) {
        to = from + ROWS < m ? from + ROWS : m;
        if (from < a->split && to > a->split) to = a->split;
        const struct weight *w = &a->group[split_group(a->split, from)].w;
#pragma omp parallel num_threads(dev->threads)
        {
#pragma omp for
            for (int j = 0; j < n; j++) {
                float *row = rows + (size_t)omp_get_thread_num() * (size_t)k;
                load_row(row, weight_row(w, j), 0, act);
                for (int i = from; i < to; i++)
                    acc[(size_t)(i - from) * (size_t)n + (size_t)j] = dot(x + (size_t)i * (size_t)k, row, k);
            }
#pragma omp for
            for (int i = from; i < to; i++) {
                real *row = acc + (size_t)(i - from) * (size_t)n;
                if (a->epilogue == LINEAR_QKV)
                    store_qkv(a, i, row);
                else
                    store_plain(a, i, row);
            }
        }
    }
    free(x), free(rows), free(acc);
    return KLEIN_OK;
}
