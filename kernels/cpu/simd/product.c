#include "product.h"

enum { SLIVERS = 4 };

/* The first n elements of a vector of c, at most VL. */
static __attribute__((noinline)) void store_part(float *c, int n, vf v, int more)
{
    vput(c, DT_F32, 0, n, more ? v + vget(c, DT_F32, 0, n) : v);
}

/* `rows` is a constant where this is used, so that the sums are registers. */
static inline __attribute__((always_inline)) void micro(int rows, const struct product *p, int row,
                                                        int column, int from, int k, const float *b)
{
    const float *a[PRODUCT_M];
    vf sum[PRODUCT_M][2];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        a[i] = p->a[row + i] + p->offset + from;
        sum[i][0] = sum[i][1] = (vf){0};
    }
    for (int j = 0; j < k; j++, b += PRODUCT_N) {
        vf left = vload_f32(b), right = vload_f32(b + VL);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            vf x = vset(a[i][j]);
            sum[i][0] += x * left;
            sum[i][1] += x * right;
        }
    }
    int more = p->accumulate || from, whole = column + PRODUCT_N <= p->n;
    float *c = p->c + (size_t)row * (size_t)p->ldc + column;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++, c += p->ldc) {
        if (whole) {
            vstore_f32(c, more ? sum[i][0] + vload_f32(c) : sum[i][0]);
            vstore_f32(c + VL, more ? sum[i][1] + vload_f32(c + VL) : sum[i][1]);
        } else {
            store_part(c, p->n - column, sum[i][0], more);
            if (column + VL < p->n) store_part(c + VL, p->n - column - VL, sum[i][1], more);
        }
    }
}

static void micro_of(int rows, const struct product *p, int row, int column, int from, int k, const float *b)
{
    switch (rows) {
#define ROWS(r)                                                                                              \
    case r:                                                                                                  \
        micro(r, p, row, column, from, k, b);                                                                \
        return;
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
        ROWS(5)
        ROWS(6)
#ifdef __AVX512F__ /* PRODUCT_M is 8 */
        ROWS(7)
        ROWS(8)
#endif
#undef ROWS
    default:
        CHECK(0);
    }
}

void ISA(product)(const struct product *p)
{
    for (int from = 0; from < p->k; from += PRODUCT_K)
        for (int block = 0; block < p->n; block += SLIVERS * PRODUCT_N)
            for (int row = 0; row < p->m; row += PRODUCT_M)
                for (int column = block; column < min_int(p->n, block + SLIVERS * PRODUCT_N);
                     column += PRODUCT_N)
                    micro_of(min_int(PRODUCT_M, p->m - row), p, row, column, from,
                             min_int(PRODUCT_K, p->k - from),
                             p->packed + (size_t)(column / PRODUCT_N) * p->stride + (size_t)from * PRODUCT_N);
}

/* --- packing --- */

#if defined(__AVX512F__)
#define LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define LOW  0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW  0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif

/* VL vectors transposed: interleaving the first half with the second log2(VL) times. */
static inline void transpose(vf v[VL])
{
    vf w[VL];
#pragma GCC unroll 4
    for (int stage = 1; stage < VL; stage *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < VL / 2; i++) {
            w[2 * i] = __builtin_shufflevector(v[i], v[i + VL / 2], LOW);
            w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + VL / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) v[i] = w[i];
    }
}

/* Elements [c, c + VL) of row i; zero where there is none. */
static inline vf element(struct tensor b, int i, int c, int end)
{
    return i < b.rows ? vget(row_of(b, i), b.dtype, c, end) : (vf){0};
}

void ISA(pack_rows)(float *to, struct tensor b, int from, int k)
{
    for (int sliver = 0; sliver < b.rows; sliver += PRODUCT_N, to += (size_t)k * PRODUCT_N)
        for (int half = 0; half < 2; half++)
            for (int j = 0; j < k; j += VL) {
                vf v[VL];
                int first = sliver + half * VL;
                for (int i = 0; i < VL; i++) {
                    v[i] = element(b, first + i, from + j, from + k);
                    if (b.scale && first + i < b.rows) v[i] *= b.scale[first + i];
                }
                transpose(v);
                for (int i = 0; i < VL && j + i < k; i++)
                    vstore_f32(to + (size_t)(j + i) * PRODUCT_N + half * VL, v[i]);
            }
}

void ISA(pack_columns)(float *to, struct tensor b, int from, int n)
{
    for (int i = 0; i < b.rows; i++, to += PRODUCT_N) {
        float *sliver = to;
        for (int c = 0; c < n; c += PRODUCT_N, sliver += (size_t)b.rows * PRODUCT_N) {
            vstore_f32(sliver, vget(row_of(b, i), b.dtype, from + c, from + n));
            vstore_f32(sliver + VL,
                       c + VL < n ? vget(row_of(b, i), b.dtype, from + c + VL, from + n) : (vf){0});
        }
    }
}
