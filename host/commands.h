/* commands.h: the commands of klein, and the dispatcher that main() is. Each cmd_*.c holds one command: its
 * option table and run(). */
#ifndef KLEIN_COMMANDS_H
#define KLEIN_COMMANDS_H

#include "cli.h"

extern const struct cli_command command_generate, command_info, command_plan, command_bench, command_tune,
    command_compare, command_selftest, command_devices, command_make_random, command_completion,
    command_version, command_help;

/* All of them in the order of --help, NULL-terminated. */
extern const struct cli_command *const commands[];
const struct cli_command *command_find(const char *name); /* NULL: no such command */

/* The whole program; returns its exit code. */
int commands_main(int argc, char **argv);

#endif
