/* mainloop.h: pieces of a mma.sync product c = a b^T: the copies of an operand of rows along k, and the product of one k block of 64.
 * Tiles are those of tile.h. */
#ifndef KLEIN_CONV_MAINLOOP_H
#define KLEIN_CONV_MAINLOOP_H

#include "../device/device.h"
#include "../device/ptx.h"
#include "../device/tile.h"

enum { BK = 64, CHUNK = 8 /* bf16 in 16 bytes */, THREADS = 128 };

/* A thread's part of the copies of a tile of `rows`: chunks in rows 16 apart, at one chunk column. */
template <int rows>
struct copier {
    static constexpr int count = ceil_div(rows, 16);
    const bf16 *from; /* this thread's first row, at its chunk column */
    int64_t step;     /* 16 rows, in elements */
    int exist;        /* how many of its rows exist */
    int column;       /* its first column in a k block */
    uint32_t offset;  /* of its first chunk in a tile */
};

template <int rows>
DEVICE copier<rows> make_copier(const bf16 *matrix, int64_t ld, int row0, int total)
{
    const int row = thread_index() / 8, chunk = thread_index() % 8;
    copier<rows> c;
    c.exist = row0 + row < total ? ceil_div(total - row0 - row, 16) : 0;
    c.from = matrix + (c.exist ? (row0 + row) * ld + chunk * CHUNK : 0);
    c.step = 16 * ld;
    c.column = chunk * CHUNK;
    c.offset = tile_offset(row, chunk); /* 16 rows further the swizzle is the same */
    return c;
}

template <int rows>
DEVICE void copy_tile(const copier<rows> &c, uint32_t tile, int k0, int k)
{
    if (rows < 16 && thread_index() / 8 >= rows) return;
    const bool inside = k0 + c.column < k;
    UNROLL
    for (int i = 0; i < copier<rows>::count; i++) {
        const bool valid = inside && i < c.exist;
        cp_async_16(tile + c.offset + (uint32_t)i * 16 * 128, valid ? c.from + i * c.step + k0 : c.from,
                    valid ? 16 : 0);
    }
}

/* One k block: 4 steps of 16. */
template <int mi, int ni>
DEVICE void multiply_block(float (&d)[mi][ni][4], uint32_t a_tile, uint32_t b_tile, int warp_row,
                           int warp_col)
{
    UNROLL
    for (int kk = 0; kk < BK / 16; kk++) {
        uint32_t a[mi][4], b[ni][2];
        load_a(a, a_tile, warp_row, kk);
        load_b(b, b_tile, warp_col, kk);
        mma_tile_bf16(d, a, b);
    }
}

/* The same for a b of 8 rows, of which one ldmatrix loads two steps. */
template <int mi>
DEVICE void multiply_block(float (&d)[mi][1][4], uint32_t a_tile, uint32_t b_tile, int warp_row, int)
{
    const int lane = lane_index();
    UNROLL
    for (int two = 0; two < BK / 32; two++) {
        uint32_t r[4];
        ldmatrix_x4(r, b_tile + tile_offset(lane & 7, 4 * two + (lane >> 3)));
        UNROLL
        for (int half = 0; half < 2; half++) {
            uint32_t a[mi][4], b[1][2] = {{r[2 * half], r[2 * half + 1]}};
            load_a(a, a_tile, warp_row, 2 * two + half);
            mma_tile_bf16(d, a, b);
        }
    }
}

#endif
