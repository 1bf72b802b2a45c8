/* gemm_linear_e4m3_groups_sm90.cu: gemm_linear_e4m3_sm90.cu with a scale per row and 128 columns of x. The second accumulator leaves
 * registers for 192 columns. */
#include "gemm_sm90.h"

KERNEL(gemm_linear_e4m3_groups_sm90_128x192, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 192, LINEAR, true>>(args);
}

KERNEL(gemm_linear_e4m3_groups_sm90_128x144, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 144, LINEAR, true>>(args);
}

KERNEL(gemm_linear_e4m3_groups_sm90_128x128, gemm_sm90_args, GEMM_SM90_THREADS(128), 1)
{
    run<gemm_sm90<fp8, 128, 128, LINEAR, true>>(args);
}
