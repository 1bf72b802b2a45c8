/* klein compare: what a number format does to pictures: two of them over a list of prompts, and layer by layer. */
#include "commands.h"
#include "inputs.h"
#include "message.h"
#include "shared_options.h"
#include "signals.h"
#include "similarity.h"
#include "size.h"
#include "table.h"
#include "terminal.h"

#include "../base/clock.h"
#include "../engine/context.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum number_format { BF16, FP8, F32 };
static const char *const format_names[] = {"bf16", "fp8", "f32"};
static const enum number_format formats_a[] = {BF16, FP8, F32},
                                formats_b[] = {FP8, BF16, F32}; /* of the options */
enum layers { ALL, BLOCKS, KINDS, NONE };

struct settings {
    const char *prompts, *size, *output, *device;
    int a, b, layers, steps, threads, json;
    struct cli_seed seed;
    struct model_settings model;
    struct message_settings message;
};

enum { SIDES = 2, KIND_COUNT = 6 };
static const char *const kind_names[KIND_COUNT] = {"double: q, k, v", "double: attention out",
                                                   "double: mlp in",  "double: mlp out",
                                                   "single: in",      "single: out"};

/* A first step's velocity, and the prompt that it was computed for. */
struct taken {
    float *velocity, *embeds;
    size_t n;
    int stop; /* the velocity is all that is wanted */
};

struct pair {
    char *prompt; /* in struct compare's text */
    double psnr, ssim, velocity;
};

/* One part of the model in format B, the others in A. */
struct layer {
    char name[48];
    int block, kind; /* -1: not one of these */
    double squares;  /* of relative errors, over the prompts */
};

struct compare {
    const struct settings *s;
    enum number_format format[SIDES];
    struct klein *side[SIDES];
    struct klein_model_info info;
    struct size size;
    char *text;
    struct pair *pair;
    int pairs;
    struct layer *layer;
    int layers;
    struct taken taken; /* by the request that runs */
    struct progress_bar bar;
    double done, work; /* of the bar, in denoising steps */
};

/* ---- requests --------------------------------------------------------------------------------------------- */

static void on_tap(void *user, const struct klein_tap *tap)
{
    struct taken *t = &((struct compare *)user)->taken;
    float **to = !strcmp(tap->name, "velocity.0")      ? &t->velocity
                 : !strcmp(tap->name, "prompt_embeds") ? &t->embeds
                                                       : NULL;
    if (!to || *to) return;
    const size_t n = (size_t)tap->shape[0] * (size_t)tap->shape[1];
    *to = malloc(n * sizeof(float));
    if (*to) memcpy(*to, tap->data, n * sizeof(float));
    if (to == &t->velocity) t->n = n;
}

static int on_progress(void *user, const struct klein_progress *p)
{
    struct compare *c = user;
    struct klein_progress all = *p;
    const double work = c->taken.stop ? 1 : (double)p->steps;
    all.fraction = (c->done + p->fraction * work) / c->work;
    progress_update(&c->bar, &all, clock_seconds());
    return signals_received() || (c->taken.stop && c->taken.velocity);
}

/* Ops run one by one: graphs keep the weights that they were captured with. */
static struct klein_request request_of(struct compare *c, int prompt)
{
    return (struct klein_request){.size = sizeof(struct klein_request),
                                  .prompt = c->pair[prompt].prompt,
                                  .width = c->size.width,
                                  .height = c->size.height,
                                  .steps = c->s->steps,
                                  .seed = c->s->seed.value,
                                  .progress = on_progress,
                                  .progress_user = c,
                                  .tap = on_tap,
                                  .tap_user = c,
                                  .graph = KLEIN_GRAPH_OFF};
}

