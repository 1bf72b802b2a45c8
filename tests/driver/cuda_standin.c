/* A stand-in for NVIDIA's driver: the soft GPU under the name libcuda.so.1, so that klein takes it for a real card, whose times count, that
 * "auto" chooses. In a build without nvcc it runs the soft images (driver.h), as a real card runs fatbins.
 * KLEIN_STANDIN_NAME: what the cards are called; KLEIN_STANDIN=bare: they run no kernel of this build; KLEIN_STANDIN=mute: the driver
 * does not start. */
#include "../../kernels/cuda/driver_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
EXPORT int klein_soft_images = 1;
EXPORT CUresult cuInit(unsigned flags);
EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device);
EXPORT CUresult cuModuleLoadData(CUmodule *out, const void *image);

/* The soft GPU's own entry of that name. */
static void find(const char *symbol, void *out)
{
    void *entry = dlsym(dlopen(KLEIN_BINARY_DIR "/libsoftgpu.so", RTLD_NOW | RTLD_LOCAL), symbol);
    memcpy(out, &entry, sizeof entry);
}

static int is_called(const char *name)
{
    const char *how = getenv("KLEIN_STANDIN");
    return how && !strcmp(how, name);
}

CUresult cuInit(unsigned flags)
{
    CUresult (*init)(unsigned);
    find("cuInit", &init);
    return is_called("mute") ? CUDA_ERROR_UNKNOWN : init(flags);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    CUresult (*get)(char *, int, CUdevice);
    const char *called = getenv("KLEIN_STANDIN_NAME");
    find("cuDeviceGetName", &get);
    const CUresult r = get(name, length, device);
    if (r == CUDA_SUCCESS && called) snprintf(name, (size_t)length, "%s", called);
    return r;
}

CUresult cuModuleLoadData(CUmodule *out, const void *image)
{
    CUresult (*load)(CUmodule *, const void *);
    find("cuModuleLoadData", &load);
    return is_called("bare") ? CUDA_ERROR_NO_BINARY_FOR_GPU : load(out, image);
}
