/* driver_graph.cpp: capture of streams into graphs, and their replay in any order that the dependencies allow. */
#include "driver.h"

#include <stdlib.h>

static thread_local struct CUstream_st *origin; /* the stream in which this thread's capture began */
static int kept[DEVICES_MAX];

int softgpu_graphs(int device)
{
    guard g;
    return kept[device];
}

static void break_capture(void)
{
    for (struct CUstream_st *s = soft_streams; s; s = s->next)
        if (s->capturing == origin->capturing) s->capture_broken = true;
}

static CUresult forbid(const char *call)
{
    if (!origin) return CUDA_SUCCESS;
    break_capture();
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while this thread captures a stream", call);
}

CUresult forbid_during_capture(const char *call)
{
    count_stop();
    return forbid(call);
}

CUresult forbid_wait_during_capture(const char *call)
{
    count_wait();
    return forbid(call);
}

static void graph_clear(struct CUgraph_st *g)
{
    for (int i = 0; i < g->count; i++) {
        free(g->nodes[i].args);
        free(g->nodes[i].staged);
        free(g->nodes[i].needs);
    }
    free(g->nodes);
    g->nodes = NULL;
    g->count = g->size = 0;
}

ENTRY cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode)
{
    guard g;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (!s || s->capturing || origin)
        return refuse(CUDA_ERROR_ILLEGAL_STATE, "this stream or this thread captures already");
    if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "the soft GPU captures in thread-local mode only");
    s->capturing = (struct CUgraph_st *)calloc(1, sizeof *s->capturing);
    if (!s->capturing) return CUDA_ERROR_OUT_OF_MEMORY;
    s->capture_origin = true;
    s->capture_broken = false;
    s->tip_count = 0;
    origin = s;
    return CUDA_SUCCESS;
}

/* Marks the nodes that node i depends on, and i itself. */
static void mark(const struct CUgraph_st *g, int i, bool *seen)
{
    if (seen[i]) return;
    seen[i] = true;
    for (int n = 0; n < g->nodes[i].need_count; n++) mark(g, g->nodes[i].needs[n], seen);
}

ENTRY cuStreamEndCapture(CUstream s, CUgraph *out)
{
    guard guarded;
    *out = NULL;
    if (!s || !s->capturing) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream does not capture");
    if (!s->capture_origin || origin != s)
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began in another stream or thread");
    struct CUgraph_st *g = s->capturing;
    CUresult r = s->capture_broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    bool *seen = (bool *)calloc((size_t)g->count + 1, 1);
    if (!seen) r = CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; seen && i < s->tip_count; i++) mark(g, s->tips[i], seen);
    for (int i = 0; seen && i < g->count && r == CUDA_SUCCESS; i++)
        if (!seen[i])
            r = refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                       "work forked to another stream was not joined to the capture");
    free(seen);
    for (struct CUevent_st *e = soft_events; e; e = e->next)
        if (e->captured == g) {
            e->captured = NULL;
            e->capture_ended = true;
        }
    for (struct CUstream_st *i = soft_streams; i; i = i->next)
        if (i->capturing == g) {
            i->capturing = NULL;
            i->capture_origin = i->capture_broken = false;
            i->tip_count = 0;
        }
    origin = NULL;
    if (r == CUDA_SUCCESS) {
        *out = g;
    } else {
        graph_clear(g);
        free(g);
    }
    return r;
}

ENTRY cuGraphGetNodes(CUgraph g, CUgraphNode *nodes, size_t *count)
{
    guard guarded;
    if (!g || nodes) return refuse(CUDA_ERROR_NOT_SUPPORTED, "the soft GPU only counts nodes");
    *count = (size_t)g->count;
    return CUDA_SUCCESS;
}

ENTRY cuGraphDestroy(CUgraph g)
{
    guard guarded;
    if (!g) return CUDA_ERROR_INVALID_VALUE;
    graph_clear(g);
    free(g);
    return CUDA_SUCCESS;
}

