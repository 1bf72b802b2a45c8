/* Weights on their way to a GPU: read from the mapped file into pinned buffers, copied while the next part is read, converted or
 * rearranged by kernels where that is needed. */
#include "cuda.h"

#include "../conv/conv_launch.h"
#include "../gemm/quantise.h"
#include "../pointwise/pointwise.h"
#include "../../base/arena.h"
#include "../../base/clock.h"

#include <stdlib.h>
#include <string.h>

enum { BUFFERS = 2 };
#define PART ((size_t)16 << 20)

/* What a device holds for a model. */
struct placed {
    void *pinned[BUFFERS];
    CUevent free[BUFFERS]; /* the copy out of the buffer is done */
    int next;              /* buffer */
    struct placed_weight {
        void *memory;
        size_t bytes;
        int group;
    } * weight;
    int count, capacity;
};

static enum klein_status open_buffers(struct cuda_device *cuda, struct klein_error *err)
{
    if (cuda->placed) return KLEIN_OK;
    struct placed *p = cuda->placed = calloc(1, sizeof *p);
    if (!p) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a GPU's weights");
    for (int i = 0; i < BUFFERS; i++) {
        TRY(gpu_alloc_pinned(cuda->gpu, PART, &p->pinned[i], err));
        TRY(gpu_event_open(cuda->gpu, 0, &p->free[i], err));
        TRY(gpu_event_record(cuda->gpu, p->free[i], err));
    }
    return KLEIN_OK;
}

void cuda_unplace(struct cuda_device *cuda)
{
    struct placed *p = cuda->placed;
    if (!p) return;
    for (int i = 0; i < p->count; i++) gpu_free(cuda->gpu, p->weight[i].memory);
    for (int i = 0; i < BUFFERS; i++) {
        gpu_free_pinned(cuda->gpu, p->pinned[i]);
        if (p->free[i]) gpu_event_close(cuda->gpu, p->free[i]);
    }
    free(p->weight);
    free(p);
    cuda->placed = NULL;
}

void cuda_unplace_group(struct device *dev, int group)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    struct placed *p = cuda->placed;
    int kept = 0;
    for (int i = 0; p && i < p->count; i++)
        if (p->weight[i].group == group)
            gpu_free(cuda->gpu, p->weight[i].memory);
        else
            p->weight[kept++] = p->weight[i];
    if (p) p->count = kept;
}

static enum klein_status take(struct cuda_device *cuda, size_t bytes, void **out, struct klein_error *err)
{
    struct placed *p = cuda->placed;
    if (p->count == p->capacity) {
        int capacity = p->capacity ? 2 * p->capacity : 256;
        struct placed_weight *more = realloc(p->weight, (size_t)capacity * sizeof *more);
        if (!more) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the list of a GPU's weights");
        p->weight = more;
        p->capacity = capacity;
    }
    TRY(gpu_alloc(cuda->gpu, bytes, out, err));
    p->weight[p->count++] = (struct placed_weight){*out, bytes, cuda->base.group};
    return KLEIN_OK;
}

size_t cuda_placed_bytes(const struct cuda_device *cuda)
{
    size_t sum = 0;
    for (int i = 0; cuda->placed && i < cuda->placed->count; i++) sum += cuda->placed->weight[i].bytes;
    return sum;
}

static enum klein_status upload(struct cuda_device *cuda, void *to, const void *from, size_t bytes,
                                struct klein_error *err)
{
    struct placed *p = cuda->placed;
    for (size_t at = 0; at < bytes; at += PART) {
        size_t n = bytes - at < PART ? bytes - at : PART;
        int i = p->next;
        p->next = (i + 1) % BUFFERS;
        TRY(gpu_event_sync(cuda->gpu, p->free[i], err));
        const double begin = clock_seconds();
        memcpy(p->pinned[i], (const char *)from + at, n);
        cuda->read_seconds += clock_seconds() - begin;
        TRY(gpu_upload(cuda->gpu, (char *)to + at, p->pinned[i], n, err));
        TRY(gpu_event_record(cuda->gpu, p->free[i], err));
    }
    return KLEIN_OK;
}

