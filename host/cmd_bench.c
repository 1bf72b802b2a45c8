/* klein bench: how fast a request runs here, by stage and by operation, against the measured peak of the
 * processor. */
#include "commands.h"
#include "shared_options.h"
#include "signals.h"
#include "table.h"
#include "workload.h"

#include "../engine/context.h"
#include "../kernels/cpu/cpu.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

struct settings {
    struct workload_settings workload;
    const char *config;
    int random, repeat, ops, json;
    struct model_settings model;
    struct device_settings device;
};

/* One kind of operation: the same op with the same shape in the same stage. */
struct op_row {
    enum klein_stage stage;
    enum op_id op;
    struct op_cost cost;
    int calls;      /* over all runs */
    double seconds; /* over all runs */
};

struct bench {
    const struct settings *s;
    struct klein *klein;
    struct klein_model_info model;
    struct klein_image references[KLEIN_MAX_REFERENCES];
    struct klein_request request;
    struct plan plan;
    int runs;
    double *seconds; /* [runs][STAGES]: the stages, then the whole */
    struct op_row *ops;
    int n_ops, capacity, warm, out_of_memory;
    double peak; /* FLOP/s of this processor in the activations' dtype */
};
enum { WHOLE = KLEIN_STAGE_COUNT, STAGES, DEFAULT_REPEAT = 3 };

/* --- runs ------------------------------------------------------------------------------------------------
 */

static void on_op(void *user, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                  double seconds)
{
    struct bench *b = user;
    int i = 0;
    if (!b->warm || b->out_of_memory) return;
    while (i < b->n_ops &&
           !(b->ops[i].stage == stage && b->ops[i].op == op && !strcmp(b->ops[i].cost.shape, cost->shape)))
        i++;
    if (i == b->capacity) {
        int capacity = b->capacity ? 2 * b->capacity : 64;
        struct op_row *grown = realloc(b->ops, (size_t)capacity * sizeof *grown);
        if (!grown) {
            b->out_of_memory = 1;
            return;
        }
        b->ops = grown;
        b->capacity = capacity;
    }
    if (i == b->n_ops) b->ops[b->n_ops++] = (struct op_row){stage, op, *cost, 0, 0};
    b->ops[i].calls++;
    b->ops[i].seconds += seconds;
}

static int on_progress(void *user, const struct klein_progress *p)
{
    return signals_received();
}

static enum klein_status run_once(struct bench *b, double *seconds, struct klein_error *err)
{
    struct klein_result result;
    TRY(context_generate(b->klein, &b->request, b->s->ops ? on_op : NULL, b, &result, err));
    for (int i = 0; seconds && i < KLEIN_STAGE_COUNT; i++) seconds[i] = result.seconds[i];
    if (seconds) seconds[WHOLE] = result.total_seconds;
    klein_result_free(&result);
    return KLEIN_OK;
}

static enum klein_status run_all(struct bench *b, struct klein_error *err)
{
    b->seconds = calloc((size_t)b->runs * STAGES, sizeof *b->seconds);
    if (!b->seconds) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the times of %d runs", b->runs);
    TRY(run_once(b, NULL, err));
    b->warm = 1;
    for (int i = 0; i < b->runs; i++) TRY(run_once(b, b->seconds + i * STAGES, err));
    return b->out_of_memory ? fail(err, KLEIN_E_NO_MEMORY, "no memory for a table of operations") : KLEIN_OK;
}

/* --- what runs -------------------------------------------------------------------------------------------
 */

static enum klein_status open_random(struct bench *b, struct klein_error *err)
{
    const struct settings *s = b->s;
    struct klein_open_options options = {.size = sizeof options,
                                         .device = s->device.device,
                                         .threads = s->device.threads,
                                         .dtype = (enum klein_dtype)s->device.dtype,
                                         .precision = (enum klein_precision)s->device.precision};
    struct model_config config;
    struct checkpoint *c;
    if (s->config) {
        TRY(config_named(s->config, &config, err));
    } else {
        struct klein_open_options paths;
        int demo;
        TRY(model_choose(&s->model, &paths, &demo, err));
        TRY(checkpoint_open(&(struct checkpoint_paths){.model = paths.model,
                                                       .transformer = paths.transformer,
                                                       .text_encoder = paths.text_encoder,
                                                       .vae = paths.vae,
                                                       .variant = (int)paths.variant},
                            &c, err));
        config = *checkpoint_config(c);
        checkpoint_close(c);
    }
    TRY(checkpoint_random(&config, DT_BF16, 0, &c, err));
    return context_open(c, &options, &b->klein, err);
}

