/* memory.h: what a model and a request take of a GPU's memory, known before any of it is taken; and which weights are there. */
#ifndef KLEIN_MEMORY_H
#define KLEIN_MEMORY_H

#include "context.h"

/* Bytes. A driver rounds allocations up (to 2 MiB, say) and takes some for itself; neither is in here. */
struct memory_need {
    size_t weights[PART_COUNT]; /* as placed */
    size_t arena;               /* working memory of a request */
};

/* All weights together. */
size_t memory_weights(const struct memory_need *n);
/* A request with all weights in place; and in turns: the text encoder's are freed before the others are placed. */
size_t memory_whole(const struct memory_need *n);
size_t memory_in_turns(const struct memory_need *n);

/* The weights that the model uses of c, whose tensors were asked for (model_bind), in runs of that `act`. */
void memory_of_weights(const struct checkpoint *c, enum dtype act, int fp8, struct memory_need *out);

/* On opening a context whose model is bound: places the weights if they have room, none if they have it in turns (then each request
 * does); else KLEIN_E_NO_MEMORY naming what would fit. */
enum klein_status memory_open(struct klein *k, struct klein_error *err);

/* Before a request of that plan: with *turns = 0 all weights are in place; else only the text encoder's may be, and memory_hold has to
 * be called as the stages go on. KLEIN_E_NO_MEMORY naming what would fit, each with its bytes, if neither has room. */
enum klein_status memory_prepare(struct klein *k, const struct klein_request *request,
                                 struct cached_plan *plan, int *turns, struct klein_error *err);

enum { MEMORY_TEXT = 1 << PART_TEXT, MEMORY_OTHERS = 1 << PART_TRANSFORMER | 1 << PART_VAE };
/* These parts' weights (a mask of 1 << enum checkpoint_part) in place, and no others. */
enum klein_status memory_hold(struct klein *k, unsigned parts, struct klein_error *err);

#endif
