/* args.h: the one argument of each kernel, as a struct. Shared by the host code (C), by nvcc and by the soft GPU (C++), so it holds
 * only plain members whose size and offset are the same everywhere. Device addresses are pointers that the host never follows. */
#ifndef KLEIN_DEVICE_ARGS_H
#define KLEIN_DEVICE_ARGS_H

#include <stdint.h>

#ifdef __cplusplus /* device code: storage types without arithmetic, so that no conversion happens unseen */
struct bf16 {
    uint16_t bits; /* upper half of an IEEE binary32 */
};
struct fp8 {
    uint8_t bits; /* OCP E4M3 */
};
#define ALIGNED(n) alignas(n)
#else
#include "../../base/dtype.h"
typedef struct {
    uint8_t bits;
} fp8;
#define ALIGNED(n) _Alignas(n)
#endif

/* A CUtensorMap by value (driver_api.h): opaque, written by the driver, read by the copy engine only. */
struct tensor_map {
    ALIGNED(128) uint64_t opaque[16];
};

/* pointwise/scale.cu: y[i] = a * x[i], n elements; x and y 16-byte aligned. Any number of blocks. */
enum { SCALE_THREADS = 256 };
struct scale_args {
    float *y;
    const float *x;
    float a;
    int64_t n;
};

/* group/: devices that make one picture. Their arenas are laid out alike; what differs between two requests is in device memory (state),
 * so a graph can be replayed. Exchanges are counted: device i has done its part of number s, and what it stored is here, when done[i]
 * reaches s. */
enum { EXCHANGE_DEVICES = 8 };
struct exchange_state {
    char *arena[EXCHANGE_DEVICES];                  /* of each device */
    struct exchange_state *state[EXCHANGE_DEVICES]; /* this struct of each device */
    const uint32_t *stop;                           /* not 0: nobody waits any more; the host's memory */
    int rank;                                       /* of this device */
    uint32_t number;                                /* of the last exchange that ended here */
    uint32_t blocks;                                /* of the one that runs: that have done their part */
    uint32_t ready[EXCHANGE_DEVICES],
        done[EXCHANGE_DEVICES]; /* written by the other devices: the number of their exchange */
};

/* Where rows of a result go that are stored into other devices' memory as they are made (ops.h: exchange_to; group/route.h). state NULL:
 * nowhere else, y is an address like any other. Else y is the place in this device's arena of the result as each device has it. */
struct exchange_route {
    const struct exchange_state *state;
    const int32_t *place; /* of each row: its device and row there */
    int cols; /* linear: column c goes to column c % cols of device c / cols; place names the row only */
};

/* gemm/, op linear (ops.h): y = epilogue(x W^T + bias). A product is cut into
 *   groups of rows:      rows < split use group[0] of everything, the others group[1] (split 0: all use [0]); no tile straddles;
 *   segments of columns: each has its rows of W, its epilogue and its place in the output; no tile straddles.
 * So fused and separate weights, text and image streams, and q | k | v | mlp of a single-stream block are the same to a kernel.
 *   LINEAR_SEGMENT_PLAIN      y = (.)                                LINEAR_SEGMENT_SILU  y = silu(.)
 *   LINEAR_SEGMENT_RESIDUAL   y = residual + gate * (.)              gate absent: 1; y may be residual
 *   LINEAR_SEGMENT_SWIGLU     y = silu(x w^T) * (x up^T)             row j of w and row j of up make column j
 *   LINEAR_SEGMENT_NORM_ROPE  y = rope(rms(.) * norm)                per head of 128 columns; cols is a multiple of that
 * Weights are row-major [rows, k], ldw elements apart, BF16 (x BF16) or e4m3 with one scale per row (x e4m3 with scales).
 * Vectors (bias, gate, norm) are F32 and indexed by the segment's column (norm: by the column within the head).
 * The matrix kernels move 16 bytes of x, w, up, residual and y at a time (8 of f32 y, and of vectors and tables): pointers and the bytes
 * of leading dimensions are multiples of that, k and cols fill whole pieces. */
