/* driver.h: the driver API as a table, opened at run time: libcuda.so.1, or libsoftgpu.so for the soft GPU. So one binary runs
 * everywhere, and a machine without a driver gets a clean KLEIN_E_NO_DEVICE. */
#ifndef KLEIN_CUDA_DRIVER_H
#define KLEIN_CUDA_DRIVER_H

#include "driver_api.h"
#include "../../base/error.h"

struct driver {
    void *library;
    int soft, version; /* version as in 12040 for 12.4 */
    int soft_images; /* it runs what a build without nvcc has: the soft GPU, and tests/driver/cuda_standin.c, which says so */
#define X(name, symbol, parameters) CUresult(*name) parameters;
    KLEIN_DRIVER_ENTRIES(X)
#undef X
    const char *(*report)(void); /* soft GPU: the paragraph about its last fault; NULL otherwise */
};

/* Opens and initialises the driver. KLEIN_E_NO_DEVICE: no driver or no device; KLEIN_E_UNSUPPORTED: a driver that is too old or does not
 * start; with the reason. Close with driver_close. */
enum klein_status driver_open(int soft, struct driver *out, struct klein_error *err);
void driver_close(struct driver *d);

/* "CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access ...)"; valid until the next call in this thread. */
const char *driver_error(const struct driver *d, CUresult result);

/* The status that stands for a driver error. */
enum klein_status driver_status(CUresult result);

#endif
