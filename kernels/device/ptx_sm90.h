/* ptx_sm90.h: one PTX instruction = one function, as of sm_90: mbarriers, tensor copies, proxies, registers, dependent grids.
 * wgmma is in ptx_wgmma.h. Section numbers are those of the PTX ISA 9.1. */
#ifndef KLEIN_DEVICE_PTX_SM90_H
#define KLEIN_DEVICE_PTX_SM90_H

#include "ptx_sm80.h"

/* ---- mbarriers (9.7.13.15): 8 bytes of shared memory, given by their shared address --------------------------- */

/* By one thread, for `count` arrivals per phase. Then fence_mbar_init, then a block barrier, before anyone else uses it. */
DEVICE void mbar_init(uint32_t bar, uint32_t count SITE)
{
    PTX(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)
                     : "memory"),
        soft_mbar_init(bar, count, site));
}

DEVICE void fence_mbar_init()
{
    PTX(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"), soft_fence_mbar_init());
}

DEVICE void mbar_arrive(uint32_t bar SITE)
{
    PTX(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar)
                     : "memory"),
        soft_mbar_arrive(bar, 0, site));
}

/* Arrives and announces `bytes` that tensor loads will bring in this phase: full boxes, also where they are clipped. */
DEVICE void mbar_arrive_expect(uint32_t bar, uint32_t bytes SITE)
{
    PTX(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                     : "memory"),
        soft_mbar_arrive(bar, bytes, site));
}

/* Waits until the phase of this parity is complete; on a fresh barrier parity 1 counts as complete. */
DEVICE void mbar_wait(uint32_t bar, uint32_t parity SITE)
{
    PTX(asm volatile("{\n"
                     ".reg .pred done;\n"
                     "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                     "@!done bra again;\n"
                     "}" ::"r"(bar),
                     "r"(parity)
                     : "memory"),
        soft_mbar_wait(bar, parity, site));
}

/* ---- proxies (9.7.13.4): between plain stores to shared memory and their reading by tensor stores or wgmma ------- */

/* By those who stored, before the barrier that hands the data over. */
DEVICE void fence_proxy_async()
{
    PTX(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"), soft_fence_proxy_async());
}

/* ---- tensor copies (9.7.9.25.5): one thread copies a box, coordinates innermost first --------------------------- */

DEVICE void prefetch_tensor_map(const tensor_map *map SITE)
{
    PTX(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"), soft_tensor_map(map, site));
}

/* Into shared memory, 128-byte aligned (with a swizzle, at a multiple of its pattern: 1024 for 128 bytes). What lies outside of the
 * tensor is zero. Completes on the mbarrier with the bytes of the full box. */
DEVICE void tma_load_2d(uint32_t to, const tensor_map *map, uint32_t bar, int x, int y SITE)
{
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(bar), "r"(x), "r"(y)
                 : "memory");
#else
    const int at[] = {x, y};
    soft_tma_load(to, map, bar, at, 2, site);
#endif
}

DEVICE void tma_load_3d(uint32_t to, const tensor_map *map, uint32_t bar, int x, int y, int z SITE)
{
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
                 : "memory");
#else
    const int at[] = {x, y, z};
    soft_tma_load(to, map, bar, at, 3, site);
#endif
}

/* Out of shared memory, clipped to the tensor. Joins the thread's current bulk group. */
DEVICE void tma_store_2d(const tensor_map *map, uint32_t from, int x, int y SITE)
{
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y)
                 : "memory");
#else
    const int at[] = {x, y};
    soft_tma_store(map, from, at, 2, site);
#endif
}

DEVICE void tma_store_3d(const tensor_map *map, uint32_t from, int x, int y, int z SITE)
{
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
#else
    const int at[] = {x, y, z};
    soft_tma_store(map, from, at, 3, site);
#endif
}

DEVICE void bulk_commit()
{
    PTX(asm volatile("cp.async.bulk.commit_group;" ::: "memory"), soft_bulk_commit());
}

/* Waits until at most the `newest` last groups of this thread still read shared memory. */
template <int newest>
DEVICE void bulk_wait_read(SITE_ONLY)
{
    PTX(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(newest)
                     : "memory"),
        soft_bulk_wait(newest, site));
}

/* 9.7.14.5.16: stores four 8x8 matrices of 16-bit elements; the inverse of ldmatrix_x4. */
DEVICE void stmatrix_x4(uint32_t address, const uint32_t (&r)[4] SITE)
{
    PTX(asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory"),
        soft_stmatrix(address, r, 4, false, site));
}

/* ---- registers (9.7.19.5): by all warps of a warpgroup; needs launch bounds with min_blocks 1 ---------------------- */

template <int registers>
DEVICE void registers_increase(SITE_ONLY)
{
    PTX(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers)),
        soft_setmaxnreg(registers, true, site));
}

template <int registers>
DEVICE void registers_decrease(SITE_ONLY)
{
    PTX(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers)),
        soft_setmaxnreg(registers, false, site));
}

/* ---- dependent grids (9.7.13.13). Every kernel that is launched as a dependent waits before it touches what the kernels before it
 * write, even if it reads nothing of theirs: the wait covers the immediate predecessor only. ------------------------- */

DEVICE void grid_wait(SITE_ONLY)
{
#if !defined(__CUDACC__)
    soft_grid_wait(site);
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void grid_launch_dependents()
{
#if !defined(__CUDACC__)
    soft_grid_launch_dependents();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
