/* klein generate as a person runs it, on the golden model. The other commands are in test_cli_commands.c. */
#include "support/program.h"

#include "../engine/noise.h"
#include "../host/image.h"
#include "../weights/safetensors.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL GOLDEN_MODEL("tiny")
#define SMALL "-m", MODEL, "--size", "32x32", "-s", "1"

static void setup(void)
{
    unsetenv("KLEIN_MODEL");
    unsetenv("NO_COLOR");
    setenv("TERM", "xterm", 1);
}
TestSuite(cli, .init = setup);

/* A path in the test's folder. */
static const char *in_dir(const char *name)
{
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", test_dir(), name);
    return path;
}

static int exists(const char *name)
{
    return access(in_dir(name), F_OK) == 0;
}

static struct klein_image read_image(const char *name)
{
    struct klein_image image = {0};
    struct klein_error err;
    OK(image_read(in_dir(name), &image, &err));
    return image;
}

/* A picture with a gradient, to be a reference. */
static void write_reference(const char *name, int w, int h)
{
    struct klein_error err;
    struct klein_image image = {w, h, malloc((size_t)w * (size_t)h * 3)};
    for (int i = 0; i < w * h * 3; i++) image.rgb[i] = (uint8_t)(i / 3 % w * 255 / w + i / 3 / w);
    OK(image_write(in_dir(name), &image, IMAGE_PNG, 90, NULL, &err));
    image_free(&image);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    cr_assert(text, "no text \"%s\"", key);
    return text;
}

static json_int_t int_of(const json_t *o, const char *key)
{
    cr_assert(json_is_integer(json_object_get(o, key)), "no integer \"%s\"", key);
    return json_integer_value(json_object_get(o, key));
}

static const json_t *image_of(const json_t *o, size_t i)
{
    const json_t *image = json_array_get(json_object_get(o, "images"), i);
    cr_assert(image, "no image %zu", i);
    return image;
}

Test(cli, generate_names_writes_and_reports)
{
    struct outcome o = OK_RUN("generate", "a red balloon", SMALL, "-S", "7");
    cr_assert_str_eq(o.out, "klein-7.png\n");
    cr_assert(strstr(o.err, "seed 7, 32x32, 1 step,") && !strstr(o.err, "references"), "%s", o.err);
    struct klein_image image = read_image("klein-7.png");
    cr_assert(image.width == 32 && image.height == 32);
    image_free(&image);
    o = OK_RUN("generate", "a red balloon", SMALL, "-S", "7", "-q"); /* never overwrites a name of its own */
    cr_assert_str_eq(o.out, "klein-7-1.png\n");
    cr_assert_str_eq(o.err, "");
    size_t n, m;
    char *a = program_file(in_dir("klein-7.png"), &n), *b = program_file(in_dir("klein-7-1.png"), &m);
    cr_assert(n == m && !memcmp(a, b, n), "the same command gives the same bytes");
    cr_assert(memmem(a, n, "a red balloon\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 7, Size: 32x32", 74),
              "metadata");
    free(a);
    free(b);
    o = OK_RUN("generate", "a red balloon", SMALL, "-S", "7", "-o", "plain.png", "--no-metadata");
    a = program_file(in_dir("plain.png"), &n);
    cr_assert(!memmem(a, n, "balloon", 7) && !memmem(a, n, "Steps", 5));
    free(a);
    cr_assert_eq(program_count_files(test_dir()), 3);
}

