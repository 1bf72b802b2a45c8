#include "cudnn_library.h"
#include "library.h"

#include <dlfcn.h>

_Static_assert(sizeof(cudnnConvolutionFwdAlgoPerf_t) == 48, "as in cudnn_cnn.h");

static const struct library_names names = {"cuDNN 9", "KLEIN_CUDNN", {"libcudnn.so.9"}};
static const struct library_entry entries[] = {
#define X(name, result, parameters) {"cudnn" #name, offsetof(struct cudnn, name)},
    KLEIN_CUDNN_ENTRIES(X)
#undef X
};

static enum klein_status check(const struct cudnn *dnn, cudnnStatus_t status, const char *what,
                               struct klein_error *err)
{
    if (!status) return KLEIN_OK;
    return fail(err, KLEIN_E_UNSUPPORTED, "cuDNN: %s: %s", what, dnn->GetErrorString(status));
}

static enum klein_status start(struct cudnn *dnn, struct klein_error *err)
{
    TRY(library_fill(dnn->library, "cuDNN", entries, sizeof entries / sizeof *entries, dnn, err));
    const size_t version = dnn->GetVersion(); /* 91900: 9.19.0; 8907: 8.9.7 */
    if (version < 90000)
        return fail(err, KLEIN_E_UNSUPPORTED, "cuDNN %zu.%zu.%zu is too old: 9 is needed", version / 1000,
                    version % 1000 / 100, version % 100);
    TRY(check(dnn, dnn->Create(&dnn->handle), "create", err));
    return check(dnn, dnn->SetStream(dnn->handle, dnn->gpu->stream), "stream", err);
}

enum klein_status cudnn_open(struct gpu *g, struct cudnn *out, struct klein_error *err)
{
    *out = (struct cudnn){.gpu = g};
    TRY(library_open(&names, g->cu->soft, &out->library, err));
    const enum klein_status status = start(out, err);
    if (status != KLEIN_OK) cudnn_close(out);
    return status;
}

void cudnn_close(struct cudnn *dnn)
{
    if (dnn->handle) dnn->Destroy(dnn->handle);
    if (dnn->library) dlclose(dnn->library);
    *dnn = (struct cudnn){0};
}

static enum klein_status choose(struct cudnn_conv *c, const struct cudnn_shape *s, struct klein_error *err)
{
    struct cudnn *d = c->dnn;
    cudnnConvolutionFwdAlgoPerf_t found[CUDNN_CONVOLUTION_FWD_ALGO_COUNT];
    int n = 0, i = 0;
    TRY(check(d,
              d->GetConvolutionForwardAlgorithm_v7(d->handle, c->x, c->w, c->conv, c->y,
                                                   CUDNN_CONVOLUTION_FWD_ALGO_COUNT, &n, found),
              "heuristic", err));
    while (i < n && found[i].status) i++;
    if (i >= n)
        return fail(err, KLEIN_E_UNSUPPORTED, "cuDNN has no kernel for %dx%d, %dx%d @ %d to %d", s->w, s->h,
                    s->ksize, s->ksize, s->cin, s->cout);
    c->algo = found[i].algo;
    TRY(check(d, d->SetConvolutionMathType(c->conv, found[i].mathType), "type of mathematics", err));
    TRY(check(d,
              d->GetConvolutionForwardWorkspaceSize(d->handle, c->x, c->w, c->conv, c->y, c->algo,
                                                    &c->workspace_bytes),
              "size of workspace", err));
    return c->workspace_bytes ? gpu_alloc(d->gpu, c->workspace_bytes, &c->workspace, err) : KLEIN_OK;
}

enum klein_status cudnn_conv_open(struct cudnn *d, const struct cudnn_shape *s, struct cudnn_conv *out,
                                  struct klein_error *err)
{
    const int oh = (s->h + 2 * s->pad - s->ksize) / s->stride + 1,
              ow = (s->w + 2 * s->pad - s->ksize) / s->stride + 1;
    *out = (struct cudnn_conv){.dnn = d};
    TRY(check(d, d->CreateTensorDescriptor(&out->x), "input", err));
    TRY(check(d, d->CreateTensorDescriptor(&out->y), "output", err));
    TRY(check(d, d->CreateFilterDescriptor(&out->w), "weights", err));
    TRY(check(d, d->CreateConvolutionDescriptor(&out->conv), "convolution", err));
    TRY(check(d,
              d->SetTensor4dDescriptor(out->x, CUDNN_TENSOR_NHWC, CUDNN_DATA_BFLOAT16, 1, s->cin, s->h, s->w),
              "input", err));
    TRY(check(d, d->SetTensor4dDescriptor(out->y, CUDNN_TENSOR_NHWC, CUDNN_DATA_BFLOAT16, 1, s->cout, oh, ow),
              "output", err));
    TRY(check(d,
              d->SetFilter4dDescriptor(out->w, CUDNN_DATA_BFLOAT16, CUDNN_TENSOR_NHWC, s->cout, s->cin,
                                       s->ksize, s->ksize),
              "weights", err));
    TRY(check(d,
              d->SetConvolution2dDescriptor(out->conv, s->pad, s->pad, s->stride, s->stride, 1, 1,
                                            CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
              "convolution", err));
    TRY(check(d, d->SetConvolutionMathType(out->conv, CUDNN_TENSOR_OP_MATH), "type of mathematics", err));
    return choose(out, s, err);
}

enum klein_status cudnn_conv_run(const struct cudnn_conv *c, const void *x, const void *w, void *y,
                                 struct klein_error *err)
{
    const float one = 1, zero = 0;
    return check(c->dnn,
                 c->dnn->ConvolutionForward(c->dnn->handle, &one, c->x, x, c->w, w, c->conv, c->algo,
                                            c->workspace, c->workspace_bytes, &zero, c->y, y),
                 "convolution", err);
}

void cudnn_conv_close(struct cudnn_conv *c)
{
    if (c->x) c->dnn->DestroyTensorDescriptor(c->x);
    if (c->y) c->dnn->DestroyTensorDescriptor(c->y);
    if (c->w) c->dnn->DestroyFilterDescriptor(c->w);
    if (c->conv) c->dnn->DestroyConvolutionDescriptor(c->conv);
    if (c->workspace) gpu_free(c->dnn->gpu, c->workspace);
    *c = (struct cudnn_conv){0};
}
