#include "message.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int message_styled(FILE *out)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    return !(no_color && *no_color) && term && strcmp(term, "dumb") && isatty(fileno(out));
}

void message(enum message_kind kind, const char *format, ...)
{
    static const char *const head[] = {"klein: ", "klein: warning: ", "klein: "};
    static const char *const color[] = {"\033[31m", "\033[33m", "\033[2m"};
    int styled = message_styled(stderr);
    flockfile(stderr);
    fprintf(stderr, "%s%s%s", styled ? color[kind] : "", head[kind], styled ? "\033[0m" : "");
    va_list ap;
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    funlockfile(stderr);
}