Test(cli, json_says_everything)
{
    struct outcome o = OK_RUN("generate", "a cat", SMALL, "-n", "2", "-S", "41", "-o", "cat.webp", "--json",
                              "--dtype", "f32");
    cr_assert_str_eq(o.err, "");
    json_t *json = program_json(o);
    cr_assert_str_eq(text_of(image_of(json, 0), "file"), "cat-1.webp");
    cr_assert_str_eq(text_of(image_of(json, 1), "file"), "cat-2.webp");
    cr_assert(int_of(image_of(json, 0), "seed") == 41 && int_of(image_of(json, 1), "seed") == 42);
    cr_assert(strlen(text_of(image_of(json, 0), "latent_hash")) == 16);
    cr_assert(strcmp(text_of(image_of(json, 0), "latent_hash"), text_of(image_of(json, 1), "latent_hash")));
    cr_assert(int_of(json, "width") == 32 && int_of(json, "height") == 32 && int_of(json, "steps") == 1);
    cr_assert_str_eq(text_of(json, "prompt"), "a cat");
    cr_assert_str_eq(text_of(json, "dtype"), "f32");
    cr_assert_str_eq(text_of(json, "precision"), "f32");
    cr_assert(int_of(json, "prompt_tokens") > 10 && int_of(json, "references") == 0);
    const json_t *seconds = json_object_get(json, "seconds");
    double sum = 0, total = json_number_value(json_object_get(seconds, "total"));
    static const char *const stages[] = {"text", "references", "denoise", "decode"};
    for (int i = 0; i < 4; i++) sum += json_number_value(json_object_get(seconds, stages[i]));
    cr_assert(sum > 0 && sum <= total);
    cr_assert(json_array_size(json_object_get(json, "warnings")) == 0);
    json_decref(json);
    cr_assert(exists("cat-1.webp") && exists("cat-2.webp") && !exists("cat.webp"));

    /* Seed 42 alone is the second picture of seed 41. */
    json = program_json(
        OK_RUN("generate", "a cat", SMALL, "-S", "42", "-o", "one.webp", "--dtype", "f32", "--json"));
    size_t n, m;
    char *a = program_file(in_dir("one.webp"), &n), *b = program_file(in_dir("cat-2.webp"), &m);
    cr_assert(n == m && !memcmp(a, b, n));
    free(a);
    free(b);
    json_decref(json);
}

/* Also where nothing else would. */
Test(cli, random_seeds_are_reported_when_quiet)
{
    struct outcome o = OK_RUN("generate", "a", "-m", MODEL, "--size", "32x32", "-s", "1", "-q", "-o", "x.png",
                              "--no-metadata");
    unsigned long long seed;
    cr_assert_eq(sscanf(o.err, "klein: warning: random seed %llu, which no file tells", &seed), 1, "%s",
                 o.err);
    o = OK_RUN("generate", "a", "-m", MODEL, "--size", "32x32", "-s", "1", "-q", "-o", "x.png");
    cr_assert_str_empty(o.err, "%s", o.err);
}

Test(cli, random_seeds_are_reported_and_differ)
{
    json_t *a = program_json(OK_RUN("generate", "a cat", SMALL, "--json"));
    json_t *b = program_json(OK_RUN("generate", "a cat", SMALL, "--json"));
    cr_assert(int_of(image_of(a, 0), "seed") !=
              int_of(image_of(b, 0), "seed")); /* once in 4 billion they do not */
    char name[64];
    snprintf(name, sizeof name, "klein-%lld.png", (long long)int_of(image_of(a, 0), "seed"));
    cr_assert_str_eq(text_of(image_of(a, 0), "file"), name);
    cr_assert(exists(name));
    json_decref(a);
    json_decref(b);
}

Test(cli, bytes_do_not_depend_on_threads)
{
    OK_RUN("generate", "a cat", SMALL, "-S", "1", "-o", "one.png", "--threads", "1", "--no-metadata", "-q");
    OK_RUN("generate", "a cat", SMALL, "-S", "1", "-o", "three.png", "--threads", "3", "--no-metadata", "-q");
    size_t n, m;
    char *a = program_file(in_dir("one.png"), &n), *b = program_file(in_dir("three.png"), &m);
    cr_assert(n == m && !memcmp(a, b, n));
    free(a);
    free(b);
}

Test(cli, prompts_come_from_everywhere)
{
    static const char prompt[] = "a cat, \"quoted\"\nand a h\xc3\xa4t";
    FILE *f = fopen(in_dir("prompt.txt"), "w");
    fprintf(f, "%s\n", prompt);
    fclose(f);
    const char *ways[][3] = {
        {prompt, NULL}, {"-p", prompt, NULL}, {"--prompt-file", "prompt.txt", NULL}, {"-", NULL}};
    char hash[32] = "";
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        const char *argv[] = {"klein", "generate", SMALL,      "-S",       "1", "-o",
                              "x.png", "--json",   ways[i][0], ways[i][1], NULL};
        struct outcome o = program_ok(program_run(prompt, argv), ways[i][0]);
        json_t *json = program_json(o);
        cr_assert_str_eq(text_of(json, "prompt"), prompt);
        if (i) cr_assert_str_eq(text_of(image_of(json, 0), "latent_hash"), hash);
        snprintf(hash, sizeof hash, "%s", text_of(image_of(json, 0), "latent_hash"));
        json_decref(json);
    }
    OK_RUN("generate", "", SMALL, "-o", "x.png"); /* an empty prompt is one */
}

