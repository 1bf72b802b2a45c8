/* gemm_sm90.h: op linear with wgmma, for sm_90a. The kernels are in gemm_*_sm90.cu, which choose element type, tile and epilogues.
 *
 * Persistent: as many blocks as multiprocessors, each with a list of tiles of BM x BN. Warpgroups of a block:
 *   producer   one thread loads k blocks of 128 bytes per row, swizzled, by the copy engine into a ring of stages;
 *   consumers  BM / 64, each multiplies its 64 rows of the tile and finishes them, each warp its 16 rows, 64 columns at a time.
 * Per stage two mbarriers: `full` (the bytes are there) and `empty` (all consumer warps are done with them). The producer runs ahead
 * into the next tile while the consumers finish one. Stages and phases are counted through all tiles.
 * A warp has buffers of 16 rows x 64 columns of its own, in which the residual arrives while the tile is multiplied, and from which the
 * copy engine takes the results; no other warp is waited for. Edges: the copy engine reads zeros outside of the matrices and clips what
 * is written; every tile is treated alike.
 * The first weights are loaded before grid_wait(): no kernel writes weights. All else is touched after it. */
#ifndef KLEIN_GEMM_SM90_H
#define KLEIN_GEMM_SM90_H

#include "gemm_sm90_finish.h"

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

/* ---- producer ----------------------------------------------------------------------------------------------------- */

/* Starts a stage: announces all of its bytes and loads the weights. */
template <class G>
DEVICE void load_weights(const gemm_sm90_args &args, typename G::memory &s, const tile_place &p, int kb,
                         int stage)
{
    const gemm_sm90_maps &maps = args.maps[p.segment][p.group];
    const uint32_t full = shared_address(&s.full[stage]), w = shared_address(s.w[stage]);
    mbar_arrive_expect(full, sizeof s.x[0] + sizeof s.w[0]);
    tma_load_2d(w, &maps.w, full, kb * G::BK, p.col);
    if (G::FAMILY == QKV && args.linear.segment[p.segment].kind == LINEAR_SEGMENT_SWIGLU)
        tma_load_2d(w + sizeof s.w[0] / 2, &maps.other, full, kb * G::BK, p.col);
}

template <class G>
DEVICE void produce(const gemm_sm90_args &args, typename G::memory &s)
{
    const tiling t = tiling_of<G>(args.linear);
    const int tiles = t.rows * t.cols, blocks = ceil_div(args.linear.k, G::BK), first = block_x();
    const int early = blocks < G::STAGES ? blocks : G::STAGES;
    tile_place p = place_of<G>(args.linear, t, first);
    for (int kb = 0; kb < early; kb++) load_weights<G>(args, s, p, kb, kb);
    grid_wait();
    ring<G::STAGES> at;
    for (int tile = first; tile < tiles; tile += grid_x()) {
        if (tile != first) p = place_of<G>(args.linear, t, tile);
        for (int kb = 0; kb < blocks; kb++, at.next()) {
            if (tile != first || kb >= early) {
                mbar_wait(shared_address(&s.empty[at.stage]), at.phase ^ 1);
                load_weights<G>(args, s, p, kb, at.stage);
            }
            tma_load_2d(shared_address(s.x[at.stage]), &args.x, shared_address(&s.full[at.stage]), kb * G::BK,
                        p.row);
        }
    }
    grid_launch_dependents();
}

/* ---- consumers ---------------------------------------------------------------------------------------------------- */

/* This consumer's rows times the weights of all k blocks. */
template <class G>
DEVICE void multiply(float (&d)[G::BN / 2], typename G::memory &s, int blocks, int consumer,
                     ring<G::STAGES> &at)
{
    const uint32_t x = shared_address(s.x) + consumer * CONSUMER_ROWS * ROW_BYTES, w = shared_address(s.w),
                   full = shared_address(s.full), empty = shared_address(s.empty);
    int before = 0; /* stage of the k block before this one */
    for (int kb = 0; kb < blocks; kb++, at.next()) {
        mbar_wait(full + 8 * at.stage, at.phase);
        const uint64_t a = wgmma_tile(x + at.stage * sizeof s.x[0]),
                       b = wgmma_tile(w + at.stage * sizeof s.w[0]);
        wgmma_fence();
        UNROLL
        for (int step = 0; step < ROW_BYTES / 32; step++) {
            if constexpr (G::E4M3)
                wgmma_e4m3<G::BN>(d, a + 2 * step, b + 2 * step, kb || step);
            else
                wgmma_bf16<G::BN>(d, a + 2 * step, b + 2 * step, kb || step);
        }
        wgmma_commit();
        wgmma_wait<1>(); /* this k block goes on; the one before is done */
        if (kb && lane_index() == 0) mbar_arrive(empty + 8 * before);
        before = at.stage;
    }
    wgmma_wait<0>();
    if (lane_index() == 0) mbar_arrive(empty + 8 * before);
}

