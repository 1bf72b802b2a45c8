/* emit_sm90.cu: each function of ptx_sm90.h and ptx_wgmma.h in a kernel of its own, with the text that nvcc must make of it. Compiled
 * to PTX for sm_90a; read by tests/test_ptx.c. */
#include "../../kernels/device/device.h"
#include "../../kernels/device/ptx.h"

#define EMIT(name, ...)                                                                                      \
    extern "C" __global__ void emit_##name(float *p, uint32_t u, uint32_t v, int x,                          \
                                           const __grid_constant__ tensor_map map)

EMIT(mbar_init, "mbarrier.init.shared::cta.b64 [%r", "], %r")
{
    mbar_init(u, v);
}
EMIT(fence_mbar_init, "fence.mbarrier_init.release.cluster;")
{
    fence_mbar_init();
}
EMIT(mbar_arrive, "mbarrier.arrive.shared::cta.b64 _, [%r")
{
    mbar_arrive(u);
}
EMIT(mbar_arrive_expect, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r", "], %r")
{
    mbar_arrive_expect(u, v);
}
EMIT(mbar_wait, "mbarrier.try_wait.parity.shared::cta.b64 done, [%r", "], %r", "@!done bra again;")
{
    mbar_wait(u, v);
}
EMIT(fence_proxy_async, "fence.proxy.async.shared::cta;")
{
    fence_proxy_async();
}
EMIT(prefetch_tensor_map, "prefetch.tensormap [%rd")
{
    prefetch_tensor_map(&map);
}
EMIT(tma_load_2d, "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r",
     "], [%rd", ", {%r", "}], [%r")
{
    tma_load_2d(u, &map, v, x, 7);
}
EMIT(tma_load_3d, "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%r",
     "], [%rd", ", {%r", "}], [%r")
{
    tma_load_3d(u, &map, v, x, 7, 8);
}
EMIT(tma_store_2d, "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd", ", {%r", "}], [%r")
{
    tma_store_2d(&map, u, x, 7);
}
EMIT(tma_store_3d, "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%rd", ", {%r", "}], [%r")
{
    tma_store_3d(&map, u, x, 7, 8);
}
EMIT(bulk_commit, "cp.async.bulk.commit_group;")
{
    bulk_commit();
}
EMIT(bulk_wait_read, "cp.async.bulk.wait_group.read 1;")
{
    bulk_wait_read<1>();
}
EMIT(stmatrix_x4, "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r", "], {%r")
{
    const uint32_t r[4] = {u, v, u, v};
    stmatrix_x4(u, r);
}
EMIT(registers_increase, "setmaxnreg.inc.sync.aligned.u32 232;")
{
    registers_increase<232>();
}
EMIT(registers_decrease, "setmaxnreg.dec.sync.aligned.u32 40;")
{
    registers_decrease<40>();
}
EMIT(grid_wait, "griddepcontrol.wait;")
{
    grid_wait();
}
EMIT(grid_launch_dependents, "griddepcontrol.launch_dependents;")
{
    grid_launch_dependents();
}

EMIT(wgmma_fence, "wgmma.fence.sync.aligned;")
{
    wgmma_fence();
}
EMIT(wgmma_commit, "wgmma.commit_group.sync.aligned;")
{
    wgmma_commit();
}
EMIT(wgmma_wait, "wgmma.wait_group.sync.aligned 1;")
{
    wgmma_wait<1>();
}

template <int n, class Product>
DEVICE void product(float *p, uint32_t u, uint32_t v, Product &&multiply)
{
    float d[n / 2];
    for (int i = 0; i < n / 2; i++) d[i] = p[i];
    const uint32_t a[4] = {u, v, u + 1, v + 1};
    wgmma_fence();
    multiply(d, a, wgmma_tile(u), wgmma_tile_mn(v, 8192), u != v);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < n / 2; i++) p[i] = d[i];
}

#define PRODUCT(n, call)                                                                                     \
    product<n>(p, u, v, [](float(&d)[n / 2], const uint32_t(&a)[4], uint64_t s, uint64_t t, bool c) { call; })

EMIT(wgmma_bf16_64, "setp.ne.b32 p, %r", "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f", "}, %rd",
     ", %rd", ", p, 1, 1, 0, 0;")
{
    PRODUCT(64, wgmma_bf16<64>(d, s, s, c));
}
EMIT(wgmma_bf16_128, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 0;")
{
    PRODUCT(128, wgmma_bf16<128>(d, s, s, c));
}
EMIT(wgmma_bf16_144, "wgmma.mma_async.sync.aligned.m64n144k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 0;")
{
    PRODUCT(144, wgmma_bf16<144>(d, s, s, c));
}
EMIT(wgmma_bf16_192, "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 0;")
{
    PRODUCT(192, wgmma_bf16<192>(d, s, s, c));
}
EMIT(wgmma_bf16_256, "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 0;")
{
    PRODUCT(256, wgmma_bf16<256>(d, s, s, c));
}
EMIT(wgmma_bf16_mn_64, "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 1;")
{
    PRODUCT(64, (wgmma_bf16<64, true>(d, s, t, c)));
}
EMIT(wgmma_bf16_mn_128, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f", "}, %rd", ", %rd",
     ", p, 1, 1, 0, 1;")
{
    PRODUCT(128, (wgmma_bf16<128, true>(d, s, t, c)));
}
EMIT(wgmma_bf16_registers_64, "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f", "}, {%r", "}, %rd",
     ", p, 1, 1, 0;")
{
    PRODUCT(64, wgmma_bf16<64>(d, a, s, c));
}
EMIT(wgmma_bf16_registers_128, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f", "}, {%r",
     "}, %rd", ", p, 1, 1, 0;")
{
    PRODUCT(128, wgmma_bf16<128>(d, a, s, c));
}
EMIT(wgmma_bf16_registers_mn_64, "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f", "}, {%r",
     "}, %rd", ", p, 1, 1, 1;")
{
    PRODUCT(64, (wgmma_bf16<64, true>(d, a, t, c)));
}
EMIT(wgmma_bf16_registers_mn_128, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f", "}, {%r",
     "}, %rd", ", p, 1, 1, 1;")
{
    PRODUCT(128, (wgmma_bf16<128, true>(d, a, t, c)));
}
EMIT(wgmma_e4m3_64, "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {%f", "}, %rd", ", %rd",
     ", p, 1, 1;")
{
    PRODUCT(64, wgmma_e4m3<64>(d, s, s, c));
}
EMIT(wgmma_e4m3_128, "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {%f", "}, %rd", ", %rd",
     ", p, 1, 1;")
{
    PRODUCT(128, wgmma_e4m3<128>(d, s, s, c));
}
EMIT(wgmma_e4m3_144, "wgmma.mma_async.sync.aligned.m64n144k32.f32.e4m3.e4m3 {%f", "}, %rd", ", %rd",
     ", p, 1, 1;")
{
    PRODUCT(144, wgmma_e4m3<144>(d, s, s, c));
}
EMIT(wgmma_e4m3_192, "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {%f", "}, %rd", ", %rd",
     ", p, 1, 1;")
{
    PRODUCT(192, wgmma_e4m3<192>(d, s, s, c));
}
EMIT(wgmma_e4m3_256, "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {%f", "}, %rd", ", %rd",
     ", p, 1, 1;")
{
    PRODUCT(256, wgmma_e4m3<256>(d, s, s, c));
}
