/* launch_rows.h: tensors as the row kernels of norm/ and pointwise/ take them (device/args.h). */
#ifndef KLEIN_LAUNCH_ROWS_H
#define KLEIN_LAUNCH_ROWS_H

#include "../cuda/gpu.h"
#include "../../base/tensor.h"

static inline struct matrix matrix_of(struct tensor t)
{
    int type = t.dtype == DT_BF16     ? ELEMENT_BF16
               : t.dtype == DT_F16    ? ELEMENT_F16
               : t.dtype == DT_U8     ? ELEMENT_U8
               : t.dtype == DT_F8E4M3 ? ELEMENT_E4M3
                                      : ELEMENT_F32;
    return (struct matrix){t.ptr, t.ld, type};
}

/* Whether every row of t consists of whole, aligned vectors of n elements. */
static inline int vectors_fit(struct tensor t, int n)
{
    size_t bytes = (size_t)n * dtype_size(t.dtype);
    return t.cols % n == 0 && (uintptr_t)t.ptr % bytes == 0 && (t.rows == 1 || t.ld % n == 0);
}

/* Several tensors of equal size whose rows touch are one long row: threads are then busy whatever the width. */
static inline int rows_touch(struct tensor t)
{
    return t.ld == t.cols && (int64_t)t.rows * t.cols <= INT32_MAX;
}
static inline struct tensor one_row(struct tensor t)
{
    return tensor_of(t.ptr, t.dtype, 1, t.rows * t.cols);
}

/* The division of [rows, cols] in vectors of n; each thread gets `passes` of them, apart from the last blocks'. */
static inline struct spread spread_of(int rows, int cols, int n, int passes)
{
    struct spread s = {.vectors = cols / n, .rows = rows};
    s.tiles = (s.vectors + SPREAD_THREADS - 1) / SPREAD_THREADS;
    s.across = (s.vectors + s.tiles - 1) / s.tiles;
    s.down = SPREAD_THREADS / s.across;
    s.rows_per_block = s.down * passes;
    return s;
}

static inline int spread_chunks(const struct spread *s)
{
    return (int)(((int64_t)s->rows + s->rows_per_block - 1) / s->rows_per_block);
}

/* Launches a kernel of `blocks` blocks in one dimension. */
static inline enum klein_status launch_rows(struct gpu *g, const char *kernel, int64_t blocks,
                                            unsigned threads, unsigned shared, const void *args,
                                            struct klein_error *err)
{
    if (blocks > INT32_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: %s: %lld blocks are more than a launch can have", g->name,
                    kernel, (long long)blocks);
    return gpu_launch(g,
                      &(struct launch){.kernel = kernel,
                                       .grid = {(unsigned)blocks},
                                       .threads = threads,
                                       .shared = shared,
                                       .args = args,
                                       .dependent = 1},
                      err);
}

static inline enum klein_status launch_spread(struct gpu *g, const char *kernel, const struct spread *s,
                                              unsigned shared, const void *args, struct klein_error *err)
{
    return launch_rows(g, kernel, (int64_t)spread_chunks(s) * s->tiles, SPREAD_THREADS, shared, args, err);
}

#endif
