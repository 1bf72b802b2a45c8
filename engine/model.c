#include "model.h"

#include <stdlib.h>
#include <string.h>

enum klein_status model_bind(struct model *m, struct checkpoint *c, struct klein_error *err)
{
    *m = (struct model){.cfg = checkpoint_config(c), .checkpoint = c};
    TRY(dit_bind(&m->dit, c, err));
    TRY(qwen3_bind(&m->text, c, err));
    TRY(vae_bind(&m->vae, c, err));
    for (int part = 0; part < PART_COUNT; part++)
        TRY(checkpoint_all_used(c, (enum checkpoint_part)part, err));
    return KLEIN_OK;
}

int model_is_block_matrix(enum checkpoint_part part, const char *name, int ndim)
{
    static const char *const blocks[] = {"transformer_blocks.", "single_transformer_blocks."};
    return part == PART_TRANSFORMER && ndim == 2 &&
           (!strncmp(name, blocks[0], strlen(blocks[0])) || !strncmp(name, blocks[1], strlen(blocks[1])));
}

struct placing {
    struct device *dev;
    enum dtype act;
    int fp8;
};

enum weight_kind model_weight_kind(enum checkpoint_part part, const char *name, int ndim,
                                   const int64_t *shape, int fp8)
{
    return ndim == 1                                        ? WEIGHT_VECTOR
           : fp8 && model_is_block_matrix(part, name, ndim) ? WEIGHT_MATRIX_E4M3
           : ndim == 2                                      ? WEIGHT_MATRIX
           : shape[3] == 1                                  ? WEIGHT_CONV_1X1
                                                            : WEIGHT_CONV_3X3;
}

static enum klein_status place(void *user, enum checkpoint_part part, const char *name, int ndim,
                               const int64_t *shape, struct tensor *t, struct klein_error *err)
{
    const struct placing *p = user;
    return p->dev->place(p->dev, model_weight_kind(part, name, ndim, shape, p->fp8), p->act, t, err);
}

static enum klein_status bind_part(struct model *m, enum checkpoint_part part, struct klein_error *err)
{
    return part == PART_TRANSFORMER ? dit_bind(&m->dit, m->checkpoint, err)
           : part == PART_TEXT      ? qwen3_bind(&m->text, m->checkpoint, err)
                                    : vae_bind(&m->vae, m->checkpoint, err);
}

enum klein_status model_place_part(struct model *m, enum checkpoint_part part, struct device *dev,
                                   enum dtype act, int fp8, struct klein_error *err)
{
    if (fp8 && (!dev->place || act != DT_BF16))
        return fail(err, KLEIN_E_UNSUPPORTED, "device \"%s\" does not multiply FP8%s: --precision bf16",
                    dev->name, dev->place ? " with activations in F32" : "");
    if (!dev->place) return KLEIN_OK;
    struct placing placing = {dev, act, fp8};
    dev->group = (int)part;
    checkpoint_ask_again(m->checkpoint, part);
    checkpoint_place(m->checkpoint, place, &placing);
    enum klein_status status = bind_part(m, part, err);
    checkpoint_place(m->checkpoint, NULL, NULL);
    checkpoint_drop_pages(m->checkpoint, part);
    /* Kernels read weights before they wait for the kernels before them. */
    return status == KLEIN_OK && dev->wait ? dev->wait(dev, err) : status;
}

enum klein_status model_place(struct model *m, struct checkpoint *c, struct device *dev, enum dtype act,
                              int fp8, struct klein_error *err)
{
    TRY(model_bind(m, c, err));
    for (int part = 0; part < PART_COUNT; part++)
        TRY(model_place_part(m, (enum checkpoint_part)part, dev, act, fp8, err));
    return KLEIN_OK;
}

enum klein_status model_visit(struct checkpoint *c, struct klein_error *err)
{
    struct model *m = malloc(sizeof *m);
    if (!m) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the model's tensor table");
    enum klein_status status = model_bind(m, c, err);
    free(m);
    return status;
}
