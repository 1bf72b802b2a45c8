#include "noise.h"

#include "../base/dtype.h"
#include "../base/error.h"

#include <math.h>

/* Mersenne twister MT19937 (Matsumoto, Nishimura 1998) with the seeding of 2002. */
enum { MT_N = 624, MT_M = 397 };

struct twister {
    uint32_t state[MT_N];
    int next;
};

static void twister_seed(struct twister *t, uint32_t seed)
{
    t->state[0] = seed;
    for (uint32_t i = 1; i < MT_N; i++)
        t->state[i] = 1812433253u * (t->state[i - 1] ^ (t->state[i - 1] >> 30)) + i;
    t->next = MT_N;
}

static void twister_refill(struct twister *t)
{
    for (int i = 0; i < MT_N; i++) {
        uint32_t y = (t->state[i] & 0x80000000u) | (t->state[(i + 1) % MT_N] & 0x7fffffffu);
        t->state[i] = t->state[(i + MT_M) % MT_N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    t->next = 0;
}

/* n uniforms in [0, 1), multiples of 2^-24. */
static void draw_uniforms(struct twister *t, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (t->next == MT_N) twister_refill(t);
        uint32_t y = t->state[t->next++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        y ^= y >> 18;
        out[i] = (float)(y & 0xffffff) * 0x1p-24f;
    }
}

/* The two functions below are Cephes' single-precision logf and sinf/cosf (S. Moshier) as avx_mathfun
 * evaluates them, with the products fused where the compiler of torch's wheels fuses them. Every operation is
 * exactly rounded by IEEE 754, so the result depends on no libm and no compiler. */

/* Natural logarithm of a normal x > 0. */
static float log_cephes(float x)
{
    static const float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    const float sqrt_half = 0.707106781186547524f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;

    uint32_t bits = f32_bits(x);
    float e = (float)((int)(bits >> 23) - 126); /* x = m 2^e, m in [1/2, 1) */
    float m = f32_from_bits((bits & 0x807fffffu) | 0x3f000000u);
    if (m < sqrt_half) {
        e -= 1;
        m = (m - 1) + m;
    } else {
        m = m - 1;
    }
    float z = m * m, y = p[0];
    for (int i = 1; i < 9; i++) y = fmaf(y, m, p[i]);
    y = fmaf(y * m, z, e * ln2_low);
    y = fmaf(-z, 0.5f, y);
    return fmaf(e, ln2_high, m + y);
}

/* Sine and cosine of x in [0, 2 pi]. */
static void sincos_cephes(float x, float *sine, float *cosine)
{
    int octant = ((int)(x * 1.27323954473516f) + 1) & ~1; /* of x / (pi / 4), to the nearest even */
    float j = (float)octant;
    x = fmaf(j, -0.78515625f, x); /* pi / 4 in three pieces */
    x = fmaf(j, -2.4187564849853515625e-4f, x);
    x = fmaf(j, -3.77489497744594108e-8f, x);

    float z = x * x;
    float c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f) * z;
    c = fmaf(c, z, -(z * 0.5f)) + 1;
    float s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f) * z;
    s = fmaf(s, x, x);

    int swap = octant & 2;
    *sine = swap ? c : s;
    *cosine = swap ? s : c;
    if (octant & 4) *sine = -*sine;
    if ((octant + 2) & 4) *cosine = -*cosine;
}

/* Box-Muller in place: 16 uniforms become 16 normals. */
static void normals_of_uniforms(float block[16])
{
    for (int i = 0; i < 8; i++) {
        float radius = sqrtf(-2 * log_cephes(1 - block[i])), sine, cosine;
        sincos_cephes(6.283185307179586f * block[i + 8], &sine, &cosine);
        block[i] = radius * cosine + 0.0f; /* + 0: torch adds the mean, which turns -0 into 0 */
        block[i + 8] = radius * sine + 0.0f;
    }
}

void noise_torch(float *out, size_t n, uint64_t seed, enum klein_noise kind)
{
    CHECK(n >= 16);
    struct twister t;
    twister_seed(&t, (uint32_t)seed);

    /* A remainder is covered by redoing the last 16 with fresh uniforms; only the float32 kernel draws for
     * the remainder before. */
    size_t rest = n % 16;
    draw_uniforms(&t, out, kind == KLEIN_NOISE_TORCH ? n : n - rest);
    for (size_t i = 0; i + 16 <= n; i += 16) normals_of_uniforms(out + i);
    if (rest) {
        draw_uniforms(&t, out + n - 16, 16);
        normals_of_uniforms(out + n - 16);
    }
    if (kind == KLEIN_NOISE_TORCH_BF16)
        for (size_t i = 0; i < n; i++) out[i] = f32_from_bf16(bf16_from_f32(out[i]));
}
