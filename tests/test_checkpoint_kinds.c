/* Checkpoints that have no files: shapes of the official models, random values; and what holds for all kinds of them. */
#include "../engine/model.h"
#include "../weights/info.h"
#include "support/alloc.h"
#include "support/models.h"
#include "support/support.h"

#include <math.h>
#include <signal.h>
#include <string.h>

static struct klein_error err;

/* --- sizes of the real models ---------------------------------------------------------------------------- */

Test(checkpoint, official_sizes_and_counts)
{
    static const struct {
        const char *name, *title, *license;
        uint64_t parameters[2]; /* transformer, text encoder as far as used */
        int tensors[2];
    } models[] = {
        /* +1: the file's norm_out.linear is asked for in halves */
        {"klein-4b", "klein 4B", "Apache-2.0", {3875544576, 3114088192}, {169 + 1, 1 + 27 * 11}},
        {"klein-base-4b", "klein base 4B", "Apache-2.0", {3875544576, 3114088192}, {169 + 1, 1 + 27 * 11}},
        {"klein-9b", "klein 9B", "FLUX Non-Commercial", {9078581248, 5831883520}, {233 + 1, 1 + 27 * 11}},
        {"klein-base-9b",
         "klein base 9B",
         "FLUX Non-Commercial",
         {9078581248, 5831883520},
         {233 + 1, 1 + 27 * 11}},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct model_config config;
        struct checkpoint *c;
        struct part_info info;
        OK(config_named(models[i].name, &config, &err));
        cr_assert_str_eq(config.name, models[i].title);
        OK(checkpoint_shapes(&config, &c, &err));
        OK(model_visit(c, &err));
        cr_assert_str_eq(checkpoint_license(c), models[i].license);
        for (int part = 0; part < 2; part++) {
            checkpoint_part_info(c, (enum checkpoint_part)part, &info);
            cr_assert(info.used.parameters == models[i].parameters[part] &&
                          (int)info.used.tensors == models[i].tensors[part],
                      "%s %s: %lu parameters in %lu tensors", models[i].name,
                      checkpoint_part_name((enum checkpoint_part)part), info.used.parameters,
                      info.used.tensors);
            cr_assert(info.parameters_by_dtype[DT_BF16] == info.used.parameters &&
                      info.used.bytes == 2 * info.used.parameters);
        }
        checkpoint_part_info(c, PART_VAE, &info);
        cr_assert(info.used.tensors == 250 && info.used.parameters == 84046115 + 256, "VAE: %lu in %lu",
                  info.used.parameters,
                  info.used.tensors); /* 251 in the file: the batch counter is not asked for */
        checkpoint_close(c);
    }
}

Test(checkpoint, shapes_have_distinct_addresses)
{
    struct model_config config = small_config();
    struct checkpoint *c;
    struct tensor a, b;
    OK(checkpoint_shapes(&config, &c, &err));
    OK(checkpoint_tensor(c, PART_VAE, "a", 2, (int64_t[]){3, 5}, &a, &err));
    OK(checkpoint_tensor(c, PART_VAE, "b", 1, (int64_t[]){7}, &b, &err));
    cr_assert(a.ptr && (char *)b.ptr >= (char *)a.ptr + 30 && a.rows == 3 && a.cols == 5 && a.ld == 5 &&
              b.rows == 1 && b.cols == 7);
    checkpoint_close(c);
    checkpoint_close(NULL);
}

/* --- random ---------------------------------------------------------------------------------------------- */

static void moments(struct tensor t, double *mean, double *deviation)
{
    double sum = 0, squares = 0, n = (double)t.rows * t.cols;
    for (int r = 0; r < t.rows; r++)
        for (int k = 0; k < t.cols; k++) {
            double x = tensor_get(t, r, k);
            sum += x;
            squares += x * x;
        }
    *mean = sum / n;
    *deviation = sqrt(squares / n - *mean * *mean);
}

