/* attention_wide_sm80.cu: flash attention with mma.sync for wide heads, any multiple of 64 up to 512: the VAE's single head.
 *
 * A block of 8 warps owns 64 queries. O (64 x 512 in f32) is spread over all their registers, so K and V stream through shared memory
 * in slabs of 64 keys x 64 columns: for each 64 keys first K's slabs, which add up to the scores, then V's, each of which completes 64
 * columns of O. Three slabs are in flight; one barrier per slab. Warp w has rows 16 (w % 4).., and of every slab's result the half
 * w / 4: 32 keys of the scores, 32 columns of O. So a row's softmax meets across two warps, and P passes through shared memory.
 * Nothing of the size queries x keys is ever stored. Slabs of Q, 8 KiB each, stay in shared memory. */
#include "flash.inc"

enum {
    ROWS = 64,
    KEYS = 64,
    SLABS_MAX = ATTENTION_WIDTH_MAX / SLAB,
    STAGES = 3,
    STEPS = SLAB / 16,
    THREADS = ATTENTION_WIDE_SM80_THREADS,
    SLAB_BYTES = 64 * 128
};

struct alignas(1024) attention_wide_sm80_shared {
    bf16 q[SLABS_MAX][ROWS * SLAB]; /* at the end O */
    bf16 stage[STAGES][KEYS * SLAB];
    bf16 p[ROWS * KEYS];
    shared<float> row[2][ROWS]; /* what the two halves of a row tell each other */
};
static_assert(sizeof(attention_wide_sm80_shared) == ATTENTION_WIDE_SM80_SHARED, "args.h");

/* The slabs of K and V in the order of use. */
struct slab_stream {
    const bf16 *k, *v;
    int slabs, keys, key0, next; /* the next to be copied: slab `next` of K, or next - slabs of V, at key0 */
    uint32_t stages;
    int fill, use; /* stages */
};

DEVICE void stream_copy(slab_stream &s, const flash_args &args, int end)
{
    if (s.key0 < end) {
        const bool is_v = s.next >= s.slabs;
        copy_slab<KEYS, THREADS>(s.stages + s.fill * SLAB_BYTES,
                                 is_v ? s.v + (s.next - s.slabs) * SLAB : s.k + s.next * SLAB,
                                 is_v ? args.ldv : args.ldk, s.key0, s.keys);
        if (++s.next == 2 * s.slabs) {
            s.next = 0;
            s.key0 += KEYS;
        }
    }
    cp_async_commit(); /* also when empty: the count of groups stays that of slabs */
    s.fill = s.fill + 1 == STAGES ? 0 : s.fill + 1;
}

/* The next slab to compute with; starts the copy of the one two further. */
DEVICE uint32_t stream_take(slab_stream &s, const flash_args &args, int end)
{
    cp_async_wait<STAGES - 2>(); /* my copies of this slab are there ... */
    sync_threads(); /* ... and everyone's; and all are done with the one before, which is filled next */
    stream_copy(s, args, end);
    const uint32_t slab = s.stages + s.use * SLAB_BYTES;
    s.use = s.use + 1 == STAGES ? 0 : s.use + 1;
    return slab;
}

/* value becomes that of the other warp of these rows. Has one barrier, between writing and reading. */
DEVICE void exchange(shared<float> (&row)[2][ROWS], int half_of_row, int first, float (&value)[2])
{
    const int g = lane_index() / 4;
    if (lane_index() % 4 == 0) {
        row[half_of_row][first + g] = value[0];
        row[half_of_row][first + g + 8] = value[1];
    }
    sync_threads();
    value[0] = row[1 - half_of_row][first + g];
    value[1] = row[1 - half_of_row][first + g + 8];
}