enum linear_segment_kind {
    LINEAR_SEGMENT_PLAIN,
    LINEAR_SEGMENT_SILU,
    LINEAR_SEGMENT_RESIDUAL,
    LINEAR_SEGMENT_SWIGLU,
    LINEAR_SEGMENT_NORM_ROPE
};
enum { LINEAR_SEGMENTS = 4, LINEAR_GROUPS = 2 };
struct linear_segment_weights {
    const void *w, *up;              /* up: SWIGLU only */
    const float *w_scale, *up_scale; /* e4m3: per row of w, up */
    const float *bias, *gate, *norm; /* NULL: absent */
    int64_t ldw, ldup;
};
struct linear_segment {
    int kind, cols; /* cols of y */
    int y_type;     /* enum element_type: ELEMENT_BF16 or ELEMENT_F32; all but SILU also ELEMENT_E4M3 */
    int y_col;      /* its first column in the whole result */
    int64_t ldy, ldr;
    void *y; /* row 0 of the segment's first column, if routed of the whole result; all rows of both groups */
    const void *residual; /* of y's type; BF16 if y is E4M3 */
    struct linear_segment_weights group[LINEAR_GROUPS];
};
struct linear_kernel_args {
    const void *x;        /* BF16 or e4m3 [m, k] */
    const float *x_scale; /* e4m3: per row */
    int64_t ldx;
    int m, k, split, segments;
    const float *cos, *sin; /* [m, 64], contiguous rows; NORM_ROPE */
    int half;               /* rotate (j, j + 64), else (2j, 2j + 1) */
    float eps;
    int ldscale;   /* not 0: x_scale[i * ldscale + row] is that of columns 128 i .. 128 i + 127 of the row */
    int ldy_scale; /* of y_scale */
    struct exchange_route route; /* of NORM_ROPE and PLAIN segments of products with heads */
    struct linear_segment segment[LINEAR_SEGMENTS];
    /* E4M3: y_scale[segment][i * ldy_scale + row] is made that of the segment's columns 128 i .. 128 i + 127 */
    float *y_scale[LINEAR_SEGMENTS];
};

/* gemm/gemm_sm80.cu, gemm_sm89.cu, gemm_to_e4m3_sm89.cu: tiles of bm x bn rows of W; a launch has a block per tile: (tiles of rows of group 0 +
 * of group 1) x (the segments' tiles of rows of W; SWIGLU has 2 cols of them). linear: PLAIN, SILU, RESIDUAL; qkv: NORM_ROPE, PLAIN
 * and SWIGLU, no bias, y BF16. groups: x has scales per 128 columns. What they write in e4m3: as the kernels of sm_90 below, those with
 * tiles of 256 columns SWIGLU. */
enum { GEMM_SM80_THREADS = 128 };
#define GEMM_SM89_THREADS(bm) (2 * (bm))
#define GEMM_SM80_SHARED(bm, bn, stages)                                                                     \
    ((stages) * ((bm) + (bn)) * 128u) /* bytes of dynamic shared memory */

/* gemm/quantise_sm89.cu: y = x as e4m3, each row divided by its scale, the largest magnitude / 448. A block per row. Rows of x (BF16) and y are
 * 16-byte aligned, of a multiple of 16 columns. */
enum { QUANTISE_THREADS = 256, QUANTISE_SHARED = QUANTISE_THREADS / 32 * 4 };

/* gemm/gemm_*_sm90.cu: op linear with each matrix also as a 2-D tensor map with 128-byte swizzle: boxes of 128 bytes along k by the rows
 * of the tile that it gives, and for y and the residual of 64 columns by 16 rows. Rows are counted in the whole matrix; the maps of y and
 * the residual end with the group's rows. Maps that a segment does not need are valid all the same. Tiles of bm x bn; launch as many
 * blocks as multiprocessors, or as tiles if these are fewer. Kernels with e4m3 in their names take x and weights of that type, those
 * with groups too take x with scales per 128 columns. gemm_qkv_e4m3_sm90_128x256 can write SWIGLU in e4m3, gemm_to_e4m3_sm90 what it
 * has: linear nothing else, qkv each segment in e4m3 or BF16. */
