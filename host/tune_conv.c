/* cuDNN's convolutions beside ours: alone, without bias, norm, residual and sums. */
#include "tune.h"

#include <stdlib.h>

struct beside {
    struct device *dev;
    struct op_call ours;
    struct cudnn_conv theirs;
    void *x, *w; /* as cuDNN reads them */
};

static int enlarged(const struct conv_args *a)
{
    return a->upsample ? 2 : 1;
}

/* The image that cuDNN reads: enlarged already; with the row and the column of zeros that stride 2 reads, as it pads all sides alike. */
static struct cudnn_shape shape_of(const struct conv_args *a)
{
    const int zeros = a->ksize == 3 && a->stride == 2;
    return (struct cudnn_shape){.h = a->h * enlarged(a) + zeros,
                                .w = a->w_px * enlarged(a) + zeros,
                                .cin = a->x.cols,
                                .cout = a->y.cols,
                                .ksize = a->ksize,
                                .stride = a->stride,
                                .pad = a->ksize == 3 && !zeros};
}

static enum klein_status copy(struct beside *b, struct tensor y, struct tensor x, struct klein_error *err)
{
    return b->dev->ops->copy(b->dev, &(struct copy_args){y, x}, err);
}

static enum klein_status lay_out_x(struct beside *b, const struct cudnn_shape *s, struct klein_error *err)
{
    const struct conv_args *a = &b->ours.args.conv;
    const int up = enlarged(a);
    const size_t bytes = (size_t)s->h * (size_t)s->w * (size_t)s->cin * dtype_size(DT_BF16);
    TRY(gpu_alloc(gpu_of(b->dev), bytes, &b->x, err));
    TRY(gpu_fill(gpu_of(b->dev), b->x, 0, bytes, err));
    const struct tensor image = tensor_of(b->x, DT_BF16, s->h * s->w, s->cin);
    for (int row = 0; row < a->h; row++)
        for (int i = 0; i < up * up; i++) { /* every pixel of the row, `up` apart */
            struct tensor y = tensor_rows(image, (row * up + i / up) * s->w + i % up, a->w_px);
            y.ld *= up;
            TRY(copy(b, y, tensor_rows(a->x, row * a->w_px, a->w_px), err));
        }
    return KLEIN_OK;
}

/* As packed (conv_launch.h), but for what fills channels up to a multiple of 8. */
static enum klein_status lay_out_w(struct beside *b, const struct cudnn_shape *s, struct klein_error *err)
{
    const struct tensor packed = b->ours.args.conv.w;
    const int taps = s->ksize * s->ksize, rows = s->cout * taps;
    struct tensor from = tensor_of(packed.ptr, DT_BF16, rows, s->cin);
    from.ld = packed.ld / taps;
    TRY(gpu_alloc(gpu_of(b->dev), (size_t)rows * (size_t)s->cin * dtype_size(DT_BF16), &b->w, err));
    return copy(b, tensor_of(b->w, DT_BF16, rows, s->cin), from, err);
}

static enum klein_status run_ours(void *user, struct klein_error *err)
{
    return op_call_run(&((struct beside *)user)->ours, err);
}

/* Into the same memory. */
static enum klein_status run_theirs(void *user, struct klein_error *err)
{
    const struct beside *b = user;
    return cudnn_conv_run(&b->theirs, b->x, b->w, b->ours.args.conv.y.ptr, err);
}

static enum klein_status compare(struct beside *b, struct tune_shape *s, struct klein_error *err)
{
    struct tensor ours = {0}, theirs = {0};
    run_ours(b, err);
    if (!err->status) op_call_read(&b->ours, 0, &ours, err);
    if (!err->status) op_call_clear(&b->ours, err);
    if (!err->status) b->dev->wait(b->dev, err);
    if (!err->status) run_theirs(b, err);
    if (!err->status) op_call_read(&b->ours, 0, &theirs, err);
    if (!err->status) tune_compare(&theirs, &ours, 1, "our convolution", s->peer_excluded);
    free(ours.ptr);
    free(theirs.ptr);
    return err->status;
}

static enum klein_status measure(struct beside *b, struct cudnn *dnn, struct tune_shape *s, int repeat,
                                 struct klein_error *err)
{
    const struct cudnn_shape shape = shape_of(&b->ours.args.conv);
    TRY(cudnn_conv_open(dnn, &shape, &b->theirs, err));
    TRY(lay_out_x(b, &shape, err));
    TRY(lay_out_w(b, &shape, err));
    TRY(compare(b, s, err));
    if (s->peer_excluded[0]) return KLEIN_OK;
    TRY(tune_time(b->dev, run_theirs, b, repeat, &s->peer, err));
    return tune_time(b->dev, run_ours, b, repeat, &s->alone, err);
}

enum klein_status tune_conv(struct device *dev, struct cudnn *dnn, struct tune_shape *s, int repeat,
                            struct klein_error *err)
{
    struct beside b = {.dev = dev};
    struct op_case alone = s->c;
    const struct tune_candidate *best = tune_best(s);
    struct tuned_row row = {.key = s->key, .kernel = best ? best->kernel : s->built_in};
    const struct tuned table = {.row = &row, .n = 1}, *const before = gpu_of(dev)->tuned;
    alone.options &= UPSAMPLE;
    if (alone.rows)
        alone.h = alone.rows * alone.stride / (alone.options ? 2 : 1); /* a band: an image of its size */
    alone.row0 = alone.rows = alone.bands = 0;
    gpu_of(dev)->tuned = &table; /* the kernel that the whole operation will take */
    if (op_call_open(&b.ours, &alone, DT_BF16, DT_BF16, dev, err) == KLEIN_OK) {
        measure(&b, dnn, s, repeat, err);
        op_call_free(&b.ours);
    }
    gpu_of(dev)->tuned = before;
    cudnn_conv_close(&b.theirs);
    gpu_free(gpu_of(dev), b.x);
    gpu_free(gpu_of(dev), b.w);
    cuda_unplace((struct cuda_device *)dev);
    return err->status;
}
