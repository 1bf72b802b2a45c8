/* dnn.h: oneDNN, single-threaded, one tile at a time. Called inside parallel regions: each thread has its own primitives
 * and scratchpad, found by shape and kept, so that nothing is locked and nothing is allocated once shapes repeat.
 * (The code that oneDNN generates for a shape is shared through its own cache.) */
#ifndef KLEIN_DNN_H
#define KLEIN_DNN_H

#include "../../base/dtype.h"
#include "../../base/error.h"

#include <stdint.h>

struct dnn;

struct dnn *dnn_open(int threads); /* NULL: no memory */
void dnn_close(struct dnn *dnn);   /* NULL allowed */

/* Inside a parallel region, before the calls below: keeps oneDNN and OpenMP to this thread. */
void dnn_enter(void);

/* c = a b, or c += a b.  a [m, k], b [k, n] or transposed [n, k], c [m, n] f32; rows lda, ldb, ldc elements apart. */
struct dnn_matmul {
    int m, n, k;
    int64_t lda, ldb, ldc;
    enum dtype type; /* of a and b: DT_F32 or DT_BF16 */
    int transposed, accumulate;
};
enum klein_status dnn_matmul(struct dnn *dnn, int thread, const struct dnn_matmul *shape, const void *a,
                             const void *b, float *c);

/* y = x convolved with w, no padding. x [h, w, cin], y [oh, ow, cout] f32, both dense; packed weights from dnn_conv_pack. */
struct dnn_conv {
    int h, w, cin, cout, ksize, stride;
    enum dtype type; /* of x and the packed weights */
};
/* Bytes of the packed weights. */
enum klein_status dnn_conv_bytes(struct dnn *dnn, const struct dnn_conv *shape, size_t *bytes);
/* weights [cout][cin][ksize][ksize], F32 or BF16; outside of parallel regions. */
enum klein_status dnn_conv_pack(struct dnn *dnn, const struct dnn_conv *shape, const void *weights,
                                enum dtype from, void *packed);
enum klein_status dnn_conv(struct dnn *dnn, int thread, const struct dnn_conv *shape, const void *x,
                           const void *packed, float *y);

#endif
