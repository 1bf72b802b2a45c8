/* units_sm80.cu: one primitive at a time. Fragments are filled and emptied by the formulas of the PTX ISA, not by the code under test. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "../../kernels/device/tile.h"
#include "args.h"

/* The sum of the block's values by shuffles and shared memory; every thread gets it. */
struct sum_shared {
    shared<float> part[8];
};

KERNEL(units_sm80_sum, unit_args, 256, 1)
{
    SHARED(sum_shared, s);
    float v = args.x[block_x() * 256 + thread_index()];
    for (int mask = 16; mask; mask /= 2) v += shfl_xor(v, mask);
    if (lane_index() == 0) s.part[warp_index()] = v;
    sync_threads();
    float sum = 0;
    for (int i = 0; i < 8; i++) sum += s.part[i];
    args.y[block_x() * 256 + thread_index()] = sum;
}

/* Element i (0..7 of a, 0..3 of b) of lane's fragment for m16n8k16, 9.7.14.5.8; e4m3 has twice the elements per register. */
DEVICE int a_row(int lane, int i)
{
    return lane / 4 + 8 * (i >> 1 & 1);
}
DEVICE int a_k(int lane, int i)
{
    return 2 * (lane % 4) + (i & 1) + 8 * (i >> 2);
}
DEVICE int b_k(int lane, int i)
{
    return 2 * (lane % 4) + (i & 1) + 8 * (i >> 1);
}
DEVICE int e4m3_a_row(int lane, int i)
{
    return lane / 4 + 8 * (i >> 2 & 1);
}
DEVICE int e4m3_a_k(int lane, int i)
{
    return 4 * (lane % 4) + (i & 3) + 16 * (i >> 3);
}
DEVICE int e4m3_b_k(int lane, int i)
{
    return 4 * (lane % 4) + (i & 3) + 16 * (i >> 2);
}

/* y [2][32, 32] = a [32, k] b [32, k]^T with k of 32 bytes: once by single instructions, once as a warp tile. */
template <bool e4m3>
DEVICE void mma_twice(const unit_args &args)
{
    const int lane = lane_index();
    const uint8_t *bytes_a = (const uint8_t *)args.a, *bytes_b = (const uint8_t *)args.b;
    uint32_t a[2][4] = {}, b[4][2] = {};
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < (e4m3 ? 16 : 8); i++) {
            const int row = 16 * m + (e4m3 ? e4m3_a_row(lane, i) : a_row(lane, i));
            if (e4m3)
                a[m][i / 4] |= (uint32_t)bytes_a[row * 32 + e4m3_a_k(lane, i)] << 8 * (i % 4);
            else
                a[m][i / 2] |= (uint32_t)((const uint16_t *)args.a)[row * 16 + a_k(lane, i)] << 16 * (i % 2);
        }
    for (int n = 0; n < 4; n++)
        for (int i = 0; i < (e4m3 ? 8 : 4); i++) {
            const int row = 8 * n + lane / 4;
            if (e4m3)
                b[n][i / 4] |= (uint32_t)bytes_b[row * 32 + e4m3_b_k(lane, i)] << 8 * (i % 4);
            else
                b[n][i / 2] |= (uint32_t)((const uint16_t *)args.b)[row * 16 + b_k(lane, i)] << 16 * (i % 2);
        }
    float single[2][4][4] = {}, tile[2][4][4] = {};
    for (int m = 0; m < 2; m++)
        for (int n = 0; n < 4; n++)
            if (e4m3)
                mma_m16n8k32_e4m3(single[m][n], a[m], b[n]);
            else
                mma_m16n8k16_bf16(single[m][n], a[m], b[n]);
    if (e4m3)
        mma_tile_e4m3(tile, a, b);
    else
        mma_tile_bf16(tile, a, b);
    for (int m = 0; m < 2; m++)
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 4; i++) {
                const int row = 16 * m + lane / 4 + 8 * (i >> 1), col = 8 * n + 2 * (lane % 4) + (i & 1);
                args.y[row * 32 + col] = single[m][n][i];
                args.y[1024 + row * 32 + col] = tile[m][n][i];
            }
}

KERNEL(units_sm80_mma, unit_args, 32, 1)
{
    if (args.kind == UNIT_E4M3)
        mma_twice<true>(args);
    else
        mma_twice<false>(args);
}

struct alignas(128) matrices_shared {
    uint16_t rows[32][8]; /* 4 matrices of 8x8 */
};

/* y: registers [4][32] of ldmatrix_x4, then of its transposed form, as 16-bit pairs. a [32, 8] 16-bit. */
KERNEL(units_sm80_ldmatrix, unit_args, 32, 1)
{
    SHARED(matrices_shared, s);
    const int lane = lane_index();
    const uint32_t own = shared_address(s.rows[lane]);
    st_shared_16(own, ld_global_16((const char *)args.a + 16 * lane));
    sync_warp();
    uint32_t r[4], t[4];
    ldmatrix_x4(r, own);
    ldmatrix_x4_trans(t, own);
    for (int j = 0; j < 4; j++) {
        st_global_4(args.y + 32 * j + lane, r[j]);
        st_global_4(args.y + 128 + 32 * j + lane, t[j]);
    }
}

/* y (16-bit words): [n] bf16 of x, then [n] e4m3 pairs (x, -x). n threads. */
KERNEL(units_sm80_convert, unit_args, 256, 1)
{
    const int i = block_x() * 256 + thread_index(), n = grid_x() * 256;
    const float x = args.x[i];
    uint16_t *y = (uint16_t *)args.y;
    y[i] = bf16_from_float(x).bits;
    y[n + i] = pack_e4m3(x, -x);
}

/* y: per lane the value of lane 5, that of lane ^ 3. */
KERNEL(units_sm80_lanes, unit_args, 32, 1)
{
    const int lane = lane_index();
    st_global_4(args.y + lane, shfl_index((uint32_t)lane * 10, 5));
    st_global_4(args.y + 32 + lane, shfl_xor((uint32_t)lane * 10, 3));
}

struct alignas(128) pattern_shared {
    uint32_t words[32 * 32];
};

/* One global load and one shared store per lane, both `kind` words apart. */
KERNEL(units_sm80_pattern, unit_args, 32, 1)
{
    SHARED(pattern_shared, s);
    const int at = lane_index() * args.kind;
    const uint32_t v = ld_global_4(args.x + at);
    st_shared_4(shared_address(&s.words[at]), v);
    sync_warp();
}

/* Launches of these are refused. */
KERNEL(units_sm80_large, unit_large_args, 32, 1) {}
KERNEL(units_sm80_wide, unit_args, 512, 1) {}
