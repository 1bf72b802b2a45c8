/* ptx_wgmma.h: the asynchronous matrix product of a warpgroup, sm_90a only (PTX ISA 9.7.15).
 *
 *   wgmma_fence();                       before the first product, and whenever registers of it were touched
 *   wgmma_bf16<n>(d, a, b, accumulate);  d[64, n] (+)= a[64, 16] b[n, 16]^T, for all 128 threads
 *   wgmma_commit(); wgmma_wait<N>();     at most the N newest groups go on: then d, a in registers and the tiles are free again
 *
 * d: n / 2 floats per thread; element i is row 16 warp + lane/4 + 8 (i/2 % 2), column 8 (i/4) + 2 (lane%4) + i%2. */
#ifndef KLEIN_DEVICE_PTX_WGMMA_H
#define KLEIN_DEVICE_PTX_WGMMA_H

#include "ptx_sm90.h"

/* The descriptor of a K-major operand with rows of 128 bytes, swizzled, in groups of 8 rows (1024 bytes, 1024-aligned) one after
 * the other. A k step of 32 bytes within the row is + 2. */
DEVICE uint64_t wgmma_tile(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fff) | 1ull << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

/* The same for an MN-major operand: rows along k, 64 elements of mn each. `chunk` bytes lie between 64-element chunks along mn; 8 rows
 * of k are 1024 bytes. A k step of 16 is + 2048 bytes (+ 128). */
DEVICE uint64_t wgmma_tile_mn(uint32_t address, uint32_t chunk)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(chunk >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           1ull << 62;
}

DEVICE void wgmma_fence()
{
    PTX(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"), soft_wgmma_fence());
}

DEVICE void wgmma_commit(SITE_ONLY)
{
    PTX(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"), soft_wgmma_commit(site));
}

template <int newest>
DEVICE void wgmma_wait(SITE_ONLY)
{
    PTX(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(newest)
                     : "memory"),
        soft_wgmma_wait(newest, site));
}

#ifdef __CUDACC__

#define WGMMA_D8(d, i)                                                                                       \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),              \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_D32(d, i) WGMMA_D8(d, i), WGMMA_D8(d, i + 8), WGMMA_D8(d, i + 16), WGMMA_D8(d, i + 24)
#define WGMMA_D64(d)    WGMMA_D32(d, 0), WGMMA_D32(d, 32)
#define WGMMA_D72(d)    WGMMA_D64(d), WGMMA_D8(d, 64)
#define WGMMA_D96(d)    WGMMA_D64(d), WGMMA_D32(d, 64)
#define WGMMA_D128(d)   WGMMA_D64(d), WGMMA_D32(d, 64), WGMMA_D32(d, 96)
#define WGMMA_R32                                                                                            \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
    "%22, %23, %24, %25, %26, "                                                                              \
    "%27, %28, %29, %30, %31"
#define WGMMA_R64                                                                                            \
    WGMMA_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
              "%50, %51, %52, %53, %54, "                                                                    \
              "%55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R72 WGMMA_R64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_R96                                                                                            \
    WGMMA_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
              "%82, %83, %84, %85, %86, "                                                                    \
              "%87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R128                                                                                           \
    WGMMA_R96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
              "%111, %112, %113, %114, %115, "                                                               \
              "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* One instruction: shape and types, registers of d, their constraints, the numbers of the operands that follow. */
#define WGMMA_SS(shape, r, d, a_, b_, p_, tail)                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\nwgmma.mma_async.sync.aligned." shape " {" r \
                 "}, %" #a_ ", %" #b_ ", p, 1, 1" tail ";\n}"                                                \
                 : d                                                                                         \
                 : "l"(a), "l"(b), "r"((int)accumulate))
#define WGMMA_RS(shape, r, d, a0, a1, a2, a3, b_, p_, tail)                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\nwgmma.mma_async.sync.aligned." shape " {" r \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ ", p, 1, 1" tail ";\n}"                \
                 : d                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate))

#endif

