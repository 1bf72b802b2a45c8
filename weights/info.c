#include "info.h"
#include "layout.h"
#include "parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static uint64_t parameters_of(int ndim, const int64_t *shape)
{
    uint64_t n = 1;
    for (int d = 0; d < ndim; d++) n *= (uint64_t)shape[d];
    return n;
}

static void add_source(struct part_info *out, enum checkpoint_part part, const struct source *s)
{
    uint64_t parameters = parameters_of(s->tensor->ndim, s->tensor->shape) / (uint64_t)s->pieces;
    uint64_t bytes = s->tensor->bytes / (uint64_t)s->pieces;
    struct layout layout;
    if (strcmp(s->tensor->name, "norm_out.linear.weight") && layout_translate(part, s->tensor->name, &layout))
        out->naming = "BFL";
    out->all.tensors++;
    out->all.parameters += parameters;
    out->all.bytes += bytes;
    if (!s->used) return;
    out->used.tensors++;
    out->used.parameters += parameters;
    out->used.bytes += bytes;
    out->parameters_by_dtype[s->tensor->dtype] += parameters;
}

void checkpoint_part_info(const struct checkpoint *c, enum checkpoint_part part, struct part_info *out)
{
    const struct part *p = &c->part[part];
    *out = (struct part_info){.path = p->path, .naming = p->files ? "diffusers" : NULL, .files = p->files};
    for (int i = 0; i < p->sources; i++) add_source(out, part, &p->source[i]);
    for (int i = 0; !p->files && i < c->n_asked; i++) {
        const struct checkpoint_entry *e = &c->asked[i].entry;
        if (e->part != part) continue;
        uint64_t parameters = parameters_of(e->ndim, e->shape);
        out->used.tensors++;
        out->used.parameters += parameters;
        out->used.bytes += parameters * dtype_size(e->dtype);
        out->parameters_by_dtype[e->dtype] += parameters;
    }
    if (!p->files)
        out->all.tensors = out->used.tensors, out->all.parameters = out->used.parameters,
        out->all.bytes = out->used.bytes;
}

int checkpoint_part_tensor(const struct checkpoint *c, enum checkpoint_part part, int i,
                           struct tensor_info *out)
{
    const struct part *p = &c->part[part];
    const struct text_config *t = &c->config.text;
    if (i < 0 || i >= p->sources) return 0;
    const struct source *s = &p->source[i];
    *out = (struct tensor_info){.name = s->name,
                                .file_name = s->tensor->name,
                                .file = st_path(s->file),
                                .dtype = s->tensor->dtype_text,
                                .ndim = s->tensor->ndim,
                                .piece = s->piece,
                                .pieces = s->pieces,
                                .state = s->used ? TENSOR_USED
                                         : layout_ignored(part, s->name, t->outputs[t->n_outputs - 1])
                                             ? TENSOR_IGNORED
                                             : TENSOR_UNKNOWN};
    memcpy(out->shape, s->tensor->shape, sizeof out->shape);
    return 1;
}

/* The data of a VAE vector that the model has asked for; NULL if there is none. */
static const void *vae_vector(const struct checkpoint *c, const char *name, enum dtype *dtype, int *n)
{
    for (int i = 0; i < c->n_asked; i++) {
        const struct asked *a = &c->asked[i];
        if (a->entry.part != PART_VAE || strcmp(a->entry.name, name)) continue;
        const struct source *s = part_find(&c->part[PART_VAE], name);
        *dtype = a->entry.dtype;
        *n = (int)a->entry.shape[0];
        return s ? s->tensor->data : a->memory;
    }
    return NULL;
}

int checkpoint_vae_sanity(const struct checkpoint *c, char *text, size_t n)
{
    enum dtype dv, dm;
    int nv, nm;
    const void *var = vae_vector(c, "bn.running_var", &dv, &nv),
               *mean = vae_vector(c, "bn.running_mean", &dm, &nm);
    if (!var || !mean) {
        snprintf(text, n, "no VAE statistics to look at");
        return 0;
    }
    double low = INFINITY, high = -INFINITY, sum = 0, squares = 0, within = 0;
    for (int i = 0; i < nv; i++) {
        double v = f32_load(var, dv, (size_t)i);
        if (!(v >= low)) low = v;
        if (!(v <= high)) high = v;
    }
    for (int i = 0; i + 4 <= nm; i += 4) {
        double group = 0;
        for (int j = 0; j < 4; j++) group += f32_load(mean, dm, (size_t)(i + j)) / 4;
        for (int j = 0; j < 4; j++) {
            double m = f32_load(mean, dm, (size_t)(i + j));
            within += (m - group) * (m - group);
            sum += m;
            squares += m * m;
        }
    }
    double total = squares - sum * sum / nm, part = within / total;
    int var_ok = low >= 2.9 && high <= 3.5, mean_ok = part <= 0.1;
    snprintf(text, n, "variances %.3f to %.3f (%s 2.9 to 3.5), means %s in groups of four: %s", low, high,
             var_ok ? "within" : "NOT within", mean_ok ? "near-equal" : "NOT near-equal",
             var_ok && mean_ok
                 ? "as in the FLUX.2 VAE"
                 : "not what the FLUX.2 VAE has; pictures may be wrong if it should be that one");
    return var_ok && mean_ok;
}
