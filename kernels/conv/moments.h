/* moments.h: what GroupNorm needs to know of y, while y is on its way out of shared memory: per 4 couts (groups are multiples of that) the
 * mean and the squares about it, of the rounded values. Squares are about a mean near by, so a large mean does no harm. */
#ifndef KLEIN_CONV_MOMENTS_H
#define KLEIN_CONV_MOMENTS_H

#include "../device/device.h"
#include "../device/ptx.h"

/* A sum for either half of a chunk of 8 couts. */
struct halves {
    float low, high;
};

/* The sum of (x - about)^2, or of x. */
template <bool squares>
DEVICE void add_chunk(halves &sum, const u32x4 &v, halves about)
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    UNROLL
    for (int i = 0; i < 4; i++) {
        float &to = i < 2 ? sum.low : sum.high;
        const float mean = i < 2 ? about.low : about.high, a = bf16_low(w[i]) - mean,
                    b = bf16_high(w[i]) - mean;
        to = squares ? fmaf(b, b, fmaf(a, a, to)) : to + a + b;
    }
}

/* Over the lanes whose index differs in the bits of `lanes` only. */
template <int lanes>
DEVICE halves sum_lanes(halves h)
{
    UNROLL
    for (int mask = 16; mask; mask /= 2)
        if (lanes & mask) h.low += shfl_xor(h.low, mask), h.high += shfl_xor(h.high, mask);
    return h;
}

/* By a whole warp: this lane's chunks of 8 couts, `count` of them, at tile + offset(i) where exists(i), those of `lanes` taken together:
 * `pixels` exist. One lane of these stores mean and squares of the lower 4 couts and of the upper 4 to `to`, and how many values that is to
 * *values; NULL: not. */
template <int lanes, int count, class Offset, class Exists>
DEVICE void store_moments(float *to, float *values, uint32_t tile, int pixels, Offset offset, Exists exists)
{
    const float all = 4.0f * (float)pixels, share = pixels ? 1 / all : 0;
    halves sum = {}, squares = {};
    UNROLL
    for (int i = 0; i < count; i++)
        if (exists(i)) add_chunk<false>(sum, ld_shared_16(tile + offset(i)), {});
    sum = sum_lanes<lanes>(sum);
    const halves mean = {sum.low * share, sum.high * share};
    UNROLL
    for (int i = 0; i < count; i++)
        if (exists(i)) add_chunk<true>(squares, ld_shared_16(tile + offset(i)), mean);
    squares = sum_lanes<lanes>(squares);
    if (!to || lane_index() & lanes) return;
    st_global_16(to, u32x4{bits_from_float(mean.low), bits_from_float(squares.low),
                           bits_from_float(mean.high), bits_from_float(squares.high)});
    if (values) st_global_4(values, bits_from_float(all));
}

#endif
