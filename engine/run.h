/* run.h: what one pass through the model carries along: device, arena, taps, and the *sticky status*.
 *
 * The first failure is kept with the op and its shapes; later ops return at once. So model code has no error
 * handling: the pipeline looks at run.err.status once per stage. Memory comes from the run's arena and goes
 * back by marks. */
#ifndef KLEIN_RUN_H
#define KLEIN_RUN_H

#include "../base/arena.h"
#include "../kernels/device.h"

struct run;

/* An op that a device has been given and that has not been observed yet. Its marks are number RUN_MARKS + 2 i and the next. */
struct issued_op {
    enum op_id op;
    struct op_cost cost;
};
enum { RUN_ISSUED = 128, RUN_MARKS = DEVICE_MARKS - 2 * RUN_ISSUED };

/* What is shared out among `size` devices, and which part is one's own. {0}: all of it. */
struct share {
    int rank, size;
    int copies; /* tokens: ops cannot store into other devices' memory (device.h: direct), run_exchange copies what is for them */
};
static inline int share_size(struct share s)
{
    return s.size ? s.size : 1;
}
/* The first of n things that device `rank` has; they end where those of rank + 1 begin. */
static inline int share_first(struct share s, int rank, int n)
{
    return (int)((int64_t)n * rank / share_size(s));
}
static inline int share_most(struct share s, int n) /* that a device has */
{
    return (n + share_size(s) - 1) / share_size(s);
}

struct run {
    struct device *dev;
    struct arena *arena;
    int end;                /* arena end that run_tensor takes from */
    enum dtype act;         /* dtype of activations: DT_F32 or DT_BF16 */
    struct klein_error err; /* sticky: err.status is KLEIN_OK until something failed */
    double flops;           /* issued so far */
    /* Of several devices that make one picture (group.h), by tokens, or by the two passes of guidance. Their arenas are laid out alike:
     * a tensor of which each has a part has the same size everywhere. */
    struct share tokens, passes;

    /* Of stages (stage.h). skip: the ops of this stretch come from a graph and are walked through for the arena only; walked: depth of
     * the stages that are open; capturing: the outermost is being captured. */
    int skip, walked, capturing;

    /* Hooks, each NULL when not wanted, all with hook_user. */
    void *hook_user;
    int (*poll)(struct run *r); /* before each op; non-zero stops with KLEIN_E_CANCELLED */
    void (*observe)(struct run *r, enum op_id op, const struct op_cost *cost,
                    double seconds); /* after each op */
    /* On a device that works on after an op was issued (device.h): room for RUN_ISSUED ops, which are observed together, later: when
     * it is full and by run_observe_issued. The times are then the device's. An op that the device waits for, as it does for the first
     * ones after a wait, also has the time of its launch. */
    struct issued_op *issued;
    int n_issued;
    void (*tap)(struct run *r, const char *name, struct tensor t); /* t is in device memory */
    int tap_blocks;                                                /* taps include every block's output */
};

/* run_linear(r, &(struct linear_args){...}) and so on, one per op of ops.h: check, then call the device;
 * nothing if r failed. */
#define X(op, args) void run_##op(struct run *r, const struct args *a);
KLEIN_OPS(X)
#undef X

/* The op of struct device_exchange. */
void run_exchange(struct run *r, const struct exchange_args *a);

/* Waits for the ops that were issued and hands them to the observer. */
void run_observe_issued(struct run *r);

/* A contiguous [rows, cols] tensor from the arena. When it is full: the sticky error, and a tensor with ptr
 * NULL. */
struct tensor run_tensor(struct run *r, enum dtype dtype, int rows, int cols);
/* The same with contents copied from contiguous host memory (a device that does not compute ignores them).
 * Never within a stage (stage.h): a graph would read that memory again. */
struct tensor run_upload(struct run *r, enum dtype dtype, int rows, int cols, const void *host);
/* Contents for a contiguous tensor. */
void run_fill(struct run *r, struct tensor t, const void *host);
/* Copies a contiguous tensor to host memory; nothing on a device that does not compute. */
void run_download(struct run *r, void *host, struct tensor t);
/* Copies a contiguous tensor within the device's memory, whatever its dtype. */
void run_assign(struct run *r, struct tensor to, struct tensor from);

/* One branch when taps are off. */
__attribute__((format(printf, 3, 4))) void run_tap(struct run *r, struct tensor t, const char *format, ...);

static inline int run_ok(const struct run *r)
{
    return r->err.status == KLEIN_OK;
}

#endif
