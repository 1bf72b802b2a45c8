/* tile.h: tiles of operands in shared memory and in registers, for mma.sync kernels.
 *
 * A tile in shared memory has rows of 128 bytes (64 bf16 or 128 e4m3, along k) in 8 chunks of 16 bytes; chunk c of row r lies at
 * chunk c ^ (r & 7), so that eight rows at one chunk, and eight chunks of one row, are in different banks.
 * Fragments: lane l holds, of each 16x8 result, rows l/4 and l/4 + 8, columns 2(l%4) and 2(l%4)+1, as {low row: two, high row: two}. */
#ifndef KLEIN_DEVICE_TILE_H
#define KLEIN_DEVICE_TILE_H

#include "device.h"
#include "ptx.h"

/* Tile number `index` of a product of tiles_m x tiles_n tiles: `group` tiles of m, then the next of n, so that blocks that run at the same
 * time share operands in the L2. */
struct tile_position {
    int row, col;
};

DEVICE tile_position grouped_tile(int index, int tiles_m, int tiles_n, int group)
{
    const int first = index / (group * tiles_n) * group, in_group = index - first * tiles_n;
    const int high = tiles_m - first < group ? tiles_m - first : group; /* the last group may be lower */
    return {first + in_group % high, in_group / high};
}

/* Byte offset of a chunk in a tile. */
DEVICE uint32_t tile_offset(int row, int chunk)
{
    return (uint32_t)(row * 128 + ((chunk ^ (row & 7)) << 4));
}

/* The operand a of `count` instructions: rows row0 + 16 i.., k step kk of 32 bytes. */
template <int count>
DEVICE void load_a(uint32_t (&a)[count][4], uint32_t tile, int row0, int kk SITE)
{
    const int lane = lane_index(), chunk = 2 * kk + (lane >> 4);
    UNROLL
    for (int i = 0; i < count; i++)
        ldmatrix_x4(a[i], tile + tile_offset(row0 + 16 * i + (lane & 15), chunk) PASS_SITE);
}

/* The operand b of `count` (even) instructions: rows row0 + 8 i.. of a tile whose rows are columns of the product. */
template <int count>
DEVICE void load_b(uint32_t (&b)[count][2], uint32_t tile, int row0, int kk SITE)
{
    static_assert(count % 2 == 0, "ldmatrix.x4 loads two instructions' b");
    const int lane = lane_index(), chunk = 2 * kk + (lane >> 3 & 1);
    UNROLL
    for (int i = 0; i < count; i += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, tile + tile_offset(row0 + 8 * i + (lane & 7) + (lane >> 4 << 3), chunk) PASS_SITE);
        b[i][0] = r[0], b[i][1] = r[1], b[i + 1][0] = r[2], b[i + 1][1] = r[3];
    }
}

/* d += a b for a warp's tile of mi x ni instructions and one k step. The soft GPU does them in one go. */
template <int mi, int ni>
DEVICE void mma_tile_bf16(float (&d)[mi][ni][4], const uint32_t (&a)[mi][4], const uint32_t (&b)[ni][2] SITE)
{
#ifdef __CUDACC__
    UNROLL
    for (int i = 0; i < mi; i++) {
        UNROLL
        for (int j = 0; j < ni; j++) mma_m16n8k16_bf16(d[i][j], a[i], b[j]);
    }
#else
    soft_mma(&d[0][0][0], a[0], b[0], mi, ni, SOFT_BF16, site);
#endif
}

template <int mi, int ni>
DEVICE void mma_tile_e4m3(float (&d)[mi][ni][4], const uint32_t (&a)[mi][4], const uint32_t (&b)[ni][2] SITE)
{
#ifdef __CUDACC__
    UNROLL
    for (int i = 0; i < mi; i++) {
        UNROLL
        for (int j = 0; j < ni; j++) mma_m16n8k32_e4m3(d[i][j], a[i], b[j]);
    }
#else
    soft_mma(&d[0][0][0], a[0], b[0], mi, ni, SOFT_E4M3, site);
#endif
}

#endif
