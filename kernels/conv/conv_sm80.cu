/* conv_sm80.cu: convolution as a product c = a b^T with mma.sync, for sm_80 and everything after it. a has a row per pixel of y and k
 * runs over taps and channels, [tap][channel]; it is never made: a thread finds the address of each 16 bytes (8 channels of a pixel
 * at a tap) as it copies them, and copies nothing but zeros for pixels outside: that is the padding. Nearest-neighbour enlargement
 * is a shift of that address, stride 2 a factor.
 *
 * Tile of a block: 128 pixels, one after the other in rows of the image, x 128, 64 or 8 couts; 4 warps; k in blocks of 64. `stages`
 * k blocks of both operands are under way (mainloop.h). The tile 8 wide is for rgb and for rows that are not 16-byte aligned: its
 * results leave one by one. The others' go through shared memory, where the residual waits for them. */
#include "mainloop.h"
#include "moments.h"
#include "../device/elements.h"

enum { BM = 128, WN = 64 /* of the wide tiles */ };
enum {
    GROUP = 8
}; /* tiles of pixels that share their w: blocks walk 8 of them before the next tile of n, for the L2 */

template <int BN, int stages>
struct alignas(1024) conv_sm80_shared {
    bf16 x[stages][BM * BK], w[stages][BN * BK];
};
static_assert(sizeof(conv_sm80_shared<128, 2>) == 2 * CONV_SM80_128X128_STAGE, "args.h");
static_assert(sizeof(conv_sm80_shared<64, 2>) == 2 * CONV_SM80_128X64_STAGE, "args.h");
static_assert(sizeof(conv_sm80_shared<8, 2>) == 2 * CONV_SM80_128X8_STAGE, "args.h");

/* A thread's part of the copies of x: 8 of the tile's pixels, 16 apart, at 8 channels of a tap that move on with k. */
struct gatherer {
    int row[8], col[8]; /* of tap (0, 0) in the enlarged x; beyond y's last pixel a row far outside */
    int dy, dx, channel;
    uint32_t offset; /* of its first chunk in a tile */
};

/* On by `channels`. Taps have CONV_PADDED(cin) channels; those of a chunk are of one tap. */
DEVICE void advance(gatherer &g, int channels, const conv_kernel_args &args)
{
    for (g.channel += channels; g.channel >= CONV_PADDED(args.cin); g.channel -= CONV_PADDED(args.cin))
        if (++g.dx == args.ksize) g.dx = 0, g.dy++;
}

DEVICE gatherer make_gatherer(int pixel0, const conv_kernel_args &args)
{
    enum { OUTSIDE = -0x40000000 };
    const int first = thread_index() / 8, chunk = thread_index() % 8;
    gatherer g = {};
    UNROLL
    for (int i = 0; i < 8; i++) {
        const int pixel = pixel0 + first + 16 * i, row = pixel / args.ow;
        g.row[i] = pixel < args.pixels ? row * args.stride + args.top : (int)OUTSIDE;
        g.col[i] = (pixel - row * args.ow) * args.stride + args.left;
    }
    g.offset = tile_offset(first, chunk); /* 16 rows further the swizzle is the same */
    advance(g, chunk * CHUNK, args);
    return g;
}

/* The copies of one k block; the last may have taps beyond the last one, and cin need not be a multiple of 8. */
DEVICE void copy_pixels(gatherer &g, uint32_t tile, const conv_kernel_args &args)
{
    const bf16 *x = static_cast<const bf16 *>(args.x.ptr) + g.channel;
    const int ld = (int)args.x.ld, left = 2 * (args.cin - g.channel), bytes = left < 16 ? left : 16;
    const uint32_t rows = g.dy < args.ksize ? (uint32_t)args.h << args.up : 0,
                   cols = (uint32_t)args.w_px << args.up;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const int row = g.row[i] + g.dy, col = g.col[i] + g.dx;
        const bool inside = (uint32_t)row < rows && (uint32_t)col < cols;
        const int pixel = inside ? (row >> args.up) * args.w_px + (col >> args.up) : 0;
        cp_async_16(tile + g.offset + (uint32_t)i * 16 * 128, x + (int64_t)pixel * ld, inside ? bytes : 0);
    }
    advance(g, BK, args);
}

