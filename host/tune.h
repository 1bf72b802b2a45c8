/* tune.h: what klein tune works with: the shapes that a request asks kernels for, and the kernels that could compute them, measured. */
#ifndef KLEIN_TUNE_H
#define KLEIN_TUNE_H

#include "../engine/context.h"
#include "../kernels/attention/attention_pick.h"
#include "../kernels/check/op_cases.h"
#include "../kernels/conv/conv_pick.h"
#include "../kernels/cuda/cublaslt.h"
#include "../kernels/cuda/cuda.h"
#include "../kernels/cuda/cudnn_library.h"
#include "../kernels/gemm/gemm_pick.h"

enum { TUNE_CANDIDATES = 24, TUNE_TEXT = 200 };

struct tune_candidate {
    const char *kernel;
    double seconds;           /* median */
    char excluded[TUNE_TEXT]; /* why it is not a candidate: wrong, or cannot run; "": it is one */
};

struct tune_shape {
    char key[TUNED_KEY];
    enum op_id op; /* linear, attention or conv */
    union {
        struct gemm_shape gemm;
        struct attention_shape attention;
        struct conv_shape conv;
    } shape;
    const char *built_in; /* what the rules pick */
    int calls, rank;      /* launches of a request, by the first card that asks for it */
    struct op_case c;     /* an op that asks for it */
    struct tune_candidate candidate[TUNE_CANDIDATES];
    int candidates;
    double peer;  /* seconds of the product or convolution alone by tune_peer_library; 0: not measured */
    double alone; /* conv: seconds of the same by our fastest kernel */
    char peer_excluded[TUNE_TEXT]; /* as of a candidate */
};

struct tune_shapes {
    struct tune_shape *shape;
    int n, capacity;
};

/* tune_shapes.c: every shape of a request on dev (a GPU), in order of first use, by a walk without weights and launches. gpus > 1: of the
 * shares of so many cards. What a card would store into another's memory, it stores into its own where the shape is measured. */
enum klein_status tune_shapes_find(struct device *dev, const struct model_config *config, int fp8,
                                   const struct klein_request *request, int gpus, struct tune_shapes *out,
                                   struct klein_error *err);
void tune_shapes_free(struct tune_shapes *s);
/* Why the rules pick its kernel. */
void tune_reason(const struct tune_shape *s, char out[TUNE_TEXT]);

/* tune_measure.c: fills s->candidate: every kernel that takes the shape (but for those named in `without`), its result compared with
 * that of the rules' kernel, and the median of `repeat` runs. KLEIN_E_*: the device does not work any more. */
enum klein_status tune_measure(struct device *dev, struct tune_shape *s, int repeat, const char *without,
                               struct klein_error *err);
/* The fastest; the rules' own where no other is faster by 2 %. NULL: none can run. */
const struct tune_candidate *tune_best(const struct tune_shape *s);

/* Median seconds of run, each after the L2 was filled with something else (but for the soft GPU). */
enum klein_status tune_time(struct device *dev, enum klein_status (*run)(void *user, struct klein_error *err),
                            void *user, int repeat, double *out, struct klein_error *err);
/* If one of n results is not what another kernel made: how, with that one's name. */
void tune_compare(const struct tensor *mine, const struct tensor *truth, int n, const char *by,
                  char out[TUNE_TEXT]);

/* tune_peer.c: other libraries, to compare with. */
struct tune_peers {
    struct cublaslt lt;
    struct cudnn dnn;
    char no_lt[KLEIN_MESSAGE_MAX],
        no_dnn[KLEIN_MESSAGE_MAX]; /* why it is not open; "": it is, or nobody asked */
};
/* `without`: as of tune_measure; cublaslt, cudnn. */
void tune_peers_open(struct tune_peers *p, struct gpu *g, const char *without);
void tune_peers_close(struct tune_peers *p);
/* That would be asked for s. NULL: none. */
const char *tune_peer_library(const struct tune_shape *s);
/* After tune_measure: fills s->peer and s->alone, after comparing with our result. Errors as of tune_measure. */
enum klein_status tune_peer(struct device *dev, struct tune_peers *p, struct tune_shape *s, int repeat,
                            struct klein_error *err);
/* tune_product.c, tune_conv.c: the same by one of them. */
enum klein_status tune_product(struct device *dev, struct cublaslt *lt, struct tune_shape *s, int repeat,
                               struct klein_error *err);
enum klein_status tune_conv(struct device *dev, struct cudnn *dnn, struct tune_shape *s, int repeat,
                            struct klein_error *err);

#endif
