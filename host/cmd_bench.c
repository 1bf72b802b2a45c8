/* klein bench: how fast a request runs here, by stage and by operation, against the peaks of what it runs on. */
#include "bench.h"
#include "bench_cold.h"
#include "commands.h"
#include "report.h"
#include "shared_options.h"
#include "signals.h"
#include "table.h"
#include "workload.h"

#include "../kernels/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

struct settings {
    struct workload_settings workload;
    const char *config, *compare;
    int random, repeat, ops, json, cold;
    struct model_settings model;
    struct device_settings device;
};

struct bench {
    const struct settings *s;
    struct klein *klein;
    struct klein_model_info model;
    struct klein_image references[KLEIN_MAX_REFERENCES];
    struct klein_request request;
    struct plan plan; /* of all of the request */
    size_t arena;
    int runs, warm_up;
    double first;    /* seconds of the first run, which loads kernels and takes memory */
    double *seconds; /* [runs][STAGES]: the stages, then the whole */
    double host;     /* seconds of the host between launches of graphs, of the runs that are timed */
    struct op_rows ops;
    int observe; /* this run's ops are wanted */
    struct peak peak;
};
enum { WHOLE = KLEIN_STAGE_COUNT, STAGES, DEFAULT_REPEAT = 3 };

/* --- runs ------------------------------------------------------------------------------------------------
 */

static void on_op(void *user, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                  double seconds)
{
    op_rows_add(&((struct bench *)user)->ops, stage, op, cost, seconds);
}

static int on_progress(void *user, const struct klein_progress *p)
{
    return signals_received();
}

static enum klein_status run_once(struct bench *b, double *seconds, struct klein_error *err)
{
    struct klein_result result;
    TRY(context_generate(b->klein, &b->request, b->observe ? on_op : NULL, b, &result, err));
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) seconds[i] = result.seconds[i];
    seconds[WHOLE] = result.total_seconds;
    klein_result_free(&result);
    return KLEIN_OK;
}

static double host_seconds(const struct bench *b)
{
    struct cuda_facts gpu = {0};
    cuda_facts(b->klein->device, &gpu);
    return gpu.host_seconds;
}

/* On a device with graphs an observed run is another thing than a timed one: ops have runs of their own. */
static enum klein_status run_all(struct bench *b, struct klein_error *err)
{
    const int apart = b->klein->device->mark != NULL;
    double unused[STAGES];
    b->warm_up = b->klein->device->graphs && b->request.graph != KLEIN_GRAPH_OFF ? 2 : 1;
    b->seconds = calloc((size_t)b->runs * STAGES, sizeof *b->seconds);
    if (!b->seconds) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the times of %d runs", b->runs);
    for (int i = 0; i < b->warm_up; i++) {
        TRY(run_once(b, unused, err));
        if (i == 0) b->first = unused[WHOLE];
    }
    b->observe = b->s->ops && !apart;
    const double host = host_seconds(b);
    for (int i = 0; i < b->runs; i++) TRY(run_once(b, b->seconds + i * STAGES, err));
    b->host = host_seconds(b) - host;
    b->observe = b->s->ops && apart;
    for (int i = 0; b->observe && i < b->runs; i++) TRY(run_once(b, unused, err));
    op_rows_sort(&b->ops);
    return b->ops.failed ? fail(err, KLEIN_E_NO_MEMORY, "no memory for a table of operations") : KLEIN_OK;
}

/* --- what runs -------------------------------------------------------------------------------------------
 */

/* A context_opener: of the model_config that `config` is. */
static enum klein_status open_config(void *config, const struct klein_open_options *options,
                                     struct klein **out, struct klein_error *err)
{
    struct checkpoint *c;
    TRY(checkpoint_random(config, DT_BF16, 0, &c, err));
    return context_open(c, options, out, err);
}

