/* driver_module.cpp: modules, functions, launches. A module's image only says for which chips it was built; the kernel itself is the
 * host function that registered under the name. */
#include "driver.h"

#include <stdlib.h>

static struct soft_kernel *kernels;

void soft_register(struct soft_kernel *kernel)
{
    kernel->next = kernels;
    kernels = kernel;
}

const struct soft_kernel *kernel_find(const char *name)
{
    const struct soft_kernel *k = kernels;
    while (k && strcmp(k->name, name)) k = k->next;
    return k;
}

/* ---- modules -------------------------------------------------------------------------------------------------------- */

ENTRY cuModuleLoadData(CUmodule *out, const void *data)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_during_capture("cuModuleLoadData");
    if (r != CUDA_SUCCESS) return r;
    struct image *image;
    r = image_open(data, chip_of(), &image);
    if (r != CUDA_SUCCESS) return r;
    struct CUmod_st *m = (struct CUmod_st *)calloc(1, sizeof *m);
    if (!m) {
        image_close(image);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->device = c->device;
    m->image = image;
    *out = m;
    return CUDA_SUCCESS;
}

ENTRY cuModuleUnload(CUmodule m)
{
    guard g;
    if (!m) return CUDA_ERROR_INVALID_HANDLE;
    streams_drain(m->device);
    while (m->functions) {
        struct CUfunc_st *f = m->functions;
        m->functions = f->next;
        free(f);
    }
    image_close(m->image);
    free(m);
    return CUDA_SUCCESS;
}

/* As many registers as the launch bounds leave to a thread. */
static int registers_by_bounds(const struct soft_kernel *k)
{
    int r = 65536 / (k->threads * (k->min_blocks > 0 ? k->min_blocks : 1)) / 8 * 8;
    return r < 255 ? r : 255;
}

ENTRY cuModuleGetFunction(CUfunction *out, CUmodule m, const char *name)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (!m) return CUDA_ERROR_INVALID_HANDLE;
    const struct soft_kernel *k = kernel_find(name);
    int registers = image_registers(m->image, name);
    if (!k || (m->image->elf && !registers))
        return refuse(CUDA_ERROR_NOT_FOUND, "no kernel %s in this module", name);
    struct CUfunc_st *f = (struct CUfunc_st *)calloc(1, sizeof *f);
    if (!f) return CUDA_ERROR_OUT_OF_MEMORY;
    f->module = m;
    f->kernel = k;
    f->registers = registers > 0 ? registers : registers_by_bounds(k);
    f->max_dynamic_shared = 48 * 1024;
    f->next = m->functions;
    m->functions = f;
    *out = f;
    return CUDA_SUCCESS;
}

/* ---- functions ------------------------------------------------------------------------------------------------------ */

ENTRY cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f)
{
    guard g;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = f->kernel->threads;
        break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *value = 0;
        break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        *value = 0;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = f->registers;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION: /* kernels here wait whatever they were compiled for */
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = chip_of()->major * 10 + chip_of()->minor;
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = f->max_dynamic_shared;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

ENTRY cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value)
{
    guard g;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (value < 0 || value > chip_of()->shared_optin)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "too much shared memory: %s wants %d bytes, a block on %s may have %d", f->kernel->name,
                      value, chip_of()->arch, chip_of()->shared_optin);
    f->max_dynamic_shared = value;
    return CUDA_SUCCESS;
}

/* Registers are given to warps in units of 256. */
static int registers_of_block(const struct CUfunc_st *f, int threads)
{
    return (f->registers * LANES + 255) / 256 * 256 * (threads / LANES);
}

ENTRY cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction f, int threads, size_t shared_bytes)
{
    guard g;
    if (threads <= 0 || threads % LANES || threads > f->kernel->threads ||
        shared_bytes > (size_t)f->max_dynamic_shared)
        return CUDA_ERROR_INVALID_VALUE;
    int by_threads = chip_of()->threads_sm / threads, by_registers = 65536 / registers_of_block(f, threads);
    int by_shared = chip_of()->shared_sm / (int)(shared_bytes + 1024);
    int n = by_threads < by_registers ? by_threads : by_registers;
    *blocks = n < by_shared ? n : by_shared;
    return CUDA_SUCCESS;
}

