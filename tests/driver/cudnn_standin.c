/* A stand-in for cuDNN 9 on the soft GPU, whose memory is the host's: the convolution in plain C, at once. KLEIN_STANDIN=wrong: the last row
 * stays as it was; none: the heuristic finds no algorithm; fails: so do convolutions; old: it says that it is 8.9.7; dead: it does not start. */
#include "../../kernels/cuda/cudnn_library.h"
#include "../../base/tensor.h"

#include <stdlib.h>
#include <string.h>

enum { BAD_PARAM = 2000, NOT_SUPPORTED = 3000, FAILED = 5000, PRECOMP_GEMM = 1, WORKSPACE = 512 };

struct cudnnTensorStruct {
    int c, h, w;
};
struct cudnnFilterStruct {
    int k, c, h, w;
};
struct cudnnConvolutionStruct {
    int pad, stride;
    cudnnMathType_t math;
};

#define ENTRY(name, result)               __attribute__((visibility("default"))) result cudnn##name
#define DECLARE(name, result, parameters) ENTRY(name, result) parameters;
KLEIN_CUDNN_ENTRIES(DECLARE)

static int is_called(const char *name)
{
    const char *how = getenv("KLEIN_STANDIN");
    return how && !strcmp(how, name);
}

/* Everything opaque is a block of memory that has to be destroyed: a sanitizer tells of what is not. */
static cudnnStatus_t make(void *out, size_t bytes)
{
    void *p = calloc(1, bytes);
    memcpy(out, &p, sizeof p);
    return p ? 0 : FAILED;
}

static cudnnStatus_t unmake(void *p)
{
    free(p);
    return 0;
}

ENTRY(GetVersion, size_t)(void)
{
    return is_called("old") ? 8907 : 90000;
}
ENTRY(GetErrorString, const char *)(cudnnStatus_t status)
{
    return status == BAD_PARAM ? "BAD_PARAM" : status == FAILED ? "EXECUTION_FAILED" : "OTHER";
}
ENTRY(Create, cudnnStatus_t)(cudnnHandle_t *out)
{
    return is_called("dead") ? FAILED : make(out, 1);
}
ENTRY(Destroy, cudnnStatus_t)(cudnnHandle_t h)
{
    return unmake(h);
}
ENTRY(SetStream, cudnnStatus_t)(cudnnHandle_t h, CUstream stream)
{
    return h && stream ? 0 : BAD_PARAM;
}
ENTRY(CreateTensorDescriptor, cudnnStatus_t)(cudnnTensorDescriptor_t *out)
{
    return make(out, sizeof **out);
}
ENTRY(SetTensor4dDescriptor, cudnnStatus_t)
(cudnnTensorDescriptor_t t, cudnnTensorFormat_t format, cudnnDataType_t type, int n, int c, int h, int w)
{
    *t = (struct cudnnTensorStruct){c, h, w};
    return format == CUDNN_TENSOR_NHWC && type == CUDNN_DATA_BFLOAT16 && n == 1 ? 0 : BAD_PARAM;
}
ENTRY(DestroyTensorDescriptor, cudnnStatus_t)(cudnnTensorDescriptor_t t)
{
    return unmake(t);
}
ENTRY(CreateFilterDescriptor, cudnnStatus_t)(cudnnFilterDescriptor_t *out)
{
    return make(out, sizeof **out);
}
ENTRY(SetFilter4dDescriptor, cudnnStatus_t)
(cudnnFilterDescriptor_t f, cudnnDataType_t type, cudnnTensorFormat_t format, int k, int c, int h, int w)
{
    *f = (struct cudnnFilterStruct){k, c, h, w};
    return format == CUDNN_TENSOR_NHWC && type == CUDNN_DATA_BFLOAT16 ? 0 : BAD_PARAM;
}
ENTRY(DestroyFilterDescriptor, cudnnStatus_t)(cudnnFilterDescriptor_t f)
{
    return unmake(f);
}
ENTRY(CreateConvolutionDescriptor, cudnnStatus_t)(cudnnConvolutionDescriptor_t *out)
{
    return make(out, sizeof **out);
}
ENTRY(SetConvolution2dDescriptor, cudnnStatus_t)
(cudnnConvolutionDescriptor_t d, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w,
 cudnnConvolutionMode_t mode, cudnnDataType_t compute)
{
    *d = (struct cudnnConvolutionStruct){.pad = pad_h, .stride = u};
    return pad_h == pad_w && u == v && dilation_h == 1 && dilation_w == 1 &&
                   mode == CUDNN_CROSS_CORRELATION && compute == CUDNN_DATA_FLOAT
               ? 0
               : BAD_PARAM;
}
ENTRY(SetConvolutionMathType, cudnnStatus_t)(cudnnConvolutionDescriptor_t d, cudnnMathType_t math)
{
    d->math = math;
    return 0;
}
ENTRY(DestroyConvolutionDescriptor, cudnnStatus_t)(cudnnConvolutionDescriptor_t d)
{
    return unmake(d);
}

