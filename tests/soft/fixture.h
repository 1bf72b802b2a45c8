/* fixture.h: what the tests of the soft GPU share: a device with settings, matrices on it, numbers. Each test file has its own copy. */
#ifndef KLEIN_TESTS_SOFT_FIXTURE_H
#define KLEIN_TESTS_SOFT_FIXTURE_H

#include "../support/support.h"

#include "../../kernels/cuda/gpu.h"
#include "../../kernels/soft/softgpu.h"
#include "args.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static struct driver cu;
static struct klein_error err;

static const struct kernel_module test_modules[] = {
    {"units_sm80", "sm_80", "klein soft image: sm_80 compute_80"},
    {"units_sm90", "sm_90a", "klein soft image: sm_90a"},
    {"layouts_sm80", "sm_80", "klein soft image: sm_80 compute_80"},
    {"layouts_sm90", "sm_90a", "klein soft image: sm_90a"},
    {"bugs_sm80", "sm_80", "klein soft image: sm_80 compute_80"},
    {"bugs_sm90", "sm_90a", "klein soft image: sm_90a"},
    {0},
};

/* A device that claims `arch`, with a seed and a mode of asynchrony. */
static inline struct gpu *open_gpu(const char *arch, uint64_t seed, enum softgpu_async async)
{
    struct gpu *g;
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.seed = seed;
    c.async = async;
    cr_assert(softgpu_configure(&c));
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    OK(gpu_add_modules(g, test_modules, &err));
    return g;
}

static inline void close_gpu(struct gpu *g)
{
    gpu_close(g);
    driver_close(&cu);
}

static inline void *to_device(struct gpu *g, const void *host, size_t bytes)
{
    void *p;
    OK(gpu_alloc(g, bytes, &p, &err));
    OK(gpu_upload(g, p, host, bytes, &err));
    return p;
}

/* Numbers in [-1, 1) that differ everywhere. */
static inline float number(uint64_t i)
{
    i = (i + 1) * 0x9e3779b97f4a7c15ull;
    i ^= i >> 29, i *= 0xbf58476d1ce4e5b9ull, i ^= i >> 32;
    return (float)(int32_t)(uint32_t)i * 0x1p-31f;
}

/* A matrix [rows, cols] of bf16 as the sm_90 kernels want it: boxes of 64 columns, 128-byte swizzle. */
static inline struct tensor_map map_of(struct gpu *g, void *p, int rows, int cols, int box_rows)
{
    struct tensor_map map;
    struct tensor_box box = {.ptr = p,
                             .dtype = DT_BF16,
                             .rank = 2,
                             .dims = {(uint64_t)cols, (uint64_t)rows},
                             .strides = {(uint64_t)cols * 2},
                             .box = {64, (uint32_t)box_rows},
                             .swizzle = 128};
    OK(gpu_tensor_map(g, &box, &map, &err));
    return map;
}

#endif
