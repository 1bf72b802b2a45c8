#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum klein_status fail(struct klein_error *err, enum klein_status status, const char *format, ...)
{
    if (err->status != KLEIN_OK) return err->status;
    err->status = status;
    va_list ap;
    va_start(ap, format);
    vsnprintf(err->message, sizeof err->message, format, ap);
    va_end(ap);
    return status;
}

const char *status_name(enum klein_status status)
{
    static const char *const names[] = {
#define X(name, text) #name,
        KLEIN_STATUS_LIST(X)
#undef X
    };
    return (unsigned)status < KLEIN_STATUS_COUNT ? names[status] : "?";
}

const char *status_text(enum klein_status status)
{
    static const char *const texts[] = {
#define X(name, text) text,
        KLEIN_STATUS_LIST(X)
#undef X
    };
    return (unsigned)status < KLEIN_STATUS_COUNT ? texts[status] : "?";
}

_Noreturn void check_failed(const char *expression, const char *file, int line, const char *function)
{
    fprintf(stderr, "klein: bug: %s:%d: %s: CHECK(%s) failed\n", file, line, function, expression);
    abort();
}
