/* dtype.h: element types and their exact conversions. Rounding is to nearest, ties to even, unless said. */
#ifndef KLEIN_DTYPE_H
#define KLEIN_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DT_NONE, DT_F32, DT_BF16, DT_F16, DT_F8E4M3, DT_I32, DT_I64, DT_U8, DT_COUNT };

size_t dtype_size(enum dtype t);      /* bytes per element; 0 for DT_NONE */
const char *dtype_name(enum dtype t); /* safetensors spelling: "F32", "BF16", "F16", "F8_E4M3", "I32", ... */

typedef uint16_t bf16; /* bit pattern: the upper half of an IEEE binary32 */

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_from_bf16(bf16 h)
{
    return f32_from_bits((uint32_t)h << 16);
}

static inline bf16 bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (bf16)((u >> 16) | 0x40); /* NaN stays NaN */
    return (bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

float f32_from_f16(uint16_t h);
float f32_from_f8e4m3(uint8_t b); /* OCP E4M3: no infinities, 0x7f and 0xff are NaN, largest 448 */
uint8_t f8e4m3_from_f32(float f); /* beyond 448: 448, as GPUs convert */

/* Element i of an array of type t (floats and integers) as float. */
float f32_load(const void *p, enum dtype t, size_t i);
/* Stores f as element i; t is DT_F32, DT_BF16 or DT_F8E4M3. */
void f32_store(void *p, enum dtype t, size_t i, float f);
/* Converts n elements; `from` any float type, `to` DT_F32, DT_BF16 or DT_F8E4M3. The arrays do not overlap. */
void dtype_convert(void *to, enum dtype to_type, const void *from, enum dtype from_type, size_t n);

#endif
