/* Step 3, register tiles: a thread computes 8 x 8 results, so that each number read from shared memory serves 8 multiply-adds.
 *
 * A block of 256 threads has 128 x 128 results. Memory and shared memory are read 16 bytes at a time: of a row along k from memory, of
 * four rows at one pair of k from shared memory. So the tiles are transposed on the way in: word (p, r) is pair p of row r. Row r of pair
 * p lies at r ^ 8 (p / 4): the four lanes that hold a row's 16-byte pieces store to different banks, and four rows stay together. A
 * thread's 8 rows are two fours, 64 apart, so that 8 lanes read 128 contiguous bytes.
 *
 * Static figures (nvcc 13.0, sm_80): 123 registers, 16 KiB shared memory, 0 bank conflicts, whole sectors. Four 16-byte reads for 128 FMA
 * instructions. What limits it: the FMA units, with 32 more instructions per 128 to make floats of bf16. An A100 has 19.5 TFLOP/s of
 * these, and 312 in its tensor cores. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"

enum { SIDE = 128, THREADS = 256, CHUNK = 8 /* bf16 in 16 bytes */, BK = 32, PAIRS = BK / 2 };

struct alignas(16) ladder_gemm_shared {
    uint32_t x[PAIRS * SIDE], w[PAIRS * SIDE];
};

DEVICE uint32_t offset(int pair, int row)
{
    return (uint32_t)(4 * (pair * SIDE + (row ^ pair / 4 * 8)));
}

/* 128 rows of a matrix into a tile, 32 elements of each; zeros where there are none. */
DEVICE void copy_tile(uint32_t tile, const void *matrix, int64_t ld, int row0, int rows, int k0, int k)
{
    const int chunk = thread_index() % 4;
    UNROLL
    for (int row = thread_index() / 4; row < SIDE; row += THREADS / 4) {
        const bool exists = row0 + row < rows && k0 + chunk * CHUNK < k;
        const bf16 *from = static_cast<const bf16 *>(matrix) + (row0 + row) * ld + k0 + chunk * CHUNK;
        const u32x4 v = exists ? ld_global_16(from) : u32x4{0, 0, 0, 0};
        st_shared_4(tile + offset(4 * chunk, row), v.x);
        st_shared_4(tile + offset(4 * chunk + 1, row), v.y);
        st_shared_4(tile + offset(4 * chunk + 2, row), v.z);
        st_shared_4(tile + offset(4 * chunk + 3, row), v.w);
    }
}

/* Row (or column) i of the 8 of thread `t` of 16. */
DEVICE int place(int t, int i)
{
    return 4 * t + i % 4 + i / 4 * (SIDE / 2);
}

DEVICE void load_pairs(float (&low)[8], float (&high)[8], uint32_t tile, int pair, int t)
{
    const u32x4 v[2] = {ld_shared_16(tile + offset(pair, place(t, 0))),
                        ld_shared_16(tile + offset(pair, place(t, 4)))};
    UNROLL
    for (int i = 0; i < 2; i++) {
        low[4 * i] = bf16_low(v[i].x), high[4 * i] = bf16_high(v[i].x);
        low[4 * i + 1] = bf16_low(v[i].y), high[4 * i + 1] = bf16_high(v[i].y);
        low[4 * i + 2] = bf16_low(v[i].z), high[4 * i + 2] = bf16_high(v[i].z);
        low[4 * i + 3] = bf16_low(v[i].w), high[4 * i + 3] = bf16_high(v[i].w);
    }
}

DEVICE void multiply(float (&d)[8][8], const float (&a)[8], const float (&b)[8])
{
    UNROLL
    for (int i = 0; i < 8; i++) {
        UNROLL
        for (int j = 0; j < 8; j++) d[i][j] = fmaf(a[i], b[j], d[i][j]);
    }
}

KERNEL(ladder_gemm_registers, linear_kernel_args, THREADS, 2)
{
    SHARED(ladder_gemm_shared, s);
    const linear_segment &out = args.segment[0];
    const int row0 = block_x() * SIDE, col0 = block_y() * SIDE, down = thread_index() / 16,
              across = thread_index() % 16;
    const uint32_t x = shared_address(s.x), w = shared_address(s.w);
    float d[8][8] = {};
    for (int k0 = 0; k0 < args.k; k0 += BK) {
        copy_tile(x, args.x, args.ldx, row0, args.m, k0, args.k);
        copy_tile(w, out.group[0].w, out.group[0].ldw, col0, out.cols, k0, args.k);
        sync_threads(); /* the tiles are full */
        UNROLL_BY(4)
        for (int pair = 0; pair < PAIRS; pair++) {
            float a_low[8], a_high[8], b_low[8], b_high[8];
            load_pairs(a_low, a_high, x, pair, down);
            load_pairs(b_low, b_high, w, pair, across);
            multiply(d, a_low, b_low);
            multiply(d, a_high, b_high);
        }
        sync_threads(); /* and free */
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        UNROLL
        for (int j = 0; j < 8; j += 4) {
            const int row = row0 + place(down, i), col = col0 + place(across, j);
            if (row < args.m && col < out.cols)
                st_global_8(static_cast<bf16 *>(out.y) + row * out.ldy + col, pack_bf16(d[i][j], d[i][j + 1]),
                            pack_bf16(d[i][j + 2], d[i][j + 3]));
        }
    }
}
