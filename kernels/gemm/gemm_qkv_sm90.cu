/* gemm_qkv_sm90.cu: heads normed and rotated, columns as they are, and SwiGLU, in any order of segments. 192 columns do not hold whole
 * heads. */
#include "gemm_sm90.h"

KERNEL(gemm_qkv_sm90_128x256, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 256, QKV>>(args);
}

KERNEL(gemm_qkv_sm90_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 128, QKV>>(args);
}
