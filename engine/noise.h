/* noise.h: the start of a picture, as torch.randn draws it on the CPU.                               source: model 6.3 */
#ifndef KLEIN_NOISE_H
#define KLEIN_NOISE_H

#include "klein.h"

/* out[n] = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed), dtype=float32 | bfloat16), as f32.
 * kind: enum klein_noise. n >= 16. No state is kept. Within 2 ulp of torch (libm), bf16 exact. */
void noise_torch(float *out, size_t n, uint64_t seed, enum klein_noise kind);

#endif
