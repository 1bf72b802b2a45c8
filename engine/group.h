/* group.h: contexts on several devices of one machine that work on a request together, each in a host thread of its own.
 *   ulysses  each has some of a picture's tokens, computes attention for some of the heads (dit.h), and decodes some of the rows (vae.h)
 *   cfg      one computes the pass with the prompt, the other that without (pipeline.c)
 *   replica  each makes some of the request's pictures
 * All have all weights, and encode the text and the references, which all need. The picture comes from the first device, which decodes it alone
 * with cfg, and where it has fewer rows of latents than there are devices.
 *
 * A device that fails, or a request that is cancelled, stops the group: nobody waits for the others any more (device.h: exchange->stop), all
 * come to rest, and the first failure is the request's. */
#ifndef KLEIN_GROUP_H
#define KLEIN_GROUP_H

#include "context.h"

#include <pthread.h>

struct group {
    enum klein_parallel parallel;
    int size;
    int gpus[GROUP_MAX];             /* their numbers */
    struct klein *member[GROUP_MAX]; /* by rank; [0] is the user's context and owns the group */

    /* Of the request that runs. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int meetings, arrived; /* at the next one */
    int stopped;
    int failed; /* rank of the first that failed; -1: none */
    struct klein_error err;
    void *arena[GROUP_MAX];
    int captured[GROUP_MAX]; /* what each has of the request's stages as graphs: stages_captured */
};

/* Makes a group of n open contexts of the same model on devices of one kind. Takes ownership of all, also on failure. *out is member 0;
 * klein_close closes all. KLEIN_E_UNSUPPORTED: neither peer access nor NCCL; KLEIN_E_USAGE: a number of devices that cannot share the model. */
enum klein_status group_open(struct klein *const *members, int n, enum klein_parallel parallel,
                             struct klein **out, struct klein_error *err);
void group_close(struct group *g);
void group_info(const struct group *g, struct klein_model_info *info); /* what info says of a group */

enum klein_status group_generate(struct group *g, const struct klein_request *request, op_observer *observer,
                                 void *observer_user, struct klein_result *result, struct klein_error *err);

/* Runs a request of one picture for the sake of what the devices keep (klein_warm_up), once; each replica runs it. */
enum klein_status group_warm_up(struct group *g, const struct klein_request *request,
                                struct klein_error *err);

/* For a member's own part of a request (generate.c), in its thread. Begin: all meet with their arenas, and with graphs of the same stages where
 * that has to be (device_exchange.alike); `turns`: the member will lose its graphs amid the request. */
enum klein_status context_warm_alone(struct klein *k, const struct klein_request *request,
                                     struct klein_error *err);
enum klein_status context_generate_alone(struct klein *k, const struct klein_request *request,
                                         op_observer *observer, void *observer_user,
                                         struct klein_result *result, struct klein_error *err);
enum klein_status group_begin(struct klein *k, struct cached_plan *plan, int turns, struct klein_error *err);
void group_stop(struct klein *k, const struct klein_error *why);
int group_stopped(struct group *g);

#endif