/* The first velocity alone, from text that was encoded before. Given to the caller. */
static enum klein_status first_velocity(struct compare *c, int prompt, const float *embeds, float **velocity,
                                        struct klein_error *err)
{
    struct klein_request q = request_of(c, prompt);
    struct klein_result result;
    q.prompt_embeds = embeds;
    q.embed_rows = c->info.text_length;
    c->taken = (struct taken){.stop = 1};
    enum klein_status status = klein_generate(c->side[0], &q, &result, err);
    if (status == KLEIN_OK) klein_result_free(&result);
    if (status == KLEIN_E_CANCELLED && c->taken.velocity && !signals_received()) {
        *err = (struct klein_error){0};
        status = KLEIN_OK;
    }
    free(c->taken.embeds);
    *velocity = c->taken.velocity;
    c->done++;
    return status || *velocity ? status : fail(err, KLEIN_E_NO_MEMORY, "no memory for a velocity");
}

static double relative_l2(const float *a, const float *b, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return norm > 0 ? sqrt(difference / norm) : difference > 0 ? INFINITY : 0;
}

/* ---- layer by layer --------------------------------------------------------------------------------------- */

/* Whether there is a table of layers: quantised matrices can take the places of others that are not, activations cannot. */
static int has_layers(const struct compare *c)
{
    return c->s->layers != NONE && c->format[0] == BF16 && c->format[1] == FP8;
}

static enum klein_status list_layers(struct compare *c, struct klein_error *err)
{
    const struct dit_config *d = &c->side[0]->model->cfg->dit;
    const int blocks = c->s->layers == KINDS ? 0 : d->double_blocks + d->single_blocks,
              kinds = c->s->layers == BLOCKS ? 0 : KIND_COUNT;
    if (!has_layers(c)) return KLEIN_OK;
    c->layer = calloc((size_t)(blocks + kinds) + 1, sizeof *c->layer);
    if (!c->layer) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a table of layers");
    for (int i = 0; i < kinds; i++) {
        struct layer *l = &c->layer[c->layers++];
        *l = (struct layer){.block = -1, .kind = i};
        snprintf(l->name, sizeof l->name, "%s", kind_names[i]);
    }
    for (int i = 0; i < blocks; i++) {
        struct layer *l = &c->layer[c->layers++];
        const int single = i - d->double_blocks;
        *l = (struct layer){.block = i, .kind = -1};
        snprintf(l->name, sizeof l->name, single < 0 ? "double block %d" : "single block %d",
                 single < 0 ? i : single);
    }
    return KLEIN_OK;
}

static void take_double(struct dit_double *to, const struct dit_double *from, int kind)
{
    for (int i = 0; i < 2; i++) { /* text and image rows are one product: all of it or nothing */
        struct dit_stream *t = &to->stream[i];
        const struct dit_stream *f = &from->stream[i];
        if (kind < 0 || kind == 0) t->qkv = f->qkv;
        if (kind < 0 || kind == 1) t->proj = f->proj;
        if (kind < 0 || kind == 2) t->mlp_in = f->mlp_in;
        if (kind < 0 || kind == 3) t->mlp_out = f->mlp_out;
    }
}

static void take_single(struct dit_single *to, const struct dit_single *from, int kind)
{
    if (kind < 0 || kind == 4) to->in = from->in;
    if (kind < 0 || kind == 5) to->out = from->out;
}

/* Puts B's matrices of layer l into A's model. */
static void mix(struct dit *a, const struct dit *b, const struct layer *l)
{
    const int doubles = a->cfg->double_blocks, singles = a->cfg->single_blocks;
    for (int i = 0; i < doubles; i++)
        if (l->block < 0 || l->block == i) take_double(&a->doubles[i], &b->doubles[i], l->kind);
    for (int i = 0; i < singles; i++)
        if (l->block < 0 || l->block == doubles + i) take_single(&a->singles[i], &b->singles[i], l->kind);
}

static enum klein_status compare_layers(struct compare *c, int prompt, const struct taken *a,
                                        struct klein_error *err)
{
    struct dit *dit = &c->side[0]->model->dit, *whole = malloc(sizeof *whole);
    if (!whole) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the model's tensor table");
    *whole = *dit;
    for (int i = 0; i < c->layers && !err->status; i++) {
        float *velocity = NULL;
        mix(dit, &c->side[1]->model->dit, &c->layer[i]);
        if (first_velocity(c, prompt, a->embeds, &velocity, err) == KLEIN_OK) {
            const double error = relative_l2(velocity, a->velocity, a->n);
            c->layer[i].squares += error * error;
        }
        free(velocity);
        *dit = *whole;
    }
    free(whole);
    return err->status;
}

