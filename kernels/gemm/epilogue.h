/* epilogue.h: what becomes of a product while it is in registers, for op linear (args.h: linear_kernel_args).
 *
 * A fragment is n blocks of 8 columns x 16 rows of a warp as mma.sync leaves them: of block j, d[j][0], d[j][1] are row lane / 4,
 * columns 8 j + 2 (lane % 4) and the next; d[j][2], d[j][3] the row 8 further. The accumulator of wgmma is the same, flat: d + 4 j. So
 * both architectures call these functions, with a pointer to the first block; they are inlined and unrolled, so nothing has an address.
 * Columns are those of the segment; a block lies inside the segment or beyond it (cols is a multiple of 8), and what is computed for
 * rows and blocks beyond is never stored. The four lanes of a quad share a row.
 *
 * Order: scale (e4m3), bias, then silu | residual | swiglu | norm and rope; everything f32, rounded once, when it is packed. */
#ifndef KLEIN_GEMM_EPILOGUE_H
#define KLEIN_GEMM_EPILOGUE_H

#include "../device/elements.h"
#include "../device/tile.h"

enum {
    HEAD = 128,
    HEAD_BLOCKS = HEAD / 8
}; /* the head width whose norm and rotation are done in registers */

/* This thread's two rows of a fragment that begins at row0. Rows from `end` on read the last one's data. */
struct epilogue_rows {
    int row[2];
};
DEVICE epilogue_rows epilogue_rows_of(int row0, int end)
{
    const int row = row0 + lane_index() / 4, last = end - 1;
    return {{row < last ? row : last, row + 8 < last ? row + 8 : last}};
}

/* A vector's elements for this thread's columns of block j, if the block exists. `absent`: what it is otherwise. */
DEVICE f32x2 epilogue_pair(const float *vector, int col0, int j, int cols, float absent SITE)
{
    if (col0 + 8 * j >= cols) return {absent, absent};
    const u32x2 r = ld_global_8(vector + col0 + 8 * j + 2 * (lane_index() % 4) PASS_SITE);
    return {float_from_bits(r.x), float_from_bits(r.y)};
}

/* e4m3: the scales of this thread's rows of x; of columns 128 kb .. 128 kb + 127 where they have their own. */
DEVICE f32x2 epilogue_x_scales(const linear_kernel_args &args, epilogue_rows rows, int kb)
{
    const float *from = args.x_scale + (int64_t)kb * args.ldscale;
    return {float_from_bits(ld_global_4(from + rows.row[0])),
            float_from_bits(ld_global_4(from + rows.row[1]))};
}

/* d += t, the product of a k block, times x's scales of that block. The tensor core's own sums are then no longer than a k block, which matters
 * too: they keep 13 fraction bits. */
template <int n>
DEVICE void epilogue_promote(float (*d)[4], const float (*t)[4], f32x2 scales)
{
    UNROLL
    for (int j = 0; j < n; j++) {
        UNROLL
        for (int e = 0; e < 4; e++) d[j][e] = fmaf(t[j][e], e / 2 ? scales.y : scales.x, d[j][e]);
    }
}

/* e4m3: a product of numbers that are to be multiplied by a scale per row of x, unless that is done (promoted), and per row of w. */
template <int n, bool promoted>
DEVICE void epilogue_scale(float (*d)[4], const linear_kernel_args &args, epilogue_rows rows,
                           const float *w_scale, int col0, int cols)
{
    f32x2 x = {1, 1};
    if constexpr (!promoted) x = epilogue_x_scales(args, rows, 0);
    UNROLL
    for (int j = 0; j < n; j++) {
        const f32x2 w = epilogue_pair(w_scale, col0, j, cols, 1);
        d[j][0] *= x.x * w.x, d[j][1] *= x.x * w.y;
        d[j][2] *= x.y * w.x, d[j][3] *= x.y * w.y;
    }
}