KERNEL(attention_wide_sm80, flash_args, ATTENTION_WIDE_SM80_THREADS, 1)
{
    SHARED(attention_wide_sm80_shared, s);
    const int row0 = (args.causal ? grid_x() - 1 - block_x() : block_x()) * ROWS;
    const int slabs = args.head_dim / SLAB, head = block_y(), kv_head = head / args.group;
    const int first = warp_index() % 4 * 16, side = warp_index() / 4, lane = lane_index();
    const bf16 *q_matrix = static_cast<const bf16 *>(args.q) + (int64_t)head * args.head_dim;
    slab_stream stream = {static_cast<const bf16 *>(args.k) + (int64_t)kv_head * args.head_dim,
                          static_cast<const bf16 *>(args.v) + (int64_t)kv_head * args.head_dim,
                          slabs,
                          0,
                          0,
                          0,
                          shared_address(s.stage),
                          0,
                          0};
    const uint32_t q_slabs = shared_address(s.q), p_tile = shared_address(s.p);

    grid_wait();
    grid_launch_dependents();
    const int count = stream.keys = flash_keys(args),
              end = args.causal && row0 + ROWS < count ? row0 + ROWS : count;
    for (int i = 0; i < slabs; i++)
        copy_slab<ROWS, THREADS>(q_slabs + i * SLAB_BYTES, q_matrix + i * SLAB, args.ldq, row0, args.queries);
    for (int i = 0; i < STAGES - 1; i++) stream_copy(stream, args, end); /* the first takes Q along */

    float o[SLABS_MAX][1][4][4] = {}, top[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
    for (int key0 = 0; key0 < end; key0 += KEYS) {
        float d[1][4][4] = {}; /* scores of 16 rows, keys key0 + 32 side.. */
        for (int i = 0; i < slabs; i++) {
            const uint32_t k_slab = stream_take(stream, args, end);
            UNROLL
            for (int kk = 0; kk < STEPS; kk++) {
                uint32_t q[1][4], k[4][2];
                load_a(q, q_slabs + i * SLAB_BYTES, first, kk);
                load_b(k, k_slab, 32 * side, kk);
                mma_tile_bf16(d, q, k);
            }
        }

        if (key0 + KEYS > count || (args.causal && key0 + KEYS > row0 + 1))
            mask_scores(d[0], row0 + first, key0 + 32 * side, count, args.causal);
        float most[2] = {row_max(d[0], 0), row_max(d[0], 1)}, other[2] = {most[0], most[1]};
        exchange(s.row, side, first, other);
        UNROLL
        for (int half = 0; half < 2; half++) {
            const float before = top[half];
            top[half] = fmaxf(before, fmaxf(most[half], other[half]) * args.scale_log2);
            const float keep = exp2_approx(before - top[half]); /* first tile: 0 */
            sum[half] = sum[half] * keep + row_exp2(d[0], half, args.scale_log2, top[half]);
            UNROLL
            for (int i = 0; i < SLABS_MAX; i++) row_scale(o[i][0], half, keep);
            UNROLL
            for (int j = 0; j < 4; j++)
                st_shared_4(p_tile + tile_offset(first + 8 * half + lane / 4, 4 * side + j) + 4 * (lane % 4),
                            pack_bf16(d[0][j][2 * half], d[0][j][2 * half + 1]));
        }
        sync_threads();
        uint32_t p[KEYS / 16][1][4];
        UNROLL
        for (int kk = 0; kk < KEYS / 16; kk++) load_a(p[kk], p_tile, first, kk);

        UNROLL
        for (int i = 0; i < SLABS_MAX; i++) {
            if (i < slabs) {
                const uint32_t v_slab = stream_take(stream, args, end);
                UNROLL
                for (int kk = 0; kk < KEYS / 16; kk++) {
                    uint32_t v[4][2];
                    load_b_transposed(v, v_slab, 16 * kk, 4 * side);
                    mma_tile_bf16(o[i], p[kk], v);
                }
            }
        }
    }

    float total[2] = {quad_sum(sum[0]), quad_sum(sum[1])}, other[2] = {total[0], total[1]};
    exchange(s.row, side, first, other); /* its barrier: nobody reads Q any more */
    UNROLL
    for (int half = 0; half < 2; half++) {
        const float factor = rcp_approx(total[half] + other[half]);
        UNROLL
        for (int i = 0; i < SLABS_MAX; i++) {
            if (i < slabs) {
                UNROLL
                for (int j = 0; j < 4; j++)
                    st_shared_4(q_slabs + i * SLAB_BYTES +
                                    tile_offset(first + 8 * half + lane / 4, 4 * side + j) + 4 * (lane % 4),
                                pack_bf16(o[i][0][j][2 * half] * factor, o[i][0][j][2 * half + 1] * factor));
            }
        }
    }
    sync_threads();
    const int column = head * args.head_dim + lane % 8 * CHUNK;
    const int64_t row_bytes = (int64_t)sizeof(bf16) * args.ldo;
    for (int i = 0; i < slabs; i++) {
        UNROLL
        for (int r = 0; r < 2; r++) { /* 8 rows per warp, 4 at a time */
            const int row = 8 * warp_index() + 4 * r + lane / 8;
            const u32x4 v = ld_shared_16(q_slabs + i * SLAB_BYTES + tile_offset(row, lane % 8));
            if (row0 + row < args.queries)
                st_global_16(route_row(args.route, args.o, row0 + row, row_bytes) +
                                 (column + i * SLAB) * (int)sizeof(bf16),
                             v);
        }
    }
}