/* The first one cannot: the library lists such, too. */
ENTRY(GetConvolutionForwardAlgorithm_v7, cudnnStatus_t)
(cudnnHandle_t h, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t w, cudnnConvolutionDescriptor_t d,
 cudnnTensorDescriptor_t y, int most, int *found, cudnnConvolutionFwdAlgoPerf_t *out)
{
    *found = is_called("none") ? 1 : 2;
    memset(out, 0x5a, (size_t)most * sizeof *out);
    out[0].status = NOT_SUPPORTED;
    out[1].status = 0;
    out[1].algo = PRECOMP_GEMM;
    out[1].mathType = CUDNN_TENSOR_OP_MATH;
    return d->math == CUDNN_TENSOR_OP_MATH ? 0 : BAD_PARAM;
}
ENTRY(GetConvolutionForwardWorkspaceSize, cudnnStatus_t)
(cudnnHandle_t h, cudnnTensorDescriptor_t x, cudnnFilterDescriptor_t w, cudnnConvolutionDescriptor_t d,
 cudnnTensorDescriptor_t y, cudnnConvolutionFwdAlgo_t algo, size_t *bytes)
{
    *bytes = w->h == 1 ? 0 : WORKSPACE;
    return algo == PRECOMP_GEMM ? 0 : BAD_PARAM;
}

/* The sum over channels of a tap. */
static double tap(const void *x, size_t pixel, const void *w, size_t tap, int channels)
{
    double sum = 0;
    for (size_t c = 0; c < (size_t)channels; c++)
        sum += (double)f32_load(x, DT_BF16, pixel * (size_t)channels + c) *
               (double)f32_load(w, DT_BF16, tap * (size_t)channels + c);
    return sum;
}

ENTRY(ConvolutionForward, cudnnStatus_t)
(cudnnHandle_t h, const void *alpha, cudnnTensorDescriptor_t xd, const void *x, cudnnFilterDescriptor_t wd,
 const void *w, cudnnConvolutionDescriptor_t d, cudnnConvolutionFwdAlgo_t algo, void *workspace, size_t bytes,
 const void *beta, cudnnTensorDescriptor_t yd, void *y)
{
    if (is_called("fails")) return FAILED;
    if (algo != PRECOMP_GEMM || bytes != (wd->h == 1 ? 0 : WORKSPACE) || !bytes != !workspace ||
        wd->c != xd->c || wd->k != yd->c || yd->h != (xd->h + 2 * d->pad - wd->h) / d->stride + 1 ||
        yd->w != (xd->w + 2 * d->pad - wd->w) / d->stride + 1)
        return BAD_PARAM;
    if (bytes) memset(workspace, 0, bytes);
    const struct tensor out = tensor_of(y, DT_BF16, yd->h * yd->w, yd->c);
    const int pixels = (yd->h - is_called("wrong")) * yd->w, taps = wd->h * wd->w;
    for (int i = 0; i < pixels * yd->c; i++) {
        const int pixel = i / yd->c, cout = i % yd->c;
        double sum = 0;
        for (int t = 0; t < taps; t++) {
            const int row = pixel / yd->w * d->stride - d->pad + t / wd->w,
                      col = pixel % yd->w * d->stride - d->pad + t % wd->w;
            if (row >= 0 && row < xd->h && col >= 0 && col < xd->w)
                sum += tap(x, (size_t)(row * xd->w + col), w, (size_t)(cout * taps + t), xd->c);
        }
        tensor_set(out, pixel, cout, (float)sum);
    }
    return 0;
}
