/* The commands of klein beside generate, as a person runs them. */
#include "support/program.h"

#include "../engine/klein.h"
#include "../host/commands.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL GOLDEN_MODEL("tiny")

static void setup(void)
{
    unsetenv("KLEIN_MODEL");
    unsetenv("COLUMNS");
}
TestSuite(cli_commands, .init = setup);

static double number_of(const json_t *o, const char *key)
{
    const json_t *value = json_object_get(o, key);
    cr_assert(json_is_number(value), "no number \"%s\"", key);
    return json_number_value(value);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    cr_assert(text, "no text \"%s\"", key);
    return text;
}

Test(cli_commands, help_is_everywhere_and_quick)
{
    struct outcome o = OK_RUN("--help");
    for (int i = 0; commands[i]; i++)
        cr_assert(strstr(o.out, commands[i]->name), "%s is not listed", commands[i]->name);
    char *overview = strdup(o.out);
    cr_assert_str_eq(OK_RUN("help").out, overview);
    o = RUN("-q"); /* a word that is no command */
    cr_assert(o.code == 2 && !o.n);
    o = program_run(NULL, (const char *const[]){"klein", NULL});
    cr_assert(o.code == 2 && !strcmp(o.err, overview), "klein alone shows the overview, as an error");
    for (int i = 0; commands[i]; i++) {
        o = OK_RUN(commands[i]->name, "--help");
        cr_assert(strstr(o.out, "Usage: klein "));
        char *help = strdup(o.out);
        cr_assert_str_eq(OK_RUN("help", commands[i]->name).out, help);
        free(help);
    }
    free(overview);
#ifndef __SANITIZE_ADDRESS__
    double fastest = INFINITY; /* of the processor's time: the clock depends on what else runs here */
    for (int i = 0; i < 5; i++) fastest = fmin(fastest, OK_RUN("generate", "--help").cpu);
    cr_assert(fastest < 0.05, "%g s", fastest);
#endif
}

Test(cli_commands, unknown_commands)
{
    SAYS(RUN("a red balloon"), 2, "for a picture of it: klein generate \"a red balloon\"");
    SAYS(RUN("balloon"), 2, "(a picture: klein generate \"balloon\")");
    SAYS(RUN("genrate", "a"), 2, "did you mean \"klein generate\"?");
    SAYS(RUN("-p", "a"), 2, "options come after a command");
    SAYS(RUN("help", "balloon"), 2, "there is no command \"balloon\"");
}

Test(cli_commands, version)
{
    struct outcome o = OK_RUN("--version");
    cr_assert(strstr(o.out, "klein " KLEIN_VERSION "\n") == o.out && strstr(o.out, "oneDNN: "));
    json_t *json = program_json(OK_RUN("--version", "--json"));
    cr_assert_str_eq(text_of(json, "version"), KLEIN_VERSION);
    cr_assert(*text_of(json, "commit") && *text_of(json, "compiler") && *text_of(json, "onednn") &&
              *text_of(json, "processor"));
    json_decref(json);
}

Test(cli_commands, devices)
{
    struct outcome o = OK_RUN("devices");
    cr_assert(strstr(o.out, "\ncpu ") && strstr(o.out, "(default)") && !strstr(o.out, "\nnull "));
    json_t *json = program_json(OK_RUN("devices", "--json")), *row;
    size_t i;
    int defaults = 0;
    json_array_foreach(json_object_get(json, "devices"), i, row) defaults +=
        json_is_true(json_object_get(row, "default"));
    cr_assert(defaults == 1 && number_of(json, "memory_bytes") > 1e8);
    json_decref(json);
}

Test(cli_commands, info)
{
    struct outcome o = OK_RUN("info", MODEL);
    cr_assert(strstr(o.out, "distilled: 4 steps") && strstr(o.out, "nothing unknown"), "%s", o.out);
    cr_assert(strstr(OK_RUN("info", MODEL, "--tensors").out, "transformer_blocks.0.attn.to_q.weight"));
    json_t *json = program_json(OK_RUN("info", "-m", MODEL, "--json", "--base"));
    cr_assert(json_is_false(json_object_get(json, "distilled"))); /* model_index.json says it is */
    cr_assert(number_of(json, "default_steps") == 50 && number_of(json, "default_guidance") == 4);
    const json_t *dit = json_object_get(json_object_get(json, "parts"), "transformer");
    cr_assert(number_of(dit, "bytes") == 2 * number_of(dit, "parameters"));
    cr_assert(number_of(json_object_get(dit, "parameters_by_dtype"), "BF16") == number_of(dit, "parameters"));
    json_decref(json);
    cr_assert(strstr(OK_RUN("info", KLEIN_SOURCE_DIR "/weights/nano").out, "licence      Apache-2.0"));
    SAYS(RUN("info", "no/such"), 3, "there is no model at \"no/such\"");
    SAYS(RUN("info", MODEL, "-m", MODEL), 2, "two models");

    /* Broken copies. */
    char command[1024];
    snprintf(command, sizeof command, "cp -r %s %s/copy && rm -r %s/copy/tokenizer", MODEL, test_dir(),
             test_dir());
    cr_assert_eq(system(command), 0);
    SAYS(RUN("info", "copy"), 3, "tokenizer");
    snprintf(command, sizeof command,
             "cp -r %s/tokenizer %s/copy/ && truncate -s -100 %s/copy/vae/*.safetensors", MODEL, test_dir(),
             test_dir());
    cr_assert_eq(system(command), 0);
    SAYS(RUN("info", "copy"), 3, "copy/vae/");
    snprintf(command, sizeof command, "rm -r %s/copy/vae", test_dir());
    cr_assert_eq(system(command), 0);
    SAYS(RUN("info", "copy"), 3, "vae");
}

static double stage_of(const json_t *plan, const char *stage, const char *what)
{
    return number_of(json_object_get(json_object_get(plan, "stages"), stage), what);
}

/* Against counts made from the published implementation's modules; a product of two sizes wrong anywhere shows. `unread` is what these
 * compute of the last block for text and references, and nothing reads: each row's q and MLP (2 D (D + 2 mlp)), output (2 (D + mlp) D) and
 * attention (4 D for each token). */
Test(cli_commands, plan_counts_what_the_model_does)
{
    static const struct {
        const char *config, *size, *reference;
        int references;
        double text, encode, denoise, unread, decode; /* TFLOP */
    } cases[] = {
        {"klein-4b", "1024x1024", "", 0, 2.906, 0, 139.3, 0.541, 10.475},
        {"klein-4b", "512x512", "", 0, 2.906, 0, 40.7, 0.464, 2.516},
        {"klein-4b", "1024x1024", "1024x1024", 2, 2.906, 9.776, 515.5, 12.705, 10.475},
        {"klein-9b", "1024x1024", "", 0, 5.450, 0, 302.1, 0.911, 10.475},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *argv[16] = {"klein",         "plan",   "--json",     "--config",
                                cases[i].config, "--size", cases[i].size};
        for (int r = 0; r < cases[i].references; r++)
            argv[7 + 2 * r] = "-i", argv[8 + 2 * r] = cases[i].reference;
        json_t *json = program_json(program_ok(program_run(NULL, argv), cases[i].config));
        const struct {
            const char *stage;
            double expected;
        } stages[] = {{"text", cases[i].text},
                      {"references", cases[i].encode},
                      {"denoise", cases[i].denoise - cases[i].unread},
                      {"decode", cases[i].decode}};
        for (int s = 0; s < 4; s++) { /* 0.1 T: what is done once for all steps counts as references */
            double got = stage_of(json, stages[s].stage, "flop") / 1e12;
            cr_assert(fabs(got - stages[s].expected) <= 0.002 * stages[s].expected + 0.1,
                      "%s %s, %s: %.3f TFLOP, expected %.3f", cases[i].config, cases[i].size, stages[s].stage,
                      got, stages[s].expected);
        }
        json_decref(json);
    }
}

Test(cli_commands, plan_fits_in_memory_and_says_so)
{
    json_t *json = program_json(OK_RUN("plan", "--json", "--size", "1024x1024"));
    cr_assert_str_eq(text_of(json, "model"), "klein 4B");
    cr_assert(number_of(json, "arena_bytes") <= 1.5 * 0x1p30, "%g GiB",
              number_of(json, "arena_bytes") / 0x1p30);
    cr_assert_eq(number_of(json, "parameters"),
                 3875544576.0 + 3114088192.0 + 84046115.0 + 256); /* and the VAE's statistics */
    json_decref(json);
    struct outcome o = OK_RUN("plan", "--config", "tiny", "--size", "64x64", "-i", "64x64", "--ops");
    cr_assert(strstr(o.out, "STAGE") && strstr(o.out, "attention") && strstr(o.out, "patchify") &&
              strstr(o.out, "working memory"));
    json = program_json(OK_RUN("plan", "-m", MODEL, "--ops", "--json", "-n", "2"));
    cr_assert(json_array_size(json_object_get(json, "ops")) > 20);
    json_decref(json);
    SAYS(RUN("plan", "--config", "klein-5b"), 2, "there are klein-4b,");
    SAYS(RUN("plan", "--size", "1000x1000"), 2, "nearest size is 1008x1008");
    SAYS(RUN("plan", "-i", "1000"), 2, "-i must be WIDTHxHEIGHT");
    SAYS(RUN("plan", "--config", "tiny", "-m", MODEL), 2, "exclude each other");
}

Test(cli_commands, plan_predicts_times_and_says_that_they_are_predicted)
{
    double stages = 0;
    static const char *const names[] = {"text", "references", "denoise", "decode"};
    json_t *bf16 = program_json(OK_RUN("plan", "--size", "512x512", "--gpu", "h100", "--json", "--ops"));
    json_t *fp8 =
        program_json(OK_RUN("plan", "--size", "512x512", "--gpu", "h100", "--precision", "fp8", "--json"));
    json_t *predicted = json_object_get(bf16, "predicted");
    cr_assert(json_is_false(json_object_get(predicted, "measured")));
    for (int i = 0; i < 4; i++) stages += stage_of(bf16, names[i], "predicted_seconds");
    cr_assert(fabs(stages / number_of(predicted, "seconds") - 1) < 1e-6);
    size_t i;
    json_t *op;
    double ops = 0;
    json_array_foreach(json_object_get(bf16, "ops"), i, op) ops +=
        number_of(op, "calls") * number_of(op, "predicted_seconds");
    cr_assert(fabs(ops / stages - 1) < 1e-6, "%g, stages %g", ops, stages);
    /* FP8 is for the denoiser only. */
    cr_assert(stage_of(fp8, "denoise", "predicted_seconds") <
              0.8 * stage_of(bf16, "denoise", "predicted_seconds"));
    cr_assert_eq(stage_of(fp8, "decode", "predicted_seconds"), stage_of(bf16, "decode", "predicted_seconds"));
    json_decref(bf16);
    json_decref(fp8);
    struct outcome o = OK_RUN("plan", "--config", "tiny", "--size", "64x64", "--gpu", "4090", "--ops");
    cr_assert(strstr(o.out, "PREDICTED MS") &&
              strstr(o.out, "Predicted, not measured, for one RTX 4090 in BF16"));
    o = OK_RUN("plan", "--config", "tiny", "--size", "64x64");
    cr_assert(!strstr(o.out, "redicted"));
    o = OK_RUN("plan", "--config", "tiny", "--size", "64x64", "--gpu", "b200");
    cr_assert(strstr(o.out, "no kernels for tcgen05"));
    SAYS(RUN("plan", "--gpu", "3dfx"), 2, "there are a100, l4,");
    SAYS(RUN("plan", "--gpu", "a100", "--precision", "fp8"), 2, "does not multiply FP8");
    SAYS(RUN("plan", "--gpu", "h100", "--dtype", "f32"), 2, "bf16 only");
}

static double predicted(struct outcome o, const char *what)
{
    json_t *json = program_json(o);
    double value = number_of(json_object_get(json, "predicted"), what);
    json_decref(json);
    return value;
}

/* Several GPUs: less than one, not less than their share, no more of them than can share the heads. */
Test(cli_commands, plan_of_several_gpus)
{
#define PLAN "plan", "--size", "1024x1024", "--gpu", "h100", "--json"
    double one = predicted(OK_RUN(PLAN), "step_seconds"),
           four = predicted(OK_RUN(PLAN, "--gpus", "4"), "step_seconds");
    cr_assert(four < one / 2 && four > one / 4, "%g of %g", four, one);
#define CFG "--config", "klein-base-4b", "--steps", "1"
    double passes = predicted(OK_RUN(PLAN, CFG), "step_seconds"),
           shared = predicted(OK_RUN(PLAN, CFG, "--gpus", "2", "--parallel", "cfg"), "step_seconds");
    cr_assert(shared < 0.51 * passes && shared > 0.5 * passes, "%g of %g", shared, passes);
    struct outcome o = OK_RUN("plan", "--size", "1024x1024", "--gpu", "h100", "--gpus", "2", "--ops");
    cr_assert(strstr(o.out, "for 2 H100 SXM") && strstr(o.out, "exchange") &&
              strstr(o.out, "MEMORY ON EACH GPU"));
    SAYS(RUN("plan", "--gpus", "5"), 2, "24 attention heads");
    SAYS(RUN("plan", "--gpus", "9"), 2, "--gpus");
    SAYS(RUN("plan", "--gpu", "4090", "--gpus", "2"), 2, "do not reach each other's memory");
    SAYS(RUN("plan", "--gpus", "2", "--parallel", "cfg"), 2, "base model");
    SAYS(RUN("plan", "--gpus", "4", "--parallel", "cfg"), 2, "--gpus 2");
    SAYS(RUN("plan", "--parallel", "ulysses"), 2, "--parallel goes with --gpus N");
}

/* What klein is held to on an H100, by the model (SPEED.md): seconds of a request and of a step, and what several cards make of one's step. */
Test(cli_commands, plan_meets_the_goals)
{
#define FP8 "--precision", "fp8"
    const double step = predicted(OK_RUN(PLAN, FP8), "step_seconds");
    const struct {
        const char *what;
        double value, goal;
    } goals[] = {
        {"1024x1024 BF16", predicted(OK_RUN(PLAN), "seconds"), 0.235},
        {"1024x1024 FP8", predicted(OK_RUN(PLAN, FP8), "seconds"), 0.170},
        {"512x512 BF16", predicted(OK_RUN("plan", "--size", "512x512", "--gpu", "h100", "--json"), "seconds"),
         0.090},
        {"a step, BF16", predicted(OK_RUN(PLAN), "step_seconds"), 0.055},
        {"a step, FP8", step, 0.036},
        {"two cards", predicted(OK_RUN(PLAN, FP8, "--gpus", "2"), "step_seconds") / step, 0.55},
        {"four cards", predicted(OK_RUN(PLAN, FP8, "--gpus", "4"), "step_seconds") / step, 0.32},
        {"eight cards", predicted(OK_RUN(PLAN, FP8, "--gpus", "8"), "step_seconds") / step, 0.22},
    };
    for (size_t i = 0; i < sizeof goals / sizeof *goals; i++)
        cr_expect(goals[i].value > 0 && goals[i].value <= goals[i].goal, "%s: %g, not %g", goals[i].what,
                  goals[i].value, goals[i].goal);
}

/* What a shape needs on the card: the parts are those of the checkpoint, and FP8 halves the blocks of the transformer. */
Test(cli_commands, plan_says_what_a_card_needs)
{
    json_t *bf16 = program_json(OK_RUN("plan", "--json")),
           *fp8 = program_json(OK_RUN("plan", "--json", "--precision", "fp8"));
    const json_t *a = json_object_get(bf16, "gpu_bytes"), *b = json_object_get(fp8, "gpu_bytes");
    double weights = number_of(a, "text") + number_of(a, "transformer") + number_of(a, "vae"),
           rest = number_of(bf16, "arena_bytes") + number_of(a, "scratch");
    /* Vectors are f32 there. */
    cr_assert(fabs(weights / (2 * number_of(bf16, "parameters")) - 1) < 0.001, "%g bytes", weights);
    cr_assert_eq(number_of(a, "all"), weights + rest);
    cr_assert_eq(number_of(a, "text_freed"), number_of(a, "transformer") + number_of(a, "vae") + rest);
    cr_assert(number_of(b, "transformer") < 0.53 * number_of(a, "transformer") &&
              number_of(b, "text") == number_of(a, "text"));
    cr_assert(number_of(a, "host_staging") > 0);
    json_decref(bf16);
    json_decref(fp8);
    cr_assert(strstr(OK_RUN("plan", "--gpu", "h100").out, "all fits."));
    cr_assert(strstr(OK_RUN("plan", "--gpu", "4090", "--config", "klein-9b").out, "freed after use."));
    cr_assert(strstr(OK_RUN("plan", "--gpu", "l4", "--config", "klein-9b", "--size", "3072x2560").out,
                     "does not fit. --precision fp8"));
    SAYS(RUN("plan", "--precision", "fp8", "--dtype", "f32"), 2, "--dtype bf16");
}

Test(cli_commands, bench)
{
    json_t *json = program_json(OK_RUN("bench", "--config", "tiny", "--size", "64x64", "-s", "2", "-i",
                                       "64x64", "--repeat", "2", "--ops", "--json"));
    static const char *const stages[] = {"text", "references", "denoise", "decode", "all"};
    for (int i = 0; i < 5; i++) {
        const json_t *stage = json_object_get(json_object_get(json, "stages"), stages[i]);
        const json_t *runs = json_object_get(stage, "runs");
        double a = json_number_value(json_array_get(runs, 0)), b = json_number_value(json_array_get(runs, 1));
        cr_assert(json_array_size(runs) == 2 && number_of(stage, "seconds") > 0 &&
                  number_of(stage, "flop") > 0);
        cr_assert(fabs(number_of(stage, "seconds") - (a + b) / 2) <= 1e-9, "the median of two is their mean");
    }
    cr_assert(number_of(json, "peak_flop_per_second") > 1e8 && json_is_true(json_object_get(json, "random")));
    cr_assert(json_array_size(json_object_get(json, "ops")) > 20);
    json_decref(json);
    struct outcome o =
        OK_RUN("bench", "-m", MODEL, "--random", "--size", "32x32", "-s", "1", "--repeat", "1", "--ops");
    cr_assert(strstr(o.out, "(random weights)") && strstr(o.out, "OF PEAK") && strstr(o.out, "attention"),
              "%s", o.out);
    cr_assert(!strstr(o.out, "\nreferences"), "a row of nothing: %s", o.out);
    SAYS(RUN("bench", "--config", "tiny", "-m", MODEL), 2, "exclude each other");
}

/* A copy of a result whose runs all took `factor` times as long, appended to a file. */
static void append_result(const char *path, json_t *result, double factor)
{
    json_t *o = json_deep_copy(result), *stage, *run;
    const char *name;
    size_t i;
    json_object_foreach(json_object_get(o, "stages"), name, stage)
    {
        json_object_set_new(stage, "seconds", json_real(factor * number_of(stage, "seconds")));
        json_array_foreach(json_object_get(stage, "runs"), i, run)
            json_real_set(run, factor * json_real_value(run));
    }
    FILE *f = fopen(path, "a");
    cr_assert(f && !json_dumpf(o, f, JSON_COMPACT) && fputc('\n', f) == '\n' && !fclose(f));
    json_decref(o);
}

/* The last result of the same request counts. The factors are far beyond what a busy machine does. */
Test(cli_commands, bench_compares)
{
    char path[256];
    snprintf(path, sizeof path, "%s/bench.jsonl", test_dir());
#define BENCH "bench", "-m", MODEL, "--size", "32x32", "-s", "1", "--repeat", "1", "--threads", "1"
    json_t *result = program_json(OK_RUN(BENCH, "--json"));
    SAYS(RUN(BENCH, "--compare", path), 5, "cannot read");
    append_result(path, result, 1e-6);
    SAYS(RUN(BENCH, "--compare", path), 1, "slower than before");
    append_result(path, result, 1e6);
    struct outcome o = OK_RUN(BENCH, "--compare", path);
    cr_assert(strstr(o.out, "faster") && !strstr(o.out, "SLOWER"), "%s", o.out);
    /* What has no ops has a time all the same, of the clock: it is no stage. */
    json_object_set_new(json_object_get(json_object_get(result, "stages"), "references"), "seconds",
                        json_real(1e-30));
    append_result(path, result, 1e6);
    o = OK_RUN(BENCH, "--compare", path);
    const char *verdicts = strstr(o.out, "\nagainst");
    cr_assert(verdicts && strstr(verdicts, "\ndenoise") && !strstr(verdicts, "\nreferences"), "%s", o.out);
    static const struct {
        const char *key, *value;
    } others[] = {{"model", "\"klein 4B\""}, {"random", "true"},
                  {"width", "64"},           {"steps", "2"},
                  {"images", "2"},           {"reference_sizes", "[[32, 32]]"},
                  {"dtype", "\"f16\""},      {"precision", "\"fp8\""},
                  {"device", "\"cuda\""},    {"gpus", "[0]"},
                  {"parallel", "\"cfg\""},   {"graph", "2"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        json_t *other = json_deep_copy(result);
        cr_assert(json_object_get(other, others[i].key), "%s", others[i].key);
        json_object_set_new(other, others[i].key, json_loads(others[i].value, JSON_DECODE_ANY, NULL));
        append_result(path, other, 1e-6);
        json_decref(other);
    }
    OK_RUN(BENCH, "--compare", path);
    SAYS(RUN(BENCH, "--compare", path, "-s", "3"), 5, "no result of this request");
    SAYS(RUN(BENCH, "--compare", path, "--device", "soft"), 2, "mean nothing");
    json_decref(result);
}

/* Times of the soft GPU are nobody's: no rates, no shares (test_cli_bench.c has a card whose times count). The ops come from runs of their
 * own, by marks: all that the plan counts, as often. */
Test(cli_commands, bench_on_the_soft_gpu)
{
    struct outcome o = OK_RUN("bench", "-m", KLEIN_SOURCE_DIR "/weights/nano", "--device", "soft", "--size",
                              "32x32", "-s", "1", "--repeat", "1", "--ops");
    cr_assert(strstr(o.out, "times mean nothing") && strstr(o.out, "attention") && strstr(o.out, "P95"), "%s",
              o.out);
    cr_assert(strstr(o.out, "after 2 to warm up") && strstr(o.out, "memory of the device: weights 0.02 GiB"),
              "%s", o.out);
    cr_assert(!strstr(o.out, "TFLOP/S") && !strstr(o.out, "PEAK") && !strstr(o.out, "BETWEEN"), "%s", o.out);
    char *table = strstr(strdup(o.out), "SHAPE\n"); /* o is gone with the next run */
    json_t *plan = program_json(OK_RUN("plan", "-m", KLEIN_SOURCE_DIR "/weights/nano", "--size", "32x32",
                                       "-s", "1", "--ops", "--json")),
           *op;
    size_t i;
    int calls = 0, counted = 0, n;
    cr_assert(table);
    for (char *line = strtok(table, "\n");
         (line = strtok(NULL, "\n")) && sscanf(line, "%*s %*s %d", &n) == 1;)
        calls += n;
    json_array_foreach(json_object_get(plan, "ops"), i, op) counted += (int)number_of(op, "calls");
    cr_assert(counted > 100 && calls == counted, "%d, planned %d", calls, counted);
    json_decref(plan);
}

Test(cli_commands, selftest)
{
    struct outcome o = OK_RUN("selftest", "--device", "soft", "--only", "euler");
    cr_assert(strstr(o.out, "klein " KLEIN_VERSION ", commit ") && strstr(o.out, "times mean nothing") &&
                  strstr(o.out, "PASSED: 4 cases, 0 failed"),
              "%s", o.out);
    json_t *json = program_json(OK_RUN("selftest", "--device", "soft", "--quick", "--only", "gn_",
                                       "--without", "many channels", "--json"));
    cr_assert(json_is_true(json_object_get(json, "passed")) && json_is_true(json_object_get(json, "soft")));
    cr_assert(number_of(json, "cases") == 11 && number_of(json, "failed") == 0);
    cr_assert(json_array_size(json_object_get(json, "ops")) == 2);
    json_decref(json);
    o = OK_RUN("selftest", "--device", "soft", "--quick", "--only", "qkv mlp, four parts", "--without", "x");
    cr_assert(strstr(o.out, "PASSED: 1 case, 0 failed"), "%s", o.out);
    SAYS(RUN("selftest", "--device", "null"), 4, "computes nothing");
    SAYS(RUN("selftest", "--device", "gpu"), 4, "does not exist");
    SAYS(RUN("selftest", "--device", "soft", "--only", "no such case"), 2, "no case is left");
}

/* What fails is listed with its case, the others go on, and the exit code is 1: here a device that has no memory for large weights. */
Test(cli_commands, selftest_that_fails)
{
    setenv("KLEIN_SOFT_MEMORY", "66", 1);
    struct outcome o = RUN("selftest", "--device", "soft", "--only", "linear real width");
    cr_assert(o.code == 1 && strstr(o.out, "FAILED  linear BF16, real width, few rows: ") &&
                  strstr(o.out, "FAILED: 1 case, 1 failed") && strstr(o.err, "does not compute right"),
              "exit code %d, %s%s", o.code, o.out, o.err);
}

Test(cli_commands, make_random)
{
    struct outcome o = OK_RUN("make-random", "-o", "a", "-q");
    cr_assert_str_eq(o.out, "a\n");
    cr_assert_str_eq(o.err, "");
    SAYS(RUN("make-random", "-o", "a"), 5, "a: is not empty");
    OK_RUN("make-random", "--config", "tiny", "-o", "b", "--used-only");
    OK_RUN("make-random", "-o", "c", "-S", "1", "--tokenizer", "a/tokenizer");
    char command[512];
    snprintf(command, sizeof command, "cd %s && cmp -s a/vae/*.safetensors b/vae/*.safetensors", test_dir());
    cr_assert_eq(system(command), 0, "the same seed gives the same file");
    snprintf(command, sizeof command, "cd %s && cmp -s a/vae/*.safetensors c/vae/*.safetensors", test_dir());
    cr_assert_neq(system(command), 0, "another seed gives another");
    OK_RUN("info", "a");
    OK_RUN("info", "b");
    SAYS(RUN("make-random", "-o", "d", "--tokenizer", GOLDEN_MODEL("tiny/tokenizer")), 2, "ids up to 605");
    OK_RUN("generate", "a cat", "-m", "c", "--size", "32x32", "-s", "1", "-o", "x.png");
    SAYS(RUN("make-random"), 2, "klein make-random --config tiny -o DIR");
    SAYS(RUN("make-random", "-o", "d", "--config", "huge"), 2, "there are klein-4b,");
    SAYS(RUN("make-random", "-o", "no/such/d"), 5, "no/such/d");
    cr_assert_eq(program_count_files(test_dir()), 4); /* a, b, c, x.png: nothing half made */
}

/* What bash offers for a command line; its last word is the one being typed. */
static char *completed(const char *line)
{
    char command[1024];
    snprintf(command, sizeof command,
             "cd %s && bash -c 'source <(%s/klein completion bash); COMP_WORDS=(%s); [ \"${COMP_WORDS[-1]}\" "
             "= EMPTY ] && COMP_WORDS[-1]=; "
             "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _klein; echo \" ${COMPREPLY[*]} \"' > offered",
             test_dir(), KLEIN_BINARY_DIR, line);
    cr_assert_eq(system(command), 0);
    snprintf(command, sizeof command, "%s/offered", test_dir());
    return program_file(command, NULL);
}

Test(cli_commands, completion)
{
    static const struct {
        const char *line, *offers, *not ;
    } cases[] = {
        {"klein gen", " generate ", "bench"},
        {"klein EMPTY", " make-random ", "--size"},
        {"klein generate --se", " --seed ", "--size"},
        {"klein generate --dtype EMPTY", " auto f32 bf16 ", "--size"},
        {"klein info EMPTY", " folder ", "file"},
        {"klein generate -i f", " file.png ", "--size"},
        {"klein completion EMPTY", " bash zsh fish ", "--"},
        {"klein generate --size EMPTY", "  ", "file"},
    };
    char path[128];
    snprintf(path, sizeof path, "%s/folder", test_dir());
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/file.png", test_dir());
    fclose(fopen(path, "w"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *offered = completed(cases[i].line);
        cr_assert(strstr(offered, cases[i].offers) && !strstr(offered, cases[i].not ), "%s: offered \"%s\"",
                  cases[i].line, offered);
        free(offered);
    }
    struct outcome o = OK_RUN("completion", "zsh");
    cr_assert(strstr(o.out, "#compdef klein") &&
                  strstr(o.out, "'(-s --steps)'{-s,--steps}'[denoising steps]:N:'"),
              "%s", o.out);
    cr_assert(strstr(o.out, "]:A\\:B:'"), "a colon in a label: %s", o.out);
    o = OK_RUN("completion", "fish");
    cr_assert(strstr(o.out, "-s s -l steps -x -d 'denoising steps'"), "%s", o.out);
    SAYS(RUN("completion", "tcsh"), 2, "must be bash, zsh or fish");
    SAYS(RUN("completion"), 2, "klein completion bash|zsh|fish");
}

Test(cli_commands, a_closed_pipe_ends_it_silently)
{
    char command[512];
    snprintf(command, sizeof command,
             "bash -c 'trap \"\" PIPE; %s/klein completion bash | sleep 0; echo \"${PIPESTATUS[0]}\"' > "
             "%s/status 2>&1",
             KLEIN_BINARY_DIR, test_dir());
    cr_assert_eq(system(command), 0);
    snprintf(command, sizeof command, "%s/status", test_dir());
    char *status = program_file(command, NULL);
    cr_assert(!strcmp(status, "141\n") || !strcmp(status, "0\n"), "%s",
              status); /* 0: all was written before the reader went */
    free(status);
}
