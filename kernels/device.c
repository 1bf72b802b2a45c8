#include "backend.h"
#include "../base/arena.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

/* A GPU's name may have a number: "cuda:1". */
static const struct backend {
    const char *name;
    backend_open *open; /* NULL: cuda_open */
    int soft;
} backends[] = {
    {"cpu", cpu_open, 0}, {"cuda", NULL, 0}, {"soft", NULL, 1}, {"ref", ref_open, 0}, {"null", null_open, 0}};
enum { BACKENDS = sizeof backends / sizeof backends[0] };

const char *device_backend(int i)
{
    return i >= 0 && i < BACKENDS ? backends[i].name : NULL;
}

/* The number after the colon, 0 without one; -1 if it is none, or the backend has none. */
static int ordinal_of(const struct backend *b, const char *colon)
{
    char *end;
    if (!*colon) return 0;
    if (b->open || colon[1] < '0' || colon[1] > '9') return -1;
    long n = strtol(colon + 1, &end, 10);
    return *end || n > 255 ? -1 : (int)n;
}

int device_count(const char *backend)
{
    for (int i = 0; i < BACKENDS; i++)
        if (!strcmp(backend, backends[i].name)) return backends[i].open ? 1 : cuda_count(backends[i].soft);
    return 0;
}

struct device_label device_label(const char *backend, int number)
{
    struct device_label l;
    snprintf(l.text, sizeof l.text, number ? "%s:%d" : "%s", backend, number);
    return l;
}

enum klein_status device_open(const char *name, const struct device_options *options, struct device **out,
                              struct klein_error *err)
{
    *out = NULL;
    char known[64] = "";
    size_t used = 0, length = strcspn(name, ":");
    for (int i = 0; i < BACKENDS; i++) {
        const struct backend *b = &backends[i];
        int n = ordinal_of(b, name + length);
        if (!strncmp(name, b->name, length) && !b->name[length] && n >= 0)
            return b->open ? b->open(options, out, err) : cuda_open(options, b->soft, n, out, err);
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s%s", i ? ", " : "", b->name,
                                 b->open ? "" : "[:N]");
    }
    return fail(err, KLEIN_E_NO_DEVICE, "device \"%s\" does not exist; this build has: %s", name, known);
}

enum klein_status device_bind(struct device *dev, struct klein_error *err)
{
    return dev->bind ? dev->bind(dev, err) : KLEIN_OK;
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
    struct tensor y = a->epilogue == LINEAR_QKV ? a->qkv.k : a->y;
    return a->x.dtype != DT_F32 || y.dtype != DT_F32 ? DT_BF16 : DT_F32;
}