/* Reference pictures of noise: what is in them does not change the time. */
static enum klein_status fill_references(struct bench *b, struct klein_error *err)
{
    uint32_t state = 1;
    for (int i = 0; i < b->request.n_references; i++) {
        struct klein_image *image = &b->references[i];
        size_t n = (size_t)image->width * (size_t)image->height * 3;
        image->rgb = malloc(n);
        if (!image->rgb)
            return fail(err, KLEIN_E_NO_MEMORY, "no memory for a %dx%d reference", image->width,
                        image->height);
        for (size_t j = 0; j < n; j++)
            image->rgb[j] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
    }
    return KLEIN_OK;
}

static enum klein_status prepare(struct bench *b, struct klein_error *err)
{
    const struct settings *s = b->s;
    b->runs = s->repeat ? s->repeat : DEFAULT_REPEAT;
    if (s->config && s->model.model)
        return fail(err, KLEIN_E_USAGE, "--config and --model exclude each other; give one");
    TRY(workload_request(&s->workload, b->references, &b->request, err));
    TRY(fill_references(b, err));
    if (s->config || s->random)
        TRY(open_random(b, err));
    else
        TRY(model_open(&s->model, &s->device, s->json, &b->klein, err));
    klein_model_info(b->klein, &b->model);
    TRY(plan_make(b->klein->model->cfg, b->klein->act, &b->request, &b->plan, err));
    b->request.progress = on_progress;
    return KLEIN_OK;
}

/* --- what comes out --------------------------------------------------------------------------------------
 */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const struct bench *b, int stage)
{
    double sorted[1000], *v = sorted;
    for (int i = 0; i < b->runs; i++) v[i] = b->seconds[i * STAGES + stage];
    qsort(v, (size_t)b->runs, sizeof *v, compare_doubles);
    return (v[(b->runs - 1) / 2] + v[b->runs / 2]) / 2;
}

static double stage_flops(const struct bench *b, int stage)
{
    double all = 0;
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) all += b->plan.stage[i].flops;
    return stage == WHOLE ? all : b->plan.stage[stage].flops;
}

static const char *stage_name(int stage)
{
    return stage == WHOLE ? "all" : klein_stage_name((enum klein_stage)stage);
}

static int slower_first(const void *a, const void *b)
{
    double x = ((const struct op_row *)a)->seconds, y = ((const struct op_row *)b)->seconds;
    return (x < y) - (x > y);
}

static double peak_memory(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024;
}

static int print_stages(const struct bench *b)
{
    struct table t;
    table_begin(&t, "lrrrr");
    table_cell(&t, "STAGE");
    table_cell(&t, "SECONDS");
    table_cell(&t, "TFLOP");
    table_cell(&t, "TFLOP/S");
    table_cell(&t, "OF PEAK");
    for (int i = 0; i <= WHOLE; i++) {
        double seconds = median(b, i), flops = stage_flops(b, i);
        if (!(seconds > 0)) continue;
        table_cell(&t, "%s", stage_name(i));
        table_cell(&t, "%.4f", seconds);
        table_cell(&t, "%.4f", flops / 1e12);
        table_cell(&t, "%.4f", flops / seconds / 1e12);
        table_cell(&t, "%.1f %%", 100 * flops / seconds / b->peak);
    }
    return table_print(&t, stdout);
}

static int print_ops(const struct bench *b)
{
    struct table t;
    table_begin(&t, "llrrrrrl");
    table_cell(&t, "STAGE");
    table_cell(&t, "OP");
    table_cell(&t, "CALLS");
    table_cell(&t, "SECONDS");
    table_cell(&t, "TFLOP/S");
    table_cell(&t, "OF PEAK");
    table_cell(&t, "GB/S");
    table_cell(&t, "SHAPE");
    for (int i = 0; i < b->n_ops; i++) {
        const struct op_row *o = &b->ops[i];
        double flops = o->cost.flops * o->calls / o->seconds;
        table_cell(&t, "%s", klein_stage_name(o->stage));
        table_cell(&t, "%s", op_name(o->op));
        table_cell(&t, "%d", o->calls / b->runs);
        table_cell(&t, "%.4f", o->seconds / b->runs);
        table_cell(&t, "%.4f", flops / 1e12);
        table_cell(&t, "%.1f %%", 100 * flops / b->peak);
        table_cell(&t, "%.2f", o->cost.bytes * o->calls / o->seconds / 1e9);
        table_cell(&t, "%s", o->cost.shape);
    }
    putchar('\n');
    return table_print(&t, stdout);
}