template <int n>
DEVICE void epilogue_bias(float (*d)[4], const float *bias, int col0, int cols)
{
    UNROLL
    for (int j = 0; j < n; j++) {
        const f32x2 b = epilogue_pair(bias, col0, j, cols, 0);
        d[j][0] += b.x, d[j][1] += b.y;
        d[j][2] += b.x, d[j][3] += b.y;
    }
}

/* z / (1 + e^-z) to a few units of the last place of f32: for what is rounded to bf16. */
DEVICE float epilogue_sigmoid_times(float z)
{
    return z * rcp_approx(1 + exp2_approx(z * -1.4426950408889634f));
}

template <int n>
DEVICE void epilogue_silu(float (*d)[4])
{
    UNROLL
    for (int j = 0; j < n; j++) {
        UNROLL
        for (int e = 0; e < 4; e++) d[j][e] = epilogue_sigmoid_times(d[j][e]);
    }
}

/* d = silu(d) * up: d holds gate columns, `up` the same columns of the other half. */
template <int n>
DEVICE void epilogue_swiglu(float (*d)[4], const float (*up)[4])
{
    UNROLL
    for (int j = 0; j < n; j++) {
        UNROLL
        for (int e = 0; e < 4; e++) d[j][e] = epilogue_sigmoid_times(d[j][e]) * up[j][e];
    }
}

/* d = residual + gate * d, gate NULL: 1. The residual, bf16, lies in a tile (tile.h) in shared memory: row0 is that of the fragment's
 * first row in the tile, chunk0 that of its first block. */
template <int n>
DEVICE void epilogue_residual(float (*d)[4], uint32_t tile, int row0, int chunk0, const float *gate, int col0,
                              int cols)
{
    const int row = row0 + lane_index() / 4, within = 4 * (lane_index() % 4);
    UNROLL
    for (int j = 0; j < n; j++) {
        const f32x2 g = gate ? epilogue_pair(gate, col0, j, cols, 0) : f32x2{1, 1};
        const uint32_t low = ld_shared_4(tile + tile_offset(row, chunk0 + j) + within),
                       high = ld_shared_4(tile + tile_offset(row + 8, chunk0 + j) + within);
        d[j][0] = fmaf(g.x, d[j][0], bf16_low(low)), d[j][1] = fmaf(g.y, d[j][1], bf16_high(low));
        d[j][2] = fmaf(g.x, d[j][2], bf16_low(high)), d[j][3] = fmaf(g.y, d[j][3], bf16_high(high));
    }
}

/* Puts a fragment, rounded to bf16, into a tile: residual's counterpart. */
template <int n>
DEVICE void epilogue_put(const float (*d)[4], uint32_t tile, int row0, int chunk0)
{
    const int row = row0 + lane_index() / 4, within = 4 * (lane_index() % 4);
    UNROLL
    for (int j = 0; j < n; j++) {
        st_shared_4(tile + tile_offset(row, chunk0 + j) + within, pack_bf16(d[j][0], d[j][1]));
        st_shared_4(tile + tile_offset(row + 8, chunk0 + j) + within, pack_bf16(d[j][2], d[j][3]));
    }
}

/* The same for f32, with no tile: the quad's 8 columns are 32 bytes of a row. `rows` exist from the fragment's first; y and residual
 * (NULL: no residual) point to the fragment's first element. */
template <int n>
DEVICE void epilogue_store_f32(float (*d)[4], float *y, int64_t ldy, const float *residual, int64_t ldr,
                               const float *gate, int rows, int col0, int cols)
{
    const int row = lane_index() / 4, column = 2 * (lane_index() % 4);
    UNROLL
    for (int j = 0; j < n; j++) {
        const f32x2 g = residual && gate ? epilogue_pair(gate, col0, j, cols, 0) : f32x2{1, 1};
        UNROLL
        for (int half = 0; half < 2; half++) {
            if (row + 8 * half >= rows || col0 + 8 * j >= cols) continue;
            float a = d[j][2 * half], b = d[j][2 * half + 1];
            if (residual) {
                const u32x2 r = ld_global_8(residual + (row + 8 * half) * ldr + 8 * j + column);
                a = fmaf(g.x, a, float_from_bits(r.x)), b = fmaf(g.y, b, float_from_bits(r.y));
            }
            st_global_8(y + (row + 8 * half) * ldy + 8 * j + column, bits_from_float(a), bits_from_float(b));
        }
    }
}