Test(checkpoint, random_values_have_sensible_scales)
{
    struct model_config config = small_config();
    struct checkpoint *c;
    struct tensor t;
    double mean, deviation;
    char text[256];
    OK(checkpoint_random(&config, DT_F32, 3, &c, &err));
    OK(checkpoint_tensor(c, PART_TEXT, "m.weight", 2, (int64_t[]){300, 400}, &t, &err));
    moments(t, &mean, &deviation);
    cr_assert(fabs(mean) < 5 * 0.05 / sqrt(120000) && fabs(deviation - 0.05) < 0.0005, "matrix: %g %g", mean,
              deviation);
    OK(checkpoint_tensor(c, PART_VAE, "conv.weight", 4, (int64_t[]){64, 100, 3, 3}, &t, &err));
    moments(t, &mean, &deviation);
    cr_assert(t.rows == 64 && t.cols == 900 && fabs(deviation - 1.0 / 30) < 0.0005, "convolution: %g %g",
              mean, deviation);
    OK(checkpoint_tensor(c, PART_VAE, "norm.weight", 1, (int64_t[]){4000}, &t, &err));
    moments(t, &mean, &deviation);
    cr_assert(fabs(mean - 1) < 0.01 && fabs(deviation - 0.1) < 0.01, "norm: %g %g", mean, deviation);
    OK(checkpoint_tensor(c, PART_VAE, "norm.bias", 1, (int64_t[]){4000}, &t, &err));
    moments(t, &mean, &deviation);
    cr_assert(fabs(mean) < 0.002 && fabs(deviation - 0.02) < 0.002, "bias: %g %g", mean, deviation);
    cr_assert(!checkpoint_vae_sanity(c, text, sizeof text) && strstr(text, "no VAE statistics"));
    OK(checkpoint_tensor(c, PART_VAE, "bn.running_var", 1, (int64_t[]){128}, &t, &err));
    OK(checkpoint_tensor(c, PART_VAE, "bn.running_mean", 1, (int64_t[]){128}, &t, &err));
    cr_assert(checkpoint_vae_sanity(c, text, sizeof text), "%s", text);
    tensor_set(t, 0, 5, 0.5f);
    cr_assert(!checkpoint_vae_sanity(c, text, sizeof text) && strstr(text, "NOT near-equal"), "%s", text);
    tensor_set(t, 0, 5, NAN);
    cr_assert(!checkpoint_vae_sanity(c, text, sizeof text), "%s", text);
    checkpoint_drop_pages(c, PART_VAE); /* nothing to read again from: the values stay */
    cr_assert(isnan(tensor_get(t, 0, 5)));
    checkpoint_close(c);
}

/* The same values in any order of asking; other values for other names, parts and seeds. */
Test(checkpoint, random_values_depend_on_name_part_and_seed)
{
    struct model_config config = small_config();
    struct checkpoint *c[3];
    struct tensor a[3], b[3], other;
    int64_t shape[] = {70, 1001};
    for (int i = 0; i < 3; i++) {
        OK(checkpoint_random(&config, DT_BF16, i == 2 ? 9 : 8, &c[i], &err));
        if (i != 1) OK(checkpoint_tensor(c[i], PART_TEXT, "a.weight", 2, shape, &a[i], &err));
        OK(checkpoint_tensor(c[i], PART_TEXT, "b.weight", 2, shape, &b[i], &err));
        if (i == 1) OK(checkpoint_tensor(c[i], PART_TEXT, "a.weight", 2, shape, &a[i], &err));
    }
    OK(checkpoint_tensor(c[0], PART_VAE, "a.weight", 2, shape, &other, &err));
    size_t bytes = 70 * 1001 * 2;
    cr_assert(!memcmp(a[0].ptr, a[1].ptr, bytes) && !memcmp(b[0].ptr, b[1].ptr, bytes));
    cr_assert(memcmp(a[0].ptr, b[0].ptr, bytes) && memcmp(a[0].ptr, a[2].ptr, bytes) &&
              memcmp(a[0].ptr, other.ptr, bytes));
    for (int i = 0; i < 3; i++) checkpoint_close(c[i]);
}

/* --- all kinds --------------------------------------------------------------------------------------------- */

Test(checkpoint, asking_twice_is_a_bug, .signal = SIGABRT)
{
    struct model_config config = small_config();
    struct checkpoint *c;
    struct tensor t;
    OK(checkpoint_shapes(&config, &c, &err));
    OK(checkpoint_tensor(c, PART_VAE, "a", 1, (int64_t[]){1}, &t, &err));
    checkpoint_tensor(c, PART_VAE, "a", 1, (int64_t[]){1}, &t, &err);
}

Test(checkpoint, allocations_that_fail)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 100000);
    struct checkpoint *c = NULL;
    struct checkpoint_paths paths = {.model = dir};
    EACH_ALLOCATION_FAILS(checkpoint_open(&paths, &c, &err), checkpoint_close(c));
    EACH_ALLOCATION_FAILS(checkpoint_shapes(&config, &c, &err), checkpoint_close(c));
    OK(checkpoint_random(&config, DT_BF16, 1, &c, &err));
    struct tensor t;
    alloc_fail_at(2); /* after the list and the name: the memory itself */
    FAILS(checkpoint_tensor(c, PART_VAE, "a.weight", 1, (int64_t[]){1}, &t, &err), KLEIN_E_NO_MEMORY,
          "no memory for a.weight");
    cr_assert(alloc_fail_off());
    checkpoint_close(c);
}