Test(cli, long_prompts_are_cut_with_a_warning)
{
    char prompt[8000] = "";
    for (int i = 0; i < 900; i++) strcat(prompt, "zebra ");
    struct outcome o = OK_RUN("generate", prompt, SMALL, "-o", "x.png", "-q");
    cr_assert(strstr(o.err, "klein: warning: the prompt is ") && strstr(o.err, "zebra"), "%s", o.err);
    json_t *json = program_json(OK_RUN("generate", prompt, SMALL, "-o", "x.png", "--json"));
    cr_assert(json_array_size(json_object_get(json, "warnings")) == 1 &&
              int_of(json, "prompt_tokens") == 512);
    json_decref(json);
    o = OK_RUN("generate", "a cat", SMALL, "-o", "x.png", "-g", "3", "-q");
    cr_assert(strstr(o.err, "guidance 3 is ignored"), "%s", o.err);
}

Test(cli, references_and_sizes)
{
    write_reference("a.png", 96, 64);
    write_reference("b.png", 64, 80);
    json_t *json = program_json(OK_RUN("generate", "both", "-m", MODEL, "-s", "1", "-S", "1", "-i", "a.png",
                                       "-i", "b.png", "-o", "x.png", "--json"));
    cr_assert(int_of(json, "width") == 96 && int_of(json, "height") == 64 && int_of(json, "references") == 2);
    char hash[32];
    snprintf(hash, sizeof hash, "%s", text_of(image_of(json, 0), "latent_hash"));
    json_decref(json);
    json = program_json(OK_RUN("generate", "both", "-m", MODEL, "-s", "1", "-S", "1", "-i", "b.png", "-i",
                               "a.png", "--size", "96x64", "-o", "x.png", "--json"));
    cr_assert_str_neq(text_of(image_of(json, 0), "latent_hash"), hash); /* their order matters */
    json_decref(json);
    json = program_json(OK_RUN("generate", "wide", "-m", MODEL, "-s", "1", "-W", "48", "-i", "a.png", "-o",
                               "x.png", "--json"));
    cr_assert(int_of(json, "width") == 48 && int_of(json, "height") == 32); /* the reference's proportions */
    json_decref(json);
}

