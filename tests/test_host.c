/* Options, help, sizes, signals: parts of the command line that can be called as functions. The program as a whole is in test_cli.c. */
#include "support/support.h"

#include "../host/commands.h"
#include "../host/exit_code.h"
#include "../host/inputs.h"
#include "../host/signals.h"
#include "../host/size.h"
#include "../kernels/predict.h"
#include "../weights/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- options --- */

struct settings {
    const char *operand, *text;
    struct cli_texts texts;
    int flag, mode, number, choice, show;
    float real;
    struct cli_seed seed;
};
#define AT(field) offsetof(struct settings, field)
static const struct cli_option options[] = {
    {'t', "text", "TEXT", CLI_TEXT, AT(text), .help = "a text"},
    {'i', "item", "FILE", CLI_TEXTS, AT(texts), .help = "items", .max = 3},
    {'f', "flag", NULL, CLI_FLAG, AT(flag), .help = "a flag"},
    {'m', "mode", NULL, CLI_FLAG, AT(mode), .help = "a flag with a value", .value = 7, .excludes = "flag"},
    {'n', "number", "N", CLI_INT, AT(number), .help = "a number", CLI_RANGE(1, 50)},
    {0, "choice", "NAME", CLI_CHOICE, AT(choice), .help = "a choice", .choices = "zero|one|two"},
    {0, "show", "HOW", CLI_CHOICE, AT(show), .help = "a choice", .choices = "off|auto|other", .bare = 1},
    {'r', "real", "X", CLI_FLOAT, AT(real), .help = "a real number", CLI_RANGE(1, 100)},
    {'S', "seed", "N", CLI_SEED, AT(seed), .help = "a seed"},
    {0},
};
static const struct cli_group groups[] = {{"Options", options, 0}, {0}};
static const struct cli_command command = {
    .name = "test",
    .summary = "a command",
    .operand = {.argument = "THING", .kind = CLI_TEXT, .offset = AT(operand)},
    .groups = groups,
    .settings_size = sizeof(struct settings),
};

/* Parses the words of a line (separated by single spaces). */
static enum klein_status parse(const char *line, struct settings *s, struct klein_error *err)
{
    static char words[512];
    char *argv[32], *rest = words, *word;
    int argc = 0, help;
    snprintf(words, sizeof words, "%s", line);
    while (*line && (word = strsep(&rest, " "))) argv[argc++] = word;
    *s = (struct settings){0};
    *err = (struct klein_error){0};
    return cli_parse(&command, argc, argv, s, &help, err);
}

Test(host, options_of_every_kind)
{
    struct settings s;
    struct klein_error err;
    OK(parse("-t a --item b -i c hello --flag -n 4 --choice=two -r 2.5 -S 9223372036854775807", &s, &err));
    cr_assert_str_eq(s.text, "a");
    cr_assert(s.texts.n == 2 && !strcmp(s.texts.item[0], "b") && !strcmp(s.texts.item[1], "c"));
    cr_assert_str_eq(s.operand, "hello");
    cr_assert(s.flag == 1 && s.mode == 0 && s.number == 4 && s.choice == 2 && s.real == 2.5f);
    cr_assert(s.seed.given && s.seed.value == INT64_MAX);
    OK(parse("-n4 -mt=x", &s, &err));
    cr_assert(s.number == 4 && s.mode == 7 && !strcmp(s.text, "x"));
    OK(parse("-n 3 -n 5 --show", &s, &err)); /* the last one counts */
    cr_assert(s.number == 5 && s.show == 1);
    OK(parse("--show=other --text=--flag", &s, &err));
    cr_assert(s.show == 2 && !strcmp(s.text, "--flag"));
    OK(parse("--show -- --flag", &s, &err)); /* after -- nothing is an option */
    cr_assert(s.show == 1 && !s.flag && !strcmp(s.operand, "--flag"));
    OK(parse("-", &s, &err));
    cr_assert_str_eq(s.operand, "-");
    OK(parse("", &s, &err));
    cr_assert(!s.operand && !s.seed.given);
}

