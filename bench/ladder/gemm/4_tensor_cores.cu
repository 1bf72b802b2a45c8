/* Step 4, tensor cores: mma.sync m16n8k16, fed by ldmatrix from swizzled tiles.
 *
 * A block of 4 warps has 128 x 128 results, each warp 64 x 64: per k step of 16 a warp reads 64 rows of each operand for 32 products, the
 * ratio that makes tiles large. ldmatrix reads 8 rows of 16 bytes at a time. Rows of 128 bytes begin in the same bank, so chunk c of row r
 * lies at c ^ r % 8 (tile.h): the 8 rows are then in different banks. Without that each read would take 8 times as long.
 *
 * Static figures (nvcc 13.0, sm_80): 205 registers, 32 KiB shared memory, 0 bank conflicts, 2 barriers per k block. Per k block of 64 a
 * block does 2 MFLOP (1024 cycles of an A100's tensor cores) and reads 64 KiB of fragments (512 cycles of shared memory). What limits it:
 * nothing is multiplied while tiles are copied, and the copies pass through registers. The results leave in pieces of 16 bytes, half a
 * sector. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum {
    SIDE = 128,
    THREADS = 128,
    WARP = 64 /* rows and columns */,
    CHUNK = 8 /* bf16 in 16 bytes */,
    BK = 64
};

struct alignas(1024) ladder_gemm_shared {
    bf16 x[SIDE * BK], w[SIDE * BK];
};

/* 128 rows of a matrix into a tile, 64 elements of each; zeros where there are none. */
DEVICE void copy_tile(uint32_t tile, const void *matrix, int64_t ld, int row0, int rows, int k0, int k)
{
    const int chunk = thread_index() % 8;
    UNROLL
    for (int row = thread_index() / 8; row < SIDE; row += THREADS / 8) {
        const bool exists = row0 + row < rows && k0 + chunk * CHUNK < k;
        const bf16 *from = static_cast<const bf16 *>(matrix) + (row0 + row) * ld + k0 + chunk * CHUNK;
        st_shared_16(tile + tile_offset(row, chunk), exists ? ld_global_16(from) : u32x4{0, 0, 0, 0});
    }
}

/* The warp's results, two columns at a time. */
DEVICE void store_results(const float (&d)[WARP / 16][WARP / 8][4], const linear_kernel_args &args, int row0,
                          int col0)
{
    const linear_segment &out = args.segment[0];
    UNROLL
    for (int i = 0; i < WARP / 16; i++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = row0 + 16 * i + 8 * half + lane_index() / 4;
            UNROLL
            for (int j = 0; j < WARP / 8; j++) {
                const int col = col0 + 8 * j + 2 * (lane_index() % 4);
                if (row < args.m && col < out.cols)
                    st_global_4(static_cast<bf16 *>(out.y) + row * out.ldy + col,
                                pack_bf16(d[i][j][2 * half], d[i][j][2 * half + 1]));
            }
        }
    }
}

KERNEL(ladder_gemm_tensor_cores, linear_kernel_args, THREADS, 2)
{
    SHARED(ladder_gemm_shared, s);
    const linear_segment &out = args.segment[0];
    const int row0 = block_x() * SIDE, col0 = block_y() * SIDE, warp_row = warp_index() / 2 * WARP,
              warp_col = warp_index() % 2 * WARP;
    const uint32_t x = shared_address(s.x), w = shared_address(s.w);
    float d[WARP / 16][WARP / 8][4] = {};
    for (int k0 = 0; k0 < args.k; k0 += BK) {
        copy_tile(x, args.x, args.ldx, row0, args.m, k0, args.k);
        copy_tile(w, out.group[0].w, out.group[0].ldw, col0, out.cols, k0, args.k);
        sync_threads(); /* the tiles are full */
        UNROLL
        for (int step = 0; step < BK / 16; step++) {
            uint32_t a[WARP / 16][4], b[WARP / 8][2];
            load_a(a, x, warp_row, step);
            load_b(b, w, warp_col, step);
            mma_tile_bf16(d, a, b);
        }
        sync_threads(); /* and free */
    }
    store_results(d, args, row0 + warp_row, col0 + warp_col);
}
