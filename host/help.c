/* help.c: the option tables as text: --help and the manual page. */
#include "cli.h"
#include "exit_code.h"
#include "message.h"

#include "../engine/klein.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const struct {
    const char *name, *text;
} environment[] = {
    {"KLEIN_MODEL", "model folder (or single file) that is used without -m"},
    {"KLEIN_PRODUCTS",
     "amx, bf16 or f32: how the processor multiplies numbers in bf16; else as it does it fastest"},
    {"KLEIN_TUNE", "off: kernels are picked by the built-in rules, whatever klein tune measured"},
    {"KLEIN_CUBLASLT", "file of cuBLASLt for klein tune, if the loader does not find it"},
    {"KLEIN_CUDNN", "file of cuDNN 9 for klein tune, if the loader does not find it"},
    {"KLEIN_NCCL",
     "file of NCCL 2 for GPUs that do not reach each other's memory, if the loader does not find it"},
    {"KLEIN_EXCHANGE",
     "nccl: GPUs that work on one picture exchange by NCCL also where they reach each other's memory"},
    {"XDG_CACHE_HOME", "folder of klein/tune-*.json, the kernels that klein tune chose; else ~/.cache"},
    {"NO_COLOR", "if not empty: no colours, also on a terminal"},
    {"COLUMNS", "width of --help where there is no terminal"},
};

static const char overview_examples[] = "klein generate \"a red balloon on a wooden table\"\n"
                                        "klein generate -i photo.jpg \"make it winter\"\n"
                                        "klein info path/to/model\n"
                                        "klein generate --help\n";

/* How an option is written: "-s, --steps N", "    --show[=HOW]". */
static void option_label(char *out, size_t size, const struct cli_option *o)
{
    char letter[8] = "    ";
    if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    const char *separator = !o->argument ? "" : o->bare ? "[=" : " ";
    snprintf(out, size, "%s--%s%s%s%s", letter, o->name, separator, o->argument ? o->argument : "",
             o->bare ? "]" : "");
}

/* The help text with choices and default: "the device [cpu|ref; default: the best there is]". */
static void option_text(char *out, size_t size, const struct cli_option *o)
{
    int used = snprintf(out, size, "%s", o->help);
    if (!o->choices && !o->standard) return;
    snprintf(out + used, size - (size_t)used, " [%s%s%s%s]", o->choices ? o->choices : "",
             o->choices && o->standard ? "; " : "", o->standard ? "default: " : "",
             o->standard ? o->standard : "");
}

static int output_width(FILE *out)
{
    enum { NARROWEST = 40, WIDEST = 100, USUAL = 80 };
    struct winsize size = {0};
    const char *columns = getenv("COLUMNS");
    int width = columns ? atoi(columns) : 0;
    if (isatty(fileno(out)) && ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col) width = size.ws_col;
    if (width <= 0) width = USUAL;
    return width < NARROWEST ? NARROWEST : width > WIDEST ? WIDEST : width;
}

/* Words of a paragraph in lines of `width`; every line but the first starts with `indent` spaces, the cursor
 * is at `column`. */
static void print_wrapped(FILE *out, const char *text, int column, int indent, int width)
{
    const char *gap = "";
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (*gap && column + 1 + n > width) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
            gap = "";
        }
        fprintf(out, "%s%.*s", gap, n, text);
        column += n + (int)strlen(gap);
        gap = " ";
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

struct layout {
    FILE *out;
    int width, column; /* of the page; where the explanations start */
    const char *bold, *plain;
};

static struct layout layout_of(FILE *out, int longest)
{
    struct layout l = {.out = out, .width = output_width(out), .bold = "", .plain = ""};
    l.column = 2 + longest + 2 < l.width / 2 ? 2 + longest + 2 : l.width < 60 ? 8 : l.width * 2 / 5;
    if (message_styled(out)) l.bold = "\033[1m", l.plain = "\033[0m";
    return l;
}

static void print_heading(const struct layout *l, const char *heading)
{
    fprintf(l->out, "\n%s%s%s\n", l->bold, heading, l->plain);
}

static void print_row(const struct layout *l, const char *label, const char *text)
{
    int used = fprintf(l->out, "  %s", label);
    if (used + 2 > l->column) {
        fputc('\n', l->out);
        used = 0;
    }
    fprintf(l->out, "%*s", l->column - used, "");
    print_wrapped(l->out, text, l->column, l->column, l->width);
}

/* Paragraphs, separated by empty lines. */
static void print_about(const struct layout *l, const char *text)
{
    char paragraph[1024];
    while (text && *text) {
        const char *end = strstr(text, "\n\n");
        int n = end ? (int)(end - text) : (int)strlen(text);
        snprintf(paragraph, sizeof paragraph, "%.*s", n, text);
        fputc('\n', l->out);
        print_wrapped(l->out, paragraph, 0, 0, l->width);
        text += n;
        text += strspn(text, "\n");
    }
}

static void print_examples(const struct layout *l, const char *examples)
{
    if (!examples) return;
    print_heading(l, "Examples");
    while (*examples) {
        int n = (int)strcspn(examples, "\n");
        fprintf(l->out, "  %.*s\n", n, examples);
        examples += n + (examples[n] == '\n');
    }
}

/* A summary with a capital and a full stop. */
static void sentence(char *out, size_t size, const char *summary)
{
    snprintf(out, size, "%c%s.", toupper((unsigned char)summary[0]), summary + 1);
}

static void usage_line(char *out, size_t size, const struct cli_command *c)
{
    const char *operand = cli_operand_label(c);
    snprintf(out, size, "klein %s%s%s%s%s", c->name, c->groups ? " [options]" : "",
             operand ? c->operand_needed ? " " : " [" : "", operand ? operand : "",
             operand && !c->operand_needed ? "]" : "");
}