Test(host, wrong_options_say_what_to_do)
{
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"--numbr 4", "did you mean --number?"},
        {"--flga", "did you mean --flag?"},
        {"--num 4", "did you mean --number?"},
        {"-number 4", "did you mean --number?"},
        {"--qwerty", "\"klein test --help\" lists them"},
        {"-x", "unknown option -x"},
        {"-n", "-n needs a value: -n N"},
        {"--text --flag", "--text needs a value: --text TEXT"},
        {"-n four", "-n must be a whole number from 1 to 50, not \"four\""},
        {"-n 0", "from 1 to 50"},
        {"-n 51", "from 1 to 50"},
        {"-n 2.5", "whole number"},
        {"-n nan", "whole number"},
        {"-n 4x", "whole number"},
        {"-n=", "whole number"},
        {"-r 101", "-r must be a number from 1 to 100, not"},
        {"-r inf", "a number from 1 to 100"},
        {"--choice three", "--choice must be zero, one or two, not \"three\""},
        {"--choice tw", "zero, one or two"},
        {"--flag=1", "--flag takes no value"},
        {"-S -1", "-S must be a whole number from 0"},
        {"-S 9223372036854775808", "9223372036854775807"},
        {"-S 99999999999999999999999", "9223372036854775807"},
        {"-S 0x10", "whole number"},
        {"-i a -i b -i c -i d", "-i can be given 3 times at most"},
        {"one two", "one THING is enough, what is \"two\"?"},
        {"-f -m", "--mode and --flag exclude each other"},
    };
    struct settings s;
    struct klein_error err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        FAILS(parse(cases[i].line, &s, &err), KLEIN_E_USAGE, cases[i].says);
}

Test(host, operands_that_begin_with_a_dash)
{
    char *argv[] = {"-5 degrees", "--", "-5 degrees"};
    struct settings s = {0};
    struct klein_error err;
    int help;
    FAILS(cli_parse(&command, 1, argv, &s, &help, &err), KLEIN_E_USAGE,
          "if it is the THING, put -- before it");
    OK(cli_parse(&command, 2, argv + 1, &s, &help, &err));
    cr_assert_str_eq(s.operand, "-5 degrees");
}

Test(host, help_is_found_before_mistakes)
{
    struct settings s = {0};
    struct klein_error err = {0};
    char *argv[] = {"--wrong", "-h"}, *operand[] = {"--", "-h"};
    int help;
    OK(cli_parse(&command, 2, argv, &s, &help, &err));
    cr_assert(help);
    OK(cli_parse(&command, 2, operand, &s, &help, &err));
    cr_assert(!help);
    cr_assert_str_eq(s.operand, "-h");
}

Test(host, guesses_are_near_or_none)
{
    struct cli_guess guess = {0};
    cli_guess_offer(&guess, "generat", "generate");
    cli_guess_offer(&guess, "generat", "help");
    cr_assert_str_eq(guess.best, "generate");
    guess = (struct cli_guess){0};
    cli_guess_offer(&guess, "cat", "bench");
    cli_guess_offer(&guess, "a rather long text that is no command at all, and goes on", "generate");
    cr_assert_null(guess.best);
}

/* --- the real tables --- */

Test(host, option_tables_are_consistent)
{
    for (int c = 0; commands[c]; c++) {
        const struct cli_option *a, *b;
        size_t base;
        cr_assert(commands[c]->summary && !strchr(commands[c]->summary, '.'),
                  "%s: the summary is a line without a stop", commands[c]->name);
        for (int i = 0; (a = cli_option_at(commands[c], i, &base, NULL)) && a != &cli_help_option; i++) {
            const char *name = a->name;
            int excluded = a->excludes == NULL, needed = a->needs == NULL, length;
            cr_assert(a->help && a->help[0], "%s --%s has no help", commands[c]->name, name);
            cr_assert(base + a->offset < commands[c]->settings_size, "%s --%s writes past its settings",
                      commands[c]->name, name);
            cr_assert((a->kind == CLI_FLAG) == (a->argument == NULL), "%s --%s: flags take no argument",
                      commands[c]->name, name);
            cr_assert((a->kind == CLI_CHOICE) == (a->choices != NULL), "%s --%s: choices", commands[c]->name,
                      name);
            if (a->kind == CLI_INT || a->kind == CLI_FLOAT)
                cr_assert(a->max > a->min, "%s --%s: range", commands[c]->name, name);
            if (a->kind == CLI_TEXTS)
                cr_assert(a->max >= 1 && a->max <= CLI_TEXTS_MAX, "%s --%s: max", commands[c]->name, name);
            if (a->bare)
                cr_assert(cli_choice(a->choices, a->bare, &length), "%s --%s: bare", commands[c]->name, name);
            for (int j = 0; (b = cli_option_at(commands[c], j, NULL, NULL)); j++) {
                if (a->excludes && !strcmp(a->excludes, b->name)) excluded = 1;
                if (a->needs && !strcmp(a->needs, b->name)) needed = b->argument != NULL; /* it is said */
                if (i != j) cr_assert(strcmp(name, b->name), "%s has --%s twice", commands[c]->name, name);
                if (i != j && a->letter)
                    cr_assert(a->letter != b->letter, "%s has -%c twice", commands[c]->name, a->letter);
            }
            cr_assert(excluded, "%s --%s excludes --%s, which does not exist", commands[c]->name, name,
                      a->excludes);
            cr_assert(needed, "%s --%s needs --%s, which does not exist", commands[c]->name, name, a->needs);
        }
    }
}

