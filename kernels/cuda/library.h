/* library.h: a library of NVIDIA's beside the driver: opened at run time where it is, never linked. */
#ifndef KLEIN_CUDA_LIBRARY_H
#define KLEIN_CUDA_LIBRARY_H

#include "../../base/error.h"

#include <stddef.h>

struct library_names {
    const char *name;     /* for people: "NCCL 2" */
    const char *variable; /* of the environment: a file to open, and no other */
    const char *files[4]; /* else the first of these that the loader finds; NULL behind the last */
};
struct library_entry {
    const char *symbol;
    size_t offset; /* of the pointer in the caller's table */
};

/* Beside the soft GPU nothing but the file that the variable names: no other library knows its memory. KLEIN_E_UNSUPPORTED: there is
 * none. Close it with dlclose. */
enum klein_status library_open(const struct library_names *names, int soft, void **out,
                               struct klein_error *err);
/* Fills the n pointers of `table`. KLEIN_E_UNSUPPORTED: the library lacks one. */
enum klein_status library_fill(void *library, const char *name, const struct library_entry *entries, size_t n,
                               void *table, struct klein_error *err);

#endif