Test(cli, formats_by_extension_and_to_a_pipe)
{
    static const struct {
        const char *file, *format, *magic;
        size_t at, n;
    } cases[] = {{"a.png", NULL, "\x89PNG", 0, 4}, {"a.jpg", NULL, "\xff\xd8\xff", 0, 3},
                 {"a.webp", NULL, "WEBP", 8, 4},   {"a.dat", "jpeg", "\xff\xd8", 0, 2},
                 {"plain", NULL, "\x89PNG", 0, 4}, {"-", "webp", "WEBP", 8, 4},
                 {"-", NULL, "\x89PNG", 0, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *argv[] = {
            "klein",     "generate",    "a cat",    SMALL,
            "-o",        cases[i].file, "--format", cases[i].format ? cases[i].format : "auto",
            "--quality", "80",          NULL};
        struct outcome o = program_ok(program_run(NULL, argv), cases[i].file);
        size_t n = o.n;
        int piped = !strcmp(cases[i].file, "-");
        char *bytes = piped ? o.out : program_file(in_dir(cases[i].file), &n);
        cr_assert(n > 100 && !memcmp(bytes + cases[i].at, cases[i].magic, cases[i].n), "%s as %s",
                  cases[i].file, argv[10]);
        if (!piped) free(bytes);
    }
}

Test(cli, patterns_and_folders)
{
    mkdir(in_dir("out"), 0755);
    struct outcome o = OK_RUN("generate", "a", SMALL, "-n", "2", "-o", "out/cat-%03d.png", "-q");
    cr_assert_str_eq(o.out, "out/cat-001.png\nout/cat-002.png\n");
    o = OK_RUN("generate", "a", SMALL, "-S", "3", "-o", "out", "-q", "--format", "webp");
    cr_assert_str_eq(o.out, "out/klein-3.webp\n");
    cr_assert(exists("out/cat-001.png") && exists("out/cat-002.png") && exists("out/klein-3.webp"));
    cr_assert_eq(program_count_files(in_dir("out")), 3);
}

static void has_tensor(const struct st_file *f, const char *name, enum dtype dtype, int ndim, int64_t a,
                       int64_t b, int64_t c)
{
    const struct st_tensor *t = st_find(f, name);
    cr_assert(t, "%s is missing", name);
    cr_assert(t->dtype == dtype && t->ndim == ndim && t->shape[0] == a && (ndim < 2 || t->shape[1] == b) &&
                  (ndim < 3 || t->shape[2] == c),
              "%s has another shape or type", name);
}

Test(cli, dump_and_back)
{
    struct klein_error err;
    struct st_file *f;
    write_reference("r.png", 64, 80);
    json_t *json =
        program_json(OK_RUN("generate", "a cat", "-m", MODEL, "--size", "48x32", "-s", "2", "-S", "1", "-i",
                            "r.png", "--dump", "d.safetensors", "--dump-blocks", "-o", "x.png", "--json"));
    char hash[32];
    snprintf(hash, sizeof hash, "%s", text_of(image_of(json, 0), "latent_hash"));
    cr_assert_str_eq(text_of(json, "dump"), "d.safetensors");
    json_decref(json);
    OK(st_open(in_dir("d.safetensors"), &f, &err));
    has_tensor(f, "input_ids", DT_I32, 1, 512, 0, 0);
    has_tensor(f, "prompt_embeds", DT_F32, 2, 512, 192, 0);
    has_tensor(f, "sigmas", DT_F32, 1, 3, 0, 0);
    has_tensor(f, "ref_latents.0", DT_F32, 2, 20, 128, 0);
    has_tensor(f, "velocity.0", DT_F32, 2, 6, 128, 0);
    has_tensor(f, "latents.1", DT_F32, 2, 6, 128, 0);
    has_tensor(f, "image", DT_F32, 3, 3, 32, 48);
    has_tensor(f, "step.0.double.1.img", DT_F32, 2, 26, 256, 0);
    has_tensor(f, "step.1.double.0.txt", DT_F32, 2, 512, 256, 0);
    cr_assert(st_find(f, "step.1.single.2"));
    cr_assert_str_eq(st_metadata(f, "seed"), "1");
    st_close(f);

    /* The embeddings in that file give what the prompt gave. */
    json = program_json(OK_RUN("generate", "-m", MODEL, "--size", "48x32", "-s", "2", "-S", "1", "-i",
                               "r.png", "--prompt-embeds", "d.safetensors", "-o", "x.png", "--json"));
    cr_assert_str_eq(text_of(image_of(json, 0), "latent_hash"), hash);
    json_decref(json);
    SAYS(RUN("generate", "a", SMALL, "--latents", "d.safetensors"), 5,
         "d.safetensors: has no tensor \"latents\"");
}

/* l.safetensors: latents [1, 128, h, w]. */
static void write_latents(float *values, int h, int w)
{
    struct klein_error err;
    struct st_writer *writer;
    struct st_tensor t = {.name = "latents",
                          .dtype = DT_F32,
                          .ndim = 4,
                          .shape = {1, 128, h, w},
                          .data = values,
                          .bytes = 128 * (size_t)h * (size_t)w * sizeof *values};
    OK(st_write_begin(in_dir("l.safetensors"), &t, 1, NULL, &writer, &err));
    OK(st_write_finish(writer, &err));
}

Test(cli, latents_replace_the_noise)
{
    enum { H = 2, W = 3, N = 128 * H * W };
    float values[N];
    char hash[2][32];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) values[i] = (float)((i * 7919 + round) % 1000) / 500 - 1;
        write_latents(values, H, W);
        json_t *json = program_json(OK_RUN("generate", "a cat", "-m", MODEL, "-s", "1", "--latents",
                                           "l.safetensors", "-o", "x.png", "--json"));
        cr_assert(int_of(json, "width") == 16 * W &&
                  int_of(json, "height") == 16 * H); /* the size is theirs */
        cr_assert(!json_object_get(image_of(json, 0), "seed"));
        snprintf(hash[round], sizeof hash[round], "%s", text_of(image_of(json, 0), "latent_hash"));
        json_decref(json);
    }
    cr_assert_str_neq(hash[0], hash[1]);
    SAYS(RUN("generate", "a", "-m", MODEL, "--latents", "l.safetensors", "--size", "64x64"), 2,
         "latents for 48x32, not for 64x64");
    SAYS(RUN("generate", "a", "-m", MODEL, "--latents", "l.safetensors", "-n", "2"), 2, "leave -n out");
    SAYS(RUN("generate", "a", "-m", MODEL, "--latents", "l.safetensors", "-S", "2"), 2, "leave --seed out");
    SAYS(RUN("generate", "a", "-m", MODEL, "-S", "9223372036854775807", "-n", "2"), 2,
         "leaves no seeds for 2 pictures: it must be 9223372036854775806 at most");
}