static bool copy_node(struct task *to, const struct task *from)
{
    *to = *from;
    to->next = NULL;
    to->args = to->staged = NULL;
    to->needs = NULL;
    if (from->args) {
        size_t size = from->function->kernel->args_size, align = from->function->kernel->args_align;
        if (align < 64) align = 64;
        to->args = aligned_alloc(align, (size + align - 1) / align * align);
        if (!to->args) return false;
        memcpy(to->args, from->args, size);
    }
    to->needs = (int *)malloc(sizeof(int) * (size_t)(from->need_count + 1));
    if (!to->needs) return false;
    for (int i = 0; i < from->need_count; i++) to->needs[i] = from->needs[i];
    return true;
}

ENTRY cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph g, unsigned long long flags)
{
    guard guarded;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (!g) return CUDA_ERROR_INVALID_VALUE;
    struct CUgraphExec_st *e = (struct CUgraphExec_st *)calloc(1, sizeof *e);
    struct task *nodes = (struct task *)calloc((size_t)g->count + 1, sizeof *nodes);
    if (!e || !nodes) {
        free(e);
        free(nodes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    e->device = c->device;
    e->graph.nodes = nodes;
    for (int i = 0; i < g->count; i++, e->graph.count++)
        if (!copy_node(&nodes[i], &g->nodes[i])) {
            e->graph.count++;
            graph_clear(&e->graph);
            free(e);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    kept[e->device]++;
    *out = e;
    return CUDA_SUCCESS;
}

ENTRY cuGraphExecDestroy(CUgraphExec e)
{
    guard guarded;
    if (!e) return CUDA_ERROR_INVALID_VALUE;
    streams_drain(e->device);
    kept[e->device]--;
    graph_clear(&e->graph);
    free(e);
    return CUDA_SUCCESS;
}

ENTRY cuGraphLaunch(CUgraphExec e, CUstream s)
{
    guard guarded;
    struct CUctx_st *c;
    CUresult r = current(&c);
    if (r != CUDA_SUCCESS) return r;
    if (!e || !s || s->device != e->device) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capturing)
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the soft GPU does not capture graph launches");
    count_graph();
    struct task t = {};
    t.work = WORK_GRAPH;
    t.exec = e;
    return task_push(s, &t);
}

/* A topological order that depends on the seed, but keeps a programmatic dependent right after what it depends on. */
static int order_nodes(const struct CUgraph_st *g, struct task **order, uint64_t *random)
{
    bool *done = (bool *)calloc((size_t)g->count + 1, 1);
    if (!done) return -1;
    int n = 0;
    while (n < g->count) {
        int chosen = -1, ready = 0;
        for (int i = 0; i < g->count; i++) {
            bool can = !done[i];
            for (int k = 0; k < g->nodes[i].need_count; k++) can = can && done[g->nodes[i].needs[k]];
            if (!can) continue;
            bool follows = n && g->nodes[i].dependent && g->nodes[i].need_count == 1 &&
                           &g->nodes[g->nodes[i].needs[0]] == order[n - 1];
            *random = *random * 6364136223846793005ull + 1442695040888963407ull;
            if (follows || chosen < 0 || (soft_config.seed && (*random >> 33) % (uint64_t)(ready + 1) == 0))
                chosen = i;
            ready++;
            if (follows) break;
        }
        done[chosen] = true;
        order[n++] = &g->nodes[chosen];
    }
    free(done);
    return n;
}

CUresult graph_run(struct CUgraphExec_st *e)
{
    static uint64_t random;
    struct CUgraph_st *g = &e->graph;
    struct task **order = (struct task **)malloc(sizeof *order * (size_t)(g->count + 1));
    if (!order) return CUDA_ERROR_OUT_OF_MEMORY;
    random += soft_config.seed;
    int n = order_nodes(g, order, &random), done = 0;
    CUresult r = n < 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
    for (int i = 0; i < n && r == CUDA_SUCCESS; i += done) {
        int chain = 1; /* a dependent runs with the kernel before it only if that is all it needs */
        while (i + chain < n && order[i + chain]->dependent && order[i + chain]->need_count == 1 &&
               &g->nodes[order[i + chain]->needs[0]] == order[i + chain - 1])
            chain++;
        r = task_run(order + i, chain, e->device, &done);
    }
    free(order);
    return r;
}
