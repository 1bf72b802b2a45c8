#include "predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const struct predict_error predict_error = {23, 3.4, 9.9, 42.4};

/* Peaks: NVIDIA's data sheets, dense, as rates per cycle that give them at the boost clock. Sustained: the best published dense product
 * over the peak, less what the model itself finds (stas00/ml-engineering compute/accelerator, "MAMF"; ThunderKittens 855 TF and fast.cu
 * 808 TF on H100; LeetCUDA and gau-nernst/learn-cuda on GeForce). L2: A100 5120 bytes per cycle (A100 white paper) over 108; Ada
 * 1946 bytes per cycle measured on an RTX 4090 (smallscientist1/cuda_microbenchmark), by width of the memory bus on the others; Hopper
 * inferred from kernels without multicast that stay at 600-700 TF. Link: NVLink or PCIe of the data sheets, half of what both ways have;
 * the driver gives GeForce cards no peer access. "guess": no measurement found. */
static const struct gpu_spec gpus[] = {
    /* name, title, products, multiprocessors, clock, sustained, bf16, e4m3, mma_sync, memory, l2, shared, card_mib, link, lacks */
    {"a100", "A100 SXM 80 GB", GPU_MMA_SYNC, 108, 1.410e9, 0.90, 2048, 0, 2048, 2.04e12, 40, 164, 81920,
     300e9, NULL},
    /* 72 W: about half of the peak (guess) */
    {"l4", "L4", GPU_MMA_SYNC, 58, 2.040e9, 0.55, 1024, 2048, 1024, 0.30e12, 16.8, 100, 23034, 32e9, NULL},
    /* 300 W (guess) */
    {"l40s", "L40S", GPU_MMA_SYNC, 142, 2.490e9, 0.80, 1024, 2048, 1024, 0.864e12, 13.7, 100, 46068, 32e9,
     NULL},
    {"4090", "RTX 4090", GPU_MMA_SYNC, 128, 2.520e9, 1.00, 512, 1024, 512, 1.008e12, 15.2, 100, 24564, 0,
     NULL},
    /* mma.sync on Hopper has 62 % of wgmma's rate (arXiv 2402.13499) */
    {"h100", "H100 SXM", GPU_WGMMA, 132, 1.830e9, 0.86, 4096, 8192, 2560, 3.35e12, 44, 228, 81559, 450e9,
     NULL},
    {"h200", "H200 SXM", GPU_WGMMA, 132, 1.830e9, 0.86, 4096, 8192, 2560, 4.80e12, 44, 228, 143771, 450e9,
     NULL},
    /* L2, mma.sync: guesses */
    {"b200", "B200", GPU_TCGEN05, 148, 1.856e9, 0.86, 8192, 16384, 2560, 8.00e12, 56, 228, 183359, 900e9,
     "tcgen05"},
    /* e4m3 by plain mma.sync; its block-scaled form has twice the rate, and klein does not use it */
    {"5090", "RTX 5090", GPU_MMA_SYNC, 170, 2.407e9, 1.00, 512, 1024, 512, 1.79e12, 15.3, 100, 32607, 0,
     NULL},
};
enum { GPUS = sizeof gpus / sizeof *gpus };

/* The model's constants, the same for all GPUs and shapes. Per cycle and multiprocessor: */
static const double shared_bytes = 128; /* from shared memory */
static const double exponentials = 16;
static const double lanes = 128; /* f32 instructions */
/* Copies reach this share of the quoted bandwidth: 3.0 of 3.35 TB/s on H100, 4.3 of 4.8 on H200. */
static const double memory_share = 0.9;
/* Seconds from the end of a kernel to the start of the next in a graph; published: 1 to 1.5 us. */
static const double launch = 1.3e-6;
/* Stores to other cards reach this share of the link; then a fence, a flag and the sight of it on the other side (guesses: published small
 * all-reduces of this kind, which wait twice, take 5 to 8 us). */
static const double link_share = 0.8, exchange_wait = 3e-6;
/* Cycles at the end of a tile: the last products drain, a barrier, the next tile's first operands arrive; then instructions per
 * element: gate or angles, scale, pack, store. */
