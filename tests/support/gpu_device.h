/* gpu_device.h: the soft GPU as a device for op_cases.h. The ops are the caller's, so that each kernel family is tested on its own. */
#ifndef KLEIN_TESTS_GPU_DEVICE_H
#define KLEIN_TESTS_GPU_DEVICE_H

#include "../../kernels/cuda/gpu.h"
#include "../../kernels/device.h"

struct gpu_device {
    struct device base;
    struct driver cu;
    struct gpu *gpu;
};

/* Opens device 0 of the soft GPU as it is configured; fails the test if it cannot. device_close as usual. */
struct gpu_device *gpu_device_open(const struct op_table *ops);

#endif