/* ---- pictures --------------------------------------------------------------------------------------------- */

static enum klein_status keep_picture(const struct compare *c, int prompt, int side,
                                      const struct klein_image *image, struct klein_error *err)
{
    char path[4096];
    if (!c->s->output) return KLEIN_OK;
    snprintf(path, sizeof path, "%s/%03d-%c-%s.png", c->s->output, prompt + 1, "ab"[side],
             format_names[c->format[side]]);
    return image_write(path, image, IMAGE_PNG, 0, NULL, err);
}

static enum klein_status compare_prompt(struct compare *c, int prompt, struct klein_error *err)
{
    struct klein_result result[SIDES] = {{0}};
    struct taken taken[SIDES] = {{0}};
    struct pair *p = &c->pair[prompt];
    for (int i = 0; i < SIDES && !err->status; i++) {
        const struct klein_request q = request_of(c, prompt);
        c->taken = (struct taken){0};
        klein_generate(c->side[i], &q, &result[i], err);
        taken[i] = c->taken;
        c->done += result[i].steps;
        if (!err->status && (!taken[i].velocity || !taken[i].embeds))
            fail(err, KLEIN_E_NO_MEMORY, "no memory for a velocity");
        if (!err->status) keep_picture(c, prompt, i, &result[i].images[0], err);
    }
    if (!err->status) {
        p->psnr = similarity_psnr(&result[1].images[0], &result[0].images[0]);
        p->velocity = relative_l2(taken[1].velocity, taken[0].velocity, taken[0].n);
        similarity_ssim(&result[1].images[0], &result[0].images[0], &p->ssim, err);
    }
    if (!err->status) compare_layers(c, prompt, &taken[0], err);
    for (int i = 0; i < SIDES; i++) {
        klein_result_free(&result[i]);
        free(taken[i].velocity);
        free(taken[i].embeds);
    }
    return err->status;
}

/* ---- what is compared ------------------------------------------------------------------------------------- */

static enum klein_status read_prompts(struct compare *c, struct klein_error *err)
{
    TRY(inputs_prompt(c->s->prompts, &c->text, err));
    size_t lines = 1;
    for (const char *p = c->text; *p; p++) lines += *p == '\n';
    c->pair = calloc(lines, sizeof *c->pair);
    if (!c->pair) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %zu prompts", lines);
    char *rest = c->text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        line[strcspn(line, "\r")] = 0;
        if (line[strspn(line, " \t")]) c->pair[c->pairs++].prompt = line;
    }
    return c->pairs ? KLEIN_OK
                    : fail(err, KLEIN_E_INPUT, "\"%s\" has no prompt in it, one on each line", c->s->prompts);
}

static enum klein_status open_side(struct compare *c, int side, struct klein_error *err)
{
    const enum number_format format = c->format[side];
    const struct device_settings d = {
        .device = side ? c->info.device : c->s->device, /* A takes B's matrices */
        .threads = c->s->threads,
        .dtype = format == F32 ? KLEIN_DTYPE_F32 : KLEIN_DTYPE_BF16,
        .precision = format == FP8 ? KLEIN_PRECISION_FP8 : KLEIN_PRECISION_BF16};
    return model_open(&c->s->model, &d, side || c->s->json || c->s->message.quiet, &c->side[side], err);
}

