#include "amx.h"

#ifdef __AMX_BF16__

/* As asm: the compilers' intrinsics do not say what memory they read (ldtilecfg: GCC 12 leaves out the stores before it). */
#define REGISTERS
#define ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define LOAD(t, from, stride)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory")
/* For what passes by once: it does not drive what stays in the first cache out of it. */
#define LOAD_PASSING(t, from, stride)                                                                        \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #t ::"r"(from), "r"(stride) : "memory")
#define STORE(t, to, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory")
#define MULTIPLY(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

void ISA(amx_begin)(void)
{
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.bytes[t] = 64, config.rows[t] = AMX_M;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

void ISA(amx_end)(void)
{
    __asm__ volatile("tilerelease" ::: "memory");
}

#else

union tile {
    float f[16][16];
    bf16 h[16][32];
};

#define REGISTERS             union tile tile[8]
#define ZERO(t)               memset(&tile[t], 0, sizeof tile[t])
#define LOAD(t, from, stride) load(&tile[t], from, stride)
#define LOAD_PASSING          LOAD
#define STORE(t, to, stride)  store(&tile[t], to, stride)
#define MULTIPLY(c, a, b)     multiply(&tile[c], &tile[a], &tile[b])

static void load(union tile *t, const void *from, size_t stride)
{
    for (size_t i = 0; i < 16; i++) memcpy(t->h[i], (const char *)from + i * stride, 64);
}

static void store(const union tile *t, void *to, size_t stride)
{
    for (size_t i = 0; i < 16; i++) memcpy((char *)to + i * stride, t->h[i], 64);
}

static void multiply(union tile *c, const union tile *a, const union tile *b)
{
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 32; k++)
            for (int j = 0; j < 16; j++)
                c->f[i][j] += f32_from_bf16(a->h[i][k]) * f32_from_bf16(b->h[k / 2][2 * j + k % 2]);
}

void ISA(amx_begin)(void) {}

void ISA(amx_end)(void) {}

#endif

static size_t part_of(const struct amx_product *p, int part)
{
    return p->part ? p->part[part] : 0;
}

/* One or two row tiles by two of columns: up to four sums, and the up to four operands that they need in each step. `tall` (two) is a constant where this
 * is used. */
static inline __attribute__((always_inline)) void sums(const struct amx_product *p, int tall,
                                                       const char *upper, const char *lower, float *c)
{
    REGISTERS;
    size_t ld = (size_t)p->ldc * sizeof *c, row = p->row, step = p->step, packed = AMX_ROW;
    int steps = p->steps;
    float *d = c + AMX_M * (size_t)p->ldc;
    if (p->accumulate) {
        LOAD(0, c, ld);
        LOAD(1, c + 16, ld);
    } else {
        ZERO(0);
        ZERO(1);
    }
    if (tall && p->accumulate) {
        LOAD(2, d, ld);
        LOAD(3, d + 16, ld);
    } else if (tall) {
        ZERO(2);
        ZERO(3);
    }
    const bf16 *right = p->right;
    for (int part = 0; part < p->parts; part++) {
        const char *a = upper + part_of(p, part), *b = lower + part_of(p, part);
        for (int s = 0; s < steps; s++, a += step, b += step, right += AMX_K * AMX_N) {
            LOAD_PASSING(4, a, row);
            LOAD(6, right, packed);
            MULTIPLY(0, 4, 6);
            LOAD(7, right + AMX_K * 16, packed);
            MULTIPLY(1, 4, 7);
            if (!tall) continue;
            LOAD_PASSING(5, b, row);
            MULTIPLY(2, 5, 6);
            MULTIPLY(3, 5, 7);
        }
    }
    STORE(0, c, ld);
    STORE(1, c + 16, ld);
    if (!tall) return;
    STORE(2, d, ld);
    STORE(3, d + 16, ld);
}

/* The i-th of n equal pieces. */
static void fetch(const struct amx_ahead *a, int i, int n)
{
    int width = ceil_div(a->bytes, 64), lines = a->rows * width;
    for (int l = lines * i / n; l < lines * (i + 1) / n; l++)
        __builtin_prefetch(a->at + (size_t)(l / width) * a->row + (size_t)(l % width) * 64, 0, 2);
}

void ISA(amx_product)(const struct amx_product *p)
{
    float *c = p->c;
    for (int i = 0; i < p->tiles; i += 2, c += 2 * AMX_M * (size_t)p->ldc) {
        for (int a = 0; a < 2; a++)
            if (p->ahead[a].rows) fetch(&p->ahead[a], i / 2, ceil_div(p->tiles, 2));
        if (i + 1 < p->tiles)
            sums(p, 1, p->left[i], p->left[i + 1], c);
        else
            sums(p, 0, p->left[i], p->left[i], c);
    }
}

/* --- packing --- */

