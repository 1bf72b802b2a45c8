#include "names.h"

#include <stdio.h>
#include <string.h>

int names_have(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (; list; list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL)
        if (strcspn(list, ",") == length && !strncmp(list, name, length)) return 1;
    return 0;
}

enum klein_status names_check(const char *variable, const char *list, const char *(*name)(int i),
                              struct klein_error *err)
{
    size_t wanted = 1, known = 0;
    char all[2048] = "";
    for (const char *p = list; *p; p++) wanted += *p == ',';
    for (int i = 0; name(i); i++) {
        const size_t n = strlen(all);
        known += (size_t)names_have(list, name(i));
        snprintf(all + n, sizeof all - n, " %s", name(i));
    }
    if (known == wanted) return KLEIN_OK;
    return fail(err, KLEIN_E_INPUT, "%s=%s: no such kernel; these are:%s", variable, list, all);
}
