/* cli.c: parsing by table. The tables themselves are beside the commands. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct cli_option cli_help_option = {
    .letter = 'h', .name = "help", .kind = CLI_FLAG, .help = "this help"};

const struct cli_option *cli_option_at(const struct cli_command *command, int i, size_t *base,
                                       const char **heading)
{
    for (const struct cli_group *g = command->groups; g && g->options; g++)
        for (const struct cli_option *o = g->options; o->name; o++)
            if (i-- == 0) {
                if (base) *base = g->base;
                if (heading) *heading = o == g->options ? g->heading : NULL;
                return o;
            }
    if (heading) *heading = NULL;
    return i == 0 ? &cli_help_option : NULL;
}

const char *cli_choice(const char *choices, int i, int *length)
{
    for (; i > 0; i--) {
        choices = strchr(choices, '|');
        if (!choices) return NULL;
        choices++;
    }
    *length = (int)strcspn(choices, "|");
    return choices;
}

/* Edits (insert, delete, replace, swap neighbours) from a to b; words longer than the table count as far
 * away. */
static int edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    int d[LONGEST + 1][LONGEST + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return LONGEST;
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            int best = i == 0 ? (int)j : j == 0 ? (int)i : LONGEST;
            if (i && j) {
                int replace = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
                best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
                best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
                best = replace < best ? replace : best;
                if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                    d[i - 2][j - 2] + 1 < best)
                    best = d[i - 2][j - 2] + 1;
            }
            d[i][j] = best;
        }
    return d[n][m];
}

void cli_guess_offer(struct cli_guess *guess, const char *word, const char *candidate)
{
    size_t n = strlen(word);
    int allowed = n < 4 ? 1 : n < 8 ? 2 : 3;
    int distance = edit_distance(word, candidate);
    if (n >= 2 && strncmp(word, candidate, n) == 0)
        distance = 1; /* a beginning counts as near, whatever is missing */
    if (distance > allowed || distance >= (int)strlen(candidate)) return;
    if (guess->best && guess->distance <= distance) return;
    *guess = (struct cli_guess){candidate, distance};
}

int cli_number(const char *text, double min, double max, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= min && value <= max)) return 0;
    *out = value;
    return 1;
}

const char *cli_operand_label(const struct cli_command *command)
{
    return command->operand.choices ? command->operand.choices : command->operand.argument;
}

/* "auto, f32 or bf16" */
static void list_choices(char *out, size_t size, const char *choices)
{
    const char *item;
    int length;
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; (item = cli_choice(choices, i, &length)) && used < size; i++) {
        const char *before = i == 0 ? "" : strchr(item, '|') ? ", " : " or ";
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", before, length, item);
    }
}

/* One word to parse: the option or operand, the value's place, how the user spelled it ("-s", "--steps",
 * "DIR"). */
struct word {
    const struct cli_option *option;
    void *to;
    const char *spelled;
};

static enum klein_status set_choice(struct word w, const char *text, struct klein_error *err)
{
    const char *item;
    int length;
    for (int i = 0; (item = cli_choice(w.option->choices, i, &length)); i++)
        if (strlen(text) == (size_t)length && !strncmp(item, text, (size_t)length)) {
            *(int *)w.to = i;
            return KLEIN_OK;
        }
    char list[200];
    list_choices(list, sizeof list, w.option->choices);
    return fail(err, KLEIN_E_USAGE, "%s must be %s, not \"%s\"", w.spelled, list, text);
}

