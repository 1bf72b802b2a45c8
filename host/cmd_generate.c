/* klein generate: a prompt (and reference pictures) to picture files. */
#include "commands.h"
#include "dump.h"
#include "inputs.h"
#include "message.h"
#include "output.h"
#include "parameters.h"
#include "report.h"
#include "shared_options.h"
#include "signals.h"
#include "size.h"
#include "terminal.h"

#include "../engine/resize.h"
#include "../base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

struct settings {
    const char *prompt, *prompt_option, *prompt_file;
    struct cli_texts references;

    const char *size, *aspect;
    int width, height, steps, images, noise;
    const char *sigmas;
    struct cli_seed seed;
    float guidance;

    const char *output;
    int format, quality, no_metadata, show, json;

    struct model_settings model;
    struct device_settings device;
    struct message_settings messages;

    const char *latents, *prompt_embeds, *dump;
    int dump_blocks;
};

#define AT(field) offsetof(struct settings, field)
static const struct cli_option input_options[] = {
    {'p', "prompt", "TEXT", CLI_TEXT, AT(prompt_option), .help = "the prompt, as an option",
     .excludes = "prompt-file"},
    {0, "prompt-file", "FILE", CLI_TEXT, AT(prompt_file),
     .help = "read the prompt from a file; - is standard input"},
    {'i', "image", "FILE", CLI_TEXTS, AT(references),
     .help = "reference picture to edit or to combine; may be repeated, up to 16 times",
     .max = KLEIN_MAX_REFERENCES},
    {0},
};

static const struct cli_option picture_options[] = {
    {'W', "width", "PIXELS", CLI_INT, AT(width),
     .help = "width, a multiple of 16; the height follows unless it is given", CLI_RANGE(1, 1e6)},
    {'H', "height", "PIXELS", CLI_INT, AT(height), .help = "height, a multiple of 16", CLI_RANGE(1, 1e6)},
    {0, "size", "WxH", CLI_TEXT, AT(size), .help = "both, such as 1024x768",
     .standard = "that of the first reference, else the model's"},
    {0, "aspect", "A:B", CLI_TEXT, AT(aspect),
     .help = "proportions, such as 16:9, with the area of the default size"},
    {'s', "steps", "N", CLI_INT, AT(steps), .help = "denoising steps", .standard = "4; base models 50",
     CLI_RANGE(1, KLEIN_MAX_STEPS)},
    {0, "sigmas", "LIST", CLI_TEXT, AT(sigmas),
     .help = "schedule before the shift, such as 1,0.75,0.5,0.25; sets the steps", .standard = "1 - i/steps"},
    {'S', "seed", "N", CLI_SEED, AT(seed), .help = "picture i of -n uses seed N + i", .standard = "random"},
    {'g', "guidance", "X", CLI_FLOAT, AT(guidance),
     .help = "classifier-free guidance, base models only; 1 is none", .standard = "4", CLI_RANGE(1, 100)},
    {'n', "count", "N", CLI_INT, AT(images), .help = "number of pictures", .standard = "1",
     CLI_RANGE(1, KLEIN_MAX_IMAGES)},
    {0, "noise", "KIND", CLI_CHOICE, AT(noise),
     .help = "what a seed means: torch.randn on the CPU in float32 or bfloat16", .standard = "torch",
     .choices = "torch|torch-bf16"},
    {0},
};

static const struct cli_option output_options[] = {
    {'o', "output", "FILE", CLI_TEXT, AT(output),
     .help = "picture to write, replaced if it exists; a folder, a pattern such as cat-%03d.png, or - for "
             "standard "
             "output",
     .standard = "klein-SEED.png, never overwriting"},
    {0, "format", "NAME", CLI_CHOICE, AT(format), .help = "file format",
     .standard = "by the extension, else png", .choices = "auto|png|jpeg|webp"},
    {0, "quality", "N", CLI_INT, AT(quality), .help = "of JPEG and WebP", .standard = "92",
     CLI_RANGE(1, 100)},
    {0, "no-metadata", NULL, CLI_FLAG, AT(no_metadata),
     .help = "do not store prompt, seed and settings in the file"},
    {0, "show", "HOW", CLI_CHOICE, AT(show), .help = "show the picture in the terminal",
     .standard = "off; auto without HOW", .choices = "off|auto|kitty|iterm|sixel|blocks", .bare = 1},
    {0},
};

