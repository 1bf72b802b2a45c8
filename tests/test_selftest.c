/* The pictures of klein selftest; its ops are in test_cli_commands.c. 45 s of processor time, on the soft GPU. */
#include "support/program.h"

#include "../host/selftest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

TestSuite(selftest);

static void wrong(struct selftest_request r, const char *expected)
{
    char text[256];
    const char *why = selftest_request_judge(&r, text, sizeof text);
    cr_assert(expected ? why && strstr(why, expected) : !why, "\"%s\", expected \"%s\"", why ? why : "right",
              expected ? expected : "right");
}

Test(selftest, what_is_wrong)
{
    const struct selftest_request bf16 = {.error = 0.009, .limit = 0.01, .same = 1},
                                  fp8 = {.fp8 = 1, .error = 0.026, .limit = SELFTEST_FP8_LIMIT, .same = 1};
    struct selftest_request r = bf16;
    wrong(bf16, NULL), wrong(fp8, NULL);
    r.error = 0.011, wrong(r, "latents are off by 0.011 (relative L2 against F32), limit 0.01");
    r.error = NAN, wrong(r, "latents are off by nan");
    r.error = 0, wrong(r, NULL);
    r = fp8;
    r.error = 0.0301, wrong(r, "the first velocity is off by 0.0301 (relative L2 against BF16), limit 0.03");
    r.error = NAN, wrong(r, "the first velocity is off by nan");
    r.error = 0, wrong(r, "nothing was in FP8");
    r = fp8;
    r.same = 0, snprintf(r.different, sizeof r.different, "--graph stages, replayed");
    wrong(r, "other bytes with --graph stages, replayed");
}

/* Against BF16, and with graphs; the one in BF16 is below, smaller. */
Test(selftest, picture_in_fp8, .disabled = SANITIZED)
{
    setenv("KLEIN_SOFT_RACES", "0", 1); /* which other tests look for */
    json_t *json = program_json(OK_RUN("selftest", "--device", "soft", "--only", "picture FP8", "--json"));
    const json_t *pictures = json_object_get(json, "pictures"), *p = json_array_get(pictures, 0);
    const double l2 = json_number_value(json_object_get(p, "relative_l2")),
                 limit = json_number_value(json_object_get(p, "limit"));
    cr_assert(json_array_size(pictures) == 1 && json_is_true(json_object_get(json, "passed")));
    cr_assert_str_eq(json_string_value(json_object_get(p, "precision")), "fp8");
    cr_assert_eq(json_integer_value(json_object_get(p, "size")), 128);
    cr_assert(json_is_true(json_object_get(p, "passed")));
    cr_assert(json_is_true(json_object_get(p, "graphs_same_bytes")));
    cr_assert(l2 > 1e-3 && l2 <= limit && limit == 0.03, "%g, limit %g", l2, limit);
    json_decref(json);
}

/* What fails is counted: here a kernel that faults. */
Test(selftest, picture_that_fails, .disabled = SANITIZED)
{
    setenv("KLEIN_SOFT_FAIL", "0:40", 1);
    struct outcome o = RUN("selftest", "--device", "soft", "--only", "picture FP8");
    cr_assert(o.code == 1 && strstr(o.out, "\npicture    FP8       1      1        0 ") &&
                  strstr(o.out, "\nFAILED  picture FP8, 128x128: ") &&
                  strstr(o.out, "FAILED: 0 cases, 0 failed, 0 left out; 1 of 1 pictures failed") &&
                  strstr(o.err, "and 1 of 1 pictures failed"),
              "exit code %d, %s%s", o.code, o.out, o.err);
}

/* It says what it leaves out: on the soft GPU FP8 with --quick, and anywhere where there is none. */
Test(selftest, pictures_left_out, .disabled = SANITIZED)
{
    struct outcome o = OK_RUN("selftest", "--device", "soft", "--quick", "--only", "picture");
    cr_assert(strstr(o.out, "\npicture    BF16      1      0        1 ") &&
                  strstr(o.out, "\npicture    FP8       0      0        1 ") &&
                  strstr(o.out, "\nleft out: picture BF16, 1024x1024\nleft out: picture FP8, 128x128\n") &&
                  strstr(o.out, "0 left out; the picture is right"),
              "%s", o.out);
    SAYS(RUN("selftest", "--device", "soft", "--quick", "--only", "picture FP8"), 2, "no case is left");
    setenv("KLEIN_SOFT", "sm_80", 1);
    o = OK_RUN("selftest", "--device", "soft", "--quick", "--only", "euler");
    cr_assert(strstr(o.out, "\nleft out: pictures in FP8, which needs sm_89 (Ada) or later\n") &&
                  !strstr(o.out, "\npicture "),
              "%s", o.out);
}
