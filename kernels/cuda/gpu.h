/* gpu.h: one GPU: context, memory, streams, kernels by name, graphs. Everything above the driver table and below the ops.
 *
 * Work goes to a stream and returns at once; results are there after gpu_sync. A failure names the op that was announced last
 * (gpu_op). Kernels run later than their launch, so a fault is found by a later call: with KLEIN_SYNC=1 in the environment each
 * launch is waited for, and the fault is reported at its op.
 * One host thread uses a gpu at a time; it calls gpu_bind first if it did not open it. */
#ifndef KLEIN_CUDA_GPU_H
#define KLEIN_CUDA_GPU_H

#include "driver.h"
#include "../device/args.h"
#include "../ops.h"
#include "../tuned.h"
#include "../../base/dtype.h"

/* A file of kernels, compiled and embedded (modules.c is made by the build). The kernels' names begin with the module's. */
struct kernel_module {
    const char *name, *builds; /* "gemm_sm80", "sm_80 sm_90 compute_80" */
    const void *image;         /* a fatbin, or for a build without nvcc a text that only the soft GPU takes */
};
extern const struct kernel_module kernel_modules[]; /* ends with name == NULL */

enum { GPU_MODULES_MAX = 64, GPU_FUNCTIONS_MAX = 512 };

struct gpu {
    const struct driver *cu; /* borrowed */
    int ordinal;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    char name[96];
    int arch; /* 10 * major + minor: 90 */
    int multiprocessors;
    int shared_max; /* bytes of dynamic shared memory that a block may ask for */
    int clock_khz;
    size_t memory; /* bytes in all */
    int sync_each; /* KLEIN_SYNC */
    int capturing; /* between gpu_capture_begin and _end */
    int dry;       /* nothing is launched, see dry.h */
    struct exchange_state
        *exchange;             /* group/exchange_launch.c: of this device in its group; NULL: works alone */
    const struct tuned *tuned; /* tuned.h: what to pick; NULL: by the rules. Borrowed */
    /* Called, if not NULL, with every kernel that is picked; shape is the struct of its pick header. */
    void (*picked)(void *user, enum op_id op, const char *key, const void *shape, const char *kernel);
    void *picked_user;
    char op[160]; /* "linear 768x3072 @ 9216" */
    struct {
        const struct kernel_module *module;
        CUmodule handle; /* NULL: no build of it runs here */
    } modules[GPU_MODULES_MAX];
    int module_count;
    double context_seconds, module_seconds; /* what opening took */
    struct {
        const char *name;
        CUfunction handle;
        unsigned shared; /* MAX_DYNAMIC_SHARED_SIZE_BYTES as set */
        int waits;       /* compiled for sm_90 or later: its griddepcontrol.wait is there */
    } functions[GPU_FUNCTIONS_MAX];
    int function_count;
};

/* Opens device `ordinal` of d (which must outlive it) and loads the modules that run on it. Free with gpu_close. */
enum klein_status gpu_open(const struct driver *d, int ordinal, struct gpu **out, struct klein_error *err);
void gpu_close(struct gpu *g); /* NULL allowed */
enum klein_status gpu_bind(struct gpu *g,
                           struct klein_error *err); /* makes it current in the calling thread */
enum klein_status gpu_add_modules(struct gpu *g, const struct kernel_module *modules,
                                  struct klein_error *err);

/* KLEIN_E_UNSUPPORTED, saying what to do, if no module runs on g. */
enum klein_status gpu_check_kernels(const struct gpu *g, struct klein_error *err);

/* Names what is about to run, for messages: gpu_op(g, "linear", "768x3072 @ 9216"). */
void gpu_op(struct gpu *g, const char *op, const char *shape);
/* Turns the result of driver call `what` into a status with message; KLEIN_OK for CUDA_SUCCESS. */
enum klein_status gpu_check(struct gpu *g, CUresult result, const char *what, struct klein_error *err);

/* Memory. gpu_alloc: 256-byte aligned, contents undefined. Pinned host memory makes copies asynchronous. */
enum klein_status gpu_alloc(struct gpu *g, size_t bytes, void **out, struct klein_error *err);
void gpu_free(struct gpu *g, void *memory);
size_t gpu_available(struct gpu *g); /* bytes that can still be had; 0 if the driver does not say */
enum klein_status gpu_alloc_pinned(struct gpu *g, size_t bytes, void **out, struct klein_error *err);
void gpu_free_pinned(struct gpu *g, void *memory);
enum klein_status gpu_upload(struct gpu *g, void *to, const void *host, size_t bytes,
                             struct klein_error *err); /* in the stream */