/* Elements [at, at + AMX_K) of row i of t as bf16, zero beyond the rows and beyond `end`: where they lie, or in `buffer`. */
static const bf16 *piece(struct tensor t, int i, int at, int end, bf16 *buffer)
{
    if (i < t.rows && at + AMX_K <= end && t.dtype == DT_BF16) return (const bf16 *)row_of(t, i) + at;
    memset(buffer, 0, AMX_K * sizeof *buffer);
    if (i >= t.rows) return buffer;
    float factor = t.scale ? t.scale[i] : 1;
    for (int j = 0; j < AMX_K && at + j < end; j += VL) {
        vf v = vget(row_of(t, i), t.dtype, at + j, end);
        vstore_bf16(buffer + j, t.scale ? v * factor : v);
    }
    return buffer;
}

void ISA(amx_left)(bf16 *to, struct tensor a, int from, int k)
{
    for (int i = 0; i < a.rows; i += AMX_M)
        for (int j = 0; j < k; j += AMX_K)
            for (int r = 0; r < AMX_M; r++, to += AMX_K) {
                bf16 buffer[AMX_K];
                memcpy(to, piece(a, i + r, from + j, from + k, buffer), sizeof buffer);
            }
}

#ifdef __AVX512F__
static inline __m128 pairs(const bf16 *at)
{
    return _mm_loadu_ps((const float *)(const void *)at);
}
#endif

/* 16 rows of 16 pairs of elements, from element `at` on, transposed as pairs. */
static inline void transpose(bf16 *to, const bf16 *const row[AMX_M], int at)
{
#ifdef __AVX512F__
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) {
        __m512 v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) { /* rows i, i + 4, i + 8, i + 12 */
            __m512 x = _mm512_castps128_ps512(pairs(row[i] + at + 8 * quarter));
            x = _mm512_insertf32x4(x, pairs(row[i + 4] + at + 8 * quarter), 1);
            x = _mm512_insertf32x4(x, pairs(row[i + 8] + at + 8 * quarter), 2);
            v[i] = _mm512_insertf32x4(x, pairs(row[i + 12] + at + 8 * quarter), 3);
        }
        __m512d low01 = (__m512d)_mm512_unpacklo_ps(v[0], v[1]),
                low23 = (__m512d)_mm512_unpacklo_ps(v[2], v[3]);
        __m512d high01 = (__m512d)_mm512_unpackhi_ps(v[0], v[1]),
                high23 = (__m512d)_mm512_unpackhi_ps(v[2], v[3]);
        bf16 *out = to + quarter * 4 * 32;
        _mm512_storeu_pd(out, _mm512_unpacklo_pd(low01, low23));
        _mm512_storeu_pd(out + 32, _mm512_unpackhi_pd(low01, low23));
        _mm512_storeu_pd(out + 64, _mm512_unpacklo_pd(high01, high23));
        _mm512_storeu_pd(out + 96, _mm512_unpackhi_pd(high01, high23));
    }
#else
    for (int j = 0; j < AMX_K; j++)
        for (int i = 0; i < AMX_M; i++) to[(j / 2 * AMX_M + i) * 2 + j % 2] = row[i][at + j];
#endif
}

void ISA(amx_transposed)(bf16 *to, struct tensor b, int from, int k)
{
    enum { AHEAD = 256 }; /* elements: memory answers a few steps later */
    for (int half = 0; half < 2; half++, to += AMX_M * AMX_K) {
        int whole = b.dtype == DT_BF16 && b.rows >= (half + 1) * AMX_M ? k / AMX_K * AMX_K : 0;
        bf16 buffer[AMX_M][AMX_K];
        const bf16 *row[AMX_M];
        for (int i = 0; i < AMX_M && whole; i++) row[i] = (const bf16 *)row_of(b, half * AMX_M + i) + from;
        for (int j = 0; j < k; j += AMX_K) {
            for (int i = 0; i < AMX_M; i++)
                if (j < whole)
                    __builtin_prefetch(row[i] + j + AHEAD);
                else
                    row[i] = piece(b, half * AMX_M + i, from + j, from + k, buffer[i]);
            transpose(to + j * AMX_N, row, j < whole ? j : 0);
        }
    }
}

void ISA(amx_right)(bf16 *to, struct tensor b, int from, int n)
{
    for (int c = 0; c < round_up(n, AMX_N); c += 16) {
        bf16 *column =
            to + (size_t)(c / AMX_N) * AMX_N * (size_t)round_up(b.rows, AMX_K) + (size_t)(c % AMX_N) * AMX_K;
        for (int i = 0; i < round_up(b.rows, AMX_K); i += 2) {
            bf16 pair[2][16] = {0};
            for (int r = 0; r < 2 && i + r < b.rows; r++)
                for (int j = 0; j < 16; j += VL)
                    vstore_bf16(pair[r] + j, vget(row_of(b, i + r), b.dtype, from + c + j, from + n));
            bf16 *out = column + (size_t)(i / AMX_K) * AMX_K * AMX_N + i % AMX_K / 2 * 32;
            for (int j = 0; j < 16; j++) out[2 * j] = pair[0][j], out[2 * j + 1] = pair[1][j];
        }
    }
}
