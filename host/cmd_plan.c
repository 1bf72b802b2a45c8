/* klein plan: what a request costs, without weights and without doing it. */
#include "commands.h"
#include "shared_options.h"
#include "table.h"
#include "workload.h"

#include "../engine/context.h"

#include <jansson.h>

struct settings {
    struct workload_settings workload;
    const char *config, *model, *gpu;
    int dtype, precision, ops, json;
};

/* Everything the output needs. */
struct estimate {
    struct model_config config;
    struct plan plan;
    enum dtype act;
    double parameters;
    const struct gpu_spec *gpu; /* to predict times for; NULL: none */
    int e4m3;
};

static double op_seconds(const struct estimate *e, const struct plan_op *o)
{
    return plan_op_seconds(o, e->gpu, e->e4m3);
}

/* Predicted seconds of a stage; of all with KLEIN_STAGE_COUNT. */
static double stage_seconds(const struct estimate *e, enum klein_stage stage)
{
    double sum = 0;
    for (int i = 0; i < e->plan.n_ops; i++) {
        const struct plan_op *o = &e->plan.ops[i];
        if (stage == o->stage || stage == KLEIN_STAGE_COUNT) sum += o->count * op_seconds(e, o);
    }
    return sum;
}

static enum klein_status count_parameters(const struct model_config *config, double *out,
                                          struct klein_error *err)
{
    struct checkpoint *c;
    struct checkpoint_entry e;
    *out = 0;
    TRY(checkpoint_shapes(config, &c, err));
    enum klein_status status = model_visit(c, err);
    for (int i = 0; !status && checkpoint_entries(c, i, &e); i++) {
        double n = 1;
        for (int d = 0; d < e.ndim; d++) n *= (double)e.shape[d];
        *out += n;
    }
    checkpoint_close(c);
    return status;
}

static enum klein_status choose_config(const struct settings *s, struct model_config *out,
                                       struct klein_error *err)
{
    if (s->model && s->config)
        return fail(err, KLEIN_E_USAGE, "--config and --model exclude each other; give one");
    if (!s->model) return config_named(s->config ? s->config : "klein-4b", out, err);
    struct checkpoint *c;
    TRY(checkpoint_open(&(struct checkpoint_paths){.model = s->model}, &c, err));
    *out = *checkpoint_config(c);
    checkpoint_close(c);
    return KLEIN_OK;
}

static void stage_cells(struct table *t, const struct estimate *e, enum klein_stage which,
                        const struct plan_stage *stage)
{
    table_cell(t, "%s", which == KLEIN_STAGE_COUNT ? "all" : klein_stage_name(which));
    table_cell(t, "%d", stage->ops);
    table_cell(t, "%.3f", stage->flops / 1e12);
    table_cell(t, "%.3f", stage->bytes / 1e9);
    if (e->gpu) table_cell(t, "%.2f", 1e3 * stage_seconds(e, which));
}

static int print_stages(const struct estimate *e)
{
    const struct plan *plan = &e->plan;
    struct plan_stage all = {0};
    struct table t;
    table_begin(&t, e->gpu ? "lrrrr" : "lrrr");
    table_cell(&t, "STAGE");
    table_cell(&t, "OPS");
    table_cell(&t, "TFLOP");
    table_cell(&t, "GB MOVED");
    if (e->gpu) table_cell(&t, "PREDICTED MS");
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) {
        const struct plan_stage *stage = &plan->stage[i];
        all.flops += stage->flops;
        all.bytes += stage->bytes;
        all.ops += stage->ops;
        if (stage->ops) stage_cells(&t, e, (enum klein_stage)i, stage);
    }
    stage_cells(&t, e, KLEIN_STAGE_COUNT, &all);
    return table_print(&t, stdout);
}

static int print_ops(const struct estimate *e)
{
    const struct plan *plan = &e->plan;
    struct table t;
    table_begin(&t, e->gpu ? "llrrrrl" : "llrrrl");
    table_cell(&t, "STAGE");
    table_cell(&t, "OP");
    table_cell(&t, "CALLS");
    table_cell(&t, "GFLOP EACH");
    table_cell(&t, "MB EACH");
    if (e->gpu) table_cell(&t, "PREDICTED US EACH");
    table_cell(&t, "SHAPE");
    for (int i = 0; i < plan->n_ops; i++) {
        const struct plan_op *o = &plan->ops[i];
        table_cell(&t, "%s", klein_stage_name(o->stage));
        table_cell(&t, "%s", op_name(o->op));
        table_cell(&t, "%d", o->count);
        table_cell(&t, "%.3f", o->cost.flops / 1e9);
        table_cell(&t, "%.3f", o->cost.bytes / 1e6);
        if (e->gpu) table_cell(&t, "%.1f", 1e6 * op_seconds(e, o));
        table_cell(&t, "%s", o->cost.shape);
    }
    putchar('\n');
    return table_print(&t, stdout);
}

