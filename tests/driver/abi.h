/* abi.h: what driver_api.h and cuda.h must agree about: values, sizes, offsets. Expanded once with each. */
#ifndef KLEIN_TESTS_ABI_H
#define KLEIN_TESTS_ABI_H

#include <stddef.h>

#define ABI_VALUES(X)                                                                                        \
    X(CUDA_SUCCESS)                                                                                          \
    X(CUDA_ERROR_INVALID_VALUE)                                                                              \
    X(CUDA_ERROR_OUT_OF_MEMORY)                                                                              \
    X(CUDA_ERROR_NOT_INITIALIZED)                                                                            \
    X(CUDA_ERROR_NO_DEVICE)                                                                                  \
    X(CUDA_ERROR_INVALID_DEVICE)                                                                             \
    X(CUDA_ERROR_INVALID_IMAGE)                                                                              \
    X(CUDA_ERROR_INVALID_CONTEXT)                                                                            \
    X(CUDA_ERROR_NO_BINARY_FOR_GPU)                                                                          \
    X(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)                                                                    \
    X(CUDA_ERROR_INVALID_PTX)                                                                                \
    X(CUDA_ERROR_UNSUPPORTED_PTX_VERSION)                                                                    \
    X(CUDA_ERROR_INVALID_HANDLE)                                                                             \
    X(CUDA_ERROR_ILLEGAL_STATE)                                                                              \
    X(CUDA_ERROR_NOT_FOUND)                                                                                  \
    X(CUDA_ERROR_NOT_READY)                                                                                  \
    X(CUDA_ERROR_ILLEGAL_ADDRESS)                                                                            \
    X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)                                                                    \
    X(CUDA_ERROR_LAUNCH_TIMEOUT)                                                                             \
    X(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)                                                                \
    X(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED)                                                                    \
    X(CUDA_ERROR_ILLEGAL_INSTRUCTION)                                                                        \
    X(CUDA_ERROR_MISALIGNED_ADDRESS)                                                                         \
    X(CUDA_ERROR_LAUNCH_FAILED)                                                                              \
    X(CUDA_ERROR_NOT_SUPPORTED)                                                                              \
    X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)                                                                 \
    X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)                                                                 \
    X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED)                                                                   \
    X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED)                                                                    \
    X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION)                                                                   \
    X(CUDA_ERROR_CAPTURED_EVENT)                                                                             \
    X(CUDA_ERROR_UNKNOWN)                                                                                    \
    X(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)                                                             \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)                                                       \
    X(CU_DEVICE_ATTRIBUTE_WARP_SIZE)                                                                         \
    X(CU_DEVICE_ATTRIBUTE_CLOCK_RATE)                                                                        \
    X(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)                                                              \
    X(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)                                                                     \
    X(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)                                                    \
    X(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)                                                                \
    X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)                                                          \
    X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)                                                          \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)                                              \
    X(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)                                                  \
    X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)                                                 \
    X(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)                                                  \
    X(CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED)                                                       \
    X(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)                                                               \
    X(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)                                                                   \
    X(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)                                                                    \
    X(CU_FUNC_ATTRIBUTE_NUM_REGS)                                                                            \
    X(CU_FUNC_ATTRIBUTE_PTX_VERSION)                                                                         \
    X(CU_FUNC_ATTRIBUTE_BINARY_VERSION)                                                                      \
    X(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)                                                       \
    X(CU_STREAM_NON_BLOCKING)                                                                                \
    X(CU_EVENT_DEFAULT)                                                                                      \
    X(CU_EVENT_DISABLE_TIMING)                                                                               \
    X(CU_STREAM_CAPTURE_MODE_GLOBAL)                                                                         \
    X(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)                                                                   \
    X(CU_STREAM_CAPTURE_MODE_RELAXED)                                                                        \
    X(CU_LAUNCH_ATTRIBUTE_IGNORE)                                                                            \
    X(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)                                                                 \
    X(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)                                                 \
    X(CU_TENSOR_MAP_DATA_TYPE_UINT8)                                                                         \
    X(CU_TENSOR_MAP_DATA_TYPE_FLOAT32)                                                                       \
    X(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)                                                                      \
    X(CU_TENSOR_MAP_INTERLEAVE_NONE)                                                                         \
    X(CU_TENSOR_MAP_SWIZZLE_NONE)                                                                            \
    X(CU_TENSOR_MAP_SWIZZLE_32B)                                                                             \
    X(CU_TENSOR_MAP_SWIZZLE_64B)                                                                             \
    X(CU_TENSOR_MAP_SWIZZLE_128B)                                                                            \
    X(CU_TENSOR_MAP_L2_PROMOTION_NONE)                                                                       \
    X(CU_TENSOR_MAP_L2_PROMOTION_L2_128B)                                                                    \
    X(CU_TENSOR_MAP_L2_PROMOTION_L2_256B)                                                                    \
    X(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)

#define ABI_SIZES(X)                                                                                         \
    X(sizeof(CUdevice))                                                                                      \
    X(sizeof(CUdeviceptr))                                                                                   \
    X(sizeof(CUlaunchConfig))                                                                                \
    X(offsetof(CUlaunchConfig, blockDimX))                                                                   \
    X(offsetof(CUlaunchConfig, sharedMemBytes))                                                              \
    X(offsetof(CUlaunchConfig, hStream))                                                                     \
    X(offsetof(CUlaunchConfig, attrs))                                                                       \
    X(offsetof(CUlaunchConfig, numAttrs))                                                                    \
    X(sizeof(CUlaunchAttribute))                                                                             \
    X(offsetof(CUlaunchAttribute, value))                                                                    \
    X(sizeof(CUlaunchAttributeValue))                                                                        \
    X(offsetof(CUlaunchAttributeValue, clusterDim.z))                                                        \
    X(sizeof(CUtensorMap))                                                                                   \
    X(_Alignof(CUtensorMap))

#define ABI_ROW(x) {#x, (long long)(x)},
struct abi_row {
    const char *name;
    long long value;
};
extern const struct abi_row abi_ours[], abi_cuda[]; /* end with name == NULL */

#endif
