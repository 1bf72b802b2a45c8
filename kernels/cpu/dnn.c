#include "dnn.h"

#include "../../base/tensor.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>

/* KEPT: primitives per thread, a few times what one request needs; beyond that all are dropped and made anew. */
enum { BUCKETS = 64, KEPT = 512, PAGE = 4096, KEY = 10 };

/* A prepared primitive and the layouts of its operands. */
struct prepared {
    struct prepared *next;
    int64_t key[KEY];
    dnnl_primitive_t primitive;
    dnnl_primitive_desc_t desc;
    dnnl_memory_desc_t src, weights, dst, pad;
    size_t pad_bytes;
};

struct worker {
    dnnl_stream_t stream;
    struct prepared *bucket[BUCKETS];
    int kept;
    void *pad; /* oneDNN's scratchpad */
    size_t pad_bytes;
};

struct dnn {
    dnnl_engine_t engine;
    int threads;
    struct worker worker[];
};

static void prepared_free(struct prepared *p)
{
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->desc) dnnl_primitive_desc_destroy(p->desc);
    free(p);
}

static void worker_drop(struct worker *w)
{
    for (int b = 0; b < BUCKETS; b++)
        while (w->bucket[b]) {
            struct prepared *p = w->bucket[b];
            w->bucket[b] = p->next;
            prepared_free(p);
        }
    w->kept = 0;
}

struct dnn *dnn_open(int threads)
{
    struct dnn *dnn = calloc(1, sizeof *dnn + (size_t)threads * sizeof dnn->worker[0]);
    if (!dnn) return NULL;
    dnn->threads = threads;
    int bad = dnnl_engine_create(&dnn->engine, dnnl_cpu, 0) != dnnl_success;
    for (int i = 0; i < threads && !bad; i++)
        bad = dnnl_stream_create(&dnn->worker[i].stream, dnn->engine, dnnl_stream_default_flags) !=
              dnnl_success;
    if (!bad) return dnn;
    dnn_close(dnn);
    return NULL;
}

void dnn_close(struct dnn *dnn)
{
    for (int i = 0; dnn && i < dnn->threads; i++) {
        struct worker *w = &dnn->worker[i];
        worker_drop(w);
        if (w->stream) dnnl_stream_destroy(w->stream);
        free(w->pad);
    }
    if (dnn && dnn->engine) dnnl_engine_destroy(dnn->engine);
    free(dnn);
}

void dnn_enter(void)
{
    omp_set_num_threads(1);
}

static enum klein_status status_of(dnnl_status_t s)
{
    return s == dnnl_success ? KLEIN_OK : s == dnnl_out_of_memory ? KLEIN_E_NO_MEMORY : KLEIN_E_INTERNAL;
}

#define DNN(call)                                                                                            \
    do {                                                                                                     \
        dnnl_status_t dnn_status_ = (call);                                                                  \
        if (dnn_status_ != dnnl_success) return dnn_status_;                                                 \
    } while (0)

static dnnl_data_type_t type_of(enum dtype t)
{
    return t == DT_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* Attributes of all primitives: scratchpad from us, f32 computed as f32. `sum`: dst += result. */
static dnnl_status_t attributes(int sum, dnnl_primitive_attr_t *attr)
{
    DNN(dnnl_primitive_attr_create(attr));
    DNN(dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user));
    DNN(dnnl_primitive_attr_set_fpmath_mode(*attr, dnnl_fpmath_mode_strict));
    if (!sum) return dnnl_success;
    dnnl_post_ops_t ops;
    DNN(dnnl_post_ops_create(&ops));
    dnnl_status_t s = dnnl_post_ops_append_sum(ops, 1);
    if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(*attr, ops);
    dnnl_post_ops_destroy(ops);
    return s;
}

static dnnl_status_t finish(struct dnn *dnn, struct prepared *p, const_dnnl_op_desc_t op, int sum)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t s = attributes(sum, &attr);
    if (s == dnnl_success) s = dnnl_primitive_desc_create(&p->desc, op, attr, dnn->engine, NULL);
    if (s == dnnl_success) s = dnnl_primitive_create(&p->primitive, p->desc);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (s != dnnl_success) return s;
    p->weights = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_weights_md, 0);
    p->pad = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_scratchpad_md, 0);
    p->pad_bytes = dnnl_memory_desc_get_size(&p->pad);
    return dnnl_success;
}

