#include "library.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum klein_status library_open(const struct library_names *names, int soft, void **out,
                               struct klein_error *err)
{
    const char *named = getenv(names->variable), *one[2] = {named};
    const int is_named = named && *named;
    const char *const *file = is_named ? one : names->files;
    *out = NULL;
    for (int i = 0; file[i] && !*out && (is_named || !soft); i++)
        *out = dlopen(file[i], RTLD_NOW | RTLD_LOCAL);
    if (*out) return KLEIN_OK;
    if (soft && !is_named)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s was not found, as it does not run on the soft GPU", *file);
    return fail(err, KLEIN_E_UNSUPPORTED, "%s was not found: install %s (%s=FILE says where it is)", *file,
                names->name, names->variable);
}

enum klein_status library_fill(void *library, const char *name, const struct library_entry *entries, size_t n,
                               void *table, struct klein_error *err)
{
    for (size_t i = 0; i < n; i++) {
        void *entry = dlsym(library, entries[i].symbol);
        if (!entry) return fail(err, KLEIN_E_UNSUPPORTED, "%s has no %s", name, entries[i].symbol);
        memcpy((char *)table + entries[i].offset, &entry, sizeof entry);
    }
    return KLEIN_OK;
}
