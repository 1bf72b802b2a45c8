/* clock.h: time for measuring. */
#ifndef KLEIN_CLOCK_H
#define KLEIN_CLOCK_H

#include <time.h>

/* Seconds of a clock that never goes back; its zero means nothing. */
static inline double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
