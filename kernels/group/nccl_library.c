#include "nccl_library.h"

#include "../cuda/library.h"

#include <dlfcn.h>
#include <string.h>

static const struct library_names names = {"NCCL 2", "KLEIN_NCCL", {"libnccl.so.2"}};
static const struct library_entry entries[] = {
#define X(name, result, parameters) {"nccl" #name, offsetof(struct nccl, name)},
    KLEIN_NCCL_ENTRIES(X)
#undef X
};

static enum klein_status check_version(const struct nccl *n, struct klein_error *err)
{
    int code = 0;
    int (*get)(int *) = NULL;
    void *entry = dlsym(n->library, "ncclGetVersion");
    memcpy(&get, &entry, sizeof entry);
    if (!get || get(&code))
        return fail(err, KLEIN_E_UNSUPPORTED, "the library named NCCL has no ncclGetVersion");
    if (code >= NCCL_LEAST) return KLEIN_OK;
    const int base = code < 10000 ? 1000 : 10000; /* until 2.8 */
    return fail(err, KLEIN_E_UNSUPPORTED, "NCCL %d.%d.%d is too old: 2.19 or later is needed", code / base,
                code % base / 100, code % 100);
}

enum klein_status nccl_open(int soft, struct nccl *out, struct klein_error *err)
{
    *out = (struct nccl){0};
    TRY(library_open(&names, soft, &out->library, err));
    enum klein_status status = check_version(out, err);
    if (status == KLEIN_OK)
        status = library_fill(out->library, "NCCL", entries, sizeof entries / sizeof *entries, out, err);
    if (status != KLEIN_OK) nccl_close(out);
    return status;
}

void nccl_close(struct nccl *n)
{
    if (n->library) dlclose(n->library);
    *n = (struct nccl){0};
}

enum klein_status nccl_check(const struct nccl *n, ncclResult_t result, ncclComm_t comm, const char *what,
                             struct klein_error *err)
{
    if (!result) return KLEIN_OK;
    const char *more = n->GetLastError(comm);
    return fail(err, KLEIN_E_INTERNAL, "NCCL: %s: %s%s%s", what, n->GetErrorString(result),
                more && *more ? ": " : "", more ? more : "");
}
