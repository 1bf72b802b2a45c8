/* What klein generate reads and writes: names of pictures, metadata, tensors, dumps, tables. */
#include "support/alloc.h"
#include "support/support.h"

#include "../host/dump.h"
#include "../host/inputs.h"
#include "../host/output.h"
#include "../host/parameters.h"
#include "../host/report.h"
#include "../host/table.h"
#include "../weights/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- where pictures go --- */

static const char *path_of(const char *pattern, int images, int image, enum image_format format)
{
    static char path[4096];
    struct klein_error err;
    struct output o = {pattern, format, images};
    OK(output_path(&o, image, 42, path, sizeof path, &err));
    return path;
}

Test(host_files, output_names)
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

Test(host_files, own_names_never_overwrite)
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

Test(host_files, outputs_are_checked_before_the_work)
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

Test(host_files, parameters_as_web_uis_read_them)
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
                           .dtype = "bf16",
                           .precision = "bf16"};
    char *text = parameters_text(&p);
    cr_assert_str_eq(
        text,
        "a cat,\na hat\nSteps: 4, Sampler: Euler, CFG scale: 1, Seed: 42, Size: 1024x768, Model: klein 4B, "
        "Noise: torch, Device: cpu, Dtype: bf16, Latents: 0000000000000abc, Version: klein " KLEIN_VERSION);
    free(text);
    p.model = "mine: \"A\", B";
    p.references = 2;
    p.precision = "fp8";
    text = parameters_text(&p);
    cr_assert(strstr(text, ", Model: \"mine: \\\"A\\\", B\", References: 2,"), "%s", text);
    cr_assert(strstr(text, ", Dtype: bf16, Precision: fp8, Latents"), "%s", text);
    free(text);
}

Test(host_files, devices_by_name)
{
    struct klein_model_info m = {.device = "cuda:1"};
    cr_assert_str_eq(report_device(&m).text, "cuda:1");
    m = (struct klein_model_info){.device = "cuda", .gpus = (int[]){3}, .n_gpus = 1, .parallel = "ulysses"};
    cr_assert_str_eq(report_device(&m).text, "cuda:3"); /* which works alone */
    m.gpus = (int[]){248, 249, 250, 251, 252, 253, 254, 255};
    m.n_gpus = 8;
    cr_assert_str_eq(report_device(&m).text, "cuda:248,249,250,251,252,253,254,255 ulysses");
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

Test(host_files, prompts_from_files)
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

Test(host_files, lists_of_sigmas)
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

Test(host_files, tensors_as_inputs)
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

Test(host_files, dump_is_whole_or_absent)
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

Test(host_files, tables_and_quantities)
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

/* --- without memory --- */

static enum klein_status dump_once(const char *path, struct klein_error *err)
{
    struct dump *d;
    const float v[2] = {1, 2};
    TRY(dump_begin(path, &d, err));
    dump_tap(d, &(struct klein_tap){"sigmas", 0, 1, {2}, v});
    return dump_finish(d, NULL, err);
}

static enum klein_status table_once(struct klein_error *err)
{
    struct table t;
    FILE *nowhere = fopen("/dev/null", "w");
    table_begin(&t, "ll");
    for (int i = 0; i < 300; i++) table_cell(&t, "%d", i);
    int ok = table_print(&t, nowhere);
    fclose(nowhere);
    return ok ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory");
}

Test(host_files, every_allocation_may_fail)
{
    enum { N = 128 };
    struct klein_error err;
    char prompt[256], latents[256], embeds[256], *text;
    float values[N] = {0}, *out;
    int n, w, h;
    snprintf(prompt, sizeof prompt, "%s", file_with("prompt", "a cat", 5));
    snprintf(latents, sizeof latents, "%s",
             tensor_file("l", "latents", DT_F32, 4, (int64_t[]){1, N, 1, 1}, values));
    snprintf(embeds, sizeof embeds, "%s",
             tensor_file("e", "prompt_embeds", DT_F32, 2, (int64_t[]){2, N / 2}, values));
    EACH_ALLOCATION_FAILS_SOMEHOW(inputs_prompt(prompt, &text, &err), free(text));
    EACH_ALLOCATION_FAILS(inputs_sigmas("1,0.5", &out, &n, &err), free(out));
    EACH_ALLOCATION_FAILS_SOMEHOW(inputs_latents(latents, &out, &w, &h, &err), free(out));
    EACH_ALLOCATION_FAILS_SOMEHOW(inputs_embeds(embeds, 2, N / 2, &out, &err), free(out));
    snprintf(prompt, sizeof prompt, "%s/d.safetensors", test_dir());
    EACH_ALLOCATION_FAILS(dump_once(prompt, &err), unlink(prompt));
    EACH_ALLOCATION_FAILS(table_once(&err), (void)0);
    cr_assert(access(prompt, F_OK), "a dump that failed left a file");
}