static const double tile_latency = 1200, tile_instructions = 8;
/* Cycles of a step that mma.sync kernels spend at the barrier and on the first ldmatrix. */
static const double sync_step = 150;
/* f32 instructions per score: scale, maximum, sum, pack. Of products and softmax, this share of the shorter is not hidden by the
 * longer: what FlashAttention 2 and 3 reach. */
static const double softmax_instructions = 4, softmax_exposed = 0.4;

static const int wgmma_tiles[][2] = {{128, 256}, {192, 192}, {128, 192}, {128, 144},
                                     {128, 128}, {64, 192},  {128, 8},   {0}},
                 mma_tiles[][2] = {{128, 128}, {64, 128}, {128, 64}, {128, 8}, {0}},
                 mma_e4m3_tiles[][2] = {{128, 256}, {64, 256}, {128, 128}, {64, 128}, {0}},
                 tcgen05_tiles[][2] = {{128, 256}, {128, 128}, {128, 8}, {0}};

const struct gpu_spec *gpu_spec_at(int i)
{
    return i >= 0 && i < GPUS ? &gpus[i] : NULL;
}

enum klein_status gpu_spec_named(const char *name, const struct gpu_spec **out, struct klein_error *err)
{
    char known[128] = "";
    for (int i = 0; i < GPUS; i++) {
        if (!strcmp(name, gpus[i].name)) {
            *out = &gpus[i];
            return KLEIN_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", gpus[i].name);
    }
    return fail(err, KLEIN_E_USAGE, "no figures of a GPU \"%s\"; there are %s", name, known);
}

const struct gpu_spec *gpu_spec_of(const char *driver_name, int multiprocessors)
{
    /* As drivers of 2022 to 2025 call them. */
    static const char *const names[][2] = {
        {"a100", "NVIDIA A100-SXM4-80GB"}, {"l4", "NVIDIA L4"},
        {"l40s", "NVIDIA L40S"},           {"4090", "NVIDIA GeForce RTX 4090"},
        {"h100", "NVIDIA H100 80GB HBM3"}, {"h200", "NVIDIA H200"},
        {"b200", "NVIDIA B200"},           {"5090", "NVIDIA GeForce RTX 5090"}};
    struct klein_error none = {0};
    const struct gpu_spec *g;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(driver_name, names[i][1]) && gpu_spec_named(names[i][0], &g, &none) == KLEIN_OK)
            return g->multiprocessors == multiprocessors ? g : NULL;
    return NULL;
}

static double rate_of(const struct gpu_spec *g, const struct product *p)
{
    return p->rate ? p->rate : p->element == 1 ? g->e4m3 : g->bf16;
}

/* A warp (mma.sync) reads the operands of its 64 x 64 part, a warpgroup (wgmma) those of its 64 rows and all columns. */
static double shared_cycles(const struct gpu_spec *g, int tile_m, int tile_n)
{
    int part_m = tile_m < 64 ? tile_m : 64, part_n = g->products == GPU_MMA_SYNC && tile_n > 64 ? 64 : tile_n;
    double parts = (double)tile_m / part_m * tile_n / part_n;
    if (g->products == GPU_TCGEN05) return (tile_m + tile_n) * 128 / shared_bytes;
    return parts * (part_m + part_n) * 128 / shared_bytes;
}

struct tiling product_tiling(const struct gpu_spec *g, const struct product *p)
{
    const int tile_m = p->tile_m, tile_n = p->tile_n,
              share = p->share                     ? p->share
                      : g->products == GPU_TCGEN05 ? 2
                                                   : 1;
    double step_k = 128.0 / p->element, steps = ceil(p->k / step_k);
    double tiles = (ceil(p->split / (double)tile_m) + ceil((p->m - p->split) / tile_m)) * ceil(p->n / tile_n);
    double step = 2 * tile_m * tile_n * step_k / rate_of(g, p);
    step = fmax(step, (tile_m + (double)tile_n / share) * 128 / g->l2);
    step = fmax(step, shared_cycles(g, tile_m, tile_n));
    double end = tile_latency + (double)tile_m * tile_n * tile_instructions / lanes;
    if (g->products == GPU_MMA_SYNC)
        step += sync_step, end /= 2; /* two blocks per multiprocessor: one ends, the other multiplies */
    if (g->products == GPU_TCGEN05) end = tile_latency; /* tensor memory holds two tiles */
    return (struct tiling){tiles, steps * step + end};
}

