/* cuda.h: the GPU backend: ops.h over the kernels, memory, weights, graphs. One device per context; ops go to one stream, so they
 * return at once and only downloads wait; weights have streams of their own (place.c). */
#ifndef KLEIN_CUDA_H
#define KLEIN_CUDA_H

#include "gpu.h"
#include "../device.h"

struct placed; /* place.c */
struct nccl_group;

struct cuda_device {
    struct device base;
    struct driver cu;
    struct gpu *gpu;
    void *scratch; /* of one op at a time: CUDA_SCRATCH bytes */
    struct placed *placed;
    CUevent pace[2]; /* the ends of the last two calls of graphs->pace */
    int paces;
    CUevent marks[DEVICE_MARKS]; /* NULL: not made */
    struct {                     /* group/exchange_launch.c; size 0: works alone */
        int size, rank, owns_stop;
        struct exchange_state *state[EXCHANGE_DEVICES]; /* in each device's memory */
        uint32_t *stop;
        struct nccl_group *nccl; /* nccl_exchange.c; NULL: they reach each other's memory */
    } group;
    struct tuned *tuned; /* gpu->tuned */
    double driver_seconds, read_seconds;
    double launched;     /* when the last graph of this request had been launched; 0: none yet */
    double host_seconds; /* of the host between launches of graphs, waiting apart */
};
/* Bounds what an op may need beside its operands, whatever their size; the ops that need any work in bands. */
#define CUDA_SCRATCH ((size_t)64 << 20)

static inline struct gpu *gpu_of(struct device *dev)
{
    return ((struct cuda_device *)dev)->gpu;
}

extern const struct op_table cuda_ops;
extern const struct device_graphs cuda_graphs;

/* struct device's place: uploads through pinned buffers and converts on the device. Vectors become F32, matrices BF16 in BF16
 * runs (in F32 runs they stay what they are) or e4m3 of the BF16 numbers (sm_89 and later; so are those that come in it), convolutions are packed (conv_launch.h). */
enum klein_status cuda_place(struct device *dev, enum weight_kind kind, enum dtype act, struct tensor *t,
                             struct klein_error *err);
void cuda_unplace(struct cuda_device *cuda); /* all of them */
void cuda_unplace_group(struct device *dev, int group);

/* What people and benches want to know of a device beside struct device. */
struct cuda_facts {
    const char *name;        /* "NVIDIA H100 80GB HBM3" */
    int soft;                /* executed on the host: its times mean nothing */
    int arch;                /* 90 */
    int multiprocessors;     /* 132 */
    int clock_khz;           /* the highest */
    int cuda;                /* what the driver speaks: 12040 is CUDA 12.4 */
    int modules, loaded;     /* files of kernels in this build, and those of them that run here */
    size_t weights, scratch; /* bytes that it holds */
    double driver_seconds, context_seconds, module_seconds,
        read_seconds; /* of opening; of weights out of files */
    double
        host_seconds; /* of the host between the launches of graphs of each request, waiting apart: in all so far */
};
/* 0 if dev is no GPU ("cuda", "soft"). The name lives as long as the device. */
int cuda_facts(const struct device *dev, struct cuda_facts *out);
size_t cuda_placed_bytes(const struct cuda_device *cuda);

/* What a table of tuned kernels has to be made for to be used on dev, a GPU; the strings live as long as dev and `version`. */
struct tuned_for cuda_tuned_for(const struct device *dev, const char *version);
/* From now on kernels are picked by the user's table (tuned.h) where it has the shape. Nothing if dev is no GPU, there is no table, or
 * KLEIN_TUNE=off is in the environment. A status that is not KLEIN_OK is a warning: the table is bad and not used. */
enum klein_status cuda_use_tuned(struct device *dev, const char *version, struct klein_error *err);

#endif
