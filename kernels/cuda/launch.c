/* launch.c: kernels by name, tensor maps. */
#include "gpu.h"

#include <stdio.h>
#include <string.h>

/* The module with the longest name that the kernel's name begins with. */
static int module_of(const struct gpu *g, const char *kernel)
{
    int best = -1;
    size_t length = 0;
    for (int i = 0; i < g->module_count; i++) {
        size_t n = strlen(g->modules[i].module->name);
        if (n > length && !strncmp(kernel, g->modules[i].module->name, n)) {
            best = i;
            length = n;
        }
    }
    return best;
}

static enum klein_status find(struct gpu *g, const char *kernel, int *out, struct klein_error *err)
{
    for (int i = 0; i < g->function_count; i++)
        if (g->functions[i].name == kernel || !strcmp(g->functions[i].name, kernel)) {
            *out = i;
            return KLEIN_OK;
        }
    int m = module_of(g, kernel);
    if (m < 0) return fail(err, KLEIN_E_INTERNAL, "kernel %s: no module of that name", kernel);
    if (!g->modules[m].handle)
        return fail(err, KLEIN_E_UNSUPPORTED, "kernel %s is built for %s; none of these runs on %s (sm_%d)",
                    kernel, g->modules[m].module->builds, g->name, g->arch);
    if (g->function_count == GPU_FUNCTIONS_MAX)
        return fail(err, KLEIN_E_INTERNAL, "more than %d kernels in use", GPU_FUNCTIONS_MAX);
    CUfunction handle;
    int virtual = 0;
    TRY(gpu_check(g, g->cu->ModuleGetFunction(&handle, g->modules[m].handle, kernel), kernel, err));
    TRY(gpu_check(g, g->cu->FuncGetAttribute(&virtual, CU_FUNC_ATTRIBUTE_PTX_VERSION, handle), kernel, err));
    *out = g->function_count++;
    g->functions[*out].name = kernel;
    g->functions[*out].handle = handle;
    g->functions[*out].shared = 48 * 1024; /* the driver's default */
    g->functions[*out].waits = virtual >= 90;
    return KLEIN_OK;
}

/* The function's index, allowed to use l->shared bytes. */
static enum klein_status prepare(struct gpu *g, const struct launch *l, int *out, struct klein_error *err)
{
    int i;
    TRY(find(g, l->kernel, &i, err));
    if (l->shared > g->functions[i].shared) {
        TRY(gpu_check(g,
                      g->cu->FuncSetAttribute(g->functions[i].handle,
                                              CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                              (int)l->shared),
                      l->kernel, err));
        g->functions[i].shared = l->shared;
    }
    *out = i;
    return KLEIN_OK;
}

enum klein_status gpu_launch(struct gpu *g, const struct launch *l, struct klein_error *err)
{
    int i;
    if (g->dry) return KLEIN_OK;
    TRY(prepare(g, l, &i, err));
    CUlaunchAttribute dependent = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                   .value.programmaticStreamSerializationAllowed = 1};
    CUlaunchConfig config = {
        .gridDimX = l->grid[0] ? l->grid[0] : 1,
        .gridDimY = l->grid[1] ? l->grid[1] : 1,
        .gridDimZ = l->grid[2] ? l->grid[2] : 1,
        .blockDimX = l->threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = l->shared,
        .hStream = g->stream,
        .attrs = &dependent,
        .numAttrs = l->dependent && g->functions[i].waits,
    };
    void *arguments[] = {(void *)(uintptr_t)l->args};
    TRY(gpu_check(g, g->cu->LaunchKernelEx(&config, g->functions[i].handle, arguments, NULL), l->kernel,
                  err));
    return g->sync_each ? gpu_check(g, g->cu->StreamSynchronize(g->stream), l->kernel, err) : KLEIN_OK;
}

enum klein_status gpu_occupancy(struct gpu *g, const struct launch *l, int *blocks, struct klein_error *err)
{
    int i;
    TRY(prepare(g, l, &i, err));
    return gpu_check(
        g, g->cu->OccupancyMaxActiveBlocks(blocks, g->functions[i].handle, (int)l->threads, l->shared),
        l->kernel, err);
}

enum klein_status gpu_registers(struct gpu *g, const char *kernel, int *registers, struct klein_error *err)
{
    int i;
    TRY(find(g, kernel, &i, err));
    return gpu_check(g,
                     g->cu->FuncGetAttribute(registers, CU_FUNC_ATTRIBUTE_NUM_REGS, g->functions[i].handle),
                     kernel, err);
}

/* ---- tensor maps ------------------------------------------------------------------------------------------------------ */

enum klein_status gpu_tensor_map(struct gpu *g, const struct tensor_box *b, struct tensor_map *out,
                                 struct klein_error *err)
{
    static const uint32_t ones[5] = {1, 1, 1, 1, 1};
    CUtensorMapDataType type = b->dtype == DT_BF16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                               : b->dtype == DT_F32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                                    : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    CUtensorMapSwizzle swizzle = b->swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : b->swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                 : b->swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
    CUtensorMap map;
    if (g->dry) return KLEIN_OK;
    CUresult r =
        g->cu->TensorMapEncodeTiled(&map, type, (uint32_t)b->rank, b->ptr, b->dims, b->strides, b->box, ones,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS) {
        char what[128];
        snprintf(what, sizeof what, "cuTensorMapEncodeTiled, %d-D %llu x %llu, box %u x %u, swizzle %d",
                 b->rank, (unsigned long long)b->dims[0], (unsigned long long)b->dims[1], b->box[0],
                 b->box[1], b->swizzle);
        return gpu_check(g, r, what, err);
    }
    memcpy(out, &map, sizeof map);
    return KLEIN_OK;
}
