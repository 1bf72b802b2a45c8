/* klein compare, and the measures that it prints. 15 s of processor time, on the soft GPU. */
#include "support/program.h"

#include "../host/similarity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NANO KLEIN_SOURCE_DIR "/weights/nano"

TestSuite(cli_compare);

static double number_of(const json_t *o, const char *key)
{
    const json_t *value = json_object_get(o, key);
    cr_assert(json_is_number(value), "no number \"%s\"", key);
    return json_number_value(value);
}

static void write_prompts(const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/prompts", test_dir());
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

static struct klein_image plain(int width, int height, uint8_t value)
{
    const size_t n = (size_t)width * (size_t)height * 3;
    struct klein_image image = {width, height, malloc(n)};
    memset(image.rgb, value, n);
    return image;
}

Test(cli_compare, measures)
{
    struct klein_error err;
    struct klein_image a = plain(16, 24, 100), b = plain(16, 24, 110);
    double ssim;
    cr_assert(isinf(similarity_psnr(&a, &a)));
    cr_assert(fabs(similarity_psnr(&a, &b) - 28.1308) < 1e-3); /* 20 log10(255 / 10) */
    OK(similarity_ssim(&a, &a, &ssim, &err));
    cr_assert(fabs(ssim - 1) < 1e-12);
    OK(similarity_ssim(&a, &b, &ssim, &err));
    cr_assert(fabs(ssim - 22006.5025 / 22106.5025) < 1e-9, "only the luminance differs: %.9f", ssim);
    for (int i = 0; i < 16 * 24 * 3; i++) { /* a texture, and its negative */
        a.rgb[i] = i / 3 % 2 ? 200 : 50;
        b.rgb[i] = i / 3 % 2 ? 50 : 200;
    }
    OK(similarity_ssim(&a, &b, &ssim, &err));
    cr_assert(ssim < -0.9, "%g", ssim);
    image_free(&a);
    image_free(&b);
}

/* Root of the sum of squares of the layers' errors that have `part` in their names. */
static double all_layers(const json_t *result, const char *part, double whole)
{
    const json_t *l;
    double sum = 0;
    size_t i;
    json_array_foreach(json_object_get(result, "sensitivity"), i, l)
    {
        const double e = number_of(l, "velocity_relative_l2");
        cr_assert(e > 0 && e < 1.5 * whole, "%s: %g", json_string_value(json_object_get(l, "layers")), e);
        if (strstr(json_string_value(json_object_get(l, "layers")), part)) sum += e * e;
    }
    return sqrt(sum);
}

static void check_fp8(const char *chip, const char *layers, size_t n, const char *part)
{
    setenv("KLEIN_SOFT", chip, 1);
    write_prompts("a red balloon on a wooden table\n");
    json_t *o = program_json(OK_RUN("compare", "prompts", "-m", NANO, "--device", "soft", "--size", "32x32",
                                    "-s", "1", "--layers", layers, "-o", "kept", "--json"));
    const json_t *pair = json_array_get(json_object_get(o, "prompts"), 0);
    const double velocity = number_of(pair, "velocity_relative_l2");
    cr_assert(velocity > 0.001 && velocity <= 0.03, "%g", velocity);
    cr_assert(number_of(pair, "psnr") > 20 && number_of(pair, "ssim") > 0.8);
    cr_assert_eq(json_array_size(json_object_get(o, "sensitivity")), n);
    const double layers_together = all_layers(o, part, velocity);
    cr_assert(layers_together > 0.6 * velocity && layers_together < 1.7 * velocity,
              "roundings of different layers are independent: %g, together %g", layers_together, velocity);
    char folder[256];
    snprintf(folder, sizeof folder, "%s/kept", test_dir());
    cr_assert_eq(program_count_files(folder), 2);
    json_decref(o);
}

Test(cli_compare, fp8_on_ada)
{
    if (SANITIZED) SKIP("whole requests on the soft GPU are the release build's");
    check_fp8("sm_89", "kinds", 6, ": ");
}

Test(cli_compare, fp8_on_hopper)
{
    if (SANITIZED) SKIP("whole requests on the soft GPU are the release build's");
    check_fp8("sm_90a", "all", 10, "block ");
}

Test(cli_compare, formats_of_the_processor)
{
#define COMPARE "compare", "-m", GOLDEN_MODEL("tiny"), "--device", "cpu", "--size", "32x32", "-s", "1"
    write_prompts("a\n\n  \nb c\r\n");
    struct outcome o = OK_RUN(COMPARE, "prompts", "--a", "f32", "--b", "bf16");
    cr_assert(strstr(o.out, "bf16 against f32") && strstr(o.out, "b c\n") && strstr(o.out, "(mean)") &&
                  strstr(o.out, "is of --a bf16 --b fp8"),
              "%s", o.out);
    json_t *json = program_json(
        RUN_WITH("a\n", COMPARE, "-", "--a", "f32", "--b", "bf16", "--json", "--layers", "none"));
    const json_t *mean = json_object_get(json, "mean");
    cr_assert(json_array_size(json_object_get(json, "prompts")) == 1 &&
              number_of(mean, "velocity_relative_l2") < 0.05);
    json_decref(json);
    SAYS(RUN(COMPARE, "prompts", "--a", "bf16", "--b", "bf16"), 2, "both are bf16");
    SAYS(RUN(COMPARE, "prompts"), 1, "does not multiply FP8");
    SAYS(RUN(COMPARE, "nothing"), 5, "nothing");
    SAYS(RUN(COMPARE, "prompts", "--b", "f32", "-o", "no/such"), 5, "cannot make the folder");
    SAYS(RUN(COMPARE), 2, "FILE");
    write_prompts("\n\n");
    SAYS(RUN(COMPARE, "prompts", "--b", "f32"), 5, "has no prompt in it");
}
