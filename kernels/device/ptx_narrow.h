/* ptx_narrow.h: global accesses of 8, 2 and 1 bytes, and binary16: what ptx_sm80.h has for 16 and 4, for data whose rows are not
 * aligned or whose types differ. Same rules: one instruction = one function, naturally aligned. */
#ifndef KLEIN_DEVICE_PTX_NARROW_H
#define KLEIN_DEVICE_PTX_NARROW_H

#include "ptx_sm80.h"

struct alignas(8) u32x2 {
    uint32_t x, y;
};

/* 9.7.9.8 */
DEVICE u32x2 ld_global_8(const void *p SITE)
{
    u32x2 r;
#ifdef __CUDACC__
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p) : "memory");
#else
    soft_global(p, 8, SOFT_READ, site);
    memcpy(&r, p, 8);
#endif
    return r;
}

DEVICE uint32_t ld_global_2(const void *p SITE)
{
#ifdef __CUDACC__
    uint16_t r;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(r) : "l"(p) : "memory");
#else
    uint16_t r;
    soft_global(p, 2, SOFT_READ, site);
    memcpy(&r, p, 2);
#endif
    return r;
}

DEVICE uint32_t ld_global_1(const void *p SITE)
{
    uint32_t r;
#ifdef __CUDACC__
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
#else
    soft_global(p, 1, SOFT_READ, site);
    r = *(const uint8_t *)p;
#endif
    return r;
}

DEVICE void st_global_2(void *p, uint32_t v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"((uint16_t)v) : "memory");
#else
    soft_global(p, 2, SOFT_WRITE, site);
    memcpy(p, &v, 2);
#endif
}

DEVICE void st_global_1(void *p, uint32_t v SITE)
{
#ifdef __CUDACC__
    asm volatile("st.global.u8 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
    soft_global(p, 1, SOFT_WRITE, site);
    memcpy(p, &v, 1);
#endif
}

/* 9.7.9.22: binary16, in the low half: exact. */
DEVICE float float_from_f16(uint32_t h)
{
#ifdef __CUDACC__
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"((uint16_t)h));
    return r;
#else
    const uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13); /* Inf, NaN */
    const float magnitude =
        rest < 0x400u ? (float)rest * 0x1p-24f : float_from_bits((rest << 13) + (112u << 23));
    return float_from_bits(sign | bits_from_float(magnitude));
#endif
}

/* No instruction: the compiler forgets what it has computed from r, and so computes it again instead of keeping it in registers. */
DEVICE void forget_derived(uint32_t &r)
{
    PTX(asm("" : "+r"(r)), (void)r);
}

#endif
