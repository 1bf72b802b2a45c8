/* Step 5, asynchronous copies: step 4 with cp.async, each tile on its way while the other one is used.
 *
 * V is copied during the scores, which need K; the next K during the softmax and the second product, which need V. One buffer each is
 * enough. The data no longer pass through registers. Two barriers per tile, as before: wait for one's own copies first, then meet; the
 * other way round is the classic bug.
 *
 * Static figures (nvcc 13.0, sm_80): 197 registers, 48 KiB shared memory, 0 bank conflicts, 0 bytes through registers. What limits it
 * on chips with fast tensor cores: shared memory, 1024 cycles per tile for 1024 of the tensor cores. The shipped kernel
 * (kernels/attention/attention_sm80.cu) is this one with edges, causal masks and shared K/V heads, and for those chips with 32 rows per
 * warp: 128 queries x 48 keys read 128 KiB (1024 cycles) for 3.1 MFLOP (1536). */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum {
    WIDTH = 128,
    ROWS = 64,
    KEYS = 64,
    THREADS = 128,
    CHUNK = 8 /* bf16 in 16 bytes */,
    STEPS = WIDTH / 16
};

struct alignas(1024) ladder_attention_shared {
    bf16 q[ROWS * WIDTH], k[KEYS * WIDTH], v[KEYS * WIDTH];
};

/* Byte offset of a chunk in a tile: rows of 256 bytes, the chunks of each row permuted by its number. */
DEVICE uint32_t offset(int row, int chunk)
{
    return (uint32_t)(row * 256 + (chunk ^ (row & 7)) * 16);
}

DEVICE float quad_max(float x)
{
    x = fmaxf(x, shfl_xor(x, 1));
    return fmaxf(x, shfl_xor(x, 2));
}

DEVICE float quad_sum(float x)
{
    x += shfl_xor(x, 1);
    return x + shfl_xor(x, 2);
}

/* The warp's 16 x 64 scores: q holds its rows' fragments. */
DEVICE void score_tile(float (&d)[1][KEYS / 8][4], const uint32_t (&q)[STEPS][1][4], uint32_t k_tile)
{
    const int lane = lane_index();
    UNROLL
    for (int step = 0; step < STEPS; step++) {
        uint32_t k[KEYS / 8][2];
        UNROLL
        for (int j = 0; j < KEYS / 8; j += 2) {
            uint32_t r[4];
            ldmatrix_x4(r,
                        k_tile + offset(8 * j + (lane & 7) + (lane >> 4 << 3), 2 * step + (lane >> 3 & 1)));
            k[j][0] = r[0], k[j][1] = r[1], k[j + 1][0] = r[2], k[j + 1][1] = r[3];
        }
        mma_tile_bf16(d, q[step], k);
    }
}

/* Scores to probabilities; o and sum are scaled to the new largest score. half 0: row lane / 4, 1: row lane / 4 + 8. */
DEVICE void softmax_tile(float (&d)[KEYS / 8][4], float (&o)[WIDTH / 8][4], float (&top)[2], float (&sum)[2],
                         float scale)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        float most = d[0][2 * half];
        UNROLL
        for (int j = 0; j < KEYS / 8; j++) most = fmaxf(most, fmaxf(d[j][2 * half], d[j][2 * half + 1]));
        const float before = top[half];
        top[half] = fmaxf(before, quad_max(most) * scale);
        const float keep = exp2_approx(before - top[half]);
        sum[half] *= keep;
        UNROLL
        for (int j = 0; j < KEYS / 8; j++) {
            UNROLL
            for (int e = 2 * half; e < 2 * half + 2; e++)
                sum[half] += d[j][e] = exp2_approx(fmaf(d[j][e], scale, -top[half]));
        }
        UNROLL
        for (int j = 0; j < WIDTH / 8; j++) o[j][2 * half] *= keep, o[j][2 * half + 1] *= keep;
    }
}

