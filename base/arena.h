/* arena.h: bump allocation from both ends of one block. Nothing inside is freed alone: a user notes
 * arena_mark() and returns to it with arena_release(). Two ends let a chain of big tensors walk through
 * little memory: each new one is taken at the end opposite to its input, which is then released
 * (engine/vae.c).
 *
 * A *measuring* arena has no memory: it hands out distinct non-NULL addresses that must not be dereferenced
 * and records the peak, so that running the model on the null device says how large the real arena must be.
 */
#ifndef KLEIN_ARENA_H
#define KLEIN_ARENA_H

#include "error.h"
#include "tensor.h"

#define ARENA_ALIGN 256 /* bytes; enough for AVX-512 loads and for the tensor memory accelerator */

struct arena {
    char *base;
    size_t size, used[2], peak; /* bytes; used from the low end and from the high end */
};

void arena_measure(struct arena *a);
void arena_over(struct arena *a, void *memory,
                size_t bytes); /* memory is the caller's, ARENA_ALIGN-aligned, as is bytes */
void *arena_take(struct arena *a, int end, size_t bytes); /* end 0: low, 1: high. NULL when full */

static inline size_t arena_mark(const struct arena *a, int end)
{
    return a->used[end];
}

static inline void arena_release(struct arena *a, int end, size_t mark)
{
    a->used[end] = mark;
}

#endif
