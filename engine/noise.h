/* noise.h: the start of a picture, as torch.randn draws it on the CPU.                               source:
 * model 6.3
 *
 * The uniforms are those of MT19937 seeded with the low 32 bits of the seed, as torch does: seeds 5 and 2^32
 * + 5 are the same. Box-Muller is computed with the very polynomials and fused operations of torch's AVX2
 * kernel, so the bits are those of torch on x86-64 processors with AVX2, here on every machine. (torch itself
 * gives slightly different floats, about 2e-6, on processors without.)
 *
 * bf16: torch 2.15 draws in float32 and rounds, which is what KLEIN_NOISE_TORCH_BF16 gives. Older releases
 * (2.11 and before at least) computed in bf16 throughout, from 8-bit uniforms: an unrelated and coarse noise,
 * which is not offered. */
#ifndef KLEIN_NOISE_H
#define KLEIN_NOISE_H

#include "klein.h"

/* out[n] = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed), dtype=float32 | bfloat16), as
 * f32, bit for bit. n >= 16. No state is kept. */
void noise_torch(float *out, size_t n, uint64_t seed, enum klein_noise kind);

#endif
