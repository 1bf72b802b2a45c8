/* Whole requests through the public API against diffusers' Flux2KleinPipeline (tests/golden/README.md): every dumped tensor, the picture.
 * What else a user of the library relies on: test_pipeline_requests.c. */
#include "support/fixture.h"

#include "../host/image.h"

#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pipe {
    char golden[24], device[16];
    char references[2][8];
    int n_references, base;
};

static struct pipe pipes[] = {
    {"pipe_t2i", "cpu", {"", ""}, 0, 0},
    {"pipe_edit", "cpu", {"a", ""}, 1, 0},
    {"pipe_two_refs", "cpu", {"b", "odd"}, 2, 0},
    {"pipe_base", "cpu", {"", ""}, 0, 1},
    {"pipe_sigmas", "cpu", {"", ""}, 0, 0},
    {"pipe_base_edit", "cpu", {"b", ""}, 1, 1},
    /* Slow, so only the shortest: it has references, guidance and all stages. */
    {"pipe_base_edit", "ref", {"b", ""}, 1, 1},
    {"pipe_base_edit", "soft sm_90a", {"b", ""}, 1, 1}, /* the last; see SANITIZED */
};

struct request {
    struct klein_request q;
    struct klein_image references[2];
    char prompt[4096];
};

/* The request that a golden file describes. */
static void request_of(struct st_file *file, const struct pipe *p, struct request *out)
{
    struct klein_error err;
    *out = (struct request){0};
    struct tensor prompt = golden(file, "prompt"), numbers = golden(file, "request");
    memcpy(out->prompt, prompt.ptr, (size_t)prompt.cols);
    const int32_t *n = numbers.ptr;
    out->q = (struct klein_request){.size = sizeof out->q,
                                    .prompt = out->prompt,
                                    .width = n[0],
                                    .height = n[1],
                                    .steps = n[2],
                                    .guidance = *(float *)golden(file, "guidance").ptr,
                                    .latents = golden(file, "latents").ptr,
                                    .references = out->references,
                                    .n_references = p->n_references};
    if (st_find(file, "sigmas_in")) out->q.sigmas = golden(file, "sigmas_in").ptr;
    cr_assert(n[3] == p->n_references);
    for (int k = 0; k < p->n_references; k++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s.png", GOLDEN("refs"), p->references[k]);
        OK(image_read(path, &out->references[k], &err));
    }
}

static void request_free(struct request *r)
{
    for (int k = 0; k < r->q.n_references; k++) image_free(&r->references[k]);
}

/* --- every tensor --- */

struct comparison {
    struct st_file *file;
    int seen, taps;
    char names[256][48]; /* of all taps: each comes once */
    double error[256];   /* measure_bf16 */
};

/* The golden of a tap: stored whole, or every Nth row of it as "NAME@N". NULL: not stored. */
static const struct st_tensor *golden_of(struct st_file *file, const char *prefix, const char *name,
                                         int *every)
{
    char want[96];
    int n = snprintf(want, sizeof want, "%s%s", prefix, name);
    for (int i = 0; i < st_count(file); i++) {
        const struct st_tensor *t = st_get(file, i);
        if (strncmp(t->name, want, (size_t)n) || (t->name[n] && t->name[n] != '@')) continue;
        *every = t->name[n] ? atoi(t->name + n + 1) : 1;
        return t;
    }
    return NULL;
}

static struct tensor tap_tensor(const struct klein_tap *tap)
{
    int rows = tap->ndim > 1 ? (int)tap->shape[0] : 1, cols = tap->ndim > 1 ? 1 : (int)tap->shape[0];
    for (int d = 1; d < tap->ndim; d++) cols *= (int)tap->shape[d];
    return tensor_of((void *)tap->data, tap->is_int32 ? DT_I32 : DT_F32, rows, cols);
}

static void compare_tap(void *user, const struct klein_tap *tap)
{
    struct comparison *c = user;
    int every;
    for (int i = 0; i < c->taps; i++) cr_assert(strcmp(c->names[i], tap->name), "%s comes twice", tap->name);
    snprintf(c->names[c->taps++], sizeof c->names[0], "%s", tap->name);
    const struct st_tensor *want = golden_of(c->file, "", tap->name, &every);
    if (!want) return;
    double tolerance = tap->is_int32 ? 0 : 1e-4;
    double error = relative_l2(every_row(tap_tensor(tap), every), golden(c->file, want->name));
    cr_assert(error <= tolerance, "%s: relative L2 %.3g, allowed %.3g", want->name, error, tolerance);
    c->seen++;
}

