/* tensor.h: a view of a matrix, passed by value. It owns nothing and is never freed.
 *
 * Element (r, c) is at ptr + (r * ld + c) * dtype_size(dtype); columns are contiguous, ld >= cols.
 * Images are tensors too: rows = height * width (row-major pixels), cols = channels (NHWC with N = 1).
 * A vector is a tensor with rows = 1. A tensor with ptr == NULL means "absent" where an op allows that.
 * A quantised matrix has scales, one per row or one per row and TENSOR_GROUP columns: what it stands for is element (r, c) times
 * tensor_scale(t, r, c). Quantising gives what shares a scale the scale largest magnitude / 448, that of e4m3, and rounds what is left
 * to nearest. */
#ifndef KLEIN_TENSOR_H
#define KLEIN_TENSOR_H

#include "dtype.h"

#include <stdint.h>

struct tensor {
    void *ptr;
    enum dtype dtype;
    int rows, cols;
    int64_t ld;   /* elements from one row to the next */
    float *scale; /* beside the elements in the device's memory; NULL: not quantised */
    int64_t
        ldscale; /* 0: a scale per row; else scale[i * ldscale + row] is that of columns from i * TENSOR_GROUP */
};
enum { TENSOR_GROUP = 128 };

static inline struct tensor tensor_of(void *ptr, enum dtype dtype, int rows, int cols)
{
    return (struct tensor){.ptr = ptr, .dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
}

static inline void *tensor_at(struct tensor t, int row, int col)
{
    /* Through an integer: views of absent tensors (NULL) and of a measuring arena are formed too, though
     * never read. */
    return (void *)((uintptr_t)t.ptr + ((size_t)row * (size_t)t.ld + (size_t)col) * dtype_size(t.dtype));
}

/* Rows [from, from + n) and columns [from, from + n) of t. Where columns have scales, `from` is a multiple of TENSOR_GROUP. */
static inline struct tensor tensor_rows(struct tensor t, int from, int n)
{
    t.ptr = tensor_at(t, from, 0);
    t.rows = n;
    if (t.scale) t.scale += from;
    return t;
}

static inline struct tensor tensor_cols(struct tensor t, int from, int n)
{
    t.ptr = tensor_at(t, 0, from);
    t.cols = n;
    if (t.scale) t.scale += from / TENSOR_GROUP * t.ldscale;
    return t;
}

/* Columns that share a scale, and how many scales a row has. */
static inline int tensor_group(struct tensor t)
{
    return t.ldscale ? TENSOR_GROUP : t.cols;
}

static inline int tensor_groups(struct tensor t)
{
    return (t.cols + tensor_group(t) - 1) / tensor_group(t);
}

static inline float tensor_scale(struct tensor t, int row, int col)
{
    return t.scale ? t.scale[col / TENSOR_GROUP * t.ldscale + row] : 1;
}

static inline float tensor_get(struct tensor t, int row, int col)
{
    return f32_load(tensor_at(t, row, col), t.dtype, 0);
}

static inline void tensor_set(struct tensor t, int row, int col, float f)
{
    f32_store(tensor_at(t, row, col), t.dtype, 0, f);
}

/* A weight matrix [n, k] as the files hold it: 1..4 row blocks, stacked (to_q, to_k, to_v, say, or one fused
 * matrix). Nothing is copied to make one, so weights stay where they are mapped. All parts have the same cols
 * and dtype. */
#define WEIGHT_PARTS 4
struct weight {
    struct tensor part[WEIGHT_PARTS];
    int parts;
};

static inline struct weight weight_of(struct tensor t)
{
    return (struct weight){{t}, 1};
}

static inline int weight_rows(const struct weight *w)
{
    int n = 0;
    for (int i = 0; i < w->parts; i++) n += w->part[i].rows;
    return n;
}

#endif
