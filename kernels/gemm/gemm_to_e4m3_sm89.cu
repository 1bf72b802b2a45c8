/* gemm_to_e4m3_sm89.cu: gemm_sm89.cu with results in e4m3 with a scale per row and 128 columns, which a warp has whole. Kernels of their own, as
 * gemm_to_e4m3_sm90.cu. */
#include "mma_finish.inc"

KERNEL(gemm_to_e4m3_sm89_linear_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_linear<mma_shape<fp8, 128, 128, 16, 128, 3, false, true>>(args);
}
KERNEL(gemm_to_e4m3_sm89_linear_groups_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_linear<mma_shape<fp8, 128, 128, 16, 128, 3, true, true>>(args);
}
KERNEL(gemm_to_e4m3_sm89_qkv_64x256_s2, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_qkv<mma_shape<fp8, 64, 256, 16, 128, 2, false, true>>(args);
}