static dnnl_status_t make_matmul(struct dnn *dnn, const struct dnn_matmul *s, struct prepared *p)
{
    dnnl_dims_t a = {s->m, s->k}, a_strides = {s->lda, 1}, b = {s->k, s->n}, b_strides = {s->ldb, 1};
    dnnl_dims_t c = {s->m, s->n}, c_strides = {s->ldc, 1};
    if (s->transposed) b_strides[0] = 1, b_strides[1] = s->ldb;
    DNN(dnnl_memory_desc_init_by_strides(&p->src, 2, a, type_of(s->type), a_strides));
    DNN(dnnl_memory_desc_init_by_strides(&p->weights, 2, b, type_of(s->type), b_strides));
    DNN(dnnl_memory_desc_init_by_strides(&p->dst, 2, c, dnnl_f32, c_strides));
    dnnl_matmul_desc_t desc;
    DNN(dnnl_matmul_desc_init(&desc, &p->src, &p->weights, NULL, &p->dst));
    return finish(dnn, p, &desc, s->accumulate);
}

static dnnl_status_t make_conv(struct dnn *dnn, const struct dnn_conv *s, struct prepared *p)
{
    int oh = (s->h - s->ksize) / s->stride + 1, ow = (s->w - s->ksize) / s->stride + 1;
    dnnl_dims_t x = {1, s->cin, s->h, s->w}, w = {s->cout, s->cin, s->ksize, s->ksize},
                y = {1, s->cout, oh, ow};
    dnnl_dims_t strides = {s->stride, s->stride}, padding = {0, 0};
    dnnl_memory_desc_t any;
    DNN(dnnl_memory_desc_init_by_tag(&p->src, 4, x, type_of(s->type), dnnl_nhwc));
    DNN(dnnl_memory_desc_init_by_tag(&any, 4, w, type_of(s->type), dnnl_format_tag_any));
    DNN(dnnl_memory_desc_init_by_tag(&p->dst, 4, y, dnnl_f32, dnnl_nhwc));
    dnnl_convolution_desc_t desc;
    DNN(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &p->src,
                                           &any, NULL, &p->dst, strides, padding, padding));
    return finish(dnn, p, &desc, 0);
}

/* The worker's primitive for a shape, made when it is asked for the first time. matmul or conv is NULL. */
static dnnl_status_t prepare(struct dnn *dnn, struct worker *w, const struct dnn_matmul *m,
                             const struct dnn_conv *c, struct prepared **out)
{
    int64_t key[KEY] = {c != NULL};
    if (m)
        memcpy(key + 1,
               (int64_t[]){m->m, m->n, m->k, m->lda, m->ldb, m->ldc, m->type, m->transposed, m->accumulate},
               9 * sizeof *key);
    if (c)
        memcpy(key + 1, (int64_t[]){c->h, c->w, c->cin, c->cout, c->ksize, c->stride, c->type},
               7 * sizeof *key);
    uint64_t hash = 0;
    for (int i = 0; i < KEY; i++) hash = (hash ^ (uint64_t)key[i]) * 0x9e3779b97f4a7c15u;
    struct prepared **bucket = &w->bucket[hash >> 58];
    for (struct prepared *p = *bucket; p; p = p->next)
        if (!memcmp(p->key, key, sizeof key)) {
            *out = p;
            return dnnl_success;
        }
    struct prepared *p = calloc(1, sizeof *p);
    if (!p) return dnnl_out_of_memory;
    memcpy(p->key, key, sizeof key);
    dnnl_status_t s = m ? make_matmul(dnn, m, p) : make_conv(dnn, c, p);
    if (s == dnnl_success && p->pad_bytes > w->pad_bytes) {
        free(w->pad);
        w->pad_bytes = (p->pad_bytes + PAGE - 1) / PAGE * PAGE;
        w->pad = aligned_alloc(PAGE, w->pad_bytes);
        if (!w->pad) w->pad_bytes = 0, s = dnnl_out_of_memory;
    }
    if (s != dnnl_success) {
        prepared_free(p);
        return s;
    }
    if (w->kept == KEPT) worker_drop(w);
    w->kept++;
    p->next = *bucket;
    *bucket = *out = p;
    return dnnl_success;
}

