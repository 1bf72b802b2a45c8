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

#include "../device/device.h"
#include "../device/ptx.h"
#include "../device/tile.h"
#include "epilogue.h"

enum { ROW_BYTES = 128 /* of a k block */, CONSUMER_ROWS = 64, WARP_ROWS = 16, CHUNK = 64 /* columns */ };
enum { CHUNK_BLOCKS = CHUNK / 8, CHUNK_BYTES = WARP_ROWS * CHUNK * sizeof(bf16) };
enum { GROUP = 8 }; /* tiles of m in a row that share their weights */

/* The segments that a kernel knows: PLAIN, SILU, RESIDUAL with bias and y of any type; PLAIN, NORM_ROPE, SWIGLU with bf16 y. */
enum gemm_family { LINEAR, QKV };

/* A kernel's constants. */
template <class Element, int BM_, int BN_, gemm_family FAMILY_, bool GROUPS_ = false>
struct gemm_sm90 {
    static constexpr int BM = BM_, BN = BN_;
    static constexpr gemm_family FAMILY = FAMILY_;
    static constexpr bool E4M3 = same<Element, fp8>, GROUPS = GROUPS_; /* GROUPS: a scale per k block of x */
    static constexpr int BK = ROW_BYTES / (int)sizeof(Element);
    static constexpr int CONSUMERS = BM / CONSUMER_ROWS, WARPS = BM / WARP_ROWS, CHUNKS = BN / CHUNK;
    static constexpr int STAGES = GEMM_SM90_STAGES(BM, BN);
    static constexpr int FEWEST = FAMILY == QKV ? CHUNKS / 2 : CHUNKS; /* chunks of y that a tile makes */
    static constexpr int BUFFERS = GEMM_SM90_BUFFERS(BM, BN) < FEWEST ? GEMM_SM90_BUFFERS(BM, BN) : FEWEST;
    static_assert(BUFFERS >= 1 && FEWEST % BUFFERS == 0, "every tile begins with the first buffer");
    static_assert(!GROUPS || E4M3, "only e4m3 has scales");
    static_assert(BN % HEAD == 0 || FAMILY == LINEAR, "heads and halves of SwiGLU tiles are whole");

    struct alignas(1024) memory {
        uint8_t x[STAGES][BM * ROW_BYTES], w[STAGES][BN * ROW_BYTES];
        uint8_t out[WARPS][BUFFERS][CHUNK_BYTES];
        uint64_t full[STAGES], empty[STAGES], residual[WARPS][BUFFERS];
    };
    static_assert(sizeof(memory) <= GEMM_SM90_SHARED(BM, BN), "what the launcher passes");
};

/* ---- tiles -------------------------------------------------------------------------------------------------------- */

/* How the product is cut: rows of tiles of group 0, rows and columns of tiles. */
struct tiling {
    int above, rows, cols;
};

/* Columns of y that a tile of this segment makes: a SwiGLU tile has half of its columns from w and half from up. */
template <class G>
DEVICE int tile_width(int kind)
{
    return G::FAMILY == QKV && kind == LINEAR_SEGMENT_SWIGLU ? G::BN / 2 : G::BN;
}

template <class G>
DEVICE int tiles_across(const linear_segment &s)
{
    return ceil_div(s.cols, tile_width<G>(s.kind));
}

template <class G>
DEVICE tiling tiling_of(const linear_kernel_args &a)
{
    tiling t;
    t.above = ceil_div(a.split, G::BM);
    t.rows = t.above + ceil_div(a.m - a.split, G::BM);
    t.cols = 0;
    for (int i = 0; i < a.segments; i++) t.cols += tiles_across<G>(a.segment[i]);
    return t;
}

/* Where a tile is: its first row, its first column within the segment. */
struct tile_place {
    int segment, group, row, col;
};

template <class G>
DEVICE tile_place place_of(const linear_kernel_args &a, const tiling &t, int tile)
{
    const tile_position p = grouped_tile(tile, t.rows, t.cols, GROUP);
    int segment = 0, col = p.col;
    for (; segment < a.segments - 1; segment++) {
        const int across = tiles_across<G>(a.segment[segment]);
        if (col < across) break;
        col -= across;
    }
    const int group = p.row >= t.above;
    return {segment, group, group ? a.split + (p.row - t.above) * G::BM : p.row * G::BM,
            col * tile_width<G>(a.segment[segment].kind)};
}

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