/* Rows of `from` converted into `to`, as many at a time as the scratch memory holds. */
static enum klein_status convert(struct cuda_device *cuda, struct tensor to, struct tensor from,
                                 struct klein_error *err)
{
    size_t row = (size_t)from.cols * dtype_size(from.dtype);
    if (row > CUDA_SCRATCH)
        return fail(err, KLEIN_E_UNSUPPORTED, "a weight with rows of %zu bytes is too wide", row);
    int band = (int)(CUDA_SCRATCH / row) < from.rows ? (int)(CUDA_SCRATCH / row) : from.rows;
    for (int at = 0; at < from.rows; at += band) {
        int n = from.rows - at < band ? from.rows - at : band;
        struct tensor raw = tensor_of(cuda->scratch, from.dtype, n, from.cols);
        TRY(upload(cuda, raw.ptr, tensor_at(from, at, 0), row * (size_t)n, err));
        TRY(pointwise_copy(cuda->gpu, &(struct copy_args){.y = tensor_rows(to, at, n), .x = raw}, err));
    }
    return KLEIN_OK;
}

static size_t rounded_up(size_t bytes)
{
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

/* Rows [at, at + n) of the matrix `from` as BF16, in scratch memory. */
static enum klein_status rows_in_bf16(struct cuda_device *cuda, struct tensor from, int at, int n,
                                      struct tensor *out, struct klein_error *err)
{
    const struct tensor raw = tensor_of(cuda->scratch, from.dtype, n, from.cols);
    const size_t bytes = (size_t)n * (size_t)from.cols * dtype_size(from.dtype);
    TRY(upload(cuda, raw.ptr, tensor_at(from, at, 0), bytes, err));
    *out = raw;
    if (raw.dtype == DT_BF16) return KLEIN_OK;
    *out = tensor_of((char *)cuda->scratch + rounded_up(bytes), DT_BF16, n, from.cols);
    return pointwise_copy(cuda->gpu, &(struct copy_args){.y = *out, .x = raw}, err);
}

/* What is in e4m3 already stays as it is, all else is quantised. */
static enum klein_status fill_quantised(struct cuda_device *cuda, struct tensor to, struct tensor from,
                                        struct klein_error *err)
{
    if (from.dtype == to.dtype) {
        TRY(upload(cuda, to.ptr, from.ptr, (size_t)to.rows * (size_t)to.cols, err));
        return upload(cuda, to.scale, from.scale, (size_t)to.rows * sizeof *to.scale, err);
    }
    const size_t row = (size_t)from.cols * (dtype_size(from.dtype) + sizeof(bf16)),
                 most = (CUDA_SCRATCH - ARENA_ALIGN) / row;
    if (!most)
        return fail(err, KLEIN_E_UNSUPPORTED, "a weight with rows of %d numbers is too wide", from.cols);
    for (int at = 0, n; at < to.rows; at += n) {
        struct tensor band;
        n = (size_t)(to.rows - at) < most ? to.rows - at : (int)most;
        TRY(rows_in_bf16(cuda, from, at, n, &band, err));
        TRY(quantise_rows(cuda->gpu, tensor_rows(to, at, n), tensor_of(to.scale + at, DT_F32, 1, n), band,
                          err));
    }
    return KLEIN_OK;
}

static enum dtype placed_dtype(enum weight_kind kind, enum dtype act, enum dtype from)
{
    return kind == WEIGHT_VECTOR                             ? DT_F32
           : kind == WEIGHT_MATRIX_E4M3 || from == DT_F8E4M3 ? DT_F8E4M3
           : kind >= WEIGHT_CONV_1X1 || act == DT_BF16       ? act
                                                             : from;
}

size_t gpu_weight_bytes(enum weight_kind kind, enum dtype act, struct tensor t)
{
    const enum dtype type = placed_dtype(kind, act, t.dtype);
    const int ksize = kind == WEIGHT_CONV_3X3 ? 3 : 1;
    if (kind >= WEIGHT_CONV_1X1) t = conv_packed(t.rows, t.cols / (ksize * ksize), ksize, act);
    const size_t elements = (size_t)t.rows * (size_t)(kind >= WEIGHT_CONV_1X1 ? t.ld : t.cols);
    return type == DT_F8E4M3 ? rounded_up(elements) + (size_t)t.rows * sizeof(float)
                             : elements * dtype_size(type);
}

const size_t gpu_scratch_bytes = CUDA_SCRATCH, gpu_staging_bytes = BUFFERS * PART;

static enum klein_status place_quantised(struct cuda_device *cuda, enum dtype act, struct tensor *t,
                                         struct klein_error *err)
{
    const struct gpu *g = cuda->gpu;
    if (!cuda->base.e4m3)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "FP8 needs sm_89 (Ada) or later; %s is sm_%d: take BF16 weights and --precision bf16",
                    g->name, g->arch);
    if (act != DT_BF16)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s multiplies FP8 by FP8 only: --dtype bf16", g->name);
    struct tensor to = tensor_of(NULL, DT_F8E4M3, t->rows, t->cols);
    TRY(take(cuda, gpu_weight_bytes(WEIGHT_MATRIX_E4M3, act, *t), &to.ptr, err));
    to.scale = (float *)((char *)to.ptr + rounded_up((size_t)t->rows * (size_t)t->cols));
    TRY(fill_quantised(cuda, to, *t, err));
    *t = to;
    return KLEIN_OK;
}

