/* Parts of the command line that can be called as functions. The program as a whole is in test_cli.c. */
#include "support/support.h"

#include "../host/commands.h"
#include "../host/dump.h"
#include "../host/exit_code.h"
#include "../host/inputs.h"
#include "../host/output.h"
#include "../host/parameters.h"
#include "../host/size.h"
#include "../host/table.h"
#include "../weights/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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
            int excluded = a->excludes == NULL, length;
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
                if (i != j) cr_assert(strcmp(name, b->name), "%s has --%s twice", commands[c]->name, name);
                if (i != j && a->letter)
                    cr_assert(a->letter != b->letter, "%s has -%c twice", commands[c]->name, a->letter);
            }
            cr_assert(excluded, "%s --%s excludes --%s, which does not exist", commands[c]->name, name,
                      a->excludes);
        }
    }
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
        {NULL, NULL, "500x512: width and height must be multiples of 16; the nearest size is 496x512", 500,
         512},
        {NULL, NULL, "504x512: width and height must be multiples of 16; the nearest size is 512x512", 504,
         512},
    };
    struct klein_error err;
    struct size out;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        FAILS(size_choose(cases[i].size, cases[i].w, cases[i].h, cases[i].aspect, (struct size){1024, 1024},
                          &out, &err),
              KLEIN_E_USAGE, cases[i].says);
}

/* --- where pictures go --- */

static const char *path_of(const char *pattern, int images, int image, enum image_format format)
{
    static char path[4096];
    struct klein_error err;
    struct output o = {pattern, format, images};
    OK(output_path(&o, image, 42, path, sizeof path, &err));
    return path;
}

Test(host, output_names)
{
    cr_assert_str_eq(path_of("cat.png", 1, 0, IMAGE_PNG), "cat.png");
    cr_assert_str_eq(path_of("cat.png", 3, 0, IMAGE_PNG), "cat-1.png");
    cr_assert_str_eq(path_of("a.b/cat", 3, 2, IMAGE_PNG), "a.b/cat-3");
    cr_assert_str_eq(path_of(".hidden", 3, 2, IMAGE_PNG), ".hidden-3");
    cr_assert_str_eq(path_of("cat-%03d.webp", 12, 11, IMAGE_WEBP), "cat-012.webp");
    cr_assert_str_eq(path_of("%d.png", 1, 0, IMAGE_PNG), "1.png");
    cr_assert_str_eq(path_of("100%.png", 1, 0, IMAGE_PNG), "100%.png");
    cr_assert_str_eq(path_of("%s%n.png", 1, 0, IMAGE_PNG), "%s%n.png");
    cr_assert_str_eq(path_of("%d/cat.png", 2, 1, IMAGE_PNG),
                     "%d/cat-2.png"); /* a folder's name is not a pattern */
}

Test(host, own_names_never_overwrite)
{
    char expected[128], taken[128];
    cr_assert_eq(chdir(test_dir()), 0);
    cr_assert_str_eq(path_of(NULL, 1, 0, IMAGE_PNG), "klein-42.png");
    for (int i = 0; i < 3; i++) {
        snprintf(taken, sizeof taken, i ? "klein-42-%d.jpg" : "klein-42.jpg", i);
        fclose(fopen(taken, "w"));
    }
    cr_assert_str_eq(path_of(NULL, 1, 0, IMAGE_JPEG), "klein-42-3.jpg");
    snprintf(expected, sizeof expected, "%s/klein-42-3.jpg", test_dir());
    cr_assert_str_eq(path_of(test_dir(), 5, 0, IMAGE_JPEG), expected);
}

Test(host, outputs_are_checked_before_the_work)
{
    struct klein_error err;
    char path[128], read_only[128];
    snprintf(path, sizeof path, "%s/missing/cat.png", test_dir());
    struct output o = {path, IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_OUTPUT, "does not exist");
    o = (struct output){"cat.gif", IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_USAGE, "cannot write \".gif\"; use .png, .jpg or .webp");
    o = (struct output){"cat.gif", IMAGE_PNG, 1};
    OK(output_check(&o, &err)); /* --format has the last word */
    o = (struct output){"", IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_USAGE, "needs a file name");
    o = (struct output){"-", IMAGE_AUTO, 2};
    FAILS(output_check(&o, &err), KLEIN_E_USAGE, "takes one picture");
    o = (struct output){"nowhere/", IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_OUTPUT, "does not exist");
    snprintf(path, sizeof path, "%s/file", test_dir());
    fclose(fopen(path, "w"));
    snprintf(path, sizeof path, "%s/file/cat.png", test_dir());
    o = (struct output){path, IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_OUTPUT, "is not a folder");
    FAILS(output_check_file(test_dir(), &err), KLEIN_E_OUTPUT, "is a folder");
    o = (struct output){test_dir(), IMAGE_AUTO, 1};
    OK(output_check(&o, &err));
    cr_assert_eq(o.format, IMAGE_PNG);
    snprintf(read_only, sizeof read_only, "%s/read-only", test_dir());
    mkdir(read_only, 0555);
    snprintf(path, sizeof path, "%s/read-only/cat.png", test_dir());
    o = (struct output){path, IMAGE_AUTO, 1};
    if (access(read_only, W_OK))
        FAILS(output_check(&o, &err), KLEIN_E_OUTPUT, "cannot write in"); /* root may write anywhere */
    char endless[5000];
    memset(endless, 'a', sizeof endless);
    endless[sizeof endless - 1] = 0;
    o = (struct output){endless, IMAGE_AUTO, 1};
    FAILS(output_check(&o, &err), KLEIN_E_OUTPUT, "too long");
}