struct gemm_sm90_maps {
    struct tensor_map w, other, y; /* other: up (SWIGLU) or the residual */
};
struct gemm_sm90_args {
    struct tensor_map x;
    struct gemm_sm90_maps maps[LINEAR_SEGMENTS][LINEAR_GROUPS];
    struct linear_kernel_args linear; /* split: not 0 */
};
enum { GEMM_SM90_SHARED_MAX = 232448 - 1024 /* of a block, less mbarriers */ };
/* Three or more k blocks ahead of the one that is multiplied; what is left holds output, one 64-column chunk of the tile per buffer. */
#define GEMM_SM90_STAGE(bm, bn) (((bm) + (bn)) * 128)
#define GEMM_SM90_STAGES(bm, bn)                                                                             \
    (GEMM_SM90_STAGE(bm, bn) >= 40960 ? 4 : GEMM_SM90_STAGE(bm, bn) > 32768 ? 5 : 6)
#define GEMM_SM90_SPARE(bm, bn)                                                                              \
    ((GEMM_SM90_SHARED_MAX - GEMM_SM90_STAGES(bm, bn) * GEMM_SM90_STAGE(bm, bn)) / ((bm)*128))
#define GEMM_SM90_BUFFERS(bm, bn) (GEMM_SM90_SPARE(bm, bn) < (bn) / 64 ? GEMM_SM90_SPARE(bm, bn) : (bn) / 64)
#define GEMM_SM90_SHARED(bm, bn)  /* bytes of dynamic shared memory */                                       \
    (GEMM_SM90_STAGES(bm, bn) * GEMM_SM90_STAGE(bm, bn) + GEMM_SM90_BUFFERS(bm, bn) * (bm)*128 + 1024)
#define GEMM_SM90_THREADS(bm) (128 + (bm) / 64 * 128)

/* attention/: o = softmax(scale q k^T) v per head, rows of tokens, one head after the other within a row. Head h of q and o reads head
 * h / group of k and v. Leading dimensions in elements. Only keys < *key_count exist (NULL: < keys, the rows of k); causal: query i sees
 * keys <= i.
 * The bf16 kernels copy 16 bytes at a time: pointers and the bytes of the leading dimensions are multiples of 16.
 * Launch ceil(queries / rows of the variant) x heads blocks (attention_pick.h). */
enum {
    ATTENTION_SM80_THREADS = 128,
    ATTENTION_SM80_128X48_SHARED = 57344, /* bytes of dynamic shared memory */
    ATTENTION_SM80_64X64_SHARED = 49152,
    ATTENTION_WIDE_SM80_THREADS = 256,
    ATTENTION_WIDE_SM80_SHARED = 99328,
    ATTENTION_SIMPLE_THREADS = 128,
    ATTENTION_SIMPLE_SHARED = 512,
    ATTENTION_WIDTH_MAX = 512 /* of a head in wide and simple; wide takes multiples of 64, sm80 128 only */
};
struct flash_args {
    void *o;        /* bf16; attention_simple_f32: f32; attention_e4m3_sm89: e4m3 */
    float *o_scale; /* e4m3: o_scale[head * ldo_scale + row] is made the row's scale in the head */
    int64_t ldo_scale;
    const void *q, *k, *v;
    int ldo, ldq, ldk, ldv;
    int queries, keys, head_dim, group, causal;
    const int32_t *key_count;
    float scale_log2;            /* scale / ln 2, positive: the softmax is computed with powers of 2 */
    struct exchange_route route; /* of o */
};

/* attention/attention_sm90.cu: the same for heads of 128; the matrices as 2-D tensor maps of bf16 with 128-byte swizzle: boxes of 64
 * columns by 64 rows (q, o) or 128 (k, v). */
