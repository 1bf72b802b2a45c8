/* elements.h: numbers in memory as floats in registers, some at a time; sums over a warp; a block's place in a matrix.
 *
 * A packed<T, n> is n elements of T as they lie in memory, loaded and stored by one access of n * sizeof(T) = 1, 2, 4, 8 or 16 bytes.
 * Rows wait in registers packed (bf16 takes half the registers) and are unpacked where they are used, which is exact.
 * T = any_type: one element of a type known at run time only, in memory of any alignment. */
#ifndef KLEIN_DEVICE_ELEMENTS_H
#define KLEIN_DEVICE_ELEMENTS_H

#include "ptx_narrow.h"
#include "ptx_sm90.h"

struct f16 {
    uint16_t bits;
};
struct any_type {
    uint32_t bits; /* of the value as a float */
};

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

template <class T, int n>
struct packed {
    static constexpr int bytes = n * (int)sizeof(T);
    static_assert(bytes <= 16 && (!same<T, any_type> || n == 1), "one access");
    uint32_t w[(bytes + 3) / 4];
};

/* ---- one element of a run-time type ------------------------------------------------------------------------------ */

DEVICE float load_any(const void *p, int type, int64_t i SITE)
{
    switch (type) {
    case ELEMENT_BF16:
        return bf16_low(ld_global_2((const bf16 *)p + i PASS_SITE));
    case ELEMENT_F16:
        return float_from_f16(ld_global_2((const f16 *)p + i PASS_SITE));
    case ELEMENT_U8:
        return (float)ld_global_1((const uint8_t *)p + i PASS_SITE);
    default:
        return float_from_bits(ld_global_4((const float *)p + i PASS_SITE));
    }
}

DEVICE void store_any(void *p, int type, int64_t i, float f SITE)
{
    if (type == ELEMENT_BF16)
        st_global_2((bf16 *)p + i, pack_bf16(f, 0) PASS_SITE);
    else if (type == ELEMENT_U8)
        st_global_1((uint8_t *)p + i, (uint32_t)f PASS_SITE);
    else
        st_global_4((float *)p + i, bits_from_float(f) PASS_SITE);
}

/* ---- vectors ------------------------------------------------------------------------------------------------------ */

/* Elements (row, column ..) of m. */
template <class T, int n>
DEVICE packed<T, n> load(const matrix &m, int64_t row, int64_t column SITE)
{
    packed<T, n> v;
    const int64_t i = row * m.ld + column;
    const T *p = (const T *)m.ptr + i;
    if constexpr (same<T, any_type>) {
        v.w[0] = bits_from_float(load_any(m.ptr, m.type, i PASS_SITE));
    } else if constexpr (packed<T, n>::bytes == 16) {
        const u32x4 r = ld_global_16(p PASS_SITE);
        v.w[0] = r.x, v.w[1] = r.y, v.w[2] = r.z, v.w[3] = r.w;
    } else if constexpr (packed<T, n>::bytes == 8) {
        const u32x2 r = ld_global_8(p PASS_SITE);
        v.w[0] = r.x, v.w[1] = r.y;
    } else {
        static_assert(packed<T, n>::bytes == 4, "kernels of a fixed type move at least 4 bytes");
        v.w[0] = ld_global_4(p PASS_SITE);
    }
    return v;
}

template <class T, int n>
DEVICE void store(const matrix &m, int64_t row, int64_t column, const packed<T, n> &v SITE)
{
    const int64_t i = row * m.ld + column;
    T *p = (T *)m.ptr + i;
    if constexpr (same<T, any_type>)
        store_any(m.ptr, m.type, i, float_from_bits(v.w[0]) PASS_SITE);
    else if constexpr (packed<T, n>::bytes == 16)
        st_global_16(p, u32x4{v.w[0], v.w[1], v.w[2], v.w[3]} PASS_SITE);
    else if constexpr (packed<T, n>::bytes == 8)
        st_global_8(p, v.w[0], v.w[1] PASS_SITE);
    else {
        static_assert(packed<T, n>::bytes == 4, "kernels of a fixed type move at least 4 bytes");
        st_global_4(p, v.w[0] PASS_SITE);
    }
}