static const char *help_of(const char *option)
{
    int i = 0;
    while (strcmp(cli_option_at(&command_plan, i, NULL, NULL)->name, option)) i++;
    return cli_option_at(&command_plan, i, NULL, NULL)->help;
}

Test(host, the_options_name_every_configuration_and_gpu)
{
    for (int c = 0; config_list(c); c++) cr_assert(strstr(help_of("config"), config_list(c)));
    for (int g = 0; gpu_spec_at(g); g++) cr_assert(strstr(help_of("gpu"), gpu_spec_at(g)->name));
}

static char *text_of(void (*print)(FILE *, const struct cli_command *const *))
{
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    print(f, commands);
    fclose(f);
    return text;
}

Test(host, manual_page_is_that_of_the_tables)
{
    struct klein_error err;
    char *page, *made = text_of(cli_print_manual), label[64], escaped[128];
    OK(inputs_prompt(KLEIN_SOURCE_DIR "/docs/klein.1", &page, &err));
    size_t n = strlen(page);
    cr_assert(strlen(made) == n + 1 && !memcmp(made, page, n),
              "docs/klein.1 is not up to date: klein help --man > docs/klein.1");
    const struct cli_option *o;
    for (int c = 0; commands[c]; c++)
        for (int i = 0; (o = cli_option_at(commands[c], i, NULL, NULL)); i++) {
            snprintf(label, sizeof label, "--%s", o->name);
            char *to = escaped;
            for (const char *p = label; *p; p++) {
                if (*p == '-') *to++ = '\\';
                *to++ = *p;
            }
            *to = 0;
            cr_assert(strstr(page, escaped), "docs/klein.1 does not name %s of klein %s", label,
                      commands[c]->name);
        }
    free(page);
    free(made);
}

/* Lines no longer than the width, and no option or default cut off. */
Test(host, help_fits_the_width)
{
    static const int widths[] = {40, 60, 80, 100};
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++)
        for (int c = 0; commands[c]; c++) {
            char columns[16], *text, *line, *rest;
            const struct cli_option *o;
            size_t size;
            FILE *f = open_memstream(&text, &size);
            snprintf(columns, sizeof columns, "%d", widths[w]);
            setenv("COLUMNS", columns, 1);
            cli_print_help(f, commands[c]);
            fclose(f);
            for (int i = 0; (o = cli_option_at(commands[c], i, NULL, NULL)); i++)
                cr_assert(strstr(text, o->name), "--%s is missing in the help of %s", o->name,
                          commands[c]->name);
            int examples = 0;
            for (rest = text; (line = strsep(&rest, "\n"));) {
                examples |= !strcmp(line, "Examples");
                cr_assert(examples || (int)strlen(line) <= widths[w] ||
                              !strpbrk(line + strspn(line, " "), " "),
                          "klein %s --help at %d columns has \"%s\"", commands[c]->name, widths[w], line);
            }
            free(text);
        }
}

Test(host, exit_codes)
{
    static const struct {
        enum klein_status status;
        int code;
    } cases[] = {{KLEIN_OK, 0},
                 {KLEIN_E_USAGE, 2},
                 {KLEIN_E_MODEL_MISSING, 3},
                 {KLEIN_E_MODEL_CORRUPT, 3},
                 {KLEIN_E_NO_DEVICE, 4},
                 {KLEIN_E_NO_MEMORY, 4},
                 {KLEIN_E_INPUT, 5},
                 {KLEIN_E_OUTPUT, 5},
                 {KLEIN_E_CANCELLED, 130},
                 {KLEIN_E_NUMERIC, 1},
                 {KLEIN_E_INTERNAL, 1},
                 {KLEIN_E_UNSUPPORTED, 1}};
    cr_assert_eq(sizeof cases / sizeof cases[0], KLEIN_STATUS_COUNT);
    for (size_t i = 0; i < KLEIN_STATUS_COUNT; i++)
        cr_assert_eq((int)exit_code_of(cases[i].status), cases[i].code);
}

