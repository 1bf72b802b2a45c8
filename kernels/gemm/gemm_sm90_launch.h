/* gemm_sm90_launch.h: the wgmma kernels of op linear (gemm_*_sm90.cu): which there are, what each takes, and their launch. */
#ifndef KLEIN_GEMM_SM90_LAUNCH_H
#define KLEIN_GEMM_SM90_LAUNCH_H

#include "../cuda/gpu.h"

struct gemm_sm90_variant {
    const char *name; /* of the kernel */
    int bm, bn;       /* its tiles; of a SWIGLU segment bn / 2 columns of y */
    int kinds;        /* 1 << enum linear_segment_kind of those that it knows */
    int e4m3, groups; /* x and weights are e4m3 with scales; those of x per 128 columns */
    unsigned shared;  /* bytes of dynamic shared memory */
};

/* The i-th variant; NULL past the last. And that of this name, or NULL. */
const struct gemm_sm90_variant *gemm_sm90_variant(int i);
const struct gemm_sm90_variant *gemm_sm90_named(const char *kernel);

/* Whether v computes a rightly on a chip of sm_90. Rows of x, weights, BF16 outputs and BF16 residuals are 16-byte aligned, F32 ones and
 * all vectors 8-byte; columns of segments are multiples of 8; heads 128 wide. x_scale tells e4m3 from BF16, ldscale
 * scales per row from scales per 128 columns. */
int gemm_sm90_takes(const struct gemm_sm90_variant *v, const struct linear_kernel_args *a);

/* How many tiles a takes; v takes it. */
int64_t gemm_sm90_tiles(const struct gemm_sm90_variant *v, const struct linear_kernel_args *a);

/* Launches v in g's stream, as a dependent of the kernel before: weights may be read before that has ended, so no kernel may write
 * weights that the next kernel multiplies. KLEIN_E_UNSUPPORTED if v does not take a. */
enum klein_status gemm_sm90_launch(struct gpu *g, const struct gemm_sm90_variant *v,
                                   const struct linear_kernel_args *a, struct klein_error *err);

#endif
