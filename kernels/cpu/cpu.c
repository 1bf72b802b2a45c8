#include "cpu.h"
#include "dnn.h"

#include "../../base/arena.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

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

static double (*register_peak(const struct cpu_device *cpu))(enum dtype, double)
{
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

enum klein_status cpu_open(const struct device_options *options, struct device **out, struct klein_error *err)
{
    struct cpu_device *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return fail(err, KLEIN_E_NO_MEMORY, "cpu device: out of memory");
    int threads = host_threads(options ? options->threads : 0);
    cpu->bf16 = has(dnnl_cpu_isa_avx512_core_bf16);
    cpu->base = (struct device){.ops = has(dnnl_cpu_isa_avx512_core) ? &cpu_ops_avx512
                                       : has(dnnl_cpu_isa_avx2)      ? &cpu_ops_avx2
                                                                     : &cpu_ops_base,
                                .name = "cpu",
                                .act = cpu->bf16 ? DT_BF16 : DT_F32,
                                .computes = 1,
                                .threads = threads,
                                .close = cpu_close,
                                .alloc = host_alloc,
                                .free = host_free,
                                .upload = host_upload,
                                .download = host_download,
                                .copy = host_copy};
    char name[64];
    processor_name(name, sizeof name);
    snprintf(cpu->base.description, sizeof cpu->base.description, "%s, %d thread%s, %s", name, threads,
             threads > 1 ? "s" : "",
             cpu->bf16                          ? "AVX-512 BF16"
             : cpu->base.ops == &cpu_ops_avx512 ? "AVX-512"
             : cpu->base.ops == &cpu_ops_avx2   ? "AVX2"
                                                : "SSE2");
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
    if (!cpu->bf16) type = DT_F32;
    double best = 0;
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