static const struct cli_option research_options[] = {
    {0, "latents", "FILE", CLI_TEXT, AT(latents),
     .help = "start from the tensor \"latents\" [1, 128, H/16, W/16] of a safetensors file, not from a seed"},
    {0, "prompt-embeds", "FILE", CLI_TEXT, AT(prompt_embeds),
     .help = "use the tensor \"prompt_embeds\" [1, 512, width] of a safetensors file, not a prompt"},
    {0, "dump", "FILE", CLI_TEXT, AT(dump), .help = "write the intermediate tensors to a safetensors file"},
    {0, "dump-blocks", NULL, CLI_FLAG, AT(dump_blocks),
     .help = "with --dump: also the output of every block, in every step", .needs = "dump"},
    {0},
};

static const struct cli_group groups[] = {
    {"Input", input_options, 0},
    {"Picture", picture_options, 0},
    {"Output", output_options, 0},
    {NULL, json_options, AT(json)},
    {"Model", model_options, AT(model)},
    {"Computing", device_options, AT(device)},
    {NULL, dtype_options, AT(device.dtype)},
    {"Messages", message_options, AT(messages)},
    {"Research", research_options, 0},
    {0},
};

/* One call of klein generate: what was read, opened and made; freed as a whole. */
struct generation {
    const struct settings *s;
    struct output output;
    char *prompt_text; /* when it came from a file */
    struct klein_image references[KLEIN_MAX_REFERENCES];
    float *latents, *prompt_embeds, *sigmas;
    struct klein *klein;
    struct klein_model_info model;
    struct klein_request request;
    struct dump *dump;
    struct progress_bar bar;
    struct klein_result result;
    char **files;
    struct klein_error trouble; /* of writing a picture */
    int written;
};

/* --- before the long work ------------------------------------------------------------------------------- */

static enum klein_status check_settings(const struct settings *s, struct klein_error *err)
{
    int to_stdout = s->output && !strcmp(s->output, "-");
    int reads_stdin =
        (s->prompt && !strcmp(s->prompt, "-")) || (s->prompt_file && !strcmp(s->prompt_file, "-"));
    for (int i = 0; i < s->references.n; i++)
        if (!strcmp(s->references.item[i], "-") && reads_stdin++)
            return fail(err, KLEIN_E_USAGE,
                        "standard input can be read once: only one - among the prompt and the references");
    if (s->prompt && (s->prompt_option || s->prompt_file))
        return fail(err, KLEIN_E_USAGE, "two prompts: \"%s\" and --%s; give one", s->prompt,
                    s->prompt_option ? "prompt" : "prompt-file");
    if (to_stdout && s->json)
        return fail(err, KLEIN_E_USAGE, "-o - and --json both write to standard output; give -o FILE");
    if (s->show && (to_stdout || s->json))
        return fail(err, KLEIN_E_USAGE, "--show and %s both write to standard output; give one",
                    to_stdout ? "-o -" : "--json");
    const char *const in_json[] = {s->output, s->dump, s->prompt, s->prompt_option};
    for (size_t i = 0; s->json && i < sizeof in_json / sizeof in_json[0]; i++)
        if (in_json[i] && !report_is_utf8(in_json[i]))
            return fail(err, KLEIN_E_USAGE, "\"%s\" is not UTF-8, which --json needs", in_json[i]);
    if (s->prompt_embeds && (s->prompt || s->prompt_option || s->prompt_file))
        return fail(err, KLEIN_E_USAGE, "--prompt-embeds replaces the prompt; leave the prompt out");
    if (s->latents && s->images > 1)
        return fail(err, KLEIN_E_USAGE, "--latents would make the same picture %d times; leave -n out",
                    s->images);
    if (s->latents && s->seed.given)
        return fail(err, KLEIN_E_USAGE, "--latents replaces the noise; leave --seed out");
    if (s->images > 1 && s->seed.value > INT64_MAX - (uint64_t)s->images + 1)
        return fail(err, KLEIN_E_USAGE,
                    "--seed %llu leaves no seeds for %d pictures: it must be %lld at most",
                    (unsigned long long)s->seed.value, s->images, (long long)INT64_MAX - s->images + 1);
    return KLEIN_OK;
}

