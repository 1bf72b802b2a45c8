/* klein bench, the parts with processes of their own. 15 s. */
#include "support/program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NANO    KLEIN_SOURCE_DIR "/weights/nano"
#define ON_NANO "bench", "-m", NANO, "--size", "32x32", "-s", "1", "--repeat", "1"

TestSuite(cli_bench);

static double number_of(const json_t *o, const char *key)
{
    const json_t *value = json_object_get(o, key);
    cr_assert(json_is_number(value), "no number \"%s\"", key);
    return json_number_value(value);
}

/* The stages are all of the time from the start of the program, and none is missing. */
static void check_cold(const char *device, const char *const *stages)
{
    json_t *o = program_json(OK_RUN("bench", "--cold", "--device", device, "-m", GOLDEN_MODEL("tiny"),
                                    "--size", "32x32", "-s", "1", "--json")),
           *stage;
    const char *name;
    double sum = 0, total = number_of(o, "seconds");
    json_object_foreach(json_object_get(o, "stages"), name, stage) sum += json_number_value(stage);
    cr_assert(total > 0 && sum > 0.95 * total && sum < 1.05 * total, "%g of %g", sum, total);
    cr_assert(number_of(o, "file_bytes") > 1e5 && number_of(o, "cached_bytes") <= number_of(o, "file_bytes"));
    for (; *stages; stages++) cr_assert(number_of(json_object_get(o, "stages"), *stages) > 0);
    json_decref(o);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of 40 runs: the median, and the 38th and the 40th, by which 95 and 99 of 100 are not exceeded. */
Test(cli_bench, quantiles)
{
    enum { RUNS = 40 };
    json_t *o = program_json(OK_RUN("bench", "-m", NANO, "--size", "16x16", "-s", "1", "--threads", "1",
                                    "--repeat", "40", "--device", "cpu", "--json")),
           *stage;
    const char *name;
    double sorted[RUNS];
    json_object_foreach(json_object_get(o, "stages"), name, stage)
    {
        const json_t *runs = json_object_get(stage, "runs");
        cr_assert(json_array_size(runs) == RUNS);
        for (size_t i = 0; i < RUNS; i++) sorted[i] = json_number_value(json_array_get(runs, i));
        qsort(sorted, RUNS, sizeof *sorted, compare_doubles);
        cr_assert(number_of(stage, "seconds") == (sorted[19] + sorted[20]) / 2, "%s", name);
        cr_assert(number_of(stage, "p95") == sorted[37] && number_of(stage, "p99") == sorted[39], "%s", name);
    }
    json_decref(o);
}

/* What the host does between the graphs of a request, which has several, is a part of each run; without graphs there is none. */
Test(cli_bench, the_host, .disabled = SANITIZED)
{
    setenv("KLEIN_SOFT_RACES", "0", 1);
    json_t *o = program_json(OK_RUN(ON_NANO, "--device", "soft", "--json"));
    const double host = number_of(o, "host_between_launches_seconds");
    cr_assert(host > 0 && host < number_of(json_object_get(json_object_get(o, "stages"), "all"), "seconds"));
    json_decref(o);
}

/* A card whose peaks are known: rates against them, FP8's for what is multiplied in FP8; and the time of a stage beside that of its ops. */
Test(cli_bench, a_known_card, .disabled = SANITIZED)
{
    const double bf16 = 4096 * 132 * 1.83e9, fp8 = 2 * bf16, memory = 3.35e12;
    program_card("sm_90a", "NVIDIA H100 80GB HBM3");
    setenv("KLEIN_SOFT_RACES", "0", 1);
    json_t *o = program_json(OK_RUN(ON_NANO, "--graph", "off", "--precision", "fp8", "--ops", "--json")),
           *stage, *op;
    const char *name;
    cr_assert_str_eq(json_string_value(json_object_get(o, "device")), "cuda");
    cr_assert(number_of(o, "peak_flop_per_second") == bf16 &&
              number_of(o, "peak_fp8_flop_per_second") == fp8 &&
              number_of(o, "peak_bytes_per_second") == memory);
    double in_fp8 = 0, flop = 0;
    size_t i;
    json_array_foreach(json_object_get(o, "ops"), i, op)
    {
        const double work = number_of(op, "flop"), bytes = number_of(op, "bytes"),
                     least = number_of(op, "of_peak") * number_of(op, "median");
        const char *shape = json_string_value(json_object_get(op, "shape"));
        const int denoise = !strcmp(json_string_value(json_object_get(op, "stage")), "denoise"),
                  quantised = denoise && !strcmp(json_string_value(json_object_get(op, "op")), "linear") &&
                              (strstr(shape, "qkv") || strstr(shape, "swiglu") || strstr(shape, "residual")),
                  want = fabs(least / fmax(work / (quantised ? fp8 : bf16), bytes / memory) - 1) < 1e-9;
        cr_assert(want, "%s: %g FLOP and %g bytes in %g s", shape, work, bytes, least);
        if (denoise) flop += number_of(op, "calls") * work;
        if (quantised) in_fp8 += number_of(op, "calls") * work;
    }
    cr_assert(in_fp8 > 0.3 * flop && in_fp8 < flop);
    json_object_foreach(json_object_get(o, "stages"), name, stage)
    {
        const double seconds = number_of(stage, "seconds"), work = number_of(stage, "flop"),
                     least = number_of(stage, "of_peak") * seconds,
                     in_bf16 = work - (strcmp(name, "denoise") && strcmp(name, "all") ? 0 : in_fp8);
        cr_assert(fabs(number_of(stage, "flop_per_second") * seconds - work) <= 1e-9 * work, "%s", name);
        cr_assert(fabs(least - in_bf16 / bf16 - (work - in_bf16) / fp8) <= 1e-9 * least, "%s: %g s", name,
                  least);
        if (strcmp(name, "denoise")) continue;
        double ops = 0;
        json_array_foreach(json_object_get(o, "ops"), i,
                           op) if (!strcmp(json_string_value(json_object_get(op, "stage")), name)) ops +=
            number_of(op, "seconds");
        cr_assert(ops > 0 && fabs(number_of(stage, "ops_seconds") / ops - 1) < 1e-9);
    }
    json_decref(o);
}

/* The same for people; a card of another name has no peaks. */
Test(cli_bench, a_known_card_in_words, .disabled = SANITIZED)
{
    program_card("sm_90a", "NVIDIA H100 80GB HBM3");
    setenv("KLEIN_SOFT_RACES", "0", 1);
    struct outcome o = OK_RUN(ON_NANO, "--graph", "off", "--ops");
    static const char *const said[] = {
        "peaks of H100 SXM by its data sheet: 989.4 TFLOP/s in BF16, 3.35 TB/s\n",
        "\nSTAGE ",
        "TFLOP/S  OF PEAK\n",
        "TFLOP/S  GB/S  OF PEAK  SHAPE\n",
        "ITS OPS",
        "BETWEEN\n",
        "memory of the device: "};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        cr_assert(strstr(o.out, said[i]), "no \"%s\" in %s", said[i], o.out);
    const char *gaps = strstr(o.out, "BETWEEN\n");
    double all, ops, between;
    cr_assert(gaps && sscanf(strstr(gaps, "\ndenoise") + 8, "%lf %lf %lf", &all, &ops, &between) == 3, "%s",
              o.out);
    cr_assert(all > 0 && ops > 0 && fabs(all - ops - between) < 0.002);
    setenv("KLEIN_STANDIN_NAME", "NVIDIA H100 PCIe", 1);
    o = OK_RUN(ON_NANO, "--graph", "off");
    cr_assert(strstr(o.out, "no figures of this GPU") && strstr(o.out, "TFLOP/S") && !strstr(o.out, " %\n"),
              "%s", o.out);
}

/* Random weights on as many cards as asked for; the peak is that of all. */
Test(cli_bench, several_cards, .disabled = SANITIZED)
{
    program_card("sm_90a:2", "NVIDIA H100 80GB HBM3");
    setenv("KLEIN_SOFT_RACES", "0", 1);
    json_t *o = program_json(OK_RUN(ON_NANO, "--random", "--graph", "off", "--gpus", "1,0", "--json"));
    char *gpus = json_dumps(json_object_get(o, "gpus"), JSON_COMPACT);
    cr_assert_str_eq(gpus, "[1,0]");
    cr_assert_str_eq(json_string_value(json_object_get(o, "parallel")), "ulysses");
    cr_assert(number_of(o, "peak_flop_per_second") == 2 * 4096 * 132 * 1.83e9);
    const json_t *text = json_object_get(json_object_get(o, "stages"), "text");
    cr_assert(fabs(number_of(text, "of_peak") * number_of(text, "seconds") * 2 * 4096 * 132 * 1.83e9 /
                       number_of(text, "flop") -
                   1) < 1e-9);
    free(gpus);
    json_decref(o);
    SAYS(RUN(ON_NANO, "--random", "--gpus", "0,1", "--parallel", "cfg"), 2, "base model");
    SAYS(RUN(ON_NANO, "--random", "--gpus", "0,0"), 2, "GPU 0 is named twice");
    SAYS(RUN("bench", "--config", "tiny", "--gpus", "0,1,2,7", "--parallel", "cfg"), 4, "GPU 2");
    SAYS(RUN("bench", "--config", "tiny", "--gpus", "0;1"), 2, "--gpus 0;1");
    SAYS(RUN("bench", "--config", "tiny", "--parallel", "cfg"), 2, "--parallel goes with --gpus LIST");
    SAYS(RUN("bench", "--config", "tiny", "--parallel", "ulysses"), 2, "--parallel goes with --gpus LIST");
    SAYS(RUN("bench", "--cold", "-m", NANO, "--gpus", "0,1"), 2, "--cold is of one device");
}

Test(cli_bench, cold)
{
    check_cold("cpu", (const char *const[]){"process", "files", "weights", "tokenizer", "plan", "text",
                                            "denoise", "decode", "request_rest", "png", NULL});
    if (!SANITIZED)
        check_cold("soft", (const char *const[]){"driver", "context", "modules", "weights_read", "weights",
                                                 "tokenizer", "plan", "text", "denoise", "decode", "download",
                                                 "png", NULL});
    struct outcome o = OK_RUN("bench", "--cold", "--device", "cpu", "-m", GOLDEN_MODEL("tiny"), "--size",
                              "32x32", "-s", "1");
    cr_assert(strstr(o.out, "first picture, 32x32, after ") && strstr(o.out, "page cache: ") &&
                  strstr(o.out, "first run: denoise"),
              "%s", o.out);
    SAYS(RUN("bench", "--cold", "--config", "tiny"), 2, "--cold is of a model's files");
    SAYS(RUN("bench", "--cold", "-m", "no/such"), 3, "no model at");
    setenv("KLEIN_COLD_START", "soon", 1);
    SAYS(RUN("bench", "--cold", "-m", GOLDEN_MODEL("tiny")), 2, "unset it");
}
