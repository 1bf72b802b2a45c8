/* emit_sm80.cu: each function of ptx_sm80.h, ptx_narrow.h and ptx_peer.h in a kernel of its own, with the text that nvcc must make of it
 * (the pieces in this order). Compiled to PTX for sm_89; read by tests/test_ptx.c. */
#include "../../kernels/device/elements.h"
#include "../../kernels/device/ptx_peer.h"

#define EMIT(name, ...)                                                                                      \
    extern "C" __global__ void emit_##name(uint32_t *p, uint32_t u, uint32_t v, float f, float g)

EMIT(sync_threads, "bar.sync 0;")
{
    sync_threads();
}
EMIT(bar_sync, "bar.sync %r", ", %r")
{
    bar_sync(u, v);
}
EMIT(bar_arrive, "bar.arrive %r", ", %r")
{
    bar_arrive(u, v);
}
EMIT(sync_warp, "bar.warp.sync 0xffffffff;")
{
    sync_warp();
}
EMIT(shfl_xor, "shfl.sync.bfly.b32 %r", "0x1f, 0xffffffff;")
{
    *p = shfl_xor(u, v);
}
EMIT(shfl_index, "shfl.sync.idx.b32 %r", "0x1f, 0xffffffff;")
{
    *p = shfl_index(u, v);
}
EMIT(trap, "trap;")
{
    trap();
}

EMIT(pack_bf16, "cvt.rn.bf16x2.f32 %r", ", %f", ", %f")
{
    *p = pack_bf16(f, g);
}
EMIT(pack_e4m3, "cvt.rn.satfinite.e4m3x2.f32 %rs", ", %f", ", %f")
{
    *p = pack_e4m3(f, g);
}
EMIT(exp2_approx, "ex2.approx.ftz.f32 %f")
{
    *p = bits_from_float(exp2_approx(f));
}
EMIT(rsqrt_approx, "rsqrt.approx.ftz.f32 %f")
{
    *p = bits_from_float(rsqrt_approx(f));
}
EMIT(rcp_approx, "rcp.approx.ftz.f32 %f")
{
    *p = bits_from_float(rcp_approx(f));
}
EMIT(float_from_f16, "cvt.f32.f16 %f", ", %rs")
{
    *p = bits_from_float(float_from_f16(u));
}

EMIT(ld_global_16, "ld.global.v4.u32 {%r", "}, [%rd")
{
    *p = ld_global_16(p + 4).z;
}
EMIT(ld_global_constant_16, "ld.global.nc.L1::no_allocate.v4.u32 {%r", "}, [%rd")
{
    *p = ld_global_constant_16(p + 4).z;
}
EMIT(ld_global_8, "ld.global.v2.u32 {%r", "}, [%rd")
{
    *p = ld_global_8(p + 4).y;
}
EMIT(ld_global_4, "ld.global.u32 %r", ", [%rd")
{
    *p = ld_global_4(p + 4);
}
EMIT(ld_global_2, "ld.global.u16 %rs", ", [%rd")
{
    *p = ld_global_2(p + 4);
}
EMIT(ld_global_1, "ld.global.u8 %r", ", [%rd")
{
    *p = ld_global_1(p + 4);
}
EMIT(st_global_16, "st.global.v4.u32 [%rd", "], {%r")
{
    st_global_16(p, {u, v, u, v});
}
EMIT(st_global_8, "st.global.v2.u32 [%rd", "], {%r")
{
    st_global_8(p, u, v);
}
EMIT(st_global_4, "st.global.u32 [%rd", "], %r")
{
    st_global_4(p, u);
}
EMIT(st_global_2, "st.global.u16 [%rd", "], %rs")
{
    st_global_2(p, u);
}
EMIT(st_global_1, "st.global.u8 [%rd", "], %r")
{
    st_global_1(p, u);
}
EMIT(ld_shared_16, "ld.shared.v4.u32 {%r", "}, [%r")
{
    *p = ld_shared_16(u).w;
}
EMIT(ld_shared_4, "ld.shared.u32 %r", ", [%r")
{
    *p = ld_shared_4(u);
}
EMIT(st_shared_16, "st.shared.v4.u32 [%r", "], {%r")
{
    st_shared_16(u, {u, v, u, v});
}
EMIT(st_shared_4, "st.shared.u32 [%r", "], %r")
{
    st_shared_4(u, v);
}

EMIT(cp_async_16, "cp.async.cg.shared.global [%r", "], [%rd", "], 16, %r")
{
    cp_async_16(u, p, v);
}
EMIT(cp_async_commit, "cp.async.commit_group;")
{
    cp_async_commit();
}
EMIT(cp_async_wait, "cp.async.wait_group 3;")
{
    cp_async_wait<3>();
}

EMIT(ldmatrix_x4, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r", "}, [%r")
{
    uint32_t r[4];
    ldmatrix_x4(r, u);
    *p = r[0] + r[1] + r[2] + r[3];
}
EMIT(ldmatrix_x4_trans, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r", "}, [%r")
{
    uint32_t r[4];
    ldmatrix_x4_trans(r, u);
    *p = r[0] + r[1] + r[2] + r[3];
}
EMIT(mma_m16n8k16_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f", "}, {%r", "}, {%r",
     "}, {%f")
{
    float d[4] = {f, g, f, g};
    const uint32_t a[4] = {p[0], p[1], p[2], p[3]}, b[2] = {u, v};
    mma_m16n8k16_bf16(d, a, b);
    *p = bits_from_float(d[0] + d[1] + d[2] + d[3]);
}
EMIT(mma_m16n8k32_e4m3, "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%f", "}, {%r", "}, {%r",
     "}, {%f")
{
    float d[4] = {f, g, f, g};
    const uint32_t a[4] = {p[0], p[1], p[2], p[3]}, b[2] = {u, v};
    mma_m16n8k32_e4m3(d, a, b);
    *p = bits_from_float(d[0] + d[1] + d[2] + d[3]);
}

EMIT(ld_acquire_sys_4, "ld.acquire.sys.global.u32 %r", ", [%rd")
{
    *p = ld_acquire_sys_4(p + 4);
}
EMIT(st_release_sys_4, "st.release.sys.global.u32 [%rd", "], %r")
{
    st_release_sys_4(p, u);
}
EMIT(fence_sys, "fence.acq_rel.sys;")
{
    fence_sys();
}
EMIT(atom_add_gpu_4, "atom.acq_rel.gpu.global.add.u32 %r", ", [%rd", "], %r")
{
    *p = atom_add_gpu_4(p + 4, u);
}
EMIT(nanosleep, "nanosleep.u32 %r")
{
    nanosleep(u);
}
