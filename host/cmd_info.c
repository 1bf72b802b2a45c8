/* klein info: what a checkpoint is, and whether it is whole. */
#include "commands.h"
#include "shared_options.h"
#include "table.h"

#include "../engine/model.h"
#include "../weights/info.h"
#include "../weights/tokenizer.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct settings {
    const char *folder;
    struct model_settings model;
    int json, tensors;
};

struct facts {
    const struct checkpoint *checkpoint;
    const struct model_config *config;
    struct part_info part[PART_COUNT];
    const char *tokenizer_dir;
    int vocab;
    int usual_vae; /* statistics like those of the published FLUX.2 VAE */
    char vae[256];
};

/* The statistics that stand in for a scaling factor: a damaged file shows here first. */
static enum klein_status check_statistics(const struct vae *v, struct klein_error *err)
{
    for (int i = 0; i < v->bn_mean.cols; i++) {
        double mean = (double)tensor_get(v->bn_mean, 0, i), var = (double)tensor_get(v->bn_var, 0, i);
        if (!isfinite(mean) || !(var > 0 && isfinite(var)))
            return fail(err, KLEIN_E_MODEL_CORRUPT,
                        "vae: latent channel %d has mean %g and variance %g; the file is damaged", i, mean,
                        var);
    }
    return KLEIN_OK;
}

static enum klein_status check_tokenizer(const struct checkpoint *c, struct facts *f, struct klein_error *err)
{
    struct tokenizer *t;
    f->tokenizer_dir = checkpoint_tokenizer_dir(c);
    if (!f->tokenizer_dir)
        return fail(err, KLEIN_E_MODEL_MISSING,
                    "the model has no tokenizer: tokenizer/tokenizer.json, or vocab.json and merges.txt, is "
                    "missing; download it completely");
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
    f->checkpoint = c;
    f->config = checkpoint_config(c);
    for (int i = 0; i < PART_COUNT; i++) checkpoint_part_info(c, (enum checkpoint_part)i, &f->part[i]);
    if (!status) status = check_statistics(&m->vae, err);
    if (!status) status = check_tokenizer(c, f, err);
    if (!status) f->usual_vae = checkpoint_vae_sanity(c, f->vae, sizeof f->vae);
    free(m);
    return status;
}

