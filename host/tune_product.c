/* cuBLASLt's products beside ours: the plain product of a shape's size, without what our kernels do to its results. */
#include "tune.h"

#include "../kernels/gemm/linear_launch.h"

#include <stdlib.h>

struct operands {
    struct device *dev;
    enum dtype type;
    int m, n, k;
    void *x, *w, *ours, *theirs;
    float *scale; /* [max(m, n)] ones; NULL: not in e4m3 */
    const struct cublaslt_product *product;
};

/* Random numbers on the device: BF16 of 0.5 to 2, or e4m3 of all but the largest and NaN; both signs. */
static enum klein_status fill(struct operands *o, int rows, uint32_t seed, void **out,
                              struct klein_error *err)
{
    const size_t n = (size_t)rows * (size_t)o->k, bytes = n * dtype_size(o->type);
    uint8_t *host = malloc(bytes);
    TRY(gpu_alloc(gpu_of(o->dev), bytes, out, err));
    if (!host) return fail(err, KLEIN_E_NO_MEMORY, "no memory for random numbers");
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = (seed = seed * 1664525u + 1013904223u) >> 8;
        if (o->type == DT_BF16)
            ((uint16_t *)host)[i] = (uint16_t)(0x3f00 + (r & 0xff) + ((r >> 8 & 1) << 15));
        else
            host[i] = (uint8_t)((r & 0x3f) + ((r >> 8 & 1) << 7));
    }
    o->dev->upload(o->dev, *out, host, bytes, err);
    free(host);
    return err->status;
}

static enum klein_status fill_scales(struct operands *o, struct klein_error *err)
{
    const int n = o->m > o->n ? o->m : o->n;
    float *host = malloc((size_t)n * sizeof *host);
    void *scale = NULL;
    if (o->type == DT_BF16) {
        free(host);
        return KLEIN_OK;
    }
    if (!host) return fail(err, KLEIN_E_NO_MEMORY, "no memory for scales");
    for (int i = 0; i < n; i++) host[i] = 1;
    if (gpu_alloc(gpu_of(o->dev), (size_t)n * sizeof *host, &scale, err) == KLEIN_OK)
        o->dev->upload(o->dev, scale, host, (size_t)n * sizeof *host, err);
    o->scale = scale;
    free(host);
    return err->status;
}

static enum klein_status run_ours(const struct operands *o, struct klein_error *err)
{
    struct linear_kernel_args a = {
        .x = o->x, .ldx = o->k, .x_scale = o->scale, .m = o->m, .k = o->k, .segments = 1};
    a.segment[0] = (struct linear_segment){
        .kind = LINEAR_SEGMENT_PLAIN, .cols = o->n, .y_type = ELEMENT_BF16, .ldy = o->n, .y = o->ours};
    a.segment[0].group[0] = (struct linear_segment_weights){.w = o->w, .ldw = o->k, .w_scale = o->scale};
    return gemm_launch(gpu_of(o->dev), o->type, &a, err);
}

static enum klein_status run_theirs(void *user, struct klein_error *err)
{
    const struct operands *o = user;
    return cublaslt_product_run(o->product, o->x, o->w, o->theirs, err);
}

static enum klein_status read_product(const struct operands *o, const void *from, struct tensor *out,
                                      struct klein_error *err)
{
    const size_t bytes = (size_t)o->m * (size_t)o->n * dtype_size(DT_BF16);
    *out = tensor_of(malloc(bytes), DT_BF16, o->m, o->n);
    if (!out->ptr) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a product");
    return o->dev->download(o->dev, out->ptr, from, bytes, err);
}

static enum klein_status measure(struct operands *o, struct tune_shape *s, int repeat,
                                 struct klein_error *err)
{
    struct tensor ours = {0}, theirs = {0};
    const size_t bytes = (size_t)o->m * (size_t)o->n * dtype_size(DT_BF16);
    TRY(fill(o, o->m, 1, &o->x, err));
    TRY(fill(o, o->n, 2, &o->w, err));
    TRY(fill_scales(o, err));
    TRY(gpu_alloc(gpu_of(o->dev), bytes, &o->ours, err));
    TRY(gpu_alloc(gpu_of(o->dev), bytes, &o->theirs, err));
    TRY(gpu_fill(gpu_of(o->dev), o->theirs, 0xff, bytes, err));
    TRY(run_ours(o, err));
    TRY(o->dev->wait(o->dev, err));
    TRY(run_theirs(o, err));
    if (read_product(o, o->ours, &ours, err) == KLEIN_OK) read_product(o, o->theirs, &theirs, err);
    if (!err->status) tune_compare(&theirs, &ours, 1, "our product", s->peer_excluded);
    free(ours.ptr);
    free(theirs.ptr);
    if (err->status || s->peer_excluded[0]) return err->status;
    return tune_time(o->dev, run_theirs, o, repeat, &s->peer, err);
}

enum klein_status tune_product(struct device *dev, struct cublaslt *lt, struct tune_shape *s, int repeat,
                               struct klein_error *err)
{
    const struct gemm_shape *g = &s->shape.gemm;
    struct operands o = {.dev = dev, .type = g->type, .k = g->k};
    struct cublaslt_product product = {0};
    for (int i = 0; i < LINEAR_GROUPS; i++) o.m += g->rows[i];
    for (int i = 0; i < g->segments; i++) o.n += g->w_rows[i];
    o.product = &product;
    if (cublaslt_product_open(lt, o.type, o.m, o.n, o.k, &product, err) == KLEIN_OK)
        measure(&o, s, repeat, err);
    cublaslt_product_close(&product);
    void *const memory[] = {o.x, o.w, o.ours, o.theirs, o.scale};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) gpu_free(gpu_of(dev), memory[i]);
    return err->status;
}
