/* klein plan: what a request costs, without weights and without doing it. */
#include "commands.h"
#include "shared_options.h"
#include "table.h"
#include "workload.h"

#include "../engine/context.h"

#include <jansson.h>

struct settings {
    struct workload_settings workload;
    const char *config, *model;
    int dtype, ops, json;
};

/* Everything the output needs. */
struct estimate {
    struct model_config config;
    struct plan plan;
    enum dtype act;
    double parameters;
};

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

static void stage_cells(struct table *t, const char *name, const struct plan_stage *stage)
{
    table_cell(t, "%s", name);
    table_cell(t, "%d", stage->ops);
    table_cell(t, "%.3f", stage->flops / 1e12);
    table_cell(t, "%.3f", stage->bytes / 1e9);
}

static int print_stages(const struct plan *plan)
{
    struct plan_stage all = {0};
    struct table t;
    table_begin(&t, "lrrr");
    table_cell(&t, "STAGE");
    table_cell(&t, "OPS");
    table_cell(&t, "TFLOP");
    table_cell(&t, "GB MOVED");
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) {
        const struct plan_stage *stage = &plan->stage[i];
        all.flops += stage->flops;
        all.bytes += stage->bytes;
        all.ops += stage->ops;
        if (stage->ops) stage_cells(&t, klein_stage_name((enum klein_stage)i), stage);
    }
    stage_cells(&t, "all", &all);
    return table_print(&t, stdout);
}

static int print_ops(const struct plan *plan)
{
    struct table t;
    table_begin(&t, "llrrrl");
    table_cell(&t, "STAGE");
    table_cell(&t, "OP");
    table_cell(&t, "CALLS");
    table_cell(&t, "GFLOP EACH");
    table_cell(&t, "MB EACH");
    table_cell(&t, "SHAPE");
    for (int i = 0; i < plan->n_ops; i++) {
        const struct plan_op *o = &plan->ops[i];
        table_cell(&t, "%s", klein_stage_name(o->stage));
        table_cell(&t, "%s", op_name(o->op));
        table_cell(&t, "%d", o->count);
        table_cell(&t, "%.3f", o->cost.flops / 1e9);
        table_cell(&t, "%.3f", o->cost.bytes / 1e6);
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
    int ok = print_stages(plan);
    if (ops) ok &= print_ops(plan);
    printf("\nworking memory (arena): %.2f GiB\nweights in BF16:        %.2f GiB (%s parameters, mapped from "
           "the files)\n",
           (double)plan->arena_bytes / 0x1p30, 2 * e->parameters / 0x1p30, quantity(e->parameters).text);
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

static enum klein_status print_json(const struct estimate *e, int ops, struct klein_error *err)
{
    const struct plan *plan = &e->plan;
    json_t *stages = json_object(), *list = json_array();
    int failed = !stages || !list;
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++)
        failed |= json_object_set_new(stages, klein_stage_name((enum klein_stage)i),
                                      json_pack("{s:i, s:f, s:f}", "ops", plan->stage[i].ops, "flop",
                                                plan->stage[i].flops, "bytes", plan->stage[i].bytes));
    for (int i = 0; ops && i < plan->n_ops; i++) {
        const struct plan_op *o = &plan->ops[i];
        failed |= json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:i, s:f, s:f}", "stage",
                                                        klein_stage_name(o->stage), "op", op_name(o->op),
                                                        "shape", o->cost.shape, "calls", o->count, "flop",
                                                        o->cost.flops, "bytes", o->cost.bytes));
    }
    json_t *o =
        json_pack("{s:s, s:i, s:i, s:i, s:s, s:I, s:I, s:o}", "model", e->config.name, "width", plan->width,
                  "height", plan->height, "steps", plan->steps, "dtype", dtype_name(e->act), "arena_bytes",
                  (json_int_t)plan->arena_bytes, "parameters", (json_int_t)e->parameters, "stages", stages);
    if (ops && o) failed |= json_object_set(o, "ops", list);
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(list);
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    const struct settings *s = settings;
    struct klein_image references[KLEIN_MAX_REFERENCES];
    struct klein_request request;
    struct estimate e = {.act = s->dtype == KLEIN_DTYPE_F32 ? DT_F32 : DT_BF16};
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
             "operation, and the working memory. Without --config and -m the model is klein-4b.",
    .examples = "klein plan --size 1024x1024\n"
                "klein plan --size 1024x1024 -i 1024x1024 --config klein-9b --ops\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