/* "BF16", or "BF16 97.5 %, F32 2.5 %" of the parameters. */
static void dtype_text(char *out, size_t size, const struct part_info *p)
{
    size_t used = 0;
    out[0] = 0;
    for (int t = 0; t < DT_COUNT && used < size; t++) {
        uint64_t n = p->parameters_by_dtype[t];
        if (!n) continue;
        used +=
            (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", dtype_name((enum dtype)t));
        if (n < p->used.parameters && used < size)
            used += (size_t)snprintf(out + used, size - used, " %.3g %%",
                                     100 * (double)n / (double)p->used.parameters);
    }
}

static void list_outputs(char *out, size_t size, const struct text_config *t)
{
    size_t used = 0;
    for (int i = 0; i < t->n_outputs && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%d", i ? ", " : "", t->outputs[i]);
}

static int print_parts(const struct facts *f)
{
    struct table t;
    static const char *const heading[] = {"PART", "TENSORS",  "PARAMETERS", "BYTES",
                                          "TYPE", "NOT USED", "NAMES",      "FROM"};
    table_begin(&t, "lrrrlrll");
    for (size_t i = 0; i < sizeof heading / sizeof heading[0]; i++) table_cell(&t, "%s", heading[i]);
    for (int i = 0; i < PART_COUNT; i++) {
        const struct part_info *p = &f->part[i];
        char dtypes[96];
        dtype_text(dtypes, sizeof dtypes, p);
        table_cell(&t, "%s", checkpoint_part_name((enum checkpoint_part)i));
        table_cell(&t, "%" PRIu64, p->used.tensors);
        table_cell(&t, "%s", quantity((double)p->used.parameters).text);
        table_cell(&t, "%s", quantity((double)p->used.bytes).text);
        table_cell(&t, "%s", dtypes);
        table_cell(&t, "%" PRIu64, p->all.tensors - p->used.tensors);
        table_cell(&t, "%s", p->naming);
        table_cell(&t, "%s", p->path);
    }
    return table_print(&t, stdout);
}

static int print_tensors(const struct facts *f)
{
    static const char *const states[] = {
        [TENSOR_USED] = "used", [TENSOR_IGNORED] = "not used", [TENSOR_UNKNOWN] = "unknown"};
    static const char *const heading[] = {"PART", "STATE", "TYPE", "SHAPE", "NAME"};
    struct table t;
    struct tensor_info info;
    table_begin(&t, "lllll");
    for (size_t i = 0; i < sizeof heading / sizeof heading[0]; i++) table_cell(&t, "%s", heading[i]);
    for (int part = 0; part < PART_COUNT; part++)
        for (int i = 0; checkpoint_part_tensor(f->checkpoint, (enum checkpoint_part)part, i, &info); i++) {
            char shape[96] = "[]";
            size_t used = 0;
            for (int d = 0; d < info.ndim && used < sizeof shape; d++)
                used += (size_t)snprintf(shape + used, sizeof shape - used, "%c%lld%s", d ? ' ' : '[',
                                         (long long)info.shape[d], d == info.ndim - 1 ? "]" : ",");
            table_cell(&t, "%s", checkpoint_part_name((enum checkpoint_part)part));
            table_cell(&t, "%s", states[info.state]);
            table_cell(&t, "%s", info.dtype);
            table_cell(&t, "%s", shape);
            if (strcmp(info.name, info.file_name))
                table_cell(&t, "%s (%s, piece %d of %d)", info.name, info.file_name, info.piece + 1,
                           info.pieces);
            else
                table_cell(&t, "%s", info.name);
        }
    putchar('\n');
    return table_print(&t, stdout);
}

static enum klein_status print_text(const struct facts *f, int tensors, struct klein_error *err)
{
    const struct model_config *c = f->config;
    char outputs[64];
    double parameters = 0, bytes = 0;
    for (int i = 0; i < PART_COUNT; i++) {
        parameters += (double)f->part[i].used.parameters;
        bytes += (double)f->part[i].used.bytes;
    }
    list_outputs(outputs, sizeof outputs, &c->text);
    printf("%s%s\n", c->name, c->toy ? ", a toy" : "");
    printf("  variant      %s: %d steps%s\n", c->distilled ? "distilled" : "base", c->default_steps,
           !c->distilled && c->default_guidance > 1 ? ", with guidance" : ", no guidance");
    printf("  licence      %s\n", checkpoint_license(f->checkpoint));
    printf("  picture      %dx%d by default\n", c->default_width, c->default_height);
    printf("  transformer  width %d, %d heads of %d, %d double and %d single blocks\n", c->dit.width,
           c->dit.heads, c->dit.head_dim, c->dit.double_blocks, c->dit.single_blocks);
    printf("  text         %d tokens, width %d, %d of %d layers (hidden states after %s)\n", c->text_length,
           c->text.width, c->text.outputs[c->text.n_outputs - 1], c->text.layers, outputs);
    printf("  tokenizer    %d tokens, %s\n", f->vocab, f->tokenizer_dir);
    printf("  VAE          %s\n", f->vae);
    printf("  in all       %s parameters, %sB\n\n", quantity(parameters).text, quantity(bytes).text);
    int ok = print_parts(f);
    if (tensors) ok &= print_tensors(f);
    if (!ok) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
    puts("\nWhole: every tensor is there with its shape, and nothing unknown.");
    return KLEIN_OK;
}

static json_t *part_json(const struct part_info *p)
{
    json_t *dtypes = json_object();
    for (int t = 0; t < DT_COUNT; t++)
        if (p->parameters_by_dtype[t])
            json_object_set_new(dtypes, dtype_name((enum dtype)t),
                                json_integer((json_int_t)p->parameters_by_dtype[t]));
    return json_pack("{s:s?, s:s?, s:i, s:I, s:I, s:I, s:I, s:o}", "path", p->path, "names", p->naming,
                     "files", p->files, "tensors", (json_int_t)p->used.tensors, "parameters",
                     (json_int_t)p->used.parameters, "bytes", (json_int_t)p->used.bytes, "not_used",
                     (json_int_t)(p->all.tensors - p->used.tensors), "parameters_by_dtype", dtypes);
}

static enum klein_status print_json(const struct facts *f, struct klein_error *err)
{
    const struct model_config *c = f->config;
    json_t *parts = json_object();
    int failed = !parts;
    for (int i = 0; i < PART_COUNT; i++)
        failed |=
            json_object_set_new(parts, checkpoint_part_name((enum checkpoint_part)i), part_json(&f->part[i]));
    json_t *o = json_pack("{s:s, s:b, s:b, s:s, s:i, s:f, s:i, s:i, s:i, s:i, s:o, s:s, s:i, s:s, s:b}",
                          "name", c->name, "distilled", c->distilled, "toy", c->toy, "license",
                          checkpoint_license(f->checkpoint), "default_steps", c->default_steps,
                          "default_guidance", (double)c->default_guidance, "default_width", c->default_width,
                          "default_height", c->default_height, "text_length", c->text_length, "text_width",
                          c->dit.text_width, "parts", parts, "tokenizer", f->tokenizer_dir, "tokens",
                          f->vocab, "vae", f->vae, "vae_usual", f->usual_vae);
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
    if (!status) status = s->json ? print_json(&facts, err) : print_text(&facts, s->tensors, err);
    checkpoint_close(c);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option options[] = {
    {0, "tensors", NULL, CLI_FLAG, AT(tensors), .help = "also list every tensor"},
    {0},
};

static const struct cli_group groups[] = {
    {"Model", model_options, AT(model)},
    {"Output", options, 0},
    {NULL, json_options, AT(json)},
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
