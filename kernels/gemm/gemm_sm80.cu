/* gemm_sm80.cu: c = a b^T with mma.sync, for sm_80 and everything after it.
 *
 * Tile of a block: 128 x 128 of c, 4 warps of 64 x 64; k in blocks of 64 (128 bytes per row). `stages` k blocks of a and b are in
 * shared memory, 32 KiB each, filled by cp.async while earlier ones are multiplied; ldmatrix reads them without bank conflicts
 * (tile.h). Rows beyond m and n and columns beyond k are filled with zeros by the copies. The tile of c goes through shared memory
 * so that it leaves in rows of 128 bytes. */
#include "../device/device.h"
#include "../device/ptx.h"
#include "../device/tile.h"

enum { BM = 128, BN = 128, BK = 64, WM = 64, WN = 64, CHUNK = 8 /* bf16 in 16 bytes */ };
enum {
    GROUP = 8
}; /* tiles of m that share their b: blocks walk 8 of them before the next tile of n, for the L2 */

template <int stages>
struct alignas(1024) gemm_sm80_shared {
    bf16 a[stages][BM * BK], b[stages][BN * BK];
};

/* A thread's part of the copies of one operand: 8 of the tile's 1024 chunks, in rows 16 apart, at one chunk column. */
struct copier {
    const bf16 *from; /* this thread's first row, at its chunk column */
    int64_t step;     /* 16 rows, in elements */
    int rows;         /* how many of its 8 rows exist */
    int column;       /* its first column in a k block */
    uint32_t offset;  /* of its first chunk in a tile */
};

DEVICE copier make_copier(const bf16 *matrix, int ld, int row0, int rows)
{
    const int row = thread_index() / 8, chunk = thread_index() % 8;
    copier c;
    c.rows = row0 + row < rows ? ceil_div(rows - row0 - row, 16) : 0;
    c.from = matrix + (c.rows ? (int64_t)(row0 + row) * ld + chunk * CHUNK : 0);
    c.step = (int64_t)16 * ld;
    c.column = chunk * CHUNK;
    c.offset = tile_offset(row, chunk); /* 16 rows further the swizzle is the same */
    return c;
}

DEVICE void copy_tile(const copier &c, uint32_t tile, int k0, int k)
{
    const bool inside = k0 + c.column < k;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const bool valid = inside && i < c.rows;
        cp_async_16(tile + c.offset + (uint32_t)i * 16 * 128, valid ? c.from + i * c.step + k0 : c.from,
                    valid ? 16 : 0);
    }
}

/* One k block: 4 steps of 16. */
DEVICE void multiply_block(float (&d)[WM / 16][WN / 8][4], uint32_t a_tile, uint32_t b_tile, int warp_row,
                           int warp_col)
{
    UNROLL
    for (int kk = 0; kk < BK / 16; kk++) {
        uint32_t a[WM / 16][4], b[WN / 8][2];
        load_a(a, a_tile, warp_row, kk);
        load_b(b, b_tile, warp_col, kk);
        mma_tile_bf16(d, a, b);
    }
}

/* This warp's 64 x 64 of c, through its own 8 KiB of shared memory at `tile`. */
DEVICE void store_tile(const float (&d)[WM / 16][WN / 8][4], uint32_t tile, const gemm_args &args, int row0,
                       int col0)
{
    const int lane = lane_index(), g = lane / 4, q = lane % 4;
    UNROLL
    for (int i = 0; i < WM / 16; i++) {
        UNROLL
        for (int j = 0; j < WN / 8; j++) {
            st_shared_4(tile + tile_offset(16 * i + g, j) + 4 * q, pack_bf16(d[i][j][0], d[i][j][1]));
            st_shared_4(tile + tile_offset(16 * i + g + 8, j) + 4 * q, pack_bf16(d[i][j][2], d[i][j][3]));
        }
    }
    sync_warp();
    const int chunk = lane % 8, col = col0 + chunk * CHUNK;
    UNROLL
    for (int i = 0; i < WM / 4; i++) {
        const int row = 4 * i + lane / 8;
        const u32x4 v = ld_shared_16(tile + tile_offset(row, chunk));
        if (row0 + row < args.m && col < args.n)
            st_global_16(args.c + (int64_t)(row0 + row) * args.ldc + col, v);
    }
}

template <int stages>
DEVICE void gemm_sm80(const gemm_args &args)
{
    SHARED(gemm_sm80_shared<stages>, s);
    const tile_position tile =
        grouped_tile(block_x(), ceil_div(args.m, (int)BM), ceil_div(args.n, (int)BN), GROUP);
    const int row0 = tile.row * BM, col0 = tile.col * BN;
    const copier copy_a = make_copier(args.a, args.lda, row0, args.m),
                 copy_b = make_copier(args.b, args.ldb, col0, args.n);
    const uint32_t a_tiles = shared_address(s.a), b_tiles = shared_address(s.b);
    const int blocks = ceil_div(args.k, (int)BK);

    UNROLL
    for (int kb = 0; kb < stages - 1; kb++) {
        if (kb < blocks) {
            copy_tile(copy_a, a_tiles + kb * sizeof s.a[0], kb * BK, args.k);
            copy_tile(copy_b, b_tiles + kb * sizeof s.b[0], kb * BK, args.k);
        }
        cp_async_commit(); /* also when empty: the count of groups stays that of k blocks */
    }

    const int warp_row = warp_index() / 2 * WM, warp_col = warp_index() % 2 * WN;
    float d[WM / 16][WN / 8][4] = {};
    int stage = 0, fill = stages - 1; /* where k block kb lies, where kb + stages - 1 will */
    for (int kb = 0; kb < blocks; kb++) {
        cp_async_wait<stages - 2>(); /* my copies of kb are there ... */
        sync_threads();              /* ... and everyone's; and all have read the stage that is filled next */
        if (kb + stages - 1 < blocks) {
            copy_tile(copy_a, a_tiles + fill * sizeof s.a[0], (kb + stages - 1) * BK, args.k);
            copy_tile(copy_b, b_tiles + fill * sizeof s.b[0], (kb + stages - 1) * BK, args.k);
        }
        cp_async_commit();
        multiply_block(d, a_tiles + stage * sizeof s.a[0], b_tiles + stage * sizeof s.b[0], warp_row,
                       warp_col);
        stage = stage + 1 == stages ? 0 : stage + 1;
        fill = fill + 1 == stages ? 0 : fill + 1;
    }

    sync_threads(); /* the stages are free: each warp takes a quarter of a's first two */
    store_tile(d, a_tiles + warp_index() * WM * 128, args, row0 + warp_row, col0 + warp_col);
}

KERNEL(gemm_sm80_128x128_s3, gemm_args, GEMM_SM80_THREADS, 1)
{
    gemm_sm80<3>(args);
}

KERNEL(gemm_sm80_128x128_s2, gemm_args, GEMM_SM80_THREADS, 2)
{
    gemm_sm80<2>(args);
}
