/* Step 7, roles: warps that only copy and warps that only compute, and products that never drain.
 *
 * One thread of the producer warpgroup walks ahead through the k blocks. Each stage of the ring has two mbarriers: `full` (the bytes are
 * there) and `empty` (all 8 consumer warps are done with it); nobody waits for anybody else. A consumer starts the products of a k block
 * before those of the block before have ended (wait<1>), and only then gives back that block's stage. setmaxnreg moves the registers that
 * the producer does not need to the consumers, which makes room for 128 x 256 results: a quarter fewer bytes per product than 128 x 128.
 *
 * Static figures (nvcc 13.0, sm_90a): 168 registers at launch, 40 and 232 afterwards; 193 KiB shared memory, no block barrier in the loop.
 * Per k block the tensor cores need 1024 cycles and read 48 KiB. What limits it: a block's first copies and last stores. During both the
 * multiprocessor multiplies nothing, for there is no room for a second block. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum { BM = 128, BN = 256, THREADS = 384, GROUP_ROWS = 64, BK = 64, STAGES = 4, CONSUMER_WARPS = 8 };

struct alignas(1024) ladder_gemm_shared {
    bf16 x[STAGES][BM * BK], w[STAGES][BN * BK];
    uint64_t full[STAGES], empty[STAGES];
};

/* By one thread. The first time round the stages are empty: parity 1 of a fresh mbarrier counts as complete. */
DEVICE void produce(const gemm_sm90_args &args, ladder_gemm_shared &s, int blocks)
{
    for (int kb = 0; kb < blocks; kb++) {
        const int stage = kb % STAGES;
        const uint32_t full = shared_address(&s.full[stage]);
        mbar_wait(shared_address(&s.empty[stage]), (kb / STAGES % 2) ^ 1);
        mbar_arrive_expect(full, sizeof s.x[0] + sizeof s.w[0]);
        tma_load_2d(shared_address(s.x[stage]), &args.x, full, kb * BK, block_x() * BM);
        tma_load_2d(shared_address(s.w[stage]), &args.maps[0][0].w, full, kb * BK, block_y() * BN);
    }
}

/* This warp is done with a stage. */
DEVICE void give_back(ladder_gemm_shared &s, int stage)
{
    if (lane_index() == 0) mbar_arrive(shared_address(&s.empty[stage]));
}

DEVICE void multiply(float (&d)[BN / 2], ladder_gemm_shared &s, int blocks, int consumer)
{
    for (int kb = 0; kb < blocks; kb++) {
        const int stage = kb % STAGES;
        mbar_wait(shared_address(&s.full[stage]), kb / STAGES % 2);
        const uint64_t x = wgmma_tile(shared_address(s.x[stage]) + consumer * GROUP_ROWS * 128),
                       w = wgmma_tile(shared_address(s.w[stage]));
        wgmma_fence();
        UNROLL
        for (int step = 0; step < BK / 16; step++) wgmma_bf16<BN>(d, x + 2 * step, w + 2 * step, kb || step);
        wgmma_commit();
        wgmma_wait<1>(); /* this k block goes on; the one before is done */
        if (kb) give_back(s, (kb - 1) % STAGES);
    }
    wgmma_wait<0>();
}

/* Element 4 j + 2 half + c of an accumulator is row lane / 4 + 8 half of the warp's 16, column 8 j + 2 (lane % 4) + c. */
DEVICE void store_results(const float (&d)[BN / 2], const linear_kernel_args &args, int row0, int col0)
{
    const linear_segment &out = args.segment[0];
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = row0 + 8 * half + lane_index() / 4;
        UNROLL
        for (int j = 0; j < BN / 8; j++) {
            const int col = col0 + 8 * j + 2 * (lane_index() % 4), i = 4 * j + 2 * half;
            if (row < args.m && col < out.cols)
                st_global_4(static_cast<bf16 *>(out.y) + row * out.ldy + col, pack_bf16(d[i], d[i + 1]));
        }
    }
}

KERNEL(ladder_gemm_sm90_roles, gemm_sm90_args, THREADS, 1)
{
    SHARED(ladder_gemm_shared, s);
    const int blocks = ceil_div(args.linear.k, (int)BK);
    if (thread_index() == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(shared_address(&s.full[i]), 1);
            mbar_init(shared_address(&s.empty[i]), CONSUMER_WARPS);
        }
        fence_mbar_init();
    }
    sync_threads();
    if (thread_index() < 128) {
        registers_decrease<40>();
        if (thread_index() == 0) produce(args, s, blocks);
    } else {
        registers_increase<232>();
        float d[BN / 2];
        multiply(d, s, blocks, thread_index() / 128 - 1);
        store_results(d, args.linear, block_x() * BM + (warp_index() - 4) * 16, block_y() * BN);
    }
}
