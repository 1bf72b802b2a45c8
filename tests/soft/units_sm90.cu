/* units_sm90.cu: tensor copies and warpgroup products, one at a time. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "../../kernels/device/tile.h"
#include "args.h"

struct alignas(1024) copy_shared {
    uint8_t box[32768];
    uint64_t full;
};

/* Loads the box at args.at of map a, and hands out the bytes as they lie in shared memory: y [args.bytes]. */
KERNEL(units_sm90_load, unit_sm90_args, 128, 1)
{
    SHARED(copy_shared, s);
    const uint32_t full = shared_address(&s.full), box = shared_address(s.box);
    if (thread_index() == 0) {
        mbar_init(full, 1);
        fence_mbar_init();
    }
    sync_threads();
    if (thread_index() == 0) {
        mbar_arrive_expect(full, (uint32_t)args.bytes);
        if (args.rank == 2) tma_load_2d(box, &args.a, full, args.at[0], args.at[1]);
        if (args.rank == 3) tma_load_3d(box, &args.a, full, args.at[0], args.at[1], args.at[2]);
    }
    mbar_wait(full, 0);
    for (int i = 16 * thread_index(); i < args.bytes; i += 16 * 128)
        st_global_16((char *)args.y + i, ld_shared_16(box + i));
}

struct alignas(1024) product_shared {
    uint8_t a[8192], b[32768];
    uint64_t full;
};

/* y [64, n] = a b^T over one row of 128 bytes of k, as args.kind says; b MN-major comes as [k, n] in boxes of 64 columns. */
template <int n>
DEVICE void product(const unit_sm90_args &args, product_shared &s)
{
    const uint32_t full = shared_address(&s.full), a = shared_address(s.a), b = shared_address(s.b);
    const int lane = lane_index(), warp = warp_index(), kind = args.kind;
    const bool mn = kind == UNIT_WGMMA_MN || kind == UNIT_WGMMA_RS_MN;
    if (thread_index() == 0) {
        mbar_init(full, 1);
        fence_mbar_init();
    }
    sync_threads();
    if (thread_index() == 0) {
        mbar_arrive_expect(full, 8192 + n * 128);
        tma_load_2d(a, &args.a, full, 0, 0);
        if (mn)
            for (int i = 0; i < n / 64; i++) tma_load_2d(b + 8192 * i, &args.b, full, 64 * i, 0);
        else
            tma_load_2d(b, &args.b, full, 0, 0);
    }
    mbar_wait(full, 0);
    uint32_t fragments[4][4];
    for (int k = 0; k < 4; k++)
        ldmatrix_x4(fragments[k], a + tile_offset(16 * warp + (lane & 15), 2 * k + (lane >> 4)));
    float d[n / 2];
    for (int i = 0; i < n / 2; i++) d[i] = 1000; /* what accumulate = false must forget */
    wgmma_fence();
    UNROLL
    for (int k = 0; k < 4; k++) {
        const uint64_t a_tile = wgmma_tile(a) + 2 * k, b_tile = wgmma_tile(b) + 2 * k,
                       b_mn = wgmma_tile_mn(b, 8192) + 128 * k;
        if (kind == UNIT_WGMMA_SS) wgmma_bf16<n>(d, a_tile, b_tile, k);
        if (kind == UNIT_WGMMA_E4M3) wgmma_e4m3<n>(d, a_tile, b_tile, k);
        if constexpr (n <= 128) {
            if (kind == UNIT_WGMMA_MN) wgmma_bf16<n, true>(d, a_tile, b_mn, k);
            if (kind == UNIT_WGMMA_RS) wgmma_bf16<n>(d, fragments[k], b_tile, k);
            if (kind == UNIT_WGMMA_RS_MN) wgmma_bf16<n, true>(d, fragments[k], b_mn, k);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < n / 2; i++) {
        const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        args.y[row * n + col] = d[i];
    }
}

KERNEL(units_sm90_product, unit_sm90_args, 128, 1)
{
    SHARED(product_shared, s);
    if (args.n == 64) product<64>(args, s);
    if (args.n == 128) product<128>(args, s);
    if (args.n == 192) product<192>(args, s);
    if (args.n == 256) product<256>(args, s);
}

/* y[i] += 1 of x, waiting or not: a chain of dependent launches. */
KERNEL(units_sm90_chain, unit_args, 128, 1)
{
    grid_launch_dependents();
    if (args.kind == UNIT_READS_EARLY) ld_global_4(args.x);
    if (args.kind == UNIT_READS_CONSTANT_EARLY) ld_global_constant_16(args.x);
    if (args.kind != UNIT_NO_WAIT) grid_wait();
    const int i = block_x() * 128 + thread_index();
    args.y[i] = args.x[i] + 1;
}

/* As before, but reads what the kernel before it writes, and only then waits. */
KERNEL(units_sm90_chain_early, unit_args, 128, 1)
{
    const int i = block_x() * 128 + thread_index();
    const float x = args.x[i];
    grid_wait();
    args.y[i] = x + 1;
}