static dnnl_status_t execute(struct dnn *dnn, struct worker *w, struct prepared *p, const void *src,
                             const void *weights, float *dst)
{
    struct {
        int argument;
        const dnnl_memory_desc_t *desc;
        void *memory;
    } operand[] = {{DNNL_ARG_SRC, &p->src, (void *)src},
                   {DNNL_ARG_WEIGHTS, &p->weights, (void *)weights},
                   {DNNL_ARG_DST, &p->dst, dst},
                   {DNNL_ARG_SCRATCHPAD, &p->pad, w->pad}};
    int count = p->pad_bytes ? 4 : 3, made = 0;
    dnnl_exec_arg_t args[4];
    dnnl_status_t s = dnnl_success;
    for (; made < count && s == dnnl_success; made += s == dnnl_success) {
        args[made].arg = operand[made].argument;
        s = dnnl_memory_create(&args[made].memory, operand[made].desc, dnn->engine, operand[made].memory);
    }
    if (s == dnnl_success) s = dnnl_primitive_execute(p->primitive, w->stream, count, args);
    while (made) dnnl_memory_destroy(args[--made].memory);
    return s;
}

enum klein_status dnn_matmul(struct dnn *dnn, int thread, const struct dnn_matmul *shape, const void *a,
                             const void *b, float *c)
{
    struct worker *w = &dnn->worker[thread];
    struct prepared *p;
    dnnl_status_t s = prepare(dnn, w, shape, NULL, &p);
    return status_of(s == dnnl_success ? execute(dnn, w, p, a, b, c) : s);
}

enum klein_status dnn_conv(struct dnn *dnn, int thread, const struct dnn_conv *shape, const void *x,
                           const void *packed, float *y)
{
    struct worker *w = &dnn->worker[thread];
    struct prepared *p;
    dnnl_status_t s = prepare(dnn, w, NULL, shape, &p);
    return status_of(s == dnnl_success ? execute(dnn, w, p, x, packed, y) : s);
}

/* prepare() for the caller of a parallel region: as the region's threads will, hence for one thread. */
static dnnl_status_t prepare_outside(struct dnn *dnn, const struct dnn_conv *shape, struct prepared **out)
{
    int threads = omp_get_max_threads();
    dnn_enter();
    dnnl_status_t s = prepare(dnn, &dnn->worker[0], NULL, shape, out);
    omp_set_num_threads(threads);
    return s;
}

enum klein_status dnn_conv_bytes(struct dnn *dnn, const struct dnn_conv *shape, size_t *bytes)
{
    struct prepared *p;
    dnnl_status_t s = prepare_outside(dnn, shape, &p);
    if (s == dnnl_success) *bytes = dnnl_memory_desc_get_size(&p->weights);
    return status_of(s);
}

/* Copies between layouts. */
static dnnl_status_t reorder(struct dnn *dnn, const dnnl_memory_desc_t *from, const void *src,
                             const dnnl_memory_desc_t *to, void *dst)
{
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_memory_t a = NULL, b = NULL;
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&desc, from, dnn->engine, to, dnn->engine, NULL);
    if (s == dnnl_success) s = dnnl_primitive_create(&primitive, desc);
    if (s == dnnl_success) s = dnnl_memory_create(&a, from, dnn->engine, (void *)src);
    if (s == dnnl_success) s = dnnl_memory_create(&b, to, dnn->engine, dst);
    if (s == dnnl_success) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, a}, {DNNL_ARG_TO, b}};
        s = dnnl_primitive_execute(primitive, dnn->worker[0].stream, 2, args);
    }
    if (b) dnnl_memory_destroy(b);
    if (a) dnnl_memory_destroy(a);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (desc) dnnl_primitive_desc_destroy(desc);
    return s;
}

enum klein_status dnn_conv_pack(struct dnn *dnn, const struct dnn_conv *shape, const void *weights,
                                enum dtype from, void *packed)
{
    struct prepared *p;
    dnnl_memory_desc_t plain;
    dnnl_dims_t dims = {shape->cout, shape->cin, shape->ksize, shape->ksize};
    dnnl_status_t s = prepare_outside(dnn, shape, &p);
    if (s == dnnl_success) s = dnnl_memory_desc_init_by_tag(&plain, 4, dims, type_of(from), dnnl_oihw);
    int threads = omp_get_max_threads();
    omp_set_num_threads(dnn->threads);
    if (s == dnnl_success) s = reorder(dnn, &plain, weights, &p->weights, packed);
    omp_set_num_threads(threads);
    return status_of(s);
}