static enum klein_status open_random(struct bench *b, struct klein_error *err)
{
    const struct settings *s = b->s;
    int gpus[GPUS_MAX];
    struct klein_open_options options = {.size = sizeof options,
                                         .device = s->device.device,
                                         .threads = s->device.threads,
                                         .dtype = (enum klein_dtype)s->device.dtype,
                                         .precision = (enum klein_precision)s->device.precision,
                                         .gpus = gpus,
                                         .parallel = (enum klein_parallel)s->device.parallel};
    struct model_config config;
    struct checkpoint *c;
    TRY(device_gpus(&s->device, gpus, &options.n_gpus, err));
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
    TRY(options.n_gpus ? context_open_several(&options, open_config, &config, &b->klein, err)
                       : open_config(&config, &options, &b->klein, err));
    if (!s->json) model_note_device(b->klein);
    return KLEIN_OK;
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

/* Of the first card, whose share of the request may be a part. */
static enum klein_status find_arena(struct bench *b, struct klein_error *err)
{
    const struct klein *k = b->klein;
    struct plan share;
    TRY(plan_make_share(k->model->cfg, k->act, &b->request, k->tokens, k->passes, &share, err));
    b->arena = share.arena_bytes;
    plan_free(&share);
    return KLEIN_OK;
}

static enum klein_status prepare(struct bench *b, struct klein_error *err)
{
    const struct settings *s = b->s;
    b->runs = s->repeat ? s->repeat : DEFAULT_REPEAT;
    if (s->cold && (s->config || s->random || s->ops || s->compare))
        return fail(err, KLEIN_E_USAGE,
                    "--cold is of a model's files, one run: without --config, --random, --ops and --compare");
    if (s->cold && s->device.gpus) return fail(err, KLEIN_E_USAGE, "--cold is of one device: without --gpus");
    if (s->config && s->model.model)
        return fail(err, KLEIN_E_USAGE, "--config and --model exclude each other; give one");
    TRY(workload_request(&s->workload, b->references, &b->request, err));
    TRY(fill_references(b, err));
    b->request.graph = (enum klein_graph)s->device.graph;
    if (s->cold) return KLEIN_OK;
    if (s->config || s->random)
        TRY(open_random(b, err));
    else
        TRY(model_open(&s->model, &s->device, s->json, &b->klein, err));
    klein_model_info(b->klein, &b->model);
    TRY(plan_make(b->klein->model->cfg, b->klein->act, &b->request, &b->plan, err));
    TRY(find_arena(b, err));
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

/* The smallest time that a share q of the runs does not exceed: with few runs the largest. */
static double quantile(const struct bench *b, int stage, double q)
{
    double v[1000];
    const int i = (int)ceil(q * b->runs) - 1;
    for (int r = 0; r < b->runs; r++) v[r] = b->seconds[r * STAGES + stage];
    qsort(v, (size_t)b->runs, sizeof *v, compare_doubles);
    return v[i < 0 ? 0 : i];
}

static double stage_flops(const struct bench *b, int stage)
{
    double all = 0;
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) all += b->plan.stage[i].flops;
    return stage == WHOLE ? all : b->plan.stage[stage].flops;
}

/* The time that the peaks of all cards allow for a stage over its own; NAN if that is not known. */
static double stage_share(const struct bench *b, int stage, double seconds)
{
    double least = b->peak.flops > 0 ? 0 : NAN;
    for (int i = 0; i < b->plan.n_ops; i++) {
        const struct plan_op *o = &b->plan.ops[i];
        if (stage == WHOLE || (int)o->stage == stage)
            least += o->count * peak_seconds(&b->peak, o->stage, o->op, &o->cost);
    }
    return seconds > 0 ? least / b->peak.cards / seconds : NAN;
}

static const char *stage_name(int stage)
{
    return stage == WHOLE ? "all" : klein_stage_name((enum klein_stage)stage);
}

static double peak_memory(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024;
}

static int print_stages(const struct bench *b)
{
    const struct peak *p = &b->peak;
    struct table t;
    table_begin(&t, p->soft ? "lrrrr" : "lrrrrrr");
    table_cell(&t, "STAGE");
    table_cell(&t, p->soft ? "HOST SECONDS" : "SECONDS");
    table_cell(&t, "P95");
    table_cell(&t, "P99");
    table_cell(&t, "TFLOP");
    if (!p->soft) table_cell(&t, "TFLOP/S");
    if (!p->soft) table_cell(&t, "OF PEAK");
    for (int i = 0; i <= WHOLE; i++) {
        double seconds = median(b, i), flops = stage_flops(b, i), share = stage_share(b, i, seconds);
        if (!(seconds > 0 && flops > 0)) continue; /* of no references: only their clock was read */
        table_cell(&t, "%s", stage_name(i));
        table_cell(&t, "%.5f", seconds);
        table_cell(&t, "%.5f", quantile(b, i, 0.95));
        table_cell(&t, "%.5f", quantile(b, i, 0.99));
        table_cell(&t, "%.4f", flops / 1e12);
        if (p->soft) continue;
        table_cell(&t, "%.4f", flops / seconds / 1e12);
        if (isfinite(share))
            table_cell(&t, "%.1f %%", 100 * share);
        else
            table_cell(&t, "-");
    }
    return table_print(&t, stdout);
}

/* What a stage takes beyond its ops: the device's time between kernels. */
static int has_gap(const struct bench *b, int stage)
{
    return b->s->ops && b->klein->device->mark && !b->peak.soft && median(b, stage) > 0 &&
           stage_flops(b, stage) > 0;
}

static double ops_seconds(const struct bench *b, int stage)
{
    return op_rows_total(&b->ops, (enum klein_stage)stage) / b->runs;
}

static int print_gaps(const struct bench *b)
{
    struct table t;
    table_begin(&t, "lrrr");
    table_cell(&t, "STAGE");
    table_cell(&t, "MS");
    table_cell(&t, "ITS OPS");
    table_cell(&t, "BETWEEN");
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) {
        if (!has_gap(b, i)) continue;
        table_cell(&t, "%s", stage_name(i));
        table_cell(&t, "%.3f", 1e3 * median(b, i));
        table_cell(&t, "%.3f", 1e3 * ops_seconds(b, i));
        table_cell(&t, "%.3f", 1e3 * (median(b, i) - ops_seconds(b, i)));
    }
    puts("\nThe stages without marks within, and their ops one by one. An op that the device waits for has "
         "its "
         "launch in its time, and\nkernels of a graph may overlap: \"between\" can be negative.");
    return table_print(&t, stdout);
}

