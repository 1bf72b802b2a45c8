#include "ref.h"

static const struct op_table ref_ops = {
#define X(op, args) .op = ref_##op,
    KLEIN_OPS(X)
#undef X
};

static void ref_close(struct device *dev)
{
    free(dev);
}

enum klein_status ref_open(const struct device_options *options, struct device **out, struct klein_error *err)
{
    struct device *dev = malloc(sizeof *dev);
    if (!dev) return fail(err, KLEIN_E_NO_MEMORY, "ref device: out of memory");
    *dev = (struct device){.ops = &ref_ops,
                           .name = "ref",
                           .description = "plain C in double precision, slow",
                           .act = DT_F32,
                           .computes = 1,
                           .e4m3 = 1,
                           .threads = host_threads(options ? options->threads : 0),
                           .close = ref_close,
                           .alloc = host_alloc,
                           .free = host_free,
                           .upload = host_upload,
                           .download = host_download,
                           .copy = host_copy};
    *out = dev;
    return KLEIN_OK;
}