/* ---- launches ------------------------------------------------------------------------------------------------------- */

static CUresult check_launch(const CUlaunchConfig *l, const struct CUfunc_st *f, struct task *t)
{
    const struct soft_kernel *k = f->kernel;
    const char *name = k->name;
    if (l->blockDimY != 1 || l->blockDimZ != 1 || (int)l->blockDimX != k->threads)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "launch of %s with (%u, %u, %u) threads: its bounds say (%d, 1, 1)", name, l->blockDimX,
                      l->blockDimY, l->blockDimZ, k->threads);
    if (!l->gridDimX || !l->gridDimY || !l->gridDimZ || l->gridDimX > 0x7fffffffu || l->gridDimY > 65535 ||
        l->gridDimZ > 65535)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "launch of %s on a grid of (%u, %u, %u): 1.. 2^31-1, 65535, 65535", name, l->gridDimX,
                      l->gridDimY, l->gridDimZ);
    if ((int64_t)l->sharedMemBytes > f->max_dynamic_shared)
        return refuse(CUDA_ERROR_INVALID_VALUE,
                      "too much shared memory: launch of %s with %u bytes, MAX_DYNAMIC_SHARED_SIZE_BYTES is "
                      "%d, a block on %s may have %d",
                      name, l->sharedMemBytes, f->max_dynamic_shared, chip_of()->arch,
                      chip_of()->shared_optin);
    if (registers_of_block(f, k->threads) > 65536)
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                      "launch of %s: %d threads of %d registers, a multiprocessor has 65536", name,
                      k->threads, f->registers);
    if (k->args_size > 4096)
        return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: %zu bytes of arguments, 4096 at most", name,
                      k->args_size);
    for (unsigned i = 0; i < l->numAttrs; i++) {
        const CUlaunchAttribute *a = &l->attrs[i];
        if (a->id == CU_LAUNCH_ATTRIBUTE_IGNORE) continue;
        if (a->id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            return refuse(CUDA_ERROR_NOT_SUPPORTED,
                          "launch of %s: the soft GPU does not do launch attribute %d", name, (int)a->id);
        if (a->value.programmaticStreamSerializationAllowed && chip_of()->major < 9)
            return refuse(CUDA_ERROR_NOT_SUPPORTED,
                          "launch of %s: programmatic dependent launch needs sm_90, this is %s", name,
                          chip_of()->arch);
        t->dependent = a->value.programmaticStreamSerializationAllowed != 0;
    }
    return CUDA_SUCCESS;
}

static bool stream_known(const struct CUstream_st *s)
{
    const struct CUstream_st *i = soft_streams;
    while (i && i != s) i = i->next;
    return i != NULL;
}

ENTRY cuLaunchKernelEx(const CUlaunchConfig *l, CUfunction f, void **arguments, void **extra)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (!f || extra || !arguments) return CUDA_ERROR_INVALID_VALUE;
    if (!stream_known(l->hStream) || l->hStream->device != c->device || f->module->device != c->device)
        return refuse(CUDA_ERROR_INVALID_HANDLE,
                      "launch of %s: stream or module does not belong to the current device %d",
                      f->kernel->name, c->device);
    struct task t = {};
    t.work = WORK_KERNEL;
    t.function = f;
    r = check_launch(l, f, &t);
    if (r != CUDA_SUCCESS) return r;
    t.grid[0] = l->gridDimX;
    t.grid[1] = l->gridDimY;
    t.grid[2] = l->gridDimZ;
    t.threads = l->blockDimX;
    t.shared_bytes = l->sharedMemBytes;
    size_t align = f->kernel->args_align < 64 ? 64 : f->kernel->args_align;
    t.args = aligned_alloc(align, (f->kernel->args_size + align - 1) / align * align);
    if (!t.args) return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(t.args, arguments[0], f->kernel->args_size);
    return task_push(l->hStream, &t);
}