static enum klein_status set_value(struct word w, const char *text, struct klein_error *err)
{
    const struct cli_option *o = w.option;
    double number;
    switch (o->kind) {
    case CLI_FLAG:
        *(int *)w.to = o->value ? o->value : 1;
        return KLEIN_OK;
    case CLI_INT:
        if (!cli_number(text, o->min, o->max, &number) || number != floor(number))
            return fail(err, KLEIN_E_USAGE, "%s must be a whole number from %.0f to %.0f, not \"%s\"",
                        w.spelled, o->min, o->max, text);
        *(int *)w.to = (int)number;
        return KLEIN_OK;
    case CLI_FLOAT:
        if (!cli_number(text, o->min, o->max, &number))
            return fail(err, KLEIN_E_USAGE, "%s must be a number from %g to %g, not \"%s\"", w.spelled,
                        o->min, o->max, text);
        *(float *)w.to = (float)number;
        return KLEIN_OK;
    case CLI_SEED: {
        char *end;
        errno = 0;
        unsigned long long value = strtoull(text, &end, 10);
        if (text[strspn(text, "0123456789")] || !text[0] || errno || value > INT64_MAX)
            return fail(err, KLEIN_E_USAGE, "%s must be a whole number from 0 to %lld, not \"%s\"", w.spelled,
                        (long long)INT64_MAX, text);
        *(struct cli_seed *)w.to = (struct cli_seed){1, value};
        return KLEIN_OK;
    }
    case CLI_TEXT:
        *(const char **)w.to = text;
        return KLEIN_OK;
    case CLI_TEXTS: {
        struct cli_texts *texts = w.to;
        if (texts->n >= (int)o->max)
            return fail(err, KLEIN_E_USAGE, "%s can be given %d times at most; leave some out", w.spelled,
                        (int)o->max);
        texts->item[texts->n++] = text;
        return KLEIN_OK;
    }
    case CLI_CHOICE:
        return set_choice(w, text, err);
    }
    CHECK(!"kind of option");
}

#define OPTIONS_MAX 64
struct parser {
    const struct cli_command *command;
    int argc, at;
    char **argv;
    char *settings;
    const char *given[OPTIONS_MAX]; /* by option index: how it was spelled; NULL: not given */
    int operands;
};

/* The index of an option by long name (n bytes) or, if name is NULL, by letter; -1 if there is none. */
static int find(const struct cli_command *command, const char *name, size_t n, char letter)
{
    const struct cli_option *o;
    for (int i = 0; (o = cli_option_at(command, i, NULL, NULL)); i++)
        if (name ? strlen(o->name) == n && !strncmp(o->name, name, n) : o->letter && o->letter == letter)
            return i;
    return -1;
}

static int is_long_option(const struct cli_command *command, const char *word)
{
    return !strncmp(word, "--", 2) && find(command, word + 2, strcspn(word + 2, "="), 0) >= 0;
}

static enum klein_status unknown_option(const struct parser *p, const char *word, struct klein_error *err)
{
    const char *name = word + strspn(word, "-");
    if (strchr(word, ' ') && p->command->operand.argument)
        return fail(err, KLEIN_E_USAGE, "\"%s\" looks like an option; if it is the %s, put -- before it",
                    word, p->command->operand.argument);
    char bare[64];
    snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "="), name);
    struct cli_guess guess = {0};
    const struct cli_option *o;
    for (int i = 0; (o = cli_option_at(p->command, i, NULL, NULL)); i++)
        cli_guess_offer(&guess, bare, o->name);
    if (guess.best && strlen(bare) > 1)
        return fail(err, KLEIN_E_USAGE, "unknown option %s; did you mean --%s?", word, guess.best);
    return fail(err, KLEIN_E_USAGE, "unknown option %s; \"klein %s --help\" lists them", word,
                p->command->name);
}

/* Takes option i, spelled so; `value` is what follows "=" or the letter, NULL if nothing does. */
static enum klein_status take_option(struct parser *p, int i, const char *spelled, const char *value,
                                     struct klein_error *err)
{
    size_t base = 0;
    const struct cli_option *o = cli_option_at(p->command, i, &base, NULL);
    struct word w = {o, p->settings + base + o->offset, spelled};
    CHECK(i < OPTIONS_MAX);
    p->given[i] = o->name;
    if (o->kind == CLI_FLAG) {
        if (value) return fail(err, KLEIN_E_USAGE, "%s takes no value; leave \"=%s\" out", spelled, value);
        return set_value(w, NULL, err);
    }
    if (!value && o->bare) {
        *(int *)w.to = o->bare;
        return KLEIN_OK;
    }
    if (!value) {
        if (p->at >= p->argc || is_long_option(p->command, p->argv[p->at]))
            return fail(err, KLEIN_E_USAGE, "%s needs a value: %s %s", spelled, spelled, o->argument);
        value = p->argv[p->at++];
    }
    return set_value(w, value, err);
}

