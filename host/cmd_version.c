/* klein version and klein help. */
#include "commands.h"
#include "build_commit.h"
#include "shared_options.h"

#include "../engine/klein.h"
#include "../kernels/device.h"

#include <jansson.h>
#include <oneapi/dnnl/dnnl.h>

#ifdef __clang__
#define COMPILER "Clang " __clang_version__
#else
#define COMPILER "GCC " __VERSION__
#endif
#ifdef NDEBUG
#define BUILD "release"
#else
#define BUILD "debug"
#endif

struct version_settings {
    int json;
};

static enum klein_status run_version(const void *settings, struct klein_error *err)
{
    const struct version_settings *s = settings;
    const dnnl_version_t *dnnl = dnnl_version();
    struct klein_error no_device = {0};
    struct device *cpu = NULL;
    char onednn[32];
    snprintf(onednn, sizeof onednn, "%d.%d.%d", dnnl->major, dnnl->minor, dnnl->patch);
    device_open("cpu", &(struct device_options){0}, &cpu, &no_device);
    const char *processor = cpu ? cpu->description : no_device.message;
    int failed = 0;
    if (s->json) {
        json_t *o =
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "version", klein_version(), "commit", KLEIN_COMMIT,
                      "compiler", COMPILER, "build", BUILD, "onednn", onednn, "processor", processor);
        failed = !o || json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(o);
    } else {
        printf("klein %s\ncommit: %s\ncompiler: %s, %s\noneDNN: %s\nprocessor: %s\n", klein_version(),
               KLEIN_COMMIT, COMPILER, BUILD, onednn, processor);
    }
    device_close(cpu);
    return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
}

static const struct cli_group version_groups[] = {
    {"Options", json_options, offsetof(struct version_settings, json)}, {0}};

const struct cli_command command_version = {
    .name = "version",
    .summary = "print versions of klein and of what it was built with (also: klein --version)",
    .groups = version_groups,
    .settings_size = sizeof(struct version_settings),
    .run = run_version,
};

struct help_settings {
    const char *command;
    int man;
};

static enum klein_status run_help(const void *settings, struct klein_error *err)
{
    const struct help_settings *s = settings;
    if (s->man)
        cli_print_manual(stdout, commands);
    else if (!s->command)
        cli_print_overview(stdout, commands);
    else if (command_find(s->command))
        cli_print_help(stdout, command_find(s->command));
    else
        return fail(err, KLEIN_E_USAGE, "there is no command \"%s\"; \"klein help\" lists them", s->command);
    return KLEIN_OK;
}

static const struct cli_option help_options[] = {
    {0, "man", NULL, CLI_FLAG, offsetof(struct help_settings, man),
     .help = "print the manual page, to be read by man(1)"},
    {0},
};
static const struct cli_group help_groups[] = {{"Options", help_options, 0}, {0}};

const struct cli_command command_help = {
    .name = "help",
    .summary = "explain a command",
    .operand = {.argument = "COMMAND", .kind = CLI_TEXT, .offset = offsetof(struct help_settings, command)},
    .groups = help_groups,
    .settings_size = sizeof(struct help_settings),
    .run = run_help,
};
