/* The backend that computes nothing: checks operands. Costs are counted by whoever runs the ops (engine/run.c). */
#include "../backend.h"

#include <stdlib.h>

struct null_device {
    struct device base;
    uintptr_t next; /* address of the next "allocation" */
};

#define X(op, args)                                                                                          \
    static enum klein_status null_##op(struct device *dev, const struct args *a, struct klein_error *err)    \
    {                                                                                                        \
        return ops_check_##op(a, NULL, err);                                                                 \
    }
KLEIN_OPS(X)
#undef X

static const struct op_table null_ops = {
#define X(op, args) .op = null_##op,
    KLEIN_OPS(X)
#undef X
};

/* Distinct addresses that no process has mapped, so that using one faults. */
static void *null_alloc(struct device *dev, size_t bytes)
{
    struct null_device *null = (struct null_device *)dev;
    void *p = (void *)null->next;
    null->next += bytes / 4096 * 4096 + 4096;
    return p;
}

static void null_free(struct device *dev, void *memory, size_t bytes) {}

static enum klein_status null_upload(struct device *dev, void *to, const void *host, size_t bytes,
                                     struct klein_error *err)
{
    return KLEIN_OK;
}

static enum klein_status null_download(struct device *dev, void *host, const void *from, size_t bytes,
                                       struct klein_error *err)
{
    memset(host, 0, bytes);
    return KLEIN_OK;
}

static void null_close(struct device *dev)
{
    free(dev);
}

enum klein_status null_open(const struct device_options *options, struct device **out,
                            struct klein_error *err)
{
    struct null_device *null = calloc(1, sizeof *null);
    if (!null) return fail(err, KLEIN_E_NO_MEMORY, "null device: out of memory");
    null->base = (struct device){.ops = &null_ops,
                                 .name = "null",
                                 .description = "computes nothing; checks and counts",
                                 .act = DT_BF16,
                                 .e4m3 = 1,
                                 .threads = 1,
                                 .close = null_close,
                                 .alloc = null_alloc,
                                 .free = null_free,
                                 .upload = null_upload,
                                 .download = null_download,
                                 .copy = null_upload};
    null->next = (uintptr_t)1 << 52; /* beyond user space on x86-64 */
    *out = &null->base;
    return KLEIN_OK;
}
