#include "vec.h"

#include "../../ref/ref.h"

#include <time.h>

/* What the whole model spends a thousandth of its time in stays as the reference has it. */
const struct op_table ISA(cpu_ops) = {
    .embed = ref_embed,
    .rmsnorm = ISA(cpu_rmsnorm),
    .adaln = ISA(cpu_adaln),
    .linear = ISA(cpu_linear),
    .attention = ISA(cpu_attention),
    .timestep = ref_timestep,
    .conv = ISA(cpu_conv),
    .gn_stats = ISA(cpu_gn_stats),
    .gn_apply = ISA(cpu_gn_apply),
    .patchify = ref_patchify,
    .unpatchify = ref_unpatchify,
    .euler = ref_euler,
    .cfg = ref_cfg,
    .copy = ref_copy,
    .to_u8 = ref_to_u8,
    .from_u8 = ref_from_u8,
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* not the wall: others may use the processor too */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* CHAINS independent multiply-adds in registers, RUN times. The asm keeps the compiler from merging them, and is the
 * instruction that is meant. */
enum { CHAINS = 12, RUN = 1000 };

#if defined(__FMA__)
#define FMA "vfmadd231ps %1, %1, %0"
#else
#define FMA "mulps %1, %0\n\taddps %1, %0"
#endif
#if defined(__AVX512F__)
#define BF16 "vdpbf16ps %1, %1, %0"
enum { BF16_FLOPS = 4 }; /* per lane */
#else
#define BF16 FMA
enum { BF16_FLOPS = 2 };
#endif
#define CHAIN(instruction, i) __asm__ volatile(instruction : "+v"(acc##i) : "v"(factor));
#define EACH(X, instruction)                                                                                 \
    X(instruction, 0)                                                                                        \
    X(instruction, 1)                                                                                        \
    X(instruction, 2)                                                                                        \
    X(instruction, 3)                                                                                        \
    X(instruction, 4) X(instruction, 5) X(instruction, 6) X(instruction, 7) X(instruction, 8)                \
        X(instruction, 9) X(instruction, 10) X(instruction, 11)

double ISA(cpu_register_peak)(enum dtype type, double seconds)
{
    vf factor = vset(0.5f), acc0 = factor, acc1 = factor, acc2 = factor, acc3 = factor, acc4 = factor,
       acc5 = factor, acc6 = factor, acc7 = factor, acc8 = factor, acc9 = factor, acc10 = factor,
       acc11 = factor;
    double start = now(), spent, runs = 0;
    do {
        if (type == DT_BF16)
            for (int i = 0; i < RUN; i++) {
                EACH(CHAIN, BF16)
            }
        else
            for (int i = 0; i < RUN; i++) {
                EACH(CHAIN, FMA)
            }
        runs++;
        spent = now() - start;
    } while (spent < seconds);
    return runs * RUN * CHAINS * VL * (type == DT_BF16 ? BF16_FLOPS : 2) / spent;
}
