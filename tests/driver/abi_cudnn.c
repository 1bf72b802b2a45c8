/* Compiled only where cuDNN's header is, beside the toolkit's: our declarations of cuDNN are those of cudnn.h 9. */
#include <cudnn.h>
#include <stddef.h>
#define CUDNN_DECLARED_ELSEWHERE
#define CUstream cudaStream_t /* the same struct pointer in cuda.h and here */
#include "../../kernels/cuda/cudnn_library.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* the older interface */
#define X(name, result, parameters)                                                                          \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&cudnn##name), result(*) parameters),             \
                   "cudnn" #name " is declared otherwise");
KLEIN_CUDNN_ENTRIES(X)
#undef X

_Static_assert(CUDNN_VERSION >= 90000 && CUDNN_VERSION < 100000, "versions");
_Static_assert(sizeof(cudnnStatus_t) == 4 && sizeof(cudnnDataType_t) == 4 &&
                   sizeof(cudnnTensorFormat_t) == 4 && sizeof(cudnnMathType_t) == 4 &&
                   sizeof(cudnnConvolutionMode_t) == 4 && sizeof(cudnnConvolutionFwdAlgo_t) == 4 &&
                   sizeof(cudnnDeterminism_t) == 4,
               "enums");
_Static_assert(sizeof(cudnnConvolutionFwdAlgoPerf_t) == 48 &&
                   offsetof(cudnnConvolutionFwdAlgoPerf_t, status) == 4 &&
                   offsetof(cudnnConvolutionFwdAlgoPerf_t, time) == 8 &&
                   offsetof(cudnnConvolutionFwdAlgoPerf_t, memory) == 16 &&
                   offsetof(cudnnConvolutionFwdAlgoPerf_t, determinism) == 24 &&
                   offsetof(cudnnConvolutionFwdAlgoPerf_t, mathType) == 28,
               "an algorithm");
_Static_assert(CUDNN_STATUS_SUCCESS == 0 && CUDNN_DATA_FLOAT == 0 && CUDNN_DATA_BFLOAT16 == 9, "types");
_Static_assert(CUDNN_TENSOR_NHWC == 1 && CUDNN_TENSOR_OP_MATH == 1 && CUDNN_CROSS_CORRELATION == 1, "values");
_Static_assert(CUDNN_CONVOLUTION_FWD_ALGO_COUNT == 8, "algorithms");
