/* attention_sm80.cu: attention_sm80.inc with o in bf16, for sm_80 and everything after it. */
#include "attention_sm80.inc"

KERNEL(attention_sm80_128x48, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<2, 48, false>(args);
}

KERNEL(attention_sm80_64x64, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<1, 64, false>(args);
}