static enum klein_status take_long(struct parser *p, const char *word, struct klein_error *err)
{
    const char *equals = strchr(word, '=');
    int i = find(p->command, word + 2, strcspn(word + 2, "="), 0);
    if (i < 0) return unknown_option(p, word, err);
    char spelled[64];
    snprintf(spelled, sizeof spelled, "%.*s", (int)strcspn(word, "="), word);
    return take_option(p, i, spelled, equals ? equals + 1 : NULL, err);
}

/* "-s 4", "-s4", "-s=4", "-qv". */
static enum klein_status take_letters(struct parser *p, const char *word, struct klein_error *err)
{
    if (strlen(word) > 2 && find(p->command, word + 1, strcspn(word + 1, "="), 0) >= 0)
        return unknown_option(p, word, err);
    for (const char *c = word + 1; *c; c++) {
        int i = find(p->command, NULL, 0, *c);
        if (i < 0) return unknown_option(p, word, err);
        char spelled[3] = {'-', *c, 0};
        const struct cli_option *o = cli_option_at(p->command, i, NULL, NULL);
        if (o->kind != CLI_FLAG) return take_option(p, i, spelled, c[1] ? c + 1 + (c[1] == '=') : NULL, err);
        TRY(take_option(p, i, spelled, NULL, err));
    }
    return KLEIN_OK;
}

static enum klein_status take_operand(struct parser *p, const char *word, struct klein_error *err)
{
    const struct cli_option *o = &p->command->operand;
    if (!o->argument)
        return fail(err, KLEIN_E_USAGE, "\"%s\": klein %s takes options only; see klein %s --help", word,
                    p->command->name, p->command->name);
    if (p->operands++ && o->kind != CLI_TEXTS)
        return fail(err, KLEIN_E_USAGE, "one %s is enough, what is \"%s\"?%s%s", o->argument, word,
                    p->command->operand_excess ? " " : "",
                    p->command->operand_excess ? p->command->operand_excess : "");
    return set_value((struct word){o, p->settings + o->offset, o->argument}, word, err);
}

/* The index of the option called `name`; -1 if there is none, or name is NULL. */
static int find_named(const struct cli_command *command, const char *name)
{
    return name ? find(command, name, strlen(name), 0) : -1;
}

static enum klein_status check_combinations(const struct parser *p, struct klein_error *err)
{
    const struct cli_option *o;
    for (int i = 0; (o = cli_option_at(p->command, i, NULL, NULL)); i++) {
        const int excluded = find_named(p->command, o->excludes), needed = find_named(p->command, o->needs);
        if (!p->given[i]) continue;
        if (excluded >= 0 && p->given[excluded])
            return fail(err, KLEIN_E_USAGE, "--%s and --%s exclude each other; give one of them", o->name,
                        o->excludes);
        if (needed >= 0 && !p->given[needed])
            return fail(err, KLEIN_E_USAGE, "--%s goes with --%s %s; give that too, or leave --%s out",
                        o->name, o->needs, cli_option_at(p->command, needed, NULL, NULL)->argument, o->name);
    }
    return KLEIN_OK;
}

enum klein_status cli_parse(const struct cli_command *command, int argc, char **argv, void *settings,
                            int *help, struct klein_error *err)
{
    struct parser p = {.command = command, .argc = argc, .argv = argv, .settings = settings};
    int options_end = 0;
    *help = 0;
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) *help = 1;
    if (*help) return KLEIN_OK;
    while (p.at < argc) {
        const char *word = argv[p.at++];
        if (options_end || word[0] != '-' || !word[1])
            TRY(take_operand(&p, word, err));
        else if (!strcmp(word, "--"))
            options_end = 1;
        else if (word[1] == '-')
            TRY(take_long(&p, word, err));
        else
            TRY(take_letters(&p, word, err));
    }
    if (command->operand_needed && !p.operands)
        return fail(err, KLEIN_E_USAGE, "something is missing: klein %s %s", command->name,
                    cli_operand_label(command));
    return check_combinations(&p, err);
}