/* --- metadata --- */

Test(host, parameters_as_web_uis_read_them)
{
    struct parameters p = {.prompt = "a cat,\na hat",
                           .steps = 4,
                           .width = 1024,
                           .height = 768,
                           .guidance = 1,
                           .seed = 42,
                           .latent_hash = 0xabc,
                           .model = "klein 4B",
                           .noise = "torch",
                           .device = "cpu",
                           .dtype = "bf16"};
    char *text = parameters_text(&p);
    cr_assert_str_eq(
        text,
        "a cat,\na hat\nSteps: 4, Sampler: Euler, CFG scale: 1, Seed: 42, Size: 1024x768, Model: klein 4B, "
        "Noise: torch, Device: cpu, Dtype: bf16, Latents: 0000000000000abc, Version: klein " KLEIN_VERSION);
    free(text);
    p.model = "mine: \"A\", B";
    p.references = 2;
    text = parameters_text(&p);
    cr_assert(strstr(text, ", Model: \"mine: \\\"A\\\", B\", References: 2,"), "%s", text);
    free(text);
}

/* --- inputs --- */

static const char *file_with(const char *name, const void *bytes, size_t n)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    FILE *f = fopen(path, "wb");
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return path;
}

Test(host, prompts_from_files)
{
    struct klein_error err;
    char *text;
    OK(inputs_prompt(file_with("prompt", "two\nlines\r\n", 11), &text, &err));
    cr_assert_str_eq(text, "two\nlines");
    free(text);
    OK(inputs_prompt(file_with("empty", "", 0), &text, &err));
    cr_assert_str_eq(text, "");
    free(text);
    FAILS(inputs_prompt(file_with("binary", "a\0b", 3), &text, &err), KLEIN_E_INPUT, "not a text file");
    FAILS(inputs_prompt(test_dir(), &text, &err), KLEIN_E_INPUT, "cannot read the prompt");
    FAILS(inputs_prompt("no/such/file", &text, &err), KLEIN_E_INPUT, "no/such/file");
    char *large = malloc(INPUTS_PROMPT_MAX + 1);
    memset(large, 'x', INPUTS_PROMPT_MAX + 1);
    FAILS(inputs_prompt(file_with("large", large, INPUTS_PROMPT_MAX + 1), &text, &err), KLEIN_E_INPUT,
          "is this the right file?");
    free(large);
}

Test(host, lists_of_sigmas)
{
    static const char *const wrong[] = {"",    "1,",    ",1",    "1,1",    "0.5,0.6", "1,0",
                                        "1.1", "1;0.5", "1,nan", "1,-0.5", "one",     "1,0.5,"};
    struct klein_error err;
    float *sigmas;
    int n;
    OK(inputs_sigmas("1,0.75,0.5,0.25", &sigmas, &n, &err));
    cr_assert(n == 4 && sigmas[0] == 1 && sigmas[3] == 0.25f);
    free(sigmas);
    OK(inputs_sigmas("0.9", &sigmas, &n, &err));
    cr_assert(n == 1 && sigmas[0] == 0.9f);
    free(sigmas);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        FAILS(inputs_sigmas(wrong[i], &sigmas, &n, &err), KLEIN_E_USAGE, wrong[i]);
}

static const char *tensor_file(const char *name, const char *tensor, enum dtype dtype, int ndim,
                               const int64_t *shape, const void *data)
{
    static char path[256];
    struct klein_error err;
    struct st_writer *w;
    struct st_tensor t = {
        .name = tensor, .dtype = dtype, .ndim = ndim, .data = data, .bytes = dtype_size(dtype)};
    for (int i = 0; i < ndim; i++) {
        t.shape[i] = shape[i];
        t.bytes *= (size_t)shape[i];
    }
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    OK(st_write_begin(path, &t, 1, NULL, &w, &err));
    OK(st_write_finish(w, &err));
    return path;
}