enum {
    ATTENTION_SM90_ROWS_BOX = 64,
    ATTENTION_SM90_KEYS_BOX = 128,
    ATTENTION_SM90_64X128_THREADS = 128,
    ATTENTION_SM90_64X128_SHARED = 115712, /* two blocks fill a multiprocessor */
    ATTENTION_SM90_128X128_THREADS = 384,
    ATTENTION_SM90_128X128_SHARED = 165888
};
struct attention_sm90_args {
    struct tensor_map q, k, v, o;
    float *
        o_scale; /* not NULL: o is e4m3, its box 128 columns, and o_scale[head * ldo_scale + row] made its scales */
    int64_t ldo_scale;
    int queries, keys, group, causal;
    int whole; /* 128x128: blocks with 128 queries of a head, one head after the other; the others have 64 */
    const int32_t *key_count;
    float scale_log2;
    struct exchange_route route; /* of o, bf16, which then is at to, with rows ldto bytes apart */
    void *to;
    int64_t ldto;
};

/* norm/ and pointwise/: matrices of numbers whose element (r, c) is at ptr + r * ld + c elements of `type`. Kernels named after a type
 * move 16 bytes at a time: pointers and the bytes of ld are multiples of 16, columns fill whole vectors. Kernels named `any` take
 * every type and alignment, one element at a time. */
enum element_type { ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16, ELEMENT_U8, ELEMENT_E4M3 };
struct matrix {
    void *ptr;
    int64_t ld;
    int type;
};

/* How blocks of SPREAD_THREADS threads divide a matrix: `across` threads side by side, each at its vector of a row, `down` of these
 * rows of threads; tiles of them cover the vectors of a row. Block b is at tile b % tiles and has the rows_per_block rows from
 * b / tiles * rows_per_block. across * down <= SPREAD_THREADS. */
enum { SPREAD_THREADS = 256 };
struct spread {
    int across, down, tiles;
    int vectors, rows, rows_per_block;
};

struct quantise_args {
    struct matrix y, x;
    float *row_scale;
    int rows, cols;
};

/* gemm/linear_simple.cu: op linear for any operands, in two steps. product: z[rows, cols] = x w^T in f32, operands rounded to bf16 first
 * if `round`; ceil(rows / 64) x ceil(cols / 64) blocks. finish: a segment's results from z, whose column w + j is column j of the segment
 * (SWIGLU: gate; up + j the other); matrices begin at the row that z begins at, absent ones have ptr NULL. finish: a thread per result;
 * rope (NORM_ROPE): a warp per row and head, norm by column within the head. */
enum { LINEAR_SIMPLE_THREADS = 256, LINEAR_SIMPLE_TILE = 64, LINEAR_SIMPLE_SHARED = 2 * 16 * 68 * 4 };
struct linear_product_args {
    float *z;
    int64_t ldz;
    struct matrix x, w;
    int rows, cols, k, round;
};
struct linear_finish_args {
    const float *z;
    int64_t ldz;
    int kind, rows, cols, w, up;
    struct matrix y, residual, bias, gate, norm, cos, sin;
    int head_dim, half;
    float eps;
    int y_col; /* as in struct linear_segment */
    struct exchange_route route;
};

/* gemm/linear_rows.cu: y[m, n] = x w^T + bias, then SiLU if `silu`; few rows m, f32 x and y, bf16 w. A warp per LINEAR_ROWS_EACH rows of w,
 * ceil(n / LINEAR_ROWS_BLOCK) blocks. Rows of x and w are 16-byte aligned, k is a multiple of 8. _4, _8: the most rows of x. */
enum { LINEAR_ROWS_THREADS = 128, LINEAR_ROWS_EACH = 4, LINEAR_ROWS_BLOCK = LINEAR_ROWS_THREADS / 32 * 4 };
struct linear_rows_args {
    float *y;
    const float *x;
    const bf16 *w;
    struct matrix bias;
    int64_t ldy, ldx, ldw;
    int m, n, k, silu;
};