DEVICE float epilogue_quad_sum(float f)
{
    f += shfl_xor(f, 1);
    return f + shfl_xor(f, 2);
}

/* d = d / sqrt(mean of the head's squares + eps) * norm: a fragment of one whole head. */
DEVICE void epilogue_norm(float (*d)[4], const float *norm, float eps)
{
    float squares[2] = {};
    UNROLL
    for (int j = 0; j < HEAD_BLOCKS; j++) {
        UNROLL
        for (int e = 0; e < 4; e++) squares[e / 2] = fmaf(d[j][e], d[j][e], squares[e / 2]);
    }
    const float low = rsqrt_approx(epilogue_quad_sum(squares[0]) * (1.0f / HEAD) + eps),
                high = rsqrt_approx(epilogue_quad_sum(squares[1]) * (1.0f / HEAD) + eps);
    UNROLL
    for (int j = 0; j < HEAD_BLOCKS; j++) {
        const f32x2 w = epilogue_pair(norm, 0, j, HEAD, 1);
        d[j][0] *= low * w.x, d[j][1] *= low * w.y;
        d[j][2] *= high * w.x, d[j][3] *= high * w.y;
    }
}

DEVICE void epilogue_rotate(float &x, float &z, float cosine, float sine)
{
    const float first = x * cosine - z * sine;
    z = fmaf(z, cosine, x * sine);
    x = first;
}

/* Rotates pairs (2i, 2i + 1) of a head. cos, sin: the tables, contiguous rows of HEAD / 2. */
DEVICE void epilogue_rope_interleaved(float (*d)[4], const float *cos, const float *sin, epilogue_rows rows)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int64_t at = (int64_t)rows.row[half] * (HEAD / 2) + lane_index() % 4;
        UNROLL
        for (int j = 0; j < HEAD_BLOCKS; j++)
            epilogue_rotate(d[j][2 * half], d[j][2 * half + 1],
                            float_from_bits(ld_global_4(cos + at + 4 * j)),
                            float_from_bits(ld_global_4(sin + at + 4 * j)));
    }
}

/* Rotates pairs (i, i + HEAD / 2). */
DEVICE void epilogue_rope_half(float (*d)[4], const float *cos, const float *sin, epilogue_rows rows)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int64_t at = (int64_t)rows.row[half] * (HEAD / 2) + 2 * (lane_index() % 4);
        UNROLL
        for (int j = 0; j < HEAD_BLOCKS / 2; j++) {
            const u32x2 c = ld_global_8(cos + at + 8 * j), s = ld_global_8(sin + at + 8 * j);
            float(&first)[4] = d[j], (&second)[4] = d[j + HEAD_BLOCKS / 2];
            epilogue_rotate(first[2 * half], second[2 * half], float_from_bits(c.x), float_from_bits(s.x));
            epilogue_rotate(first[2 * half + 1], second[2 * half + 1], float_from_bits(c.y),
                            float_from_bits(s.y));
        }
    }
}

/* Norm and rotation of one head as the arguments of the product say. */
DEVICE void epilogue_norm_rope(float (*d)[4], const linear_kernel_args &args, const float *norm,
                               epilogue_rows rows)
{
    epilogue_norm(d, norm, args.eps);
    if (args.half)
        epilogue_rope_half(d, args.cos, args.sin, rows);
    else
        epilogue_rope_interleaved(d, args.cos, args.sin, rows);
}

#endif
