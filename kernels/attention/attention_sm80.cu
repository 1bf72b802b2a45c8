/* attention_sm80.cu: flash attention with mma.sync for heads of width 128, for sm_80 and everything after it.
 *
 * A block owns 64 or 128 queries of one head and walks over the keys, 64 or 48 at a time: scores = Q K^T, softmax of what has been
 * seen (flash.inc), O += P V. Each of 4 warps owns 16 or 32 rows entirely, so that rows meet across the 4 lanes of a quad only. The
 * scores' fragments, packed to bf16, are the operand a of P V as they are: probabilities never leave the registers.
 *   128x48  32 rows per warp halve the reads of K and V from shared memory, which bound A100 otherwise. Q stays in shared memory:
 *           O (128 registers), scores (48) and Q (64) are too many. 64 keys fit for sm_80 to sm_89, but spill on later chips.
 *   64x64   16 rows per warp, Q in registers (32; O 64, scores 32); more and smaller tiles.
 * K and V have one buffer each: V arrives during Q K^T, the next K during the softmax and P V, and another block of the same
 * multiprocessor fills the gaps. Beyond the last key and query the copies fill zeros; only tiles that hold an edge are masked. */
#include "flash.inc"

enum { WIDTH = 128, SLABS = WIDTH / SLAB, STEPS = SLAB / 16, WARPS = 4, THREADS = ATTENTION_SM80_THREADS };

template <int mi, int keys> /* 16-row instructions per warp; keys of a tile */
struct alignas(1024) attention_sm80_shared {
    bf16 q[SLABS][WARPS * 16 * mi * SLAB]; /* at the end O */
    bf16 k[SLABS][keys * SLAB], v[SLABS][keys * SLAB];
};
static_assert(sizeof(attention_sm80_shared<1, 64>) == ATTENTION_SM80_64X64_SHARED, "args.h");
static_assert(sizeof(attention_sm80_shared<2, 48>) == ATTENTION_SM80_128X48_SHARED, "args.h");

template <int rows>
DEVICE void copy_tile(bf16 (&tile)[SLABS][rows * SLAB], const bf16 *matrix, int ld, int row0, int total)
{
    UNROLL
    for (int s = 0; s < SLABS; s++)
        copy_slab<rows, THREADS>(shared_address(tile[s]), matrix + s * SLAB, ld, row0, total);
}

/* The warp's scores: 16 mi rows x keys. `q` holds all fragments of the rows, or room for one step's. */
template <int mi, int keys, bool held>
DEVICE void score_tile(float (&d)[mi][keys / 8][4], uint32_t (&q)[held ? SLABS * STEPS : 1][mi][4],
                       uint32_t q_tile, uint32_t q_slab_bytes, uint32_t k_tile)
{
    UNROLL
    for (int step = 0; step < SLABS * STEPS; step++) {
        const int slab = step / STEPS, kk = step % STEPS;
        uint32_t k[keys / 8][2];
        if (!held) load_a(q[0], q_tile + slab * q_slab_bytes, warp_index() * 16 * mi, kk);
        load_b(k, k_tile + slab * keys * 128, 0, kk);
        mma_tile_bf16(d, q[held ? step : 0], k);
    }
}

/* Scores become probabilities relative to the row's largest score so far; what was summed before is scaled to match. */
template <int mi, int keys>
DEVICE void softmax_tile(float (&d)[mi][keys / 8][4], float (&o)[SLABS][mi][SLAB / 8][4], float (&top)[mi][2],
                         float (&sum)[mi][2], float scale)
{
    UNROLL
    for (int i = 0; i < mi; i++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            const float before = top[i][half];
            top[i][half] = fmaxf(before, row_max(d[i], half) * scale);
            const float keep = exp2_approx(before - top[i][half]); /* first tile: 0 */
            sum[i][half] = sum[i][half] * keep + row_exp2(d[i], half, scale, top[i][half]);
            UNROLL
            for (int slab = 0; slab < SLABS; slab++) row_scale(o[slab][i], half, keep);
        }
    }
}

