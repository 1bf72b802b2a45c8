/* driver_device.cpp: devices, contexts, memory, error names. */
#include "driver.h"

#include <stdlib.h>

pthread_mutex_t soft_lock = PTHREAD_MUTEX_INITIALIZER;
struct CUctx_st soft_contexts[DEVICES_MAX];
static thread_local struct CUctx_st *mine;

struct CUctx_st *calling_context(void)
{
    return mine;
}

CUresult current(struct CUctx_st **context)
{
    *context = mine;
    if (!soft_config.devices) return CUDA_ERROR_NOT_INITIALIZED;
    if (!mine || !mine->retained)
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
    return mine->sticky;
}

bool memory_accessible(const struct allocation *a, int device)
{
    return a->device < 0 || a->device == device || soft_contexts[device].peers[a->device];
}

/* ---- names ---------------------------------------------------------------------------------------------------------- */

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no device"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "no such device"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "not a kernel image"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image for this device"},
    {CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "no peer access between these devices"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "illegal state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "illegal memory access"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources for a launch"},
    {CUDA_ERROR_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the kernel does not end"},
    {CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
     "peer access is already enabled"},
    {CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access is not enabled"},
    {CUDA_ERROR_ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "illegal instruction"},
    {CUDA_ERROR_MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "launch failed"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "not permitted while a stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "the capture was invalidated by an earlier call"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "the capture did not begin in this stream"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
     "the capture was forked to a stream that was not joined"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "a dependency crosses the border of the capture"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "the event was recorded in a capturing stream"},
};

ENTRY cuGetErrorName(CUresult error, const char **name)
{
    for (const auto &e : errors)
        if (e.code == error) return *name = e.name, CUDA_SUCCESS;
    return *name = NULL, CUDA_ERROR_INVALID_VALUE;
}

ENTRY cuGetErrorString(CUresult error, const char **text)
{
    for (const auto &e : errors)
        if (e.code == error) return *text = e.text, CUDA_SUCCESS;
    return *text = NULL, CUDA_ERROR_INVALID_VALUE;
}

/* ---- devices -------------------------------------------------------------------------------------------------------- */

ENTRY cuDriverGetVersion(int *version)
{
    *version = 13000;
    return CUDA_SUCCESS;
}

ENTRY cuDeviceGetCount(int *count)
{
    *count = soft_config.devices;
    return *count ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

static CUresult check_device(CUdevice device)
{
    if (!soft_config.devices) return CUDA_ERROR_NOT_INITIALIZED;
    return device >= 0 && device < soft_config.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

ENTRY cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return check_device(ordinal);
}

ENTRY cuDeviceGetName(char *name, int length, CUdevice device)
{
    CUresult r = check_device(device);
    if (r == CUDA_SUCCESS)
        snprintf(name, (size_t)length, "Soft GPU %s (limits of %s)", chip_of()->arch, chip_of()->as);
    return r;
}

static uint64_t device_memory(int device)
{
    const uint64_t own = soft_config.memory_of[device], all = soft_config.memory;
    return own ? own : all ? all : chip_of()->memory;
}

ENTRY cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    CUresult r = check_device(device);
    if (r == CUDA_SUCCESS) *bytes = device_memory(device);
    return r;
}

ENTRY cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    CUresult r = check_device(device);
    if (r != CUDA_SUCCESS) return r;
    const struct chip *c = chip_of();
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = WARPS_MAX * LANES;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
        *value = 48 * 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
        *value = LANES;
        break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
        *value = c->clock_khz;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = soft_config.multiprocessors ? soft_config.multiprocessors : c->multiprocessors;
        break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        *value = c->l2;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
        *value = c->threads_sm;
        break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        *value = 1;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = c->major;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = c->minor;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        *value = c->shared_sm;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
        *value = 65536;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = c->shared_optin;
        break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
        *value = 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED:
        *value = c->major >= 9;
        break;
    default:
        return refuse(CUDA_ERROR_INVALID_VALUE, "the soft GPU does not know device attribute %d",
                      (int)attribute);
    }
    return CUDA_SUCCESS;
}

ENTRY cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    CUresult r = check_device(device);
    if (r == CUDA_SUCCESS) r = check_device(peer);
    *can = r == CUDA_SUCCESS && device != peer && !soft_config.no_peers;
    return r;
}

