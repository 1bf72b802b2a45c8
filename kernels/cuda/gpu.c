#include "gpu.h"
#include "../../base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors ------------------------------------------------------------------------------------------------------ */

void gpu_op(struct gpu *g, const char *op, const char *shape)
{
    snprintf(g->op, sizeof g->op, "%s %s", op, shape);
}

enum klein_status gpu_check(struct gpu *g, CUresult result, const char *what, struct klein_error *err)
{
    if (result == CUDA_SUCCESS) return KLEIN_OK;
    const char *report = g->cu->report ? g->cu->report() : "";
    const char *op = *g->op ? g->op : "start";
    const char *late =
        result >= CUDA_ERROR_ILLEGAL_ADDRESS && result <= CUDA_ERROR_LAUNCH_FAILED && !g->sync_each
            ? " (or an op before it: KLEIN_SYNC=1 finds which)"
            : "";
    return fail(err, driver_status(result), "%s: %s%s: %s: %s%s%s", g->name, op, late, what,
                driver_error(g->cu, result), *report ? ": " : "", report);
}

/* ---- opening ------------------------------------------------------------------------------------------------------- */

/* A build without nvcc has but the names of what it would have built. */
static int is_soft_image(const struct kernel_module *m)
{
    static const char soft_only[] = "klein soft image: ";
    return !memcmp(m->image, soft_only, sizeof soft_only - 1);
}

static enum klein_status load_module(struct gpu *g, const struct kernel_module *m, struct klein_error *err)
{
    if (g->module_count == GPU_MODULES_MAX)
        return fail(err, KLEIN_E_INTERNAL, "more than %d kernel modules", GPU_MODULES_MAX);
    CUmodule handle = NULL;
    if (g->cu->soft_images || !is_soft_image(m)) {
        CUresult r = g->cu->ModuleLoadData(&handle, m->image);
        if (r == CUDA_ERROR_NO_BINARY_FOR_GPU || r == CUDA_ERROR_UNSUPPORTED_PTX_VERSION ||
            r == CUDA_ERROR_INVALID_PTX)
            handle = NULL; /* for other architectures; an error only if one of its kernels is asked for */
        else
            TRY(gpu_check(g, r, m->name, err));
    }
    g->modules[g->module_count].module = m;
    g->modules[g->module_count++].handle = handle;
    return KLEIN_OK;
}

enum klein_status gpu_add_modules(struct gpu *g, const struct kernel_module *modules, struct klein_error *err)
{
    for (; modules->name; modules++) TRY(load_module(g, modules, err));
    return KLEIN_OK;
}

enum klein_status gpu_check_kernels(const struct gpu *g, struct klein_error *err)
{
    for (int i = 0; i < g->module_count; i++)
        if (g->modules[i].handle) return KLEIN_OK;
    if (is_soft_image(kernel_modules))
        return fail(
            err, KLEIN_E_UNSUPPORTED,
            "this build of klein has no kernels for %s (sm_%d): it was made without nvcc; install the CUDA "
            "toolkit and build klein again; use --device cpu until then",
            g->name, g->arch);
    return fail(
        err, KLEIN_E_UNSUPPORTED,
        "this build of klein has no kernels for %s (sm_%d) with this driver (CUDA %d.%d): update the driver; "
        "use --device cpu until then",
        g->name, g->arch, g->cu->version / 1000, g->cu->version % 1000 / 10);
}

static enum klein_status attribute(struct gpu *g, CUdevice_attribute a, int *value, struct klein_error *err)
{
    return gpu_check(g, g->cu->DeviceGetAttribute(value, a, g->device), "cuDeviceGetAttribute", err);
}

static enum klein_status discover(struct gpu *g, struct klein_error *err)
{
    const struct driver *cu = g->cu;
    int major, minor, count;
    snprintf(g->name, sizeof g->name, "GPU %d", g->ordinal);
    TRY(gpu_check(g, cu->DeviceGetCount(&count), "cuDeviceGetCount", err));
    if (g->ordinal >= count)
        return fail(err, KLEIN_E_NO_DEVICE, "there is no GPU %d: this machine has %d, numbered from 0",
                    g->ordinal, count);
    TRY(gpu_check(g, cu->DeviceGet(&g->device, g->ordinal), "cuDeviceGet", err));
    TRY(gpu_check(g, cu->DeviceGetName(g->name, sizeof g->name, g->device), "cuDeviceGetName", err));
    TRY(gpu_check(g, cu->DeviceTotalMem(&g->memory, g->device), "cuDeviceTotalMem", err));
    TRY(attribute(g, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major, err));
    TRY(attribute(g, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor, err));
    TRY(attribute(g, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &g->multiprocessors, err));
    TRY(attribute(g, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &g->shared_max, err));
    TRY(attribute(g, CU_DEVICE_ATTRIBUTE_CLOCK_RATE, &g->clock_khz, err));
    g->arch = 10 * major + minor;
    return KLEIN_OK;
}