static enum klein_status prepare(struct compare *c, struct klein_error *err)
{
    const struct settings *s = c->s;
    if (c->format[0] == c->format[1])
        return fail(err, KLEIN_E_USAGE, "both are %s: --a and --b must differ", format_names[c->format[0]]);
    if (s->size) {
        TRY(size_parse(s->size, "--size", &c->size, err));
        TRY(size_check(c->size, err));
    }
    TRY(read_prompts(c, err));
    if (s->output && mkdir(s->output, 0777) && errno != EEXIST)
        return fail(err, KLEIN_E_OUTPUT, "cannot make the folder \"%s\": %s", s->output, strerror(errno));
    TRY(open_side(c, 0, err));
    klein_model_info(c->side[0], &c->info);
    TRY(open_side(c, 1, err));
    TRY(list_layers(c, err));
    const int steps = s->steps ? s->steps : c->info.default_steps;
    c->work = c->pairs * (2.0 * steps + c->layers);
    return KLEIN_OK;
}

/* ---- what comes out --------------------------------------------------------------------------------------- */

struct means {
    double psnr, ssim, velocity; /* root mean square of the last */
};

static struct means means_of(const struct compare *c)
{
    struct means m = {0};
    for (int i = 0; i < c->pairs; i++) {
        m.psnr += c->pair[i].psnr / c->pairs;
        m.ssim += c->pair[i].ssim / c->pairs;
        m.velocity += c->pair[i].velocity * c->pair[i].velocity / c->pairs;
    }
    m.velocity = sqrt(m.velocity);
    return m;
}

static double layer_error(const struct compare *c, const struct layer *l)
{
    return sqrt(l->squares / c->pairs);
}

static void pair_cells(struct table *t, double psnr, double ssim, double velocity, const char *prompt)
{
    if (isfinite(psnr))
        table_cell(t, "%.2f", psnr);
    else
        table_cell(t, "equal");
    table_cell(t, "%.4f", ssim);
    table_cell(t, "%.3f %%", 100 * velocity);
    table_cell(t, "%.60s", prompt);
}

static int print_layers(const struct compare *c)
{
    struct table t;
    printf("\nOnly this in %s, all else in %s:\n", format_names[c->format[1]], format_names[c->format[0]]);
    table_begin(&t, "lr");
    table_cell(&t, "LAYERS");
    table_cell(&t, "VELOCITY OFF");
    for (int i = 0; i < c->layers; i++) {
        table_cell(&t, "%s", c->layer[i].name);
        table_cell(&t, "%.3f %%", 100 * layer_error(c, &c->layer[i]));
    }
    return table_print(&t, stdout);
}

