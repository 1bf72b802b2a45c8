/* Step 8, persistent: as many blocks as multiprocessors, each with a list of tiles, so that one tile's end overlaps the next one's start.
 *
 * The producer does not know where a tile ends: it fills stages with the next tile's k blocks while the consumers still finish this one.
 * Stages and phases are counted through all tiles. Results leave by the copy engine: each warp rounds 64 of its columns into one of its
 * two buffers and goes on, waiting only for the buffer after next; whole rows of 128 bytes reach memory, clipped at its edges. Tiles are
 * numbered in groups of 8 rows of tiles (tile.h), column by column, so that the blocks that run at the same time share rows of x and W in
 * the L2: 132 tiles of 8 x 17 read 8 + 17 strips instead of 1 + 132.
 *
 * Static figures (nvcc 13.0, sm_90a): 168 registers at launch, 40 and 232 afterwards; 225 KiB shared memory, 0 bank conflicts, whole sectors. What
 * limits it: the tensor cores, as long as every multiprocessor has as many tiles as the others; the last round of tiles may leave some
 * idle. The shipped kernels (kernels/gemm/gemm_sm90.h) are this one with row groups, segments, epilogues (the residual arrives while the
 * tile is multiplied), e4m3, smaller tiles to choose from, and weights that are loaded before the previous kernel has ended. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum { BM = 128, BN = 256, THREADS = 384, GROUP_ROWS = 64, BK = 64, STAGES = 4, CONSUMER_WARPS = 8 };
enum { TILE_GROUP = 8, COLUMNS = 64, BUFFERS = 2, BUFFER_BYTES = 16 * COLUMNS * 2 };

struct alignas(1024) ladder_gemm_shared {
    bf16 x[STAGES][BM * BK], w[STAGES][BN * BK];
    uint8_t out[CONSUMER_WARPS][BUFFERS][BUFFER_BYTES];
    uint64_t full[STAGES], empty[STAGES];
};

/* Where in the ring a role is. */
struct ladder_gemm_position {
    int stage;
    uint32_t phase;
};

DEVICE void step_on(ladder_gemm_position &at)
{
    if (++at.stage == STAGES) at.stage = 0, at.phase ^= 1;
}

/* Calls f(first row, first column) for this block's tiles. */
template <class F>
DEVICE void for_each_tile(const linear_kernel_args &args, F f)
{
    const int down = ceil_div(args.m, (int)BM), across = ceil_div(args.segment[0].cols, (int)BN);
    for (int tile = block_x(); tile < down * across; tile += grid_x()) {
        const tile_position p = grouped_tile(tile, down, across, TILE_GROUP);
        f(p.row * BM, p.col * BN);
    }
}

/* By one thread. The first time round the stages are empty: parity 1 of a fresh mbarrier counts as complete. */
DEVICE void produce(const gemm_sm90_args &args, ladder_gemm_shared &s, int blocks)
{
    ladder_gemm_position at = {0, 0};
    for_each_tile(args.linear, [&](int row, int col) {
        for (int kb = 0; kb < blocks; kb++, step_on(at)) {
            const uint32_t full = shared_address(&s.full[at.stage]);
            mbar_wait(shared_address(&s.empty[at.stage]), at.phase ^ 1);
            mbar_arrive_expect(full, sizeof s.x[0] + sizeof s.w[0]);
            tma_load_2d(shared_address(s.x[at.stage]), &args.x, full, kb * BK, row);
            tma_load_2d(shared_address(s.w[at.stage]), &args.maps[0][0].w, full, kb * BK, col);
        }
    });
}

/* This warp is done with a stage. */
DEVICE void give_back(ladder_gemm_shared &s, int stage)
{
    if (lane_index() == 0) mbar_arrive(shared_address(&s.empty[stage]));
}

DEVICE void multiply(float (&d)[BN / 2], ladder_gemm_shared &s, int blocks, int consumer,
                     ladder_gemm_position &at)
{
    int before = 0; /* stage of the k block before this one */
    for (int kb = 0; kb < blocks; kb++, step_on(at)) {
        mbar_wait(shared_address(&s.full[at.stage]), at.phase);
        const uint64_t x = wgmma_tile(shared_address(s.x[at.stage]) + consumer * GROUP_ROWS * 128),
                       w = wgmma_tile(shared_address(s.w[at.stage]));
        wgmma_fence();
        UNROLL
        for (int step = 0; step < BK / 16; step++) wgmma_bf16<BN>(d, x + 2 * step, w + 2 * step, kb || step);
        wgmma_commit();
        wgmma_wait<1>(); /* this k block goes on; the one before is done */
        if (kb) give_back(s, before);
        before = at.stage;
    }
    wgmma_wait<0>();
    give_back(s, before);
}

/* The warp's 16 rows, 64 columns at a time. Element 4 j + 2 half + c of an accumulator is row lane / 4 + 8 half, column
 * 8 j + 2 (lane % 4) + c. */
DEVICE void send_results(const float (&d)[BN / 2], const gemm_sm90_args &args, uint32_t buffers, int row,
                         int col)
{
    const int lane = lane_index();
    UNROLL
    for (int c = 0; c < BN / COLUMNS; c++) {
        const uint32_t buffer = buffers + c % BUFFERS * BUFFER_BYTES;
        if (lane == 0) bulk_wait_read<BUFFERS - 1>(); /* the buffer has left */
        sync_warp();
        UNROLL
        for (int j = 0; j < COLUMNS / 8; j += 2) {
            const float *e = d + c * (COLUMNS / 2) + 4 * j;
            const uint32_t r[4] = {pack_bf16(e[0], e[1]), pack_bf16(e[2], e[3]), pack_bf16(e[4], e[5]),
                                   pack_bf16(e[6], e[7])};
            stmatrix_x4(buffer + tile_offset(lane & 15, j + (lane >> 4)), r);
        }
        fence_proxy_async();
        sync_warp();
        if (lane == 0) {
            tma_store_2d(&args.maps[0][0].y, buffer, col + c * COLUMNS, row);
            bulk_commit();
        }
    }
}

DEVICE void consume(const gemm_sm90_args &args, ladder_gemm_shared &s, int blocks)
{
    const int warp = warp_index() - 4;
    ladder_gemm_position at = {0, 0};
    for_each_tile(args.linear, [&](int row, int col) {
        float d[BN / 2];
        multiply(d, s, blocks, warp / 4, at);
        send_results(d, args, shared_address(s.out[warp]), row + warp * 16, col);
    });
    if (lane_index() == 0) bulk_wait_read<0>();
}

KERNEL(ladder_gemm_sm90_persistent, gemm_sm90_args, THREADS, 1)
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
        consume(args, s, blocks);
    }
}
