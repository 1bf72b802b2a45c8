/* driver.h: the soft driver's objects. One lock guards them all; kernels run while it is held, so host threads take turns. It is given up
 * where a kernel sleeps: then other host threads run the kernels of their devices. */
#ifndef KLEIN_SOFT_DRIVER_H
#define KLEIN_SOFT_DRIVER_H

#include "soft.h"

struct chip {
    const char *arch; /* "sm_90a" */
    int major, minor, multiprocessors;
    int shared_optin, shared_sm; /* bytes a block may ask for; of a multiprocessor */
    int threads_sm, l2, clock_khz;
    uint64_t memory;
    const char *as; /* whose limits these are */
};
const struct chip *chip_find(const char *arch);
const struct chip *chip_of(void); /* the claimed one */

enum { DEVICES_MAX = SOFTGPU_DEVICES, CHAIN_MAX = 4 /* dependent launches that overlap */ };

struct CUctx_st {
    int device, retained;
    bool peers[DEVICES_MAX];
    CUresult sticky;   /* after a fault, every call returns it */
    int busy;          /* calls, within each other, that run its work, all of ... */
    pthread_t busy_by; /* ... this host thread */
    bool asleep;       /* what it runs sleeps */
    uint64_t kernels;  /* that it ran */
    char report[4096]; /* of the last fault or refused call */
};
struct CUctx_st *calling_context(void); /* of the calling thread; NULL: none */
extern struct CUctx_st soft_contexts[DEVICES_MAX];

struct CUmod_st {
    struct CUmod_st *next;
    int device;
    struct CUfunc_st *functions;
    struct image *image;
};

struct CUfunc_st {
    struct CUfunc_st *next;
    struct CUmod_st *module;
    const struct soft_kernel *kernel;
    int registers, max_dynamic_shared;
};

/* What a stream or a graph executes. */
enum work { WORK_KERNEL, WORK_COPY, WORK_SET, WORK_RECORD, WORK_WAIT, WORK_GRAPH };
enum copy { HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, PEER };

struct task {
    enum work work;
    struct task *next;
    /* kernel */
    struct CUfunc_st *function;
    unsigned grid[3], threads, shared_bytes;
    bool dependent;
    void *args;
    /* copy, set */
    enum copy copy;
    void *to;
    const void *from;
    void *staged; /* owned copy of pageable host memory */
    size_t bytes, count;
    unsigned value, width;
    /* record, wait, graph */
    struct CUevent_st *event;
    uint64_t ticket;
    struct CUgraphExec_st *exec;
    /* as a node of a graph */
    int *needs, need_count; /* indices of nodes before */
};

struct CUstream_st {
    struct CUstream_st *next;
    int device;
    struct task *first, **last;
    struct CUgraph_st *capturing; /* the graph that this stream's work goes to */
    bool capture_origin, capture_broken;
    int *tips, tip_count; /* nodes that the next one depends on */
};

struct CUevent_st {
    struct CUevent_st *next;
    int device;
    unsigned flags;
    uint64_t recorded, done;    /* tickets */
    struct CUstream_st *stream; /* where it was recorded last */
    double time;
    struct CUgraph_st *captured; /* recorded during this capture, which goes on */
    bool capture_ended;          /* recorded last in a capture that has ended */
    int *tips, tip_count;
};

struct CUgraphNode_st {
    int index;
};

struct CUgraph_st {
    struct task *nodes; /* array */
    int count, size;
};

struct CUgraphExec_st {
    struct CUgraph_st graph; /* a copy */
    int device;
};

extern pthread_mutex_t soft_lock;
extern struct CUstream_st *soft_streams;
extern struct CUevent_st *soft_events;

extern uint64_t soft_progress;   /* changes whenever something was done that a sleeping kernel may wait for */
bool let_others_run(int device); /* while its work sleeps; false: nobody did anything for long */
void done_something(void);       /* wakes who waits */
void wait_for_others(void);      /* until something was done */

struct guard { /* every entry that touches the objects */
    guard()
    {
        count_call();
        pthread_mutex_lock(&soft_lock);
    }
    ~guard()
    {
        pthread_mutex_unlock(&soft_lock);
    }
};
#define ENTRY extern "C" SOFT_API CUresult

CUresult refuse(CUresult code, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* sets the report */
void set_report(int device, const char *text);
CUresult
current(struct CUctx_st **context); /* the calling thread's context, or an error; checks sticky faults */
CUresult forbid_during_capture(const char *call);      /* and counts a stop */
CUresult forbid_wait_during_capture(const char *call); /* and counts a wait */

/* memory.cpp */
CUresult memory_new(size_t size, int device, void **out); /* device -1: pinned host memory */
CUresult memory_free(void *base, int device, char *report, size_t report_size);
bool memory_check(char *out, size_t size); /* false: something was written around an allocation */
void memory_free_all(int device);
uint64_t memory_used(int device);

/* run.cpp: executes kernels one after the other; tasks[1..] are programmatic dependents of the one before */
CUresult run_kernels(struct task *const *tasks, int count, int device);

/* driver_stream.cpp */
void task_free(struct task *t);
CUresult task_push(struct CUstream_st *s, const struct task *t); /* or into the graph being captured */
CUresult stream_drain(struct CUstream_st *s);
CUresult streams_drain(int device);
CUresult task_run(struct task *const *tasks, int available, int device,
                  int *done); /* runs one, or a chain of dependents */
CUresult graph_run(struct CUgraphExec_st *exec);
double now_milliseconds(void);

/* images.cpp */
struct image {
    char *builds;       /* "sm_80 sm_90a compute_80" */
    const uint8_t *elf; /* the cubin that the chip takes, inside the caller's image; NULL: PTX or soft */
};
CUresult image_open(const void *data, const struct chip *chip, struct image **out);
void image_close(struct image *i);
int image_registers(const struct image *i, const char *kernel); /* as ptxas says; 0: unknown */

const struct soft_kernel *kernel_find(const char *name);

#endif