/* A warp's buffers, the mbarriers of its residuals, and their phase. */
struct outlet {
    uint32_t buffers, residual, phase;
};

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

/* This thread's scales of its two rows of x in a k block. */
DEVICE f32x2 group_scales(const linear_kernel_args &a, epilogue_rows rows, int kb)
{
    const float *from = a.x_scale + kb * a.ldscale;
    return {float_from_bits(ld_global_4(from + rows.row[0])),
            float_from_bits(ld_global_4(from + rows.row[1]))};
}

/* The same where x has scales per k block: each block's product is multiplied by them and added in f32. The tensor core's own sums are
 * then no longer than a k block, which matters too: they keep 13 fraction bits. The consumers take turns to keep it busy. */
template <class G>
DEVICE void multiply_groups(float (&d)[G::BN / 2], const linear_kernel_args &a, epilogue_rows rows,
                            typename G::memory &s, int blocks, int consumer, ring<G::STAGES> &at)
{
    const uint32_t x = shared_address(s.x) + consumer * CONSUMER_ROWS * ROW_BYTES, w = shared_address(s.w);
    f32x2 scales = group_scales(a, rows, 0);
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
        const f32x2 next = group_scales(a, rows, kb + 1 < blocks ? kb + 1 : kb);
        wgmma_wait<0>();
        if (lane_index() == 0) mbar_arrive(shared_address(&s.empty[at.stage]));
        UNROLL
        for (int e = 0; e < G::BN / 2; e++) d[e] = fmaf(t[e], e / 2 % 2 ? scales.y : scales.x, d[e]);
        scales = next;
    }
}

/* By one lane: the residual of chunk c arrives in its buffer, which is free. */
template <class G>
DEVICE void load_residual(const gemm_sm90_args &args, const tile_place &p, const outlet &out, int c)
{
    const int buffer = c % G::BUFFERS;
    mbar_arrive_expect(out.residual + 8 * buffer, CHUNK_BYTES);
    tma_load_2d(out.buffers + buffer * CHUNK_BYTES, &args.maps[p.segment][p.group].other,
                out.residual + 8 * buffer, p.col + CHUNK * c, p.row);
}

/* Waits until the buffer that is next has left. */
template <class G>
DEVICE void free_buffer()
{
    if (lane_index() == 0) bulk_wait_read<G::BUFFERS - 1>();
    sync_warp();
}

/* Rounds chunk c and sends it off through its buffer. */
template <class G>
DEVICE void send(const float (*d)[4], const gemm_sm90_args &args, const tile_place &p, const outlet &out,
                 int c)
{
    const uint32_t buffer = out.buffers + c % G::BUFFERS * CHUNK_BYTES;
    const int lane = lane_index();
    UNROLL
    for (int j = 0; j < CHUNK_BLOCKS; j += 2) { /* two blocks of 8 columns at once */
        const uint32_t r[4] = {pack_bf16(d[j][0], d[j][1]), pack_bf16(d[j][2], d[j][3]),
                               pack_bf16(d[j + 1][0], d[j + 1][1]), pack_bf16(d[j + 1][2], d[j + 1][3])};
        stmatrix_x4(buffer + tile_offset(lane & 15, j + (lane >> 4)), r);
    }
    fence_proxy_async();
    sync_warp();
    if (lane == 0) {
        tma_store_2d(&args.maps[p.segment][p.group].y, buffer, p.col + CHUNK * c, p.row);
        bulk_commit();
    }
}

/* e4m3: n blocks from column `col` on times what was left out. */
template <class G, int n>
DEVICE void scale_blocks(float (*d)[4], const linear_kernel_args &a, epilogue_rows rows, const float *w_scale,
                         int col, int cols)
{
    if constexpr (G::E4M3 && !G::GROUPS) epilogue_scale<n>(d, a.x_scale, rows, w_scale, col, cols);
    if constexpr (G::GROUPS) {
        UNROLL
        for (int j = 0; j < n; j++) {
            const f32x2 w = epilogue_pair(w_scale, col, j, cols, 1);
            d[j][0] *= w.x, d[j][1] *= w.y, d[j][2] *= w.x, d[j][3] *= w.y;
        }
    }
}

/* PLAIN, SILU, RESIDUAL: 64 columns after the other. Here and below p.row is the warp's first row, and `rows` what this thread has of
 * its 16 rows. */
