/* vec.h: vectors of VL floats, as wide as the instruction set that this compilation is for. Everything is written with the
 * compiler's vector types; a few operations that it does not find by itself are spelled out for AVX-512. */
#ifndef KLEIN_VEC_H
#define KLEIN_VEC_H

#include "../cpu.h"

#include <math.h>

#define ISA_NAME_(name, isa) name##_##isa
#define ISA_NAME(name, isa)  ISA_NAME_(name, isa)
#define ISA(name)            ISA_NAME(name, CPU_ISA)

#if defined(__AVX512F__)
#include <immintrin.h>
enum { VL = 16 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

static inline vf vset(float f)
{
    return f - (vf){0};
}

static inline vf vload_f32(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vf vload_bf16(const bf16 *p)
{
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

static inline void vstore_f32(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

/* a where the mask is set, else b. */
static inline vf vselect(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

static inline void vstore_bf16(bf16 *p, vf v)
{
#ifdef __AVX512BF16__ /* the same but for denormal numbers, which become zero, as in products */
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    vu u = (vu)v, rounded = u + 0x7fff + (u >> 16 & 1);
    u = (vu)vselect(v == v, (vf)rounded, (vf)(u | 0x400000)) >> 16; /* NaN stays NaN */
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)u));
#else
    vh h = __builtin_convertvector(u, vh);
    memcpy(p, &h, sizeof h);
#endif
#endif
}

/* v, rounded here and now: the compiler does not fuse what made it with what follows. */
static inline vf vrounded(vf v)
{
    __asm__("" : "+v"(v));
    return v;
}

/* Elements [c, c + VL) of a row of n; what lies beyond n is zero. t: any float type. */
static inline vf vget(const void *row, enum dtype t, int c, int n)
{
    if (c + VL <= n && t == DT_F32) return vload_f32((const float *)row + c);
    if (c + VL <= n && t == DT_BF16) return vload_bf16((const bf16 *)row + c);
#if defined(__AVX512F__)
    if (c + VL <= n && t == DT_F16)
        return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)row + c)));
#elif defined(__F16C__)
    if (c + VL <= n && t == DT_F16)
        return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + c)));
#endif
    float f[VL] = {0};
    for (int i = 0; i < VL && c + i < n; i++) f[i] = f32_load(row, t, (size_t)(c + i));
    return vload_f32(f);
}

/* Stores them, rounded to t; nothing beyond n. */
static inline void vput(void *row, enum dtype t, int c, int n, vf v)
{
    if (c + VL <= n && t == DT_F32) {
        vstore_f32((float *)row + c, v);
    } else if (c + VL <= n) {
        vstore_bf16((bf16 *)row + c, v);
    } else {
        float f[VL];
        vstore_f32(f, v);
        for (int i = 0; i < VL && c + i < n; i++) f32_store(row, t, (size_t)(c + i), f[i]);
    }
}

/* The larger; y where x is NaN or y is. */
static inline vf vmax(vf x, vf y)
{
#ifdef __AVX512F__
    return (vf)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return vselect(x > y, x, y);
#endif
}

static inline float vsum(vf v)
{
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float f[VL];
    vstore_f32(f, v);
    for (int n = VL / 2; n; n /= 2)
        for (int i = 0; i < n; i++) f[i] += f[i + n];
    return f[0];
#endif
}

static inline float vlargest(vf v)
{
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float f[VL];
    vstore_f32(f, v);
    for (int i = 1; i < VL; i++) f[0] = f[i] > f[0] ? f[i] : f[0];
    return f[0];
#endif
}

/* e^x to about 1 ulp, for x up to 88; below -87 the smallest normal number. e^x = 2^n e^r, |r| <= ln 2 / 2; the polynomial
 * is Taylor's to degree 7 (error 2e-9 there). NaN stays NaN. */
static inline vf vexp(vf x)
{
    const float to_int = 0x1.8p23f; /* adding it leaves the rounded integer in the low bits */
    x = vmax(vset(-87.0f), x);
    vf t = x * 1.44269504f + to_int, n = t - to_int;
    vf r = x - n * 0x1.62e4p-1f -
           n * 0x1.7f7d1cp-20f; /* ln 2 in two parts, the first with few bits: n times it is exact */
    vf p = vset(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vf)((vu)p + ((vu)t << 23));
}

static inline vf vsilu(vf x)
{
    return x / (1.0f + vexp(-vmax(vset(-88.0f), x)));
}

/* Rows of a tensor, typed by use. */
static inline void *row_of(struct tensor t, int row)
{
    return tensor_at(t, row, 0);
}

/* A group norm per channel: (x - mean) * scale + shift. The three vectors live in scratch of 3 c floats. */
struct norm_channels {
    const float *mean, *scale, *shift;
};

/* Mean and 1 / sqrt(var + eps) of group g of the whole image. */
static inline void norm_statistics(const struct group_norm *norm, int g, float *mean, float *scale)
{
    double weight = 0, sum = 0, squares = 0;
    *mean = tensor_get(norm->stats, g, 0);
    *scale = tensor_get(norm->stats, g, 1);
    if (norm_bands(norm) == 1) return;
    for (int i = 0, at = g; i < norm->bands; i++, at += norm_groups(norm)) {
        weight += norm->weight[i];
        sum += norm->weight[i] * (double)tensor_get(norm->stats, at, 0);
    }
    for (int i = 0, at = g; i < norm->bands; i++, at += norm_groups(norm)) {
        double d = tensor_get(norm->stats, at, 0) - sum / weight, s = tensor_get(norm->stats, at, 1);
        squares += norm->weight[i] * (1 / (s * s) + d * d);
    }
    *mean = (float)(sum / weight);
    *scale = (float)(1 / sqrt(squares / weight));
}

static inline struct norm_channels norm_channels(const struct group_norm *norm, int channels, float *to)
{
    int size = channels / norm_groups(norm);
    for (int c = 0; c < channels; c++) {
        float scale;
        norm_statistics(norm, c / size, &to[c], &scale);
        to[channels + c] = scale * tensor_get(norm->gamma, 0, c);
        to[2 * channels + c] = tensor_get(norm->beta, 0, c);
    }
    return (struct norm_channels){to, to + channels, to + 2 * channels};
}

/* Of channels [c, c + VL) of n. */
static inline vf norm_at(const struct norm_channels *norm, vf x, int c, int n)
{
    return (x - vget(norm->mean, DT_F32, c, n)) * vget(norm->scale, DT_F32, c, n) +
           vget(norm->shift, DT_F32, c, n);
}

/* n elements of any float type -> F32 or BF16. */
void ISA(convert)(void *to, enum dtype to_type, const void *from, enum dtype from_type, int n);

static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

/* Size in bytes rounded so that pieces of scratch keep their alignment. */
static inline size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

#define X(op, args)                                                                                          \
    enum klein_status ISA(cpu_##op)(struct device * dev, const struct args *a, struct klein_error *err);
X(rmsnorm, rmsnorm_args)
X(adaln, adaln_args)
X(linear, linear_args)
X(attention, attention_args)
X(conv, conv_args)
X(gn_stats, gn_stats_args)
X(gn_apply, gn_apply_args)
#undef X

#endif
