/* klein make-random: a model folder of random weights. */
#include "commands.h"
#include "message.h"
#include "shared_options.h"
#include "signals.h"
#include "table.h"
#include "terminal.h"

#include "../engine/model.h"
#include "../weights/make_random.h"

struct settings {
    const char *config, *output, *tokenizer;
    struct cli_seed seed;
    int used_only;
    struct message_settings messages;
};

struct progress {
    enum progress_style style;
    int tenths, drawn; /* of the bytes: reported last; whether a line stands on the screen */
};

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;
    int percent = (int)(100 * (double)done / (double)(total ? total : 1));
    struct quantity of = quantity((double)total);
    if (p->style == PROGRESS_BAR) {
        fprintf(stderr, "\r\033[Kwriting: %3d %% of %sB", percent, of.text);
        fflush(stderr);
        p->drawn = 1;
    } else if (p->style == PROGRESS_LINES && percent / 10 > p->tenths) {
        message(MESSAGE_NOTE, "%d %% of %sB written", percent, of.text);
    }
    p->tenths = percent / 10;
    return signals_received();
}

static enum klein_status run(const void *settings, struct klein_error *err)
{
    const struct settings *s = settings;
    struct model_config config;
    struct progress progress = {.style = progress_style_for(stderr, s->messages.verbose, s->messages.quiet)};
    if (!s->output) return fail(err, KLEIN_E_USAGE, "where to? klein make-random --config tiny -o DIR");
    TRY(config_named(s->config ? s->config : "tiny", &config, err));
    struct make_random_options options = {.config = &config,
                                          .dir = s->output,
                                          .seed = s->seed.value,
                                          .tokenizer_dir = s->tokenizer,
                                          .used_only = s->used_only,
                                          .progress = on_progress,
                                          .user = &progress};
    signals_install();
    enum klein_status status = make_random(&options, model_visit, err);
    if (progress.drawn) fputs("\r\033[K", stderr);
    if (status == KLEIN_E_CANCELLED)
        snprintf(err->message, sizeof err->message, "interrupted; nothing was written");
    if (status == KLEIN_OK) printf("%s\n", s->output);
    return status;
}

#define AT(field) offsetof(struct settings, field)
static const struct cli_option options[] = {
    {'o', "output", "DIR", CLI_TEXT, AT(output), .help = "folder to make; an existing one must be empty"},
    {'S', "seed", "N", CLI_SEED, AT(seed), .help = "of the random values", .standard = "0"},
    {0, "tokenizer", "DIR", CLI_TEXT, AT(tokenizer), .help = "folder to copy the tokenizer from",
     .standard = "one of single bytes"},
    {0, "used-only", NULL, CLI_FLAG, AT(used_only),
     .help = "leave out the text encoder's last layers, which klein does not read (but diffusers wants)"},
    {0},
};

static const struct cli_group groups[] = {
    {"Model", config_options, AT(config)},
    {NULL, options, 0},
    {"Messages", message_options, AT(messages)},
    {0},
};

const struct cli_command command_make_random = {
    .name = "make-random",
    .summary = "write a model folder of random weights, to try things out and to measure",
    .about = "The folder has the layout and the sizes of an official one, with bf16 weights; its pictures "
             "are noise. Without --config "
             "the model is tiny (a few megabytes). The same seed gives the same files.",
    .examples = "klein make-random -o tiny\n"
                "klein make-random --config klein-4b -o random-4b\n",
    .groups = groups,
    .settings_size = sizeof(struct settings),
    .run = run,
};