/* --noise torch-bf16 is that noise: giving it as latents makes the same picture, another kind of noise another one. */
Test(cli, kinds_of_noise)
{
    enum { H = 2, W = 2, N = 128 * H * W };
    float values[N];
    noise_torch(values, N, 7, KLEIN_NOISE_TORCH_BF16);
    write_latents(values, H, W);
    json_t *json[3] = {
        program_json(OK_RUN("generate", "a", SMALL, "-S", "7", "--noise", "torch-bf16", "--json")),
        program_json(OK_RUN("generate", "a", SMALL, "--latents", "l.safetensors", "--json")),
        program_json(OK_RUN("generate", "a", SMALL, "-S", "7", "--json"))};
    const char *hash[3];
    for (int i = 0; i < 3; i++) hash[i] = text_of(image_of(json[i], 0), "latent_hash");
    cr_assert_str_eq(hash[0], hash[1]);
    cr_assert_str_neq(hash[0], hash[2]);
    cr_assert_str_eq(text_of(json[0], "noise"), "torch-bf16");
    cr_assert_str_eq(text_of(json[2], "noise"), "torch");
    for (int i = 0; i < 3; i++) json_decref(json[i]);
    SAYS(RUN("generate", "a", SMALL, "--noise", "white"), 2, "torch-bf16");
}

Test(cli, sixteen_references_and_no_more)
{
    const char *argv[64] = {"klein", "generate", "a", SMALL, "--json"};
    int n = 0;
    while (argv[n]) n++;
    write_reference("r.png", 64, 64);
    for (int i = 0; i < 16; i++) argv[n++] = "-i", argv[n++] = "r.png";
    json_t *json = program_json(program_ok(program_run(NULL, argv), "sixteen references"));
    cr_assert_eq(int_of(json, "references"), 16);
    json_decref(json);
    argv[n++] = "-i", argv[n++] = "r.png";
    SAYS(program_run(NULL, argv), 2, "16");
}

