/* shared_options.h: options that several commands have, and what follows from them. A command lists them
 * among its groups with the offset of the struct (or int) in its settings that they write to. */
#ifndef KLEIN_SHARED_OPTIONS_H
#define KLEIN_SHARED_OPTIONS_H

#include "cli.h"

#include "../engine/klein.h"

struct model_settings {
    const char *model, *transformer, *text_encoder, *vae;
    int variant; /* enum klein_variant */
};
struct device_settings {
    const char *device;
    int dtype; /* enum klein_dtype */
    int threads;
    int graph;     /* enum klein_graph */
    int precision; /* enum klein_precision */
    const char *gpus;
    int parallel; /* enum klein_parallel */
};
struct message_settings {
    int quiet, verbose;
};

extern const struct cli_option model_options[];   /* struct model_settings */
extern const struct cli_option device_options[];  /* struct device_settings, but for dtype */
extern const struct cli_option dtype_options[];   /* int: enum klein_dtype */
extern const struct cli_option message_options[]; /* struct message_settings */
extern const struct cli_option json_options[];    /* int */
extern const struct cli_option config_options[];  /* const char * */

/* The demo checkpoint's folder: where it was installed, or in the source tree that klein was built from. NULL: in neither. Lives as long as the
 * program; not for several threads at once. */
const char *model_demo(void);
/* Where the model is: -m, else KLEIN_MODEL, else the demo checkpoint that comes with klein (*demo is then 1).
 * The paths live as long as the settings and the environment. KLEIN_E_MODEL_MISSING, saying how to get one,
 * if there is none. */
enum klein_status model_choose(const struct model_settings *m, struct klein_open_options *out, int *demo,
                               struct klein_error *err);
/* The numbers of --gpus (none: *n is 0). */
enum { GPUS_MAX = 8 };
enum klein_status device_gpus(const struct device_settings *d, int gpus[GPUS_MAX], int *n,
                              struct klein_error *err);
/* Says which GPUs were passed over, and why, where one was to be expected. */
void model_note_device(const struct klein *k);
/* The same and the device's options; says so when it is the demo checkpoint, and model_note_device, unless quiet. */
enum klein_status model_open(const struct model_settings *m, const struct device_settings *d, int quiet,
                             struct klein **out, struct klein_error *err);

#endif
