/* gemm_linear_sm90.cu: y = x W^T + bias, its silu, or residual + gate * (.). */
#include "gemm_sm90.h"

KERNEL(gemm_linear_sm90_128x256, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 256, LINEAR>>(args);
}

KERNEL(gemm_linear_sm90_192x192, gemm_sm90_args, GEMM_SM90_THREADS(192), 1)
{
    run<gemm_sm90<bf16, 192, 192, LINEAR>>(args);
}

KERNEL(gemm_linear_sm90_128x192, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 192, LINEAR>>(args);
}

KERNEL(gemm_linear_sm90_128x144, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 144, LINEAR>>(args);
}

KERNEL(gemm_linear_sm90_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<bf16, 128, 128, LINEAR>>(args);
}

KERNEL(gemm_linear_sm90_64x192, gemm_sm90_args, GEMM_SM90_THREADS(64), 1)
{
    run<gemm_sm90<bf16, 64, 192, LINEAR>>(args);
}
