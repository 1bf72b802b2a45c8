/* hash.h: FNV-1a 64 of bytes: tells results apart, protects nothing. */
#ifndef KLEIN_HASH_H
#define KLEIN_HASH_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t fnv1a(const void *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const uint8_t *b = bytes; n--; b++) h = (h ^ *b) * 0x100000001b3u;
    return h;
}

#endif
