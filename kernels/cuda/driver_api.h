/* driver_api.h: the part of the CUDA driver API that klein uses, declared by ourselves, so that no toolkit is needed to build.
 * Names, values and layouts are those of the driver's ABI; tests/test_driver.c compares them with cuda.h where that exists.
 * The driver is opened at run time (driver.h); the soft GPU (kernels/soft) implements the same entries on the host. */
#ifndef KLEIN_DRIVER_API_H
#define KLEIN_DRIVER_API_H

#include <stddef.h>
#include <stdint.h>

#ifndef CUDA_VERSION /* cuda.h was not included */

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;

typedef enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_PEER_ACCESS_UNSUPPORTED = 217,
    CUDA_ERROR_INVALID_PTX = 218,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705,
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715,
    CUDA_ERROR_MISALIGNED_ADDRESS = 716,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_UNKNOWN = 999,
} CUresult;

typedef enum {
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK = 8,
    CU_DEVICE_ATTRIBUTE_WARP_SIZE = 10,
    CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13, /* kHz */
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR = 39,
    CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR = 82,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK = 111,
    CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED = 127,
} CUdevice_attribute;

typedef enum {
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_PTX_VERSION = 5,
    CU_FUNC_ATTRIBUTE_BINARY_VERSION = 6,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
} CUfunction_attribute;

enum { CU_STREAM_NON_BLOCKING = 1 };
enum { CU_EVENT_DEFAULT = 0, CU_EVENT_DISABLE_TIMING = 2 };

typedef enum {
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_STREAM_CAPTURE_MODE_RELAXED = 2,
} CUstreamCaptureMode;

typedef enum {
    CU_LAUNCH_ATTRIBUTE_IGNORE = 0,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
} CUlaunchAttributeID;

