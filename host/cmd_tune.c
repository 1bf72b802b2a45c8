/* klein tune: which of the kernels that could compute each shape of a request is the fastest on this GPU, for the engine to pick by. */
#include "commands.h"
#include "message.h"
#include "shared_options.h"
#include "signals.h"
#include "table.h"
#include "tune.h"
#include "workload.h"

#include "../kernels/names.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct settings {
    struct workload_settings workload;
    const char *config, *only, *without, *device;
    struct model_settings model;
    int precision, gpus, repeat, list, json;
};
enum { DEFAULT_REPEAT = 20 };

struct tune {
    const struct settings *s;
    struct model_config config;
    struct device *dev;
    struct cuda_facts gpu;
    struct tuned_for whom;
    char path[TUNED_PATH];
    struct tune_shapes shapes;
    struct tuned *table; /* NULL: there is none */
    struct tune_peers peers;
};

/* ---- what is tuned ---------------------------------------------------------------------------------------- */

static enum klein_status choose_config(const struct settings *s, struct model_config *out,
                                       struct klein_error *err)
{
    struct klein_open_options paths;
    struct checkpoint *c;
    int demo;
    if (s->config && s->model.model)
        return fail(err, KLEIN_E_USAGE, "--config and --model exclude each other; give one");
    if (s->config) return config_named(s->config, out, err);
    TRY(model_choose(&s->model, &paths, &demo, err));
    TRY(checkpoint_open(&(struct checkpoint_paths){.model = paths.model,
                                                   .transformer = paths.transformer,
                                                   .text_encoder = paths.text_encoder,
                                                   .vae = paths.vae,
                                                   .variant = (int)paths.variant},
                        &c, err));
    *out = *checkpoint_config(c);
    checkpoint_close(c);
    return KLEIN_OK;
}

static enum klein_status check_environment(struct klein_error *err)
{
    static const char *const variables[] = {"KLEIN_GEMM", "KLEIN_ATTENTION", "KLEIN_CONV"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        if (value && *value)
            return fail(err, KLEIN_E_USAGE, "%s=%s leaves nothing to choose: unset it", variables[i], value);
    }
    return KLEIN_OK;
}

static enum klein_status prepare(struct tune *t, struct klein_error *err)
{
    struct klein_image references[KLEIN_MAX_REFERENCES];
    struct klein_request request;
    struct klein_error bad = {0};
    const char *name = t->s->device ? t->s->device : "cuda";
    TRY(check_environment(err));
    TRY(workload_request(&t->s->workload, references, &request, err));
    TRY(choose_config(t->s, &t->config, err));
    TRY(device_open(name, &(struct device_options){0}, &t->dev, err));
    if (!cuda_facts(t->dev, &t->gpu))
        return fail(err, KLEIN_E_NO_DEVICE,
                    "device \"%s\" is no GPU: kernels are chosen on GPUs only (--device cuda)", name);
    if (t->s->precision == 1 && !t->dev->e4m3)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "FP8 needs sm_89 (Ada) or later; %s is sm_%d: take --precision bf16", t->gpu.name,
                    t->gpu.arch);
    t->whom = cuda_tuned_for(t->dev, KLEIN_VERSION);
    TRY(tuned_path(&t->whom, t->path, err));
    if (tuned_read(t->path, &t->whom, &t->table, &bad) != KLEIN_OK)
        message(MESSAGE_WARNING, "%s", bad.message);
    return tune_shapes_find(t->dev, &t->config, t->s->precision == 1, &request, t->s->gpus ? t->s->gpus : 1,
                            &t->shapes, err);
}

/* ---- measuring -------------------------------------------------------------------------------------------- */

