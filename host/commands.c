#include "commands.h"
#include "exit_code.h"
#include "message.h"
#include "signals.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

const struct cli_command *const commands[] = {
    &command_generate,
    &command_info,
    &command_plan,
    &command_bench,
    &command_tune,
    &command_compare,
    &command_selftest,
    &command_devices,
    &command_make_random,
    &command_completion,
    &command_version,
    &command_help,
    NULL,
};

const struct cli_command *command_find(const char *name)
{
    for (int i = 0; commands[i]; i++)
        if (!strcmp(commands[i]->name, name)) return commands[i];
    return NULL;
}

static enum klein_status unknown_command(const char *word, struct klein_error *err)
{
    struct cli_guess guess = {0};
    for (int i = 0; commands[i]; i++) cli_guess_offer(&guess, word, commands[i]->name);
    if (word[0] == '-')
        return fail(err, KLEIN_E_USAGE, "options come after a command, as in: klein generate %s ...", word);
    if (guess.best)
        return fail(err, KLEIN_E_USAGE, "unknown command \"%s\"; did you mean \"klein %s\"?", word,
                    guess.best);
    if (strpbrk(word, " \t\n") || !isalpha((unsigned char)word[0]))
        return fail(err, KLEIN_E_USAGE, "that is no command; for a picture of it: klein generate \"%s\"",
                    word);
    return fail(err, KLEIN_E_USAGE,
                "unknown command \"%s\"; \"klein --help\" lists them (a picture: klein generate \"%s\")",
                word, word);
}

static enum klein_status run(const struct cli_command *command, int argc, char **argv,
                             struct klein_error *err)
{
    int help;
    void *settings = calloc(1, command->settings_size + 1);
    if (!settings) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the options");
    enum klein_status status = cli_parse(command, argc, argv, settings, &help, err);
    if (help)
        cli_print_help(stdout, command);
    else if (status == KLEIN_OK)
        status = command->run(settings, err);
    free(settings);
    return status;
}

static enum klein_status dispatch(int argc, char **argv, struct klein_error *err)
{
    const char *word = argc > 1 ? argv[1] : "";
    const struct cli_command *command = command_find(word);
    if (argc < 2) {
        cli_print_overview(stderr, commands);
        return KLEIN_E_USAGE;
    }
    if (!strcmp(word, "--version") || !strcmp(word, "-V")) command = &command_version;
    if (!strcmp(word, "--help") || !strcmp(word, "-h")) command = &command_help;
    return command ? run(command, argc - 2, argv + 2, err) : unknown_command(word, err);
}

int commands_main(int argc, char **argv)
{
    struct klein_error err = {0};
    signal(
        SIGPIPE,
        SIG_DFL); /* end as filters do when nobody reads; some parents ignore it, and children inherit that */
    enum klein_status status = dispatch(argc, argv, &err);
    if (fflush(stdout) || ferror(stdout)) {
        fail(&err, KLEIN_E_OUTPUT, "cannot write to standard output: %s", strerror(errno));
        status = err.status;
    }
    if (err.message[0]) message(MESSAGE_ERROR, "%s", err.message);
    if (status == KLEIN_E_CANCELLED && signals_received()) return 128 + signals_received();
    return exit_code_of(status);
}
