/* attention_e4m3_sm89.cu: attention_sm80.inc with o in e4m3: the x of a product with scales per 128 columns. */
#include "attention_sm80.inc"

KERNEL(attention_e4m3_sm89_128x48, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<2, 48, true>(args);
}

KERNEL(attention_e4m3_sm89_64x64, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<1, 64, true>(args);
}