Test(cli, mistakes_say_what_to_do_and_write_nothing)
{
    write_reference("a.png", 64, 64);
    write_reference("thin.png", 640, 64);
    size_t n;
    char *bytes = program_file(in_dir("a.png"), &n);
    FILE *f = fopen(in_dir("cut.png"), "wb");
    fwrite(bytes, 1, n / 2, f);
    fclose(f);
    free(bytes);
    f = fopen(in_dir("p.txt"), "w");
    fputs("a red balloon on a wooden table\n", f);
    fclose(f);
    char command[1024];
    snprintf(command, sizeof command, "cp -r %s %s && rm %s/tokenizer/tokenizer.json %s/tokenizer/merges.txt",
             MODEL, in_dir("mute"), in_dir("mute"), in_dir("mute"));
    cr_assert_eq(system(command), 0);
    int files = program_count_files(test_dir());
    static const struct {
        const char *argv[8];
        int code;
        const char *says;
    } cases[] = {
        {{"generate"}, 2, "a prompt is missing: klein generate \"a red balloon on a wooden table\""},
        {{"generate", "a", "cat"}, 2, "put quotes around a prompt"},
        {{"generate", "a", "--setps", "4"}, 2, "did you mean --steps?"},
        {{"generate", "a", "-q", "-v"}, 2, "exclude each other"},
        {{"generate", "a", "-p", "b"}, 2, "two prompts"},
        {{"generate", "-", "-i", "-"}, 2, "standard input can be read once"},
        {{"generate", "a", "--size", "1000x700"}, 2, "nearest size is 1008x704"},
        {{"generate", "a", "--size", "5000x64"}, 2, "too large"},
        {{"generate", "a", "-W", "500"}, 2, "the nearest is 496"},
        {{"generate", "a", "--sigmas", "1,2"}, 2, "--sigmas must be falling"},
        {{"generate", "a", "--sigmas", "1,0.5", "-s", "3"}, 2, "leave --steps out"},
        {{"generate", "a", "-o", "-", "--json"}, 2, "both write to standard output"},
        {{"generate", "a", "-o", "-", "-n", "2"}, 2, "takes one picture"},
        {{"generate", "a", "--show", "--json"}, 2, "both write to standard output"},
        {{"generate", "a", "--json", "-o", "a\xff.png"}, 2, "is not UTF-8, which --json needs"},
        {{"generate", "a\xff"}, 2, "byte"},
        {{"generate", "a", "--dump-blocks"}, 2, "--dump-blocks goes with --dump FILE"},
        {{"generate", "a", "--parallel", "ulysses"}, 2, "--parallel goes with --gpus LIST; give that too"},
        {{"generate", "a", "--parallel", "cfg"}, 2, "--parallel goes with --gpus LIST; give that too"},
        {{"generate", "a", "--parallel", "replica"}, 2, "--parallel goes with --gpus LIST; give that too"},
        {{"generate", "a", "--prompt-embeds", "x"}, 2, "leave the prompt out"},
        {{"generate", "-p", "", "--prompt-embeds", "x"}, 2, "leave the prompt out"},
        {{"generate", "a", "-o", "x.gif"}, 2, "use .png, .jpg or .webp"},
        {{"generate", "a", "-m", "no/such/model"}, 3, "there is no model at \"no/such/model\""},
        {{"generate", "a", "-m", "."}, 3, "transformer"},
        {{"generate", "a", "--device", "gpu"}, 4, "device \"gpu\" does not exist; this build has: cpu"},
        {{"generate", "a", "--device", "null"}, 4, "only counts"},
        {{"generate", "a", "-i", "no.png"}, 5, "no.png: "},
        {{"generate", "a", "-i", "cut.png"}, 5, "cut.png: "},
        {{"generate", "a", "-i", "thin.png"}, 5, "thin.png: "},
        {{"generate", "a", "-o", "no/x.png"}, 5, "the folder no/ does not exist"},
        {{"generate", "a", "--dump", "no/x"}, 5, "the folder no/ does not exist"},
        {{"generate", "a", "-o", "/proc/x.png"}, 5, "/proc/x.png: cannot write in /proc/: "},
        {{"generate", "a", "--dump", "/proc/x"}, 5, "/proc/x: cannot write in /proc/: "},
        {{"generate", "a", "-m", "p.txt"}, 3, "p.txt: says that its header has"},
        {{"generate", "a", "--transformer", "p.txt"}, 3, "p.txt: says that its header has"},
        {{"generate", "a", "--vae", "a.png"}, 3, "a.png: "},
        {{"generate", "a", "-m", "mute"}, 3, "mute has no tokenizer: tokenizer/tokenizer.json"},
        {{"generate", "--prompt-file", "no.txt"}, 5, "no.txt: cannot read the prompt"},
        {{"generate", "a", "--latents", "a.png"}, 5, "a.png: "},
        {{"generate", "a", "-o", "/dev/full", "-s", "1", "-W", "32"}, 5, "/dev/full: "},
    };
    setenv("KLEIN_MODEL", MODEL, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *argv[12] = {"klein"};
        for (int j = 0; j < 8; j++) argv[j + 1] = cases[i].argv[j];
        struct outcome o = program_run(NULL, argv);
        cr_assert(o.code == cases[i].code && strstr(o.err, cases[i].says),
                  "case %zu: exit code %d, expected %d; said \"%s\", expected \"%s\"", i, o.code,
                  cases[i].code, o.err, cases[i].says);
        cr_assert(strchr(o.err, '\n') == o.err + strlen(o.err) - 1, "case %zu: more than one line: %s", i,
                  o.err);
        cr_assert_eq(o.n, 0);
    }
    cr_assert_eq(program_count_files(test_dir()), files);
}

