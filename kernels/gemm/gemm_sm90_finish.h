/* gemm_sm90_finish.h: what a consumer does with its part of a tile when it is multiplied (gemm_sm90.h): the epilogue and the way out. */
#ifndef KLEIN_GEMM_SM90_FINISH_H
#define KLEIN_GEMM_SM90_FINISH_H

#include "../device/e4m3.h"
#include "../group/route.h"
#include "gemm_sm90_tiles.h"

/* A warp's buffers, the mbarriers of its residuals, and their phase. */
struct outlet {
    uint32_t buffers, residual, phase;
};

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

/* Heads of a group's devices: a chunk is of one device; its rows of 128 bytes go from the buffer to where that has them. The empty group
 * of copies keeps the count of the buffers. */
template <class G>
DEVICE void send_routed(const linear_kernel_args &a, const tile_place &p, uint32_t buffer, int c)
{
    const linear_segment &segment = a.segment[p.segment];
    const int lane = lane_index(), col = p.col + CHUNK * c, end = p.group ? a.m : a.split;
    sync_warp();
    if (lane == 0) bulk_commit();
    if (col >= segment.cols) return;
    char *const to =
        route_column(a.route, segment.y, segment.y_col + col, sizeof(bf16)) + lane % 8 * (int)sizeof(u32x4);
    UNROLL
    for (int i = 0; i < WARP_ROWS / 4; i++) {
        const int row = 4 * i + lane / 8;
        const u32x4 v = ld_shared_16(buffer + tile_offset(row, lane % 8));
        if (p.row + row < end)
            st_global_16(to + route_row_of(a.route, p.row + row) * segment.ldy * (int)sizeof(bf16), v);
    }
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
    if constexpr (G::FAMILY == QKV)
        if (args.linear.route.state && args.linear.segment[p.segment].kind != LINEAR_SEGMENT_SWIGLU)
            return send_routed<G>(args.linear, p, buffer, c);
    fence_proxy_async();
    sync_warp();
    if (lane == 0) {
        tma_store_2d(&args.maps[p.segment][p.group].y, buffer, p.col + CHUNK * c, p.row);
        bulk_commit();
    }
}

/* Sends 128 columns, which share a scale per row, in e4m3: they are group number g of the tile, and the buffer of that number is free. */
template <class G>
DEVICE void send_e4m3(const float (*d)[4], const gemm_sm90_args &args, const tile_place &p, int end,
                      const outlet &out, int g)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const uint32_t buffer = out.buffers + g % G::BUFFERS * CHUNK_BYTES;
    const int col = p.col + E4M3_GROUP * g, rows = col < segment.cols ? end - p.row : 0;
    float *scales =
        args.linear.y_scale[p.segment] + (int64_t)(col / E4M3_GROUP) * args.linear.ldy_scale + p.row;
    e4m3_put(d, buffer, 0, [&](int row, float scale) {
        if (row < rows) st_global_4(scales + row, bits_from_float(scale));
    });
    fence_proxy_async();
    sync_warp();
    if (lane_index() == 0) {
        tma_store_2d(&args.maps[p.segment][p.group].y, buffer, col, p.row);
        bulk_commit();
    }
}

/* After a tile of n groups: every tile begins with the first buffer, so empty groups of copies stand for those that were left out. */
template <class G, int n>
DEVICE void skip_buffers()
{
    if (lane_index()) return;
    UNROLL
    for (int i = n; i % G::BUFFERS; i++) bulk_commit();
}

/* e4m3: n blocks from column `col` on times what was left out. */
template <class G, int n>
DEVICE void scale_blocks(float (*d)[4], const linear_kernel_args &a, epilogue_rows rows, const float *w_scale,
                         int col, int cols)
{
    if constexpr (G::E4M3) epilogue_scale<n, G::GROUPS>(d, a, rows, w_scale, col, cols);
}

/* n blocks from column `col` on of PLAIN, SILU, RESIDUAL: all but the residual. Here and below p.row is the warp's first row, and `rows` what
 * this thread has of its 16 rows. */
template <class G, int n>
DEVICE void prepare_blocks(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                           int col)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const linear_segment_weights &w = segment.group[p.group];
    scale_blocks<G, n>(d, args.linear, rows, w.w_scale, col, segment.cols);
    if constexpr (G::FAMILY == LINEAR)
        if (w.bias) epilogue_bias<n>(d, w.bias, col, segment.cols);
    if constexpr (G::FAMILY == LINEAR && !G::TO_E4M3)
        if (segment.kind == LINEAR_SEGMENT_SILU) epilogue_silu<n>(d);
}

