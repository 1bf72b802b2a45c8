/* gemm_sm89.cu: op linear in e4m3 by mma.sync, for sm_89 and later: x with a scale per row, weights with a scale per row (output column),
 * both multiplied into the f32 sums before the epilogue. Families as in gemm_sm80.cu; a k block has 128 elements.
 * Warps have half as much of a tile as in gemm_sm80.cu: sm_90 and sm_100 have no such instruction, nvcc makes it of conversions and f16
 * products, which takes registers. */
#include "mma.inc"

KERNEL(gemm_sm89_linear_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_linear<mma_shape<fp8, 128, 128, 32, 64, 3>>(args);
}
KERNEL(gemm_sm89_linear_64x128_s2, linear_kernel_args, GEMM_SM89_THREADS(64), 2)
{
    mma_linear<mma_shape<fp8, 64, 128, 32, 64, 2>>(args);
}

KERNEL(gemm_sm89_qkv_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_qkv<mma_shape<fp8, 128, 128, 16, 128, 3>>(args);
}
KERNEL(gemm_sm89_qkv_64x128_s2, linear_kernel_args, GEMM_SM89_THREADS(64), 2)
{
    mma_qkv<mma_shape<fp8, 64, 128, 16, 128, 2>>(args);
}
