#include "dry.h"

#include "../conv/conv_launch.h"

#include <stdlib.h>

#define X(op_, args_)                                                                                        \
    static enum klein_status dry_##op_(struct device *dev, const struct args_ *a, struct klein_error *err)   \
    {                                                                                                        \
        struct dry_device *dry = (struct dry_device *)dev;                                                   \
        dry->op = OP_##op_;                                                                                  \
        dry->args = a;                                                                                       \
        return dry->gpu->ops->op_(dry->gpu, a, err);                                                         \
    }
KLEIN_OPS(X)
#undef X

static const struct op_table dry_ops = {
#define X(op, args) .op = dry_##op,
    KLEIN_OPS(X)
#undef X
};

/* Distinct addresses, aligned as memory is. */
static void *dry_alloc(struct device *dev, size_t bytes)
{
    struct dry_device *dry = (struct dry_device *)dev;
    void *p = (void *)dry->next;
    dry->next += bytes / 4096 * 4096 + 4096;
    return p;
}

static void dry_free(struct device *dev, void *memory, size_t bytes) {}

static enum klein_status dry_upload(struct device *dev, void *to, const void *host, size_t bytes,
                                    struct klein_error *err)
{
    return KLEIN_OK;
}

static enum klein_status dry_download(struct device *dev, void *host, const void *from, size_t bytes,
                                      struct klein_error *err)
{
    memset(host, 0, bytes);
    return KLEIN_OK;
}

static enum klein_status dry_place(struct device *dev, enum weight_kind kind, enum dtype act,
                                   struct tensor *t, struct klein_error *err)
{
    if (kind >= WEIGHT_CONV_1X1) {
        const int ksize = kind == WEIGHT_CONV_3X3 ? 3 : 1;
        *t = conv_packed(t->rows, t->cols / (ksize * ksize), ksize, act);
    } else if (kind == WEIGHT_MATRIX_E4M3) {
        t->dtype = DT_F8E4M3;
        t->scale = dry_alloc(dev, (size_t)t->rows * sizeof *t->scale);
    } else {
        t->dtype = kind == WEIGHT_VECTOR ? DT_F32 : act == DT_BF16 ? DT_BF16 : t->dtype;
    }
    t->ptr = dry_alloc(dev, (size_t)t->rows * (size_t)t->ld * dtype_size(t->dtype));
    return KLEIN_OK;
}

static void dry_close(struct device *dev)
{
    gpu_of(((struct dry_device *)dev)->gpu)->dry = 0;
    free(dev);
}

enum klein_status dry_device_open(struct device *gpu, struct dry_device **out, struct klein_error *err)
{
    struct dry_device *dry = calloc(1, sizeof *dry);
    *out = dry;
    if (!dry) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a device");
    dry->base = (struct device){.ops = &dry_ops,
                                .name = gpu->name,
                                .act = gpu->act,
                                .e4m3 = gpu->e4m3,
                                .threads = 1,
                                .close = dry_close,
                                .alloc = dry_alloc,
                                .free = dry_free,
                                .upload = dry_upload,
                                .download = dry_download,
                                .copy = dry_upload,
                                .place = dry_place};
    dry->gpu = gpu;
    dry->next = (uintptr_t)1 << 52; /* beyond user space on x86-64 */
    gpu_of(gpu)->dry = 1;
    return KLEIN_OK;
}
