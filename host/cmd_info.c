/* klein info: what a checkpoint is, and whether it is whole. */
#include "commands.h"
#include "message.h"
#include "shared_options.h"
#include "table.h"

#include "../engine/model.h"
#include "../weights/tokenizer.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct settings {
    const char *folder;
    struct model_settings model;
    int json;
};

/* What is used of one part of the model. */
struct part {
    int tensors;
    double parameters, bytes;
    double by_dtype[DT_COUNT]; /* parameters */
};

/* The statistics that stand in for a scaling factor: of each latent channel, over the training pictures. */
struct statistics {
    double mean_min, mean_max, var_min, var_max;
    int usual; /* like those of the published FLUX.2 VAE */
};

struct facts {
    const struct model_config *config;
    const char *license;
    struct part part[PART_COUNT];
    struct statistics vae;
    const char *tokenizer_dir; /* NULL: none */
    int vocab;
};

static void count_parts(const struct checkpoint *c, struct facts *f)
{
    struct checkpoint_entry e;
    for (int i = 0; checkpoint_entries(c, i, &e); i++) {
        struct part *p = &f->part[e.part];
        double n = 1;
        for (int d = 0; d < e.ndim; d++) n *= (double)e.shape[d];
        p->tensors++;
        p->parameters += n;
        p->bytes += n * (double)dtype_size(e.dtype);
        p->by_dtype[e.dtype] += n;
    }
}

/* A damaged or wrong VAE shows here first. The published one has variances of 2.91 to 3.47 and means within
 * 0.09, nearly equal in groups of four (the 2 x 2 pixels of one latent channel). source: model 5 */
static enum klein_status check_statistics(const struct vae *v, struct statistics *s, struct klein_error *err)
{
    *s = (struct statistics){INFINITY, -INFINITY, INFINITY, -INFINITY, 1};
    for (int i = 0; i < v->bn_mean.cols; i++) {
        double mean = (double)tensor_get(v->bn_mean, 0, i), var = (double)tensor_get(v->bn_var, 0, i);
        if (!isfinite(mean) || !(var > 0 && isfinite(var)))
            return fail(err, KLEIN_E_MODEL_CORRUPT,
                        "vae: statistics of latent channel %d: mean %g, variance %g; the file is damaged", i,
                        mean, var);
        s->mean_min = fmin(s->mean_min, mean);
        s->mean_max = fmax(s->mean_max, mean);
        s->var_min = fmin(s->var_min, var);
        s->var_max = fmax(s->var_max, var);
        if (fabs(mean - (double)tensor_get(v->bn_mean, 0, i / 4 * 4)) > 0.02) s->usual = 0;
    }
    if (s->mean_min < -0.1 || s->mean_max > 0.1 || s->var_min < 2.9 || s->var_max > 3.5) s->usual = 0;
    return KLEIN_OK;
}

static enum klein_status check_tokenizer(const struct checkpoint *c, struct facts *f, struct klein_error *err)
{
    struct tokenizer *t;
    f->tokenizer_dir = checkpoint_tokenizer_dir(c);
    if (!f->tokenizer_dir)
        return fail(err, KLEIN_E_MODEL_MISSING, "the model has no tokenizer folder; download it completely");
    TRY(tokenizer_open(f->tokenizer_dir, &t, err));
    f->vocab = tokenizer_vocab(t);
    tokenizer_close(t);
    if (f->vocab > f->config->text.vocab)
        return fail(err, KLEIN_E_MODEL_CORRUPT,
                    "%s: %d tokens, but the text encoder knows %d: they do not belong together",
                    f->tokenizer_dir, f->vocab, f->config->text.vocab);
    return KLEIN_OK;
}

static enum klein_status examine(struct checkpoint *c, struct facts *f, struct klein_error *err)
{
    struct model *m = malloc(sizeof *m);
    if (!m) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the model's tensor table");
    enum klein_status status = model_bind(m, c, err);
    f->config = checkpoint_config(c);
    f->license = checkpoint_license(c);
    count_parts(c, f);
    if (!status) status = check_statistics(&m->vae, &f->vae, err);
    if (!status) status = check_tokenizer(c, f, err);
    free(m);
    return status;
}