/* norm/adaln: y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift. A warp per row. Rows < split use [0], the others [1].
 * bf16, f32 (width up to the number in the kernel's name): ceil(split / 8) + ceil((rows - split) / 8) blocks, ADALN_SHARED(that number)
 * bytes of shared memory. any: ceil(rows / 8) blocks. e4m3_sm89: y is e4m3 and row_scale[r] * y the result; columns
 * and ld are multiples of 16. */
enum { ADALN_THREADS = 256, ADALN_ROWS = ADALN_THREADS / 32 };
#define ADALN_SHARED(width) (8u * (width))
struct adaln_kernel_args {
    struct matrix y, x;
    const float *shift[2], *scale[2];
    float *row_scale;
    int rows, cols, split;
    float eps;
};

/* norm/rmsnorm: y = x / sqrt(mean(x^2) + eps) * w. A warp per row, ceil(rows / 4) blocks. bf16, f32: w is bf16. */
enum { RMSNORM_THREADS = 128, RMSNORM_ROWS = RMSNORM_THREADS / 32 };
struct rmsnorm_kernel_args {
    struct matrix y, x, w;
    int rows, cols;
    float eps;
};

/* norm/groupnorm. stats: partial[block / tiles][channel] = mean and sum of squared deviations from it over the block's pixels, counts
 * [block / tiles] = these; combine: stats[group] = mean, 1 / sqrt(var + eps) from these (one block per group), or from those that
 * convolutions make for 4 channels each; apply: y = groupnorm(x), then SiLU if `silu`. */
enum { GROUPNORM_BANDS = 8 };
#define GROUPNORM_SHARED(tables, vector) (4u * (tables) * (SPREAD_THREADS * (vector) + 32u))
struct groupnorm_stats_args {
    struct matrix x;
    struct spread spread;
    float *partial, *counts; /* [blocks / tiles][cols][2], [blocks / tiles] */
    int cols;
};
enum { GROUPNORM_COMBINE_THREADS = 256, GROUPNORM_COMBINE_SHARED = 3 * 8 * GROUPNORM_COMBINE_THREADS };
struct groupnorm_combine_args {
    struct matrix stats;          /* f32 [groups, 2] */
    const float *partial;         /* [chunks][cols][2] */
    const float *counts;          /* [chunks]: of how many values each of a chunk's is */
    int cols, chunks, group_size; /* group_size: of cols */
    float eps;
};
struct groupnorm_apply_args {
    struct matrix y, x, stats, gamma, beta;
    struct spread spread;
    int cols, group_size, silu;
    int bands; /* of the image, each with its statistics; ops.h: group_norm */
    float share[GROUPNORM_BANDS];
};

/* conv/, op conv (ops.h), NHWC: y[pixel, :] = sum over taps and channels of x(pixel at tap) w + bias + residual. A launch makes all rows of
 * y or a band of them: x, y, residual begin with the band; outside of the band's x is the padding, so the band has its halo.
 * Tap (0, 0) of y's pixel (row, col) is pixel (row * stride + top, col * stride + left) of x, which is enlarged twice if `up`.
 * w is packed (conv_layout_pack): [cout][ksize * ksize][CONV_PADDED(cin)], of x's type, zeros beyond cin.
 * simple: every type (w: as packed) and alignment. sm80: BF16; rows of x, and unless the tile is 8 wide of y and residual, are 16-byte
 * aligned; bias F32; 8 divides cout unless the tile is 8 wide. Launch ceil(pixels / tile) * ceil(cout / tile) blocks (conv_pick.h). */
enum {
    CONV_SM80_THREADS = 128,
    CONV_SM80_128X128_STAGE = 32768, /* bytes of dynamic shared memory per stage */
    CONV_SM80_128X64_STAGE = 24576,
    CONV_SM80_128X8_STAGE = 17408,
    CONV_SIMPLE_THREADS = 256,
    CONV_SIMPLE_SHARED = 2 * 16 * 68 * 4,
    CONV_SM90_THREADS = 384,
    CONV_LAYOUT_THREADS = 256
};
#define CONV_PADDED(cin) (((cin) + 7) / 8 * 8)
struct conv_kernel_args {
    struct matrix y, x, w, bias, residual; /* bias, residual: ptr NULL if absent */
    float *moments, *counts; /* for groupnorm_combine, cout / 4 cols; chunks: of warps; or NULL */
    int h, w_px;             /* of x in pixels, as it lies there */
    int pixels, ow;          /* of y */
    int top, left, ksize, stride, up;
    int cin, cout;
};