static enum klein_status print_text(const struct compare *c, struct klein_error *err)
{
    const struct means m = means_of(c);
    struct table t;
    printf("%s on %s (%s): %s against %s\n\n", c->info.name, c->info.device, c->side[0]->device->description,
           format_names[c->format[1]], format_names[c->format[0]]);
    table_begin(&t, "rrrl");
    table_cell(&t, "PSNR DB");
    table_cell(&t, "SSIM");
    table_cell(&t, "VELOCITY OFF");
    table_cell(&t, "PROMPT");
    for (int i = 0; i < c->pairs; i++)
        pair_cells(&t, c->pair[i].psnr, c->pair[i].ssim, c->pair[i].velocity, c->pair[i].prompt);
    if (c->pairs > 1) pair_cells(&t, m.psnr, m.ssim, m.velocity, "(mean)");
    int ok = table_print(&t, stdout);
    puts("\nVelocity: of the first step, relative L2.");
    if (c->layers)
        ok &= print_layers(c);
    else if (c->s->layers != NONE)
        puts("The table of layers is of --a bf16 --b fp8: activations have one number format for all.");
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

static json_t *measures(double psnr, double ssim, double velocity)
{
    json_t *o = json_pack("{s:f, s:f}", "ssim", ssim, "velocity_relative_l2", velocity);
    if (o) json_object_set_new(o, "psnr", isfinite(psnr) ? json_real(psnr) : json_null());
    return o;
}

static enum klein_status print_json(const struct compare *c, struct klein_error *err)
{
    const struct means m = means_of(c);
    json_t *pairs = json_array(), *layers = json_array();
    for (int i = 0; i < c->pairs; i++) {
        json_t *o = measures(c->pair[i].psnr, c->pair[i].ssim, c->pair[i].velocity);
        if (o) json_object_set_new(o, "prompt", json_string(c->pair[i].prompt));
        json_array_append_new(pairs, o);
    }
    for (int i = 0; i < c->layers; i++)
        json_array_append_new(layers, json_pack("{s:s, s:f}", "layers", c->layer[i].name,
                                                "velocity_relative_l2", layer_error(c, &c->layer[i])));
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "model", c->info.name, "device",
                          c->info.device, "description", c->side[0]->device->description, "a",
                          format_names[c->format[0]], "b", format_names[c->format[1]], "prompts", pairs,
                          "mean", measures(m.psnr, m.ssim, m.velocity), "sensitivity", layers);
    const int failed = !o || json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    const struct settings *s = settings;
    struct compare c = {.s = s, .format = {formats_a[s->a], formats_b[s->b]}};
    const struct message_settings *m = &c.s->message;
    enum klein_status status = prepare(&c, err);
    signals_install();
    progress_begin(&c.bar, stderr, progress_style_for(stderr, m->verbose, m->quiet || c.s->json),
                   clock_seconds());
    for (int i = 0; i < c.pairs && !status; i++) status = compare_prompt(&c, i, err);
    progress_clear(&c.bar);
    if (!status) status = c.s->json ? print_json(&c, err) : print_text(&c, err);
    for (int i = 0; i < SIDES; i++) klein_close(c.side[i]);
    free(c.layer);
    free(c.pair);
    free(c.text);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option compare_options[] = {
    {0, "a", "TYPE", CLI_CHOICE, AT(a), .help = "the number format that is compared with", .standard = "bf16",
     .choices = "bf16|fp8|f32"},
    {0, "b", "TYPE", CLI_CHOICE, AT(b), .help = "the one that is judged", .standard = "fp8",
     .choices = "fp8|bf16|f32"},
    {0, "layers", "WHICH", CLI_CHOICE, AT(layers),
     .help =
         "also the first velocity with one block, or one kind of layer in all blocks, quantised at a time",
     .standard = "all", .choices = "all|blocks|kinds|none"},
    {0, "size", "WxH", CLI_TEXT, AT(size), .help = "size of the pictures", .standard = "the model's"},
    {'s', "steps", "N", CLI_INT, AT(steps), .help = "denoising steps", .standard = "4; base models 50",
     CLI_RANGE(1, KLEIN_MAX_STEPS)},
    {'S', "seed", "N", CLI_SEED, AT(seed), .help = "of the noise, the same for all prompts", .standard = "0"},
    {'o', "output", "DIR", CLI_TEXT, AT(output), .help = "keep the pictures in this folder"},
    {0},
};
static const struct cli_option computing_options[] = {
    {0, "device", "NAME", CLI_TEXT, AT(device), .help = "where to compute; \"klein devices\" lists them",
     .standard = "the first GPU that can hold the model, else cpu"},
    {0, "threads", "N", CLI_INT, AT(threads), .help = "processor threads", .standard = "all",
     CLI_RANGE(1, 1024)},
    {0},
};

static const struct cli_group groups[] = {
    {"Comparison", compare_options, 0},         {NULL, json_options, AT(json)},
    {"Model", model_options, AT(model)},        {"Computing", computing_options, 0},
    {"Messages", message_options, AT(message)}, {0},
};

const struct cli_command command_compare = {
    .name = "compare",
    .summary = "say what another number format does to the pictures",
    .about = "Makes a picture of each line of the file twice, from the same noise, in the number formats --a "
             "and --b, and "
             "prints how the second differs: PSNR and SSIM of the pictures, and the relative L2 error of the "
             "first "
             "step's velocity, which says more: later steps start from other latents. Both models are in "
             "memory at a "
             "time.",
    .examples = "klein compare --b fp8 prompts.txt -o pictures\n"
                "klein compare --a f32 --b bf16 --layers none prompts.txt --json\n",
    .operand = {.argument = "FILE",
                .kind = CLI_TEXT,
                .offset = AT(prompts),
                .help = "prompts, one on each line (\"-\": standard input)"},
    .operand_needed = 1,
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