double tiling_seconds(const struct gpu_spec *g, struct tiling t)
{
    return ceil(t.tiles / g->multiprocessors) * t.cycles / (g->clock * g->sustained);
}

static double tiled_seconds(const struct gpu_spec *g, const struct product *p, int tile_m, int tile_n)
{
    struct product tiled = *p;
    tiled.tile_m = tile_m, tiled.tile_n = tile_n;
    return tiling_seconds(g, product_tiling(g, &tiled));
}

static int has_tile(const struct gpu_spec *g, const struct product *p, int tile_m, int tile_n)
{
    const int sync = g->products == GPU_MMA_SYNC;
    if (p->by_256 || (sync && p->promoted)) return tile_n == (p->by_256 ? 256 : 128);
    if (p->promoted) return tile_m == 128 && tile_n >= 128 && tile_n <= 192;
    /* e4m3 in tiles of 256 columns: heads and SwiGLU */
    if (sync && tile_n == 256) return p->by_128;
    return !p->by_128 || tile_n % 128 == 0 || tile_n < 128;
}

double predict_product(const struct gpu_spec *g, const struct product *p)
{
    if (p->tile_m) return tiled_seconds(g, p, p->tile_m, p->tile_n);
    const int(*menu)[2] = g->products == GPU_WGMMA     ? wgmma_tiles
                          : g->products == GPU_TCGEN05 ? tcgen05_tiles
                          : p->element == 1            ? mma_e4m3_tiles
                                                       : mma_tiles;
    double best = INFINITY;
    for (; (*menu)[0]; menu++)
        if (has_tile(g, p, (*menu)[0], (*menu)[1]))
            best = fmin(best, tiled_seconds(g, p, (*menu)[0], (*menu)[1]));
    return best;
}

/* Heads of 128 have kernels for every kind of product; others mma.sync only. */
static int attention_by_mma_sync(const struct gpu_spec *g, const struct attention_problem *p)
{
    return g->products == GPU_MMA_SYNC || p->head_dim != 128;
}

/* exposed: the share of the shorter of products and softmax that the longer does not hide. */
static struct tiling attention_in_tiles(const struct gpu_spec *g, const struct attention_problem *p, int rows,
                                        double exposed)
{
    int sync = attention_by_mma_sync(g, p);
    double rate = sync ? g->mma_sync : g->bf16, keys = 64;
    double products = 4 * rows * keys * p->head_dim / rate;
    double softmax = rows * keys * (1 / exponentials + softmax_instructions / lanes);
    double step = fmax(products, softmax) + exposed * fmin(products, softmax) + (sync ? 2 * sync_step : 0);
    double steps = ceil(p->keys / keys);
    if (p->causal) steps = (steps + rows / keys) / 2; /* on average */
    double end = tile_latency + products / 2 + rows * p->head_dim * tile_instructions / lanes;
    if (sync) end /= 2;
    return (struct tiling){p->heads * ceil(p->queries / rows), steps * step + end};
}

struct tiling attention_tiling(const struct gpu_spec *g, const struct attention_problem *p, int rows)
{
    return attention_in_tiles(g, p, rows, softmax_exposed);
}