/* Stores 16 bytes where a lane's vector has 8: by a whole warp, whose lanes have neighbouring vectors a at `column` and b at column + apart.
 * Even lanes give b to the next lane for its a. Columns from `end` on, a multiple of 16, are not stored. */
DEVICE void store_pair(const matrix &m, int64_t row, int column, int apart, int end, const packed<fp8, 8> &a,
                       const packed<fp8, 8> &b SITE)
{
    const bool odd = lane_index() % 2;
    const uint32_t x = shfl_xor(odd ? a.w[0] : b.w[0], 1 PASS_SITE),
                   y = shfl_xor(odd ? a.w[1] : b.w[1], 1 PASS_SITE);
    if (odd) column += apart - 8;
    if (column < end)
        st_global_16((fp8 *)m.ptr + row * m.ld + column,
                     odd ? u32x4{x, y, b.w[0], b.w[1]} : u32x4{a.w[0], a.w[1], x, y} PASS_SITE);
}

template <class T, int n>
DEVICE void unpack(float (&f)[n], const packed<T, n> &v)
{
    UNROLL
    for (int i = 0; i < n; i++) {
        if constexpr (same<T, bf16>)
            f[i] = i % 2 ? bf16_high(v.w[i / 2]) : bf16_low(v.w[i / 2]);
        else if constexpr (same<T, f16>)
            f[i] = float_from_f16(v.w[i / 2] >> 16 * (i % 2) & 0xffff);
        else if constexpr (same<T, uint8_t>)
            f[i] = (float)(v.w[i / 4] >> 8 * (i % 4) & 0xff);
        else
            f[i] = float_from_bits(v.w[i]);
    }
}

/* Between two loops that unpack the same rows: else the compiler unpacks once and keeps all the floats. */
template <class T, int n, int count>
DEVICE void stay_packed(packed<T, n> (&v)[count])
{
    if constexpr (sizeof(T) < 4) {
        UNROLL
        for (int i = 0; i < count; i++) {
            UNROLL
            for (uint32_t &w : v[i].w) forget_derived(w);
        }
    }
}

/* Rounds once. e4m3: sm_89 and later; u8: f holds integers 0..255. */
template <class T, int n>
DEVICE packed<T, n> pack(const float (&f)[n])
{
    packed<T, n> v = {};
    UNROLL
    for (int i = 0; i < n; i++) {
        if constexpr (same<T, bf16>)
            v.w[i / 2] = i % 2 ? v.w[i / 2] : pack_bf16(f[i], f[i + 1]);
        else if constexpr (same<T, fp8>)
            v.w[i / 4] |= i % 2 ? 0 : (uint32_t)pack_e4m3(f[i], f[i + 1]) << 8 * (i % 4);
        else if constexpr (same<T, uint8_t>)
            v.w[i / 4] |= (uint32_t)f[i] << 8 * (i % 4);
        else
            v.w[i] = bits_from_float(f[i]);
    }
    return v;
}

/* ---- warps and blocks -------------------------------------------------------------------------------------------- */

/* Over all lanes, in a fixed order; every lane gets it. */
DEVICE float warp_sum(float f)
{
    for (int mask = 16; mask; mask /= 2) f += shfl_xor(f, mask);
    return f;
}

DEVICE float warp_max(float f)
{
    for (int mask = 16; mask; mask /= 2) f = fmaxf(f, shfl_xor(f, mask));
    return f;
}

/* This thread's part of a matrix divided by s: vector `column` of rows first, first + down, ... < end. */
struct place {
    int column, first, end;
};
DEVICE place place_in(const spread &s)
{
    const int chunk = block_x() / s.tiles, tile = block_x() - chunk * s.tiles,
              from = chunk * s.rows_per_block;
    const int down = thread_index() / s.across;
    place p;
    p.column = tile * s.across + thread_index() - down * s.across;
    p.first = from + down;
    p.end = s.rows - from < s.rows_per_block ? s.rows : from + s.rows_per_block;
    if (down >= s.down || p.column >= s.vectors) p.end = 0; /* nothing */
    return p;
}

#endif
