#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum klein_status fill(struct driver *d, const char *file, struct klein_error *err)
{
    static const struct {
        const char *symbol;
        size_t offset;
    } entries[] = {
#define X(name, symbol, parameters) {#symbol, offsetof(struct driver, name)},
        KLEIN_DRIVER_ENTRIES(X)
#undef X
    };
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        void *entry = dlsym(d->library, entries[i].symbol);
        if (!entry)
            return fail(err, KLEIN_E_UNSUPPORTED,
                        "%s has no %s: the driver is too old; klein needs one for CUDA 12 or later", file,
                        entries[i].symbol);
        memcpy((char *)d + entries[i].offset, &entry, sizeof entry);
    }
    return KLEIN_OK;
}

/* By the run path, else beside the file that this code is in, a library or the program: a sanitizer's dlopen does not know our run
 * path. */
static void *open_soft(const char *file)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    Dl_info self;
    char beside[4096], path[4096 + 64];
    if (library || !dladdr((void *)(uintptr_t)driver_open, &self)) return library;
    snprintf(beside, sizeof beside, "%s", self.dli_fname);
    if (!strchr(beside, '/')) { /* a program that was found by PATH */
        ssize_t n = readlink("/proc/self/exe", beside, sizeof beside - 1);
        beside[n > 0 ? n : 0] = 0;
    }
    char *folder_end = strrchr(beside, '/');
    if (!folder_end) return NULL;
    *folder_end = 0;
    snprintf(path, sizeof path, "%s/%s", beside, file);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

enum klein_status driver_open(int soft, struct driver *out, struct klein_error *err)
{
    const char *file = soft ? "libsoftgpu.so" : "libcuda.so.1";
    struct driver d = {.soft = soft};
    d.library = soft ? open_soft(file) : dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!d.library) {
        if (soft) return fail(err, KLEIN_E_NO_DEVICE, "the soft GPU cannot be opened: %s", dlerror());
        return fail(
            err, KLEIN_E_NO_DEVICE,
            "no NVIDIA driver (%s); use --device cpu, or --device soft to try the GPU code on the host",
            dlerror());
    }
    enum klein_status status = fill(&d, file, err);
    if (status == KLEIN_OK) {
        if (soft) {
            void *report = dlsym(d.library, "softgpu_report");
            memcpy(&d.report, &report, sizeof report);
        }
        d.soft_images = soft || dlsym(d.library, "klein_soft_images");
        int count = 0;
        CUresult r = d.Init(0);
        if (r == CUDA_SUCCESS) r = d.DriverGetVersion(&d.version);
        if (r == CUDA_SUCCESS) r = d.DeviceGetCount(&count);
        if (r != CUDA_SUCCESS || !count)
            status = fail(err, r && r != CUDA_ERROR_NO_DEVICE ? KLEIN_E_UNSUPPORTED : KLEIN_E_NO_DEVICE,
                          "%s finds no usable GPU: %s", file, r ? driver_error(&d, r) : "0 devices");
    }
    if (status != KLEIN_OK) {
        dlclose(d.library);
        return status;
    }
    *out = d;
    return KLEIN_OK;
}

void driver_close(struct driver *d)
{
    if (d->library) dlclose(d->library);
    *d = (struct driver){0};
}

const char *driver_error(const struct driver *d, CUresult result)
{
    static _Thread_local char text[256];
    const char *name = NULL, *meaning = NULL;
    if (d->GetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "unknown CUDA error";
    if (d->GetErrorString(result, &meaning) != CUDA_SUCCESS || !meaning) meaning = "no description";
    snprintf(text, sizeof text, "%s %d (%s)", name, (int)result, meaning);
    return text;
}

enum klein_status driver_status(CUresult result)
{
    switch (result) {
    case CUDA_SUCCESS:
        return KLEIN_OK;
    case CUDA_ERROR_OUT_OF_MEMORY:
        return KLEIN_E_NO_MEMORY;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
        return KLEIN_E_NO_DEVICE;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_NOT_SUPPORTED:
        return KLEIN_E_UNSUPPORTED;
    default:
        return KLEIN_E_INTERNAL;
    }
}
