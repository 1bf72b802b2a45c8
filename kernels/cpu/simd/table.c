#include "amx.h"

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

/* CHAINS independent multiply-adds in registers, RUN times. As asm, so that it is the instruction that is meant and the
 * compiler does not merge them. */
enum { CHAINS = 12, RUN = 100000 }; /* a run is much longer than reading the clock */

#if defined(__FMA__)
#define FMA(i) "vfmadd231ps %12, %12, %" i "\n\t"
#else
#define FMA(i) "mulps %12, %" i "\n\taddps %12, %" i "\n\t"
#endif
#if defined(__AVX512F__)
#define BF16(i) "vdpbf16ps %12, %12, %" i "\n\t"
enum { BF16_FLOPS = 4 }; /* per lane */
#else
#define BF16(i) FMA(i)
enum { BF16_FLOPS = 2 };
#endif
#define ALL(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9") X("10") X("11")
#define ROUND(X)                                                                                             \
    __asm__ volatile(ALL(X)                                                                                  \
                     : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i),      \
                       "+v"(j), "+v"(k), "+v"(l)                                                             \
                     : "v"(factor))

/* One run; its FLOPs. */
static double run(enum dtype type)
{
#ifdef __AMX_BF16__
    if (type == DT_BF16) { /* four sums, as products have them */
        ISA(amx_begin)();
        for (int n = 0; n < RUN; n++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        ISA(amx_end)();
        return 4.0 * 2 * 16 * 16 * 32 * RUN;
    }
#endif
    vf factor = vset(0.5f), a = factor, b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a,
       l = a;
    for (int n = 0; n < RUN; n++)
        if (type == DT_BF16)
            ROUND(BF16);
        else
            ROUND(FMA);
    return (double)RUN * CHAINS * VL * (type == DT_BF16 ? BF16_FLOPS : 2);
}

double ISA(cpu_register_peak)(enum dtype type, double seconds)
{
    double start = now(), spent, flops = 0;
    do {
        flops += run(type);
        spent = now() - start;
    } while (spent < seconds);
    return flops / spent;
}