/* The same where x has scales per k block: each block's product is promoted. The consumers take turns to keep the tensor core busy. */
template <class G>
DEVICE void multiply_groups(float (&d)[G::BN / 2], const linear_kernel_args &a, epilogue_rows rows,
                            typename G::memory &s, int blocks, int consumer, ring<G::STAGES> &at)
{
    const uint32_t x = shared_address(s.x) + consumer * CONSUMER_ROWS * ROW_BYTES, w = shared_address(s.w);
    f32x2 scales = epilogue_x_scales(a, rows, 0);
    UNROLL
    for (float &f : d) f = 0;
    for (int kb = 0; kb < blocks; kb++, at.next()) {
        float t[G::BN / 2];
        mbar_wait(shared_address(&s.full[at.stage]), at.phase);
        const uint64_t i = wgmma_tile(x + at.stage * sizeof s.x[0]),
                       j = wgmma_tile(w + at.stage * sizeof s.w[0]);
        wgmma_fence();
        UNROLL
        for (int step = 0; step < ROW_BYTES / 32; step++)
            wgmma_e4m3<G::BN>(t, i + 2 * step, j + 2 * step, step);
        wgmma_commit();
        const f32x2 next = epilogue_x_scales(a, rows, kb + 1 < blocks ? kb + 1 : kb);
        wgmma_wait<0>();
        if (lane_index() == 0) mbar_arrive(shared_address(&s.empty[at.stage]));
        epilogue_promote<G::BN / 8>((float(*)[4])d, (const float(*)[4])t, scales);
        scales = next;
    }
}

template <class G>
DEVICE void consume(const gemm_sm90_args &args, typename G::memory &s)
{
    const tiling t = tiling_of<G>(args.linear);
    const int tiles = t.rows * t.cols, blocks = ceil_div(args.linear.k, G::BK);
    const int consumer = thread_index() / 128 - 1, warp = warp_index() - 4;
    outlet out = {shared_address(s.out[warp]), shared_address(s.residual[warp]), 0};
    ring<G::STAGES> at;
    grid_wait();
    for (int tile = block_x(); tile < tiles; tile += grid_x()) {
        tile_place p = place_of<G>(args.linear, t, tile);
        p.row += warp * WARP_ROWS;
        if constexpr (G::FAMILY == LINEAR) {
            const linear_segment &segment = args.linear.segment[p.segment];
            if (segment.kind == LINEAR_SEGMENT_RESIDUAL && (G::TO_E4M3 || segment.y_type == ELEMENT_BF16) &&
                lane_index() == 0) {
                bulk_wait_read<0>();
                for (int c = 0; c < G::BUFFERS; c++) load_residual<G>(args, p, out, c);
            }
        }
        float d[G::BN / 2];
        const int end = p.group ? args.linear.m : args.linear.split;
        const epilogue_rows rows = epilogue_rows_of(p.row, end);
        if constexpr (G::GROUPS)
            multiply_groups<G>(d, args.linear, rows, s, blocks, consumer, at);
        else
            multiply<G>(d, s, blocks, consumer, at);
        finish<G>((float(*)[4])d, args, p, rows, end, out);
    }
    if (lane_index() == 0) bulk_wait_read<0>();
}

/* ---- the kernel --------------------------------------------------------------------------------------------------- */

template <class G>
DEVICE void prepare(const gemm_sm90_args &args, typename G::memory &s)
{
    const int thread = thread_index();
    if (thread < LINEAR_SEGMENTS * LINEAR_GROUPS) {
        const gemm_sm90_maps &maps = args.maps[thread / LINEAR_GROUPS][thread % LINEAR_GROUPS];
        prefetch_tensor_map(&maps.w);
        prefetch_tensor_map(&maps.other);
        prefetch_tensor_map(&maps.y);
    }
    if (thread == 0) {
        if (shared_address(&s) % 1024) trap(); /* the swizzle is a function of the address */
        prefetch_tensor_map(&args.x);
        for (int i = 0; i < G::STAGES; i++) {
            mbar_init(shared_address(&s.full[i]), 1);
            mbar_init(shared_address(&s.empty[i]), G::WARPS); /* one arrival per warp */
        }
        for (int i = 0; i < G::WARPS * G::BUFFERS; i++) mbar_init(shared_address(s.residual) + 8 * i, 1);
        fence_mbar_init();
    }
    sync_threads();
}

template <class G>
DEVICE void run(const gemm_sm90_args &args)
{
    using shared_memory = typename G::memory;
    SHARED(shared_memory, s);
    prepare<G>(args, s);
    if (thread_index() < 128) {
        if constexpr (G::CONSUMERS == 2) registers_decrease<40>();
        if constexpr (G::CONSUMERS == 3) registers_decrease<32>();
        if (thread_index() == 0) produce<G>(args, s);
    } else {
        if constexpr (G::CONSUMERS == 2) registers_increase<232>();
        if constexpr (G::CONSUMERS == 3) registers_increase<160>();
        consume<G>(args, s);
    }
}

#endif
