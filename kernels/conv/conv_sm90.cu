/* conv_sm90.cu: convolution with stride 1 as a product with wgmma, for sm_90a.
 *
 * The product is that of conv_sm80.cu, the structure that of gemm_sm90.h: persistent blocks, a producer that fills a ring of stages,
 * two consumers. A tile is a patch of 16 x 8 pixels by BN couts. A k block is 64 channels of one tap, so its 128 rows of x are a box
 * of the image, moved by the tap: the copy engine reads zeros outside of the image, and that is the padding; channels beyond cin are
 * outside too. Each consumer has 4 of the patch's 8 rows and writes them out 64 couts at a time, clipped to the image by the copy
 * engine, which brings the residual to the same place beforehand.
 * Enlarged images: a patch has pixels of y two apart in both directions. At any tap these lie side by side in x, so their box is as
 * dense as ever; a patch of even and one of odd rows and columns differ in where a tap moves it. */
#include "../device/device.h"
#include "moments.h"
#include "../device/elements.h"
#include "../device/ptx.h"
#include "../device/tile.h"

enum { BM = 128, BK = 64, ROWS = 64 /* per consumer */, CONSUMERS = 2, OUT_COLS = 64, OUT_BUFFERS = 2 };
enum { PATCH_W = 16, PATCH_H = 8 };
enum { GROUP = 8 };            /* patches in a row that share their w */
enum { BARRIER_CONSUMER = 1 }; /* named barrier of consumer c: BARRIER_CONSUMER + c */
enum { OUT_BYTES = ROWS * OUT_COLS * 2 };

template <int BN, int stages>
struct alignas(1024) conv_sm90_shared {
    bf16 x[stages][BM * BK], w[stages][BN * BK];
    bf16 out[CONSUMERS][OUT_BUFFERS][ROWS * OUT_COLS];
    uint64_t full[stages], empty[stages];
    uint64_t residual[CONSUMERS][OUT_BUFFERS]; /* the residual is in out */
};

