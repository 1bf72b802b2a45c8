/* ptx_sm80.h: one PTX instruction = one function, as of sm_80 (e4m3 from sm_89). Left the instruction, right what the soft GPU does.
 * Section numbers are those of the PTX ISA 9.1. `SITE` is the place of the call, for the soft GPU's reports.
 * tests/test_ptx.c checks the text that nvcc emits for each function. */
#ifndef KLEIN_DEVICE_PTX_SM80_H
#define KLEIN_DEVICE_PTX_SM80_H

#include "device.h"

#ifdef __CUDACC__
#define PTX(cuda, soft) cuda
#else
#define PTX(cuda, soft) soft
#endif

/* ---- threads ---------------------------------------------------------------------------------------------- */

/* 9.7.13.1: all threads of the block. Orders shared and global memory among them. */
DEVICE void sync_threads(SITE_ONLY)
{
    PTX(asm volatile("bar.sync 0;" ::: "memory"), soft_barrier(0, (int)soft_here->grid->threads, true, site));
}

/* Barrier `id` (1..15) of `threads` threads, a multiple of 32; some of them may only arrive. */
DEVICE void bar_sync(int id, int threads SITE)
{
    PTX(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads)
                     : "memory"),
        soft_barrier(id, threads, true, site));
}

DEVICE void bar_arrive(int id, int threads SITE)
{
    PTX(asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads)
                     : "memory"),
        soft_barrier(id, threads, false, site));
}

/* 9.7.13.2: the lanes of the warp; orders memory among them. */
DEVICE void sync_warp(SITE_ONLY)
{
    PTX(asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"), soft_warp_sync(site));
}

/* 9.7.9.6: the value of lane (own index ^ mask), of lane `lane`. */
DEVICE uint32_t shfl_xor(uint32_t value, int mask SITE)
{
#ifdef __CUDACC__
    uint32_t r;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(r) : "r"(value), "r"(mask));
    return r;
#else
    return soft_shfl(value, SOFT_SHFL_XOR, mask, site);
#endif
}

DEVICE uint32_t shfl_index(uint32_t value, int lane SITE)
{
#ifdef __CUDACC__
    uint32_t r;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(r) : "r"(value), "r"(lane));
    return r;
#else
    return soft_shfl(value, SOFT_SHFL_INDEX, lane, site);
#endif
}

/* Ends the kernel with an error: for preconditions that the launcher broke. */
DEVICE void trap(SITE_ONLY)
{
    PTX(asm volatile("trap;"), soft_trap(site));
}

/* ---- numbers: bf16 and e4m3 only by these conversions ------------------------------------------------------- */

DEVICE float float_from_bits(uint32_t u)
{
#ifdef __CUDACC__
    return __uint_as_float(u);
#else
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
#endif
}

DEVICE uint32_t bits_from_float(float f)
{
#ifdef __CUDACC__
    return __float_as_uint(f);
#else
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
#endif
}

DEVICE float shfl_xor(float value, int mask SITE)
{
    return float_from_bits(shfl_xor(bits_from_float(value), mask PASS_SITE));
}

DEVICE float shfl_index(float value, int lane SITE)
{
    return float_from_bits(shfl_index(bits_from_float(value), lane PASS_SITE));
}

/* The two bf16 of a 32-bit word: exact. */
DEVICE float bf16_low(uint32_t pair)
{
    return float_from_bits(pair << 16);
}
DEVICE float bf16_high(uint32_t pair)
{
    return float_from_bits(pair & 0xffff0000u);
}
DEVICE float float_from_bf16(bf16 h)
{
    return float_from_bits((uint32_t)h.bits << 16);
}

/* 9.7.9.22: two floats to bf16, nearest even; `low` in the low half. NaN becomes 0x7fff. */
DEVICE uint32_t pack_bf16(float low, float high)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#else
    uint32_t r = 0;
    for (int i = 0; i < 2; i++) {
        uint32_t u = bits_from_float(i ? high : low);
        uint32_t h = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
        r |= h << 16 * i;
    }
    return r;
#endif
}

DEVICE bf16 bf16_from_float(float f)
{
    return bf16{(uint16_t)pack_bf16(f, 0)};
}

/* 9.7.9.22 (sm_89): two floats to e4m3, nearest even, beyond 448 saturated; `low` in the low byte. NaN becomes 0x7f. */
DEVICE uint16_t pack_e4m3(float low, float high)
{
#ifdef __CUDACC__
    uint16_t r = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
    return r;
#else
    uint16_t r = 0;
    for (int i = 0; i < 2; i++) {
        float f = i ? high : low, magnitude = fabsf(f);
        uint32_t b;
        if (!(magnitude <= 448.0f)) { /* too large, infinite or NaN */
            b = magnitude == magnitude ? 0x7e : 0x7f;
        } else if (magnitude <
                   0x1p-6f) { /* subnormal: multiples of 2^-9; 8 of them are the smallest normal */
            b = (uint32_t)rintf(magnitude * 0x1p9f);
        } else {
            uint32_t u = bits_from_float(magnitude);
            u += 0x7ffffu + ((u >> 20) & 1);
            b = (u >> 20) - (120u << 3);
        }
        r = (uint16_t)(r | (b | (bits_from_float(f) >> 31 && b != 0x7f ? 0x80u : 0u)) << 8 * i);
    }
    return r;
#endif
}