static json_t *shape_json(const struct tune_shape *s, const struct tune_candidate *best)
{
    json_t *candidates = json_array();
    for (int i = 0; i < s->candidates; i++) {
        const struct tune_candidate *c = &s->candidate[i];
        json_array_append_new(
            candidates, c->excluded[0] ? json_pack("{s:s, s:s}", "kernel", c->kernel, "excluded", c->excluded)
                                       : json_pack("{s:s, s:f}", "kernel", c->kernel, "seconds", c->seconds));
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:o}", "shape", s->key, "kernel", best->kernel, "built_in",
                          s->built_in, "candidates", candidates);
    json_t *peer = NULL;
    if (s->peer_excluded[0])
        peer = json_pack("{s:s, s:s}", "library", tune_peer_library(s), "excluded", s->peer_excluded);
    else if (s->peer > 0)
        peer = json_pack("{s:s, s:f}", "library", tune_peer_library(s), "seconds", s->peer);
    if (peer && s->alone > 0) json_object_set_new(peer, "ours", json_real(s->alone));
    if (o && peer) json_object_set_new(o, "peers", json_pack("[o]", peer));
    return o;
}

static void show_progress(const struct tune *t, int i)
{
    if (t->s->json || !isatty(STDERR_FILENO)) return;
    if (i < t->shapes.n)
        fprintf(stderr, "\r\033[K%d/%d %s", i + 1, t->shapes.n, t->shapes.shape[i].key);
    else
        fputs("\r\033[K", stderr);
    fflush(stderr);
}

static enum klein_status measure_shape(struct tune *t, struct tune_shape *s, struct klein_error *err)
{
    const int repeat = t->s->repeat ? t->s->repeat : t->gpu.soft ? 1 : DEFAULT_REPEAT;
    TRY(tune_measure(t->dev, s, repeat, t->s->without, err));
    TRY(tune_peer(t->dev, &t->peers, s, repeat, err));
    if (s->peer_excluded[0])
        message(MESSAGE_WARNING, "%s: %s is not compared with: %s", s->key, tune_peer_library(s),
                s->peer_excluded);
    for (int i = 0; i < s->candidates; i++)
        if (s->candidate[i].excluded[0])
            message(MESSAGE_WARNING, "%s: %s is excluded: %s", s->key, s->candidate[i].kernel,
                    s->candidate[i].excluded);
    const struct tune_candidate *best = tune_best(s);
    if (!best) return KLEIN_OK; /* nothing is known, the rules stay */
    json_t *o = shape_json(s, best);
    return o ? tuned_add(t->table, o, err) : fail(err, KLEIN_E_NO_MEMORY, "no memory for a tuned shape");
}

static enum klein_status measure(struct tune *t, struct klein_error *err)
{
    if (!t->table && !(t->table = tuned_new(&t->whom)))
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table of tuned kernels");
    int measured = 0;
    tune_peers_open(&t->peers, gpu_of(t->dev), t->s->without);
    for (int i = 0; i < t->shapes.n && !err->status; i++) {
        if (t->s->only && !strstr(t->shapes.shape[i].key, t->s->only)) continue;
        show_progress(t, i);
        measure_shape(t, &t->shapes.shape[i], err);
        measured++;
    }
    if (!measured)
        return fail(err, KLEIN_E_USAGE, "no shape has \"%s\" in it; --list lists them", t->s->only);
    show_progress(t, t->shapes.n);
    return err->status ? err->status : tuned_write(t->table, t->path, err);
}

/* ---- what comes out --------------------------------------------------------------------------------------- */

static double seconds_of(const json_t *shape, const char *kernel)
{
    const json_t *list = json_object_get(shape, "candidates"), *c;
    size_t i;
    json_array_foreach(list, i, c)
    {
        const char *name = json_string_value(json_object_get(c, "kernel"));
        const json_t *seconds = json_object_get(c, "seconds");
        if (name && !strcmp(name, kernel) && seconds) return json_number_value(seconds);
    }
    return -1;
}