template <class G>
DEVICE void finish_columns(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                           int end, outlet &out)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const linear_segment_weights &w = segment.group[p.group];
    const bool residual = G::FAMILY == LINEAR && segment.kind == LINEAR_SEGMENT_RESIDUAL;
    UNROLL
    for (int c = 0; c < G::CHUNKS; c++) {
        float(*e)[4] = d + CHUNK_BLOCKS * c;
        const int col = p.col + CHUNK * c, buffer = c % G::BUFFERS;
        scale_blocks<G, CHUNK_BLOCKS>(e, args.linear, rows, w.w_scale, col, segment.cols);
        if constexpr (G::FAMILY == LINEAR) {
            if (w.bias) epilogue_bias<CHUNK_BLOCKS>(e, w.bias, col, segment.cols);
            if (segment.kind == LINEAR_SEGMENT_SILU) epilogue_silu<CHUNK_BLOCKS>(e);
            if (segment.y_type == ELEMENT_F32) {
                const float *from =
                    residual ? (const float *)segment.residual + (int64_t)p.row * segment.ldr + col : nullptr;
                epilogue_store_f32<CHUNK_BLOCKS>(e, (float *)segment.y + (int64_t)p.row * segment.ldy + col,
                                                 segment.ldy, from, segment.ldr, w.gate, end - p.row, col,
                                                 segment.cols);
                continue;
            }
        }
        if (residual) {
            mbar_wait(out.residual + 8 * buffer, out.phase);
            epilogue_residual<CHUNK_BLOCKS>(e, out.buffers + buffer * CHUNK_BYTES, 0, 0, w.gate, col,
                                            segment.cols);
            sync_warp(); /* all have read what send overwrites */
        } else {
            free_buffer<G>();
        }
        send<G>(e, args, p, out, c);
        if (residual && c + G::BUFFERS < G::CHUNKS && lane_index() == 0) {
            bulk_wait_read<0>();
            load_residual<G>(args, p, out, c + G::BUFFERS);
        }
        if (residual && buffer == G::BUFFERS - 1) out.phase ^= 1;
    }
}

/* SWIGLU: the first half of the blocks are gates, the second what they multiply. */
template <class G>
DEVICE void finish_swiglu(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                          outlet &out)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const linear_segment_weights &w = segment.group[p.group];
    UNROLL
    for (int c = 0; c < G::CHUNKS / 2; c++) {
        float(*e)[4] = d + CHUNK_BLOCKS * c, (*up)[4] = e + G::BN / 16;
        const int col = p.col + CHUNK * c;
        scale_blocks<G, CHUNK_BLOCKS>(e, args.linear, rows, w.w_scale, col, segment.cols);
        scale_blocks<G, CHUNK_BLOCKS>(up, args.linear, rows, w.up_scale, col, segment.cols);
        epilogue_swiglu<CHUNK_BLOCKS>(e, up);
        free_buffer<G>();
        send<G>(e, args, p, out, c);
    }
}

/* NORM_ROPE: one head after the other. */
template <class G>
DEVICE void finish_heads(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                         outlet &out)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const linear_segment_weights &w = segment.group[p.group];
    UNROLL
    for (int c = 0; c < G::CHUNKS; c++) {
        float(*e)[4] = d + CHUNK_BLOCKS * c;
        if (c % (HEAD / CHUNK) == 0) {
            scale_blocks<G, HEAD_BLOCKS>(e, args.linear, rows, w.w_scale, p.col + CHUNK * c, segment.cols);
            epilogue_norm_rope(e, args.linear, w.norm, rows);
        }
        free_buffer<G>();
        send<G>(e, args, p, out, c);
    }
}

template <class G>
DEVICE void finish(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                   int end, outlet &out)
{
    const int kind = args.linear.segment[p.segment].kind;
    if constexpr (G::FAMILY == QKV) {
        if (kind == LINEAR_SEGMENT_SWIGLU) return finish_swiglu<G>(d, args, p, rows, out);
        if (kind == LINEAR_SEGMENT_NORM_ROPE) return finish_heads<G>(d, args, p, rows, out);
    }
    finish_columns<G>(d, args, p, rows, end, out);
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
            if (segment.kind == LINEAR_SEGMENT_RESIDUAL && segment.y_type == ELEMENT_BF16 &&
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
