/* bugs_sm90.cu: a small tensor-copy and wgmma kernel: one producer thread, one consumer warpgroup, two stages; with planted bugs. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "../../kernels/device/tile.h"
#include "args.h"

enum { STAGES = BUG90_STAGES, TILE = 64 * 64 };

struct alignas(1024) bugs_sm90_shared {
    bf16 a[STAGES][TILE], b[STAGES][TILE], out[TILE];
    bf16 shift[TILE]; /* room for the misaligned one */
    uint64_t full[STAGES], empty[STAGES];
};

DEVICE void produce(const bug_sm90_args &args, bugs_sm90_shared &s, uint32_t a, uint32_t b)
{
    const uint32_t full = shared_address(s.full), empty = shared_address(s.empty);
    uint32_t bytes = 2 * sizeof s.a[0];
    if (args.bug == BUG90_EXPECT_LESS) bytes /= 2;
    if (args.bug == BUG90_EXPECT_MORE) bytes += 16;
    for (int kb = 0; kb < args.k / 64; kb++) {
        const int stage = kb % STAGES;
        const uint32_t phase = kb / STAGES & 1;
        mbar_wait(empty + 8 * stage, phase ^ 1);
        mbar_arrive_expect(full + 8 * stage, bytes);
        if (args.bug == BUG90_TOO_MANY_ARRIVE) mbar_arrive(full + 8 * stage);
        tma_load_2d(a + stage * sizeof s.a[0], &args.a, full + 8 * stage, kb * 64, 0);
        tma_load_2d(b + stage * sizeof s.b[0], &args.b, full + 8 * stage, kb * 64, 0);
    }
}

DEVICE void consume(const bug_sm90_args &args, bugs_sm90_shared &s, uint32_t a, uint32_t b)
{
    const uint32_t full = shared_address(s.full), empty = shared_address(s.empty),
                   out = shared_address(s.out);
    const int bug = args.bug, lane = lane_index(), warp = warp_index() % 4;
    float d[32];
    for (int kb = 0; kb < args.k / 64; kb++) {
        const int stage = kb % STAGES;
        const uint32_t phase = bug == BUG90_WRONG_PARITY ? 0 : kb / STAGES & 1;
        if (bug != BUG90_NO_FULL_WAIT)
            mbar_wait((bug == BUG90_NOT_INITIALISED ? 128 : 0) + full + 8 * stage, phase);
        if (bug != BUG90_NO_WGMMA_FENCE) wgmma_fence();
        for (int k = 0; k < 4; k++)
            wgmma_bf16<64>(d, wgmma_tile(a + stage * sizeof s.a[0]) + 2 * k,
                           wgmma_tile(b + stage * sizeof s.b[0]) + 2 * k, kb || k);
        wgmma_commit();
        if (bug == BUG90_EARLY_RELEASE && lane == 0) mbar_arrive(empty + 8 * stage);
        if (bug != BUG90_NO_WGMMA_WAIT || kb + 1 < args.k / 64) wgmma_wait<0>();
        if (bug != BUG90_EARLY_RELEASE && bug != BUG90_NO_ARRIVE && lane == 0) mbar_arrive(empty + 8 * stage);
    }
    for (int j = 0; j < 8; j += 2) {
        const float *e = d + 4 * j;
        const uint32_t r[4] = {pack_bf16(e[0], e[1]), pack_bf16(e[2], e[3]), pack_bf16(e[4], e[5]),
                               pack_bf16(e[6], e[7])};
        stmatrix_x4(out + tile_offset(16 * warp + (lane & 15), j + (lane >> 4)), r);
    }
    if (bug != BUG90_NO_PROXY_FENCE) fence_proxy_async();
    bar_sync(1, 128);
    if (thread_index() == 128) {
        tma_store_2d(&args.y, out, 0, 0);
        bulk_commit();
        if (bug != BUG90_STORE_NOT_WAITED) bulk_wait_read<0>();
    }
}

/* Four warps complete a phase; one of them writes and arrives once more. Another one has waited for the first phase, and reads. */
DEVICE void read_of_open_phase(bugs_sm90_shared &s)
{
    const uint32_t bar = shared_address(s.empty), out = shared_address(s.out);
    const int warp = warp_index(), first = lane_index() == 0;
    if (warp < 4 && first) mbar_arrive(bar);
    if (warp == 0) mbar_wait(bar, 0);
    if (warp == 0) st_shared_4(out + 4 * lane_index(), 1);
    sync_warp();
    if (warp == 0 && first) mbar_arrive(bar);
    if (warp != 4) return;
    mbar_wait(bar, 0);
    ld_shared_4(out + 4 * lane_index());
}

KERNEL(bugs_sm90_gemm, bug_sm90_args, BUG90_THREADS, 1)
{
    SHARED(bugs_sm90_shared, s);
    const uint32_t shift = args.bug == BUG90_MISALIGNED_TILE ? 512 : 0;
    const uint32_t a = shared_address(s.a) + shift, b = shared_address(s.b) + shift;
    if (thread_index() == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(shared_address(&s.full[i]), 1);
            mbar_init(shared_address(&s.empty[i]), 4);
        }
        fence_mbar_init();
    }
    sync_threads();
    if (args.bug != BUG90_NO_GRID_WAIT) grid_wait();
    if (args.bug == BUG90_OPEN_PHASE) return read_of_open_phase(s);
    if (args.bug == BUG90_REGISTERS) registers_increase<256>();
    if (args.bug == BUG90_ARRIVAL_LEFT && thread_index() < 128) bar_arrive(5, 256);
    if (thread_index() == 0) produce(args, s, a, b);
    if (thread_index() >= 128) consume(args, s, a, b);
}
