#include "ref.h"

/* Ops on rows and single elements. */

enum klein_status REF(embed)(struct device *dev, const struct embed_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->ids.cols; i++)
        dtype_convert(tensor_at(a->y, i, 0), a->y.dtype,
                      tensor_at(a->table, ((const int32_t *)a->ids.ptr)[i], 0), a->table.dtype,
                      (size_t)a->table.cols);
    return KLEIN_OK;
}

enum klein_status REF(rmsnorm)(struct device *dev, const struct rmsnorm_args *a, struct klein_error *err)
{
    int n = a->x.cols;
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++) {
        real sum = 0;
        for (int c = 0; c < n; c++) sum += (real)tensor_get(a->x, i, c) * (real)tensor_get(a->x, i, c);
        real scale = 1 / sqrt(sum / n + (real)a->eps);
        for (int c = 0; c < n; c++)
            tensor_set(a->y, i, c,
                       (float)((real)tensor_get(a->x, i, c) * scale * (real)tensor_get(a->w, 0, c)));
    }
    return KLEIN_OK;
}

enum klein_status REF(adaln)(struct device *dev, const struct adaln_args *a, struct klein_error *err)
{
    int n = a->x.cols;
    real *scratch = malloc((size_t)dev->threads * (size_t)n * sizeof *scratch);
    if (!scratch) return NO_MEMORY("adaln");
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++) {
        int g = split_group(a->split, i);
        real sum = 0, squares = 0, *y = scratch + (size_t)omp_get_thread_num() * (size_t)n;
        for (int c = 0; c < n; c++) sum += (real)tensor_get(a->x, i, c);
        real mean = sum / n;
        for (int c = 0; c < n; c++) {
            real d = (real)tensor_get(a->x, i, c) - mean;
            squares += d * d;
        }
        real inverse = 1 / sqrt(squares / n + (real)a->eps);
        for (int c = 0; c < n; c++) {
            real z = ((real)tensor_get(a->x, i, c) - mean) * inverse;
            y[c] = z * (1 + (real)tensor_get(a->scale[g], 0, c)) + (real)tensor_get(a->shift[g], 0, c);
        }
        store_row(a->y, i, y);
    }
    free(scratch);
    return KLEIN_OK;
}

enum klein_status REF(timestep)(struct device *dev, const struct timestep_args *a, struct klein_error *err)
{
    int half = a->y.cols / 2;
    for (int s = 0; s < a->t.cols; s++)
        for (int k = 0; k < half; k++) {
            real angle = (real)tensor_get(a->t, 0, s) * 1000 * exp(-log((real)10000) * k / half);
            tensor_set(a->y, s, k, (float)cos(angle));
            tensor_set(a->y, s, half + k, (float)sin(angle));
        }
    return KLEIN_OK;
}

/* The pixel of the image that token `t`'s channel `c` is, and its channel. */
static int patch_pixel(const struct patch_args *a, int t, int c)
{
    int half = a->w / 2;
    return (t / half * 2 + c % 4 / 2) * a->w + t % half * 2 + c % 2;
}

enum klein_status REF(patchify)(struct device *dev, const struct patch_args *a, struct klein_error *err)
{
    for (int t = 0; t < a->y.rows; t++)
        for (int c = 0; c < a->y.cols; c++) {
            real z = (real)tensor_get(a->x, patch_pixel(a, t, c), c / 4) - (real)tensor_get(a->mean, 0, c);
            tensor_set(a->y, t, c, (float)(z / sqrt((real)tensor_get(a->var, 0, c) + (real)a->eps)));
        }
    return KLEIN_OK;
}

enum klein_status REF(unpatchify)(struct device *dev, const struct patch_args *a, struct klein_error *err)
{
    for (int t = 0; t < a->x.rows; t++)
        for (int c = 0; c < a->x.cols; c++) {
            real z = (real)tensor_get(a->x, t, c) * sqrt((real)tensor_get(a->var, 0, c) + (real)a->eps);
            tensor_set(a->y, patch_pixel(a, t, c), c / 4, (float)(z + (real)tensor_get(a->mean, 0, c)));
        }
    return KLEIN_OK;
}

enum klein_status REF(euler)(struct device *dev, const struct euler_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->x.rows; i++)
        for (int c = 0; c < a->x.cols; c++)
            tensor_set(a->y, i, c,
                       (float)((real)tensor_get(a->x, i, c) +
                               (real)tensor_get(a->dt, 0, 0) * (real)tensor_get(a->v, i, c)));
    return KLEIN_OK;
}

enum klein_status REF(cfg)(struct device *dev, const struct cfg_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->y.rows; i++)
        for (int c = 0; c < a->y.cols; c++) {
            real u = tensor_get(a->uncond, i, c);
            tensor_set(a->y, i, c, (float)(u + (real)a->guidance * ((real)tensor_get(a->cond, i, c) - u)));
        }
    return KLEIN_OK;
}

enum klein_status REF(copy)(struct device *dev, const struct copy_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->x.rows; i++)
        dtype_convert(tensor_at(a->y, i, 0), a->y.dtype, tensor_at(a->x, i, 0), a->x.dtype,
                      (size_t)a->x.cols);
    return KLEIN_OK;
}

/* The two 8-bit conversions are stated in f32, operation by operation, so that all backends agree to the last
 * bit. */

enum klein_status REF(to_u8)(struct device *dev, const struct to_u8_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->x.rows; i++)
        for (int c = 0; c < 3; c++) {
            float z = tensor_get(a->x, i, c) * 0.5f + 0.5f;
            z = z > 0 ? z < 1 ? z : 1 : 0; /* NaN: 0 */
            *(uint8_t *)tensor_at(a->y, i, c) = (uint8_t)rintf(z * 255);
        }
    return KLEIN_OK;
}

enum klein_status REF(from_u8)(struct device *dev, const struct from_u8_args *a, struct klein_error *err)
{
    for (int i = 0; i < a->x.rows; i++)
        for (int c = 0; c < 3; c++) tensor_set(a->y, i, c, tensor_get(a->x, i, c) / 255 * 2 - 1);
    return KLEIN_OK;
}
