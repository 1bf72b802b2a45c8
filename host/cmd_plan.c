/* klein plan: what a request costs, without weights and without doing it. */
#include "commands.h"
#include "shared_options.h"
#include "table.h"
#include "workload.h"

#include "../engine/memory.h"
#include "../kernels/cuda/cuda.h"

#include <jansson.h>

struct settings {
    struct workload_settings workload;
    const char *config, *model, *gpu;
    int dtype, precision, gpus, parallel, ops, json;
};

/* Everything the output needs. */
struct estimate {
    struct model_config config;
    struct plan plan; /* of the first of the GPUs */
    enum dtype act;
    double parameters;
    struct memory_need memory;  /* on a GPU; of each of them */
    const struct gpu_spec *gpu; /* to predict times for; NULL: none */
    int gpus, cfg;              /* cfg: they share the passes of guidance, else the tokens */
    int fp8;
    double alone; /* predicted seconds of a step on one of several GPUs */
};

static double op_seconds(const struct estimate *e, const struct plan_op *o)
{
    return plan_op_seconds(o, e->gpu, e->fp8);
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

static double step_seconds(const struct estimate *e)
{
    return stage_seconds(e, KLEIN_STAGE_DENOISE) / (e->plan.steps * e->plan.images);
}

/* The weights: how many, and what they take of a GPU's memory. */
static enum klein_status weigh(struct estimate *e, struct klein_error *err)
{
    struct checkpoint *c;
    struct checkpoint_entry entry;
    TRY(checkpoint_shapes(&e->config, &c, err));
    enum klein_status status = model_visit(c, err);
    for (int i = 0; !status && checkpoint_entries(c, i, &entry); i++) {
        double n = 1;
        for (int d = 0; d < entry.ndim; d++) n *= (double)entry.shape[d];
        e->parameters += n;
    }
    if (status == KLEIN_OK) memory_of_weights(c, e->act, e->fp8, &e->memory);
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

static double gib(size_t bytes)
{
    return (double)bytes / 0x1p30;
}

/* "An H100 SXM has 79.65 GiB: all fits." What other programs and the driver have is not known here. */
static void print_fit(const struct estimate *e)
{
    const size_t card = (size_t)e->gpu->card_mib << 20, whole = memory_whole(&e->memory) + gpu_scratch_bytes,
                 turns = memory_in_turns(&e->memory) + gpu_scratch_bytes;
    printf("One %s has %.2f GiB, less what the driver and others take: ", e->gpu->title, gib(card));
    if (whole <= card)
        printf("all fits.\n");
    else if (turns <= card)
        printf("fits where the text encoder is freed after use.\n");
    else
        printf("this does not fit.%s\n", e->fp8 || !e->gpu->e4m3 ? "" : " --precision fp8 takes less.");
}

static int print_memory(const struct estimate *e)
{
    static const char *const parts[PART_COUNT] = {
        [PART_TRANSFORMER] = "transformer", [PART_TEXT] = "text encoder", [PART_VAE] = "VAE"};
    const struct {
        const char *what;
        size_t bytes;
    } sums[] = {{"working memory (arena)", e->plan.arena_bytes},
                {"scratch", gpu_scratch_bytes},
                {"all", memory_whole(&e->memory) + gpu_scratch_bytes},
                {"text encoder freed after use", memory_in_turns(&e->memory) + gpu_scratch_bytes}};
    struct table t;
    table_begin(&t, "lr");
    table_cell(&t, e->gpus > 1 ? "MEMORY ON EACH GPU, %s" : "MEMORY ON A GPU, %s",
               e->fp8              ? "FP8"
               : e->act == DT_BF16 ? "BF16"
                                   : "F32");
    table_cell(&t, "GiB");
    for (int i = 0; i < PART_COUNT; i++) {
        table_cell(&t, "%s", parts[i]);
        table_cell(&t, "%.2f", gib(e->memory.weights[i]));
    }
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        table_cell(&t, "%s", sums[i].what);
        table_cell(&t, "%.2f", gib(sums[i].bytes));
    }
    putchar('\n');
    int ok = table_print(&t, stdout);
    printf("While weights are loaded, %.2f GiB of pinned memory of the host are between the files and the "
           "GPU.\n",
           gib(gpu_staging_bytes));
    if (e->gpu) print_fit(e);
    printf("On a processor the weights are mapped from the files, %.2f GiB in BF16 (%s parameters).\n",
           2 * e->parameters / 0x1p30, quantity(e->parameters).text);
    return ok;
}

static void print_prediction(const struct estimate *e)
{
    char cards[32] = "one";
    if (e->gpus > 1) snprintf(cards, sizeof cards, "%d", e->gpus);
    printf("\nPredicted, not measured, for %s %s in %s: %.1f ms; a step %.1f ms", cards, e->gpu->title,
           e->fp8 ? "FP8" : "BF16", 1e3 * stage_seconds(e, KLEIN_STAGE_COUNT), 1e3 * step_seconds(e));
    if (e->gpus > 1) printf(", %.2f of one's %.1f ms", step_seconds(e) / e->alone, 1e3 * e->alone);
    printf(".\n");
    if (e->gpu->lacks)
        printf("klein has no kernels for %s yet; with those that it has, more.\n", e->gpu->lacks);
}

static enum klein_status print_text(const struct estimate *e, int ops, struct klein_error *err)
{
    const struct plan *plan = &e->plan;
    printf("%s, %dx%d, %d step%s, activations in %s\n\n", e->config.name, plan->width, plan->height,
           plan->steps, plan->steps == 1 ? "" : "s", dtype_name(e->act));
    int ok = print_stages(e);
    if (ops) ok &= print_ops(e);
    if (e->gpu) print_prediction(e);
    ok &= print_memory(e);
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
    if (o)
        failed |= json_object_set_new(
            o, "gpu_bytes",
            json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "text", (json_int_t)e->memory.weights[PART_TEXT],
                      "transformer", (json_int_t)e->memory.weights[PART_TRANSFORMER], "vae",
                      (json_int_t)e->memory.weights[PART_VAE], "scratch", (json_int_t)gpu_scratch_bytes,
                      "all", (json_int_t)(memory_whole(&e->memory) + gpu_scratch_bytes), "text_freed",
                      (json_int_t)(memory_in_turns(&e->memory) + gpu_scratch_bytes), "host_staging",
                      (json_int_t)gpu_staging_bytes));
    if (e->gpu && o)
        failed |= json_object_set_new(o, "predicted",
                                      json_pack("{s:s, s:i, s:s, s:b, s:f, s:f}", "gpu", e->gpu->title,
                                                "gpus", e->gpus, "precision", e->fp8 ? "fp8" : "bf16",
                                                "measured", 0, "seconds", stage_seconds(e, KLEIN_STAGE_COUNT),
                                                "step_seconds", step_seconds(e)));
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(list);
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status choose_gpu(const struct settings *s, struct estimate *e, struct klein_error *err)
{
    e->fp8 = s->precision == 1;
    e->gpus = s->gpus ? s->gpus : 1;
    e->cfg = s->parallel == KLEIN_PARALLEL_CFG;
    if (e->cfg && e->gpus != 2)
        return fail(err, KLEIN_E_USAGE, "--parallel cfg is for --gpus 2: guidance has two passes");
    if (e->fp8 && e->act != DT_BF16)
        return fail(err, KLEIN_E_USAGE, "--precision fp8 goes with --dtype bf16");
    if (!s->gpu) return KLEIN_OK;
    if (e->act != DT_BF16) return fail(err, KLEIN_E_USAGE, "predictions are for --dtype bf16 only");
    TRY(gpu_spec_named(s->gpu, &e->gpu, err));
    if (e->fp8 && !e->gpu->e4m3)
        return fail(err, KLEIN_E_USAGE, "%s does not multiply FP8; --precision bf16", e->gpu->title);
    if (e->gpus > 1 && !e->gpu->link)
        return fail(err, KLEIN_E_USAGE,
                    "%s cards do not reach each other's memory and exchange by NCCL, for which there are no "
                    "figures; leave out --gpu for the memory, or --gpus for one card's times",
                    e->gpu->title);
    return KLEIN_OK;
}

static enum klein_status make_plan(struct estimate *e, const struct klein_request *request,
                                   struct klein_error *err)
{
    const struct share share = {.size = e->gpus}, all = {0};
    if (e->gpus > 1 && e->gpu) {
        struct estimate one = *e;
        one.gpus = 1;
        TRY(plan_make(&e->config, e->act, request, &one.plan, err));
        e->alone = step_seconds(&one);
        plan_free(&one.plan);
    }
    TRY(plan_make_share(&e->config, e->act, request, e->cfg ? all : share, e->cfg ? share : all, &e->plan,
                        err));
    e->memory.arena = e->plan.arena_bytes;
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
    TRY(weigh(&e, err));
    TRY(make_plan(&e, &request, err));
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
    {0, "precision", "TYPE", CLI_CHOICE, AT(precision), .help = "of the denoiser's products on a GPU",
     .standard = "bf16", .choices = "bf16|fp8"},
    {0, "gpus", "N", CLI_INT, AT(gpus), .help = "as so many GPUs of a machine that share each picture",
     .standard = "1", CLI_RANGE(1, GROUP_MAX)},
    {0, "parallel", "HOW", CLI_CHOICE, AT(parallel),
     .help = "what they share: the tokens, or the two passes of guidance", .standard = "ulysses",
     .choices = "ulysses|cfg", .needs = "gpus"},
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
             "operation, and the memory that it takes of a GPU. Without --config and -m the model is "
             "klein-4b.\n\n"
             "With --gpu also times: predicted from a model of the kernels' cycles, not measured.",
    .examples = "klein plan --size 1024x1024\n"
                "klein plan --size 1024x1024 -i 1024x1024 --config klein-9b --ops\n"
                "klein plan --size 1024x1024 --gpu h100 --precision fp8\n"
                "klein plan --size 1024x1024 --gpu h100 --gpus 4\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
