/* Step 6, wgmma: a Hopper's tensor cores read both operands straight from shared memory, where the copy engine puts them.
 *
 * One thread asks for a tile (a box of 64 columns by 128 rows, swizzled on the way as in step 4) and an mbarrier counts its bytes; the
 * phase of that barrier flips each time that the stage is full. The copy engine reads zeros outside of the matrices, so no thread computes
 * an address. Two warpgroups multiply 64 x 128 each, four instructions per k block; no fragment of an operand passes through registers.
 *
 * Static figures (nvcc 13.0, sm_90a): 94 registers, 129 KiB shared memory, 1 barrier per k block. Per k block the tensor cores of an H100
 * need 512 cycles. What limits it: all wait for the products and meet, before the stage can be filled again and the next products begin;
 * the tensor cores drain each time. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum { SIDE = 128, THREADS = 256, GROUP_ROWS = 64, BK = 64, STAGES = 4, TILE_BYTES = SIDE * BK * 2 };

struct alignas(1024) ladder_gemm_shared {
    bf16 x[STAGES][SIDE * BK], w[STAGES][SIDE * BK];
    uint64_t full[STAGES];
};

/* Starts the copies of a k block, by one thread. */
DEVICE void load_block(const gemm_sm90_args &args, ladder_gemm_shared &s, int kb)
{
    const uint32_t full = shared_address(&s.full[kb % STAGES]);
    mbar_arrive_expect(full, 2 * TILE_BYTES);
    tma_load_2d(shared_address(s.x[kb % STAGES]), &args.x, full, kb * BK, block_x() * SIDE);
    tma_load_2d(shared_address(s.w[kb % STAGES]), &args.maps[0][0].w, full, kb * BK, block_y() * SIDE);
}

/* Element 4 j + 2 half + c of an accumulator is row lane / 4 + 8 half of the warp's 16, column 8 j + 2 (lane % 4) + c. */
DEVICE void store_results(const float (&d)[SIDE / 2], const linear_kernel_args &args, int row0, int col0)
{
    const linear_segment &out = args.segment[0];
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = row0 + 8 * half + lane_index() / 4;
        UNROLL
        for (int j = 0; j < SIDE / 8; j++) {
            const int col = col0 + 8 * j + 2 * (lane_index() % 4), i = 4 * j + 2 * half;
            if (row < args.m && col < out.cols)
                st_global_4(static_cast<bf16 *>(out.y) + row * out.ldy + col, pack_bf16(d[i], d[i + 1]));
        }
    }
}

KERNEL(ladder_gemm_sm90_wgmma, gemm_sm90_args, THREADS, 1)
{
    SHARED(ladder_gemm_shared, s);
    const bool leader = thread_index() == 0;
    const int blocks = ceil_div(args.linear.k, (int)BK), group = thread_index() / 128;
    if (leader) {
        for (int i = 0; i < STAGES; i++) mbar_init(shared_address(&s.full[i]), 1);
        fence_mbar_init();
    }
    sync_threads();
    if (leader)
        for (int kb = 0; kb < STAGES && kb < blocks; kb++) load_block(args, s, kb);
    float d[SIDE / 2];
    for (int kb = 0; kb < blocks; kb++) {
        const int stage = kb % STAGES;
        mbar_wait(shared_address(&s.full[stage]), kb / STAGES % 2);
        const uint64_t x = wgmma_tile(shared_address(s.x[stage]) + group * GROUP_ROWS * 128),
                       w = wgmma_tile(shared_address(s.w[stage]));
        wgmma_fence();
        UNROLL
        for (int step = 0; step < BK / 16; step++)
            wgmma_bf16<SIDE>(d, x + 2 * step, w + 2 * step, kb || step);
        wgmma_commit();
        wgmma_wait<0>();
        sync_threads(); /* all are done with the stage */
        if (leader && kb + STAGES < blocks) load_block(args, s, kb + STAGES);
    }
    store_results(d, args.linear, block_x() * SIDE + warp_index() * 16, block_y() * SIDE);
}