/* The same, and says whether they are stored: f32 is, residual and all. */
template <class G, int n>
DEVICE bool finish_blocks(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                          int end, int col)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    prepare_blocks<G, n>(d, args, p, rows, col);
    if constexpr (G::FAMILY == LINEAR) {
        if (segment.y_type == ELEMENT_F32) {
            const float *from = segment.kind == LINEAR_SEGMENT_RESIDUAL
                                    ? (const float *)segment.residual + (int64_t)p.row * segment.ldr + col
                                    : nullptr;
            epilogue_store_f32<n>(d, (float *)segment.y + (int64_t)p.row * segment.ldy + col, segment.ldy,
                                  from, segment.ldr, segment.group[p.group].gate, end - p.row, col,
                                  segment.cols);
            return true;
        }
    }
    return false;
}

/* The columns beyond the last chunk: 32 bytes of a row are two lanes'. Eight lanes have every second row: no two meet in a bank. */
struct tail_place {
    int row, col;    /* of this lane's 16 bytes */
    uint32_t offset; /* of them in a buffer */
    bool exists;
};
template <class G>
DEVICE tail_place tail_of(const gemm_sm90_args &args, const tile_place &p, int end)
{
    const int lane = lane_index(), half = lane % 2, row = lane / 16 * 8 + lane / 2 % 4 * 2 + lane / 8 % 2,
              col = p.col + CHUNK * G::CHUNKS + 8 * half;
    return {p.row + row, col, tile_offset(row, half),
            p.row + row < end && col < args.linear.segment[p.segment].cols};
}

template <class G>
DEVICE u32x4 load_tail(const linear_segment &segment, const tail_place &t)
{
    if (!t.exists) return {0, 0, 0, 0};
    return ld_global_16((const bf16 *)segment.residual + (int64_t)t.row * segment.ldr + t.col);
}

/* Through the first buffer, which is the next. */
template <class G>
DEVICE void finish_tail(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                        int end, const outlet &out, const tail_place &t, bool residual, u32x4 before)
{
    enum { BLOCKS = G::TAIL / 8 };
    const linear_segment &segment = args.linear.segment[p.segment];
    const int col = p.col + CHUNK * G::CHUNKS;
    if (finish_blocks<G, BLOCKS>(d, args, p, rows, end, col)) return;
    free_buffer<G>();
    if (residual) {
        st_shared_16(out.buffers + t.offset, before);
        sync_warp();
        epilogue_residual<BLOCKS>(d, out.buffers, 0, 0, segment.group[p.group].gate, col, segment.cols);
    }
    epilogue_put<BLOCKS>(d, out.buffers, 0, 0); /* where this thread has read the residual */
    sync_warp();
    const u32x4 v = ld_shared_16(out.buffers + t.offset);
    if (t.exists) st_global_16((bf16 *)segment.y + (int64_t)t.row * segment.ldy + t.col, v);
    fence_proxy_async(); /* the copy engine may have the buffer */
    sync_warp();
}

