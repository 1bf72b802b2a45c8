/* error.h: how errors travel inside klein. A fallible function returns enum klein_status and takes
 * `struct klein_error *err` (never NULL) as its last argument; on failure it has filled err with one line:
 * what is wrong, where (file, tensor, option), what to do. */
#ifndef KLEIN_ERROR_H
#define KLEIN_ERROR_H

#include "klein_status.h"

/* Fills err and returns status, so that `return fail(err, KLEIN_E_INPUT, "%s: ...", path)` is one line.
 * The first failure wins: an err that already holds one keeps it. */
__attribute__((format(printf, 3, 4))) enum klein_status
fail(struct klein_error *err, enum klein_status status, const char *format, ...);

const char *status_name(enum klein_status status); /* "E_INPUT" */
const char *status_text(enum klein_status status); /* "cannot read input" */

/* Prints the broken invariant with its place and aborts. For bugs only, in every build. */
_Noreturn void check_failed(const char *expression, const char *file, int line, const char *function);

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        enum klein_status try_status_ = (call);                                                              \
        if (try_status_ != KLEIN_OK) return try_status_;                                                     \
    } while (0)
#define CHECK(x)                                                                                             \
    do {                                                                                                     \
        if (!(x)) check_failed(#x, __FILE__, __LINE__, __func__);                                            \
    } while (0)

#endif