/* This warp's WM x 64 of y, through its own WM rows of shared memory at `tile`. */
template <int mi>
DEVICE void store_tile(const float (&d)[mi][WN / 8][4], uint32_t tile, const conv_kernel_args &args, int row0,
                       int col0)
{
    const int lane = lane_index(), g = lane / 4, q = lane % 4;
    const int chunk = lane % 8, col = col0 + chunk * CHUNK;
    const auto exists = [&](int row) { return row0 + row < args.pixels && col < args.cout; };
    const bf16 *residual = static_cast<const bf16 *>(args.residual.ptr);
    if (residual) {
        UNROLL
        for (int i = 0; i < 4 * mi; i++) {
            const int row = 4 * i + lane / 8;
            cp_async_16(tile + tile_offset(row, chunk),
                        exists(row) ? residual + (row0 + row) * args.residual.ld + col : residual,
                        exists(row) ? 16 : 0);
        }
        cp_async_commit();
        cp_async_wait<0>();
        sync_warp();
    }
    UNROLL
    for (int j = 0; j < WN / 8; j += 2) { /* two blocks of 8 columns at once */
        float bias[4] = {};
        UNROLL
        for (int b = 0; b < 2; b++)
            if (args.bias.ptr && col0 + 8 * (j + b) < args.cout) {
                const u32x2 two =
                    ld_global_8(static_cast<const float *>(args.bias.ptr) + col0 + 8 * (j + b) + 2 * q);
                bias[2 * b] = float_from_bits(two.x), bias[2 * b + 1] = float_from_bits(two.y);
            }
        UNROLL
        for (int i = 0; i < mi; i++) {
            uint32_t r[4] = {}; /* the residual as a fragment: low and high rows of block j, of block j + 1 */
            if (residual) {
                ldmatrix_x4(r, tile + tile_offset(16 * i + (lane & 15), j + (lane >> 4)));
                sync_warp();
            }
            UNROLL
            for (int b = 0; b < 2; b++) {
                UNROLL
                for (int half = 0; half < 2; half++) {
                    const float(&pair)[4] = d[i][j + b];
                    const uint32_t add = r[2 * b + half];
                    st_shared_4(tile + tile_offset(16 * i + g + 8 * half, j + b) + 4 * q,
                                pack_bf16(pair[2 * half] + bias[2 * b] + bf16_low(add),
                                          pair[2 * half + 1] + bias[2 * b + 1] + bf16_high(add)));
                }
            }
        }
    }
    sync_warp();
    bf16 *y = static_cast<bf16 *>(args.y.ptr);
    UNROLL
    for (int i = 0; i < 4 * mi; i++) {
        const int row = 4 * i + lane / 8;
        const u32x4 v = ld_shared_16(tile + tile_offset(row, chunk));
        if (exists(row)) st_global_16(y + (row0 + row) * args.y.ld + col, v);
    }
    if (!args.moments || row0 >= args.pixels) return;
    const int pixels = args.pixels - row0 < 16 * mi ? args.pixels - row0 : 16 * mi;
    const int number = row0 / (16 * mi);
    const int64_t at = (int64_t)number * (args.cout / 4) + col / 4;
    store_moments<24, 4 * mi>(
        col < args.cout ? args.moments + 2 * at : nullptr, col ? nullptr : args.counts + number, tile, pixels,
        [&](int i) { return tile_offset(4 * i + lane / 8, chunk); },
        [&](int i) { return 4 * i + lane / 8 < pixels; });
}

