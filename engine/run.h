/* run.h: what one pass through the model carries along: device, arena, taps, and the *sticky status*.
 *
 * The first failure is kept with the op and its shapes; later ops return at once. So model code has no error handling: the
 * pipeline looks at run.err.status once per stage. Allocation is run_tensor(): from the run's arena, released by marks. */
#ifndef KLEIN_RUN_H
#define KLEIN_RUN_H

#include "../base/arena.h"
#include "../kernels/device.h"

/* Called with intermediate tensors by name ("step.0.double.3.img"): see klein.h for the names. t is in device memory. */
struct run;
typedef void run_tap_fn(struct run *r, void *user, const char *name, struct tensor t);

struct run {
    struct device *dev;
    struct arena *arena;
    enum dtype act;         /* dtype of activations: DT_F32 or DT_BF16 */
    struct klein_error err; /* sticky: err.status is KLEIN_OK until something failed */
    run_tap_fn *tap;        /* NULL: off */
    void *tap_user;
    int tap_blocks;         /* also the outputs of every block */
    int (*cancelled)(void *user); /* asked before each op; non-zero: stop with KLEIN_E_CANCELLED. NULL: never */
    void *cancelled_user;
};

/* run_linear(r, &(struct linear_args){...}) and so on, one per op of ops.h: check, then call the device, unless r already failed. */
#define X(op, args) void run_##op(struct run *r, const struct args *a);
KLEIN_OPS(X)
#undef X

/* A contiguous [rows, cols] tensor from the arena; on exhaustion sets the sticky error and returns one with ptr NULL. */
struct tensor run_tensor(struct run *r, enum dtype dtype, int rows, int cols);
/* The same with contents copied from host memory (no copy on a device that does not compute). */
struct tensor run_upload(struct run *r, enum dtype dtype, int rows, int cols, const void *host);

/* Costs one branch when taps are off. printf-style name. */
__attribute__((format(printf, 3, 4))) void run_tap(struct run *r, struct tensor t, const char *format, ...);

static inline int run_ok(const struct run *r) { return r->err.status == KLEIN_OK; }

#endif
