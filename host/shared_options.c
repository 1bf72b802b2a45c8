#include "shared_options.h"
#include "message.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(struct model_settings, field)
const struct cli_option model_options[] = {
    {'m', "model", "DIR", CLI_TEXT, AT(model),
     .help = "model folder in the diffusers layout, or a transformer's single file",
     .standard = "$KLEIN_MODEL, else the demo model that comes with klein"},
    {0, "transformer", "FILE", CLI_TEXT, AT(transformer),
     .help = "take the transformer from this file or folder"},
    {0, "text-encoder", "FILE", CLI_TEXT, AT(text_encoder),
     .help = "take the text encoder from this file or folder"},
    {0, "vae", "FILE", CLI_TEXT, AT(vae), .help = "take the VAE from this file or folder"},
    {0, "base", NULL, CLI_FLAG, AT(variant), .help = "treat it as a base model: many steps, with guidance",
     .value = KLEIN_VARIANT_BASE, .excludes = "distilled"},
    {0, "distilled", NULL, CLI_FLAG, AT(variant),
     .help = "treat it as a distilled model: few steps, no guidance",
     .standard = "what model_index.json says", .value = KLEIN_VARIANT_DISTILLED},
    {0},
};

#undef AT
#define AT(field) offsetof(struct device_settings, field)
const struct cli_option device_options[] = {
    {0, "device", "NAME", CLI_TEXT, AT(device), .help = "where to compute; \"klein devices\" lists them",
     .standard = "the first GPU that can hold the model, else cpu"},
    {0, "threads", "N", CLI_INT, AT(threads), .help = "processor threads", .standard = "all",
     CLI_RANGE(1, 1024)},
    {0, "graph", "WHAT", CLI_CHOICE, AT(graph),
     .help = "what a GPU launches as one: the stages, the whole request, or (off) each operation",
     .standard = "stages", .choices = "stages|request|off"},
    {0, "precision", "TYPE", CLI_CHOICE, AT(precision),
     .help = "number format in which the transformer's blocks multiply; fp8 needs a GPU since Ada (sm_89)",
     .standard = "bf16", .choices = "bf16|fp8"},
    {0, "gpus", "LIST", CLI_TEXT, AT(gpus),
     .help = "use these GPUs together, such as 0,1,2,3; each holds all weights"},
    {0, "parallel", "HOW", CLI_CHOICE, AT(parallel),
     .help = "with --gpus: all on each picture, by tokens and attention heads (their number must divide the "
             "heads); two on "
             "the two passes of a base model's guidance; or each on other pictures of -n",
     .standard = "ulysses", .choices = "ulysses|cfg|replica", .needs = "gpus"},
    {0},
};

#undef AT
#define AT(field) offsetof(struct message_settings, field)
const struct cli_option message_options[] = {
    {'q', "quiet", NULL, CLI_FLAG, AT(quiet), .help = "no progress and no notes, only warnings and errors",
     .excludes = "verbose"},
    {'v', "verbose", NULL, CLI_FLAG, AT(verbose),
     .help = "say what is done; progress as lines where there is no terminal"},
    {0},
};

const struct cli_option dtype_options[] = {
    {0, "dtype", "TYPE", CLI_CHOICE, 0, .help = "number format of activations",
     .standard = "auto, the device's fastest", .choices = "auto|f32|bf16"},
    {0},
};

const struct cli_option config_options[] = {
    {0, "config", "NAME", CLI_TEXT, 0,
     .help =
         "sizes of a model that need not be there: klein-4b, klein-base-4b, klein-9b, klein-base-9b, tiny"},
    {0},
};

const struct cli_option json_options[] = {
    {0, "json", NULL, CLI_FLAG, 0, .help = "print the result as one JSON object, on one line"},
    {0},
};