/* ---- contexts ------------------------------------------------------------------------------------------------------- */

ENTRY cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    guard g;
    CUresult r = check_device(device);
    if (r != CUDA_SUCCESS) return r;
    *context = &soft_contexts[device];
    (*context)->device = device;
    (*context)->retained++;
    return CUDA_SUCCESS;
}

ENTRY cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    guard g;
    CUresult r = check_device(device);
    if (r != CUDA_SUCCESS) return r;
    struct CUctx_st *c = &soft_contexts[device];
    if (!c->retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (c->retained == 1) {
        streams_drain(device);
        memory_free_all(device);
        memset(c, 0, sizeof *c);
    } else {
        c->retained--;
    }
    return CUDA_SUCCESS;
}

ENTRY cuCtxSetCurrent(CUcontext context)
{
    guard g;
    if (context && !context->retained) return CUDA_ERROR_INVALID_CONTEXT;
    mine = context;
    return CUDA_SUCCESS;
}

static CUresult check_guards(struct CUctx_st *c)
{
    char text[512];
    if (memory_check(text, sizeof text)) return CUDA_SUCCESS;
    return c->sticky = refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "out of bounds: %s", text);
}

ENTRY cuCtxSynchronize(void)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_during_capture("cuCtxSynchronize");
    if (r == CUDA_SUCCESS) r = streams_drain(c->device);
    return r == CUDA_SUCCESS ? check_guards(c) : r;
}

ENTRY cuStreamSynchronize(CUstream s)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_during_capture("cuStreamSynchronize");
    if (r == CUDA_SUCCESS) r = stream_drain(s);
    return r == CUDA_SUCCESS ? check_guards(c) : r;
}

ENTRY cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (flags || !peer || !peer->retained) return CUDA_ERROR_INVALID_VALUE;
    if (peer == c) return CUDA_ERROR_INVALID_DEVICE;
    if (c->peers[peer->device]) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    c->peers[peer->device] = true;
    return CUDA_SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------------------------------- */

ENTRY cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    *total = device_memory(c->device);
    *free_bytes = *total - memory_used(c->device);
    return CUDA_SUCCESS;
}

ENTRY cuMemAlloc_v2(CUdeviceptr *memory, size_t bytes)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_during_capture("cuMemAlloc");
    if (r != CUDA_SUCCESS) return r;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    uint64_t left = device_memory(c->device) - memory_used(c->device);
    if (bytes > left)
        return refuse(CUDA_ERROR_OUT_OF_MEMORY, "device %d has %llu bytes left, %zu were asked for",
                      c->device, (unsigned long long)left, bytes);
    void *p;
    r = memory_new(bytes, c->device, &p);
    if (r == CUDA_SUCCESS) *memory = (CUdeviceptr)(uintptr_t)p;
    return r;
}

ENTRY cuMemFree_v2(CUdeviceptr memory)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (!c) return r; /* after a fault, memory can still be freed */
    if (forbid_during_capture("cuMemFree") != CUDA_SUCCESS) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!memory) return CUDA_SUCCESS;
    for (int d = 0; d < soft_config.devices && r == CUDA_SUCCESS; d++) r = streams_drain(d);
    char text[512];
    CUresult freed = memory_free((void *)(uintptr_t)memory, c->device, text, sizeof text);
    if (freed == CUDA_ERROR_ILLEGAL_ADDRESS) return c->sticky = refuse(freed, "out of bounds: %s", text);
    return r == CUDA_SUCCESS ? freed : r;
}

ENTRY cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_during_capture("cuMemHostAlloc");
    if (r == CUDA_SUCCESS) r = memory_new(bytes, -1, memory);
    if (r == CUDA_SUCCESS) count_pinned(bytes, 0);
    return r;
}

ENTRY cuMemFreeHost(void *memory)
{
    guard g;
    const struct allocation *a = memory_find(memory);
    const size_t bytes = a ? a->size : 0;
    count_stop();
    for (int d = 0; d < soft_config.devices; d++) streams_drain(d);
    char text[512];
    CUresult r = memory_free(memory, -1, text, sizeof text);
    if (r == CUDA_SUCCESS) count_pinned(0, bytes);
    return r == CUDA_ERROR_ILLEGAL_ADDRESS ? refuse(r, "out of bounds: %s", text) : r;
}