Test(cli, where_the_model_comes_from)
{
    struct outcome o = RUN("generate", "a", "--size", "32x32", "-s", "1", "-o", "x.png");
    if (access(KLEIN_SOURCE_DIR "/weights/nano/model_index.json", F_OK)) {
        SAYS(o, 3, "no model: give its folder with -m DIR or in KLEIN_MODEL");
    } else {
        SAYS(o, 0, "demo model");
    }
    setenv("KLEIN_MODEL", MODEL, 1);
    OK_RUN("generate", "a", "--size", "32x32", "-s", "1", "-o", "x.png");
    setenv("KLEIN_MODEL", "/no/such/place", 1);
    SAYS(RUN("generate", "a", "-o", "y.png"), 3,
         "there is no model at \"/no/such/place\" (from KLEIN_MODEL)");
    OK_RUN("generate", "a", SMALL, "-o", "x.png"); /* -m comes first */
    OK_RUN("generate", "a", "--transformer", GOLDEN_MODEL("tiny/transformer"), "--text-encoder",
           GOLDEN_MODEL("tiny/text_encoder"), "--vae", GOLDEN_MODEL("tiny/vae"), "-m", MODEL, "--size",
           "32x32", "-s", "1", "-o", "x.png");
}

/* Waits until standard error of a running klein has that text. */
static void await(const char *path, const char *text)
{
    for (int i = 0; i < 3000; i++) {
        if (access(path, F_OK) == 0) {
            char *said = program_file(path, NULL);
            int found = strstr(said, text) != NULL;
            free(said);
            if (found) return;
        }
        usleep(20000);
    }
    cr_assert(0, "\"%s\" did not appear", text);
}

Test(cli, ctrl_c_stops_within_a_step_and_leaves_nothing)
{
    const char *log = in_dir("log");
    pid_t pid = program_start(log, (const char *const[]){"klein", "generate", "a", "-m", MODEL, "--size",
                                                         "64x64", "-s", "1000", "-v", "--dump",
                                                         "d.safetensors", "-o", "x.png", NULL});
    await(log, "denoise 1/1000");
    kill(pid, SIGINT);
    cr_assert_eq(program_wait(pid), 130);
    char *said = program_file(log, NULL);
    cr_assert(strstr(said, "interrupted; nothing was written"), "%s", said);
    cr_assert(!strstr(said, "500/1000"), "it went on for long after the signal");
    free(said);
    cr_assert_eq(program_count_files(test_dir()), 1); /* the log */
}

/* Pictures that were finished stay, and the line says which seeds they have. */
Test(cli, ctrl_c_keeps_what_is_finished)
{
    char log[512], second[512];
    snprintf(log, sizeof log, "%s", in_dir("log"));
    snprintf(second, sizeof second, "%s", in_dir("x-1.png"));
    pid_t pid =
        program_start(log, (const char *const[]){"klein", "generate", "a", "-m", MODEL, "--size", "64x64",
                                                 "-s", "40", "-n", "64", "-S", "70", "-o", "x-%d.png", NULL});
    for (int i = 0; i < 3000 && access(second, F_OK); i++) usleep(20000);
    kill(pid, SIGINT);
    cr_assert_eq(program_wait(pid), 130);
    char *said = program_file(log, NULL);
    cr_assert(strstr(said, " of 64 pictures were written, from seed 70 on"), "%s", said);
    free(said);
}

