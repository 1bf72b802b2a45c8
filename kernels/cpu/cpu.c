#include "cpu.h"
#include "dnn.h"

#include "../../base/arena.h"

#include <dnnl.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void cpu_close(struct device *dev)
{
    struct cpu_device *cpu = cpu_of(dev);
    dnn_close(cpu->dnn);
    free(cpu->scratch);
    free(cpu);
}

enum klein_status cpu_scratch(struct cpu_device *cpu, size_t bytes, char **out, struct klein_error *err)
{
    if (bytes > cpu->scratch_bytes) {
        free(cpu->scratch);
        cpu->scratch_bytes = bytes;
        cpu->scratch = host_alloc(&cpu->base, bytes);
        if (!cpu->scratch) {
            cpu->scratch_bytes = 0;
            return fail(err, KLEIN_E_NO_MEMORY, "cpu device: no memory for %zu bytes of scratch", bytes);
        }
    }
    *out = cpu->scratch;
    return KLEIN_OK;
}

/* What oneDNN may use (ONEDNN_MAX_CPU_ISA limits it) is what we use: one knob. */
static int has(dnnl_cpu_isa_t isa)
{
    return (dnnl_get_effective_cpu_isa() & isa) == isa;
}

/* To ask oneDNN for AMX is to ask the kernel for the tile registers, too. */
static const struct op_table *best_ops(void)
{
    if (has(dnnl_cpu_isa_avx512_core_amx)) return &cpu_ops_amx;
    if (has(dnnl_cpu_isa_avx512_core)) return &cpu_ops_avx512;
    return has(dnnl_cpu_isa_avx2) ? &cpu_ops_avx2 : &cpu_ops_base;
}

static double (*register_peak(const struct cpu_device *cpu))(enum dtype, double)
{
    if (cpu->base.ops == &cpu_ops_amx) return cpu_register_peak_amx;
    if (cpu->base.ops == &cpu_ops_avx512) return cpu_register_peak_avx512;
    if (cpu->base.ops == &cpu_ops_avx2) return cpu_register_peak_avx2;
    return cpu_register_peak_base;
}

static void processor_name(char *to, size_t size)
{
    unsigned brand[12] = {0};
    for (unsigned i = 0; i < 3; i++) {
        unsigned *r = brand + 4 * i;
        __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(0x80000002u + i), "c"(0));
    }
    char *text = (char *)brand;
    size_t used = 0;
    for (size_t i = 0; i < 47 && text[i] && used + 1 < size; i++) /* runs of spaces become one */
        if (text[i] != ' ' || (used && to[used - 1] != ' ')) to[used++] = text[i];
    while (used && to[used - 1] == ' ') used--;
    to[used] = 0;
}

/* What multiplies bf16 operands: AMX where it is; else, bf16 or widened to F32? Both have their instructions, of rates that nothing announces: a Zen 4
 * makes twice as many FLOP by vdpbf16ps as by FMA, some Xeons half as many. Measured by the thread's own clock, three runs of 1.2 million each; the
 * limit lies far from both. KLEIN_PRODUCTS decides instead; amx is emulated where it is missing, slowly, for tests. */
static enum klein_status decide_products(struct cpu_device *cpu, int instructions, struct klein_error *err)
{
    static const char *const names[] = {
        [PRODUCTS_F32] = "f32", [PRODUCTS_BF16] = "bf16", [PRODUCTS_AMX] = "amx"};
    const char *forced = getenv("KLEIN_PRODUCTS");
    if (forced && *forced) {
        int i = 0;
        while (i < 3 && strcmp(forced, names[i])) i++;
        if (i == 3)
            return fail(err, KLEIN_E_USAGE, "KLEIN_PRODUCTS is \"%s\": it must be amx, bf16 or f32", forced);
        if (i == PRODUCTS_BF16 && !instructions)
            return fail(err, KLEIN_E_UNSUPPORTED,
                        "KLEIN_PRODUCTS is bf16, which this processor does not multiply");
        cpu->products = (enum products)i;
        return KLEIN_OK;
    }
    if (!instructions || cpu->base.ops == &cpu_ops_amx) {
        cpu->products = instructions ? PRODUCTS_AMX : PRODUCTS_F32;
        return KLEIN_OK;
    }
    double f32 = 0, bf16 = 0;
    for (int i = 0; i < 3; i++) {
        f32 = fmax(f32, register_peak(cpu)(DT_F32, 0));
        bf16 = fmax(bf16, register_peak(cpu)(DT_BF16, 0));
    }
    cpu->products = bf16 > 0.7 * f32 ? PRODUCTS_BF16 : PRODUCTS_F32;
    return KLEIN_OK;
}

/* How this device multiplies, for people. */
static const char *products_name(const struct cpu_device *cpu, int bf16)
{
    const struct op_table *ops = cpu->base.ops;
    if (cpu->products == PRODUCTS_AMX) return ops == &cpu_ops_amx ? "AMX" : "AMX emulated";
    if (cpu->products == PRODUCTS_BF16) return ops == &cpu_ops_amx ? "AMX by oneDNN" : "AVX-512 BF16";
    if (bf16) return "AVX-512 (bf16 multiplied in f32)";
    return ops == &cpu_ops_avx512 ? "AVX-512" : ops == &cpu_ops_avx2 ? "AVX2" : "SSE2";
}

enum klein_status cpu_open(const struct device_options *options, struct device **out, struct klein_error *err)
{
    struct cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return fail(err, KLEIN_E_NO_MEMORY, "cpu device: out of memory");
    int threads = host_threads(options ? options->threads : 0);
    const int bf16 = has(dnnl_cpu_isa_avx512_core_bf16);
    cpu->base = (struct device){.ops = best_ops(),
                                .name = "cpu",
                                .act = bf16 ? DT_BF16 : DT_F32,
                                .computes = 1,
                                .threads = threads,
                                .close = cpu_close,
                                .alloc = host_alloc,
                                .free = host_free,
                                .upload = host_upload,
                                .download = host_download,
                                .copy = host_copy};
    enum klein_status status = decide_products(cpu, bf16, err);
    if (status != KLEIN_OK) {
        cpu_close(&cpu->base);
        return status;
    }
    char name[64];
    processor_name(name, sizeof name);
    snprintf(cpu->base.description, sizeof cpu->base.description, "%s, %d thread%s, %s", name, threads,
             threads > 1 ? "s" : "", products_name(cpu, bf16));
    cpu->dnn = dnn_open(threads);
    if (!cpu->dnn) {
        cpu_close(&cpu->base);
        return fail(err, KLEIN_E_NO_MEMORY, "cpu device: out of memory");
    }
    *out = &cpu->base;
    return KLEIN_OK;
}

double cpu_peak_flops(struct device *dev, enum dtype type)
{
    struct cpu_device *cpu = cpu_of(dev);
    double best = 0;
    if (type == DT_BF16) best = cpu_peak_flops(dev, DT_F32); /* bf16 may be widened */
    if (type == DT_BF16 && !has(dnnl_cpu_isa_avx512_core_bf16)) return best;
    for (int window = 0; window < 10;
         window++) { /* the best of some: other processes take their share of others */
        double total = 0;
#pragma omp parallel num_threads(dev->threads) reduction(+ : total)
        {
#pragma omp barrier
            total += register_peak(cpu)(type, 0.01);
        }
        best = total > best ? total : best;
    }
    return best;
}