/* "measured: 12.3 us; next of 6 conv_x 13.0; 1 excluded; cuDNN's convolution alone 10.0, ours alone 11.0" */
static void measured_reason(const struct tune_shape *s, const struct tuned_row *row, char *out, size_t size)
{
    const json_t *list = json_object_get(row->shape, "candidates"),
                 *peer = json_array_get(json_object_get(row->shape, "peers"), 0),
                 *peer_seconds = json_object_get(peer, "seconds"), *alone = json_object_get(peer, "ours"), *c;
    const char *next = NULL;
    int excluded = 0;
    size_t i, n = (size_t)snprintf(out, size, "measured: %.1f us", 1e6 * seconds_of(row->shape, row->kernel));
    json_array_foreach(list, i, c)
    {
        const char *name = json_string_value(json_object_get(c, "kernel"));
        const json_t *seconds = json_object_get(c, "seconds");
        excluded += !seconds;
        if (seconds && name && strcmp(name, row->kernel) &&
            (!next || json_number_value(seconds) < seconds_of(row->shape, next)))
            next = name;
    }
    if (next)
        n +=
            (size_t)snprintf(out + n, size - n, "; next of %d %.80s %.1f",
                             (int)json_array_size(list) - excluded, next, 1e6 * seconds_of(row->shape, next));
    if (excluded) n += (size_t)snprintf(out + n, size - n, "; %d excluded", excluded);
    const char *what = s->op != OP_conv         ? "product"
                       : s->shape.conv.upsample ? "convolution of the enlarged image"
                                                : "convolution";
    if (peer_seconds)
        n += (size_t)snprintf(out + n, size - n, "; %.40s's %s alone %.1f",
                              json_string_value(json_object_get(peer, "library")), what,
                              1e6 * json_number_value(peer_seconds));
    if (alone) snprintf(out + n, size - n, ", ours alone %.1f", 1e6 * json_number_value(alone));
}

/* What the engine will take for a shape, and why. */
static const char *choice(const struct tune *t, const struct tune_shape *s, char *why, size_t size)
{
    const struct tuned_row *row = tuned_find(t->table, s->key);
    if (row) {
        measured_reason(s, row, why, size);
        return row->kernel;
    }
    char reason[TUNE_TEXT];
    tune_reason(s, reason);
    snprintf(why, size, "built in: %s", reason);
    return s->built_in;
}

static enum klein_status print_text(const struct tune *t, struct klein_error *err)
{
    char why[2 * TUNE_TEXT];
    struct table table;
    printf("%s on %s\n", t->config.name, t->dev->description);
    if (t->s->gpus > 1) printf("shares of %d GPUs that work on each picture\n", t->s->gpus);
    if (t->gpu.soft) puts("soft GPU: executed on the host, times mean nothing");
    printf("table   %s%s\n\n", t->path, t->table ? "" : " (not there)");
    table_begin(&table, "rlll");
    table_cell(&table, "CALLS");
    table_cell(&table, "SHAPE");
    table_cell(&table, "KERNEL");
    table_cell(&table, "WHY");
    for (int i = 0; i < t->shapes.n; i++) {
        const struct tune_shape *s = &t->shapes.shape[i];
        const char *kernel = choice(t, s, why, sizeof why);
        table_cell(&table, "%d", s->calls);
        table_cell(&table, "%s", s->key);
        table_cell(&table, "%s", kernel);
        table_cell(&table, "%s", why);
    }
    if (!table_print(&table, stdout)) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
    if (t->peers.no_lt[0]) printf("\n%s: products by our own kernels only.\n", t->peers.no_lt);
    if (t->peers.no_dnn[0]) printf("\n%s: convolutions by our own kernels only.\n", t->peers.no_dnn);
    puts("\nTimes are of the whole operation; alone: without norms, residuals and sums. Those of other "
         "libraries are there to compare; the engine does not use them.");
    return KLEIN_OK;
}