static void print_memory(const struct bench *b)
{
    struct cuda_facts gpu;
    if (cuda_facts(b->klein->device, &gpu))
        printf("\nmemory of %s: weights %.2f GiB, arena %.2f GiB, scratch %.2f GiB\n",
               b->model.n_gpus > 1 ? "each device" : "the device", (double)gpu.weights / 0x1p30,
               (double)b->arena / 0x1p30, (double)gpu.scratch / 0x1p30);
    else
        putchar('\n');
    printf("largest resident memory: %.2f GiB\n", peak_memory() / 0x1p30);
}

static enum klein_status print_text(const struct bench *b, struct klein_error *err)
{
    printf("%s%s, %dx%d, %d reference%s, %d step%s, on %s (%s) in %s%s with %d thread%s\n", b->model.name,
           b->s->config || b->s->random ? " (random weights)" : "", b->plan.width, b->plan.height,
           b->request.n_references, b->request.n_references == 1 ? "" : "s", b->plan.steps,
           b->plan.steps == 1 ? "" : "s", report_device(&b->model).text, b->klein->device->description,
           b->model.dtype, b->klein->fp8 ? ", blocks in fp8," : "", b->klein->device->threads,
           b->klein->device->threads == 1 ? "" : "s");
    peak_print(&b->peak);
    printf("median of %d run%s after %d to warm up; the first took %.4f s\n\n", b->runs,
           b->runs == 1 ? "" : "s", b->warm_up, b->first);
    int ok = print_stages(b);
    if (b->s->ops) ok &= op_rows_print(&b->ops, &b->peak, b->runs);
    if (has_gap(b, KLEIN_STAGE_DENOISE)) ok &= print_gaps(b);
    if (b->host > 0)
        printf(
            "\nhost between the launches of graphs, waiting apart: %.0f us of a request; the goal is 100\n",
            1e6 * b->host / b->runs);
    print_memory(b);
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

static json_t *stage_json(const struct bench *b, int i)
{
    double seconds = median(b, i), share = stage_share(b, i, seconds);
    json_t *all = json_array();
    for (int r = 0; r < b->runs; r++) json_array_append_new(all, json_real(b->seconds[r * STAGES + i]));
    json_t *o = json_pack("{s:f, s:f, s:f, s:f, s:f, s:o}", "seconds", seconds, "p95", quantile(b, i, 0.95),
                          "p99", quantile(b, i, 0.99), "flop", stage_flops(b, i), "flop_per_second",
                          seconds > 0 ? stage_flops(b, i) / seconds : 0, "runs", all);
    if (o && isfinite(share)) json_object_set_new(o, "of_peak", json_real(share));
    if (o && i < WHOLE && has_gap(b, i)) json_object_set_new(o, "ops_seconds", json_real(ops_seconds(b, i)));
    return o;
}

static json_t *reference_sizes(const struct klein_request *q)
{
    json_t *list = json_array();
    for (int i = 0; i < q->n_references; i++)
        json_array_append_new(list, json_pack("[i, i]", q->references[i].width, q->references[i].height));
    return list;
}

static json_t *result_json(const struct bench *b, struct klein_error *err)
{
    struct cuda_facts gpu = {0};
    cuda_facts(b->klein->device, &gpu);
    json_t *stages = json_object();
    int failed = 0;
    for (int i = 0; i <= WHOLE; i++) failed |= json_object_set_new(stages, stage_name(i), stage_json(b, i));
    json_t *o = json_pack(
        "{s:s, s:b, s:i, s:i, s:i, s:i, s:s, s:s, s:b, s:s, s:s, s:i, s:i, s:f, s:I, s:I, s:I, s:I, s:o}",
        "model", b->model.name, "random", b->s->config || b->s->random, "width", b->plan.width, "height",
        b->plan.height, "steps", b->plan.steps, "references", b->request.n_references, "device",
        b->model.device, "description", b->klein->device->description, "soft", b->peak.soft, "dtype",
        b->model.dtype, "precision", b->model.precision, "threads", b->klein->device->threads, "graph",
        b->s->device.graph, "first_seconds", b->first, "resident_bytes", (json_int_t)peak_memory(),
        "arena_bytes", (json_int_t)b->arena, "weight_bytes", (json_int_t)gpu.weights, "scratch_bytes",
        (json_int_t)gpu.scratch, "stages", stages);
    if (o && b->peak.flops > 0)
        failed |= json_object_set_new(o, "peak_flop_per_second", json_real(b->peak.flops * b->peak.cards));
    if (o && b->peak.fp8 > 0)
        failed |= json_object_set_new(o, "peak_fp8_flop_per_second", json_real(b->peak.fp8 * b->peak.cards));
    if (o && b->peak.bytes > 0)
        failed |= json_object_set_new(o, "peak_bytes_per_second", json_real(b->peak.bytes * b->peak.cards));
    if (o) failed |= report_gpus(o, &b->model);
    if (o) failed |= json_object_set_new(o, "images", json_integer(b->plan.images));
    if (o) failed |= json_object_set_new(o, "reference_sizes", reference_sizes(&b->request));
    if (o && b->host > 0)
        failed |= json_object_set_new(o, "host_between_launches_seconds", json_real(b->host / b->runs));
    if (o && b->s->ops) failed |= json_object_set_new(o, "ops", op_rows_json(&b->ops, &b->peak, b->runs));
    if (o && !failed) return o;
    json_decref(o);
    fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result");
    return NULL;
}

/* The result, and how it compares. */
static enum klein_status print(const struct bench *b, struct klein_error *err)
{
    const struct settings *s = b->s;
    if (!s->json) TRY(print_text(b, err));
    if (!s->json && !s->compare) return KLEIN_OK;
    json_t *o = result_json(b, err);
    if (!o) return err->status;
    if (s->json && json_dumpf(o, stdout, JSON_COMPACT))
        fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result");
    if (s->json) putchar('\n');
    if (s->compare && !err->status) bench_compare(s->compare, o, s->json ? stderr : stdout, err);
    json_decref(o);
    return err->status;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    struct bench b = {.s = settings};
    enum klein_status status = prepare(&b, err);
    signals_install();
    if (!status && b.s->cold) {
        status = bench_cold(&b.s->model, &b.s->device, &b.request, b.s->json, err);
        goto done;
    }
    if (!status) status = peak_find(b.klein, &b.peak, err);
    if (!status && b.peak.soft && b.s->compare)
        status = fail(err, KLEIN_E_USAGE, "times of the soft GPU mean nothing: there is nothing to compare");
    if (!status) status = run_all(&b, err);
    if (!status) status = print(&b, err);
done:
    for (int i = 0; i < KLEIN_MAX_REFERENCES; i++) free(b.references[i].rgb);
    free(b.seconds);
    op_rows_free(&b.ops);
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
    {0, "cold", NULL, CLI_FLAG, AT(cold),
     .help = "the time to the first picture instead, by stage, from the start of the program, with the "
             "model's files out of "
             "memory"},
    {0, "compare", "FILE", CLI_TEXT, AT(compare),
     .help = "compare with the last such result in a file of --json lines; exit code 1 if a stage is slower"},
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
    .about =
        "Runs the request once to warm up and then several times, and prints the median time of each "
        "stage beside the peak of "
        "the processor, which is measured in the same call, or of the GPU, if klein has its figures. On a "
        "GPU "
        "times are those of its own clock; with --ops the operations have further runs, one by one without "
        "graphs. --config implies --random.",
    .examples = "klein bench --config klein-4b --random --size 256x256 --steps 4\n"
                "klein bench -m FLUX.2-klein-4B --size 512x512 --ops\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