/* Threads that wait sleep soon (main.c), unless the user has decided otherwise. */
Test(cli, waiting_threads_do_not_spin)
{
    static const char *const variables[] = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"};
    for (int i = 0; i < 2; i++) {
        const char *log = in_dir(i ? "log1" : "log0");
        char path[64], environment[1 << 16];
        unsetenv(variables[0]), unsetenv(variables[1]);
        if (i) setenv("OMP_WAIT_POLICY", "active", 1);
        pid_t pid =
            program_start(log, (const char *const[]){"klein", "generate", "a", "-m", MODEL, "--size", "64x64",
                                                     "-s", "1000", "-v", "-o", "x.png", NULL});
        await(log, "denoise 1/1000");
        snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
        FILE *f = fopen(path, "rb");
        cr_assert(f);
        const size_t size = fread(environment, 1, sizeof environment, f);
        fclose(f);
        cr_assert_eq(memmem(environment, size, "GOMP_SPINCOUNT=1000", 20) != NULL, i == 0);
        snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
        f = fopen(path, "rb");
        cr_assert(f && fgets(environment, sizeof environment, f));
        fclose(f);
        cr_assert_str_eq(environment, "klein\n", "its name stays what people look for");
        kill(pid, SIGINT);
        cr_assert_eq(program_wait(pid), 130);
    }
}

Test(cli, terminals)
{
    struct outcome o = RUN_ON_TERMINAL(80, "generate", "a", SMALL, "-o", "-");
    cr_assert(o.code == 2 && strstr(o.out, "would write picture data to the terminal; redirect it"), "%d: %s",
              o.code, o.out);
    o = RUN_ON_TERMINAL(60, "generate", "a", SMALL, "-o", "x.png");
    cr_assert(o.code == 0 && strchr(o.out, '\r') && strstr(o.out, "x.png"), "a bar was drawn: %s", o.out);
    o = RUN_ON_TERMINAL(60, "generate", "a", SMALL, "-o", "x.png", "-q");
    cr_assert_str_eq(o.out, "x.png\r\n"); /* the terminal's line end */
    o = RUN_ON_TERMINAL(60, "generate", "a", SMALL, "-o", "x.png", "-q", "--show=blocks");
    cr_assert(o.code == 0 && strstr(o.out, "x.png\r\n") == o.out && strstr(o.out, "\xe2\x96\x80"),
              "half blocks: %s", o.out);
    o = RUN_ON_TERMINAL(60, "generate");
    cr_assert(o.code == 2 && strstr(o.out, "\033[31m"), "errors are red on a terminal: %s", o.out);
    setenv("NO_COLOR", "1", 1);
    o = RUN_ON_TERMINAL(60, "generate");
    cr_assert(o.code == 2 && !strchr(o.out, '\033'), "but not with NO_COLOR: %s", o.out);
    unsetenv("NO_COLOR");
    setenv("TERM", "dumb", 1);
    o = RUN_ON_TERMINAL(60, "generate", "a", SMALL, "-o", "x.png");
    cr_assert(o.code == 0 && !strchr(o.out, '\033'), "a dumb terminal gets no escape sequences: %s", o.out);
}

Test(cli, output_that_cannot_be_written_is_an_error)
{
    const char *log = in_dir("log");
    char command[1024];
    snprintf(command, sizeof command, "%s/klein generate a -m %s --size 32x32 -s 1 -o %s >/dev/full 2>%s",
             KLEIN_BINARY_DIR, MODEL, in_dir("x.png"), log);
    int status = system(command);
    char *said = program_file(log, NULL);
    cr_assert(WEXITSTATUS(status) == 5 && strstr(said, "cannot write to standard output"), "%x: %s", status,
              said);
    free(said);
}

/* A GPU that fails amid the picture: the exit code, a line that says so, and no file. */
Test(cli, a_gpu_is_lost)
{
    if (SANITIZED) SKIP("whole requests on the soft GPU are the release build's");
    setenv("KLEIN_SOFT", "sm_90a", 1);
    setenv("KLEIN_SOFT_FAIL", "0:400", 1);
    const int files = program_count_files(test_dir());
    struct outcome o = RUN("generate", "-m", GOLDEN_MODEL("tiny"), "a", "--size", "32x32", "-s", "2",
                           "--device", "soft", "-o", "lost.png");
    SAYS(o, 1, "fails as asked for, as number 400 of device 0");
    cr_assert(strchr(o.err, '\n') == o.err + strlen(o.err) - 1, "one line: %s", o.err);
    cr_assert_eq(program_count_files(test_dir()), files);
}
