/* driver_stream.cpp: streams, events, copies, capture. Work waits in its stream until somebody needs it (late), may run at any call
 * (random), or runs at once: what the host did not wait for is not there. */
#include "driver.h"

#include <stdlib.h>
#include <time.h>

struct CUstream_st *soft_streams;
struct CUevent_st *soft_events;

double now_milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static bool stream_exists(const struct CUstream_st *s)
{
    for (const struct CUstream_st *i = soft_streams; i; i = i->next)
        if (i == s) return true;
    return false;
}

static CUresult check_stream(struct CUctx_st *c, struct CUstream_st *s)
{
    if (!s) return refuse(CUDA_ERROR_INVALID_HANDLE, "the default stream: klein always names a stream");
    if (!stream_exists(s)) return refuse(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (s->device != c->device)
        return refuse(CUDA_ERROR_INVALID_HANDLE,
                      "stream of device %d used while the context of device %d is current", s->device,
                      c->device);
    return CUDA_SUCCESS;
}

/* The current context, if stream s belongs to it. */
static CUresult enter_stream(struct CUctx_st **c, struct CUstream_st *s)
{
    CUresult r = current(c);
    return r == CUDA_SUCCESS ? check_stream(*c, s) : r;
}

/* ---- tasks ---------------------------------------------------------------------------------------------------------- */

void task_free(struct task *t)
{
    free(t->args);
    free(t->staged);
    free(t->needs);
    free(t);
}

static CUresult run_copy(const struct task *t)
{
    struct softgpu_counters c = {};
    uint64_t *const bytes[] = {&c.host_to_device, &c.device_to_host, &c.device_to_device, &c.peer};
    memmove(t->to, t->staged ? t->staged : t->from, t->bytes);
    *bytes[t->copy] = t->bytes;
    counters_add(&c);
    return CUDA_SUCCESS;
}

static CUresult run_set(const struct task *t)
{
    if (t->width == 1)
        memset(t->to, (int)t->value, t->count);
    else
        for (size_t i = 0; i < t->count; i++) ((uint32_t *)t->to)[i] = t->value;
    return CUDA_SUCCESS;
}

static CUresult stream_step(struct CUstream_st *s);

/* As far as the record and no further: what the other stream does after it may wait for this one. */
static CUresult run_wait(const struct task *t)
{
    struct CUevent_st *e = t->event;
    CUresult r = CUDA_SUCCESS;
    while (r == CUDA_SUCCESS && e->done < t->ticket && e->stream) r = stream_step(e->stream);
    return r;
}

/* Runs the first of the `available` tasks, and with a kernel the programmatic dependents that follow it. */
CUresult task_run(struct task *const *tasks, int available, int device, int *done)
{
    struct task *t = tasks[0];
    CUresult r = CUDA_SUCCESS;
    *done = 1;
    switch (t->work) {
    case WORK_KERNEL:
        while (*done < available && *done < CHAIN_MAX && tasks[*done]->work == WORK_KERNEL &&
               tasks[*done]->dependent)
            ++*done;
        r = run_kernels(tasks, *done, device);
        break;
    case WORK_COPY:
        r = run_copy(t);
        break;
    case WORK_SET:
        r = run_set(t);
        break;
    case WORK_RECORD:
        t->event->done = t->ticket;
        t->event->time = now_milliseconds();
        break;
    case WORK_WAIT:
        r = run_wait(t);
        break;
    case WORK_GRAPH:
        r = graph_run(t->exec);
        break;
    }
    if (r != CUDA_SUCCESS) soft_contexts[device].sticky = r;
    return r;
}

/* What is left after a fault never runs. */
static CUresult stream_discard(struct CUstream_st *s)
{
    while (s->first) {
        struct task *t = s->first;
        s->first = t->next;
        task_free(t);
    }
    s->last = &s->first;
    return soft_contexts[s->device].sticky;
}

static CUresult stream_step(struct CUstream_st *s)
{
    struct CUctx_st *c = &soft_contexts[s->device];
    while (c->busy && !pthread_equal(c->busy_by, pthread_self())) wait_for_others();
    if (c->sticky) return stream_discard(s);
    if (!s->first) return CUDA_SUCCESS; /* that other thread did it */
    struct task *tasks[CHAIN_MAX];
    int n = 0, done = 0;
    for (struct task *t = s->first; t && n < CHAIN_MAX; t = t->next) tasks[n++] = t;
    c->busy++;
    c->busy_by = pthread_self();
    CUresult r = task_run(tasks, n, s->device, &done);
    c->busy--;
    for (int i = 0; i < done; i++) {
        struct task *t = s->first;
        s->first = t->next;
        if (!s->first) s->last = &s->first;
        task_free(t);
    }
    done_something();
    return r;
}

CUresult stream_drain(struct CUstream_st *s)
{
    while (s->first) {
        CUresult r = stream_step(s);
        if (r != CUDA_SUCCESS) return r;
    }
    return soft_contexts[s->device].sticky;
}

CUresult streams_drain(int device)
{
    for (struct CUstream_st *s = soft_streams; s;) {
        bool has_work = s->device == device && s->first;
        if (has_work) stream_drain(s);
        s = has_work ? soft_streams : s->next; /* meanwhile there may be other streams */
    }
    return soft_contexts[device].sticky;
}

static uint64_t host_random(void)
{
    static uint64_t x;
    if (!x) x = soft_config.seed * 0x9e3779b97f4a7c15ull | 1;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}

static bool add_need(int **list, int *count, int node)
{
    for (int i = 0; i < *count; i++)
        if ((*list)[i] == node) return true;
    int *larger = (int *)realloc(*list, sizeof(int) * (size_t)(*count + 1));
    if (!larger) return false;
    *list = larger;
    larger[(*count)++] = node;
    return true;
}

static CUresult capture_task(struct CUstream_st *s, struct task *t)
{
    struct CUgraph_st *g = s->capturing;
    if (g->count == g->size) {
        int size = g->size ? 2 * g->size : 64;
        struct task *nodes = (struct task *)realloc(g->nodes, sizeof *nodes * (size_t)size);
        if (!nodes) return CUDA_ERROR_OUT_OF_MEMORY;
        g->nodes = nodes;
        g->size = size;
    }
    t->needs = s->tips; /* the node takes them over */
    t->need_count = s->tip_count;
    s->tips = NULL;
    s->tip_count = 0;
    g->nodes[g->count] = *t;
    free(t);
    return add_need(&s->tips, &s->tip_count, g->count++) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult task_push(struct CUstream_st *s, const struct task *model)
{
    struct task *t = (struct task *)malloc(sizeof *t);
    if (!t) return CUDA_ERROR_OUT_OF_MEMORY;
    *t = *model;
    t->next = NULL;
    if (s->capturing)
        return s->capture_broken ? (task_free(t), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) : capture_task(s, t);
    *s->last = t;
    s->last = &t->next;
    if (soft_config.async == SOFTGPU_NOW) return stream_drain(s);
    if (soft_config.async == SOFTGPU_RANDOM)
        for (struct CUstream_st *i = soft_streams; i;
             i = i->next) /* of another device: it may wait for this thread */
            if (i->device == s->device && i->first && host_random() % 4 == 0)
                stream_step(i); /* a fault is sticky: the next call reports it */
    return CUDA_SUCCESS;
}

/* ---- streams -------------------------------------------------------------------------------------------------------- */

ENTRY cuStreamCreate(CUstream *out, unsigned flags)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    struct CUstream_st *s = (struct CUstream_st *)calloc(1, sizeof *s);
    if (!s) return CUDA_ERROR_OUT_OF_MEMORY;
    s->device = c->device;
    s->last = &s->first;
    s->next = soft_streams;
    soft_streams = s;
    *out = s;
    return CUDA_SUCCESS;
}

ENTRY cuStreamDestroy_v2(CUstream s)
{
    guard g;
    if (!stream_exists(s)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult r = stream_drain(s);
    stream_discard(s);
    struct CUstream_st **p = &soft_streams;
    while (*p != s) p = &(*p)->next;
    *p = s->next;
    free(s->tips);
    free(s);
    return r;
}

ENTRY cuStreamQuery(CUstream s)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = enter_stream(&c, s);
    if (r == CUDA_SUCCESS && s->first) {
        r = stream_step(s); /* so that asking again and again comes to an end */
        if (r == CUDA_SUCCESS && s->first) r = CUDA_ERROR_NOT_READY;
    }
    return r;
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

ENTRY cuEventCreate(CUevent *out, unsigned flags)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    struct CUevent_st *e = (struct CUevent_st *)calloc(1, sizeof *e);
    if (!e) return CUDA_ERROR_OUT_OF_MEMORY;
    e->device = c->device;
    e->flags = flags;
    e->next = soft_events;
    soft_events = e;
    *out = e;
    return CUDA_SUCCESS;
}

ENTRY cuEventDestroy_v2(CUevent e)
{
    guard g;
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    for (int d = 0; d < soft_config.devices; d++) streams_drain(d); /* nobody may still name it */
    struct CUevent_st **p = &soft_events;
    while (*p && *p != e) p = &(*p)->next;
    if (!*p) return CUDA_ERROR_INVALID_HANDLE;
    *p = e->next;
    free(e->tips);
    free(e);
    return CUDA_SUCCESS;
}

ENTRY cuEventRecord(CUevent e, CUstream s)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = enter_stream(&c, s);
    if (r != CUDA_SUCCESS) return r;
    if (e->device != s->device)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "event of device %d recorded in a stream of device %d",
                      e->device, s->device);
    if (s->capturing) {
        e->captured = s->capturing;
        e->capture_ended = false;
        e->tip_count = 0;
        for (int i = 0; i < s->tip_count; i++)
            if (!add_need(&e->tips, &e->tip_count, s->tips[i])) return CUDA_ERROR_OUT_OF_MEMORY;
        return CUDA_SUCCESS;
    }
    e->captured = NULL;
    e->capture_ended = false;
    e->stream = s;
    struct task t = {};
    t.work = WORK_RECORD;
    t.event = e;
    t.ticket = ++e->recorded;
    return task_push(s, &t);
}

