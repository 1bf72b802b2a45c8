/* args.h: the one argument of each kernel, as a struct. Shared by the host code (C), by nvcc and by the soft GPU (C++), so it holds
 * only plain members whose size and offset are the same everywhere. Device addresses are pointers that the host never follows. */
#ifndef KLEIN_DEVICE_ARGS_H
#define KLEIN_DEVICE_ARGS_H

#include <stdint.h>

#ifdef __cplusplus /* device code: storage types without arithmetic, so that no conversion happens unseen */
struct bf16 {
    uint16_t bits; /* upper half of an IEEE binary32 */
};
struct fp8 {
    uint8_t bits; /* OCP E4M3 */
};
#define ALIGNED(n) alignas(n)
#else
#include "../../base/dtype.h"
typedef struct {
    uint8_t bits;
} fp8;
#define ALIGNED(n) _Alignas(n)
#endif

/* A CUtensorMap by value (driver_api.h): opaque, written by the driver, read by the copy engine only. */
struct tensor_map {
    ALIGNED(128) uint64_t opaque[16];
};

/* pointwise/scale.cu: y[i] = a * x[i], n elements; x and y 16-byte aligned. Any number of blocks. */
enum { SCALE_THREADS = 256 };
struct scale_args {
    float *y;
    const float *x;
    float a;
    int64_t n;
};

/* gemm/: c[m, n] = a[m, k] b[n, k]^T, row-major, leading dimensions in elements. Rows are 16-byte aligned: pointers, and the bytes
 * of lda, ldb, ldc; k and n are multiples of 8. Launch ceil(m / 128) * ceil(n / 128) blocks. */
enum {
    GEMM_SM80_THREADS = 128,
    GEMM_SM80_STAGE = 32768 /* bytes of dynamic shared memory per stage (_s2, _s3) */
};
struct gemm_args {
    bf16 *c;
    const bf16 *a, *b;
    int m, n, k, lda, ldb, ldc;
};

#endif
