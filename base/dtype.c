#include "dtype.h"
#include "error.h"

#include <math.h>

static const struct {
    const char *name;
    size_t size;
} info[DT_COUNT] = {
    [DT_NONE] = {"NONE", 0},      [DT_F32] = {"F32", 4}, [DT_BF16] = {"BF16", 2}, [DT_F16] = {"F16", 2},
    [DT_F8E4M3] = {"F8_E4M3", 1}, [DT_I32] = {"I32", 4}, [DT_I64] = {"I64", 8},   [DT_U8] = {"U8", 1},
};

size_t dtype_size(enum dtype t)
{
    return (unsigned)t < DT_COUNT ? info[t].size : 0;
}

const char *dtype_name(enum dtype t)
{
    return (unsigned)t < DT_COUNT ? info[t].name : "?";
}

float f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float f = (float)mantissa * 0x1p-24f; /* subnormal */
    return sign ? -f : f;
}

float f32_from_f8e4m3(uint8_t b)
{
    int exponent = (b >> 3) & 15, mantissa = b & 7;
    if (exponent == 15 && mantissa == 7) return NAN;
    float f = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return b & 0x80 ? -f : f;
}

uint8_t f8e4m3_from_f32(float f)
{
    uint32_t u = f32_bits(f), sign = u >> 24 & 0x80;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint8_t)(sign | 0x7f); /* NaN */
    if (f32_from_bits(u) >= 448) return (uint8_t)(sign | 0x7e);
    if (f32_from_bits(u) < 0x1p-6f) /* subnormal: the sum rounds to multiples of 2^-9 */
        return (uint8_t)(sign | (f32_bits(f32_from_bits(u) + 0x1p14f) - f32_bits(0x1p14f)));
    u += 0x7ffff + (u >> 20 & 1);
    return (uint8_t)(sign | ((u >> 20) - ((127 - 7) << 3)));
}

float f32_load(const void *p, enum dtype t, size_t i)
{
    switch (t) {
    case DT_F32:
        return ((const float *)p)[i];
    case DT_BF16:
        return f32_from_bf16(((const bf16 *)p)[i]);
    case DT_F16:
        return f32_from_f16(((const uint16_t *)p)[i]);
    case DT_F8E4M3:
        return f32_from_f8e4m3(((const uint8_t *)p)[i]);
    case DT_I32:
        return (float)((const int32_t *)p)[i];
    case DT_I64:
        return (float)((const int64_t *)p)[i];
    case DT_U8:
        return (float)((const uint8_t *)p)[i];
    default:
        CHECK(!"no such dtype");
        return 0;
    }
}

void f32_store(void *p, enum dtype t, size_t i, float f)
{
    if (t == DT_F32)
        ((float *)p)[i] = f;
    else if (t == DT_BF16)
        ((bf16 *)p)[i] = bf16_from_f32(f);
    else if (t == DT_F8E4M3)
        ((uint8_t *)p)[i] = f8e4m3_from_f32(f);
    else
        CHECK(!"f32_store: F32, BF16 or F8_E4M3 only");
}

void dtype_convert(void *to, enum dtype to_type, const void *from, enum dtype from_type, size_t n)
{
    if (to_type == from_type) {
        memcpy(to, from, n * dtype_size(to_type));
        return;
    }
    if (to_type == DT_F32 && from_type == DT_BF16) {
        for (size_t i = 0; i < n; i++) ((float *)to)[i] = f32_from_bf16(((const bf16 *)from)[i]);
        return;
    }
    if (to_type == DT_BF16 && from_type == DT_F32) {
        for (size_t i = 0; i < n; i++) ((bf16 *)to)[i] = bf16_from_f32(((const float *)from)[i]);
        return;
    }
    for (size_t i = 0; i < n; i++) f32_store(to, to_type, i, f32_load(from, from_type, i));
}