ENTRY cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = enter_stream(&c, s);
    if (r != CUDA_SUCCESS) return r;
    if (e->capture_ended)
        return refuse(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture that has ended");
    if (e->captured && (!s->capturing ||
                        s->capturing == e->captured)) { /* the stream joins the capture, or waits inside it */
        s->capturing = e->captured;
        for (int i = 0; i < e->tip_count; i++)
            if (!add_need(&s->tips, &s->tip_count, e->tips[i])) return CUDA_ERROR_OUT_OF_MEMORY;
        return CUDA_SUCCESS;
    }
    if (s->capturing) {
        s->capture_broken = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                      "a capturing stream waits for an event recorded outside of the capture");
    }
    if (!e->recorded) return CUDA_SUCCESS;
    struct task t = {};
    t.work = WORK_WAIT;
    t.event = e;
    t.ticket = e->recorded;
    return task_push(s, &t);
}

ENTRY cuEventSynchronize(CUevent e)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r == CUDA_SUCCESS) r = forbid_wait_during_capture("cuEventSynchronize");
    while (r == CUDA_SUCCESS && e->done < e->recorded) r = stream_step(e->stream);
    return r;
}

ENTRY cuEventQuery(CUevent e)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (e->captured || e->capture_ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (e->done < e->recorded) r = stream_step(e->stream);
    return r == CUDA_SUCCESS && e->done < e->recorded ? CUDA_ERROR_NOT_READY : r;
}