/* Tensors in the file that are results, and so have to be compared. */
static int expected_results(struct st_file *file)
{
    static const char *const request[] = {"prompt",  "request",   "guidance",
                                          "latents", "sigmas_in", "image_u8"};
    int n = 0;
    for (int i = 0; i < st_count(file); i++) {
        const char *name = st_get(file, i)->name;
        int result = 1;
        for (size_t j = 0; j < sizeof request / sizeof *request; j++) result &= strcmp(name, request[j]) != 0;
        n += result;
    }
    return n;
}

static int u8_difference(const struct klein_image *image, struct tensor want)
{
    int worst = 0;
    size_t n = (size_t)image->width * (size_t)image->height * 3;
    cr_assert((size_t)want.rows * (size_t)want.cols == n);
    for (size_t i = 0; i < n; i++) {
        int d = abs((int)image->rgb[i] - ((const uint8_t *)want.ptr)[i]);
        if (d > worst) worst = d;
    }
    return worst;
}

ParameterizedTestParameters(pipeline, f32)
{
    return cr_make_param_array(struct pipe, pipes, sizeof pipes / sizeof *pipes - SANITIZED);
}

ParameterizedTest(struct pipe *p, pipeline, f32)
{
    struct klein_error err;
    struct request r;
    struct klein_result result;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.safetensors", GOLDEN("."), p->golden);
    struct comparison c = {.file = golden_open(path)};
    struct klein *k = open_tiny(p->device, KLEIN_DTYPE_F32, 2, p->base);
    request_of(c.file, p, &r);
    r.q.tap = compare_tap;
    r.q.tap_user = &c;
    r.q.tap_blocks = 1;
    OK(klein_generate(k, &r.q, &result, &err));
    cr_assert(c.seen == expected_results(c.file), "%d tensors compared, expected %d", c.seen,
              expected_results(c.file));
    int worst = u8_difference(&result.images[0], golden(c.file, "image_u8"));
    cr_assert(worst <= 1, "the picture differs by %d levels", worst);
    klein_result_free(&result);
    request_free(&r);
    klein_close(k);
    st_close(c.file);
}

/* --- bf16: at most twice as far from the f32 reference as the reference's own bf16 --- */

static void compare_bf16(void *user, const struct klein_tap *tap)
{
    struct comparison *c = user;
    int every;
    const struct st_tensor *f32 = golden_of(c->file, "f32.", tap->name, &every);
    const struct st_tensor *b16 = golden_of(c->file, "bf16.", tap->name, &every);
    if (!f32 || !b16) return;
    struct tensor exact = golden(c->file, f32->name);
    double theirs = relative_l2(golden(c->file, b16->name), exact),
           ours = relative_l2(every_row(tap_tensor(tap), every), exact);
    cr_assert(theirs > 0);
    cr_assert(ours <= 2 * theirs, "%s: bf16 error %.3g, the reference's own is %.3g", tap->name, ours,
              theirs);
    c->seen++;
}

static struct pipe bf16_pipes[] = {
    /* the last four: see SANITIZED */
    {"bf16_t2i", "cpu", {"", ""}, 0, 0},          {"bf16_edit", "cpu", {"a", ""}, 1, 0},
    {"bf16_edit", "ref", {"a", ""}, 1, 0},        {"bf16_t2i", "soft sm_80", {"", ""}, 0, 0},
    {"bf16_edit", "soft sm_89", {"a", ""}, 1, 0}, {"bf16_t2i", "soft sm_90a", {"", ""}, 0, 0},
    {"bf16_edit", "soft sm_90a", {"a", ""}, 1, 0}};

ParameterizedTestParameters(pipeline, bf16)
{
    return cr_make_param_array(struct pipe, bf16_pipes,
                               sizeof bf16_pipes / sizeof *bf16_pipes - 4 * SANITIZED);
}

