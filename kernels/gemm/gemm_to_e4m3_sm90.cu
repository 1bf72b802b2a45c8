/* gemm_to_e4m3_sm90.cu: products of e4m3 whose results are e4m3 with a scale per row and 128 columns: the tiles of gemm_*_e4m3*_sm90.cu that
 * have whole groups of these. Kernels of their own, so that those for BF16 results have nothing more to decide and hold. */
#include "gemm_sm90.h"

KERNEL(gemm_to_e4m3_sm90_linear_128x256, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 256, LINEAR, false, true>>(args);
}

KERNEL(gemm_to_e4m3_sm90_linear_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 128, LINEAR, false, true>>(args);
}

KERNEL(gemm_to_e4m3_sm90_linear_groups_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 128, LINEAR, true, true>>(args);
}

KERNEL(gemm_to_e4m3_sm90_qkv_128x256, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 256, QKV, false, true>>(args);
}