static void dtype_text(char *out, size_t size, const struct part *p)
{
    size_t used = 0;
    out[0] = 0;
    for (int t = 0; t < DT_COUNT && used < size; t++) {
        if (!(p->by_dtype[t] > 0)) continue;
        used +=
            (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", dtype_name((enum dtype)t));
        if (p->by_dtype[t] < p->parameters && used < size)
            used +=
                (size_t)snprintf(out + used, size - used, " %.3g %%", 100 * p->by_dtype[t] / p->parameters);
    }
}

static void list_outputs(char *out, size_t size, const struct text_config *t)
{
    size_t used = 0;
    for (int i = 0; i < t->n_outputs && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%d", i ? ", " : "", t->outputs[i]);
}

static void part_cells(struct table *t, const char *name, const struct part *p)
{
    char dtypes[64];
    dtype_text(dtypes, sizeof dtypes, p);
    table_cell(t, "%s", name);
    table_cell(t, "%d", p->tensors);
    table_cell(t, "%s", quantity(p->parameters).text);
    table_cell(t, "%s", quantity(p->bytes).text);
    table_cell(t, "%s", dtypes);
}

static struct part sum_parts(const struct facts *f)
{
    struct part sum = {0};
    for (int i = 0; i < PART_COUNT; i++) {
        sum.tensors += f->part[i].tensors;
        sum.parameters += f->part[i].parameters;
        sum.bytes += f->part[i].bytes;
        for (int t = 0; t < DT_COUNT; t++) sum.by_dtype[t] += f->part[i].by_dtype[t];
    }
    return sum;
}

static enum klein_status print_text(const struct facts *f, struct klein_error *err)
{
    const struct model_config *c = f->config;
    struct part sum = sum_parts(f);
    struct table t;
    char outputs[64];
    list_outputs(outputs, sizeof outputs, &c->text);
    printf("%s%s\n", c->name, c->toy ? ", a toy" : "");
    printf("  variant      %s: %d steps%s\n", c->distilled ? "distilled" : "base", c->default_steps,
           c->distilled ? ", no guidance" : ", with guidance");
    printf("  licence      %s\n", f->license);
    printf("  picture      %dx%d by default\n", c->default_width, c->default_height);
    printf("  transformer  width %d, %d heads of %d, %d double and %d single blocks\n", c->dit.width,
           c->dit.heads, c->dit.head_dim, c->dit.double_blocks, c->dit.single_blocks);
    printf("  text         %d tokens, width %d, %d of %d layers (hidden states after %s)\n", c->text_length,
           c->text.width, c->text.outputs[c->text.n_outputs - 1], c->text.layers, outputs);
    printf("  tokenizer    %d tokens, %s\n", f->vocab, f->tokenizer_dir);
    printf("  statistics   means %.3f to %.3f, variances %.3f to %.3f%s\n\n", f->vae.mean_min,
           f->vae.mean_max, f->vae.var_min, f->vae.var_max,
           f->vae.usual ? ", as the FLUX.2 VAE's" : ", not the FLUX.2 VAE's");
    table_begin(&t, "lrrrl");
    table_cell(&t, "USED OF");
    table_cell(&t, "TENSORS");
    table_cell(&t, "PARAMETERS");
    table_cell(&t, "BYTES");
    table_cell(&t, "TYPE");
    for (int i = 0; i < PART_COUNT; i++)
        part_cells(&t, checkpoint_part_name((enum checkpoint_part)i), &f->part[i]);
    part_cells(&t, "all", &sum);
    if (!table_print(&t, stdout)) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
    puts("\nEvery tensor is there, with its shape; nothing in the files is unknown.");
    return KLEIN_OK;
}

static enum klein_status print_json(const struct facts *f, struct klein_error *err)
{
    const struct model_config *c = f->config;
    struct part sum = sum_parts(f);
    json_t *parts = json_object();
    int failed = !parts;
    for (int i = 0; i < PART_COUNT; i++) {
        const struct part *p = &f->part[i];
        json_t *dtypes = json_object();
        for (int t = 0; t < DT_COUNT; t++)
            if (p->by_dtype[t] > 0)
                failed |= json_object_set_new(dtypes, dtype_name((enum dtype)t),
                                              json_integer((json_int_t)p->by_dtype[t]));
        failed |= json_object_set_new(parts, checkpoint_part_name((enum checkpoint_part)i),
                                      json_pack("{s:i, s:I, s:I, s:o}", "tensors", p->tensors, "parameters",
                                                (json_int_t)p->parameters, "bytes", (json_int_t)p->bytes,
                                                "dtypes", dtypes));
    }
    json_t *o = json_pack(
        "{s:s, s:b, s:b, s:s, s:i, s:f, s:i, s:i, s:i, s:i, s:I, s:I, s:o, s:s, s:i, s:{s:f, s:f, s:f, s:f, "
        "s:b}}",
        "name", c->name, "distilled", c->distilled, "toy", c->toy, "license", f->license, "default_steps",
        c->default_steps, "default_guidance", (double)c->default_guidance, "default_width", c->default_width,
        "default_height", c->default_height, "text_length", c->text_length, "text_width", c->dit.text_width,
        "parameters", (json_int_t)sum.parameters, "bytes", (json_int_t)sum.bytes, "parts", parts, "tokenizer",
        f->tokenizer_dir, "tokens", f->vocab, "vae_statistics", "mean_min", f->vae.mean_min, "mean_max",
        f->vae.mean_max, "var_min", f->vae.var_min, "var_max", f->vae.var_max, "usual", f->vae.usual);
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    const struct settings *s = settings;
    struct model_settings model = s->model;
    struct klein_open_options paths;
    struct checkpoint *c = NULL;
    struct facts facts = {0};
    int demo;
    if (s->folder && model.model)
        return fail(err, KLEIN_E_USAGE, "two models: %s and -m %s; give one", s->folder, model.model);
    if (s->folder) model.model = s->folder;
    TRY(model_choose(&model, &paths, &demo, err));
    enum klein_status status = checkpoint_open(&(struct checkpoint_paths){.model = paths.model,
                                                                          .transformer = paths.transformer,
                                                                          .text_encoder = paths.text_encoder,
                                                                          .vae = paths.vae,
                                                                          .variant = (int)paths.variant},
                                               &c, err);
    if (!status) status = examine(c, &facts, err);
    if (!status) status = s->json ? print_json(&facts, err) : print_text(&facts, err);
    if (!status && !facts.vae.usual && !facts.config->toy && strcmp(facts.license, "unknown"))
        message(MESSAGE_WARNING,
                "the VAE's statistics are not those of the FLUX.2 VAE; colours may come out wrong");
    checkpoint_close(c);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_group groups[] = {
    {"Model", model_options, AT(model)},
    {"Output", json_options, AT(json)},
    {0},
};

const struct cli_command command_info = {
    .name = "info",
    .summary = "say what a model is and check it",
    .about = "DIR is a model folder or a transformer's single file, as -m; without it, the model that klein "
             "generate would take. "
             "Files are mapped and every tensor is looked up, but the weights are not read.",
    .examples = "klein info FLUX.2-klein-4B\n"
                "klein info --json FLUX.2-klein-4B\n",
    .operand = {.argument = "DIR", .kind = CLI_TEXT, .offset = AT(folder)},
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
