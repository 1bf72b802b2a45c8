#include "vec.h"

#include <omp.h>

void ISA(convert)(void *to, enum dtype to_type, const void *from, enum dtype from_type, int n)
{
    if (to_type == from_type) {
        memcpy(to, from, (size_t)n * dtype_size(to_type));
        return;
    }
    for (int c = 0; c < n; c += VL) vput(to, to_type, c, n, vget(from, from_type, c, n));
}

enum klein_status ISA(cpu_rmsnorm)(struct device *dev, const struct rmsnorm_args *a, struct klein_error *err)
{
    int n = a->x.cols;
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++) {
        const void *x = row_of(a->x, i);
        vf squares = {0};
        for (int c = 0; c < n; c += VL) {
            vf z = vget(x, a->x.dtype, c, n);
            squares += z * z;
        }
        float scale = 1 / sqrtf(vsum(squares) / (float)n + a->eps);
        for (int c = 0; c < n; c += VL)
            vput(row_of(a->y, i), a->y.dtype, c, n,
                 vget(x, a->x.dtype, c, n) * scale * vget(a->w.ptr, a->w.dtype, c, n));
    }
    return KLEIN_OK;
}

enum klein_status ISA(cpu_adaln)(struct device *dev, const struct adaln_args *a, struct klein_error *err)
{
    if (a->y.dtype == DT_F8E4M3) return cpu_refuses_e4m3("adaln", err);
    int n = a->x.cols;
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++) {
        int g = split_group(a->split, i);
        const void *x = row_of(a->x, i);
        vf sum = {0}, squares = {0};
        for (int c = 0; c < n; c += VL) sum += vget(x, a->x.dtype, c, n);
        float mean = vsum(sum) / (float)n;
        for (int c = 0; c < n; c += VL) {
            vf d = vget(x, a->x.dtype, c, n) - mean;
            if (c + VL > n)
                for (int k = n - c; k < VL; k++) d[k] = 0; /* beyond the row */
            squares += d * d;
        }
        float inverse = 1 / sqrtf(vsum(squares) / (float)n + a->eps);
        for (int c = 0; c < n; c += VL) {
            vf z = (vget(x, a->x.dtype, c, n) - mean) * inverse;
            vput(row_of(a->y, i), a->y.dtype, c, n,
                 z * (1.0f + vget(a->scale[g].ptr, DT_F32, c, n)) + vget(a->shift[g].ptr, DT_F32, c, n));
        }
    }
    return KLEIN_OK;
}

/* Group statistics: per channel sums of x and x^2 in f64 over fixed runs of pixels, then added up in order. f64 needs no
 * shift: the cancellation costs mean^2 / variance times 1e-16. */
enum { RUNS = 256, RUN_PIXELS = 256 };

typedef float half_f __attribute__((vector_size(2 * VL)));
typedef double half_d __attribute__((vector_size(4 * VL)));
enum { HL = VL / 2, WIDE = 4 }; /* WIDE vectors of HL channels at a time */

static inline half_d load_double(const char *p, enum dtype t)
{
    half_f f;
    if (t == DT_F32) {
        memcpy(&f, p, sizeof f);
    } else {
        typedef uint16_t half_h __attribute__((vector_size(VL)));
        typedef uint32_t half_u __attribute__((vector_size(2 * VL)));
        half_h h;
        memcpy(&h, p, sizeof h);
        f = (half_f)(__builtin_convertvector(h, half_u) << 16);
    }
    return __builtin_convertvector(f, half_d);
}

/* Pixels [from, to): sum[c] and square[c]. */
static void channel_sums(struct tensor x, int from, int to, double *sum, double *square)
{
    size_t element = dtype_size(x.dtype), stride = (size_t)x.ld * element;
    int c = 0;
    for (; c + WIDE * HL <= x.cols; c += WIDE * HL) {
        half_d s[WIDE] = {{0}}, q[WIDE] = {{0}};
        const char *p = tensor_at(x, from, c);
        for (int i = from; i < to; i++, p += stride)
            for (int k = 0; k < WIDE; k++) {
                half_d z = load_double(p + (size_t)(k * HL) * element, x.dtype);
                s[k] += z;
                q[k] += z * z;
            }
        memcpy(sum + c, s, sizeof s);
        memcpy(square + c, q, sizeof q);
    }
    for (; c < x.cols; c++) {
        sum[c] = square[c] = 0;
        for (int i = from; i < to; i++) {
            double z = tensor_get(x, i, c);
            sum[c] += z;
            square[c] += z * z;
        }
    }
}

enum klein_status ISA(cpu_gn_stats)(struct device *dev, const struct gn_stats_args *a,
                                    struct klein_error *err)
{
    int pixels = a->x.rows, channels = a->x.cols, groups = a->stats.rows, size = channels / groups;
    int run = ceil_div(pixels, RUNS) > RUN_PIXELS ? ceil_div(pixels, RUNS) : RUN_PIXELS,
        runs = ceil_div(pixels, run);
    char *scratch;
    TRY(cpu_scratch(cpu_of(dev), (size_t)runs * (size_t)channels * 2 * sizeof(double), &scratch, err));
    double *sums = (double *)scratch;
#pragma omp parallel for num_threads(dev->threads)
    for (int r = 0; r < runs; r++) {
        double *sum = sums + (size_t)r * 2 * (size_t)channels;
        channel_sums(a->x, r * run, min_int(pixels, (r + 1) * run), sum, sum + channels);
    }
    for (int g = 0; g < groups; g++) {
        double sum = 0, square = 0, count = (double)pixels * size;
        for (int r = 0; r < runs; r++)
            for (int c = g * size; c < (g + 1) * size; c++) {
                sum += sums[(size_t)r * 2 * (size_t)channels + (size_t)c];
                square += sums[((size_t)r * 2 + 1) * (size_t)channels + (size_t)c];
            }
        double mean = sum / count, variance = square / count - mean * mean;
        tensor_set(a->stats, g, 0, (float)mean);
        tensor_set(a->stats, g, 1, (float)(1 / sqrt((variance > 0 ? variance : 0) + (double)a->eps)));
    }
    return KLEIN_OK;
}

enum klein_status ISA(cpu_gn_apply)(struct device *dev, const struct gn_apply_args *a,
                                    struct klein_error *err)
{
    int n = a->x.cols;
    char *scratch;
    TRY(cpu_scratch(cpu_of(dev), 3 * (size_t)n * sizeof(float), &scratch, err));
    struct norm_channels norm = norm_channels(&a->norm, n, (float *)scratch);
#pragma omp parallel for num_threads(dev->threads)
    for (int i = 0; i < a->x.rows; i++)
        for (int c = 0; c < n; c += VL) {
            vf z = norm_at(&norm, vget(row_of(a->x, i), a->x.dtype, c, n), c, n);
            vput(row_of(a->y, i), a->y.dtype, c, n, a->silu ? vsilu(z) : z);
        }
    return KLEIN_OK;
}
