/* Step 2, tiles: a block's 32 x 32 results share what they read, through shared memory.
 *
 * Per k block of 64, 32 rows of x and 32 of W are copied, a row of 128 bytes by each warp: whole sectors, and each byte serves 32 threads.
 * A lane then walks along its own row of W's tile; the rows are one word longer than their content, so that 32 lanes at the same column
 * are in 32 banks. Without that word they would all be in one.
 *
 * Static figures (nvcc 13.0, sm_80): 31 registers, 8.25 KiB shared memory, 0 bank conflicts, whole sectors. What limits it: shared memory.
 * Each multiply-add takes half a word of x and half a word of W: a wavefront per FMA instruction of a warp, where a multiprocessor of an A100
 * can issue two of these per cycle and serve one wavefront. And all wait for the copies, twice per k block. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"

enum {
    SIDE = 32,
    PAIRS = 32 /* of bf16, in a k block */,
    THREADS = SIDE * SIDE,
    ROW = PAIRS + 1 /* words */
};

struct ladder_gemm_shared {
    uint32_t x[SIDE * ROW], w[SIDE * ROW];
};

DEVICE uint32_t offset(int row, int pair)
{
    return (uint32_t)(4 * (row * ROW + pair));
}

/* A pair of each row of a matrix into a tile; zeros where there is none. */
DEVICE void copy_tile(uint32_t tile, const void *matrix, int64_t ld, int row0, int rows, int k0, int k)
{
    const int row = warp_index(), pair = lane_index();
    const bool exists = row0 + row < rows && k0 + 2 * pair < k;
    const bf16 *from = static_cast<const bf16 *>(matrix) + (row0 + row) * ld + k0 + 2 * pair;
    st_shared_4(tile + offset(row, pair), exists ? ld_global_4(from) : 0);
}

KERNEL(ladder_gemm_tiles, linear_kernel_args, THREADS, 1)
{
    SHARED(ladder_gemm_shared, s);
    const linear_segment &out = args.segment[0];
    const int row0 = block_x() * SIDE, col0 = block_y() * SIDE, row = row0 + warp_index(),
              col = col0 + lane_index();
    const uint32_t x = shared_address(s.x), w = shared_address(s.w);
    float sum = 0;
    for (int k0 = 0; k0 < args.k; k0 += 2 * PAIRS) {
        copy_tile(x, args.x, args.ldx, row0, args.m, k0, args.k);
        copy_tile(w, out.group[0].w, out.group[0].ldw, col0, out.cols, k0, args.k);
        sync_threads(); /* the tiles are full */
        UNROLL
        for (int pair = 0; pair < PAIRS; pair++) {
            const uint32_t a = ld_shared_4(x + offset(warp_index(), pair));
            const uint32_t b = ld_shared_4(w + offset(lane_index(), pair));
            sum = fmaf(bf16_low(a), bf16_low(b), sum);
            sum = fmaf(bf16_high(a), bf16_high(b), sum);
        }
        sync_threads(); /* and free */
    }
    if (row < args.m && col < out.cols)
        static_cast<bf16 *>(out.y)[row * out.ldy + col] = bf16_from_float(sum);
}