double predict_attention(const struct gpu_spec *g, const struct attention_problem *p)
{
    /* 128 queries per block, 64 where two blocks of 128 and their operands do not fit. */
    int small = attention_by_mma_sync(g, p) && (g->shared < 128 || p->head_dim > 128);
    struct tiling t = attention_tiling(g, p, small ? 64 : 128);
    const double rest = fmod(t.tiles, g->multiprocessors);
    if (g->products != GPU_WGMMA || attention_by_mma_sync(g, p) || 2 * rest > g->multiprocessors)
        return tiling_seconds(g, t);
    /* The last round in halves (attention_pick.h): a warpgroup alone, none of whose softmax is taken to be hidden. */
    struct tiling halves = attention_in_tiles(g, p, 64, 1);
    t.tiles -= rest, halves.tiles = 2 * rest;
    return tiling_seconds(g, t) + tiling_seconds(g, halves);
}

int resident_blocks(const struct gpu_spec *g, int registers, int threads, int shared)
{
    const int warps = (threads + 31) / 32, per_warp = (registers * 32 + 255) / 256 * 256;
    int blocks = gpu_warps(g) / warps;
    if (blocks > 65536 / (per_warp * warps)) blocks = 65536 / (per_warp * warps);
    if (blocks > g->shared * 1024 / (shared + 1024)) blocks = g->shared * 1024 / (shared + 1024);
    return blocks;
}

int gpu_warps(const struct gpu_spec *g)
{
    return g->shared > 100 ? 64 : 48; /* chips with the larger shared memory are those of data centres */
}

/* Products of few rows pass the weights once and wait for nothing else (linear_rows.cu). */
enum { FEW_ROWS = 8 };

/* Stores to other cards leave while a kernel computes. */
static double sent_seconds(const struct gpu_spec *g, const struct op_cost *cost)
{
    return cost->sent > 0 ? cost->sent / (link_share * g->link) : 0;
}

static double product_seconds(const struct gpu_spec *g, enum op_id op, const struct op_cost *cost, int e4m3)
{
    const double memory = memory_share * g->memory, x = cost->m * cost->k,
                 w = cost->n * cost->k * (cost->split ? 2 : 1);
    const int paired = cost->epilogue == LINEAR_QKV || cost->epilogue == LINEAR_SWIGLU;
    /* What attention and SwiGLU have written comes with scales per 128 columns. */
    const int promoted = e4m3 && !paired;
    const struct product p = {.m = cost->m,
                              .n = cost->n,
                              .k = cost->k,
                              .split = cost->split,
                              .element = e4m3 ? 1 : 2,
                              .promoted = promoted,
                              .by_128 = paired || op == OP_conv,
                              .by_256 = e4m3 && cost->swiglu};
    double seconds = (cost->bytes - (e4m3 ? x + w : 0)) / memory;
    if (cost->m > FEW_ROWS) seconds = fmax(seconds, predict_product(g, &p));
    /* GroupNorm is a pass over x before it. */
    if (cost->stats) seconds += launch; /* adding up what the tiles have found */
    if (cost->norm_bytes > 0) seconds += cost->norm_bytes / memory + launch;
    return fmax(seconds, sent_seconds(g, cost)) + launch;
}

int product_of_blocks(enum op_id op, const struct op_cost *cost)
{
    return op == OP_linear && cost->epilogue >= LINEAR_RESIDUAL;
}

double predict_op(const struct gpu_spec *g, enum op_id op, const struct op_cost *cost, int e4m3)
{
    const double bytes = cost->bytes / (memory_share * g->memory);
    switch (op) {
    case OP_linear:
        return product_seconds(g, op, cost, e4m3 && product_of_blocks(op, cost));
    case OP_conv:
        return product_seconds(g, op, cost, 0);
    case OP_attention: {
        struct attention_problem p = {cost->heads, cost->m, cost->n, cost->k, cost->causal};
        return fmax(fmax(predict_attention(g, &p), bytes), sent_seconds(g, cost)) + launch;
    }
    case OP_gn_stats: /* sums, then their combination */
        return bytes + 2 * launch;
    case OP_adaln: /* its result in e4m3 with scales; the last one of a step, which stays BF16, is counted so too */
        return bytes + launch - (e4m3 ? (cost->m * cost->n - 4 * cost->m) / (memory_share * g->memory) : 0);
    case OP_exchange:
        return sent_seconds(g, cost) + exchange_wait + launch;
    default:
        return bytes + launch;
    }
}