static enum klein_status print_json(const struct tune *t, struct klein_error *err)
{
    json_t *list = json_array();
    for (int i = 0; i < t->shapes.n; i++) {
        const struct tune_shape *s = &t->shapes.shape[i];
        char why[2 * TUNE_TEXT];
        const char *kernel = choice(t, s, why, sizeof why);
        const struct tuned_row *row = tuned_find(t->table, s->key);
        json_t *o = json_pack("{s:s, s:i, s:s, s:s, s:b, s:s}", "shape", s->key, "calls", s->calls, "kernel",
                              kernel, "built_in", s->built_in, "measured", row != NULL, "why", why);
        if (o && row) json_object_update_missing_new(o, json_deep_copy(row->shape));
        json_array_append_new(list, o);
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:b, s:i, s:s, s:o}", "model", t->config.name, "device",
                          t->dev->name, "description", t->dev->description, "soft", t->gpu.soft, "gpus",
                          t->s->gpus ? t->s->gpus : 1, "table", t->path, "shapes", list);
    const int failed = !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    struct tune t = {.s = settings};
    enum klein_status status = prepare(&t, err);
    signals_install();
    if (!status && !t.s->list) status = measure(&t, err);
    if (!status) status = t.s->json ? print_json(&t, err) : print_text(&t, err);
    tune_peers_close(&t.peers);
    tune_shapes_free(&t.shapes);
    tuned_free(t.table);
    device_close(t.dev);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option tune_options[] = {
    {0, "list", NULL, CLI_FLAG, AT(list),
     .help = "measure nothing: say what is chosen for each shape and why"},
    {0, "repeat", "N", CLI_INT, AT(repeat), .help = "runs of each kernel to take the median of",
     .standard = "20; soft GPU 1", CLI_RANGE(1, 100)},
    {0, "only", "TEXT", CLI_TEXT, AT(only),
     .help = "only shapes with this text in them, as --list shows them"},
    {0, "without", "KERNELS", CLI_TEXT, AT(without),
     .help = "leave these out (names with commas between; cublaslt, cudnn: do not compare with it)"},
    {0, "device", "NAME", CLI_TEXT, AT(device), .help = "the GPU: cuda[:N], or soft", .standard = "cuda"},
    {0, "precision", "TYPE", CLI_CHOICE, AT(precision), .help = "of the products in the transformer's blocks",
     .standard = "bf16", .choices = "bf16|fp8"},
    {0, "gpus", "N", CLI_INT, AT(gpus),
     .help = "shapes of the shares of so many GPUs that work on each picture (--parallel ulysses)",
     .standard = "1", CLI_RANGE(1, GROUP_MAX)},
    {0},
};

static const struct cli_group groups[] = {
    {"Request", workload_options, AT(workload)},
    {"Tuning", config_options, AT(config)},
    {NULL, tune_options, 0},
    {NULL, json_options, AT(json)},
    {"Model", model_options, AT(model)},
    {0},
};

const struct cli_command command_tune = {
    .name = "tune",
    .summary = "measure which kernels are the fastest on this GPU",
    .about =
        "For each shape of matrix product, attention and convolution in such a request, runs every kernel "
        "that "
        "takes it, on random numbers: first compares its result with that of the kernel that the built-in "
        "rules "
        "pick, then times it. What is wrong is named and left out. The fastest are written to a table in the "
        "user's cache ($XDG_CACHE_HOME, or ~/.cache), one per kind of GPU, by which every command picks from "
        "then on. A table of another GPU, driver or version of klein, or one that is damaged, is not used, "
        "with a "
        "warning. KLEIN_TUNE=off in the environment ignores it.\n\n"
        "Where cuBLASLt and cuDNN 9 are found, their product or convolution of the same size is compared "
        "with ours and timed too, alone: without the norms, residuals, enlarging and sums that our operation "
        "has beside (of convolutions ours alone as well). klein does not use them. Attention is compared "
        "with no library.",
    .examples = "klein tune --config klein-4b --size 1024x1024 --precision fp8\n"
                "klein tune --config klein-4b --size 1024x1024 --precision fp8 --list\n"
                "klein tune --config klein-4b --size 1024x1024 --gpus 4\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
