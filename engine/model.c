#include "model.h"

#include <stdlib.h>

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

enum klein_status model_visit(struct checkpoint *c, struct klein_error *err)
{
    struct model *m = malloc(sizeof *m);
    if (!m) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the model's tensor table");
    enum klein_status status = model_bind(m, c, err);
    free(m);
    return status;
}