enum klein_status gpu_download(struct gpu *g, void *host, const void *from, size_t bytes,
                               struct klein_error *err); /* and waits */
enum klein_status gpu_copy(struct gpu *g, void *to, const void *from, size_t bytes, struct klein_error *err);
enum klein_status gpu_fill(struct gpu *g, void *to, unsigned char value, size_t bytes,
                           struct klein_error *err);
enum klein_status gpu_sync(struct gpu *g, struct klein_error *err);
enum klein_status gpu_poll(struct gpu *g,
                           struct klein_error *err); /* has work failed? Does not wait for it */

/* Lets kernels of g, and copies, reach the memory of peer. KLEIN_E_UNSUPPORTED if the machine cannot. */
enum klein_status gpu_enable_peer(struct gpu *g, struct gpu *peer, struct klein_error *err);
enum klein_status gpu_copy_peer(struct gpu *g, void *to, struct gpu *from_gpu, const void *from, size_t bytes,
                                struct klein_error *err);

/* A launch: `args` is the kernel's struct of args.h. */
struct launch {
    const char *kernel;
    unsigned grid[3]; /* 0 counts as 1 */
    unsigned threads; /* the kernel's own number */
    unsigned shared;  /* bytes of dynamic shared memory */
    const void *args;
    int dependent; /* may start before the kernel before it has ended: it executes grid_wait; no effect before sm_90 */
};
enum klein_status gpu_launch(struct gpu *g, const struct launch *l, struct klein_error *err);
/* How many blocks of it fit on one multiprocessor. */
enum klein_status gpu_occupancy(struct gpu *g, const struct launch *l, int *blocks, struct klein_error *err);
/* Registers per thread, as compiled for this device. */
enum klein_status gpu_registers(struct gpu *g, const char *kernel, int *registers, struct klein_error *err);

/* A box of a tensor in device memory for the copy engine (sm_90 and later). Dimension 0 is the contiguous one; strides in bytes of
 * dimensions 1.. (multiples of 16). swizzle: 0, 32, 64 or 128 bytes, then box[0] is that wide. dtype: BF16, F32 or one byte. */
struct tensor_box {
    void *ptr;
    enum dtype dtype;
    int rank;
    uint64_t dims[5], strides[4];
    uint32_t box[5];
    int swizzle;
};
enum klein_status gpu_tensor_map(struct gpu *g, const struct tensor_box *box, struct tensor_map *out,
                                 struct klein_error *err);

/* Further streams. All work of g goes to g->stream; gpu_use_stream makes another one that and returns the one before. An event is
 * recorded in g->stream; gpu_event_wait holds g->stream back, gpu_event_sync the caller, until what came before the record is done.
 * Events of one GPU may be waited for by streams of another. `timing` events measure between them. Close streams after gpu_sync. */
enum klein_status gpu_stream_open(struct gpu *g, CUstream *out, struct klein_error *err);
void gpu_stream_close(struct gpu *g, CUstream stream);
CUstream gpu_use_stream(struct gpu *g, CUstream stream);
enum klein_status gpu_event_open(struct gpu *g, int timing, CUevent *out, struct klein_error *err);
void gpu_event_close(struct gpu *g, CUevent event);
enum klein_status gpu_event_record(struct gpu *g, CUevent event, struct klein_error *err);
enum klein_status gpu_event_wait(struct gpu *g, CUevent event, struct klein_error *err);
enum klein_status gpu_event_sync(struct gpu *g, CUevent event, struct klein_error *err);
enum klein_status gpu_event_elapsed(struct gpu *g, CUevent from, CUevent to, float *milliseconds,
                                    struct klein_error *err);

/* Between begin and end, work of g's stream is recorded instead of run; nothing may be waited for, allocated or launched for the
 * first time. The graph keeps the arguments, not the memory that they point to. */
struct gpu_graph {
    CUgraphExec exec;
    size_t nodes;
};
enum klein_status gpu_capture_begin(struct gpu *g, struct klein_error *err);
enum klein_status gpu_capture_end(struct gpu *g, struct gpu_graph *out, struct klein_error *err);
enum klein_status gpu_graph_launch(struct gpu *g, const struct gpu_graph *graph, struct klein_error *err);
void gpu_graph_close(struct gpu *g, struct gpu_graph *graph);

#endif