static enum klein_status read_prompt(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    const char *file = s->prompt && !strcmp(s->prompt, "-") ? "-" : s->prompt_file;
    if (file) {
        if (!strcmp(file, "-") && isatty(STDIN_FILENO) && !s->messages.quiet)
            message(MESSAGE_NOTE,
                    "reading the prompt from the terminal; end it with Ctrl-D on a line of its own");
        TRY(inputs_prompt(file, &g->prompt_text, err));
    }
    g->request.prompt = file ? g->prompt_text : s->prompt ? s->prompt : s->prompt_option;
    if (!g->request.prompt && s->prompt_embeds) g->request.prompt = "";
    if (!g->request.prompt)
        return fail(err, KLEIN_E_USAGE,
                    "a prompt is missing: klein generate \"a red balloon on a wooden table\"");
    return KLEIN_OK;
}

static enum klein_status read_references(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    TRY(inputs_references(s->references.item, s->references.n, g->references, err));
    g->request.references = g->references;
    g->request.n_references = s->references.n;
    return KLEIN_OK;
}

static enum klein_status read_tensors(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    struct klein_request *q = &g->request;
    if (s->latents) TRY(inputs_latents(s->latents, &g->latents, &q->width, &q->height, err));
    if (s->prompt_embeds)
        TRY(inputs_embeds(s->prompt_embeds, g->model.text_length, g->model.text_width, &g->prompt_embeds,
                          err));
    q->latents = g->latents;
    q->prompt_embeds = g->prompt_embeds;
    q->embed_rows = g->prompt_embeds ? g->model.text_length : 0;
    return KLEIN_OK;
}

static enum klein_status choose_size(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    struct klein_request *q = &g->request;
    struct size asked, usual = {g->model.default_width, g->model.default_height};
    int scaled[2];
    if (q->n_references)
        TRY(reference_size(g->references[0].width, g->references[0].height, &scaled[0], &scaled[1],
                           &usual.width, &usual.height, err));
    TRY(size_choose(s->size, s->width, s->height, s->aspect, usual, &asked, err));
    if (q->latents && asked.width && (asked.width != q->width || asked.height != q->height))
        return fail(err, KLEIN_E_USAGE, "%s: latents for %dx%d, not for %dx%d; leave the size out",
                    s->latents, q->width, q->height, asked.width, asked.height);
    if (!q->latents) {
        q->width = asked.width;
        q->height = asked.height;
    }
    return KLEIN_OK;
}

static enum klein_status choose_seed(struct generation *g, struct klein_error *err)
{
    uint32_t random; /* 32 bits: short to read, and all that torch's CPU generator looks at */
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return fail(err, KLEIN_E_INTERNAL, "no random seed: %s; give one with --seed", strerror(errno));
    g->request.seed = g->s->seed.given ? g->s->seed.value : g->s->latents ? 0 : random;
    return KLEIN_OK;
}

static enum klein_status choose_schedule(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    int n = s->steps;
    if (s->sigmas) TRY(inputs_sigmas(s->sigmas, &g->sigmas, &n, err));
    if (s->steps && s->steps != n)
        return fail(err, KLEIN_E_USAGE, "--sigmas has %d numbers, so %d steps, not %d; leave --steps out", n,
                    n, s->steps);
    g->request.steps = n;
    g->request.sigmas = g->sigmas;
    return KLEIN_OK;
}

