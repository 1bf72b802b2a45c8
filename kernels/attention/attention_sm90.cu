/* attention_sm90.cu: flash attention with wgmma for heads of width 128, for sm_90a.
 *
 * A warpgroup owns 64 queries of one head and walks over the keys, 128 at a time: scores = Q K^T from shared memory, softmax of what has
 * been seen (flash.inc), O += P V with P from registers: the scores' fragments, packed to bf16, are operand a as they are. V lies there as
 * it is in memory, keys by columns: an operand b that is MN-major. The next tile's scores are started before O += P V of this one, so
 * that their softmax runs beside that product. The copy engine brings tiles as two slabs of 64 columns, zeros beyond the last query and
 * key; only tiles that hold an edge are masked.
 *   64x128   one warpgroup per block, which also starts the copies; two blocks per multiprocessor. K and V take turns in three stages.
 *   128x128  a producer and two consumer warpgroups, one block per multiprocessor, two stages each for K and V. The consumers take turns
 *            in starting products, so that the softmax of one runs beside the products of the other. The blocks of a last round that
 *            would leave half of the multiprocessors idle are cut in two, with one consumer each (attention_pick.h). */
#include "../device/e4m3.h"
#include "flash.inc"

enum { WIDTH = 128, SLABS = WIDTH / SLAB, STEPS = SLAB / 16, ROWS = 64 /* of a warpgroup */, KEYS = 128 };
enum { Q_BYTES = ROWS * WIDTH * 2, KEY_BYTES = KEYS * WIDTH * 2, WARPGROUP = 128, CONSUMERS = 2 };
enum { BARRIER_ROWS = 1, BARRIER_TURN = 3, BARRIER_CLEAR = 5 }; /* named barriers; of consumer c: + c */

/* What a block computes: 64 rows per consumer from row0 on. After grid_wait. */
struct block_work {
    int row0, consumers, keys, tiles, q_column, kv_column;
};
DEVICE block_work work_of(const attention_sm90_args &args, int head, int row0, int consumers)
{
    block_work w;
    w.row0 = row0;
    w.consumers = consumers;
    w.keys = flash_keys(args);
    const int rows = consumers * ROWS, end = args.causal && row0 + rows < w.keys ? row0 + rows : w.keys;
    w.tiles = end > 0 ? ceil_div(end, (int)KEYS) : 1; /* no keys: NaN, not a hang */
    w.q_column = head * WIDTH;
    w.kv_column = head / args.group * WIDTH;
    return w;
}