ENTRY cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    guard g;
    if ((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING || !from->recorded || !to->recorded)
        return CUDA_ERROR_INVALID_HANDLE;
    if (from->done < from->recorded || to->done < to->recorded) return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)(to->time - from->time);
    return CUDA_SUCCESS;
}

/* ---- copies --------------------------------------------------------------------------------------------------------- */

/* `bytes` at p are device memory (of a device that `device` can reach), or the call is refused. */
static CUresult check_range(const char *what, const void *p, size_t bytes, int device)
{
    const struct allocation *a = memory_find(p);
    char where[256];
    memory_describe(p, where, sizeof where);
    if (!a || (const char *)p + bytes > a->base + a->size)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s of %zu bytes: out of bounds: %s", what, bytes, where);
    if (!memory_accessible(a, device))
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: memory of device %d from device %d without peer access",
                      what, a->device, device);
    return CUDA_SUCCESS;
}

static CUresult push_copy(enum copy kind, void *to, const void *from, size_t bytes, CUstream s)
{
    struct CUctx_st *c;
    CUresult r = enter_stream(&c, s);
    if (r == CUDA_SUCCESS && bytes && kind != DEVICE_TO_HOST && kind != PEER)
        r = check_range("copy to the device", to, bytes, c->device);
    if (r == CUDA_SUCCESS && bytes && kind != HOST_TO_DEVICE && kind != PEER)
        r = check_range("copy from the device", from, bytes, c->device);
    if (r != CUDA_SUCCESS) return r;
    struct task t = {};
    t.work = WORK_COPY;
    t.copy = kind;
    t.to = to;
    t.from = from;
    t.bytes = bytes;
    const struct allocation *host = kind == HOST_TO_DEVICE   ? memory_find(from)
                                    : kind == DEVICE_TO_HOST ? memory_find(to)
                                                             : NULL;
    bool pageable = (kind == HOST_TO_DEVICE || kind == DEVICE_TO_HOST) && !host;
    if (pageable && kind == HOST_TO_DEVICE &&
        !s->capturing) { /* the driver takes the bytes before it returns */
        t.staged = malloc(bytes ? bytes : 1);
        if (!t.staged) return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(t.staged, from, bytes);
    }
    r = task_push(s, &t);
    if (r == CUDA_SUCCESS && pageable && kind == DEVICE_TO_HOST && !s->capturing)
        r = stream_drain(s); /* ... or has them there */
    return r;
}

