/* gemm_sm80.cu: op linear in bf16 by mma.sync, for sm_80 and everything after it.
 *
 * linear: PLAIN, SILU, RESIDUAL, with bias, y bf16 or f32. Warps of 64 x 64 (32 x 64) read least from shared memory.
 * qkv: NORM_ROPE, PLAIN and SWIGLU segments, without bias, y bf16. Warps of 32 x 128 (16 x 128) have whole heads.
 * s2, s3: stages. Where two blocks fit on a multiprocessor two stages are enough, as each computes while the other waits. */
#include "mma_finish.inc"

KERNEL(gemm_sm80_linear_128x128_s2, linear_kernel_args, GEMM_SM80_THREADS, 2)
{
    mma_linear<mma_shape<bf16, 128, 128, 64, 64, 2>>(args);
}
KERNEL(gemm_sm80_linear_128x128_s3, linear_kernel_args, GEMM_SM80_THREADS, 2)
{
    mma_linear<mma_shape<bf16, 128, 128, 64, 64, 3>>(args);
}
KERNEL(gemm_sm80_linear_64x128_s2, linear_kernel_args, GEMM_SM80_THREADS, 3)
{
    mma_linear<mma_shape<bf16, 64, 128, 32, 64, 2>>(args);
}

KERNEL(gemm_sm80_qkv_128x128_s2, linear_kernel_args, GEMM_SM80_THREADS, 2)
{
    mma_qkv<mma_shape<bf16, 128, 128, 32, 128, 2>>(args);
}
KERNEL(gemm_sm80_qkv_128x128_s3, linear_kernel_args, GEMM_SM80_THREADS, 2)
{
    mma_qkv<mma_shape<bf16, 128, 128, 32, 128, 3>>(args);
}
KERNEL(gemm_sm80_qkv_64x128_s2, linear_kernel_args, GEMM_SM80_THREADS, 3)
{
    mma_qkv<mma_shape<bf16, 64, 128, 16, 128, 2>>(args);
}
