/* klein bench, the parts with processes of their own. 2 s. */
#include "support/program.h"

#include <stdlib.h>
#include <string.h>

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

/* Quantiles of the runs, and what the host does between the graphs of a request, which has several. */
Test(cli_bench, quantiles_and_the_host)
{
    if (SANITIZED) SKIP("whole requests on the soft GPU are the release build's");
    json_t *o = program_json(OK_RUN("bench", "-m", GOLDEN_MODEL("tiny"), "--size", "32x32", "-s", "1",
                                    "--repeat", "2", "--device", "soft", "--json"));
    const json_t *all = json_object_get(json_object_get(o, "stages"), "all"),
                 *runs = json_object_get(all, "runs");
    const double a = json_number_value(json_array_get(runs, 0)),
                 b = json_number_value(json_array_get(runs, 1)), larger = a > b ? a : b,
                 host = number_of(o, "host_between_launches_seconds");
    cr_assert(number_of(all, "p95") == larger && number_of(all, "p99") == larger);
    cr_assert(host > 0 && host < larger, "%g of %g", host, larger);
    json_decref(o);
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
