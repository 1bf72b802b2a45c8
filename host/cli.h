/* cli.h: a command line described as data.
 *
 * One table per command says what its options are; parsing, --help, shell completion and the manual page are
 * all made from it, so no option is described twice. Values land in the command's own settings struct, which
 * starts zeroed: zero means "not given". */
#ifndef KLEIN_CLI_H
#define KLEIN_CLI_H

#include "../base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CLI_TEXTS_MAX 16

enum cli_kind {
    CLI_FLAG,   /* int: `value` (1 if that is 0) when given; takes no argument */
    CLI_INT,    /* int in [min, max] */
    CLI_FLOAT,  /* float in [min, max] */
    CLI_SEED,   /* struct cli_seed */
    CLI_TEXT,   /* const char *, pointing into argv */
    CLI_TEXTS,  /* struct cli_texts; may be given up to `max` times */
    CLI_CHOICE, /* int: index into `choices` */
};

struct cli_seed {
    int given;
    uint64_t value; /* 0 .. 2^63 - 1, so that JSON readers can hold it */
};

struct cli_texts {
    const char *item[CLI_TEXTS_MAX];
    int n;
};

struct cli_option {
    char letter;          /* 's' for -s; 0: long name only */
    const char *name;     /* "steps" for --steps */
    const char *argument; /* "N"; "FILE" and "DIR" complete as such; NULL for a flag */
    enum cli_kind kind;
    size_t offset; /* of the value in the struct its group writes to */
    const char *help;
    const char *standard; /* what holds without the option, as --help shows it; NULL: nothing to say */
    double min, max;      /* CLI_INT, CLI_FLOAT; CLI_TEXTS: max */
    const char *choices;  /* CLI_CHOICE: "auto|f32|bf16" */
    int bare;  /* CLI_CHOICE: the argument may be left out (--show or --show=HOW): choice number `bare` */
    int value; /* CLI_FLAG */
    const char *excludes; /* long name of an option that cannot be given together with this one */
    const char *needs;    /* long name of one with an argument, without which this one means nothing */
};
#define CLI_RANGE(from, to) .min = (from), .max = (to)

/* Options under one heading of --help. Groups shared by several commands write to a struct embedded in each
 * one's settings. */
struct cli_group {
    const char *heading;              /* NULL: goes on under the heading before */
    const struct cli_option *options; /* ends with name == NULL */
    size_t base;                      /* added to every offset */
};

struct cli_command {
    const char *name;          /* "generate" */
    const char *summary;       /* one line, no full stop */
    const char *about;         /* paragraphs under the usage line, separated by empty lines; may be NULL */
    const char *examples;      /* lines; may be NULL */
    struct cli_option operand; /* the argument that is no option; argument == NULL: takes none. In [brackets]
                                  when optional */
    int operand_needed;
    const char *operand_excess;     /* what to do about a second operand; may be NULL */
    const struct cli_group *groups; /* ends with options == NULL */
    size_t settings_size;
    enum klein_status (*run)(const void *settings, struct klein_error *err);
};

/* Every command always also has -h, --help. */
extern const struct cli_option cli_help_option;

/* Walks all options of a command in order, cli_help_option last. i from 0; NULL past the end. *base (may be
 * NULL) is what to add to the offset, *heading (may be NULL) the heading of the option's group if it is the
 * first of it, else NULL. */
const struct cli_option *cli_option_at(const struct cli_command *command, int i, size_t *base,
                                       const char **heading);

/* Parses argv[0 .. argc), the words after the command's name, into settings (zeroed, command->settings_size
 * bytes). *help is set to 1 if --help is among them, and the rest is then not looked at. KLEIN_E_USAGE with
 * one line otherwise. */
enum klein_status cli_parse(const struct cli_command *command, int argc, char **argv, void *settings,
                            int *help, struct klein_error *err);

/* The candidate that `word` probably was meant to be, or NULL. Candidates are offered one by one: start with
 * a zeroed struct. */
struct cli_guess {
    const char *best;
    int distance;
};
void cli_guess_offer(struct cli_guess *guess, const char *word, const char *candidate);

/* Item i of "a|b|c" and its length; NULL past the end. */
const char *cli_choice(const char *choices, int i, int *length);

/* How the operand is written in usage lines: its name, or its choices; NULL if the command takes none. */
const char *cli_operand_label(const struct cli_command *command);

/* One number that fills all of `text`, in [min, max]; 0 if it is not. (For options and for lists of numbers.)
 */
int cli_number(const char *text, double min, double max, double *out);

/* help.c: --help of a command, or of klein itself (an overview of `commands`, NULL-terminated), wrapped to
 * the terminal's width; and the manual page in man(7) format. */
void cli_print_help(FILE *out, const struct cli_command *command);
void cli_print_overview(FILE *out, const struct cli_command *const *commands);
void cli_print_manual(FILE *out, const struct cli_command *const *commands);

#endif