/* o += p v. Column pairs of p's fragments are what operand a wants as k pairs. */
DEVICE void add_values(float (&o)[1][WIDTH / 8][4], const float (&p)[KEYS / 8][4], uint32_t v_tile)
{
    const int lane = lane_index();
    UNROLL
    for (int step = 0; step < KEYS / 16; step++) {
        const float(&low)[4] = p[2 * step], (&high)[4] = p[2 * step + 1];
        const uint32_t a[1][4] = {{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                                   pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])}};
        uint32_t v[WIDTH / 8][2];
        UNROLL
        for (int j = 0; j < WIDTH / 8; j += 2) {
            uint32_t r[4];
            ldmatrix_x4_trans(r, v_tile + offset(16 * step + (lane & 15), j + (lane >> 4)));
            v[j][0] = r[0], v[j][1] = r[1], v[j + 1][0] = r[2], v[j + 1][1] = r[3];
        }
        mma_tile_bf16(o, a, v);
    }
}

/* The warp's 16 rows of o, through its rows of q's tile. */
DEVICE void store_rows(const float (&o)[WIDTH / 8][4], const float (&sum)[2], uint32_t q_tile,
                       const flash_args &args)
{
    const int lane = lane_index(), first = 16 * warp_index();
    UNROLL
    for (int half = 0; half < 2; half++) {
        const float factor = rcp_approx(quad_sum(sum[half]));
        UNROLL
        for (int j = 0; j < WIDTH / 8; j++)
            st_shared_4(q_tile + offset(first + 8 * half + lane / 4, j) + 4 * (lane % 4),
                        pack_bf16(o[j][2 * half] * factor, o[j][2 * half + 1] * factor));
    }
    sync_warp();
    bf16 *out = static_cast<bf16 *>(args.o) + (int64_t)block_x() * ROWS * args.ldo + block_y() * WIDTH;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const int row = first + 2 * i + lane / 16, chunk = lane % 16;
        st_global_16(out + (int64_t)row * args.ldo + chunk * CHUNK,
                     ld_shared_16(q_tile + offset(row, chunk)));
    }
}

/* Starts the copy of 64 rows of a matrix into a tile, by all threads. */
DEVICE void copy_tile(uint32_t tile, const bf16 *from, int ld)
{
    const int row = thread_index() / 16, chunk = thread_index() % 16;
    UNROLL
    for (int i = 0; i < 64; i += 8)
        cp_async_16(tile + offset(row + i, chunk), from + (int64_t)(row + i) * ld + chunk * CHUNK, 16);
    cp_async_commit();
}

/* What this thread copied is there; then what everyone copied, and everyone is done with what was there before. */
DEVICE void wait_for_copies()
{
    cp_async_wait<0>();
    sync_threads();
}

KERNEL(ladder_attention_async, flash_args, THREADS, 2)
{
    SHARED(ladder_attention_shared, s);
    const bf16 *k = static_cast<const bf16 *>(args.k) + block_y() * WIDTH,
               *v = static_cast<const bf16 *>(args.v) + block_y() * WIDTH;
    const uint32_t q_tile = shared_address(s.q), k_tile = shared_address(s.k), v_tile = shared_address(s.v);

    copy_tile(q_tile,
              static_cast<const bf16 *>(args.q) + (int64_t)block_x() * ROWS * args.ldq + block_y() * WIDTH,
              args.ldq);
    copy_tile(k_tile, k, args.ldk);
    wait_for_copies();
    uint32_t q[STEPS][1][4];
    UNROLL
    for (int step = 0; step < STEPS; step++)
        ldmatrix_x4(q[step][0],
                    q_tile + offset(16 * warp_index() + (lane_index() & 15), 2 * step + (lane_index() >> 4)));

    float o[1][WIDTH / 8][4] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {};
    for (int key0 = 0; key0 < args.keys; key0 += KEYS) {
        copy_tile(v_tile, v + (int64_t)key0 * args.ldv, args.ldv); /* during the scores */
        float d[1][KEYS / 8][4] = {};
        score_tile(d, q, k_tile);
        wait_for_copies();
        if (key0 + KEYS < args.keys)
            copy_tile(k_tile, k + (int64_t)(key0 + KEYS) * args.ldk, args.ldk); /* during the rest */
        softmax_tile(d[0], o[0], top, sum, args.scale_log2);
        add_values(o, d[0], v_tile);
        wait_for_copies();
    }
    store_rows(o[0], sum, q_tile, args);
}