/* o += p v, p in place: columns 8 j.. of a score fragment are the keys that operand a wants there. */
template <int mi, int keys>
DEVICE void add_values(float (&o)[SLABS][mi][SLAB / 8][4], const float (&p)[mi][keys / 8][4], uint32_t v_tile)
{
    UNROLL
    for (int step = 0; step < keys / 16; step++) {
        uint32_t a[mi][4];
        UNROLL
        for (int i = 0; i < mi; i++) {
            UNROLL
            for (int r = 0; r < 4; r++) {
                const float(&pair)[4] = p[i][2 * step + r / 2];
                a[i][r] = pack_bf16(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
            }
        }
        UNROLL
        for (int slab = 0; slab < SLABS; slab++) {
            uint32_t v[SLAB / 8][2];
            load_b_transposed(v, v_tile + slab * keys * 128, 16 * step, 0);
            mma_tile_bf16(o[slab], a, v);
        }
    }
}

/* The warp's rows of O, through the shared memory of its rows of Q, to global memory in rows of 256 bytes. */
template <int mi>
DEVICE void store_rows(const float (&o)[SLABS][mi][SLAB / 8][4], const float (&sum)[mi][2], uint32_t q_tile,
                       uint32_t q_slab_bytes, const flash_args &args, int row0)
{
    const int lane = lane_index(), first = warp_index() * 16 * mi;
    UNROLL
    for (int i = 0; i < mi; i++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            const float factor = rcp_approx(quad_sum(sum[i][half]));
            const int row = first + 16 * i + 8 * half + lane / 4;
            UNROLL
            for (int j = 0; j < WIDTH / 8; j++) {
                const float(&pair)[4] = o[j / 8][i][j % 8];
                st_shared_4(q_tile + j / 8 * q_slab_bytes + tile_offset(row, j % 8) + 4 * (lane % 4),
                            pack_bf16(pair[2 * half] * factor, pair[2 * half + 1] * factor));
            }
        }
    }
    sync_warp();
    /* The indices are made anew in each pass: kept, they cost registers that the main loop needs. */
    UNROLL_BY(4)
    for (int i = 0; i < 8 * mi; i++) {
        const int chunk = lane_index() % 16, row = warp_index() * 16 * mi + 2 * i + lane_index() / 16;
        const u32x4 v = ld_shared_16(q_tile + chunk / 8 * q_slab_bytes + tile_offset(row, chunk % 8));
        if (row0 + row >= args.queries) continue;
        char *to = route_row(args.route, args.o, row0 + row, (int64_t)sizeof(bf16) * args.ldo);
        st_global_16(to + (block_y() * WIDTH + chunk * CHUNK) * (int)sizeof(bf16), v);
    }
}

template <int mi, int keys>
DEVICE void attention_sm80(const flash_args &args)
{
    constexpr int ROWS = WARPS * 16 * mi;
    constexpr bool held = mi == 1;
    using memory = attention_sm80_shared<mi, keys>;
    SHARED(memory, s);
    const int row0 = (args.causal ? grid_x() - 1 - block_x() : block_x()) * ROWS; /* the longest rows first */
    const int head = block_y(), kv_head = head / args.group;
    const bf16 *q_matrix = static_cast<const bf16 *>(args.q) + (int64_t)head * WIDTH,
               *k_matrix = static_cast<const bf16 *>(args.k) + (int64_t)kv_head * WIDTH,
               *v_matrix = static_cast<const bf16 *>(args.v) + (int64_t)kv_head * WIDTH;
    const uint32_t q_tile = shared_address(s.q), k_tile = shared_address(s.k), v_tile = shared_address(s.v);

    grid_wait();
    grid_launch_dependents();
    const int count = flash_keys(args), end = args.causal && row0 + ROWS < count ? row0 + ROWS : count;
    copy_tile<ROWS>(s.q, q_matrix, args.ldq, row0, args.queries);
    copy_tile<keys>(s.k, k_matrix, args.ldk, 0, count);
    cp_async_commit();
    float o[SLABS][mi][SLAB / 8][4] = {}, top[mi][2], sum[mi][2] = {};
    UNROLL
    for (int i = 0; i < mi; i++) top[i][0] = top[i][1] = minus_infinity();
    cp_async_wait<0>();
    sync_threads(); /* Q and the first K are there */
    uint32_t q[held ? SLABS * STEPS : 1][mi][4];
    if (held) {
        UNROLL
        for (int step = 0; step < SLABS * STEPS; step++)
            load_a(q[held ? step : 0], q_tile + step / STEPS * (uint32_t)sizeof s.q[0],
                   warp_index() * 16 * mi, step % STEPS);
    }

    for (int key0 = 0; key0 < end; key0 += keys) {
        copy_tile<keys>(s.v, v_matrix, args.ldv, key0, count);
        cp_async_commit();
        float d[mi][keys / 8][4] = {};
        score_tile<mi, keys, held>(d, q, q_tile, sizeof s.q[0], k_tile);
        cp_async_wait<0>();
        sync_threads(); /* V is there, and K is free */
        if (key0 + keys < end) {
            copy_tile<keys>(s.k, k_matrix, args.ldk, key0 + keys, count);
            cp_async_commit();
        }
        if (key0 + keys > count || (args.causal && key0 + keys > row0 + 1)) {
            UNROLL
            for (int i = 0; i < mi; i++)
                mask_scores(d[i], row0 + (warp_index() * mi + i) * 16, key0, count, args.causal);
        }
        softmax_tile<mi, keys>(d, o, top, sum, args.scale_log2);
        add_values<mi, keys>(o, d, v_tile);
        cp_async_wait<0>();
        sync_threads(); /* the next K is there, and V is free */
    }
    store_rows(o, sum, q_tile, sizeof s.q[0], args, row0);
}

KERNEL(attention_sm80_128x48, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<2, 48>(args);
}

KERNEL(attention_sm80_64x64, flash_args, ATTENTION_SM80_THREADS, 2)
{
    attention_sm80<1, 64>(args);
}
