/* gemm_sm90_launch.h: the launch of the wgmma kernels (gemm_*_sm90.cu): those of gemm_pick.h that are for exactly sm_90. */
#ifndef KLEIN_GEMM_SM90_LAUNCH_H
#define KLEIN_GEMM_SM90_LAUNCH_H

#include "gemm_pick.h"
#include "../cuda/gpu.h"

/* Whether v can compute a: rows of x, weights, BF16 and e4m3 outputs and BF16 residuals are 16-byte aligned, F32 ones and all vectors 8-byte;
 * columns of segments are multiples of 8; k is any; heads are 128 wide. x_scale tells e4m3 from BF16; results in e4m3 are not routed. */
int gemm_sm90_takes(const struct gemm_variant *v, const struct linear_kernel_args *a);

/* How many tiles that are. */
int64_t gemm_sm90_tiles(const struct gemm_variant *v, const struct linear_kernel_args *a);

/* Launches v in g's stream, as a dependent of the kernel before: weights may be read before that has ended, so no kernel may write
 * weights that the next kernel multiplies. KLEIN_E_UNSUPPORTED if v does not take a. */
enum klein_status gemm_sm90_launch(struct gpu *g, const struct gemm_variant *v,
                                   const struct linear_kernel_args *a, struct klein_error *err);

#endif
