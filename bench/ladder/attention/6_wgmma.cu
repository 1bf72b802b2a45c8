/* Step 6, wgmma: step 5 with the instructions of Hopper: one product of 64 rows is one instruction of the whole warpgroup, and one thread
 * starts the copy of a whole tile.
 *
 * wgmma reads its operands from shared memory by itself: no ldmatrix, no fragments of q, K and V in registers. The product runs while the
 * warps go on, until they wait for it. What is kept from before: the scores' fragments, packed to bf16, are operand a of the second
 * product, from registers. V lies as it does in memory, keys by columns, which the descriptor calls MN-major. The copy engine swizzles
 * rows of 128 bytes, so a tile is two slabs of 64 columns; the bytes are counted by an mbarrier, one per tile, whose phase flips each time
 * that the tile is full. One buffer each for K and V, filled beside the products and the softmax as in step 5.
 *
 * Static figures (nvcc 13.0, sm_90a): 138 registers, 49 KiB shared memory, 0 bank conflicts, 2 barriers per tile. Per tile of 64 x 64 the
 * tensor cores of an H100 need 512 cycles and the exponentials 256, one after the other; three blocks per multiprocessor fill the gaps
 * (four would, but 128 registers are not enough: ptxas then waits after every wgmma). What limits it: the tensor cores wait during each
 * softmax unless another block happens to be at a product, and after each tile all warps wait for the copy that could only then
 * begin. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum { WIDTH = 128, ROWS = 64, KEYS = 64, THREADS = 128, SLABS = WIDTH / 64, SLAB_BYTES = 64 * 128 };

struct alignas(1024) ladder_attention_shared {
    bf16 q[ROWS * WIDTH], k[KEYS * WIDTH], v[KEYS * WIDTH];
    uint64_t q_full, k_full, v_full;
};

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

/* Starts the copy of 64 rows of a head, by one thread. */
DEVICE void load_tile(uint32_t tile, const tensor_map *map, uint32_t full, int row)
{
    mbar_arrive_expect(full, SLABS * SLAB_BYTES);
    UNROLL
    for (int s = 0; s < SLABS; s++)
        tma_load_2d(tile + s * SLAB_BYTES, map, full, block_y() * WIDTH + 64 * s, row);
}

/* d = q k^T, 16 columns of the head per instruction: 32 bytes of a row, four times in each slab. */
DEVICE void score_tile(float (&d)[KEYS / 2], uint32_t q, uint32_t k)
{
    wgmma_fence();
    UNROLL
    for (int step = 0; step < WIDTH / 16; step++)
        wgmma_bf16<KEYS>(d, wgmma_tile(q + step / 4 * SLAB_BYTES) + 2 * (step % 4),
                         wgmma_tile(k + step / 4 * SLAB_BYTES) + 2 * (step % 4), step);
    wgmma_commit();
    wgmma_wait<0>();
}

/* Element 4 j + 2 half + c of an accumulator is row lane / 4 + 8 half, column 8 j + 2 (lane % 4) + c. */
DEVICE void softmax_tile(float (&d)[KEYS / 2], float (&o)[WIDTH / 2], float (&top)[2], float (&sum)[2],
                         float scale)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        float most = d[2 * half];
        UNROLL
        for (int i = 2 * half; i < KEYS / 2; i += 4) most = fmaxf(most, fmaxf(d[i], d[i + 1]));
        const float before = top[half];
        top[half] = fmaxf(before, quad_max(most) * scale);
        const float keep = exp2_approx(before - top[half]);
        sum[half] *= keep;
        UNROLL
        for (int i = 2 * half; i < KEYS / 2; i += 4) {
            sum[half] += d[i] = exp2_approx(fmaf(d[i], scale, -top[half]));
            sum[half] += d[i + 1] = exp2_approx(fmaf(d[i + 1], scale, -top[half]));
        }
        UNROLL
        for (int i = 2 * half; i < WIDTH / 2; i += 4) o[i] *= keep, o[i + 1] *= keep;
    }
}

/* o += p v, 16 keys per instruction: 16 rows of each slab of v. */
DEVICE void add_values(float (&o)[WIDTH / 2], const float (&p)[KEYS / 2], uint32_t v)
{
    uint32_t a[KEYS / 16][4];
    UNROLL
    for (int i = 0; i < KEYS / 4; i++) a[i / 4][i % 4] = pack_bf16(p[2 * i], p[2 * i + 1]);
    wgmma_fence();
    UNROLL
    for (int step = 0; step < KEYS / 16; step++)
        wgmma_bf16<WIDTH, true>(o, a[step], wgmma_tile_mn(v, SLAB_BYTES) + 128 * step, true);
    wgmma_commit();
    wgmma_wait<0>();
}

/* o through q's tile, which all have read, to memory by the copy engine. */
DEVICE void store_rows(const float (&o)[WIDTH / 2], const float (&sum)[2], uint32_t tile,
                       const attention_sm90_args &args)
{
    const int lane = lane_index(), row = 16 * warp_index() + (lane & 15);
    const float low = rcp_approx(quad_sum(sum[0])), high = rcp_approx(quad_sum(sum[1]));
    UNROLL
    for (int j = 0; j < WIDTH / 8; j += 2) {
        const float *e = o + 4 * j;
        const uint32_t r[4] = {pack_bf16(e[0] * low, e[1] * low), pack_bf16(e[2] * high, e[3] * high),
                               pack_bf16(e[4] * low, e[5] * low), pack_bf16(e[6] * high, e[7] * high)};
        stmatrix_x4(tile + j / 8 * SLAB_BYTES + tile_offset(row, j % 8 + (lane >> 4)), r);
    }
    fence_proxy_async();
    sync_threads();
    if (thread_index() == 0) {
        for (int s = 0; s < SLABS; s++)
            tma_store_2d(&args.o, tile + s * SLAB_BYTES, block_y() * WIDTH + 64 * s, block_x() * ROWS);
        bulk_commit();
        bulk_wait_read<0>();
    }
}

KERNEL(ladder_attention_sm90_wgmma, attention_sm90_args, THREADS, 3)
{
    SHARED(ladder_attention_shared, s);
    const uint32_t q = shared_address(s.q), k = shared_address(s.k), v = shared_address(s.v),
                   q_full = shared_address(&s.q_full), k_full = shared_address(&s.k_full),
                   v_full = shared_address(&s.v_full);
    const bool leader = thread_index() == 0;
    if (leader) {
        mbar_init(q_full, 1);
        mbar_init(k_full, 1);
        mbar_init(v_full, 1);
        fence_mbar_init();
    }
    sync_threads();
    if (leader) {
        load_tile(q, &args.q, q_full, block_x() * ROWS);
        load_tile(k, &args.k, k_full, 0);
        load_tile(v, &args.v, v_full, 0);
    }
    float d[KEYS / 2], o[WIDTH / 2] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {};
    mbar_wait(q_full, 0);
    uint32_t phase = 0;
    for (int key0 = 0; key0 < args.keys; key0 += KEYS, phase ^= 1) {
        const bool more = key0 + KEYS < args.keys;
        mbar_wait(k_full, phase);
        score_tile(d, q, k);
        sync_threads(); /* all four warps are done with k */
        if (leader && more) load_tile(k, &args.k, k_full, key0 + KEYS);
        softmax_tile(d, o, top, sum, args.scale_log2);
        mbar_wait(v_full, phase);
        add_values(o, d, v);
        sync_threads(); /* ... and with v */
        if (leader && more) load_tile(v, &args.v, v_full, key0 + KEYS);
    }
    store_rows(o, sum, q, args);
}