typedef union {
    char pad[64];
    struct {
        unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
} CUlaunchAttributeValue;

typedef struct {
    CUlaunchAttributeID id;
    char pad[8 - sizeof(CUlaunchAttributeID)];
    CUlaunchAttributeValue value;
} CUlaunchAttribute;

typedef struct {
    unsigned gridDimX, gridDimY, gridDimZ;
    unsigned blockDimX, blockDimY, blockDimZ;
    unsigned sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned numAttrs;
} CUlaunchConfig;

typedef enum {
    CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
} CUtensorMapDataType;
typedef enum { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 } CUtensorMapInterleave;
typedef enum {
    CU_TENSOR_MAP_SWIZZLE_NONE = 0,
    CU_TENSOR_MAP_SWIZZLE_32B = 1,
    CU_TENSOR_MAP_SWIZZLE_64B = 2,
    CU_TENSOR_MAP_SWIZZLE_128B = 3,
} CUtensorMapSwizzle;
typedef enum {
    CU_TENSOR_MAP_L2_PROMOTION_NONE = 0,
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
} CUtensorMapL2promotion;
typedef enum { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 } CUtensorMapFloatOOBfill;

typedef struct {
#ifdef __cplusplus
    alignas(128)
#else
    _Alignas(128)
#endif
        uint64_t opaque[16];
} CUtensorMap;

#endif

/* Every entry once: X(name in this code, exported symbol, parameters). All return CUresult. */
#define KLEIN_DRIVER_ENTRIES(X)                                                                              \
    X(Init, cuInit, (unsigned flags))                                                                        \
    X(DriverGetVersion, cuDriverGetVersion, (int *version))                                                  \
    X(GetErrorName, cuGetErrorName, (CUresult error, const char **name))                                     \
    X(GetErrorString, cuGetErrorString, (CUresult error, const char **text))                                 \
    X(DeviceGetCount, cuDeviceGetCount, (int *count))                                                        \
    X(DeviceGet, cuDeviceGet, (CUdevice * device, int ordinal))                                              \
    X(DeviceGetName, cuDeviceGetName, (char *name, int length, CUdevice device))                             \
    X(DeviceGetAttribute, cuDeviceGetAttribute, (int *value, CUdevice_attribute attribute, CUdevice device)) \
    X(DeviceTotalMem, cuDeviceTotalMem_v2, (size_t * bytes, CUdevice device))                                \
    X(DeviceCanAccessPeer, cuDeviceCanAccessPeer, (int *can, CUdevice device, CUdevice peer))                \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))              \
    X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                              \
    X(CtxSetCurrent, cuCtxSetCurrent, (CUcontext context))                                                   \
    X(CtxSynchronize, cuCtxSynchronize, (void))                                                              \
    X(CtxEnablePeerAccess, cuCtxEnablePeerAccess, (CUcontext peer, unsigned flags))                          \
    X(MemGetInfo, cuMemGetInfo_v2, (size_t * free, size_t * total))                                          \
    X(MemAlloc, cuMemAlloc_v2, (CUdeviceptr * memory, size_t bytes))                                         \
    X(MemFree, cuMemFree_v2, (CUdeviceptr memory))                                                           \
    X(MemHostAlloc, cuMemHostAlloc, (void **memory, size_t bytes, unsigned flags))                           \
    X(MemFreeHost, cuMemFreeHost, (void *memory))                                                            \
    X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t bytes, CUstream s))   \
    X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t bytes, CUstream s))         \
    X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s))   \
    X(MemcpyPeerAsync, cuMemcpyPeerAsync,                                                                    \
      (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,         \
       CUstream s))                                                                                          \
    X(MemsetD8Async, cuMemsetD8Async, (CUdeviceptr to, unsigned char value, size_t count, CUstream s))       \
    X(MemsetD32Async, cuMemsetD32Async, (CUdeviceptr to, unsigned value, size_t count, CUstream s))          \
    X(StreamCreate, cuStreamCreate, (CUstream * s, unsigned flags))                                          \
    X(StreamDestroy, cuStreamDestroy_v2, (CUstream s))                                                       \
    X(StreamSynchronize, cuStreamSynchronize, (CUstream s))                                                  \
    X(StreamQuery, cuStreamQuery, (CUstream s))                                                              \
    X(StreamWaitEvent, cuStreamWaitEvent, (CUstream s, CUevent event, unsigned flags))                       \
    X(StreamBeginCapture, cuStreamBeginCapture_v2, (CUstream s, CUstreamCaptureMode mode))                   \
    X(StreamEndCapture, cuStreamEndCapture, (CUstream s, CUgraph * graph))                                   \
    X(EventCreate, cuEventCreate, (CUevent * event, unsigned flags))                                         \
    X(EventDestroy, cuEventDestroy_v2, (CUevent event))                                                      \
    X(EventRecord, cuEventRecord, (CUevent event, CUstream s))                                               \
    X(EventSynchronize, cuEventSynchronize, (CUevent event))                                                 \
    X(EventQuery, cuEventQuery, (CUevent event))                                                             \
    X(EventElapsedTime, cuEventElapsedTime, (float *milliseconds, CUevent from, CUevent to))                 \
    X(ModuleLoadData, cuModuleLoadData, (CUmodule * module, const void *image))                              \
    X(ModuleUnload, cuModuleUnload, (CUmodule module))                                                       \
    X(ModuleGetFunction, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))    \
    X(FuncGetAttribute, cuFuncGetAttribute,                                                                  \
      (int *value, CUfunction_attribute attribute, CUfunction function))                                     \
    X(FuncSetAttribute, cuFuncSetAttribute,                                                                  \
      (CUfunction function, CUfunction_attribute attribute, int value))                                      \
    X(OccupancyMaxActiveBlocks, cuOccupancyMaxActiveBlocksPerMultiprocessor,                                 \
      (int *blocks, CUfunction function, int threads, size_t shared_bytes))                                  \
    X(LaunchKernelEx, cuLaunchKernelEx,                                                                      \
      (const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra))                   \
    X(TensorMapEncodeTiled, cuTensorMapEncodeTiled,                                                          \
      (CUtensorMap * map, CUtensorMapDataType type, uint32_t rank, void *address, const uint64_t *dims,      \
       const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,                        \
       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,       \
       CUtensorMapFloatOOBfill fill))                                                                        \
    X(GraphInstantiate, cuGraphInstantiateWithFlags,                                                         \
      (CUgraphExec * exec, CUgraph graph, unsigned long long flags))                                         \
    X(GraphGetNodes, cuGraphGetNodes, (CUgraph graph, CUgraphNode * nodes, size_t * count))                  \
    X(GraphLaunch, cuGraphLaunch, (CUgraphExec exec, CUstream s))                                            \
    X(GraphExecDestroy, cuGraphExecDestroy, (CUgraphExec exec))                                              \
    X(GraphDestroy, cuGraphDestroy, (CUgraph graph))

#endif
