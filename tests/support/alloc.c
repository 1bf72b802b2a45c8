#include "alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Thread_local int countdown = -1, hit;

void alloc_fail_at(int n)
{
    countdown = n;
    hit = 0;
}

int alloc_fail_off(void)
{
    countdown = -1;
    return hit;
}

static int fails(void)
{
    if (countdown < 0 || countdown-- > 0) return 0;
    hit = 1;
    errno = ENOMEM;
    return 1;
}

#define WRAP(type, name, parameters, arguments, failure)                                                     \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters                                                                            \
    {                                                                                                        \
        return fails() ? failure : __real_##name arguments;                                                  \
    }
WRAP(void *, malloc, (size_t n), (n), NULL)
WRAP(void *, calloc, (size_t n, size_t size), (n, size), NULL)
WRAP(void *, realloc, (void *p, size_t n), (p, n), NULL)
WRAP(void *, aligned_alloc, (size_t alignment, size_t n), (alignment, n), NULL)
WRAP(int, posix_memalign, (void **p, size_t alignment, size_t n), (p, alignment, n), ENOMEM)
WRAP(char *, strdup, (const char *s), (s), NULL)
WRAP(void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t offset),
     (at, n, prot, flags, fd, offset), MAP_FAILED)