/* conv/conv_sm90: stride 1; 3-D tensor maps (channel, column, row) with 128-byte swizzle: boxes of 64 channels by 16 columns by 8 rows
 * (x) or 4 rows (y, residual); of w (channel, tap, cout) 64 by 1 by BN. If `up`, y and residual are four images each: [2 i + j] has
 * the pixels whose row is odd (i = 1) or even, and whose column is odd (j = 1) or even. As many blocks as multiprocessors, or as
 * tiles if these are fewer. */
#define CONV_SM90_SHARED(bn, stages)                                                                         \
    ((stages) * (128 + (bn)) * 128 + 32768 + 1024) /* bytes of dynamic shared memory */
struct conv_sm90_args {
    struct tensor_map x, w, y[4], residual[4];
    float *moments, *counts; /* for groupnorm_combine, cout / 4 cols; two chunks per tile; NULL: not wanted */
    const float *bias;       /* NULL: absent */
    int has_residual;
    int rows, ow; /* of y; if up, of each of its images */
    int top, left, ksize, up;
    int cin, cout;
};

/* conv/conv_layout: packs weights [cout][cin][taps] for the kernels above; a thread per element of the result. */
struct conv_layout_args {
    struct matrix packed, w;
    int cout, cin, taps;
};

/* pointwise/copy: y[r, :] = x[ids ? ids[r] : r, :], converted. pointwise/u8 (the same struct): f32 or bf16 in [-1, 1] <-> u8. */
struct copy_kernel_args {
    struct matrix y, x;
    struct spread spread;
    const int32_t *ids;
};

/* pointwise/step: euler: y = a + *dt * b; cfg: y = a + guidance * (b - a). f32. */
struct step_args {
    struct matrix y, a, b;
    struct spread spread;
    const float *dt;
    float guidance;
};

/* pointwise/patch: image [h, w] of `channels` <-> f32 tokens; a thread per token and channel. */
enum { PATCH_THREADS = 256 };
struct patch_kernel_args {
    struct matrix image, tokens, mean, var;
    int64_t threads; /* tokens * channels */
    int w, channels;
    int aligned; /* rows of tokens are 16-byte aligned, mean and var by 4 of their elements */
    float eps;
};

/* group/exchange.cu, exchange (ops.h): rows to the devices of a group, then a wait until theirs are here. Blocks: any number by ways x
 * tensors. Everything is a multiple of 16 bytes and aligned so. exchange_meet: only the wait; one block. */
enum { EXCHANGE_THREADS = 256, EXCHANGE_MEET_THREADS = 32, EXCHANGE_TENSORS = 3, EXCHANGE_SPANS = 3 };
struct exchange_kernel_args {
    struct exchange_state *state;
    int size, rank, tensors, ready; /* ready: first wait until all have come here */
    struct {
        const char *from;
        char *to;             /* in this device's arena; the other's place is as far into its own */
        int64_t ldfrom, ldto; /* bytes */
    } tensor[EXCHANGE_TENSORS];
    struct {
        int from_byte, to_byte, bytes; /* of a row */
        struct {
            int from, to, rows;
        } span[EXCHANGE_SPANS];
    } way[EXCHANGE_DEVICES];
};

/* pointwise/timestep: y[s, k], y[s, half + k] = cos, sin of t[s] * 1000 * 10000^(-k / half); a thread per s and k. */
enum { TIMESTEP_THREADS = 128 };
struct timestep_kernel_args {
    struct matrix y;
    const float *t;
    int steps, half;
};

#endif