/* PLAIN, SILU, RESIDUAL: 64 columns after the other. */
template <class G>
DEVICE void finish_columns(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                           int end, outlet &out)
{
    const linear_segment &segment = args.linear.segment[p.segment];
    const bool residual = G::FAMILY == LINEAR && segment.kind == LINEAR_SEGMENT_RESIDUAL;
    const tail_place tail = tail_of<G>(args, p, end);
    u32x4 tail_residual = {};
    if constexpr (G::TAIL)
        if (residual && segment.y_type == ELEMENT_BF16) tail_residual = load_tail<G>(segment, tail);
    UNROLL
    for (int c = 0; c < G::CHUNKS; c++) {
        float(*e)[4] = d + CHUNK_BLOCKS * c;
        const int col = p.col + CHUNK * c, buffer = c % G::BUFFERS;
        if (finish_blocks<G, CHUNK_BLOCKS>(e, args, p, rows, end, col)) continue;
        if (residual) {
            mbar_wait(out.residual + 8 * buffer, out.phase);
            epilogue_residual<CHUNK_BLOCKS>(e, out.buffers + buffer * CHUNK_BYTES, 0, 0,
                                            segment.group[p.group].gate, col, segment.cols);
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
    if constexpr (G::TAIL)
        finish_tail<G>(d + CHUNK_BLOCKS * G::CHUNKS, args, p, rows, end, out, tail, residual, tail_residual);
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

/* SWIGLU to e4m3: the tile's 128 columns are one group of the next product's x. */
template <class G>
DEVICE void finish_swiglu_e4m3(float (*d)[4], const gemm_sm90_args &args, const tile_place &p,
                               epilogue_rows rows, int end, const outlet &out)
{
    static_assert(G::BN == 2 * E4M3_GROUP, "a tile makes one group");
    const linear_segment &segment = args.linear.segment[p.segment];
    const linear_segment_weights &w = segment.group[p.group];
    UNROLL
    for (int c = 0; c < E4M3_GROUP / CHUNK; c++) {
        float(*e)[4] = d + CHUNK_BLOCKS * c, (*up)[4] = e + E4M3_BLOCKS;
        const int col = p.col + CHUNK * c;
        scale_blocks<G, CHUNK_BLOCKS>(e, args.linear, rows, w.w_scale, col, segment.cols);
        scale_blocks<G, CHUNK_BLOCKS>(up, args.linear, rows, w.up_scale, col, segment.cols);
        epilogue_swiglu<CHUNK_BLOCKS>(e, up);
    }
    free_buffer<G>();
    send_e4m3<G>(d, args, p, end, out, 0);
    skip_buffers<G, 1>();
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

/* The residual of 128 columns from `col` on, which fills both buffers. */
template <class G>
DEVICE void add_residual(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, outlet &out, int col)
{
    static_assert(G::BUFFERS == 2, "two chunks");
    const linear_segment &segment = args.linear.segment[p.segment];
    UNROLL
    for (int c = 0; c < G::BUFFERS; c++) {
        mbar_wait(out.residual + 8 * c, out.phase);
        epilogue_residual<CHUNK_BLOCKS>(d + CHUNK_BLOCKS * c, out.buffers + c * CHUNK_BYTES, 0, 0,
                                        segment.group[p.group].gate, col + CHUNK * c, segment.cols);
    }
    out.phase ^= 1;
    sync_warp(); /* all have read what is overwritten */
}

/* PLAIN, RESIDUAL, NORM_ROPE to e4m3: a group of 128 columns, or one head, after the other. */
template <class G>
DEVICE void finish_e4m3(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                        int end, outlet &out)
{
    enum { GROUPS = G::BN / E4M3_GROUP };
    static_assert((int)E4M3_GROUP == (int)HEAD, "a head is a group");
    const linear_segment &segment = args.linear.segment[p.segment];
    const bool residual = G::FAMILY == LINEAR && segment.kind == LINEAR_SEGMENT_RESIDUAL;
    UNROLL
    for (int g = 0; g < GROUPS; g++) {
        float(*e)[4] = d + E4M3_BLOCKS * g;
        const int col = p.col + E4M3_GROUP * g;
        prepare_blocks<G, E4M3_BLOCKS>(e, args, p, rows, col);
        if constexpr (G::FAMILY == QKV) {
            if (segment.kind == LINEAR_SEGMENT_NORM_ROPE)
                epilogue_norm_rope(e, args.linear, segment.group[p.group].norm, rows);
        } else if (residual) {
            add_residual<G>(e, args, p, out, col);
        }
        if (!residual) free_buffer<G>();
        send_e4m3<G>(e, args, p, end, out, g);
        if (residual && g + 1 < GROUPS && lane_index() == 0) {
            bulk_wait_read<0>();
            for (int c = 0; c < G::BUFFERS; c++) load_residual<G>(args, p, out, G::BUFFERS * (g + 1) + c);
        }
    }
    skip_buffers<G, GROUPS>();
}

template <class G>
DEVICE void finish(float (*d)[4], const gemm_sm90_args &args, const tile_place &p, epilogue_rows rows,
                   int end, outlet &out)
{
    const int kind = args.linear.segment[p.segment].kind;
    if constexpr (G::FAMILY == QKV) {
        if constexpr (G::TO_E4M3)
            if (kind != LINEAR_SEGMENT_SWIGLU && args.linear.segment[p.segment].y_type == ELEMENT_E4M3)
                return finish_e4m3<G>(d, args, p, rows, end, out);
        if constexpr (G::E4M3 && G::BN == 2 * E4M3_GROUP)
            if (args.linear.segment[p.segment].y_type == ELEMENT_E4M3)
                return finish_swiglu_e4m3<G>(d, args, p, rows, end, out);
        if (kind == LINEAR_SEGMENT_SWIGLU) return finish_swiglu<G>(d, args, p, rows, out);
        if (kind == LINEAR_SEGMENT_NORM_ROPE) return finish_heads<G>(d, args, p, rows, out);
    }
    if constexpr (G::FAMILY == LINEAR && G::TO_E4M3)
        finish_e4m3<G>(d, args, p, rows, end, out);
    else
        finish_columns<G>(d, args, p, rows, end, out);
}

#endif
