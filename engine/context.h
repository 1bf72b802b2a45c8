/* context.h: what is behind the opaque struct klein, and the entries that the command line uses beside
 * klein.h. */
#ifndef KLEIN_CONTEXT_H
#define KLEIN_CONTEXT_H

#include "cache.h"
#include "../kernels/predict.h"
#include "../weights/tokenizer.h"

#include <pthread.h>

struct queue; /* async.c */

struct klein {
    pthread_mutex_t
        busy; /* held while it works on a request; only an error when it is held by the caller already */
    struct queue *queue; /* of submitted requests */
    struct checkpoint *checkpoint;
    struct model *model;
    struct tokenizer *tokenizer; /* NULL for random weights: token ids are then made up */
    struct device *device;
    struct device_label device_label;
    enum dtype act;
    unsigned
        placed; /* parts whose weights are in the device's memory, a mask of 1 << enum checkpoint_part (memory.h) */
    int fp8; /* the transformer's blocks multiply in FP8 */
    struct plan_cache plans;
    struct group *group;         /* of contexts that work together (group.h); NULL: alone */
    int rank;                    /* in the group */
    struct share tokens, passes; /* what it computes of a picture */
    struct open_times {          /* seconds of opening, and of the first request's plan; for benches */
        double files, device, weights, tokenizer, plan;
    } times;
    struct klein_error warning;     /* of opening; said with the first result */
    char no_gpu[KLEIN_MESSAGE_MAX]; /* why "auto" passed over GPUs that are there; or "" */
};

/* klein_open over a checkpoint of any kind (shapes, random). Takes ownership of `checkpoint`, also on
 * failure. Only device, threads, dtype, precision and plan_bytes of the options are read. */
enum klein_status context_open(struct checkpoint *checkpoint, const struct klein_open_options *options,
                               struct klein **out, struct klein_error *err);

/* Opens one context per GPU of options->gpus, each by `open` on the device that its options name, and makes a group of them (group.h). */
typedef enum klein_status context_opener(void *user, const struct klein_open_options *options,
                                         struct klein **out, struct klein_error *err);
enum klein_status context_open_several(const struct klein_open_options *options, context_opener *open,
                                       void *user, struct klein **out, struct klein_error *err);

/* Whether a GPU with that many bytes can hold the model and make a picture with it. */
int context_can_hold(const struct klein *k, size_t bytes, int fp8);

/* klein_generate that also reports every op (for benches): seconds is the op's time on the device. Its ops run one by one, not in
 * graphs, and the marks between them take time too: stages are longer than without. NULL: not wanted. */
typedef void op_observer(void *user, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                         double seconds);
enum klein_status context_generate(struct klein *k, const struct klein_request *request,
                                   op_observer *observer, void *observer_user, struct klein_result *result,
                                   struct klein_error *err);

struct settled;
/* Makes ready what requests of this shape need (klein_warm_up). KLEIN_E_NO_MEMORY if it cannot be kept. */
enum klein_status context_warm_up(struct klein *k, const struct klein_request *request,
                                  struct klein_error *err);
/* Whether a request of this shape would only replay graphs, or on a device without graphs is planned. */
int context_is_warm(struct klein *k, const struct klein_request *request);

/* Whoever works on a context: KLEIN_E_USAGE within its callbacks. Makes the device the calling thread's. */
enum klein_status context_enter(struct klein *k, struct klein_error *err);
void context_leave(struct klein *k);

/* Of submitted requests; no thread until the first. */
enum klein_status queue_open(struct klein *k, struct klein_error *err);
void queue_close(struct queue *q); /* NULL allowed; cancels and waits */

/* The caller's request as this version knows it: what an older, shorter struct lacks is zero. */
enum klein_status read_request(const struct klein_request *from, struct klein_request *to,
                               struct klein_error *err);

/* A request's work without doing it, on the null device. References: only width and height are read. */
struct plan_op {
    enum klein_stage stage;
    enum op_id op;
    struct op_cost cost; /* of one call */
    int count;           /* calls of this op with this shape in this stage */
};
struct plan {
    size_t arena_bytes;
    struct plan_stage {
        double flops, bytes;
        int ops;
    } stage[KLEIN_STAGE_COUNT];
    struct plan_op *ops; /* in order of first use; owned by the plan */
    int n_ops;
    int width, height, steps, images;
};
enum klein_status plan_make(const struct model_config *config, enum dtype act,
                            const struct klein_request *request, struct plan *out, struct klein_error *err);
/* Of the first device of several: its share of the tokens, or of the passes. */
enum klein_status plan_make_share(const struct model_config *config, enum dtype act,
                                  const struct klein_request *request, struct share tokens,
                                  struct share passes, struct plan *out, struct klein_error *err);
/* Whether a request can be shared out so: KLEIN_E_USAGE if not, saying what can. */
enum klein_status share_check(const struct model_config *config, const struct settled *s, struct share tokens,
                              struct share passes, struct klein_error *err);
void plan_free(struct plan *p);
/* The request's ops, or those of a share of its tokens, on a device that computes nothing, with weights placed on it: for devices that
 * watch them. */
enum klein_status plan_walk(const struct model_config *config, enum dtype act, int fp8,
                            const struct klein_request *request, struct share tokens, struct device *dev,
                            struct klein_error *err);
/* Predicted, not measured: seconds of one call of o (predict.h). e4m3: the blocks' products of the denoiser are in e4m3. */
double plan_op_seconds(const struct plan_op *o, const struct gpu_spec *g, int e4m3);

/* A request with defaults resolved and everything checked that can be checked without running (sizes, steps,
 * sigmas, references). */
struct settled {
    int width, height, steps, images, guided;
    float guidance;
    float *sigmas;                  /* [steps + 1] */
    struct klein_image *references; /* fitted sizes; rgb NULL until settle_references */
    int n_references;
    const float *prompt_embeds; /* the request's */
};
enum klein_status settle(const struct model_config *config, const struct klein_request *request,
                         struct settled *out, struct klein_error *err);
void settled_free(struct settled *s);
/* The job those settings describe, without data. */
struct job settled_job(const struct settled *s);

#endif