/* In an order that finds mistakes before anything slow is done. */
static enum klein_status prepare(struct generation *g, struct klein_error *err)
{
    const struct settings *s = g->s;
    g->request = (struct klein_request){.size = sizeof g->request,
                                        .guidance = s->guidance,
                                        .images = s->images ? s->images : 1,
                                        .noise = (enum klein_noise)s->noise,
                                        .graph = (enum klein_graph)s->device.graph,
                                        .tap_blocks = s->dump_blocks};
    g->output = (struct output){s->output, (enum image_format)s->format, g->request.images};
    TRY(check_settings(s, err));
    TRY(choose_schedule(g, err));
    TRY(choose_seed(g, err));
    TRY(output_check(&g->output, err));
    if (s->dump) TRY(output_check_file(s->dump, err));
    TRY(read_prompt(g, err));
    TRY(read_references(g, err));
    TRY(model_open(&s->model, &s->device, s->messages.quiet, &g->klein, err));
    klein_model_info(g->klein, &g->model);
    TRY(read_tensors(g, err));
    return choose_size(g, err);
}

/* --- the work ------------------------------------------------------------------------------------------- */

static int on_progress(void *user, const struct klein_progress *p)
{
    struct generation *g = user;
    progress_update(&g->bar, p, clock_seconds());
    return signals_received() || g->trouble.status != KLEIN_OK;
}

static const char *noise_name(const struct settings *s)
{
    return s->latents ? "given" : s->noise == KLEIN_NOISE_TORCH ? "torch" : "torch-bf16";
}

static enum klein_status write_dump(struct generation *g, struct klein_error *err)
{
    if (!g->dump) return KLEIN_OK;
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)g->request.seed);
    const char *const metadata[] = {"klein", KLEIN_VERSION, "model", g->model.name, "seed", seed, NULL};
    enum klein_status status = dump_finish(g->dump, metadata, err);
    g->dump = NULL;
    return status;
}

static enum klein_status write_picture(struct generation *g, int i, const struct klein_result *r,
                                       struct klein_error *err)
{
    const struct settings *s = g->s;
    char path[4096];
    char *text = NULL;
    const struct device_text device = report_device(&g->model);
    TRY(output_path(&g->output, i, r->seeds[i], path, sizeof path, err));
    struct parameters p = {.prompt = g->request.prompt,
                           .steps = r->steps,
                           .width = r->width,
                           .height = r->height,
                           .references = g->request.n_references,
                           .guidance = r->guidance,
                           .seed = r->seeds[i],
                           .latent_hash = r->latent_hashes[i],
                           .model = g->model.name,
                           .noise = noise_name(s),
                           .device = device.text,
                           .dtype = g->model.dtype,
                           .precision = g->model.precision};
    if (!s->no_metadata && !(text = parameters_text(&p)))
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for metadata");
    enum { QUALITY = 92 }; /* of `standard` above */
    enum klein_status status =
        image_write(path, &r->images[i], g->output.format, s->quality ? s->quality : QUALITY, text, err);
    free(text);
    TRY(status);
    g->files[i] = strdup(path);
    if (!g->files[i]) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a path");
    if (strcmp(path, "-") && !s->json) printf("%s\n", path);
    return KLEIN_OK;
}

static enum klein_status show(const struct generation *g, int i, const struct klein_result *r,
                              struct klein_error *err)
{
    static const char *const names[] = {"none", "auto", "kitty", "iterm", "sixel", "blocks"};
    if (!g->s->show) return KLEIN_OK;
    enum terminal_picture how = terminal_picture_named(names[g->s->show]);
    if (how == TERMINAL_NONE) {
        if (i == 0 && !g->s->messages.quiet)
            message(MESSAGE_NOTE,
                    "--show: no way to show pictures here is known; say which, as in --show=blocks");
        return KLEIN_OK;
    }
    enum klein_status status = terminal_show(stdout, &r->images[i], how, 0);
    return status ? fail(err, status, "cannot show the picture: %s", klein_status_text(status)) : KLEIN_OK;
}

/* Each picture is written when it is there, so that an interrupted call keeps those that were finished. */
static void on_finished(void *user, int image, const struct klein_result *so_far)
{
    struct generation *g = user;
    if (g->trouble.status != KLEIN_OK) return;
    progress_clear(&g->bar);
    if (write_picture(g, image, so_far, &g->trouble) == KLEIN_OK) show(g, image, so_far, &g->trouble);
    g->written += g->trouble.status == KLEIN_OK;
    fflush(stdout);
}

