#include "arena.h"

/* Far from any mapping of a 64-bit process, so that using a measuring arena's pointer faults at once. */
#define MEASURING_BASE ((char *)0x100000)

void arena_measure(struct arena *a)
{
    *a = (struct arena){.base = MEASURING_BASE, .size = SIZE_MAX / 4, .measuring = 1};
}

void arena_over(struct arena *a, void *memory, size_t bytes)
{
    *a = (struct arena){.base = memory, .size = bytes};
}

void *arena_take(struct arena *a, size_t bytes)
{
    size_t rounded = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (rounded < bytes || rounded > a->size - a->used) return NULL;
    void *p = a->base + a->used;
    a->used += rounded;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}