ENTRY cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream s)
{
    guard g;
    return push_copy(HOST_TO_DEVICE, (void *)(uintptr_t)to, from, bytes, s);
}

ENTRY cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream s)
{
    guard g;
    return push_copy(DEVICE_TO_HOST, to, (const void *)(uintptr_t)from, bytes, s);
}

ENTRY cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s)
{
    guard g;
    return push_copy(DEVICE_TO_DEVICE, (void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, s);
}

ENTRY cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                        size_t bytes, CUstream s)
{
    guard g;
    if (!to_context || !from_context) return CUDA_ERROR_INVALID_CONTEXT;
    CUresult r = check_range("peer copy to", (void *)(uintptr_t)to, bytes, to_context->device);
    if (r == CUDA_SUCCESS)
        r = check_range("peer copy from", (void *)(uintptr_t)from, bytes, from_context->device);
    return r == CUDA_SUCCESS ? push_copy(PEER, (void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, s)
                             : r;
}

static CUresult push_set(CUdeviceptr to, unsigned value, unsigned width, size_t count, CUstream s)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = enter_stream(&c, s);
    if (r == CUDA_SUCCESS && to % width) r = CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS && count)
        r = check_range("memset", (void *)(uintptr_t)to, count * width, c->device);
    if (r != CUDA_SUCCESS) return r;
    struct task t = {};
    t.work = WORK_SET;
    t.to = (void *)(uintptr_t)to;
    t.value = value;
    t.width = width;
    t.count = count;
    return task_push(s, &t);
}

ENTRY cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream s)
{
    return push_set(to, value, 1, count, s);
}

ENTRY cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream s)
{
    return push_set(to, value, 4, count, s);
}
