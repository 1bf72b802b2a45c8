#include "vec.h"

#include "../dnn.h"

#include <omp.h>

/* softmax(q k^T) v by blocks of queries and keys with the running maximum and sum of each query: scores exist for one block
 * only. A job is one block of queries of one head. */
enum { BLOCK_Q = 256, BLOCK_K = 512 };

struct block {
    float score[BLOCK_Q * BLOCK_K];
    char p[BLOCK_Q * BLOCK_K * sizeof(float)]; /* probabilities as multiplied: BF16 or F32 */
    float largest[BLOCK_Q], sum[BLOCK_Q];
    float o[]; /* [BLOCK_Q, head_dim] */
};

/* Row of scores -> probabilities against the new maximum; *largest, *sum and the output row so far are brought to it. */
static void softmax_row(float *score, char *p, enum dtype type, int seen, int width, float scale,
                        float *largest, float *sum, float *o, int hd)
{
    vf top = vset(*largest);
    for (int j = 0; j < seen; j += VL) {
        vf s = vload_f32(score + j) * scale;
        if (j + VL > seen) /* what lies beyond is not a score */
            for (int i = seen - j; i < VL; i++) s[i] = -INFINITY;
        vstore_f32(score + j, s);
        top = vmax(s, top);
    }
    float new_top = vlargest(top);
    vf total = {0};
    int j = 0;
    for (; j < seen; j += VL) {
        vf e = vexp(vload_f32(score + j) - new_top);
        if (j + VL > seen)
            for (int i = seen - j; i < VL; i++) e[i] = 0;
        total += e;
        vput(p, type, j, j + VL, e);
    }
    for (; j < width; j += VL) vput(p, type, j, j + VL, (vf){0});
    if (new_top > *largest) {
        float shrink = *sum > 0 ? expf(*largest - new_top) : 0;
        *sum *= shrink;
        for (int d = 0; d < hd; d++) o[d] *= shrink;
        *largest = new_top;
    }
    *sum += vsum(total);
}

/* Queries [from, from + n) of head h. */
static enum klein_status attend(struct cpu_device *cpu, const struct attention_args *a, enum dtype type,
                                int keys, int h, int from, int n, struct block *b)
{
    int hd = a->head_dim, thread = omp_get_thread_num(), column = h / (a->heads / a->kv_heads) * hd;
    size_t element = dtype_size(type);
    for (int i = 0; i < n; i++) b->largest[i] = -INFINITY, b->sum[i] = 0;
    memset(b->o, 0, (size_t)n * (size_t)hd * sizeof *b->o);
    int last = a->causal ? min_int(keys, from + n) : keys; /* no query of this block sees more */
    for (int j = 0; j < last; j += BLOCK_K) {
        int width = min_int(BLOCK_K, last - j);
        TRY(dnn_matmul(cpu->dnn, thread,
                       &(struct dnn_matmul){n, width, hd, a->q.ld, a->k.ld, BLOCK_K, type, .transposed = 1},
                       tensor_at(a->q, from, h * hd), tensor_at(a->k, j, column), b->score));
        for (int i = 0; i < n; i++) {
            int seen = a->causal ? min_int(width, from + i + 1 - j) : width;
            softmax_row(b->score + (size_t)i * BLOCK_K, b->p + (size_t)i * BLOCK_K * element, type,
                        seen < 0 ? 0 : seen, width, a->scale, &b->largest[i], &b->sum[i],
                        b->o + (size_t)i * (size_t)hd, hd);
        }
        TRY(dnn_matmul(cpu->dnn, thread,
                       &(struct dnn_matmul){n, hd, width, BLOCK_K, a->v.ld, hd, type, .accumulate = 1}, b->p,
                       tensor_at(a->v, j, column), b->o));
    }
    for (int i = 0; i < n; i++) {
        float *o = b->o + (size_t)i * (size_t)hd, inverse = 1 / b->sum[i];
        for (int d = 0; d < hd; d += VL)
            vput(tensor_at(a->o, from + i, h * hd), a->o.dtype, d, hd, vget(o, DT_F32, d, hd) * inverse);
    }
    return KLEIN_OK;
}

/* A copy of t as F32, in scratch. */
static struct tensor widened(struct cpu_device *cpu, struct tensor t, char **scratch)
{
    struct tensor wide = tensor_of(*scratch, DT_F32, t.rows, t.cols);
    *scratch += aligned((size_t)t.rows * (size_t)t.cols * sizeof(float));
#pragma omp parallel for num_threads(cpu->base.threads)
    for (int i = 0; i < t.rows; i++) ISA(convert)(row_of(wide, i), DT_F32, row_of(t, i), t.dtype, t.cols);
    return wide;
}

enum klein_status ISA(cpu_attention)(struct device *dev, const struct attention_args *args,
                                     struct klein_error *err)
{
    struct cpu_device *cpu = cpu_of(dev);
    struct attention_args a = *args;
    int widen = a.q.dtype == DT_BF16 && !cpu->bf16, blocks = ceil_div(a.q.rows, BLOCK_Q);
    size_t per_thread = aligned(sizeof(struct block) + (size_t)BLOCK_Q * (size_t)a.head_dim * sizeof(float));
    size_t wide = 0;
    if (widen)
        wide = aligned((size_t)a.q.rows * (size_t)a.q.cols * sizeof(float)) +
               2 * aligned((size_t)a.k.rows * (size_t)a.k.cols * sizeof(float));
    char *scratch;
    TRY(cpu_scratch(cpu, wide + (size_t)dev->threads * per_thread, &scratch, err));
    if (widen) {
        a.q = widened(cpu, a.q, &scratch);
        a.k = widened(cpu, a.k, &scratch);
        a.v = widened(cpu, a.v, &scratch);
    }
    int keys = a.key_len ? a.key_len : a.k.rows;
    enum klein_status status = KLEIN_OK;
#pragma omp parallel num_threads(dev->threads)
    {
        dnn_enter();
        struct block *b = (struct block *)(scratch + (size_t)omp_get_thread_num() * per_thread);
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < a.heads * blocks; t++) {
            int from = (blocks - 1 - t % blocks) * BLOCK_Q; /* causal: the longest first */
            enum klein_status s =
                attend(cpu, &a, a.q.dtype, keys, t / blocks, from, min_int(BLOCK_Q, a.q.rows - from), b);
            if (s != KLEIN_OK) {
#pragma omp atomic write
                status = s;
            }
        }
    }
    return status == KLEIN_OK
               ? KLEIN_OK
               : fail(err, status, "attention: oneDNN failed on a block of %dx%d", a.q.rows, a.k.rows);
}
