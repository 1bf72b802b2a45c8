/* model.h: the three networks of a checkpoint, bound to its tensors. */
#ifndef KLEIN_MODEL_H
#define KLEIN_MODEL_H

#include "dit.h"
#include "qwen3.h"
#include "vae.h"

struct model {
    const struct model_config *cfg;
    struct checkpoint *checkpoint; /* not owned */
    struct qwen3 text;
    struct dit dit;
    struct vae vae;
};

/* Finds every tensor of the model in the checkpoint, with its shape, and checks that nothing is left over. */
enum klein_status model_bind(struct model *m, struct checkpoint *c, struct klein_error *err);

/* Of a model that is bound: moves the weights of `part` to where `dev` needs them for runs of that dtype of activations, as its group
 * `part` (device.h), and waits until they are there. fp8: the matrices of the transformer's blocks are quantised on the way.
 * KLEIN_E_UNSUPPORTED if the device cannot. */
enum klein_status model_place_part(struct model *m, enum checkpoint_part part, struct device *dev,
                                   enum dtype act, int fp8, struct klein_error *err);
/* How a weight of that name and shape is used. */
enum weight_kind model_weight_kind(enum checkpoint_part part, const char *name, int ndim,
                                   const int64_t *shape, int fp8);

/* model_bind with the weights moved to where `dev` needs them, all parts. */
enum klein_status model_place(struct model *m, struct checkpoint *c, struct device *dev, enum dtype act,
                              int fp8, struct klein_error *err);

/* The big matrices of the transformer's blocks: nearly all of its products. What is quantised; embedders, modulation and the final layer
 * are small, and every error of theirs is in all that follows. */
int model_is_block_matrix(enum checkpoint_part part, const char *name, int ndim);

/* The same for its effect on the checkpoint alone (checkpoint_entries then lists what the model uses). */
enum klein_status model_visit(struct checkpoint *c, struct klein_error *err);

#endif
