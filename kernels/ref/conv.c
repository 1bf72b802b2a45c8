#include "ref.h"

/* Mean and 1 / sqrt(var + eps) of group g of the whole image. */
static void statistics(const struct group_norm *n, int g, real *mean, real *scale)
{
    int bands = norm_bands(n), groups = norm_groups(n);
    real weight = 0, sum = 0, squares = 0;
    *mean = (real)tensor_get(n->stats, g, 0);
    *scale = (real)tensor_get(n->stats, g, 1);
    if (bands == 1) return;
    for (int i = 0; i < bands; i++) {
        weight += (real)n->weight[i];
        sum += (real)n->weight[i] * (real)tensor_get(n->stats, i * groups + g, 0);
    }
    *mean = sum / weight;
    for (int i = 0; i < bands; i++) {
        real d = (real)tensor_get(n->stats, i * groups + g, 0) - *mean,
             s = (real)tensor_get(n->stats, i * groups + g, 1);
        squares += (real)n->weight[i] * (1 / (s * s) + d * d);
    }
    *scale = 1 / (real)sqrt(squares / weight);
}

static real normed(const struct group_norm *n, int channels, int c, real x)
{
    real mean, scale;
    statistics(n, c / (channels / norm_groups(n)), &mean, &scale);
    return (x - mean) * scale * (real)tensor_get(n->gamma, 0, c) + (real)tensor_get(n->beta, 0, c);
}

/* Pixel (row, col) of the (enlarged) input with its surrounding, in the weights' order [cin][ksize][ksize].
 */
static void gather(const struct conv_args *a, const float *x, int row, int col, float *patch)
{
    int size = a->ksize, pad = size == 3 && a->stride == 1, up = a->upsample ? 2 : 1, cin = a->x.cols;
    for (int dy = 0; dy < size; dy++)
        for (int dx = 0; dx < size; dx++) {
            int r = row * a->stride + dy - pad, c = col * a->stride + dx - pad;
            int inside = r >= 0 && c >= 0 && r < a->h * up && c < a->w_px * up;
            const float *pixel =
                inside ? x + ((size_t)(r / up) * (size_t)a->w_px + (size_t)(c / up)) * (size_t)cin : NULL;
            for (int i = 0; i < cin; i++) patch[(i * size + dy) * size + dx] = inside ? pixel[i] : 0;
        }
}

enum klein_status REF(conv)(struct device *dev, const struct conv_args *a, struct klein_error *err)
{
    enum dtype act = a->x.dtype;
    int k = a->w.cols, ow = a->w_px * (a->upsample ? 2 : 1) / a->stride,
        rows = a->rows ? a->rows : conv_rows_of_y(a);
    float *x = load_all(a->x, act), *w = load_all(a->w, act),
          *patches = malloc((size_t)dev->threads * (size_t)k * sizeof *patches);
    if (!x || !w || !patches) {
        free(x), free(w), free(patches);
        return NO_MEMORY("conv");
    }
#pragma omp parallel num_threads(dev->threads)
    {
        float *patch = patches + (size_t)omp_get_thread_num() * (size_t)k;
        if (a->norm.stats.ptr) {
#pragma omp for
            for (int i = 0; i < a->x.rows; i++)
                for (int c = 0; c < a->x.cols; c++) {
                    float *p = x + (size_t)i * (size_t)a->x.cols + (size_t)c;
                    *p = round_to(act, (float)silu(normed(&a->norm, a->x.cols, c, *p)));
                }
        }
#pragma omp for
        for (int i = a->row0 * ow; i < (a->row0 + rows) * ow; i++) {
            gather(a, x, i / ow, i % ow, patch);
            for (int j = 0; j < a->y.cols; j++) {
                real z = dot(patch, w + (size_t)j * (size_t)k, k);
                if (a->bias.ptr) z += (real)tensor_get(a->bias, 0, j);
                if (a->residual.ptr) z += (real)tensor_get(a->residual, i, j);
                tensor_set(a->y, i, j, (float)z);
            }
        }
    }
    free(x), free(w), free(patches);
    if (!a->stats.ptr) return KLEIN_OK;
    struct tensor made = tensor_rows(a->y, a->row0 * ow, rows * ow);
    return REF(gn_stats)(dev, &(struct gn_stats_args){a->stats, made, a->eps}, err);
}

enum klein_status REF(gn_stats)(struct device *dev, const struct gn_stats_args *a, struct klein_error *err)
{
    int groups = a->stats.rows, size = a->x.cols / groups;
    real count = (real)a->x.rows * size;
#pragma omp parallel for num_threads(dev->threads)
    for (int g = 0; g < groups; g++) {
        real sum = 0, squares = 0;
        for (int i = 0; i < a->x.rows; i++)
            for (int c = g * size; c < (g + 1) * size; c++) sum += (real)tensor_get(a->x, i, c);
        real mean = sum / count;
        for (int i = 0; i < a->x.rows; i++)
            for (int c = g * size; c < (g + 1) * size; c++) {
                real d = (real)tensor_get(a->x, i, c) - mean;
                squares += d * d;
            }
        tensor_set(a->stats, g, 0, (float)mean);
        tensor_set(a->stats, g, 1, (float)(1 / sqrt(squares / count + (real)a->eps)));
    }
    return KLEIN_OK;
}

enum klein_status REF(gn_apply)(struct device *dev, const struct gn_apply_args *a, struct klein_error *err)
{
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++)
        for (int c = 0; c < a->x.cols; c++) {
            real z = normed(&a->norm, a->x.cols, c, tensor_get(a->x, i, c));
            tensor_set(a->y, i, c, (float)(a->silu ? silu(z) : z));
        }
    return KLEIN_OK;
}
