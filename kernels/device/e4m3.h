/* e4m3.h: results in registers as the e4m3 operand of a product whose x has a scale per row and 128 columns. sm_89 and later.
 *
 * A fragment (tile.h) of 16 rows x 128 columns becomes 16 rows of a tile in shared memory, 128 bytes each. A row's scale is its largest
 * magnitude / 448, so that this becomes the largest number of e4m3. */
#ifndef KLEIN_DEVICE_E4M3_H
#define KLEIN_DEVICE_E4M3_H

#include "device.h"
#include "ptx.h"
#include "tile.h"

enum { E4M3_GROUP = 128, E4M3_BLOCKS = E4M3_GROUP / 8 };

/* The largest magnitudes in n blocks of this thread's rows, lane / 4 and the one 8 further; a row of zeros has a scale, and its inverse is
 * finite. */
template <int n>
DEVICE f32x2 e4m3_largest(const float (*d)[4])
{
    float most[2] = {0x1p-100f, 0x1p-100f};
    UNROLL
    for (int j = 0; j < n; j++) {
        UNROLL
        for (int e = 0; e < 4; e++) most[e / 2] = fmaxf(most[e / 2], fabsf(d[j][e]));
    }
    UNROLL
    for (int mask = 1; mask < 4; mask *= 2) {
        most[0] = fmaxf(most[0], shfl_xor(most[0], mask));
        most[1] = fmaxf(most[1], shfl_xor(most[1], mask));
    }
    return {most[0], most[1]};
}

/* By a whole warp: puts n blocks into rows row0.. of the tile, from the chunk `chunk0` of a row on, and calls store_scale(row of the fragment, its
 * scale) for each row, of which `largest` are the largest magnitudes. Lanes exchange pairs of columns, so that each stores 4 bytes: even ones of
 * block j, odd ones of block j + 1. */
template <int n, class F>
DEVICE void e4m3_put_blocks(const float (*d)[4], f32x2 largest, uint32_t tile, int row0, int chunk0,
                            F store_scale)
{
    const int lane = lane_index(), row = lane / 4, odd = lane & 1;
    const uint32_t within = 8 * odd + 4 * (lane / 2 % 2);
    const f32x2 factor = {448 / largest.x, 448 / largest.y};
    UNROLL
    for (int j = 0; j < n; j += 2) {
        uint32_t pair[2]; /* of blocks j, j + 1: the low row's in the lower half */
        UNROLL
        for (int i = 0; i < 2; i++) {
            const float(&f)[4] = d[j + i];
            pair[i] = pack_e4m3(f[0] * factor.x, f[1] * factor.x) |
                      (uint32_t)pack_e4m3(f[2] * factor.y, f[3] * factor.y) << 16;
        }
        const uint32_t mine = odd ? pair[1] : pair[0], other = shfl_xor(odd ? pair[0] : pair[1], 1),
                       first = odd ? other : mine, second = odd ? mine : other;
        st_shared_4(tile + tile_offset(row0 + row, chunk0 + j / 2) + within, (first & 0xffff) | second << 16);
        st_shared_4(tile + tile_offset(row0 + row + 8, chunk0 + j / 2) + within,
                    first >> 16 | (second & 0xffff0000));
    }
    if (lane % 4) return;
    store_scale(row, largest.x / 448);
    store_scale(row + 8, largest.y / 448);
}

/* The same for a fragment of 128 columns. */
template <class F>
DEVICE void e4m3_put(const float (*d)[4], uint32_t tile, int row0, F store_scale)
{
    e4m3_put_blocks<E4M3_BLOCKS>(d, e4m3_largest<E4M3_BLOCKS>(d), tile, row0, 0, store_scale);
}

#endif
