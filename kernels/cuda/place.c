/* Weights on their way to a GPU: read from the mapped file into pinned buffers, copied while the next part is read, converted or
 * rearranged by kernels where that is needed. Two lanes take turns, each with a stream, a pinned buffer and half of the scratch memory: while
 * the host reads into one's, what the other was given is copied and converted. */
#include "cuda.h"

#include "../conv/conv_launch.h"
#include "../gemm/quantise.h"
#include "../pointwise/pointwise.h"
#include "../../base/arena.h"
#include "../../base/clock.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 2, READERS = 4, SLICE = 1 << 20 };
#define PART         ((size_t)16 << 20)
#define LANE_SCRATCH (CUDA_SCRATCH / LANES) /* a part, and the same in BF16 */

_Static_assert(LANE_SCRATCH >= 2 * PART, "place_quantised");

struct lane {
    CUstream stream;
    void *pinned, *scratch; /* PART and LANE_SCRATCH bytes */
    CUevent done;           /* all that it has been given */
};

/* What a device holds for a model. */
struct placed {
    struct lane lane[LANES];
    int next;      /* lane */
    CUevent begin; /* of the weight being placed */
    struct placed_weight {
        void *memory;
        size_t bytes;
        int group;
    } * weight;
    int count, capacity;
};

static enum klein_status open_lanes(struct cuda_device *cuda, struct klein_error *err)
{
    struct gpu *g = cuda->gpu;
    if (cuda->placed) return KLEIN_OK;
    struct placed *p = cuda->placed = calloc(1, sizeof *p);
    if (!p) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a GPU's weights");
    TRY(gpu_event_open(g, 0, &p->begin, err));
    for (int i = 0; i < LANES; i++) {
        struct lane *lane = &p->lane[i];
        lane->scratch = (char *)cuda->scratch + (size_t)i * LANE_SCRATCH;
        TRY(gpu_alloc_pinned(g, PART, &lane->pinned, err));
        TRY(gpu_stream_open(g, &lane->stream, err));
        TRY(gpu_event_open(g, 0, &lane->done, err));
    }
    return KLEIN_OK;
}