/* --- sizes --- */

static struct size choose(const char *size, int w, int h, const char *aspect, struct size usual)
{
    struct klein_error err;
    struct size out;
    OK(size_choose(size, w, h, aspect, usual, &out, &err));
    return out;
}

Test(host, sizes)
{
    const struct size square = {1024, 1024}, wide = {1152, 896};
    struct size s = choose("1024x768", 0, 0, NULL, square);
    cr_assert(s.width == 1024 && s.height == 768);
    s = choose(NULL, 0, 0, NULL, square);
    cr_assert(s.width == 0 && s.height == 0);
    s = choose(NULL, 512, 0, NULL, square);
    cr_assert(s.width == 512 && s.height == 512);
    s = choose(NULL, 576, 0, NULL, wide); /* keeps the proportions of the usual size */
    cr_assert(s.width == 576 && s.height == 448);
    s = choose(NULL, 0, 448, NULL, wide);
    cr_assert(s.width == 576 && s.height == 448);
    s = choose(NULL, 0, 0, "16:9", square); /* the size BFL's own program has by default */
    cr_assert(s.width == 1360 && s.height == 768);
    s = choose(NULL, 0, 0, "9/16", square);
    cr_assert(s.width == 768 && s.height == 1360);
    s = choose(NULL, 1024, 0, "16:9", square);
    cr_assert(s.width == 1024 && s.height == 576);
    s = choose(NULL, 0, 0, "1:1", (struct size){128, 128});
    cr_assert(s.width == 128 && s.height == 128);
}

Test(host, wrong_sizes_name_the_nearest)
{
    static const struct {
        const char *size, *aspect, *says;
        int w, h;
    } cases[] = {
        {"1000x700", NULL, "the nearest size is 1008x704", 0, 0},
        {"520x520", NULL, "the nearest size is 528x528", 0, 0},
        {"5x5", NULL, "the nearest size is 16x16", 0, 0},
        {"8192x1024", NULL, "too large: a side can have 4096 pixels at most; the nearest size is 4096x1024",
         0, 0},
        {"1024", NULL, "WIDTHxHEIGHT", 0, 0},
        {"1024x", NULL, "WIDTHxHEIGHT", 0, 0},
        {"x1024", NULL, "WIDTHxHEIGHT", 0, 0},
        {"0x1024", NULL, "WIDTHxHEIGHT", 0, 0},
        {"-16x16", NULL, "WIDTHxHEIGHT", 0, 0},
        {"16.5x16", NULL, "WIDTHxHEIGHT", 0, 0},
        {"1024x1024x3", NULL, "WIDTHxHEIGHT", 0, 0},
        {"nanx16", NULL, "WIDTHxHEIGHT", 0, 0},
        {"", NULL, "WIDTHxHEIGHT", 0, 0},
        {"512x512", NULL, "leave out -W", 512, 0},
        {"512x512", "1:1", "leave out --aspect", 0, 0},
        {NULL, "1:1", "leave one out", 512, 512},
        {NULL, "16", "two numbers such as 16:9", 0, 0},
        {NULL, "1:100", "at most 16:1", 0, 0},
        {NULL, "0:1", "two numbers", 0, 0},
        {NULL, NULL, "width 500 must be a multiple of 16 up to 4096; the nearest is 496", 500, 512},
        {NULL, NULL, "width 504 must be a multiple of 16 up to 4096; the nearest is 512", 504, 512},
    };
    struct klein_error err;
    struct size out;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        FAILS(size_choose(cases[i].size, cases[i].w, cases[i].h, cases[i].aspect, (struct size){1024, 1024},
                          &out, &err),
              KLEIN_E_USAGE, cases[i].says);
}

/* --- signals --- */

Test(host, the_first_signal_asks_the_second_kills)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        signals_install();
        raise(SIGINT);
        if (signals_received() != SIGINT) _exit(1);
        raise(SIGTERM);
        _exit(2);
    }
    waitpid(child, &status, 0);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %x", status);
}

/* Work that does not return ends the process with exit code 1; a deadline that was taken back does not. */
Test(host, deadline_that_passes, .exit_code = 1)
{
    signals_deadline(1, "attention BF16, odd");
    for (;;) pause();
}

Test(host, deadline_taken_back)
{
    signals_deadline(1, "attention BF16, odd");
    signals_deadline(0, "");
    sleep(2);
}
