#include "gpu_device.h"
#include "support.h"

#include <stdlib.h>

static struct gpu *gpu_of(struct device *dev)
{
    return ((struct gpu_device *)dev)->gpu;
}

static void *device_alloc(struct device *dev, size_t bytes)
{
    struct klein_error err = {0};
    void *p = NULL;
    return gpu_alloc(gpu_of(dev), bytes, &p, &err) == KLEIN_OK ? p : NULL;
}

static void device_free(struct device *dev, void *memory, size_t bytes)
{
    gpu_free(gpu_of(dev), memory);
}

static enum klein_status device_upload(struct device *dev, void *to, const void *host, size_t bytes,
                                       struct klein_error *err)
{
    TRY(gpu_upload(gpu_of(dev), to, host, bytes, err));
    return gpu_sync(gpu_of(dev), err); /* the caller may free `host` */
}

static enum klein_status device_download(struct device *dev, void *host, const void *from, size_t bytes,
                                         struct klein_error *err)
{
    return gpu_download(gpu_of(dev), host, from, bytes, err);
}

static enum klein_status device_copy(struct device *dev, void *to, const void *from, size_t bytes,
                                     struct klein_error *err)
{
    return gpu_copy(gpu_of(dev), to, from, bytes, err);
}

static void close_device(struct device *dev)
{
    struct gpu_device *d = (struct gpu_device *)dev;
    gpu_close(d->gpu);
    driver_close(&d->cu);
    free(d);
}

struct gpu_device *gpu_device_open(const struct op_table *ops)
{
    struct klein_error err;
    struct gpu_device *d = calloc(1, sizeof *d);
    cr_assert(d);
    OK(driver_open(1, &d->cu, &err));
    OK(gpu_open(&d->cu, 0, &d->gpu, &err));
    d->base = (struct device){.ops = ops,
                              .name = d->gpu->name,
                              .act = DT_BF16,
                              .computes = 1,
                              .threads = 1,
                              .e4m3 = d->gpu->arch >= 89, /* as cuda.c has it */
                              .close = close_device,
                              .alloc = device_alloc,
                              .free = device_free,
                              .upload = device_upload,
                              .download = device_download,
                              .copy = device_copy};
    return d;
}