/* 9.7.3.20, 9.7.3.16, 9.7.3.13: approximations, at most 2 ulp off; denormals are flushed. The soft GPU's are exact to 1/2 ulp. */
DEVICE float exp2_approx(float x)
{
#ifdef __CUDACC__
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return exp2f(x);
#endif
}

DEVICE float rsqrt_approx(float x)
{
#ifdef __CUDACC__
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return 1.0f / sqrtf(x);
#endif
}

DEVICE float rcp_approx(float x)
{
#ifdef __CUDACC__
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return 1.0f / x;
#endif
}

/* ---- memory ----------------------------------------------------------------------------------------------- */

/* 9.7.9.8: global loads and stores of 16 and 4 bytes, naturally aligned. ld_global_constant: data that no kernel
 * writes (weights), also before grid_wait: the read-only path. */
DEVICE u32x4 ld_global_16(const void *p SITE)
{
    u32x4 r;
#ifdef __CUDACC__
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
#else
    soft_global(p, 16, SOFT_READ, site);
    memcpy(&r, p, 16);
#endif
    return r;
}

DEVICE u32x4 ld_global_constant_16(const void *p SITE)
{
    u32x4 r;
#ifdef __CUDACC__
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
        : "l"(p));
#else
    soft_global(p, 16, SOFT_READ_CONSTANT, site);
    memcpy(&r, p, 16);
#endif
    return r;
}

DEVICE uint32_t ld_global_4(const void *p SITE)
{
    uint32_t r;
#ifdef __CUDACC__
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
#else
    soft_global(p, 4, SOFT_READ, site);
    memcpy(&r, p, 4);
#endif
    return r;
}

DEVICE void st_global_16(void *p, u32x4 v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#else
    soft_global(p, 16, SOFT_WRITE, site);
    memcpy(p, &v, 16);
#endif
}

DEVICE void st_global_8(void *p, uint32_t v0, uint32_t v1 SITE)
{
#ifdef __CUDACC__
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v0), "r"(v1) : "memory");
#else
    soft_global(p, 8, SOFT_WRITE, site);
    memcpy(p, &v0, 4);
    memcpy((char *)p + 4, &v1, 4);
#endif
}

DEVICE void st_global_4(void *p, uint32_t v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
    soft_global(p, 4, SOFT_WRITE, site);
    memcpy(p, &v, 4);
#endif
}

/* 9.7.9.20: the 32-bit shared address of something in SHARED. */
DEVICE uint32_t shared_address(const void *p SITE)
{
    return PTX((uint32_t)__cvta_generic_to_shared(p), soft_shared_address(p, site));
}

DEVICE u32x4 ld_shared_16(uint32_t address SITE)
{
    u32x4 r;
#ifdef __CUDACC__
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(address)
                 : "memory");
#else
    memcpy(&r, soft_shared(address, 16, SOFT_READ, site), 16);
#endif
    return r;
}

DEVICE uint32_t ld_shared_4(uint32_t address SITE)
{
    uint32_t r;
#ifdef __CUDACC__
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address) : "memory");
#else
    memcpy(&r, soft_shared(address, 4, SOFT_READ, site), 4);
#endif
    return r;
}

DEVICE void st_shared_16(uint32_t address, u32x4 v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
#else
    memcpy(soft_shared(address, 16, SOFT_WRITE, site), &v, 16);
#endif
}

DEVICE void st_shared_4(uint32_t address, uint32_t v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
#else
    memcpy(soft_shared(address, 4, SOFT_WRITE, site), &v, 4);
#endif
}

/* 9.7.9.25.3: copies 16 bytes to shared memory while the thread goes on; only the first `bytes` (0..16) are read, the rest is
 * zero. Both 16-byte aligned. `from` must be a valid address even for 0 bytes. */
DEVICE void cp_async_16(uint32_t to, const void *from, int bytes SITE)
{
    PTX(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                     : "memory"),
        soft_cp_async(to, from, bytes, site));
}

DEVICE void cp_async_commit()
{
    PTX(asm volatile("cp.async.commit_group;" ::: "memory"), soft_cp_async_commit());
}

/* Waits until at most the `newest` last groups of this thread are under way. Other threads' copies: a barrier afterwards. */
template <int newest>
DEVICE void cp_async_wait(SITE_ONLY)
{
    PTX(asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory"), soft_cp_async_wait(newest, site));
}

/* ---- matrices: which lane holds what is said in tile.h and section 9.7.14.5 ------------------------------------ */

/* 9.7.14.5.15: four 8x8 matrices of 16-bit elements. Lanes 8j..8j+7 give the addresses of the rows (16 bytes) of matrix j;
 * r[j] of lane l is then row l/4, columns 2(l%4), 2(l%4)+1 of matrix j; with _trans rows and columns exchanged. */
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address SITE)
{
    PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory"),
        soft_ldmatrix(r, address, 4, false, site));
}

DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address SITE)
{
    PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory"),
        soft_ldmatrix(r, address, 4, true, site));
}

/* 9.7.14.5.14: d[16, 8] += a[16, 16] b[8, 16]^T, bf16 products, f32 sums. */
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SITE)
{
    PTX(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
                     "%7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
        soft_mma(d, a, b, 1, 1, SOFT_BF16, site));
}

/* sm_89: d[16, 8] += a[16, 32] b[8, 32]^T, e4m3 products. Registers hold the bytes that the bf16 form has at half the k. */
DEVICE void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SITE)
{
#if !defined(__CUDACC__)
    soft_mma(d, a, b, 1, 1, SOFT_E4M3, site);
#elif __CUDA_ARCH__ >= 890
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif
