/* The command line with an NVIDIA driver, for which the soft GPU stands in (driver/cuda_standin.c). 10 s. */
#include "support/program.h"

#include <stdlib.h>
#include <string.h>

#define PICTURE "generate", "a cat", "-m", GOLDEN_MODEL("tiny"), "--size", "32x32", "-s", "1", "-o", "x.png"

TestSuite(cli_gpu, .disabled = SANITIZED);

static void made_on(const char *device, const char *note)
{
    char begin[64];
    snprintf(begin, sizeof begin, "klein: on %s: ", device);
    struct outcome o = OK_RUN(PICTURE, "--json");
    json_t *json = program_json(o);
    const char *said = strstr(o.err, begin);
    cr_assert_str_eq(json_string_value(json_object_get(json, "device")), device);
    cr_assert(note ? said && strstr(said, note) : !said, "said \"%s\"", o.err);
    cr_assert(!said || !strstr(said + 1, "klein: "), "more than one note: %s", o.err);
    json_decref(json);
}

/* Whether klein devices has it, and marks it and no other. */
static int is_default(const char *device)
{
    char begin[64];
    snprintf(begin, sizeof begin, "\n%s ", device);
    struct outcome o = OK_RUN("devices");
    const char *row = strstr(o.out, begin), *mark = strstr(o.out, " (default)\n");
    cr_assert(row && mark && !strstr(mark + 1, " (default)\n"), "%s", o.out);
    return mark > row && mark < strchr(row + 1, '\n');
}

/* "auto" takes a card that fits, else the processor and says why, with what to do; asked for, such a card is an error. */
Test(cli_gpu, auto_takes_a_card_that_fits)
{
    program_card("sm_90a", NULL);
    made_on("cuda", NULL);
    cr_assert(is_default("cuda"));
}

Test(cli_gpu, auto_and_a_card_that_is_too_old)
{
    program_card("sm_75", "NVIDIA TITAN RTX");
    made_on("cpu", "GPU 0 is not used: NVIDIA TITAN RTX has compute capability 7.5: klein needs 8.0 (Ampere) "
                   "or later\n");
    cr_assert(is_default("cpu"));
    SAYS(RUN(PICTURE, "--device", "cuda"), 1, "use --device cpu");
}

Test(cli_gpu, auto_and_a_card_that_is_too_small)
{
    program_card("sm_90a", "NVIDIA Small");
    setenv("KLEIN_SOFT_MEMORY", "1024", 1);
    made_on("cpu",
            "GPU 0 is not used: NVIDIA Small has 0.94 GiB free, the weights and a picture need 1.02 GiB\n");
    cr_assert(is_default("cuda")); /* other models fit */
    setenv("KLEIN_SOFT_MEMORY", "32", 1);
    made_on("cpu", "GPU 0 is not used: NVIDIA Small: 64 MiB asked for");
    cr_assert(is_default("cpu"));
}

/* The first that can hold the model, and a word about each before it: one that does not open, one that is too small. Any that opens is the
 * default of other models. */
Test(cli_gpu, auto_walks_the_cards)
{
    program_card("sm_90a:4", "NVIDIA Small");
    setenv("KLEIN_SOFT_MEMORY", "32,1024,2048", 1);
    made_on("cuda:2",
            "GPU 0 is not used: NVIDIA Small: 64 MiB asked for, 32 of 32 MiB are free: use a smaller "
            "size or fewer references; GPU 1 is not used: NVIDIA Small has 0.94 GiB free, the "
            "weights and a picture need 1.02 GiB\n");
    cr_assert(is_default("cuda:1") && !is_default("cuda:3"));
    setenv("KLEIN_SOFT_MEMORY", "32,1024,33,1024", 1);
    made_on("cpu", "; GPU 2 is not used: NVIDIA Small: 64 MiB asked for, 33 of 33 MiB are free");
    cr_assert(is_default("cuda:1"));
}

/* One line, whatever there is to say: those that are alike together, and each that is not. */
Test(cli_gpu, auto_and_many_cards)
{
    program_card("sm_90a:16", "NVIDIA H100 80GB HBM3");
    setenv("KLEIN_SOFT_MEMORY", "1024", 1);
    made_on("cpu", ": GPUs 0 to 15 are not used: NVIDIA H100 80GB HBM3 has 0.94 GiB free, the weights and a "
                   "picture need 1.02 GiB\n");
    setenv("KLEIN_SOFT_MEMORY", "1024,1024,32,33,34,35,36,37,38,39,40,41,42,43,44,45", 1);
    made_on("cpu", ": GPUs 0 to 1 are not used: NVIDIA H100 80GB HBM3 has 0.9");
    struct outcome o = OK_RUN(PICTURE);
    for (int i = 2; i < 16; i++) {
        char text[64];
        snprintf(text, sizeof text, "; GPU %d is not used: NVIDIA H100 80GB HBM3", i);
        cr_assert(strstr(o.err, text), "\"%s\" not in: %s", text, o.err);
    }
    const char *line = strstr(o.err, "klein: on cpu: "), *text = strstr(line, "GPU");
    cr_assert(strcspn(text, "\n") < KLEIN_MESSAGE_MAX && strstr(line, "..."), "%s", line);
}

/* Two models of klein compare: the first card has room for one of them and a picture, but one takes matrices of the other. */
Test(cli_gpu, compare_keeps_to_one_card)
{
    char path[256];
    program_card("sm_90a:2", NULL);
    setenv("KLEIN_SOFT_MEMORY", "1150,2048", 1);
    setenv("KLEIN_SOFT_RACES", "0", 1);
    snprintf(path, sizeof path, "%s/prompts", test_dir());
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs("a cat\n", f) >= 0 && !fclose(f));
    OK_RUN("compare", "prompts", "-m", KLEIN_SOURCE_DIR "/weights/nano", "--size", "32x32", "-s", "1",
           "--layers", "kinds");
}

Test(cli_gpu, auto_and_a_build_without_kernels)
{
    program_card("sm_90a", "NVIDIA H100 80GB HBM3");
    setenv("KLEIN_STANDIN", "bare", 1);
    made_on("cpu", "GPU 0 is not used: this build of klein has no kernels for NVIDIA H100 80GB HBM3 (sm_90)");
    cr_assert(is_default("cpu"));
    SAYS(RUN(PICTURE, "--device", "cuda"), 1, "this build of klein has no kernels for");
}

/* A driver that fails is worth a word, none is not. */
Test(cli_gpu, auto_and_the_driver)
{
    struct outcome o = OK_RUN("devices");
    if (strstr(o.out, "no NVIDIA driver")) made_on("cpu", NULL);
    program_card("sm_90a", NULL);
    setenv("KLEIN_STANDIN", "mute", 1);
    made_on("cpu", "GPU 0 is not used: libcuda.so.1 finds no usable GPU: ");
}

static int picture_says(const char *name, const char *text)
{
    char path[256];
    size_t n;
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    char *bytes = program_file(path, &n);
    const int says = memmem(bytes, n, text, strlen(text)) != NULL;
    free(bytes);
    return says;
}

/* What several cards do is said, in words, in JSON and in the picture; so is a card that is not there, and one without FP8. */
Test(cli_gpu, several_cards)
{
    program_card("sm_80:2", NULL);
    setenv("KLEIN_SOFT_RACES", "0", 1);
    struct outcome o =
        OK_RUN("generate", "a cat", "-m", KLEIN_SOURCE_DIR "/weights/nano", "--size", "32x32", "-s", "1",
               "-n", "2", "-o", "x.png", "--gpus", "0,1", "--parallel", "replica", "-v", "--json");
    cr_assert(strstr(o.err, ", on cuda:0,1 replica in bf16"), "%s", o.err);
    json_t *json = program_json(o);
    char *gpus = json_dumps(json_object_get(json, "gpus"), JSON_COMPACT);
    cr_assert_str_eq(gpus, "[0,1]");
    cr_assert_str_eq(json_string_value(json_object_get(json, "parallel")), "replica");
    cr_assert_str_eq(json_string_value(json_object_get(json, "device")), "cuda:0,1 replica");
    free(gpus);
    json_decref(json);
    cr_assert(picture_says("x-1.png", ", Device: \"cuda:0,1 replica\", Dtype: bf16,"));
    OK_RUN(PICTURE, "--device", "cuda:1");
    cr_assert(picture_says("x.png", ", Device: \"cuda:1\", Dtype: bf16,"));
    SAYS(RUN(PICTURE, "--device", "cuda:7"), 4, "there is no GPU 7: this machine has 2, numbered from 0");
    SAYS(RUN("tune", "--config", "tiny", "--precision", "fp8", "--list"), 1,
         "FP8 needs sm_89 (Ada) or later");
}