/* This warp's 32 x 8 of y, one by one. */
DEVICE void store_tile(const float (&d)[2][1][4], uint32_t, const conv_kernel_args &args, int row0, int col0)
{
    UNROLL
    for (int e = 0; e < 8; e++) {
        const int row = row0 + 8 * (e / 2) + lane_index() / 4, col = col0 + 2 * (lane_index() % 4) + e % 2;
        if (row >= args.pixels || col >= args.cout) continue;
        float f = d[e / 4][0][e % 4];
        if (args.bias.ptr) f += load_any(args.bias.ptr, ELEMENT_F32, col);
        if (args.residual.ptr) f += load_any(args.residual.ptr, ELEMENT_BF16, row * args.residual.ld + col);
        store_any(args.y.ptr, ELEMENT_BF16, row * args.y.ld + col, f);
    }
}

template <int BN, int stages>
DEVICE void conv_sm80(const conv_kernel_args &args)
{
    constexpr int WM = BN == 128 ? 64 : 32; /* 2 x 2 warps, else 4 x 1 */
    constexpr int ni = BN == 8 ? 1 : WN / 8;
    using memory = conv_sm80_shared<BN, stages>;
    SHARED(memory, s);
    const tile_position tile =
        grouped_tile(block_x(), ceil_div(args.pixels, (int)BM), ceil_div(args.cout, BN), GROUP);
    const int row0 = tile.row * BM, col0 = tile.col * BN;
    const int k = args.ksize * args.ksize * CONV_PADDED(args.cin), blocks = ceil_div(k, (int)BK);
    gatherer pixels = make_gatherer(row0, args);
    const copier<BN> copy_w =
        make_copier<BN>(static_cast<const bf16 *>(args.w.ptr), args.w.ld, col0, args.cout);
    const uint32_t x_tiles = shared_address(s.x), w_tiles = shared_address(s.w);
    grid_wait();

    UNROLL
    for (int kb = 0; kb < stages - 1; kb++) {
        if (kb < blocks) {
            copy_pixels(pixels, x_tiles + kb * sizeof s.x[0], args);
            copy_tile<BN>(copy_w, w_tiles + kb * sizeof s.w[0], kb * BK, k);
        }
        cp_async_commit(); /* also when empty: the count of groups stays that of k blocks */
    }

    const int warp_row = (BN == 128 ? warp_index() / 2 : warp_index()) * WM,
              warp_col = BN == 128 ? warp_index() % 2 * WN : 0;
    float d[WM / 16][ni][4] = {};
    int stage = 0, fill = stages - 1; /* where k block kb lies, where kb + stages - 1 will */
    for (int kb = 0; kb < blocks; kb++) {
        cp_async_wait<stages - 2>(); /* my copies of kb are there ... */
        sync_threads();              /* ... and everyone's; and all have read the stage that is filled next */
        if (kb + stages - 1 < blocks) {
            copy_pixels(pixels, x_tiles + fill * sizeof s.x[0], args);
            copy_tile<BN>(copy_w, w_tiles + fill * sizeof s.w[0], (kb + stages - 1) * BK, k);
        }
        cp_async_commit();
        multiply_block(d, x_tiles + stage * sizeof s.x[0], w_tiles + stage * sizeof s.w[0], warp_row,
                       warp_col);
        stage = stage + 1 == stages ? 0 : stage + 1;
        fill = fill + 1 == stages ? 0 : fill + 1;
    }

    sync_threads(); /* the stages are free: each warp takes WM rows of x's first two */
    store_tile(d, x_tiles + warp_index() * WM * 128, args, row0 + warp_row, col0 + warp_col);
}

KERNEL(conv_sm80_128x128_s3, conv_kernel_args, CONV_SM80_THREADS, 1)
{
    conv_sm80<128, 3>(args);
}

KERNEL(conv_sm80_128x128_s2, conv_kernel_args, CONV_SM80_THREADS, 2)
{
    conv_sm80<128, 2>(args);
}

KERNEL(conv_sm80_128x64, conv_kernel_args, CONV_SM80_THREADS, 2)
{
    conv_sm80<64, 2>(args);
}

KERNEL(conv_sm80_128x8, conv_kernel_args, CONV_SM80_THREADS, 4)
{
    conv_sm80<8, 2>(args);
}
