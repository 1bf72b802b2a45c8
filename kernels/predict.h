/* predict.h: how long ops should take on a GPU, by arithmetic. NOT measurements: a model of the kernels' cycles, calibrated against
 * published figures of other people's kernels (tests/test_predict.c lists each with its error).
 *
 * A product is cut into tiles, a tile into steps of 128 bytes of k. A step takes the longest of: its products on the tensor cores, its
 * operands from the L2, its operands from shared memory. Tiles fill the multiprocessors in waves. Attention adds the exponentials, which
 * overlap with the products for the most part. Everything else takes as long as its bytes. */
#ifndef KLEIN_PREDICT_H
#define KLEIN_PREDICT_H

#include "ops.h"

/* Against the published figures that test_predict.c lists, in percent: the median, the worst of kernels such as klein has, the worst of all. The
 * test holds these to its table. */
struct predict_error {
    int figures;
    double median, worst, worst_of_all;
};
extern const struct predict_error predict_error;

/* How a GPU's products are written: decides tiles, and what a step costs beside its products. */
enum gpu_products { GPU_MMA_SYNC, GPU_WGMMA, GPU_TCGEN05 };

struct gpu_spec {
    const char *name, *title;
    enum gpu_products products;
    int multiprocessors;
    double clock;      /* Hz, for which the peaks are quoted */
    double sustained;  /* share of it under long dense products: power */
    double bf16, e4m3; /* FLOP per cycle and multiprocessor, dense, f32 sums; e4m3 0: has none */
    double mma_sync;   /* the same of bf16 by mma.sync, for the kernels that have no other form */
    double memory;     /* bytes per second, quoted */
    double l2;         /* bytes per cycle and multiprocessor that kernels get */
    int shared;        /* KiB of shared memory per multiprocessor that blocks can have */
    int card_mib;      /* MiB of memory, as nvidia-smi shows it */
    double
        link; /* bytes per second to other such cards of the machine, one way, quoted; 0: they do not reach each other's memory */
    const char
        *lacks; /* instructions that klein has no kernels for: the prediction is of such kernels; or NULL */
};

/* The i-th GPU; NULL past the last. */
const struct gpu_spec *gpu_spec_at(int i);
/* KLEIN_E_USAGE naming the known ones. */
enum klein_status gpu_spec_named(const char *name, const struct gpu_spec **out, struct klein_error *err);

/* The GPU that a driver calls so; NULL if there are no figures of it. Variants with other clocks or memory ("PCIe", "Laptop") are others. */
const struct gpu_spec *gpu_spec_of(const char *driver_name, int multiprocessors);

/* c[m, n] = a[m, k] b[k, n] in tiles of tile_m x tile_n; 0: the fastest of the GPU's menu. Rows < split and the others in separate
 * tiles. share: blocks that fetch b together (a cluster with multicast); 0: as the GPU's kernels do. */
struct product {
    double m, n, k;
    int split, element; /* element: bytes, 2 bf16, 1 e4m3 */
    int tile_m, tile_n, share;
    int by_128; /* of the menu only tiles of 128 or 256 columns: whole heads, halves of SwiGLU, e4m3, convolutions */
    int by_256;   /* of 256: SwiGLU to e4m3 with scales per 128 columns */
    int promoted; /* e4m3 with a second sum in registers (scales per 128 columns of a): of the menu tiles of 128 columns, by wgmma 128 x 128 to 192 */
    double rate;  /* FLOP per cycle and multiprocessor; 0: the GPU's for the element */
};
double predict_product(const struct gpu_spec *g,
                       const struct product *p); /* seconds, without launch and memory */

/* A launch: its tiles, and the cycles of one of them on a multiprocessor, as if all its tiles ran one after the other. */
struct tiling {
    double tiles, cycles;
};
struct tiling product_tiling(const struct gpu_spec *g, const struct product *p); /* tile_m, tile_n not 0 */
double tiling_seconds(const struct gpu_spec *g, struct tiling t);

struct attention_problem {
    double heads, queries, keys, head_dim;
    int causal;
};
double predict_attention(const struct gpu_spec *g, const struct attention_problem *p);
/* rows: queries of a tile. */
struct tiling attention_tiling(const struct gpu_spec *g, const struct attention_problem *p, int rows);

/* Blocks of a kernel that a multiprocessor has at a time: by threads, registers (per thread, of 64 K, in pieces of 256 per warp) and shared memory
 * (bytes; the driver takes 1 KiB more of it per block). source: CUDA C++ Programming Guide, technical specifications per compute capability */
int resident_blocks(const struct gpu_spec *g, int registers, int threads, int shared);
/* Warps that a multiprocessor has at most. */
int gpu_warps(const struct gpu_spec *g);

/* Whether the denoiser has an op in its blocks, so that --precision fp8 multiplies it in e4m3: linear with residual, SwiGLU or qkv. */
int product_of_blocks(enum op_id op, const struct op_cost *cost);
/* Seconds of one call of an op. e4m3: if it is a product of blocks it is in e4m3. */
double predict_op(const struct gpu_spec *g, enum op_id op, const struct op_cost *cost, int e4m3);

#endif