static enum klein_status make(struct generation *g, struct klein_error *err)
{
    const struct message_settings *m = &g->s->messages;
    if (g->s->dump) {
        TRY(dump_begin(g->s->dump, &g->dump, err));
        g->request.tap = dump_tap;
        g->request.tap_user = g->dump;
    }
    progress_begin(&g->bar, stderr, progress_style_for(stderr, m->verbose, m->quiet), clock_seconds());
    g->request.progress = on_progress;
    g->request.progress_user = g;
    g->request.finished = on_finished;
    g->request.finished_user = g;
    g->files = calloc((size_t)g->request.images, sizeof *g->files);
    if (!g->files) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %d paths", g->request.images);
    enum klein_status status = klein_generate(g->klein, &g->request, &g->result, err);
    progress_clear(&g->bar);
    if (g->trouble.status != KLEIN_OK) return fail(err, g->trouble.status, "%s", g->trouble.message);
    if (status == KLEIN_E_CANCELLED && g->written)
        snprintf(err->message, sizeof err->message,
                 "interrupted; %d of %d pictures were written, from seed %llu on", g->written,
                 g->request.images, (unsigned long long)g->request.seed);
    else if (status == KLEIN_E_CANCELLED)
        snprintf(err->message, sizeof err->message, "interrupted; nothing was written");
    return status;
}

static enum klein_status report(struct generation *g, struct klein_error *err)
{
    const struct klein_result *r = &g->result;
    TRY(write_dump(g, err));
    struct report all = {.request = &g->request,
                         .result = r,
                         .model = &g->model,
                         .files = g->files,
                         .noise = noise_name(g->s),
                         .seeded = !g->s->latents,
                         .dump = g->s->dump};
    if (g->s->json) return report_json(&all, stdout, err);
    if (!g->s->messages.quiet)
        report_notes(&all);
    else if (g->s->output && g->s->no_metadata && !g->s->seed.given && !g->s->latents)
        message(MESSAGE_WARNING, "random seed %llu, which no file tells", (unsigned long long)r->seeds[0]);
    return KLEIN_OK;
}

static void free_all(struct generation *g)
{
    for (int i = 0; g->files && i < g->request.images; i++) free(g->files[i]);
    free(g->files);
    dump_abort(g->dump);
    klein_result_free(&g->result);
    klein_close(g->klein);
    for (int i = 0; i < KLEIN_MAX_REFERENCES; i++) image_free(&g->references[i]);
    free(g->latents);
    free(g->prompt_embeds);
    free(g->sigmas);
    free(g->prompt_text);
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    struct generation g = {.s = settings};
    enum klein_status status = prepare(&g, err);
    if (status == KLEIN_OK) {
        signals_install();
        if (g.s->messages.verbose) report_request(&g.request, &g.model, g.s->references.item);
        status = make(&g, err);
    }
    if (g.result.warning[0]) message(MESSAGE_WARNING, "%s", g.result.warning);
    if (status == KLEIN_OK) status = report(&g, err);
    free_all(&g);
    return status;
}

const struct cli_command command_generate = {
    .name = "generate",
    .summary = "make pictures from a prompt, edit a picture, or combine several",
    .about = "PROMPT is the text in quotes; - reads it from standard input. Each picture's path is printed "
             "on standard output.",
    .examples = "klein generate \"a red balloon on a wooden table\" -o balloon.png\n"
                "klein generate -i room.jpg \"make it winter outside\" --seed 7\n"
                "klein generate -i cat.png -i hat.png \"the cat wears the hat\" --aspect 4:3\n"
                "klein generate -n 4 -o \"cat-%02d.webp\" \"a cat\" --json\n",
    .operand = {.kind = CLI_TEXT, .offset = AT(prompt), .argument = "PROMPT"},
    .operand_excess = "(put quotes around a prompt of several words; -i goes before each reference)",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
