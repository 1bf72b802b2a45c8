/* tensor_core.cpp: the arithmetic of mma.sync and wgmma, on fragments as they lie in the threads' registers.
 *
 * Both instructions give a thread, of every 8 columns, the pair 2q, 2q+1 of a low and of a high row: (low, low, high, high). So
 * with a stored as that pattern per k and b as the matching columns per k, d += a b is an elementwise product of rows of
 * floats, and nothing is ever transposed back. Products of bf16 or e4m3 are exact in f32; sums are f32 in order of k, one
 * rounding each, so that a fused multiply-add gives the same bits and every processor agrees. */
#include "soft.h"

#include <math.h>
#include <stdlib.h>

#define ISA(isa)                                                                                             \
    void multiply_##isa(const struct fragment_rows *rows, int count, const float *b, int n, int k)
ISA(base); /* isa/multiply.cpp */
ISA(avx2);
ISA(avx512);

typedef void multiply_fn(const struct fragment_rows *, int, const float *, int, int);

/* The widest that the processor has, or what KLEIN_SOFT_ISA names: all give the same bits. */
static multiply_fn *choose(void)
{
    const char *wanted = getenv("KLEIN_SOFT_ISA");
    auto take = [wanted](const char *isa) { return !wanted || !strcmp(wanted, isa); };
    __builtin_cpu_init();
    if (take("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return multiply_avx512;
    if (take("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_avx2;
    return multiply_base;
}

/* The pessimistic model of an FP8 tensor core: the products of one instruction and the running sum are aligned to the largest of
 * them and cut to 13 fraction bits (arXiv 2512.07004 fits such models to real chips). */
static float sum_truncated(float d, const float *a, const float *b, size_t b_stride, int k)
{
    float largest = fabsf(d);
    for (int kk = 0; kk < k; kk++) largest = fmaxf(largest, fabsf(a[4 * kk] * b[(size_t)kk * b_stride]));
    if (!(largest > 0) || !isfinite(largest)) {
        for (int kk = 0; kk < k; kk++) d += a[4 * kk] * b[(size_t)kk * b_stride];
        return d;
    }
    int exponent;
    frexpf(largest, &exponent); /* largest < 2^exponent */
    float unit = ldexpf(1.0f, exponent - 1 - 13), sum = truncf(d / unit);
    for (int kk = 0; kk < k; kk++) sum += truncf(a[4 * kk] * b[(size_t)kk * b_stride] / unit);
    return sum * unit;
}

void tensor_core(const struct fragment_rows *rows, int count, const float *b, int n, int k, soft_operand type)
{
    static multiply_fn *const multiply_best = choose();
    if (type == SOFT_E4M3 && soft_config.truncate_fp8) {
        for (int i = 0; i < count; i++)
            for (int j = 0; j < n; j++)
                rows[i].d[j] = sum_truncated(rows[i].d[j], rows[i].a + (j & 3), b + j, (size_t)n, k);
        return;
    }
    multiply_best(rows, count, b, n, k);
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

float bf16_value(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float e4m3_values[256];

__attribute__((constructor)) static void fill_e4m3_values(void)
{
    for (int i = 0; i < 256; i++) {
        int exponent = i >> 3 & 15, mantissa = i & 7;
        float f = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
        e4m3_values[i] = (i & 0x7f) == 0x7f ? NAN : i & 0x80 ? -f : f;
    }
}

/* ---- mma.sync: a warp tile of mi x ni instructions (9.7.14.5) ------------------------------------------------------- */

struct mma {
    float *d;
    const uint32_t *a, *b;
    int mi, ni;
    soft_operand type;
};

enum { MI_MAX = 8, NI_MAX = 32, K_MAX = 32 };

/* The elements of register r: 2 bf16 or 4 e4m3, at k0(r) + 0.. */
static int decode(uint32_t r, soft_operand type, float *out)
{
    if (type == SOFT_BF16) {
        out[0] = bf16_value((uint16_t)r);
        out[1] = bf16_value((uint16_t)(r >> 16));
        return 2;
    }
    for (int i = 0; i < 4; i++) out[i] = e4m3_values[r >> 8 * i & 255];
    return 4;
}

/* The operands of a warp's products as floats. */
struct alignas(64) unpacked {
    float a[MI_MAX][8][K_MAX][4];
    alignas(64) float columns[4][K_MAX * 4 * NI_MAX]; /* [q][k][n] */
};
const size_t unpacked_bytes = sizeof(struct unpacked);

static void multiply_warp(struct warp *w, struct block *b, void **arguments)
{
    struct mma **m = (struct mma **)arguments;
    const int mi = m[0]->mi, ni = m[0]->ni, k = m[0]->type == SOFT_BF16 ? 16 : 32, n = 4 * ni;
    const soft_operand type = m[0]->type;
    auto &a = b->slot->unpacked->a;
    auto &columns = b->slot->unpacked->columns;
    for (int lane = 0; lane < LANES; lane++) {
        const int g = lane >> 2, q = lane & 3;
        float e[4];
        for (int i = 0; i < mi; i++)
            for (int r = 0; r < 4; r++) { /* registers 0, 2: row g; 1, 3: row g + 8; 2, 3: second half of k */
                int c = decode(m[lane]->a[4 * i + r], type, e);
                for (int x = 0; x < c; x++) {
                    float *pattern = a[i][g][c * q + x + (r >> 1) * (k / 2)];
                    pattern[2 * (r & 1)] = pattern[2 * (r & 1) + 1] = e[x];
                }
            }
        /* This lane's b is column g of each instruction: columns 2q', 2q'+1 belong to the lanes with q' = g / 2. */
        for (int j = 0; j < ni; j++)
            for (int r = 0; r < 2; r++) {
                int c = decode(m[lane]->b[2 * j + r], type, e);
                for (int x = 0; x < c; x++) {
                    float *row = columns[g >> 1] + (c * q + x + r * (k / 2)) * n + 4 * j + (g & 1);
                    row[0] = row[2] = e[x];
                }
            }
    }
    for (int q = 0; q < 4; q++) {
        struct fragment_rows rows[8 * MI_MAX];
        int count = 0;
        for (int i = 0; i < mi; i++)
            for (int g = 0; g < 8; g++)
                rows[count++] = {m[4 * g + q]->d + (size_t)i * (size_t)n, &a[i][g][0][0]};
        tensor_core(rows, count, columns[q], n, k, type);
    }
    b->counters.tensor_flops += 2ull * 16 * 8 * (uint64_t)(mi * ni * k);
}

void soft_mma(float *d, const uint32_t *a, const uint32_t *b, int mi, int ni, soft_operand type,
              soft_site site)
{
    struct thread *t = self_thread();
    enter(t, type == SOFT_BF16 ? "mma.m16n8k16.bf16" : "mma.m16n8k32.e4m3", site);
    if (mi > MI_MAX || ni > NI_MAX)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "warp tile of %d x %d instructions is too large", mi, ni);
    struct mma m = {d, a, b, mi, ni, type};
    meet_warp(t, &m, multiply_warp);
}
