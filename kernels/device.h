/* device.h: a backend instance: memory and the op table. Open one per context; devices share nothing. */
#ifndef KLEIN_DEVICE_H
#define KLEIN_DEVICE_H

#include "ops.h"

struct device_options {
    int threads; /* host threads for "cpu" and "ref"; 0: all that the process may use */
};

/* How a weight is used: a vector (norm weights, biases, statistics); a matrix [n, k] of linear or embed; one of linear that is to be
 * multiplied in FP8, so quantised to F8_E4M3 with scales unless it is already; a convolution [cout, cin * ksize * ksize] in OIHW. */
enum weight_kind { WEIGHT_VECTOR, WEIGHT_MATRIX, WEIGHT_MATRIX_E4M3, WEIGHT_CONV_1X1, WEIGHT_CONV_3X3 };

enum { DEVICE_MARKS = 768, DEVICE_GROUPS = 4 };

/* Recording ops, to launch them again as one. Between begin and end nothing runs, and nothing but ops and `copy` is called. */
struct device_graphs {
    enum klein_status (*begin)(struct device *dev, struct klein_error *err);
    enum klein_status (*end)(struct device *dev, void **graph, struct klein_error *err);
    enum klein_status (*launch)(struct device *dev, void *graph, struct klein_error *err);
    void (*free)(struct device *dev, void *graph);
    /* Waits until all but the latest call's work is done, so that the host is at most one launch ahead: progress is real and a
     * cancelled request ends soon, while the device always has work. */
    enum klein_status (*pace)(struct device *dev, struct klein_error *err);
};

/* Devices of one kind that work on a request together. Each is used by a host thread of its own, but for join and stop. */
struct device_exchange {
    int direct; /* ops store what is for other devices into their memory: struct exchange_to (ops.h) may be used, and tensors 0 in `rows` */
    /* 1: whether an exchange runs as it comes, is captured or replayed must be the same on all devices of the group; and after stop no graph
     * with exchanges is launched any more: all are freed before begin. */
    int alike;
    /* Makes devices[i] number i of a group, until the first of them is closed (by then graphs with exchanges have been freed); once, before they
     * exchange. Where it takes another way than this struct's, devices[i]->exchange is that way's then. KLEIN_E_UNSUPPORTED if they cannot. */
    enum klein_status (*join)(struct device *const *devices, int n, struct klein_error *err);
    /* Before a request, on each of them while none computes: where device i's arena is. */
    enum klein_status (*begin)(struct device *dev, void *const *arenas, struct klein_error *err);
    enum klein_status (*rows)(struct device *dev, const struct exchange_args *a, struct klein_error *err);
    /* A device of the group failed: exchanges end without having exchanged, also those to come, until begin. From any thread. */
    void (*stop)(struct device *dev);
};

/* Base of every backend's own struct (which has it as its first member). */
struct device {
    const struct op_table *ops;
    const char *name;      /* "cpu" */
    int number;            /* of several of its kind: the N of "cuda:N" */
    char description[128]; /* "AMD EPYC, 2 threads, AVX-512 BF16" */
    enum dtype act;        /* fastest activation dtype it supports: what --dtype auto takes */
    int computes;          /* 0: the null device; nothing may read its memory */
    int e4m3; /* it multiplies e4m3: its ops take and write activations in F8_E4M3 where ops.h allows that */
    int threads;
    size_t memory; /* bytes of its own in all; 0: the host's */
    void (*close)(struct device *dev);
    /* Device memory, ARENA_ALIGN-aligned, contents undefined (tests fill it with NaN). NULL when there is
     * none. */
    void *(*alloc)(struct device *dev, size_t bytes);
    void (*free)(struct device *dev, void *memory, size_t bytes);
    /* `host` is the caller's again on return. download waits for the ops before it. */
    enum klein_status (*upload)(struct device *dev, void *to, const void *host, size_t bytes,
                                struct klein_error *err);
    enum klein_status (*download)(struct device *dev, void *host, const void *from, size_t bytes,
                                  struct klein_error *err);
    /* Within device memory, in order with the ops. */
    enum klein_status (*copy)(struct device *dev, void *to, const void *from, size_t bytes,
                              struct klein_error *err);

    /* Makes a weight in host memory usable by the ops in runs of that `act`: *t is then in device memory, in the dtype and layout
     * that they expect, until the device is closed. NULL: ops take weights where they are, and quantise none. */
    enum klein_status (*place)(struct device *dev, enum weight_kind kind, enum dtype act, struct tensor *t,
                               struct klein_error *err);
    /* Makes the calling thread the one that uses the device, which its first one is already. NULL: any may. */
    enum klein_status (*bind)(struct device *dev, struct klein_error *err);
    /* Frees the weights that were placed while dev->group was that number. */
    void (*unplace)(struct device *dev, int group);
    int group; /* of what is placed from now on; the caller's to set, below DEVICE_GROUPS */
    /* Bytes of its memory that can still be had; NULL: of the host's. */
    size_t (*available)(struct device *dev);
    const struct device_exchange *exchange; /* NULL: works alone */
    const struct device_graphs *graphs;     /* NULL: ops run at once, there is nothing to gain */
    /* Devices whose ops return before they are done (else NULL): waits for all of them; notes the time in the order of the ops, as number
     * i < DEVICE_MARKS; the seconds between two marks, once both were waited for (-1: one was never made). */
    enum klein_status (*wait)(struct device *dev, struct klein_error *err);
    enum klein_status (*mark)(struct device *dev, int i, struct klein_error *err);
    double (*between)(struct device *dev, int from, int to);
};

/* What a GPU's memory holds of a weight once it is placed (only dtype, rows and cols of t are read), and what each GPU device takes beside
 * weights and arenas: scratch memory of its own, and pinned memory of the host that weights pass through. */
size_t gpu_weight_bytes(enum weight_kind kind, enum dtype act, struct tensor t);
extern const size_t gpu_scratch_bytes, gpu_staging_bytes;

/* Opens a backend: "cpu", "ref", "null"; "cuda" or "cuda:N", an NVIDIA GPU; "soft" or "soft:N", the same code on a GPU made of
 * software (kernels/soft/softgpu.h). Unknown: KLEIN_E_NO_DEVICE naming what exists. */
enum klein_status device_open(const char *name, const struct device_options *options, struct device **out,
                              struct klein_error *err);
/* What "auto" is: the first of cuda, cuda:1, ... that opens and that `check` does not refuse (with the reason; NULL: takes any), else the
 * processor. passed_over: of each GPU before it why not, in one line of KLEIN_MESSAGE_MAX bytes; "" if there is none. */
typedef enum klein_status device_check(void *user, struct device *gpu, struct klein_error *why);
enum klein_status device_open_best(const struct device_options *options, device_check *check, void *user,
                                   struct device **out, char *passed_over, struct klein_error *err);
void device_close(struct device *dev); /* NULL allowed */
enum klein_status device_bind(struct device *dev, struct klein_error *err);

/* Row i of the list of backends this build has, for `klein devices`; NULL past the end. */
const char *device_backend(int i);
/* How many of its devices this machine has: GPUs that their driver counts, 0 without a driver; of others one. */
int device_count(const char *backend);
/* The name that device_open takes for one of them: "cpu", "cuda", "cuda:1". */
struct device_label {
    char text[32];
} device_label(const char *backend, int number);

#endif