/* Where in the ring of stages k block number i of this thread's count lies. */
template <int stages>
struct ring {
    int stage = 0;
    uint32_t phase = 0;
    DEVICE_METHOD void next()
    {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

struct patch {
    int row, col, cout; /* the first of the patch; enlarged: counting only its image's */
    int image, odd_row, odd_col;
    int number; /* of the patch */
};

template <int BN>
DEVICE int count_tiles(const conv_sm90_args &args)
{
    return (ceil_div(args.rows, (int)PATCH_H) * ceil_div(args.ow, (int)PATCH_W) << 2 * args.up) *
           ceil_div(args.cout, BN);
}

template <int BN>
DEVICE patch patch_of(const conv_sm90_args &args, int tile)
{
    const int across = ceil_div(args.ow, (int)PATCH_W), down = ceil_div(args.rows, (int)PATCH_H);
    const tile_position at = grouped_tile(tile, across * down << 2 * args.up, ceil_div(args.cout, BN), GROUP);
    const int place = at.row >> 2 * args.up; /* the four images of a place one after the other */
    patch p = {place / across * PATCH_H, place % across * PATCH_W, at.col * BN, 0, 0, 0, at.row};
    if (args.up) p.image = at.row & 3, p.odd_row = p.image >> 1, p.odd_col = p.image & 1;
    return p;
}

template <int BN, int stages>
DEVICE void produce(const conv_sm90_args &args, conv_sm90_shared<BN, stages> &s)
{
    const uint32_t x = shared_address(s.x), w = shared_address(s.w), full = shared_address(s.full),
                   empty = shared_address(s.empty);
    const int tiles = count_tiles<BN>(args);
    ring<stages> at;
    for (int tile = block_x(); tile < tiles; tile += grid_x()) {
        const patch p = patch_of<BN>(args, tile);
        for (int tap = 0; tap < args.ksize * args.ksize; tap++) {
            const int row = p.row + ((p.odd_row + args.top + tap / args.ksize) >> args.up),
                      col = p.col + ((p.odd_col + args.left + tap % args.ksize) >> args.up);
            for (int channel = 0; channel < args.cin; channel += BK, at.next()) {
                mbar_wait(empty + 8 * at.stage, at.phase ^ 1);
                mbar_arrive_expect(full + 8 * at.stage, sizeof s.x[0] + sizeof s.w[0]);
                tma_load_3d(x + at.stage * sizeof s.x[0], &args.x, full + 8 * at.stage, channel, col, row);
                tma_load_3d(w + at.stage * sizeof s.w[0], &args.w, full + 8 * at.stage, channel, tap, p.cout);
            }
        }
    }
}

/* What a consumer writes out through, and where to. */
struct exit_way {
    uint32_t out, arrived; /* its buffers, and their mbarriers */
    uint32_t phase;        /* of the residual's next arrivals, one bit per buffer */
    int consumer;
    bool leader; /* the thread that commands the copy engine */
};

template <int BN>
DEVICE void load_residual(const conv_sm90_args &args, const exit_way &e, const patch &p, int chunk)
{
    const int buffer = chunk % OUT_BUFFERS;
    mbar_arrive_expect(e.arrived + 8 * buffer, OUT_BYTES);
    tma_load_3d(e.out + buffer * OUT_BYTES, &args.residual[p.image], e.arrived + 8 * buffer,
                p.cout + chunk * OUT_COLS, p.col, p.row);
}

/* Moments of a consumer's 64 pixels x 64 couts of y in `tile`; its warps have 16 couts each, lanes a column of the patch. */
DEVICE void chunk_moments(const conv_sm90_args &args, const exit_way &e, const patch &p, uint32_t tile,
                          int cout)
{
    const int lane = lane_index(), chunk = 2 * (warp_index() % 4) + (lane >> 3 & 1),
              col = (lane & 7) + 8 * (lane >> 4);
    const int rows = args.rows - p.row < 4 ? args.rows - p.row : 4,
              cols = args.ow - p.col < 16 ? args.ow - p.col : 16;
    const int first = cout + 8 * chunk, number = CONSUMERS * p.number + e.consumer;
    const int64_t at = (int64_t)number * (args.cout / 4) + first / 4;
    store_moments<23, 4>(
        first < args.cout ? args.moments + 2 * at : nullptr, first ? nullptr : args.counts + number, tile,
        rows > 0 ? rows * cols : 0, [&](int i) { return tile_offset(16 * i + col, chunk); },
        [&](int i) { return i < rows && col < cols; });
}

/* This consumer's 64 pixels x BN of y, in chunks of 64 couts through shared memory. p.row: its own first. */
template <int BN>
DEVICE void store_rows(const float (&d)[BN / 2], const conv_sm90_args &args, exit_way &e, const patch &p)
{
    const int lane = lane_index(), warp = warp_index() % 4;
    const int row = 16 * warp + (lane & 15); /* whose address this lane gives to ldmatrix and stmatrix */
    UNROLL
    for (int chunk = 0; chunk < BN / OUT_COLS; chunk++) {
        const int buffer = chunk % OUT_BUFFERS;
        const uint32_t tile = e.out + buffer * OUT_BYTES;
        if (args.has_residual) {
            mbar_wait(e.arrived + 8 * buffer, e.phase >> buffer & 1);
            e.phase ^= 1u << buffer;
        } else {
            if (e.leader && chunk)
                bulk_wait_read<OUT_BUFFERS - 1>(); /* the buffer's last contents have left */
            else if (e.leader)
                bulk_wait_read<0>(); /* the last tile's, which had all of this product's time */
            bar_sync(BARRIER_CONSUMER + e.consumer, 128);
        }
        UNROLL
        for (int j = 0; j < OUT_COLS / 8; j += 2) { /* two blocks of 8 columns at once */
            const float *f = d + (chunk * (OUT_COLS / 8) + j) * 4;
            const uint32_t at = tile + tile_offset(row, j + (lane >> 4));
            uint32_t r[4] = {};
            if (args.has_residual) {
                ldmatrix_x4(r, at);
                sync_warp();
            }
            UNROLL
            for (int b = 0; b < 2; b++) {
                const int cout = p.cout + chunk * OUT_COLS + 8 * (j + b);
                float bias[2] = {};
                if (args.bias && cout < args.cout) {
                    const u32x2 two = ld_global_8(args.bias + cout + 2 * (lane % 4));
                    bias[0] = float_from_bits(two.x), bias[1] = float_from_bits(two.y);
                }
                UNROLL
                for (int half = 0; half < 2; half++) {
                    const float *pair = f + 4 * b + 2 * half;
                    uint32_t &both = r[2 * b + half];
                    both = pack_bf16(pair[0] + bias[0] + bf16_low(both), pair[1] + bias[1] + bf16_high(both));
                }
            }
            stmatrix_x4(at, r);
        }
        fence_proxy_async();
        bar_sync(BARRIER_CONSUMER + e.consumer, 128);
        if (args.moments) {
            chunk_moments(args, e, p, tile, p.cout + chunk * OUT_COLS);
            bar_sync(BARRIER_CONSUMER + e.consumer,
                     128); /* all have read what the next residual overwrites */
        }
        if (e.leader) {
            tma_store_3d(&args.y[p.image], tile, p.cout + chunk * OUT_COLS, p.col, p.row);
            bulk_commit();
            if (args.has_residual && chunk + OUT_BUFFERS < BN / OUT_COLS) {
                bulk_wait_read<0>();
                load_residual<BN>(args, e, p, chunk + OUT_BUFFERS);
            }
        }
    }
}

template <int BN, int stages>
DEVICE void consume(const conv_sm90_args &args, conv_sm90_shared<BN, stages> &s, int consumer)
{
    const uint32_t x = shared_address(s.x) + consumer * ROWS * BK * sizeof(bf16), w = shared_address(s.w);
    const uint32_t full = shared_address(s.full), empty = shared_address(s.empty);
    const int tiles = count_tiles<BN>(args), blocks = args.ksize * args.ksize * ceil_div(args.cin, (int)BK);
    exit_way e = {shared_address(s.out[consumer]), shared_address(s.residual[consumer]), 0, consumer,
                  thread_index() % 128 == 0};
    ring<stages> at;
    for (int tile = block_x(); tile < tiles; tile += grid_x()) {
        patch p = patch_of<BN>(args, tile);
        p.row += consumer * (PATCH_H / CONSUMERS);
        float d[BN / 2];
        int before = 0; /* stage of the k block before this one */
        for (int kb = 0; kb < blocks; kb++, at.next()) {
            mbar_wait(full + 8 * at.stage, at.phase);
            const uint64_t x_tile = wgmma_tile(x + at.stage * sizeof s.x[0]),
                           w_tile = wgmma_tile(w + at.stage * sizeof s.w[0]);
            wgmma_fence();
            UNROLL
            for (int k = 0; k < BK / 16; k++) wgmma_bf16<BN>(d, x_tile + 2 * k, w_tile + 2 * k, kb || k);
            wgmma_commit();
            if (kb == 0 && args.has_residual && e.leader) { /* during the product */
                bulk_wait_read<0>();                        /* the last tile has left the buffers */
                UNROLL
                for (int chunk = 0; chunk < OUT_BUFFERS; chunk++) load_residual<BN>(args, e, p, chunk);
            }
            wgmma_wait<1>(); /* this k block goes on; the one before is done */
            if (kb && lane_index() == 0) mbar_arrive(empty + 8 * before);
            before = at.stage;
        }
        wgmma_wait<0>();
        if (lane_index() == 0) mbar_arrive(empty + 8 * before);
        store_rows<BN>(d, args, e, p);
    }
    if (e.leader) bulk_wait_read<0>();
}

template <int BN, int stages>
DEVICE void conv_sm90(const conv_sm90_args &args)
{
    using memory = conv_sm90_shared<BN, stages>;
    static_assert(sizeof(memory) == CONV_SM90_SHARED(BN, stages), "args.h");
    SHARED(memory, s);
    if (thread_index() == 0) {
        if (shared_address(&s) % 1024) trap(); /* the swizzle is a function of the address */
        prefetch_tensor_map(&args.x);
        prefetch_tensor_map(&args.w);
        prefetch_tensor_map(&args.y[0]);
        for (int i = 0; i < stages; i++) {
            mbar_init(shared_address(&s.full[i]), 1);
            mbar_init(shared_address(&s.empty[i]), CONSUMERS * 4); /* one arrival per warp */
        }
        for (int i = 0; i < CONSUMERS * OUT_BUFFERS; i++) mbar_init(shared_address(s.residual) + 8 * i, 1);
        fence_mbar_init();
    }
    sync_threads();
    grid_wait();
    if (thread_index() < 128) {
        registers_decrease<40>();
        if (thread_index() == 0) produce<BN, stages>(args, s);
    } else {
        registers_increase<232>();
        consume<BN, stages>(args, s, thread_index() / 128 - 1);
    }
}

KERNEL(conv_sm90_128x256, conv_sm90_args, CONV_SM90_THREADS, 1)
{
    conv_sm90<256, 4>(args);
}

KERNEL(conv_sm90_128x192, conv_sm90_args, CONV_SM90_THREADS, 1)
{
    conv_sm90<192, 4>(args);
}

KERNEL(conv_sm90_128x128, conv_sm90_args, CONV_SM90_THREADS, 1)
{
    conv_sm90<128, 6>(args);
}
