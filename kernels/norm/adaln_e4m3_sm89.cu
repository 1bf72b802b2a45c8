/* adaln_e4m3_sm89.cu: adaln that writes the next product's FP8 operand: e4m3 with a scale per row (largest magnitude / 448). */
#include "adaln.inc"

KERNEL(adaln_e4m3_sm89_bf16_256, adaln_kernel_args, ADALN_THREADS, 4)
{
    adaln<bf16, fp8, 256>(args);
}
KERNEL(adaln_e4m3_sm89_bf16_1024, adaln_kernel_args, ADALN_THREADS, 4)
{
    adaln<bf16, fp8, 1024>(args);
}
KERNEL(adaln_e4m3_sm89_bf16_3072, adaln_kernel_args, ADALN_THREADS, 2)
{
    adaln<bf16, fp8, 3072>(args);
}
KERNEL(adaln_e4m3_sm89_bf16_4096, adaln_kernel_args, ADALN_THREADS, 2)
{
    adaln<bf16, fp8, 4096>(args);
}