/* Stages of tiles and their mbarriers, and where this thread is in them. */
template <int stages>
struct ring {
    uint32_t tiles, full, empty;
    int stage = 0;
    uint32_t phase = 0;
    DEVICE_METHOD ring(const void *tile_memory, const uint64_t *full_bars, const uint64_t *empty_bars)
        : tiles(shared_address(tile_memory)), full(shared_address(full_bars)),
          empty(empty_bars ? shared_address(empty_bars) : 0)
    {
    }
    DEVICE_METHOD uint32_t tile() const
    {
        return tiles + stage * KEY_BYTES;
    }
    DEVICE_METHOD void wait_full() const
    {
        mbar_wait(full + 8 * stage, phase);
    }
    DEVICE_METHOD void next()
    {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

/* ---- copies: by one thread ------------------------------------------------------------------------------------------ */

/* Rows row0.. of a head into a tile of `rows` rows; `bar` already expects the bytes. */
template <int rows>
DEVICE void load_rows(uint32_t tile, const tensor_map *map, uint32_t bar, int column, int row0)
{
    UNROLL
    for (int s = 0; s < SLABS; s++) tma_load_2d(tile + s * rows * 128, map, bar, column + s * SLAB, row0);
}

/* Tile number `tile` of K or V into the ring's stage. */
template <int stages>
DEVICE void load_keys(const ring<stages> &to, const tensor_map *map, const block_work &w, int tile)
{
    mbar_arrive_expect(to.full + 8 * to.stage, KEY_BYTES);
    load_rows<KEYS>(to.tile(), map, to.full + 8 * to.stage, w.kv_column, tile * KEYS);
}

DEVICE void prefetch_maps(const attention_sm90_args &args)
{
    prefetch_tensor_map(&args.q);
    prefetch_tensor_map(&args.k);
    prefetch_tensor_map(&args.v);
    prefetch_tensor_map(&args.o);
}

/* ---- a warpgroup's arithmetic ---------------------------------------------------------------------------------------- */

using fragments = float[WIDTH / 8][4]; /* an accumulator of wgmma, as flash.inc sees it */
static_assert(WIDTH == KEYS, "scores and O have the same shape");

DEVICE fragments &fragments_of(float (&accumulator)[WIDTH / 2])
{
    return reinterpret_cast<fragments &>(accumulator);
}

/* Starts d = Q K^T. */
DEVICE void start_scores(float (&d)[KEYS / 2], uint32_t q, uint32_t k)
{
    wgmma_fence();
    UNROLL
    for (int step = 0; step < SLABS * STEPS; step++)
        wgmma_bf16<KEYS>(d, wgmma_tile(q + step / STEPS * ROWS * 128) + 2 * (step % STEPS),
                         wgmma_tile(k + step / STEPS * KEYS * 128) + 2 * (step % STEPS), step);
    wgmma_commit();
}

/* Starts o (+)= P V. */
DEVICE void start_values(float (&o)[WIDTH / 2], const uint32_t (&p)[KEYS / 16][4], uint32_t v, bool add)
{
    wgmma_fence();
    UNROLL
    for (int step = 0; step < KEYS / 16; step++)
        wgmma_bf16<WIDTH, true>(o, p[step], wgmma_tile_mn(v, KEYS * 128) + 128 * step, add || step);
    wgmma_commit();
}

/* What a thread knows of its two rows. */
struct row_state {
    float top[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
};

/* Scores become probabilities relative to the row's largest score so far; what was summed before is to be multiplied with keep. */
DEVICE void softmax_tile(float (&d)[KEYS / 2], row_state &rows, float (&keep)[2],
                         const attention_sm90_args &args, int keys, int row0, int key0)
{
    fragments &f = fragments_of(d);
    if (key0 + KEYS > keys || (args.causal && key0 + KEYS > row0 + 1))
        mask_scores(f, row0 + warp_index() % 4 * 16, key0, keys, args.causal);
    UNROLL
    for (int half = 0; half < 2; half++) {
        const float before = rows.top[half];
        rows.top[half] = fmaxf(before, row_max(f, half) * args.scale_log2);
        keep[half] = exp2_approx(before - rows.top[half]); /* first tile: 0 */
        rows.sum[half] = rows.sum[half] * keep[half] + row_exp2(f, half, args.scale_log2, rows.top[half]);
    }
}

/* The softmax must be done before the wait for P V that follows, beside which it is to run. To ptxas it is arithmetic like any other, and
 * it moves all of it behind the wait; it does not move a store. Nobody reads this one, but its value needs every exponential. */
DEVICE void finish_softmax(shared<float> &unread, const row_state &rows)
{
    unread = rows.sum[0] + rows.sum[1];
}

DEVICE void scale_rows(float (&o)[WIDTH / 2], const float (&factor)[2])
{
    row_scale(fragments_of(o), 0, factor[0]);
    row_scale(fragments_of(o), 1, factor[1]);
}

/* Columns 8 j.. of a score fragment are the keys that operand a wants there. */
DEVICE void pack_probabilities(uint32_t (&p)[KEYS / 16][4], float (&d)[KEYS / 2])
{
    UNROLL
    for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = pack_bf16(d[2 * i], d[2 * i + 1]);
}

/* By the consumers' threads, which are about to multiply by the last tile of V. Beyond *key_count may lie anything, and 0 times NaN is NaN: these
 * rows become zero. (Beyond the matrix the copy engine has read zeros.) */
DEVICE void clear_missing(uint32_t tile, const attention_sm90_args &args, const block_work &w, int thread,
                          int barrier)
{
    const int first = w.keys - (w.tiles - 1) * KEYS, threads = w.consumers * WARPGROUP;
    if (!args.key_count || first >= KEYS) return;
    for (int row = first + thread / 16; row < KEYS; row += threads / 16) /* 16 chunks of 16 bytes each */
        st_shared_16(tile + thread / 8 % 2 * KEYS * 128 + row * 128 + thread % 8 * 16, u32x4{0, 0, 0, 0});
    fence_proxy_async();
    bar_sync(barrier, threads);
}

/* A warp's 16 rows of a tile, each `chunks` times 16 bytes, to the devices that have them; from byte `byte` of theirs on. */
template <int chunks>
DEVICE void store_routed(const attention_sm90_args &args, uint32_t tile, int warp_row, int byte, int row0)
{
    const int lane = lane_index(), chunk = lane % chunks;
    sync_warp();
    byte += chunk * 16;
    UNROLL
    for (int i = 0; i < chunks / 2; i++) {
        const int row = warp_row + 32 / chunks * i + lane / chunks;
        const u32x4 v = ld_shared_16(tile + chunk / 8 * ROWS * 128 + tile_offset(row, chunk % 8));
        if (row0 + row < args.queries)
            st_global_16(route_row(args.route, args.to, row0 + row, args.ldto) + byte, v);
    }
}

/* The warpgroup's rows of O, through the memory of its rows of Q, to global memory; rows beyond the last are clipped. */
DEVICE void store_rows(float (&o)[WIDTH / 2], const row_state &rows, const attention_sm90_args &args,
                       uint32_t tile, int barrier, int column, int row0)
{
    const int lane = lane_index(), warp_row = warp_index() % 4 * 16;
    const float factor[2] = {rcp_approx(quad_sum(rows.sum[0])), rcp_approx(quad_sum(rows.sum[1]))};
    scale_rows(o, factor);
    bar_sync(barrier, WARPGROUP); /* all four warps are done with Q */
    if (args.o_scale) {
        float *scales = args.o_scale + column / WIDTH * args.ldo_scale;
        const int first = row0 + warp_row;
        e4m3_put(fragments_of(o), tile, warp_row, [&](int row, float scale) {
            if (first + row < args.queries)
                st_global_4(route_row(args.route, scales, first + row, sizeof(float)),
                            bits_from_float(scale));
        });
    } else {
        UNROLL
        for (int j = 0; j < WIDTH / 8; j += 2) { /* two blocks of 8 columns at once */
            const float *e = o + 4 * j;
            const uint32_t r[4] = {pack_bf16(e[0], e[1]), pack_bf16(e[2], e[3]), pack_bf16(e[4], e[5]),
                                   pack_bf16(e[6], e[7])};
            stmatrix_x4(tile + j / 8 * ROWS * 128 + tile_offset(warp_row + (lane & 15), j % 8 + (lane >> 4)),
                        r);
        }
    }
    if (args.route.state)
        return args.o_scale ? store_routed<WIDTH / 16>(args, tile, warp_row, column, row0)
                            : store_routed<WIDTH / 8>(args, tile, warp_row, column * (int)sizeof(bf16), row0);
    fence_proxy_async();
    bar_sync(barrier, WARPGROUP);
    if (thread_index() % WARPGROUP == 0) {
        UNROLL
        for (int s = 0; s < SLABS; s++)
            if (s == 0 || !args.o_scale) /* e4m3: 128 bytes are all of a row */
                tma_store_2d(&args.o, tile + s * ROWS * 128, column + s * SLAB, row0);
        bulk_commit();
        bulk_wait_read<0>();
    }
}

/* ---- one warpgroup ---------------------------------------------------------------------------------------------------- */

enum { SHARED_STAGES = 3 /* by K and V */ };

struct alignas(1024) attention_sm90_64x128_shared {
    bf16 q[ROWS * WIDTH]; /* at the end O */
    bf16 stage[SHARED_STAGES][KEYS * WIDTH];
    uint64_t q_full, full[SHARED_STAGES];
    shared<float> unread[WARPGROUP];
};
static_assert(sizeof(attention_sm90_64x128_shared) == ATTENTION_SM90_64X128_SHARED, "args.h");

/* Tiles in the order of use, K0 K1 V0 K2 V1 .. which is also that of the stages. */
struct key_stream {
    ring<SHARED_STAGES> to;
    int k, v; /* the next */
};
DEVICE void load_next(key_stream &s, const attention_sm90_args &args, const block_work &w)
{
    const bool is_k = s.k < w.tiles && s.k <= s.v + 1;
    if (!is_k && s.v == w.tiles) return;
    load_keys(s.to, is_k ? &args.k : &args.v, w, is_k ? s.k : s.v);
    s.to.next();
    is_k ? s.k++ : s.v++;
}

/* When all four warps are here, the oldest tile has been used: its stage takes the next one. */
DEVICE void refill(key_stream &s, const attention_sm90_args &args, const block_work &w)
{
    sync_threads();
    if (thread_index() == 0) load_next(s, args, w);
}

KERNEL(attention_sm90_64x128, attention_sm90_args, ATTENTION_SM90_64X128_THREADS, 2)
{
    SHARED(attention_sm90_64x128_shared, s);
    const uint32_t q = shared_address(s.q), q_full = shared_address(&s.q_full);
    const bool leader = thread_index() == 0;
    ring<SHARED_STAGES> at(s.stage, s.full, nullptr);
    key_stream next = {at, 0, 0};
    if (leader) {
        if (shared_address(&s) % 1024) trap(); /* the swizzle is a function of the address */
        prefetch_maps(args);
        mbar_init(q_full, 1);
        for (int i = 0; i < SHARED_STAGES; i++) mbar_init(at.full + 8 * i, 1);
        fence_mbar_init();
    }
    sync_threads();
    grid_wait();
    grid_launch_dependents();
    const int block = args.causal ? grid_x() - 1 - block_x() : block_x(); /* the longest rows first */
    const block_work w = work_of(args, block_y(), block * ROWS, 1);
    if (leader) {
        mbar_arrive_expect(q_full, Q_BYTES);
        load_rows<ROWS>(q, &args.q, q_full, w.q_column, w.row0);
        for (int i = 0; i < SHARED_STAGES; i++) load_next(next, args, w);
    }

    row_state rows;
    float d[KEYS / 2], o[WIDTH / 2], keep[2];
    uint32_t p[KEYS / 16][4];
    mbar_wait(q_full, 0);
    at.wait_full();
    start_scores(d, q, at.tile());
    at.next();
    wgmma_wait<0>();
    refill(next, args, w);
    softmax_tile(d, rows, keep, args, w.keys, w.row0, 0);
    pack_probabilities(p, d);
    for (int tile = 1; tile < w.tiles; tile++) {
        at.wait_full();
        start_scores(d, q, at.tile());
        at.next();
        at.wait_full();
        start_values(o, p, at.tile(), tile > 1);
        at.next();
        wgmma_wait<1>();
        refill(next, args, w);
        softmax_tile(d, rows, keep, args, w.keys, w.row0, tile * KEYS);
        finish_softmax(s.unread[thread_index()], rows);
        wgmma_wait<0>();
        refill(next, args, w);
        scale_rows(o, keep);
        pack_probabilities(p, d);
    }
    at.wait_full();
    clear_missing(at.tile(), args, w, thread_index(), BARRIER_ROWS);
    start_values(o, p, at.tile(), w.tiles > 1);
    wgmma_wait<0>();
    store_rows(o, rows, args, q, BARRIER_ROWS, w.q_column, w.row0);
}

/* ---- producer and consumers ------------------------------------------------------------------------------------------- */

enum { STAGES = 2 };

struct alignas(1024) attention_sm90_128x128_shared {
    bf16 q[CONSUMERS][ROWS * WIDTH]; /* at the end O */
    bf16 k[STAGES][KEYS * WIDTH], v[STAGES][KEYS * WIDTH];
    uint64_t q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    shared<float> unread[CONSUMERS * WARPGROUP];
};
static_assert(sizeof(attention_sm90_128x128_shared) == ATTENTION_SM90_128X128_SHARED, "args.h");

/* Blocks from args.whole on are halves: one consumer. */
DEVICE int consumers_of(const attention_sm90_args &args)
{
    return block_x() < args.whole ? (int)CONSUMERS : 1;
}

DEVICE block_work work_of_block(const attention_sm90_args &args)
{
    const int rows = CONSUMERS * ROWS, half = block_x() - args.whole,
              block = half < 0 ? block_x() : args.whole + half / 2, per_head = ceil_div(args.queries, rows),
              at = block % per_head, row0 = (args.causal ? per_head - 1 - at : at) * rows;
    return work_of(args, block / per_head, half < 0 ? row0 : row0 + half % 2 * ROWS, consumers_of(args));
}

/* When the stage is free. */
DEVICE void load_when_free(ring<STAGES> &to, const tensor_map *map, const block_work &w, int tile)
{
    mbar_wait(to.empty + 8 * to.stage, to.phase ^ 1);
    load_keys(to, map, w, tile);
    to.next();
}

DEVICE void produce(const attention_sm90_args &args, attention_sm90_128x128_shared &s, const block_work &w)
{
    ring<STAGES> k(s.k, s.k_full, s.k_empty), v(s.v, s.v_full, s.v_empty);
    const uint32_t q = shared_address(s.q), q_full = shared_address(&s.q_full);
    mbar_arrive_expect(q_full, w.consumers * Q_BYTES);
    for (int c = 0; c < w.consumers; c++)
        load_rows<ROWS>(q + c * Q_BYTES, &args.q, q_full, w.q_column, w.row0 + c * ROWS);
    for (int tile = 0; tile <= w.tiles; tile++) { /* in the order of use */
        if (tile < w.tiles) load_when_free(k, &args.k, w, tile);
        if (tile > 0) load_when_free(v, &args.v, w, tile - 1);
    }
}

/* This warp is done with the stage. */
DEVICE void release(ring<STAGES> &of)
{
    if (lane_index() == 0) mbar_arrive(of.empty + 8 * of.stage);
    of.next();
}

DEVICE void consume(const attention_sm90_args &args, attention_sm90_128x128_shared &s, const block_work &w,
                    int consumer)
{
    ring<STAGES> k(s.k, s.k_full, s.k_empty), v(s.v, s.v_full, s.v_empty);
    const uint32_t q = shared_address(s.q[consumer]);
    const int row0 = w.row0 + consumer * ROWS, turn = BARRIER_TURN + consumer,
              other_turn = BARRIER_TURN + 1 - consumer;
    const bool turns = w.consumers == CONSUMERS;
    row_state rows;
    float d[KEYS / 2], o[WIDTH / 2], keep[2];
    uint32_t p[KEYS / 16][4];
    mbar_wait(shared_address(&s.q_full), 0);
    k.wait_full();
    start_scores(d, q, k.tile());
    wgmma_wait<0>();
    release(k);
    softmax_tile(d, rows, keep, args, w.keys, row0, 0);
    pack_probabilities(p, d);
    if (turns && consumer == 1 && w.tiles > 1) bar_arrive(other_turn, CONSUMERS * WARPGROUP); /* 0 begins */
    for (int tile = 1; tile < w.tiles; tile++) {
        k.wait_full();
        v.wait_full();
        if (turns) bar_sync(turn, CONSUMERS * WARPGROUP);
        start_scores(d, q, k.tile());
        start_values(o, p, v.tile(), tile > 1);
        if (turns && (consumer == 0 || tile + 1 < w.tiles)) bar_arrive(other_turn, CONSUMERS * WARPGROUP);
        wgmma_wait<1>();
        release(k);
        softmax_tile(d, rows, keep, args, w.keys, row0, tile * KEYS);
        finish_softmax(s.unread[thread_index() - WARPGROUP], rows);
        wgmma_wait<0>();
        release(v);
        scale_rows(o, keep);
        pack_probabilities(p, d);
    }
    v.wait_full();
    clear_missing(v.tile(), args, w, thread_index() - WARPGROUP, BARRIER_CLEAR);
    start_values(o, p, v.tile(), w.tiles > 1);
    wgmma_wait<0>();
    store_rows(o, rows, args, q, BARRIER_ROWS + consumer, w.q_column, row0);
}

KERNEL(attention_sm90_128x128, attention_sm90_args, ATTENTION_SM90_128X128_THREADS, 1)
{
    SHARED(attention_sm90_128x128_shared, s);
    if (thread_index() == 0) {
        if (shared_address(&s) % 1024) trap(); /* the swizzle is a function of the address */
        prefetch_maps(args);
        mbar_init(shared_address(&s.q_full), 1);
        for (int i = 0; i < STAGES; i++) {
            mbar_init(shared_address(&s.k_full[i]), 1);
            mbar_init(shared_address(&s.v_full[i]), 1);
            mbar_init(shared_address(&s.k_empty[i]), consumers_of(args) * 4); /* one arrival per warp */
            mbar_init(shared_address(&s.v_empty[i]), consumers_of(args) * 4);
        }
        fence_mbar_init();
    }
    sync_threads();
    grid_wait();
    grid_launch_dependents();
    const block_work w = work_of_block(args);
    if (thread_index() >= (1 + w.consumers) * WARPGROUP) return;
    if (thread_index() < WARPGROUP) {
        registers_decrease<24>();
        if (thread_index() == 0) produce(args, s, w);
    } else {
        registers_increase<240>();
        consume(args, s, w, thread_index() / WARPGROUP - 1);
    }
}