static void check_bf16(struct pipe *p)
{
    struct klein_error err;
    struct request r;
    struct klein_result result;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.safetensors", GOLDEN("."), p->golden);
    struct comparison c = {.file = golden_open(path)};
    struct klein *k = open_tiny(p->device, KLEIN_DTYPE_BF16, 2, p->base);
    request_of(c.file, p, &r);
    r.q.tap = compare_bf16;
    r.q.tap_user = &c;
    OK(klein_generate(k, &r.q, &result, &err));
    cr_assert(c.seen >= 4 + p->n_references, "%d tensors compared",
              c.seen); /* text, velocity, latents, image; references */
    klein_result_free(&result);
    request_free(&r);
    klein_close(k);
    st_close(c.file);
}

ParameterizedTest(struct pipe *p, pipeline, bf16)
{
    check_bf16(p);
    if (strcmp(p->device, "cpu") != 0) return;
    setenv("KLEIN_PRODUCTS", "f32", 1); /* the processor's other way, on most that have two */
    check_bf16(p);
}

/* --- bf16 where the reference has none: at most twice as far from its f32 as the processor's bf16 --- */

static struct pipe more_bf16_pipes[] = {{"pipe_two_refs", "soft sm_90a", {"b", "odd"}, 2, 0},
                                        {"pipe_base", "soft sm_80", {"", ""}, 0, 1},
                                        {"pipe_base", "soft sm_89", {"", ""}, 0, 1}};

/* Of a base model, whose steps have two passes and which takes many, the first. */
static int stop_after_a_step(void *user, const struct klein_progress *p)
{
    return p->stage == KLEIN_STAGE_DENOISE && p->step > 0;
}

static void measure_bf16(void *user, const struct klein_tap *tap)
{
    struct comparison *c = user;
    int every;
    const struct st_tensor *want = golden_of(c->file, "", tap->name, &every);
    if (!want || tap->is_int32) return;
    snprintf(c->names[c->seen], sizeof c->names[0], "%s", tap->name);
    c->error[c->seen++] = relative_l2(every_row(tap_tensor(tap), every), golden(c->file, want->name));
}

ParameterizedTestParameters(pipeline, bf16_as_the_processor)
{
    return cr_make_param_array(struct pipe, more_bf16_pipes,
                               sizeof more_bf16_pipes / sizeof *more_bf16_pipes);
}

ParameterizedTest(struct pipe *p, pipeline, bf16_as_the_processor)
{
    struct klein_error err;
    char path[512];
    struct comparison c[2] = {{0}}; /* the processor's; the device's */
    if (SANITIZED) cr_skip_test("whole requests on the soft GPU are the release build's");
    setenv("KLEIN_SOFT_RACES", "0", 1); /* they are looked for elsewhere */
    snprintf(path, sizeof path, "%s/%s.safetensors", GOLDEN("."), p->golden);
    for (int i = 0; i < 2; i++) {
        struct request r;
        struct klein_result result;
        struct klein *k = open_tiny(i ? p->device : "cpu", KLEIN_DTYPE_BF16, 2, p->base);
        c[i].file = golden_open(path);
        request_of(c[i].file, p, &r);
        r.q.tap = measure_bf16;
        r.q.tap_user = &c[i];
        if (p->base) {
            r.q.progress = stop_after_a_step;
            FAILS(klein_generate(k, &r.q, &result, &err), KLEIN_E_CANCELLED, "cancelled");
        } else {
            OK(klein_generate(k, &r.q, &result, &err));
            klein_result_free(&result);
        }
        request_free(&r);
        klein_close(k);
        st_close(c[i].file);
    }
    /* text, velocities, latents; the image; references */
    cr_assert(c[0].seen == c[1].seen && c[0].seen >= 4 - p->base + p->n_references, "%d tensors", c[0].seen);
    for (int i = 0; i < c[0].seen; i++) {
        cr_assert(!strcmp(c[0].names[i], c[1].names[i]));
        cr_assert(c[1].error[i] <= 2 * c[0].error[i], "%s: bf16 error %.3g, the processor's is %.3g",
                  c[0].names[i], c[1].error[i], c[0].error[i]);
    }
}
