/* A stand-in for NCCL on soft GPUs: as NCCL does, a group of sends and receives is one kernel in the stream, captured like any, that ends when
 * all of them are done or the communicator is aborted; data goes through pinned memory of the host. KLEIN_STANDIN=old: of a version before
 * those that are taken; older: of one that wrote it otherwise; init: communicators cannot be made; send: the 5th send of each fails. */
#include "nccl_standin.h"
#include "../../kernels/group/nccl_library.h"
#include "../../kernels/soft/softgpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define X(name, symbol, parameters) CUresult symbol parameters;
KLEIN_DRIVER_ENTRIES(X)
#undef X
#define X(name, result, parameters) __attribute__((visibility("default"))) result nccl##name parameters;
KLEIN_NCCL_ENTRIES(X)
#undef X

struct ncclComm {
    int rank, size, sends;
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction transfer;
    struct world *world;
};

struct world {
    int size, alive;
    uint32_t *stop;
    struct standin_mailbox *boxes; /* [from][to] */
    struct ncclComm comm[STANDIN_RANKS];
};

/* Of which all were aborted: graphs may still name its memory, as they may NCCL's, until communicators are made again. */
static struct world *retired;

static __thread char last_error[128];

static int is_called(const char *name)
{
    const char *how = getenv("KLEIN_STANDIN");
    return how && !strcmp(how, name);
}

static ncclResult_t error(ncclResult_t code, const char *text)
{
    snprintf(last_error, sizeof last_error, "%s", text);
    return code;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = is_called("old") ? 21805 : is_called("older") ? 2804 : 22809;
    return 0;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == 1   ? "unhandled cuda error"
           : result == 2 ? "unhandled system error"
                         : "remote process exited";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return last_error;
}

static void free_retired(void)
{
    if (!retired) return;
    for (int i = 0; i < retired->size; i++) {
        cuCtxSetCurrent(retired->comm[i].context);
        if (!i) cuMemFreeHost(retired->boxes), cuMemFreeHost(retired->stop);
        cuModuleUnload(retired->comm[i].module);
        cuDevicePrimaryCtxRelease_v2(retired->comm[i].device);
    }
    free(retired);
    retired = NULL;
}

static CUresult open_comm(struct ncclComm *c, int ordinal)
{
    static const char image[] = "klein soft image: sm_80 compute_80";
    CUresult r = cuDeviceGet(&c->device, ordinal);
    if (!r) r = cuDevicePrimaryCtxRetain(&c->context, c->device);
    if (!r) r = cuCtxSetCurrent(c->context);
    if (!r) r = cuModuleLoadData(&c->module, image);
    return r ? r : cuModuleGetFunction(&c->transfer, c->module, "nccl_standin_transfer");
}

ncclResult_t ncclCommInitAll(ncclComm_t *out, int n, const int *ordinals)
{
    if (is_called("init")) return error(2, "no room in /dev/shm");
    free_retired();
    struct world *w = calloc(1, sizeof *w);
    CUresult r = CUDA_SUCCESS;
    w->size = w->alive = n;
    for (int i = 0; i < n && !r; i++) {
        w->comm[i] = (struct ncclComm){.rank = i, .size = n, .world = w};
        r = open_comm(&w->comm[i], ordinals[i]);
        out[i] = &w->comm[i];
    }
    const size_t bytes = (size_t)(n * n) * sizeof *w->boxes;
    if (!r) r = cuMemHostAlloc((void **)&w->stop, sizeof *w->stop, 0);
    if (!r) r = cuMemHostAlloc((void **)&w->boxes, bytes, 0);
    if (r) return error(1, "no memory for communicators");
    *w->stop = 0;
    memset(w->boxes, 0, bytes);
    return 0;
}

/* NCCL returns once all graphs with calls of c are freed; here all of the device's. */
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    __atomic_store_n(c->world->stop, 1, __ATOMIC_SEQ_CST);
    while (softgpu_graphs(c->device)) usleep(1000);
    if (!__atomic_sub_fetch(&c->world->alive, 1, __ATOMIC_SEQ_CST)) retired = c->world;
    return 0;
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

/* What a communicator has to do in the thread's group. */
struct work {
    struct ncclComm *comm;
    CUstream stream;
    struct standin_args args;
    int alone; /* the group has work of one communicator only */
    CUresult result;
    pthread_t thread;
};

static __thread int depth, n_work;
static __thread struct work works[STANDIN_RANKS];

static void *launch(void *user)
{
    struct work *w = user;
    CUlaunchConfig config = {.gridDimX = 1,
                             .gridDimY = 1,
                             .gridDimZ = 1,
                             .blockDimX = STANDIN_THREADS,
                             .blockDimY = 1,
                             .blockDimZ = 1,
                             .hStream = w->stream};
    void *arguments[] = {&w->args};
    w->result = cuCtxSetCurrent(w->comm->context);
    if (!w->result) w->result = cuLaunchKernelEx(&config, w->comm->transfer, arguments, NULL);
    if (!w->result && !w->alone) w->result = cuStreamSynchronize(w->stream);
    return NULL;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return 0;
}

/* One thread for several devices: soft ones need a thread each to run. */
ncclResult_t ncclGroupEnd(void)
{
    const int n = n_work;
    ncclResult_t result = 0;
    if (--depth) return 0;
    n_work = 0;
    for (int i = 0; i < n; i++) {
        works[i].alone = n == 1;
        if (n == 1)
            launch(&works[i]);
        else
            pthread_create(&works[i].thread, NULL, launch, &works[i]);
    }
    for (int i = 0; i < n; i++) {
        if (n > 1) pthread_join(works[i].thread, NULL);
        if (works[i].result) result = error(1, "the launch failed");
    }
    return result;
}

static ncclResult_t add(const void *buffer, size_t bytes, int peer, ncclComm_t c, CUstream stream, int send)
{
    int i = 0;
    ncclGroupStart();
    while (i < n_work && works[i].comm != c) i++;
    if (i == n_work)
        works[n_work++] = (struct work){.comm = c, .stream = stream, .args.stop = c->world->stop};
    const int from = send ? c->rank : peer, to = send ? peer : c->rank;
    works[i].args.op[works[i].args.n++] =
        (struct standin_op){(char *)(uintptr_t)buffer, &c->world->boxes[from * c->size + to], bytes, send};
    return ncclGroupEnd();
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      CUstream stream)
{
    if (is_called("send") && ++c->sends == 5) return error(6, "the link is down");
    return add(from, count, peer, c, stream, 1);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t c, CUstream stream)
{
    return add(to, count, peer, c, stream, 0);
}
