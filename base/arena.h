/* arena.h: bump allocation with marks. One arena per lifetime (plan, run); nothing inside is freed alone.
 * A *measuring* arena has no memory: it hands out distinct non-NULL addresses that must not be dereferenced and
 * records the peak, so that running the model on the null device says how large the real arena must be. */
#ifndef KLEIN_ARENA_H
#define KLEIN_ARENA_H

#include "tensor.h"
#include "error.h"

#define ARENA_ALIGN 256 /* bytes; enough for AVX-512 loads and for the tensor memory accelerator */

struct arena {
    char *base;
    size_t size, used, peak; /* bytes */
    int measuring;
};

void arena_measure(struct arena *a);                               /* begins a measuring arena */
void arena_over(struct arena *a, void *memory, size_t bytes);      /* over memory that the caller owns, ARENA_ALIGN-aligned */
void *arena_take(struct arena *a, size_t bytes);                   /* NULL when full */
static inline size_t arena_mark(const struct arena *a) { return a->used; }
static inline void arena_release(struct arena *a, size_t mark) { a->used = mark; }

#endif