static enum klein_status place_conv(struct cuda_device *cuda, int ksize, enum dtype act, struct tensor *t,
                                    struct klein_error *err)
{
    size_t bytes = (size_t)t->rows * (size_t)t->cols * dtype_size(t->dtype);
    if (bytes > CUDA_SCRATCH)
        return fail(err, KLEIN_E_UNSUPPORTED, "a convolution of %zu MiB is too large", bytes >> 20);
    struct tensor packed = conv_packed(t->rows, t->cols / (ksize * ksize), ksize, act), raw = *t;
    raw.ptr = cuda->scratch;
    TRY(upload(cuda, raw.ptr, t->ptr, bytes, err));
    TRY(take(cuda, gpu_weight_bytes(ksize == 3 ? WEIGHT_CONV_3X3 : WEIGHT_CONV_1X1, act, *t), &packed.ptr,
             err));
    TRY(conv_pack(cuda->gpu, packed, raw, ksize, err));
    *t = packed;
    return KLEIN_OK;
}

enum klein_status cuda_place(struct device *dev, enum weight_kind kind, enum dtype act, struct tensor *t,
                             struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    CHECK(t->ld == t->cols);
    gpu_op(cuda->gpu, "loading of weights", "");
    TRY(open_buffers(cuda, err));
    if (kind >= WEIGHT_CONV_1X1) return place_conv(cuda, kind == WEIGHT_CONV_3X3 ? 3 : 1, act, t, err);
    if (kind == WEIGHT_MATRIX_E4M3 || t->dtype == DT_F8E4M3) return place_quantised(cuda, act, t, err);
    struct tensor from = *t, to = from;
    to.dtype = placed_dtype(kind, act, from.dtype);
    size_t bytes = gpu_weight_bytes(kind, act, from);
    TRY(take(cuda, bytes, &to.ptr, err));
    if (to.dtype == from.dtype)
        TRY(upload(cuda, to.ptr, from.ptr, bytes, err));
    else
        TRY(convert(cuda, to, from, err));
    *t = to;
    return KLEIN_OK;
}
