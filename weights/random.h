/* random.h: values for checkpoints without weights. */
#ifndef KLEIN_RANDOM_H
#define KLEIN_RANDOM_H

#include "checkpoint.h"

/* Elements [first, first + n) of a tensor into `out`; first is a multiple of 4. dtype DT_BF16 or DT_F32. The
 * values depend on seed, part, name, shape and dtype alone: not on the order in which tensors or pieces are
 * made, nor on threads. Matrices and convolutions are near N(0, 1 / fan_in), norm weights near 1, biases
 * small, BatchNorm statistics like those of the real VAE (model 5), so that activations stay of order 1
 * through the whole model. */
void random_values(void *out, enum dtype dtype, size_t first, size_t n, uint64_t seed,
                   enum checkpoint_part part, const char *name, int ndim, const int64_t *shape);

#endif
