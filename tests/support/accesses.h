/* accesses.h: the widths of a run's accesses to global memory, by the soft GPU's counters, as goldens: "4: 8, 16: 144" are 8 requests of warps for
 * 4 bytes a lane and 144 for 16. */
#ifndef KLEIN_TESTS_ACCESSES_H
#define KLEIN_TESTS_ACCESSES_H

#include "../../kernels/soft/softgpu.h"
#include "support.h"

#include <stdio.h>
#include <string.h>

static inline void expect_accesses(const struct softgpu_counters *n, const char *what, const char *expected)
{
    char text[160] = "";
    for (int i = 0; i < SOFTGPU_WIDTHS; i++) {
        const size_t at = strlen(text);
        if (n->global_requests[i])
            snprintf(text + at, sizeof text - at, "%s%d: %llu", at ? ", " : "", 1 << i,
                     (unsigned long long)n->global_requests[i]);
    }
    cr_expect(!strcmp(text, expected), "%s: accesses \"%s\", not \"%s\"", what, text, expected);
}

#endif
