/* gemm_sm90_tiles.h: a kernel's constants and its tiles (gemm_sm90.h). */
#ifndef KLEIN_GEMM_SM90_TILES_H
#define KLEIN_GEMM_SM90_TILES_H

#include "../device/device.h"
#include "../device/ptx.h"
#include "../device/tile.h"
#include "epilogue.h"

enum { ROW_BYTES = 128 /* of a k block */, CONSUMER_ROWS = 64, WARP_ROWS = 16, CHUNK = 64 /* columns */ };
enum { CHUNK_BLOCKS = CHUNK / 8, CHUNK_BYTES = WARP_ROWS * CHUNK * sizeof(bf16) };
enum { GROUP = 8 }; /* tiles of m in a row that share their weights */

/* The segments that a kernel knows: PLAIN, SILU, RESIDUAL with bias and y of any type; PLAIN, NORM_ROPE, SWIGLU with bf16 y. */
enum gemm_family { LINEAR, QKV };

/* A kernel's constants. GROUPS: a scale per k block of x. TO_E4M3: PLAIN, RESIDUAL and NORM_ROPE may be written in e4m3; LINEAR always. */
template <class Element, int BM_, int BN_, gemm_family FAMILY_, bool GROUPS_ = false, bool TO_E4M3_ = false>
struct gemm_sm90 {
    static constexpr int BM = BM_, BN = BN_;
    static constexpr gemm_family FAMILY = FAMILY_;
    static constexpr bool E4M3 = same<Element, fp8>, GROUPS = GROUPS_, TO_E4M3 = TO_E4M3_;
    static constexpr int BK = ROW_BYTES / (int)sizeof(Element);
    static constexpr int CONSUMERS = BM / CONSUMER_ROWS, WARPS = BM / WARP_ROWS, CHUNKS = BN / CHUNK;
    /* Columns beyond the last chunk, which go without the copy engine. */
    static constexpr int TAIL = BN % CHUNK;
    static constexpr int STAGES = GEMM_SM90_STAGES(BM, BN);
    static constexpr int FEWEST = FAMILY == QKV ? CHUNKS / 2 : CHUNKS; /* chunks of y that a tile makes */
    static constexpr int BUFFERS = GEMM_SM90_BUFFERS(BM, BN) < FEWEST ? GEMM_SM90_BUFFERS(BM, BN) : FEWEST;
    static_assert(BUFFERS >= 1 && FEWEST % BUFFERS == 0, "every tile begins with the first buffer");
    static_assert(TAIL == 0 || (TAIL == 16 && FAMILY == LINEAR), "a lane has 16 bytes of them");
    static_assert(!GROUPS || E4M3, "only e4m3 has scales");
    static_assert(BN % HEAD == 0 || FAMILY == LINEAR, "heads and halves of SwiGLU tiles are whole");
    static_assert(!TO_E4M3 || (E4M3 && BN % 128 == 0), "a tile has whole groups of 128 columns");

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

#endif
