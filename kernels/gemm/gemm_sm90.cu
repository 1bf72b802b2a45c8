/* gemm_sm90.cu: c = a b^T with wgmma, for sm_90a.
 *
 * Persistent: as many blocks as multiprocessors, each with a list of tiles of 128 x BN. Three warpgroups per block:
 *   producer   one thread loads k blocks of 64 (128 bytes per row, swizzled) by the copy engine into a ring of stages;
 *   consumers  two, each multiplies its 64 rows of the tile and writes them out, 64 columns at a time.
 * Per stage two mbarriers: `full` (the bytes are there) and `empty` (all 8 consumer warps are done with them). The producer runs ahead
 * into the next tile while the consumers write. Stages and phases are counted through all tiles. Edges: the copy engine reads zeros
 * outside of a and b, and clips what is written to c. */
#include "../device/device.h"
#include "../device/ptx.h"
#include "../device/tile.h"

enum { BM = 128, BK = 64, ROWS = 64 /* per consumer */, CONSUMERS = 2, OUT_COLS = 64, OUT_BUFFERS = 2 };
enum { GROUP = 8 };            /* tiles of m in a row that share their b */
enum { BARRIER_CONSUMER = 1 }; /* named barrier of consumer c: BARRIER_CONSUMER + c */

template <int BN, int stages>
struct alignas(1024) gemm_sm90_shared {
    bf16 a[stages][BM * BK], b[stages][BN * BK];
    bf16 out[CONSUMERS][OUT_BUFFERS][ROWS * OUT_COLS];
    uint64_t full[stages], empty[stages];
};

