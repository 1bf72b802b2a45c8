#include "backend.h"
#include "../base/arena.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name;
    backend_open *open;
} backends[] = {{"cpu", cpu_open}, {"ref", ref_open}, {"null", null_open}};
enum { BACKENDS = sizeof backends / sizeof backends[0] };

const char *device_backend(int i)
{
    return i >= 0 && i < BACKENDS ? backends[i].name : NULL;
}

enum klein_status device_open(const char *name, const struct device_options *options, struct device **out,
                              struct klein_error *err)
{
    *out = NULL;
    char known[64] = "";
    size_t used = 0;
    for (int i = 0; i < BACKENDS; i++) {
        if (!strcmp(name, backends[i].name)) return backends[i].open(options, out, err);
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", backends[i].name);
    }
    return fail(err, KLEIN_E_NO_DEVICE, "device \"%s\" does not exist; this build has: %s", name, known);
}

void device_close(struct device *dev)
{
    if (dev) dev->close(dev);
}

void *host_alloc(struct device *dev, size_t bytes)
{
    if (bytes > SIZE_MAX - ARENA_ALIGN) return NULL;
    return aligned_alloc(ARENA_ALIGN, (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN);
}

void host_free(struct device *dev, void *memory, size_t bytes)
{
    free(memory);
}

enum klein_status host_upload(struct device *dev, void *to, const void *host, size_t bytes,
                              struct klein_error *err)
{
    memcpy(to, host, bytes);
    return KLEIN_OK;
}

enum klein_status host_download(struct device *dev, void *host, const void *from, size_t bytes,
                                struct klein_error *err)
{
    memcpy(host, from, bytes);
    return KLEIN_OK;
}

enum klein_status host_copy(struct device *dev, void *to, const void *from, size_t bytes,
                            struct klein_error *err)
{
    memcpy(to, from, bytes);
    return KLEIN_OK;
}

int host_threads(int option)
{
    if (option > 0) return option;
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? n : 1;
}

enum dtype linear_act(const struct linear_args *a)
{
    struct tensor y = a->epilogue == LINEAR_QKV ? a->qkv.q : a->y;
    return a->x.dtype == DT_BF16 || y.dtype == DT_BF16 ? DT_BF16 : DT_F32;
}