void cuda_unplace(struct cuda_device *cuda)
{
    struct placed *p = cuda->placed;
    struct klein_error none = {0};
    if (!p) return;
    for (int i = 0; i < p->count; i++) gpu_free(cuda->gpu, p->weight[i].memory);
    for (int i = 0; i < LANES; i++) {
        if (p->lane[i].done) gpu_event_sync(cuda->gpu, p->lane[i].done, &none);
        gpu_stream_close(cuda->gpu, p->lane[i].stream);
        gpu_free_pinned(cuda->gpu, p->lane[i].pinned);
        if (p->lane[i].done) gpu_event_close(cuda->gpu, p->lane[i].done);
    }
    if (p->begin) gpu_event_close(cuda->gpu, p->begin);
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

/* ---- lanes ------------------------------------------------------------------------------------------------ */

/* What the device is given from now on begins after the lanes. */
static enum klein_status wait_for_lanes(struct cuda_device *cuda, struct klein_error *err)
{
    for (int i = 0; i < LANES; i++) TRY(gpu_event_wait(cuda->gpu, cuda->placed->lane[i].done, err));
    return KLEIN_OK;
}

/* One thread copies out of the page cache at a sixth of what PCIe 5 takes. */
static void read_part(void *to, const void *from, size_t bytes)
{
#pragma omp parallel for num_threads(READERS) schedule(static) if (bytes > SLICE)
    for (size_t at = 0; at < bytes; at += SLICE)
        memcpy((char *)to + at, (const char *)from + at, bytes - at < SLICE ? bytes - at : SLICE);
}

/* At most PART bytes, through the lane whose stream is the device's. */
static enum klein_status upload_part(struct cuda_device *cuda, struct lane *lane, void *to, const void *from,
                                     size_t bytes, struct klein_error *err)
{
    TRY(gpu_event_sync(cuda->gpu, lane->done, err)); /* the buffer is free */
    const double begin = clock_seconds();
    read_part(lane->pinned, from, bytes);
    cuda->read_seconds += clock_seconds() - begin;
    return gpu_upload(cuda->gpu, to, lane->pinned, bytes, err);
}

/* What a weight is made of, part by part: rows [at, at + n) of `from`, which a lane brings. */
struct placement {
    struct tensor to, from;
    int ksize; /* 0: a matrix or vector */
};
typedef enum klein_status place_rows(struct cuda_device *cuda, struct lane *lane, const struct placement *p,
                                     int at, int n, struct klein_error *err);

/* All rows, as many at a time as a part holds, on the lanes in turns. */
static enum klein_status in_turns(struct cuda_device *cuda, const struct placement *w, place_rows *place,
                                  struct klein_error *err)
{
    struct placed *p = cuda->placed;
    const size_t row = (size_t)w->from.cols * dtype_size(w->from.dtype);
    if (row > PART)
        return fail(err, KLEIN_E_UNSUPPORTED, "a weight with rows of %zu MiB is too wide", row >> 20);
    const int most = (int)(PART / row);
    for (int at = 0, n; at < w->from.rows; at += n) {
        struct lane *lane = &p->lane[p->next];
        p->next = (p->next + 1) % LANES;
        n = w->from.rows - at < most ? w->from.rows - at : most;
        const CUstream before = gpu_use_stream(cuda->gpu, lane->stream);
        /* after what the device was given before, which may use the scratch memory */
        enum klein_status status = gpu_event_wait(cuda->gpu, p->begin, err);
        if (status == KLEIN_OK) status = place(cuda, lane, w, at, n, err);
        if (status == KLEIN_OK) status = gpu_event_record(cuda->gpu, lane->done, err);
        gpu_use_stream(cuda->gpu, before);
        TRY(status);
    }
    return KLEIN_OK;
}

/* ---- what becomes of rows ----------------------------------------------------------------------------------- */

/* Into the lane's scratch memory as they are. */
static enum klein_status bring(struct cuda_device *cuda, struct lane *lane, struct tensor from, int at, int n,
                               struct tensor *out, struct klein_error *err)
{
    *out = tensor_of(lane->scratch, from.dtype, n, from.cols);
    return upload_part(cuda, lane, out->ptr, tensor_at(from, at, 0),
                       (size_t)n * (size_t)from.cols * dtype_size(from.dtype), err);
}

static enum klein_status place_as_is(struct cuda_device *cuda, struct lane *lane, const struct placement *p,
                                     int at, int n, struct klein_error *err)
{
    return upload_part(cuda, lane, tensor_at(p->to, at, 0), tensor_at(p->from, at, 0),
                       (size_t)n * (size_t)p->from.cols * dtype_size(p->from.dtype), err);
}

static enum klein_status place_converted(struct cuda_device *cuda, struct lane *lane,
                                         const struct placement *p, int at, int n, struct klein_error *err)
{
    struct tensor raw;
    TRY(bring(cuda, lane, p->from, at, n, &raw, err));
    return pointwise_copy(cuda->gpu, &(struct copy_args){.y = tensor_rows(p->to, at, n), .x = raw}, err);
}

static enum klein_status place_packed(struct cuda_device *cuda, struct lane *lane, const struct placement *p,
                                      int at, int n, struct klein_error *err)
{
    struct tensor raw;
    TRY(bring(cuda, lane, p->from, at, n, &raw, err));
    return conv_pack(cuda->gpu, tensor_rows(p->to, at, n), raw, p->ksize, err);
}

/* e4m3 of the BF16 numbers. */
static enum klein_status place_quantised(struct cuda_device *cuda, struct lane *lane,
                                         const struct placement *p, int at, int n, struct klein_error *err)
{
    struct tensor raw;
    TRY(bring(cuda, lane, p->from, at, n, &raw, err));
    if (raw.dtype != DT_BF16) { /* F32 or F16 */
        const struct tensor exact = tensor_of((char *)lane->scratch + PART, DT_BF16, n, raw.cols);
        TRY(pointwise_copy(cuda->gpu, &(struct copy_args){.y = exact, .x = raw}, err));
        raw = exact;
    }
    return quantise_rows(cuda->gpu, tensor_rows(p->to, at, n), tensor_of(p->to.scale + at, DT_F32, 1, n), raw,
                         err);
}

static size_t rounded_up(size_t bytes)
{
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
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

const size_t gpu_scratch_bytes = CUDA_SCRATCH, gpu_staging_bytes = LANES * PART;

/* ---- a weight ----------------------------------------------------------------------------------------------- */

/* What is in e4m3 already stays as it is, all else is quantised. */
static enum klein_status place_e4m3(struct cuda_device *cuda, enum dtype act, struct placement *p,
                                    struct klein_error *err)
{
    const struct gpu *g = cuda->gpu;
    const struct tensor from = p->from;
    if (!cuda->base.e4m3)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "FP8 needs sm_89 (Ada) or later; %s is sm_%d: take BF16 weights and --precision bf16",
                    g->name, g->arch);
    if (act != DT_BF16)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s multiplies FP8 by FP8 only: --dtype bf16", g->name);
    p->to.dtype = DT_F8E4M3;
    p->to.scale = (float *)((char *)p->to.ptr + rounded_up((size_t)from.rows * (size_t)from.cols));
    if (from.dtype != DT_F8E4M3) return in_turns(cuda, p, place_quantised, err);
    const struct placement scales = {.to = tensor_of(p->to.scale, DT_F32, from.rows, 1),
                                     .from = tensor_of(from.scale, DT_F32, from.rows, 1)};
    TRY(in_turns(cuda, p, place_as_is, err));
    return in_turns(cuda, &scales, place_as_is, err);
}

enum klein_status cuda_place(struct device *dev, enum weight_kind kind, enum dtype act, struct tensor *t,
                             struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    struct placement p = {.from = *t, .to = *t};
    CHECK(t->ld == t->cols);
    gpu_op(cuda->gpu, "loading of weights", "");
    TRY(open_lanes(cuda, err));
    if (kind >= WEIGHT_CONV_1X1) {
        p.ksize = kind == WEIGHT_CONV_3X3 ? 3 : 1;
        p.to = conv_packed(t->rows, t->cols / (p.ksize * p.ksize), p.ksize, act);
    }
    p.to.dtype = placed_dtype(kind, act, t->dtype);
    TRY(take(cuda, gpu_weight_bytes(kind, act, *t), &p.to.ptr, err));
    TRY(gpu_event_record(cuda->gpu, cuda->placed->begin, err));
    TRY(p.ksize                      ? in_turns(cuda, &p, place_packed, err)
        : p.to.dtype == DT_F8E4M3    ? place_e4m3(cuda, act, &p, err)
        : p.to.dtype == p.from.dtype ? in_turns(cuda, &p, place_as_is, err)
                                     : in_turns(cuda, &p, place_converted, err));
    TRY(wait_for_lanes(cuda, err));
    *t = p.to;
    return KLEIN_OK;
}
