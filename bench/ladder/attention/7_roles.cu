/* Step 7, roles: step 6 with warps that only copy and warps that only compute.
 *
 * In step 6 all warps meet before a tile may be filled again, and then the copy's latency begins. Here one warpgroup is the producer: one of
 * its threads walks ahead through the tiles. Two consumer warpgroups have 64 queries each and share K and V, which halves the copies.
 * Each stage of the ring has two mbarriers: `full` (the bytes are there) and `empty` (all 8 consumer warps are done with it); nobody
 * waits for anybody else. Stage and phase are counted by each role for itself. setmaxnreg gives the registers that the producer does
 * not need to the consumers.
 *
 * Static figures (nvcc 13.0, sm_90a): 168 registers at launch, 24 and 240 afterwards; 97 KiB shared memory, 0 bank conflicts, no block
 * barrier in the loop. Per tile of 128 x 64 the tensor cores need 1024 cycles and the exponentials 512. What limits it: a consumer's
 * products and its softmax still come one after the other, so they overlap only as far as the two consumers happen to be out of step.
 * The shipped kernel (kernels/attention/attention_sm90.cu) is this one with edges, causal masks and shared K/V heads, 128 keys per tile,
 * the next tile's scores started before this tile's second product, and consumers that take turns. */
#include "../../../kernels/device/device.h"
#include "../../../kernels/device/ptx.h"
#include "../../../kernels/device/tile.h"

enum { WIDTH = 128, ROWS = 64, KEYS = 64, CONSUMERS = 2, THREADS = 384, STAGES = 2 };
enum { SLABS = WIDTH / 64, SLAB_BYTES = 64 * 128, TILE_BYTES = SLABS * SLAB_BYTES };

struct alignas(1024) ladder_attention_shared {
    bf16 q[CONSUMERS][ROWS * WIDTH], k[STAGES][KEYS * WIDTH], v[STAGES][KEYS * WIDTH];
    uint64_t q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
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

/* A ring of tiles, and where this thread is in it. */
struct ring {
    uint32_t tiles, full, empty;
    int stage = 0;
    uint32_t phase = 0;
    DEVICE_METHOD ring(const void *tile_memory, const uint64_t *full_bars, const uint64_t *empty_bars)
        : tiles(shared_address(tile_memory)), full(shared_address(full_bars)),
          empty(shared_address(empty_bars))
    {
    }
    DEVICE_METHOD uint32_t tile() const
    {
        return tiles + stage * TILE_BYTES;
    }
    DEVICE_METHOD void next()
    {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

DEVICE void load_tile(uint32_t tile, const tensor_map *map, uint32_t full, int row)
{
    UNROLL
    for (int s = 0; s < SLABS; s++)
        tma_load_2d(tile + s * SLAB_BYTES, map, full, block_y() * WIDTH + 64 * s, row);
}

/* Producer: the next stage, when it is empty. The first time round it is: parity 1 of a fresh mbarrier counts as complete. */
DEVICE void fill(ring &to, const tensor_map *map, int row)
{
    mbar_wait(to.empty + 8 * to.stage, to.phase ^ 1);
    mbar_arrive_expect(to.full + 8 * to.stage, TILE_BYTES);
    load_tile(to.tile(), map, to.full + 8 * to.stage, row);
    to.next();
}

DEVICE void produce(const attention_sm90_args &args, ladder_attention_shared &s)
{
    ring k(s.k, s.k_full, s.k_empty), v(s.v, s.v_full, s.v_empty);
    const uint32_t q_full = shared_address(&s.q_full);
    mbar_arrive_expect(q_full, CONSUMERS * TILE_BYTES);
    for (int c = 0; c < CONSUMERS; c++)
        load_tile(shared_address(s.q[c]), &args.q, q_full, (block_x() * CONSUMERS + c) * ROWS);
    for (int key0 = 0; key0 < args.keys; key0 += KEYS) {
        fill(k, &args.k, key0);
        fill(v, &args.v, key0);
    }
}

/* Consumer: the next stage, when it is full; and this warp is done with it. */
DEVICE uint32_t take(const ring &from)
{
    mbar_wait(from.full + 8 * from.stage, from.phase);
    return from.tile();
}

DEVICE void give_back(ring &to)
{
    if (lane_index() == 0) mbar_arrive(to.empty + 8 * to.stage);
    to.next();
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

/* A consumer's rows of o through its tile of q to memory by the copy engine. */
DEVICE void store_rows(const float (&o)[WIDTH / 2], const float (&sum)[2], uint32_t tile,
                       const attention_sm90_args &args, int consumer)
{
    const int lane = lane_index(), row = 16 * (warp_index() % 4) + (lane & 15);
    const float low = rcp_approx(quad_sum(sum[0])), high = rcp_approx(quad_sum(sum[1]));
    bar_sync(1 + consumer, 128); /* all four warps are done with q */
    UNROLL
    for (int j = 0; j < WIDTH / 8; j += 2) {
        const float *e = o + 4 * j;
        const uint32_t r[4] = {pack_bf16(e[0] * low, e[1] * low), pack_bf16(e[2] * high, e[3] * high),
                               pack_bf16(e[4] * low, e[5] * low), pack_bf16(e[6] * high, e[7] * high)};
        stmatrix_x4(tile + j / 8 * SLAB_BYTES + tile_offset(row, j % 8 + (lane >> 4)), r);
    }
    fence_proxy_async();
    bar_sync(1 + consumer, 128);
    if (thread_index() % 128 == 0) {
        for (int s = 0; s < SLABS; s++)
            tma_store_2d(&args.o, tile + s * SLAB_BYTES, block_y() * WIDTH + 64 * s,
                         (block_x() * CONSUMERS + consumer) * ROWS);
        bulk_commit();
        bulk_wait_read<0>();
    }
}

DEVICE void consume(const attention_sm90_args &args, ladder_attention_shared &s, int consumer)
{
    ring k(s.k, s.k_full, s.k_empty), v(s.v, s.v_full, s.v_empty);
    const uint32_t q = shared_address(s.q[consumer]);
    float d[KEYS / 2], o[WIDTH / 2] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {};
    mbar_wait(shared_address(&s.q_full), 0);
    for (int key0 = 0; key0 < args.keys; key0 += KEYS) {
        score_tile(d, q, take(k));
        give_back(k);
        softmax_tile(d, o, top, sum, args.scale_log2);
        add_values(o, d, take(v));
        give_back(v);
    }
    store_rows(o, sum, q, args, consumer);
}

KERNEL(ladder_attention_sm90_roles, attention_sm90_args, THREADS, 1)
{
    SHARED(ladder_attention_shared, s);
    if (thread_index() == 0) {
        mbar_init(shared_address(&s.q_full), 1);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(shared_address(&s.k_full[i]), 1);
            mbar_init(shared_address(&s.v_full[i]), 1);
            mbar_init(shared_address(&s.k_empty[i]), CONSUMERS * 4); /* one arrival per warp */
            mbar_init(shared_address(&s.v_empty[i]), CONSUMERS * 4);
        }
        fence_mbar_init();
    }
    sync_threads();
    if (thread_index() < 128) {
        registers_decrease<24>();
        if (thread_index() == 0) produce(args, s);
    } else {
        registers_increase<240>();
        consume(args, s, thread_index() / 128 - 1);
    }
}
