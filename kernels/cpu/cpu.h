/* cpu.h: the fast host backend. Products and convolutions of tiles come from simd/ (F32, and bf16 on AMX) or from oneDNN (bf16 on vector units); what
 * surrounds them (norms, softmax, epilogues) is written once with compiler vectors in simd/ and compiled for several instruction sets.
 *
 * Threads: every op cuts its result into tiles by a rule that knows the shapes only; threads take tiles from that list, and
 * oneDNN runs single-threaded inside a tile. So the bytes do not depend on the number of threads. */
#ifndef KLEIN_CPU_H
#define KLEIN_CPU_H

#include "../backend.h"

struct dnn;

/* What multiplies bf16 operands. The products are the same; the order of sums is not. */
enum products {
    PRODUCTS_F32,  /* widened to f32, our own (simd/product.h) */
    PRODUCTS_BF16, /* oneDNN */
    PRODUCTS_AMX   /* our own on the matrix unit (simd/amx.h) */
};

struct cpu_device {
    struct device base;
    enum products products;
    struct dnn *dnn;
    char *scratch; /* grows to what the largest op needs, kept between ops */
    size_t scratch_bytes;
};

static inline struct cpu_device *cpu_of(struct device *dev)
{
    return (struct cpu_device *)dev;
}

/* Activations stay wider than that on a processor: struct device's e4m3 is 0. */
static inline enum klein_status cpu_refuses_e4m3(const char *op, struct klein_error *err)
{
    return fail(err, KLEIN_E_UNSUPPORTED, "%s: the cpu device takes and gives no activations in F8_E4M3", op);
}

/* At least `bytes` of scratch, ARENA_ALIGN-aligned, valid until the next op. */
enum klein_status cpu_scratch(struct cpu_device *cpu, size_t bytes, char **out, struct klein_error *err);

/* FLOP/s of multiply-adds on registers (a multiply-add is 2), of vectors or AMX tiles, all threads of the device together: what no kernel can exceed.
 * Takes 0.1 s per type. type: of the operands, DT_F32 or DT_BF16; of BF16 ones the better of multiplying them as they are and widened. */
double cpu_peak_flops(struct device *dev, enum dtype type);

/* The op tables of simd/, one per instruction set, and one thread's register peak over some seconds. */
#define CPU_ISAS(X) X(base) X(avx2) X(avx512) X(amx)
#define X(isa)                                                                                               \
    extern const struct op_table cpu_ops_##isa;                                                              \
    double cpu_register_peak_##isa(enum dtype type, double seconds);
CPU_ISAS(X)
#undef X

#endif
