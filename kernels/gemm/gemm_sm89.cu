/* gemm_sm89.cu: op linear in e4m3 by mma.sync, for sm_89 and later: x with a scale per row, weights with a scale per row (output column),
 * both multiplied into the f32 sums before the epilogue. Families as in gemm_sm80.cu; a k block has 128 elements.
 * groups: x has a scale per row and 128 columns, which are a k block. Tiles of 256 rows of W make 128 columns of SWIGLU, which can be written in
 * e4m3 with such scales.
 * Warps have half as much of a tile as in gemm_sm80.cu, as e4m3 made of f16 products takes registers; 128x256, where they have as much, is left
 * to chips with the instruction. */
#include "mma_finish.inc"

KERNEL(gemm_sm89_linear_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_linear<mma_shape<fp8, 128, 128, 32, 64, 3>>(args);
}
KERNEL(gemm_sm89_linear_64x128_s2, linear_kernel_args, GEMM_SM89_THREADS(64), 2)
{
    mma_linear<mma_shape<fp8, 64, 128, 32, 64, 2>>(args);
}

KERNEL(gemm_sm89_linear_groups_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_linear<mma_shape<fp8, 128, 128, 32, 64, 3, true>>(args);
}
KERNEL(gemm_sm89_linear_groups_64x128_s2, linear_kernel_args, GEMM_SM89_THREADS(64), 2)
{
    mma_linear<mma_shape<fp8, 64, 128, 32, 64, 2, true>>(args);
}

#if !E4M3_BY_F16
KERNEL(gemm_sm89_qkv_128x256_s2, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_qkv<mma_shape<fp8, 128, 256, 32, 128, 2>>(args);
}
#endif
KERNEL(gemm_sm89_qkv_64x256_s2, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_qkv<mma_shape<fp8, 64, 256, 16, 128, 2>>(args);
}
KERNEL(gemm_sm89_qkv_128x128_s3, linear_kernel_args, GEMM_SM89_THREADS(128), 1)
{
    mma_qkv<mma_shape<fp8, 128, 128, 16, 128, 3>>(args);
}
KERNEL(gemm_sm89_qkv_64x128_s2, linear_kernel_args, GEMM_SM89_THREADS(64), 2)
{
    mma_qkv<mma_shape<fp8, 64, 128, 16, 128, 2>>(args);
}
