/* multiply.cpp: the inner loop of tensor_core.cpp, compiled once per instruction set (SOFT_ISA). */
#include "../soft.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__AVX512DQ__)
enum { WIDTH = 16 };
typedef float vector __attribute__((vector_size(64), aligned(4), may_alias));
static inline vector repeat(const float *p)
{
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
}
#elif defined(__AVX__)
enum { WIDTH = 8 };
typedef float vector __attribute__((vector_size(32), aligned(4), may_alias));
static inline vector repeat(const float *p)
{
    return _mm256_broadcast_ps((const __m128 *)p);
}
#else
enum { WIDTH = 4 };
typedef float4 vector;
static inline vector repeat(const float *p)
{
    return *(const float4 *)p;
}
#endif

/* `rows` rows of `vectors` vectors of d, in registers over all of k. */
template <int rows, int vectors>
static inline void multiply(const struct fragment_rows *r, const float *b, int j, int n, int k)
{
    vector d[rows][vectors];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) d[i][v] = *(const vector *)(r[i].d + j + WIDTH * v);
    for (int kk = 0; kk < k; kk++) {
        vector column[vectors];
        for (int v = 0; v < vectors; v++)
            column[v] = *(const vector *)(b + (size_t)kk * (size_t)n + j + WIDTH * v);
        for (int i = 0; i < rows; i++) {
            vector a = repeat(r[i].a + 4 * kk);
            for (int v = 0; v < vectors; v++) d[i][v] += a * column[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) *(vector *)(r[i].d + j + WIDTH * v) = d[i][v];
}

/* 4 columns */
static inline void multiply_narrow(const struct fragment_rows *r, const float *b, int j, int n, int k)
{
    float4 d = *(const float4 *)(r->d + j);
    for (int kk = 0; kk < k; kk++)
        d += *(const float4 *)(r->a + 4 * kk) * *(const float4 *)(b + (size_t)kk * (size_t)n + j);
    *(float4 *)(r->d + j) = d;
}

#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)
void NAME(multiply_, SOFT_ISA)(const struct fragment_rows *rows, int count, const float *b, int n, int k)
{
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        int j = 0;
        for (; j + 2 * WIDTH <= n; j += 2 * WIDTH) multiply<4, 2>(rows + i, b, j, n, k);
        for (; j + WIDTH <= n; j += WIDTH) multiply<4, 1>(rows + i, b, j, n, k);
        for (; j < n; j += 4)
            for (int l = 0; l < 4; l++) multiply_narrow(rows + i + l, b, j, n, k);
    }
    for (; i < count; i++)
        for (int j = 0; j < n; j += 4) multiply_narrow(rows + i, b, j, n, k);
}
