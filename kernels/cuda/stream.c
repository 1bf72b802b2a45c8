/* stream.c: further streams, events between them, graphs. */
#include "gpu.h"

enum klein_status gpu_stream_open(struct gpu *g, CUstream *out, struct klein_error *err)
{
    return gpu_check(g, g->cu->StreamCreate(out, CU_STREAM_NON_BLOCKING), "cuStreamCreate", err);
}

void gpu_stream_close(struct gpu *g, CUstream stream)
{
    if (stream) g->cu->StreamDestroy(stream);
}

CUstream gpu_use_stream(struct gpu *g, CUstream stream)
{
    CUstream before = g->stream;
    g->stream = stream;
    return before;
}

enum klein_status gpu_event_open(struct gpu *g, int timing, CUevent *out, struct klein_error *err)
{
    return gpu_check(g, g->cu->EventCreate(out, timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING),
                     "cuEventCreate", err);
}

void gpu_event_close(struct gpu *g, CUevent event)
{
    if (event) g->cu->EventDestroy(event);
}

enum klein_status gpu_event_record(struct gpu *g, CUevent event, struct klein_error *err)
{
    return gpu_check(g, g->cu->EventRecord(event, g->stream), "cuEventRecord", err);
}

enum klein_status gpu_event_wait(struct gpu *g, CUevent event, struct klein_error *err)
{
    return gpu_check(g, g->cu->StreamWaitEvent(g->stream, event, 0), "cuStreamWaitEvent", err);
}

enum klein_status gpu_event_sync(struct gpu *g, CUevent event, struct klein_error *err)
{
    return gpu_check(g, g->cu->EventSynchronize(event), "cuEventSynchronize", err);
}

enum klein_status gpu_event_elapsed(struct gpu *g, CUevent from, CUevent to, float *milliseconds,
                                    struct klein_error *err)
{
    return gpu_check(g, g->cu->EventElapsedTime(milliseconds, from, to), "cuEventElapsedTime", err);
}

/* ---- graphs ----------------------------------------------------------------------------------------------------------- */

enum klein_status gpu_capture_begin(struct gpu *g, struct klein_error *err)
{
    if (g->sync_each)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: KLEIN_SYNC waits for each kernel, which a graph cannot",
                    g->name);
    TRY(gpu_check(g, g->cu->StreamBeginCapture(g->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                  "cuStreamBeginCapture", err));
    g->capturing = 1;
    return KLEIN_OK;
}

enum klein_status gpu_capture_end(struct gpu *g, struct gpu_graph *out, struct klein_error *err)
{
    CUgraph graph = NULL;
    *out = (struct gpu_graph){0};
    g->capturing = 0;
    TRY(gpu_check(g, g->cu->StreamEndCapture(g->stream, &graph), "cuStreamEndCapture", err));
    enum klein_status status =
        gpu_check(g, g->cu->GraphGetNodes(graph, NULL, &out->nodes), "cuGraphGetNodes", err);
    if (status == KLEIN_OK)
        status = gpu_check(g, g->cu->GraphInstantiate(&out->exec, graph, 0), "cuGraphInstantiate", err);
    g->cu->GraphDestroy(graph);
    return status;
}

enum klein_status gpu_graph_launch(struct gpu *g, const struct gpu_graph *graph, struct klein_error *err)
{
    return gpu_check(g, g->cu->GraphLaunch(graph->exec, g->stream), "cuGraphLaunch", err);
}

void gpu_graph_close(struct gpu *g, struct gpu_graph *graph)
{
    if (graph->exec) g->cu->GraphExecDestroy(graph->exec);
    *graph = (struct gpu_graph){0};
}
