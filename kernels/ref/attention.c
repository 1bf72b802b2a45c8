#include "ref.h"

enum klein_status REF(attention)(struct device *dev, const struct attention_args *a, struct klein_error *err)
{
    CHECK(!a->to.size); /* works alone */
    int hd = a->head_dim, nq = a->q.rows, nk = attention_keys(a), group = a->heads / a->kv_heads;
    float *q = load_all(a->q, DT_F32), *k = load_all(a->k, DT_F32), *v = load_all(a->v, DT_F32);
    real *scratch = malloc((size_t)dev->threads * (size_t)(nk + hd) * sizeof *scratch);
    if (!q || !k || !v || !scratch) {
        free(q), free(k), free(v), free(scratch);
        return NO_MEMORY("attention");
    }
#pragma omp parallel for collapse(2) num_threads(dev->threads)
    for (int h = 0; h < a->heads; h++)
        for (int i = 0; i < nq; i++) {
            real *score = scratch + (size_t)omp_get_thread_num() * (size_t)(nk + hd), *out = score + nk;
            int keys = a->causal && i + 1 < nk ? i + 1 : nk;
            size_t column = (size_t)(h / group) * (size_t)hd;
            real top = -INFINITY, sum = 0;
            for (int j = 0; j < keys; j++) {
                score[j] = (real)a->scale * dot(q + (size_t)i * (size_t)a->q.cols + (size_t)h * (size_t)hd,
                                                k + (size_t)j * (size_t)a->k.cols + column, hd);
                top = fmax(top, score[j]);
            }
            for (int d = 0; d < hd; d++) out[d] = 0;
            for (int j = 0; j < keys; j++) {
                real p = exp(score[j] - top);
                sum += p;
                const float *row = v + (size_t)j * (size_t)a->v.cols + column;
                for (int d = 0; d < hd; d++) out[d] += p * (real)row[d];
            }
            for (int d = 0; d < hd; d++) out[d] /= sum;
            store_row(tensor_cols(a->o, h * hd, hd), i, out);
        }
    free(q), free(k), free(v), free(scratch);
    return KLEIN_OK;
}