/* bf16, both operands in shared memory. b_mn: b is MN-major (wgmma_tile_mn). */
template <int n, bool b_mn = false>
DEVICE void wgmma_bf16(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate SITE)
{
    static_assert(n == 64 || n == 128 || n == 144 || n == 192 || n == 256, "widths written out below");
#ifdef __CUDACC__
    if constexpr (n == 64 && !b_mn)
        WGMMA_SS("m64n64k16.f32.bf16.bf16", WGMMA_R32, WGMMA_D32(d, 0), 32, 33, 34, ", 0, 0");
    if constexpr (n == 128 && !b_mn)
        WGMMA_SS("m64n128k16.f32.bf16.bf16", WGMMA_R64, WGMMA_D64(d), 64, 65, 66, ", 0, 0");
    if constexpr (n == 144 && !b_mn)
        WGMMA_SS("m64n144k16.f32.bf16.bf16", WGMMA_R72, WGMMA_D72(d), 72, 73, 74, ", 0, 0");
    if constexpr (n == 192 && !b_mn)
        WGMMA_SS("m64n192k16.f32.bf16.bf16", WGMMA_R96, WGMMA_D96(d), 96, 97, 98, ", 0, 0");
    if constexpr (n == 256 && !b_mn)
        WGMMA_SS("m64n256k16.f32.bf16.bf16", WGMMA_R128, WGMMA_D128(d), 128, 129, 130, ", 0, 0");
    if constexpr (n == 64 && b_mn)
        WGMMA_SS("m64n64k16.f32.bf16.bf16", WGMMA_R32, WGMMA_D32(d, 0), 32, 33, 34, ", 0, 1");
    if constexpr (n == 128 && b_mn)
        WGMMA_SS("m64n128k16.f32.bf16.bf16", WGMMA_R64, WGMMA_D64(d), 64, 65, 66, ", 0, 1");
    static_assert(!b_mn || n <= 128, "not written out");
#else
    soft_wgmma(d, n, nullptr, a, b, b_mn, accumulate, SOFT_BF16, site);
#endif
}

/* bf16, a in registers: per warp the fragment of mma_m16n8k16_bf16. The registers stay untouched until the wait. */
template <int n, bool b_mn = false>
DEVICE void wgmma_bf16(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate SITE)
{
    static_assert(n == 64 || n == 128, "widths written out below");
#ifdef __CUDACC__
    if constexpr (n == 64 && !b_mn)
        WGMMA_RS("m64n64k16.f32.bf16.bf16", WGMMA_R32, WGMMA_D32(d, 0), 32, 33, 34, 35, 36, 37, ", 0");
    if constexpr (n == 128 && !b_mn)
        WGMMA_RS("m64n128k16.f32.bf16.bf16", WGMMA_R64, WGMMA_D64(d), 64, 65, 66, 67, 68, 69, ", 0");
    if constexpr (n == 64 && b_mn)
        WGMMA_RS("m64n64k16.f32.bf16.bf16", WGMMA_R32, WGMMA_D32(d, 0), 32, 33, 34, 35, 36, 37, ", 1");
    if constexpr (n == 128 && b_mn)
        WGMMA_RS("m64n128k16.f32.bf16.bf16", WGMMA_R64, WGMMA_D64(d), 64, 65, 66, 67, 68, 69, ", 1");
#else
    soft_wgmma(d, n, a, 0, b, b_mn, accumulate, SOFT_BF16, site);
#endif
}

/* e4m3: k step of 32 elements, the same bytes; K-major only. */
template <int n>
DEVICE void wgmma_e4m3(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate SITE)
{
    static_assert(n == 64 || n == 128 || n == 144 || n == 192 || n == 256, "widths written out below");
#ifdef __CUDACC__
    if constexpr (n == 64) WGMMA_SS("m64n64k32.f32.e4m3.e4m3", WGMMA_R32, WGMMA_D32(d, 0), 32, 33, 34, "");
    if constexpr (n == 128) WGMMA_SS("m64n128k32.f32.e4m3.e4m3", WGMMA_R64, WGMMA_D64(d), 64, 65, 66, "");
    if constexpr (n == 144) WGMMA_SS("m64n144k32.f32.e4m3.e4m3", WGMMA_R72, WGMMA_D72(d), 72, 73, 74, "");
    if constexpr (n == 192) WGMMA_SS("m64n192k32.f32.e4m3.e4m3", WGMMA_R96, WGMMA_D96(d), 96, 97, 98, "");
    if constexpr (n == 256)
        WGMMA_SS("m64n256k32.f32.e4m3.e4m3", WGMMA_R128, WGMMA_D128(d), 128, 129, 130, "");
#else
    soft_wgmma(d, n, nullptr, a, b, false, accumulate, SOFT_E4M3, site);
#endif
}

#endif
