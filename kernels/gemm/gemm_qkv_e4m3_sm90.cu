/* gemm_qkv_e4m3_sm90.cu: gemm_qkv_sm90.cu with x and weights in e4m3. */
#include "gemm_sm90.h"

KERNEL(gemm_qkv_e4m3_sm90_128x256, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 256, QKV>>(args);
}

KERNEL(gemm_qkv_e4m3_sm90_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 128, QKV>>(args);
}
