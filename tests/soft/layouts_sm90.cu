/* layouts_sm90.cu: wgmma on operands that lie in shared memory as the test put them there. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"
#include "args.h"

struct alignas(1024) operands_shared {
    uint8_t a[8192], b[16384];
};

template <int n>
DEVICE void product(const layout_wgmma_args &args, operands_shared &s)
{
    const uint32_t a = shared_address(s.a), b = shared_address(s.b);
    const int thread = thread_index(), kind = args.kind;
    const bool registers = kind == LAYOUT_RS || kind == LAYOUT_RS_MN;
    for (int i = 16 * thread; !registers && i < 8192; i += 2048)
        st_shared_16(a + i, ld_global_16((const char *)args.a + i));
    for (int i = 16 * thread; i < 16384; i += 2048)
        st_shared_16(b + i, ld_global_16((const char *)args.b + i));
    fence_proxy_async();
    sync_threads();
    uint32_t fragments[4][4] = {};
    for (int k = 0; registers && k < args.steps; k++) {
        const u32x4 v = ld_global_16((const char *)args.a + 16 * (128 * k + thread));
        fragments[k][0] = v.x, fragments[k][1] = v.y, fragments[k][2] = v.z, fragments[k][3] = v.w;
    }
    float d[n / 2];
    wgmma_fence();
    for (int k = 0; k < args.steps; k++) {
        const uint64_t da = args.a_fields | (a + k * args.a_step) >> 4,
                       db = args.b_fields | (b + k * args.b_step) >> 4;
        if (kind == LAYOUT_SS) wgmma_bf16<n>(d, da, db, k);
        if (kind == LAYOUT_SS_E4M3) wgmma_e4m3<n>(d, da, db, k);
        if (kind == LAYOUT_SS_MN) wgmma_bf16<n, true>(d, da, db, k);
        if (kind == LAYOUT_RS) wgmma_bf16<n>(d, fragments[k], db, k);
        if (kind == LAYOUT_RS_MN) wgmma_bf16<n, true>(d, fragments[k], db, k);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < n / 2; i++) args.y[thread * (n / 2) + i] = d[i];
    if (thread == 0) {
        args.own[0] = wgmma_tile(a) ^ a >> 4;
        args.own[1] =
            (kind == LAYOUT_SS_MN || kind == LAYOUT_RS_MN ? wgmma_tile_mn(b, 8192) : wgmma_tile(b)) ^ b >> 4;
    }
}

KERNEL(layouts_sm90_wgmma, layout_wgmma_args, 128, 1)
{
    SHARED(operands_shared, s);
    if (args.n == 64) product<64>(args, s);
    if (args.n == 128) product<128>(args, s);
}

struct alignas(128) rows_shared {
    uint8_t rows[32][16];
};

/* Thread t has the address of row t. y: the rows. */
KERNEL(layouts_sm90_stmatrix, layout_args, 32, 1)
{
    SHARED(rows_shared, s);
    const int lane = lane_index();
    const uint32_t own = shared_address(s.rows[lane]);
    const u32x4 v = ld_global_16((const char *)args.a + 16 * lane);
    const uint32_t r[4] = {v.x, v.y, v.z, v.w};
    stmatrix_x4(own, r);
    sync_threads();
    st_global_16((char *)args.y + 16 * lane, ld_shared_16(own));
}
