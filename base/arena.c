#include "arena.h"

/* A measuring arena's addresses: not canonical on x86-64, so that using one faults at once. */
#define MEASURING_BASE ((char *)0x0100000000000000)
#define MEASURING_SIZE ((size_t)1 << 52)

void arena_measure(struct arena *a)
{
    *a = (struct arena){.base = MEASURING_BASE, .size = MEASURING_SIZE};
}

void arena_over(struct arena *a, void *memory, size_t bytes)
{
    *a = (struct arena){.base = memory, .size = bytes};
}

void *arena_take(struct arena *a, int end, size_t bytes)
{
    size_t rounded = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    size_t used = a->used[0] + a->used[1];
    if (rounded < bytes || rounded > a->size - used) return NULL;
    char *p = end ? a->base + a->size - a->used[1] - rounded : a->base + a->used[0];
    a->used[end] += rounded;
    if (used + rounded > a->peak) a->peak = used + rounded;
    return p;
}