/* Where in the ring of stages k block number i of this thread's count lies. */
template <int stages>
struct ring {
    int stage = 0;
    uint32_t phase = 0;
    DEVICE_METHOD void next()
    {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

template <int BN, int stages>
DEVICE void produce(const gemm_sm90_args &args, gemm_sm90_shared<BN, stages> &s, int tiles, int blocks)
{
    const uint32_t a = shared_address(s.a), b = shared_address(s.b), full = shared_address(s.full),
                   empty = shared_address(s.empty);
    ring<stages> at;
    for (int tile = block_x(); tile < tiles; tile += grid_x()) {
        const tile_position p = grouped_tile(tile, ceil_div(args.m, (int)BM), ceil_div(args.n, BN), GROUP);
        for (int kb = 0; kb < blocks; kb++, at.next()) {
            mbar_wait(empty + 8 * at.stage, at.phase ^ 1);
            mbar_arrive_expect(full + 8 * at.stage, sizeof s.a[0] + sizeof s.b[0]);
            tma_load_2d(a + at.stage * sizeof s.a[0], &args.a, full + 8 * at.stage, kb * BK, p.row * BM);
            tma_load_2d(b + at.stage * sizeof s.b[0], &args.b, full + 8 * at.stage, kb * BK, p.col * BN);
        }
    }
}

/* This consumer's 64 x BN of c, in chunks of 64 columns through shared memory. */
template <int BN>
DEVICE void store_rows(const float (&d)[BN / 2], const gemm_sm90_args &args, uint32_t out, int consumer,
                       int row0, int col0)
{
    const int lane = lane_index(), warp = warp_index() % 4;
    const bool leader = thread_index() % 128 == 0;
    const uint32_t row = (uint32_t)(16 * warp + (lane & 15)); /* whose address this lane gives to stmatrix */
    UNROLL
    for (int chunk = 0; chunk < BN / OUT_COLS; chunk++) {
        const uint32_t tile = out + chunk % OUT_BUFFERS * ROWS * OUT_COLS * sizeof(bf16);
        if (leader) bulk_wait_read<OUT_BUFFERS - 1>(); /* the buffer's last contents have left */
        bar_sync(BARRIER_CONSUMER + consumer, 128);
        UNROLL
        for (int j = 0; j < OUT_COLS / 8; j += 2) { /* two blocks of 8 columns at once */
            const float *e = d + (chunk * (OUT_COLS / 8) + j) * 4;
            const uint32_t r[4] = {pack_bf16(e[0], e[1]), pack_bf16(e[2], e[3]), pack_bf16(e[4], e[5]),
                                   pack_bf16(e[6], e[7])};
            stmatrix_x4(tile + tile_offset(row, j + (lane >> 4)), r);
        }
        fence_proxy_async();
        bar_sync(BARRIER_CONSUMER + consumer, 128);
        if (leader) {
            tma_store_2d(&args.c, tile, col0 + chunk * OUT_COLS, row0);
            bulk_commit();
        }
    }
}

template <int BN, int stages>
DEVICE void consume(const gemm_sm90_args &args, gemm_sm90_shared<BN, stages> &s, int tiles, int blocks,
                    int consumer)
{
    const uint32_t a = shared_address(s.a) + consumer * ROWS * BK * sizeof(bf16), b = shared_address(s.b);
    const uint32_t full = shared_address(s.full), empty = shared_address(s.empty);
    ring<stages> at;
    for (int tile = block_x(); tile < tiles; tile += grid_x()) {
        float d[BN / 2];
        int before = 0; /* stage of the k block before this one */
        for (int kb = 0; kb < blocks; kb++, at.next()) {
            mbar_wait(full + 8 * at.stage, at.phase);
            const uint64_t a_tile = wgmma_tile(a + at.stage * sizeof s.a[0]),
                           b_tile = wgmma_tile(b + at.stage * sizeof s.b[0]);
            wgmma_fence();
            UNROLL
            for (int k = 0; k < BK / 16; k++) wgmma_bf16<BN>(d, a_tile + 2 * k, b_tile + 2 * k, kb || k);
            wgmma_commit();
            wgmma_wait<1>(); /* this k block goes on; the one before is done */
            if (kb && lane_index() == 0) mbar_arrive(empty + 8 * before);
            before = at.stage;
        }
        wgmma_wait<0>();
        if (lane_index() == 0) mbar_arrive(empty + 8 * before);
        const tile_position p = grouped_tile(tile, ceil_div(args.m, (int)BM), ceil_div(args.n, BN), GROUP);
        store_rows<BN>(d, args, shared_address(s.out[consumer]), consumer, p.row * BM + consumer * ROWS,
                       p.col * BN);
    }
    if (thread_index() % 128 == 0) bulk_wait_read<0>();
}

template <int BN, int stages>
DEVICE void gemm_sm90(const gemm_sm90_args &args)
{
    using shared_memory = gemm_sm90_shared<BN, stages>;
    SHARED(shared_memory, s);
    const int tiles = ceil_div(args.m, (int)BM) * ceil_div(args.n, BN), blocks = ceil_div(args.k, (int)BK);
    if (thread_index() == 0) {
        if (shared_address(&s) % 1024) trap(); /* the swizzle is a function of the address */
        prefetch_tensor_map(&args.a);
        prefetch_tensor_map(&args.b);
        prefetch_tensor_map(&args.c);
        for (int i = 0; i < stages; i++) {
            mbar_init(shared_address(&s.full[i]), 1);
            mbar_init(shared_address(&s.empty[i]), CONSUMERS * 4); /* one arrival per warp */
        }
        fence_mbar_init();
    }
    sync_threads();
    grid_wait();
    if (thread_index() < 128) {
        registers_decrease<40>();
        if (thread_index() == 0) produce<BN, stages>(args, s, tiles, blocks);
    } else {
        registers_increase<232>();
        consume<BN, stages>(args, s, tiles, blocks, thread_index() / 128 - 1);
    }
}

KERNEL(gemm_sm90_128x256, gemm_sm90_args, GEMM_SM90_THREADS, 1)
{
    gemm_sm90<256, 4>(args);
}

KERNEL(gemm_sm90_128x128, gemm_sm90_args, GEMM_SM90_THREADS, 1)
{
    gemm_sm90<128, 6>(args);
}