void cli_print_help(FILE *out, const struct cli_command *command)
{
    char label[64], text[512];
    const struct cli_option *o;
    const char *heading;
    int longest = 0;
    for (int i = 0; (o = cli_option_at(command, i, NULL, NULL)); i++) {
        option_label(label, sizeof label, o);
        int n = (int)strlen(label);
        if (n > longest && n <= 28) longest = n;
    }
    struct layout l = layout_of(out, longest);
    usage_line(text, sizeof text, command);
    fprintf(out, "%sUsage:%s %s\n", l.bold, l.plain, text);
    sentence(text, sizeof text, command->summary);
    print_about(&l, text);
    print_about(&l, command->about);
    for (int i = 0; (o = cli_option_at(command, i, NULL, &heading)); i++) {
        if (heading || (o == &cli_help_option && i == 0)) print_heading(&l, heading ? heading : "Options");
        option_label(label, sizeof label, o);
        option_text(text, sizeof text, o);
        print_row(&l, label, text);
    }
    print_examples(&l, command->examples);
}

void cli_print_overview(FILE *out, const struct cli_command *const *commands)
{
    char label[16];
    enum exit_code code;
    const char *text;
    struct layout l = layout_of(out, 12);
    fprintf(out, "klein %s makes pictures from text with FLUX.2 [klein].\n\n", KLEIN_VERSION);
    fprintf(out, "%sUsage:%s klein COMMAND [options]     (klein COMMAND --help lists them)\n", l.bold,
            l.plain);
    print_heading(&l, "Commands");
    for (int i = 0; commands[i]; i++) print_row(&l, commands[i]->name, commands[i]->summary);
    print_examples(&l, overview_examples);
    print_heading(&l, "Environment");
    for (size_t i = 0; i < sizeof environment / sizeof environment[0]; i++)
        print_row(&l, environment[i].name, environment[i].text);
    print_heading(&l, "Exit codes");
    for (int i = 0; (text = exit_code_text(i, &code)); i++) {
        snprintf(label, sizeof label, "%d", code);
        print_row(&l, label, text);
    }
}

/* `length` of text as roff: hyphens that can be copied, no line taken for a request. */
static void roff_part(FILE *out, const char *text, size_t length)
{
    int line_start = 1;
    for (const char *end = text + length; text < end; text++) {
        if (line_start && (*text == '.' || *text == '\'')) fputs("\\&", out);
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
}

static void roff(FILE *out, const char *text)
{
    roff_part(out, text, strlen(text));
}

static void roff_row(FILE *out, const char *label, const char *text)
{
    fputs(".TP\n.B ", out);
    roff(out, label);
    fputc('\n', out);
    roff(out, text);
    fputc('\n', out);
}

static void roff_examples(FILE *out, const char *examples)
{
    if (!examples) return;
    fputs(".PP\nExamples:\n.PP\n.nf\n.RS 4\n", out);
    roff(out, examples);
    fputs(".RE\n.fi\n", out);
}

static void roff_command(FILE *out, const struct cli_command *command)
{
    char label[64], text[512];
    const struct cli_option *o;
    const char *heading;
    usage_line(text, sizeof text, command);
    fputs(".SS ", out);
    roff(out, text);
    fputc('\n', out);
    sentence(text, sizeof text, command->summary);
    roff(out, text);
    fputc('\n', out);
    for (const char *about = command->about; about && *about; about += strspn(about, "\n")) {
        const char *end = strstr(about, "\n\n");
        const size_t length = end ? (size_t)(end - about) : strlen(about);
        fputs(".PP\n", out);
        roff_part(out, about, length);
        fputc('\n', out);
        about += length;
    }
    for (int i = 0; (o = cli_option_at(command, i, NULL, &heading)) && o != &cli_help_option; i++) {
        if (heading) {
            fputs(".PP\n", out);
            roff(out, heading);
            fputs(":\n", out);
        }
        option_label(label, sizeof label, o);
        option_text(text, sizeof text, o);
        roff_row(out, label + strspn(label, " "), text);
    }
    roff_examples(out, command->examples);
}

void cli_print_manual(FILE *out, const struct cli_command *const *commands)
{
    char label[16];
    enum exit_code code;
    const char *text;
    fprintf(out, ".\\\" Made from the option tables: klein help --man > docs/klein.1\n");
    fprintf(out, ".TH KLEIN 1 \"\" \"klein %s\" \"User Commands\"\n", KLEIN_VERSION);
    fputs(".SH NAME\nklein \\- pictures from text with FLUX.2 [klein]\n", out);
    fputs(".SH SYNOPSIS\n.B klein\n.I COMMAND\n[\\fIoptions\\fR]\n", out);
    fputs(".SH DESCRIPTION\nklein runs the FLUX.2 [klein] models: it makes pictures from a prompt, edits a "
          "picture, and\n"
          "combines several.\nResults go to standard output, messages to standard error.\n"
          "Every command also takes\n.BR \\-h ,\n.BR \\-\\-help .\n",
          out);
    fputs(".SH COMMANDS\n", out);
    for (int i = 0; commands[i]; i++) roff_command(out, commands[i]);
    fputs(".SH ENVIRONMENT\n", out);
    for (size_t i = 0; i < sizeof environment / sizeof environment[0]; i++)
        roff_row(out, environment[i].name, environment[i].text);
    fputs(".SH EXIT STATUS\n", out);
    for (int i = 0; (text = exit_code_text(i, &code)); i++) {
        snprintf(label, sizeof label, "%d", code);
        roff_row(out, label, text);
    }
}