Test(host, tensors_as_inputs)
{
    enum { N = 128 * 2 * 3 };
    struct klein_error err;
    float values[N], *out;
    bf16 halves[N];
    int w, h;
    for (int i = 0; i < N; i++) {
        values[i] = (float)i / 8;
        halves[i] = bf16_from_f32(values[i]);
    }
    OK(inputs_latents(tensor_file("l4", "latents", DT_F32, 4, (int64_t[]){1, 128, 2, 3}, values), &out, &w,
                      &h, &err));
    cr_assert(w == 48 && h == 32 && !memcmp(out, values, sizeof values));
    free(out);
    OK(inputs_latents(tensor_file("l3", "latents", DT_BF16, 3, (int64_t[]){128, 2, 3}, halves), &out, &w, &h,
                      &err));
    cr_assert(w == 48 && h == 32 && out[5] == f32_from_bf16(halves[5]));
    free(out);
    OK(inputs_embeds(tensor_file("e2", "prompt_embeds", DT_F32, 2, (int64_t[]){128, 6}, values), 128, 6, &out,
                     &err));
    cr_assert(!memcmp(out, values, sizeof values));
    free(out);
    FAILS(inputs_latents(tensor_file("e2", "prompt_embeds", DT_F32, 2, (int64_t[]){128, 6}, values), &out, &w,
                         &h, &err),
          KLEIN_E_INPUT, "has no tensor \"latents\", but \"prompt_embeds\"");
    FAILS(inputs_latents(tensor_file("s", "latents", DT_F32, 4, (int64_t[]){1, 64, 4, 3}, values), &out, &w,
                         &h, &err),
          KLEIN_E_INPUT,
          "\"latents\" is F32 [1, 64, 4, 3]; it must be F32 (or BF16, F16) [1, 128, height/16, width/16]");
    FAILS(inputs_latents(tensor_file("b", "latents", DT_F32, 4, (int64_t[]){2, 128, 1, 3}, values), &out, &w,
                         &h, &err),
          KLEIN_E_INPUT, "[2, 128, 1, 3]");
    FAILS(inputs_latents(tensor_file("i", "latents", DT_I32, 3, (int64_t[]){128, 2, 3}, values), &out, &w, &h,
                         &err),
          KLEIN_E_INPUT, "I32");
    FAILS(inputs_embeds(tensor_file("e2", "prompt_embeds", DT_F32, 2, (int64_t[]){128, 6}, values), 128, 7,
                        &out, &err),
          KLEIN_E_INPUT, "[1, 128, 7] for this model");
    values[7] = NAN;
    FAILS(inputs_latents(tensor_file("nan", "latents", DT_F32, 4, (int64_t[]){1, 128, 2, 3}, values), &out,
                         &w, &h, &err),
          KLEIN_E_INPUT, "a NaN or an infinity at element 7");
    FAILS(inputs_latents(file_with("junk", "not a safetensors file", 22), &out, &w, &h, &err), KLEIN_E_INPUT,
          "junk");
    FAILS(inputs_latents("no/such/file", &out, &w, &h, &err), KLEIN_E_INPUT, "no/such/file");
}

Test(host, dump_is_whole_or_absent)
{
    struct klein_error err;
    struct dump *d;
    struct st_file *file;
    const int32_t ids[3] = {1, -2, 3};
    const float v[6] = {0, 1, 2, 3, 4, 5};
    char path[256];
    struct stat st;
    snprintf(path, sizeof path, "%s/dump.safetensors", test_dir());
    OK(dump_begin(path, &d, &err));
    dump_tap(d, &(struct klein_tap){"input_ids", 1, 1, {3}, ids});
    dump_abort(d);
    cr_assert(stat(path, &st) != 0);
    OK(dump_begin(path, &d, &err));
    dump_tap(d, &(struct klein_tap){"input_ids", 1, 1, {3}, ids});
    dump_tap(d, &(struct klein_tap){"velocity.0", 0, 2, {2, 3}, v});
    OK(dump_finish(d, (const char *const[]){"seed", "42", NULL}, &err));
    OK(st_open(path, &file, &err));
    const struct st_tensor *t = st_find(file, "input_ids");
    cr_assert(st_count(file) == 2 && t && t->dtype == DT_I32 && t->ndim == 1 && t->shape[0] == 3 &&
              !memcmp(t->data, ids, sizeof ids));
    t = st_find(file, "velocity.0");
    cr_assert(t && t->dtype == DT_F32 && t->ndim == 2 && t->shape[0] == 2 && t->shape[1] == 3 &&
              !memcmp(t->data, v, sizeof v));
    cr_assert_str_eq(st_metadata(file, "seed"), "42");
    st_close(file);
    FAILS(dump_begin("no/such/folder/x", &d, &err), KLEIN_E_OUTPUT, "cannot write beside it");
}

/* --- tables --- */

Test(host, tables_and_quantities)
{
    struct table t;
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    table_begin(&t, "lrl");
    static const char *const cells[] = {"A", "B", "C", "longer", "12", "x", "y", "3", "wide"};
    for (int i = 0; i < 9; i++) table_cell(&t, "%s", cells[i]);
    cr_assert(table_print(&t, f));
    fclose(f);
    cr_assert_str_eq(text, "A        B  C\nlonger  12  x\ny        3  wide\n");
    free(text);
    cr_assert_str_eq(quantity(0).text, "0");
    cr_assert_str_eq(quantity(512).text, "512");
    cr_assert_str_eq(quantity(999.7).text, "1.00 k");
    cr_assert_str_eq(quantity(3875544576.0).text, "3.88 G");
    cr_assert_str_eq(quantity(34.8e12).text, "34.8 T");
    cr_assert_str_eq(quantity(123.4e6).text, "123 M");
}