static enum klein_status print_text(const struct bench *b, struct klein_error *err)
{
    printf("%s%s, %dx%d, %d reference%s, %d step%s, on %s in %s%s with %d thread%s\n", b->model.name,
           b->s->config || b->s->random ? " (random weights)" : "", b->plan.width, b->plan.height,
           b->request.n_references, b->request.n_references == 1 ? "" : "s", b->plan.steps,
           b->plan.steps == 1 ? "" : "s", b->model.device, b->model.dtype,
           b->klein->fp8 ? ", blocks in fp8," : "", b->klein->device->threads,
           b->klein->device->threads == 1 ? "" : "s");
    printf("median of %d run%s after one to warm up; peak of this processor, just measured: %.4f TFLOP/s\n\n",
           b->runs, b->runs == 1 ? "" : "s", b->peak / 1e12);
    int ok = print_stages(b);
    if (b->s->ops) ok &= print_ops(b);
    printf("\nlargest resident memory: %.2f GiB\n", peak_memory() / 0x1p30);
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

static json_t *ops_json(const struct bench *b)
{
    json_t *ops = json_array();
    for (int i = 0; i < b->n_ops; i++) {
        const struct op_row *o = &b->ops[i];
        json_array_append_new(
            ops, json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:f}", "stage", klein_stage_name(o->stage), "op",
                           op_name(o->op), "shape", o->cost.shape, "calls", o->calls / b->runs, "seconds",
                           o->seconds / b->runs, "flop", o->cost.flops, "bytes", o->cost.bytes));
    }
    return ops;
}

static enum klein_status print_json(const struct bench *b, struct klein_error *err)
{
    json_t *stages = json_object();
    int failed = !stages;
    for (int i = 0; i <= WHOLE; i++) {
        json_t *all = json_array();
        for (int r = 0; r < b->runs; r++)
            failed |= json_array_append_new(all, json_real(b->seconds[r * STAGES + i]));
        double seconds = median(b, i), rate = seconds > 0 ? stage_flops(b, i) / seconds : 0;
        failed |= json_object_set_new(stages, stage_name(i),
                                      json_pack("{s:f, s:f, s:f, s:f, s:o}", "seconds", seconds, "flop",
                                                stage_flops(b, i), "flop_per_second", rate, "of_peak",
                                                rate / b->peak, "runs", all));
    }
    json_t *o = json_pack(
        "{s:s, s:b, s:i, s:i, s:i, s:i, s:s, s:s, s:s, s:i, s:f, s:I, s:o}", "model", b->model.name, "random",
        b->s->config || b->s->random, "width", b->plan.width, "height", b->plan.height, "steps",
        b->plan.steps, "references", b->request.n_references, "device", b->model.device, "dtype",
        b->model.dtype, "precision", b->model.precision, "threads", b->klein->device->threads,
        "peak_flop_per_second", b->peak, "resident_bytes", (json_int_t)peak_memory(), "stages", stages);
    if (b->s->ops && o) failed |= json_object_set_new(o, "ops", ops_json(b));
    failed |= !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

/* Of the processor with as many threads as the run has, whatever device it runs on. */
static enum klein_status measure_peak(struct bench *b, struct klein_error *err)
{
    struct device *cpu;
    TRY(device_open("cpu", &(struct device_options){.threads = b->klein->device->threads}, &cpu, err));
    b->peak = cpu_peak_flops(cpu, b->klein->act);
    device_close(cpu);
    return KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    struct bench b = {.s = settings};
    enum klein_status status = prepare(&b, err);
    signals_install();
    if (!status) status = measure_peak(&b, err);
    if (!status) status = run_all(&b, err);
    if (b.n_ops) qsort(b.ops, (size_t)b.n_ops, sizeof *b.ops, slower_first);
    if (!status) status = b.s->json ? print_json(&b, err) : print_text(&b, err);
    for (int i = 0; i < KLEIN_MAX_REFERENCES; i++) free(b.references[i].rgb);
    free(b.seconds);
    free(b.ops);
    plan_free(&b.plan);
    klein_close(b.klein);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option bench_options[] = {
    {0, "random", NULL, CLI_FLAG, AT(random),
     .help = "random weights in memory, of the sizes of --config or of the model"},
    {0, "repeat", "N", CLI_INT, AT(repeat), .help = "runs to take the median of", .standard = "3",
     CLI_RANGE(1, 1000)},
    {0, "ops", NULL, CLI_FLAG, AT(ops), .help = "also every kind of operation, the slowest first"},
    {0},
};

static const struct cli_group groups[] = {
    {"Request", workload_options, AT(workload)},
    {"Bench", config_options, AT(config)},
    {NULL, bench_options, 0},
    {NULL, json_options, AT(json)},
    {"Model", model_options, AT(model)},
    {"Computing", device_options, AT(device)},
    {NULL, dtype_options, AT(device.dtype)},
    {0},
};

const struct cli_command command_bench = {
    .name = "bench",
    .summary = "measure how fast a request runs on this machine",
    .about = "Runs the request once to warm up and then several times, and prints the median time of each "
             "stage beside the peak of "
             "the processor, which is measured in the same call. --config implies --random.",
    .examples = "klein bench --config klein-4b --random --size 256x256 --steps 4\n"
                "klein bench -m FLUX.2-klein-4B --size 512x512 --ops\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