static enum klein_status print_text(const struct estimate *e, int ops, struct klein_error *err)
{
    const struct plan *plan = &e->plan;
    printf("%s, %dx%d, %d step%s, activations in %s\n\n", e->config.name, plan->width, plan->height,
           plan->steps, plan->steps == 1 ? "" : "s", dtype_name(e->act));
    int ok = print_stages(e);
    if (ops) ok &= print_ops(e);
    if (e->gpu) {
        printf("\nPredicted, not measured, for one %s in %s: %.1f ms; a step %.1f ms.\n", e->gpu->title,
               e->e4m3 ? "FP8" : "BF16", 1e3 * stage_seconds(e, KLEIN_STAGE_COUNT),
               1e3 * stage_seconds(e, KLEIN_STAGE_DENOISE) / (plan->steps * plan->images));
        if (e->gpu->lacks)
            printf("klein has no kernels for %s yet; with those that it has, more.\n", e->gpu->lacks);
    }
    printf("\nworking memory (arena): %.2f GiB\nweights in BF16:        %.2f GiB (%s parameters, mapped from "
           "the files)\n",
           (double)plan->arena_bytes / 0x1p30, 2 * e->parameters / 0x1p30, quantity(e->parameters).text);
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

/* Adds a member for predicted seconds if there is a GPU to predict for; takes the object. */
static json_t *with_seconds(json_t *o, const struct estimate *e, double seconds)
{
    if (!o || !e->gpu || !json_object_set_new(o, "predicted_seconds", json_real(seconds))) return o;
    json_decref(o);
    return NULL;
}

static enum klein_status print_json(const struct estimate *e, int ops, struct klein_error *err)
{
    const struct plan *plan = &e->plan;
    json_t *stages = json_object(), *list = json_array();
    int failed = !stages || !list;
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++)
        failed |=
            json_object_set_new(stages, klein_stage_name((enum klein_stage)i),
                                with_seconds(json_pack("{s:i, s:f, s:f}", "ops", plan->stage[i].ops, "flop",
                                                       plan->stage[i].flops, "bytes", plan->stage[i].bytes),
                                             e, e->gpu ? stage_seconds(e, (enum klein_stage)i) : 0));
    for (int i = 0; ops && i < plan->n_ops; i++) {
        const struct plan_op *o = &plan->ops[i];
        json_t *op = json_pack("{s:s, s:s, s:s, s:i, s:f, s:f}", "stage", klein_stage_name(o->stage), "op",
                               op_name(o->op), "shape", o->cost.shape, "calls", o->count, "flop",
                               o->cost.flops, "bytes", o->cost.bytes);
        failed |= json_array_append_new(list, with_seconds(op, e, e->gpu ? op_seconds(e, o) : 0));
    }
    json_t *o =
        json_pack("{s:s, s:i, s:i, s:i, s:s, s:I, s:I, s:o}", "model", e->config.name, "width", plan->width,
                  "height", plan->height, "steps", plan->steps, "dtype", dtype_name(e->act), "arena_bytes",
                  (json_int_t)plan->arena_bytes, "parameters", (json_int_t)e->parameters, "stages", stages);
    if (ops && o) failed |= json_object_set(o, "ops", list);
    if (e->gpu && o)
        failed |= json_object_set_new(o, "predicted",
                                      json_pack("{s:s, s:s, s:b, s:f}", "gpu", e->gpu->title, "precision",
                                                e->e4m3 ? "fp8" : "bf16", "measured", 0, "seconds",
                                                stage_seconds(e, KLEIN_STAGE_COUNT)));
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(list);
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status choose_gpu(const struct settings *s, struct estimate *e, struct klein_error *err)
{
    e->e4m3 = s->precision == 1;
    if (!s->gpu)
        return e->e4m3 ? fail(err, KLEIN_E_USAGE, "--precision is of a prediction: give --gpu too")
                       : KLEIN_OK;
    if (e->act != DT_BF16) return fail(err, KLEIN_E_USAGE, "predictions are for --dtype bf16 only");
    TRY(gpu_spec_named(s->gpu, &e->gpu, err));
    if (e->e4m3 && !e->gpu->e4m3)
        return fail(err, KLEIN_E_USAGE, "%s does not multiply FP8; --precision bf16", e->gpu->title);
    return KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    const struct settings *s = settings;
    struct klein_image references[KLEIN_MAX_REFERENCES];
    struct klein_request request;
    struct estimate e = {.act = s->dtype == KLEIN_DTYPE_F32 ? DT_F32 : DT_BF16};
    TRY(choose_gpu(s, &e, err));
    TRY(workload_request(&s->workload, references, &request, err));
    TRY(choose_config(s, &e.config, err));
    TRY(count_parameters(&e.config, &e.parameters, err));
    TRY(plan_make(&e.config, e.act, &request, &e.plan, err));
    enum klein_status status = s->json ? print_json(&e, s->ops, err) : print_text(&e, s->ops, err);
    plan_free(&e.plan);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option plan_options[] = {
    {'m', "model", "DIR", CLI_TEXT, AT(model), .help = "take the sizes from this model's files"},
    {0, "ops", NULL, CLI_FLAG, AT(ops), .help = "also every kind of operation with its shape"},
    {0, "gpu", "NAME", CLI_TEXT, AT(gpu),
     .help = "also predict times, by arithmetic, for a100, l4, l40s, 4090, h100, h200, b200 or 5090"},
    {0, "precision", "TYPE", CLI_CHOICE, AT(precision),
     .help = "of the denoiser's products in the prediction", .standard = "bf16", .choices = "bf16|fp8"},
    {0},
};

static const struct cli_group groups[] = {
    {"Request", workload_options, AT(workload)},
    {"Plan", config_options, AT(config)},
    {NULL, plan_options, 0},
    {NULL, dtype_options, AT(dtype)},
    {NULL, json_options, AT(json)},
    {0},
};

const struct cli_command command_plan = {
    .name = "plan",
    .summary = "say what a request costs, without weights and without doing it",
    .about = "Runs the model on a device that computes nothing and counts: floating-point operations, bytes "
             "read and written by each "
             "operation, and the working memory. Without --config and -m the model is klein-4b.\n\n"
             "With --gpu also times: predicted from a model of the kernels' cycles, not measured.",
    .examples = "klein plan --size 1024x1024\n"
                "klein plan --size 1024x1024 -i 1024x1024 --config klein-9b --ops\n"
                "klein plan --size 1024x1024 --gpu h100 --precision fp8\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
