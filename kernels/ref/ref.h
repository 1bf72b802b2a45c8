/* ref.h: the specification of every op in plain C. Sums and everything between load and store are in `real`:
 * f64 here. The tests compile these files a second time with `real` = float and other names: that is the
 * naive evaluation in the run's own precision, whose error says what error a fast backend may have
 * (kernels/check/op_cases.h). */
#ifndef KLEIN_REF_H
#define KLEIN_REF_H

#include "../backend.h"

#include <omp.h>
#include <stdlib.h>
#include <tgmath.h>

#ifndef REF_REAL
#define REF_REAL  double
#define REF(name) ref_##name
#define REF_SUM   _Pragma("omp simd reduction(+ : sum)") /* the order of f64 sums does not matter */
#endif
typedef REF_REAL real;

#define X(op, args)                                                                                          \
    enum klein_status REF(op)(struct device * dev, const struct args *a, struct klein_error *err);
KLEIN_OPS(X)
#undef X

static inline float round_to(enum dtype act, float f)
{
    return act == DT_BF16 ? f32_from_bf16(bf16_from_f32(f)) : f;
}

/* A row of any float type, quantised ones by what they stand for, as f32 values, each rounded to act first: the operands of products. */
static inline void load_row(float *to, struct tensor t, int row, enum dtype act)
{
    dtype_convert(to, DT_F32, tensor_at(t, row, 0), t.dtype, (size_t)t.cols);
    for (int c = 0; t.scale && c < t.cols; c++) to[c] *= tensor_scale(t, row, c);
    for (int c = 0; act == DT_BF16 && c < t.cols; c++) to[c] = round_to(act, to[c]);
}

/* All of t like that, contiguous; the caller frees it. NULL: no memory. */
static inline float *load_all(struct tensor t, enum dtype act)
{
    float *p = malloc((size_t)t.rows * (size_t)t.cols * sizeof *p);
    for (int r = 0; p && r < t.rows; r++) load_row(p + (size_t)r * (size_t)t.cols, t, r, act);
    return p;
}

/* Row `row` of t becomes these values, quantised if t is. */
static inline void store_row(struct tensor t, int row, const real *values)
{
    for (int from = 0; from < t.cols; from += tensor_group(t)) {
        int end = t.cols - from > tensor_group(t) ? from + tensor_group(t) : t.cols;
        real largest = 0x1p-100, factor = 1; /* zeros have a scale too */
        for (int c = from; t.scale && c < end; c++) largest = fmax(largest, fabs(values[c]));
        if (t.scale) {
            t.scale[from / TENSOR_GROUP * t.ldscale + row] = (float)(largest / 448);
            factor = 448 / largest;
        }
        for (int c = from; c < end; c++) tensor_set(t, row, c, (float)(values[c] * factor));
    }
}

static inline real dot(const float *a, const float *b, int n)
{
    real sum = 0;
    REF_SUM for (int i = 0; i < n; i++) sum += (real)a[i] * (real)b[i];
    return sum;
}

static inline real silu(real x)
{
    return x / (1 + exp(-x));
}

static inline struct tensor weight_row(const struct weight *w, int row)
{
    int i = 0;
    while (row >= w->part[i].rows) row -= w->part[i++].rows;
    return tensor_rows(w->part[i], row, 1);
}

#define NO_MEMORY(op) fail(err, KLEIN_E_NO_MEMORY, op ": out of memory for scratch")

#endif