static enum klein_status set_up(struct gpu *g, struct klein_error *err)
{
    const double begin = clock_seconds();
    TRY(discover(g, err));
    TRY(gpu_check(g, g->cu->DevicePrimaryCtxRetain(&g->context, g->device), "cuDevicePrimaryCtxRetain", err));
    TRY(gpu_bind(g, err));
    TRY(gpu_check(g, g->cu->StreamCreate(&g->stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate", err));
    const double opened = clock_seconds();
    TRY(gpu_add_modules(g, kernel_modules, err));
    g->context_seconds = opened - begin;
    g->module_seconds = clock_seconds() - opened;
    return KLEIN_OK;
}

enum klein_status gpu_open(const struct driver *d, int ordinal, struct gpu **out, struct klein_error *err)
{
    struct gpu *g = calloc(1, sizeof *g);
    if (!g) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a GPU's state");
    g->cu = d;
    g->ordinal = ordinal;
    const char *sync = getenv("KLEIN_SYNC");
    g->sync_each = sync && *sync && strcmp(sync, "0");
    enum klein_status status = set_up(g, err);
    if (status != KLEIN_OK)
        gpu_close(g);
    else
        *out = g;
    return status;
}

void gpu_close(struct gpu *g)
{
    if (!g) return;
    if (g->context) {
        g->cu->CtxSetCurrent(g->context);
        for (int i = 0; i < g->module_count; i++)
            if (g->modules[i].handle) g->cu->ModuleUnload(g->modules[i].handle);
        if (g->stream) g->cu->StreamDestroy(g->stream);
        g->cu->CtxSetCurrent(NULL);
        g->cu->DevicePrimaryCtxRelease(g->device);
    }
    free(g);
}

enum klein_status gpu_bind(struct gpu *g, struct klein_error *err)
{
    return gpu_check(g, g->cu->CtxSetCurrent(g->context), "cuCtxSetCurrent", err);
}

/* ---- memory --------------------------------------------------------------------------------------------------------- */

static CUdeviceptr address(const void *p)
{
    return (CUdeviceptr)(uintptr_t)p;
}

size_t gpu_available(struct gpu *g)
{
    size_t left = 0, total;
    return g->cu->MemGetInfo(&left, &total) == CUDA_SUCCESS ? left : 0;
}

enum klein_status gpu_alloc(struct gpu *g, size_t bytes, void **out, struct klein_error *err)
{
    CUdeviceptr p = 0;
    CUresult r = g->cu->MemAlloc(&p, bytes ? bytes : 1);
    *out = (void *)(uintptr_t)p;
    if (r != CUDA_ERROR_OUT_OF_MEMORY) return gpu_check(g, r, "cuMemAlloc", err);
    size_t left = gpu_available(g), total = g->memory;
    return fail(err, KLEIN_E_NO_MEMORY,
                "%s: %zu MiB asked for, %zu of %zu MiB are free: use a smaller size or fewer references",
                g->name, bytes >> 20, left >> 20, total >> 20);
}

void gpu_free(struct gpu *g, void *memory)
{
    if (memory) g->cu->MemFree(address(memory));
}

enum klein_status gpu_alloc_pinned(struct gpu *g, size_t bytes, void **out, struct klein_error *err)
{
    return gpu_check(g, g->cu->MemHostAlloc(out, bytes, 0), "cuMemHostAlloc", err);
}

void gpu_free_pinned(struct gpu *g, void *memory)
{
    if (memory) g->cu->MemFreeHost(memory);
}

enum klein_status gpu_upload(struct gpu *g, void *to, const void *host, size_t bytes, struct klein_error *err)
{
    return gpu_check(g, g->cu->MemcpyHtoDAsync(address(to), host, bytes, g->stream), "cuMemcpyHtoD", err);
}

enum klein_status gpu_download(struct gpu *g, void *host, const void *from, size_t bytes,
                               struct klein_error *err)
{
    TRY(gpu_check(g, g->cu->MemcpyDtoHAsync(host, address(from), bytes, g->stream), "cuMemcpyDtoH", err));
    return gpu_sync(g, err);
}

enum klein_status gpu_copy(struct gpu *g, void *to, const void *from, size_t bytes, struct klein_error *err)
{
    if (g->dry) return KLEIN_OK;
    return gpu_check(g, g->cu->MemcpyDtoDAsync(address(to), address(from), bytes, g->stream), "cuMemcpyDtoD",
                     err);
}

enum klein_status gpu_fill(struct gpu *g, void *to, unsigned char value, size_t bytes,
                           struct klein_error *err)
{
    if (g->dry) return KLEIN_OK;
    return gpu_check(g, g->cu->MemsetD8Async(address(to), value, bytes, g->stream), "cuMemsetD8", err);
}

enum klein_status gpu_sync(struct gpu *g, struct klein_error *err)
{
    return gpu_check(g, g->cu->StreamSynchronize(g->stream), "cuStreamSynchronize", err);
}

enum klein_status gpu_poll(struct gpu *g, struct klein_error *err)
{
    CUresult r = g->cu->StreamQuery(g->stream);
    return r == CUDA_ERROR_NOT_READY ? KLEIN_OK : gpu_check(g, r, "cuStreamQuery", err);
}

enum klein_status gpu_enable_peer(struct gpu *g, struct gpu *peer, struct klein_error *err)
{
    int can = 0;
    TRY(gpu_check(g, g->cu->DeviceCanAccessPeer(&can, g->device, peer->device), "cuDeviceCanAccessPeer",
                  err));
    if (!can)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s (device %d) cannot access the memory of device %d directly",
                    g->name, g->ordinal, peer->ordinal);
    TRY(gpu_bind(g, err));
    CUresult r = g->cu->CtxEnablePeerAccess(peer->context, 0);
    return r == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED ? KLEIN_OK
                                                       : gpu_check(g, r, "cuCtxEnablePeerAccess", err);
}

enum klein_status gpu_copy_peer(struct gpu *g, void *to, struct gpu *from_gpu, const void *from, size_t bytes,
                                struct klein_error *err)
{
    return gpu_check(
        g,
        g->cu->MemcpyPeerAsync(address(to), g->context, address(from), from_gpu->context, bytes, g->stream),
        "cuMemcpyPeer", err);
}
