/* cudnn_library.h: NVIDIA's convolutions, to compare ours with: opened at run time where they are, never linked, and not used by the engine. */
#ifndef KLEIN_CUDA_CUDNN_LIBRARY_H
#define KLEIN_CUDA_CUDNN_LIBRARY_H

#include "gpu.h"

/* What we use of cudnn.h 9, its older interface, declared by hand (tests/driver/abi_cudnn.c compares). */
#ifndef CUDNN_DECLARED_ELSEWHERE
typedef int cudnnStatus_t; /* an enum, as are the next */
typedef int cudnnDataType_t, cudnnTensorFormat_t, cudnnMathType_t, cudnnConvolutionMode_t,
    cudnnConvolutionFwdAlgo_t, cudnnDeterminism_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef struct cudnnTensorStruct *cudnnTensorDescriptor_t;
typedef struct cudnnFilterStruct *cudnnFilterDescriptor_t;
typedef struct cudnnConvolutionStruct *cudnnConvolutionDescriptor_t;
typedef struct {
    cudnnConvolutionFwdAlgo_t algo;
    cudnnStatus_t status;
    float time;
    size_t memory;
    cudnnDeterminism_t determinism;
    cudnnMathType_t mathType;
    int reserved[3];
} cudnnConvolutionFwdAlgoPerf_t;
enum {
    CUDNN_DATA_FLOAT = 0,
    CUDNN_DATA_BFLOAT16 = 9,
    CUDNN_TENSOR_NHWC = 1,
    CUDNN_TENSOR_OP_MATH = 1,
    CUDNN_CROSS_CORRELATION = 1,
    CUDNN_CONVOLUTION_FWD_ALGO_COUNT = 8
};
#endif

/* X(name, result, parameters) */
#define KLEIN_CUDNN_ENTRIES(X)                                                                               \
    X(GetVersion, size_t, (void))                                                                            \
    X(GetErrorString, const char *, (cudnnStatus_t))                                                         \
    X(Create, cudnnStatus_t, (cudnnHandle_t *))                                                              \
    X(Destroy, cudnnStatus_t, (cudnnHandle_t))                                                               \
    X(SetStream, cudnnStatus_t, (cudnnHandle_t, CUstream))                                                   \
    X(CreateTensorDescriptor, cudnnStatus_t, (cudnnTensorDescriptor_t *))                                    \
    X(SetTensor4dDescriptor, cudnnStatus_t,                                                                  \
      (cudnnTensorDescriptor_t, cudnnTensorFormat_t, cudnnDataType_t, int, int, int, int))                   \
    X(DestroyTensorDescriptor, cudnnStatus_t, (cudnnTensorDescriptor_t))                                     \
    X(CreateFilterDescriptor, cudnnStatus_t, (cudnnFilterDescriptor_t *))                                    \
    X(SetFilter4dDescriptor, cudnnStatus_t,                                                                  \
      (cudnnFilterDescriptor_t, cudnnDataType_t, cudnnTensorFormat_t, int, int, int, int))                   \
    X(DestroyFilterDescriptor, cudnnStatus_t, (cudnnFilterDescriptor_t))                                     \
    X(CreateConvolutionDescriptor, cudnnStatus_t, (cudnnConvolutionDescriptor_t *))                          \
    X(SetConvolution2dDescriptor, cudnnStatus_t,                                                             \
      (cudnnConvolutionDescriptor_t, int, int, int, int, int, int, cudnnConvolutionMode_t, cudnnDataType_t)) \
    X(SetConvolutionMathType, cudnnStatus_t, (cudnnConvolutionDescriptor_t, cudnnMathType_t))                \
    X(DestroyConvolutionDescriptor, cudnnStatus_t, (cudnnConvolutionDescriptor_t))                           \
    X(GetConvolutionForwardAlgorithm_v7, cudnnStatus_t,                                                      \
      (cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, cudnnConvolutionDescriptor_t,        \
       cudnnTensorDescriptor_t, int, int *, cudnnConvolutionFwdAlgoPerf_t *))                                \
    X(GetConvolutionForwardWorkspaceSize, cudnnStatus_t,                                                     \
      (cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, cudnnConvolutionDescriptor_t,        \
       cudnnTensorDescriptor_t, cudnnConvolutionFwdAlgo_t, size_t *))                                        \
    X(ConvolutionForward, cudnnStatus_t,                                                                     \
      (cudnnHandle_t, const void *, cudnnTensorDescriptor_t, const void *, cudnnFilterDescriptor_t,          \
       const void *, cudnnConvolutionDescriptor_t, cudnnConvolutionFwdAlgo_t, void *, size_t, const void *,  \
       cudnnTensorDescriptor_t, void *))

#ifndef CUDNN_DECLARED_ELSEWHERE
struct cudnn {
    void *library;
    struct gpu *gpu; /* borrowed */
    cudnnHandle_t handle;
#define X(name, result, parameters) result(*name) parameters;
    KLEIN_CUDNN_ENTRIES(X)
#undef X
};

/* y [oh, ow, cout] = x [h, w, cin] * w [cout, ksize, ksize, cin], BF16, dense; `pad` zeros on every side of x. */
struct cudnn_shape {
    int h, w, cin, cout, ksize, stride, pad;
};
struct cudnn_conv {
    struct cudnn *dnn;
    cudnnTensorDescriptor_t x, y;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t conv;
    cudnnConvolutionFwdAlgo_t algo;
    void *workspace; /* NULL: it wants none */
    size_t workspace_bytes;
};

/* KLEIN_CUDNN=FILE in the environment, else libcudnn.so.9; nothing but the former beside the soft GPU. KLEIN_E_UNSUPPORTED: there is none,
 * it is older than 9, lacks something, or does not start. libcudnn.so.9 loads its other parts itself and aborts the program where
 * these are missing: here, at its first call. */
enum klein_status cudnn_open(struct gpu *g, struct cudnn *out, struct klein_error *err);
void cudnn_close(struct cudnn *dnn);
/* Chooses the algorithm that the library's heuristic puts first. KLEIN_E_UNSUPPORTED: it has none. Close it also after a failure. */
enum klein_status cudnn_conv_open(struct cudnn *dnn, const struct cudnn_shape *s, struct cudnn_conv *out,
                                  struct klein_error *err);
/* In the gpu's stream. */
enum klein_status cudnn_conv_run(const struct cudnn_conv *c, const void *x, const void *w, void *y,
                                 struct klein_error *err);
void cudnn_conv_close(struct cudnn_conv *c);
#endif

#endif
