/* Step 5, asynchronous copies: step 4 with three stages of tiles that cp.async fills while others are multiplied.
 *
 * The copies of k block kb + 2 begin before k block kb is multiplied, and do not pass through registers. One barrier per k block says two
 * things: what everyone copied for kb is there (each waited for its own copies before), and everyone is done with the stage that is filled
 * next. A commit group per k block, empty or not, keeps their count.
 *
 * Static figures (nvcc 13.0, sm_80): 231 registers, 96 KiB shared memory, 0 bank conflicts, 1 barrier per k block, 0 bytes through
 * registers. What limits it: on an A100 the tensor cores, if two blocks fit on a multiprocessor. On an H100 these are twice as fast for
 * mma.sync, which then needs all that shared memory can give (512 cycles of reads for 512 of products), and four times as fast with
 * another instruction. The shipped kernels kernels/gemm/gemm_sm80.cu are this one with row groups, segments and epilogues, results in
 * whole rows through shared memory, and smaller tiles for few rows. */
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
enum { STAGES = 3, TILE_BYTES = SIDE * BK * 2 };

struct alignas(1024) ladder_gemm_shared {
    bf16 x[STAGES][SIDE * BK], w[STAGES][SIDE * BK];
};

/* Starts the copy of 128 rows of a matrix into a tile, 64 elements of each; zeros where there are none. */
DEVICE void copy_tile(uint32_t tile, const void *matrix, int64_t ld, int row0, int rows, int k0, int k)
{
    const int chunk = thread_index() % 8;
    UNROLL
    for (int row = thread_index() / 8; row < SIDE; row += THREADS / 8) {
        const bool exists = row0 + row < rows && k0 + chunk * CHUNK < k;
        const int64_t from = exists ? (row0 + row) * ld + k0 + chunk * CHUNK : 0;
        cp_async_16(tile + tile_offset(row, chunk), static_cast<const bf16 *>(matrix) + from,
                    exists ? 16 : 0);
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

KERNEL(ladder_gemm_async, linear_kernel_args, THREADS, 2)
{
    SHARED(ladder_gemm_shared, s);
    const linear_segment &out = args.segment[0];
    const int row0 = block_x() * SIDE, col0 = block_y() * SIDE, warp_row = warp_index() / 2 * WARP,
              warp_col = warp_index() % 2 * WARP, blocks = ceil_div(args.k, (int)BK);
    const uint32_t x = shared_address(s.x), w = shared_address(s.w);
    const auto copy = [&](int kb) {
        const int at = kb % STAGES * TILE_BYTES;
        if (kb < blocks) {
            copy_tile(x + at, args.x, args.ldx, row0, args.m, kb * BK, args.k);
            copy_tile(w + at, out.group[0].w, out.group[0].ldw, col0, out.cols, kb * BK, args.k);
        }
        cp_async_commit();
    };
    UNROLL
    for (int kb = 0; kb < STAGES - 1; kb++) copy(kb);
    float d[WARP / 16][WARP / 8][4] = {};
    for (int kb = 0; kb < blocks; kb++) {
        cp_async_wait<STAGES - 2>();
        sync_threads();
        copy(kb + STAGES - 1);
        const int at = kb % STAGES * TILE_BYTES;
        UNROLL
        for (int step = 0; step < BK / 16; step++) {
            uint32_t a[WARP / 16][4], b[WARP / 8][2];
            load_a(a, x + at, warp_row, step);
            load_b(b, w + at, warp_col, step);
            mma_tile_bf16(d, a, b);
        }
    }
    store_results(d, args, row0 + warp_row, col0 + warp_col);
}