/* That of an installed klein lies where the program's own path leads, else it is in the source folder. */
const char *model_demo(void)
{
    static char folder[PATH_MAX];
    char program[PATH_MAX], installed[2 * PATH_MAX], index[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    char *name = strrchr(program, '/');
    if (name) *name = 0;
    snprintf(installed, sizeof installed, "%s/" KLEIN_SHARE "/nano", program);
    const char *const places[] = {installed, KLEIN_NANO_DIR};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (!realpath(places[i], folder)) continue;
        snprintf(index, sizeof index, "%s/model_index.json", folder);
        if (access(index, R_OK) == 0) return folder;
    }
    return NULL;
}

enum klein_status model_choose(const struct model_settings *m, struct klein_open_options *out, int *demo,
                               struct klein_error *err)
{
    const char *from_environment = getenv("KLEIN_MODEL");
    *demo = 0;
    *out = (struct klein_open_options){.size = sizeof *out,
                                       .model = m->model,
                                       .transformer = m->transformer,
                                       .text_encoder = m->text_encoder,
                                       .vae = m->vae,
                                       .variant = (enum klein_variant)m->variant};
    if (!out->model && !(m->transformer && m->text_encoder && m->vae)) {
        out->model = from_environment && *from_environment ? from_environment : model_demo();
        *demo = out->model && out->model != from_environment;
        if (!out->model)
            return fail(err, KLEIN_E_MODEL_MISSING,
                        "no model: give its folder with -m DIR or in KLEIN_MODEL (to try things out, \"klein "
                        "make-random -o "
                        "DIR\" makes one that draws noise)");
    }
    if (out->model && access(out->model, F_OK))
        return fail(err, KLEIN_E_MODEL_MISSING, "there is no model at \"%s\"%s: %s", out->model,
                    out->model == from_environment ? " (from KLEIN_MODEL)" : "", strerror(errno));
    return KLEIN_OK;
}

/* "0,1,3" to numbers. */
static enum klein_status read_gpus(const char *list, int *gpus, int *n, struct klein_error *err)
{
    for (const char *at = list; *n < GPUS_MAX; at++) {
        char *end;
        long gpu = *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : -1;
        if (gpu < 0 || gpu > 255) break;
        gpus[(*n)++] = (int)gpu;
        at = end;
        if (!*at) return KLEIN_OK;
        if (*at != ',') break;
    }
    return fail(err, KLEIN_E_USAGE, "--gpus %s: up to %d numbers of GPUs, as in 0,1,2,3", list, GPUS_MAX);
}

enum klein_status device_gpus(const struct device_settings *d, int gpus[GPUS_MAX], int *n,
                              struct klein_error *err)
{
    *n = 0;
    return d->gpus ? read_gpus(d->gpus, gpus, n, err) : KLEIN_OK;
}

void model_note_device(const struct klein *k)
{
    struct klein_model_info info;
    klein_model_info(k, &info);
    if (info.no_gpu) message(MESSAGE_NOTE, "on %s: %s", info.device, info.no_gpu);
}

enum klein_status model_open(const struct model_settings *m, const struct device_settings *d, int quiet,
                             struct klein **out, struct klein_error *err)
{
    struct klein_open_options options;
    int demo, gpus[GPUS_MAX], n_gpus;
    TRY(device_gpus(d, gpus, &n_gpus, err));
    TRY(model_choose(m, &options, &demo, err));
    if (d->device && !strcmp(d->device, "null"))
        return fail(
            err, KLEIN_E_NO_DEVICE,
            "device \"null\" only counts (for klein plan); \"klein devices\" lists those that compute");
    options.device = d->device;
    options.threads = d->threads;
    options.dtype = (enum klein_dtype)d->dtype;
    options.precision = (enum klein_precision)d->precision;
    options.gpus = gpus;
    options.n_gpus = n_gpus;
    options.parallel = (enum klein_parallel)d->parallel;
    if (demo && !quiet)
        message(MESSAGE_NOTE,
                "using the demo model %s, a toy that knows one small world; the official one: "
                "tools/download klein-4b, then -m FLUX.2-klein-4B",
                options.model);
    TRY(klein_open(&options, out, err));
    if (!quiet) model_note_device(*out);
    return KLEIN_OK;
}
