#include "selftest.h"
#include "signals.h"

#include "../engine/klein.h"
#include "../kernels/check/op_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_WITH_GRAPHS = 3, DEADLINE = 120 };

enum { ONE_STEP = 1, STEPS = 4 };

/* What a request gave. */
struct outcome {
    struct tensor latents, velocity; /* [1, n], after the last step and of the first one; only if tapped */
    uint8_t *rgb;
    size_t rgb_bytes;
    uint64_t hash; /* of the latents */
    double seconds;
};

static void free_outcome(struct outcome *o)
{
    free(o->latents.ptr);
    free(o->velocity.ptr);
    free(o->rgb);
    *o = (struct outcome){0};
}

/* The latents after a step (those of the last one stay) and the first velocity. */
static void on_tap(void *user, const struct klein_tap *t)
{
    struct outcome *o = user;
    struct tensor *to = !strncmp(t->name, "latents.", 8) ? &o->latents
                        : !strcmp(t->name, "velocity.0") ? &o->velocity
                                                         : NULL;
    if (!to) return;
    size_t n = (size_t)(t->shape[0] * t->shape[1]);
    float *copy = malloc(n * sizeof *copy);
    if (copy) memcpy(copy, t->data, n * sizeof *copy);
    free(to->ptr);
    *to = tensor_of(copy, DT_F32, 1, (int)n);
}

static int on_progress(void *user, const struct klein_progress *p)
{
    return signals_received();
}

static enum klein_status make_picture(struct klein *k, const struct selftest_request *t,
                                      enum klein_graph graph, int steps, int tap, struct outcome *o,
                                      struct klein_error *err)
{
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a red balloon on a wooden table",
                              .width = t->size,
                              .height = t->size,
                              .steps = steps,
                              .seed = 7,
                              .graph = graph,
                              .progress = on_progress};
    struct klein_result result;
    *o = (struct outcome){0};
    if (tap) {
        q.tap = on_tap;
        q.tap_user = o;
    }
    enum klein_status status = klein_generate(k, &q, &result, err);
    if (status == KLEIN_OK) {
        o->rgb = result.images[0].rgb;
        result.images[0].rgb = NULL;
        o->rgb_bytes = (size_t)result.width * (size_t)result.height * 3;
        o->hash = result.latent_hashes[0];
        o->seconds = result.total_seconds;
        if (tap && !(o->latents.ptr && o->velocity.ptr))
            status = fail(err, KLEIN_E_NO_MEMORY, "no memory for latents");
    }
    klein_result_free(&result);
    if (status != KLEIN_OK) free_outcome(o);
    return status;
}

static enum klein_status open_model(const struct selftest_request *t, const char *device,
                                    enum klein_dtype dtype, enum klein_precision precision,
                                    struct klein **out, struct klein_error *err)
{
    struct klein_open_options options = {
        .size = sizeof options, .model = t->model, .device = device, .dtype = dtype, .precision = precision};
    return klein_open(&options, out, err);
}

/* What the picture is compared with. */
static enum klein_status make_other(const struct selftest_request *t, const char *device,
                                    enum klein_dtype dtype, int steps, struct outcome *o,
                                    struct klein_error *err)
{
    struct klein *k;
    TRY(open_model(t, device, dtype, KLEIN_PRECISION_BF16, &k, err));
    enum klein_status status = make_picture(k, t, KLEIN_GRAPH_OFF, steps, 1, o, err);
    klein_close(k);
    return status;
}

static void begin_deadline(const struct selftest_request *t, const char *how)
{
    char what[64];
    snprintf(what, sizeof what, "the demo picture%s, %s", t->fp8 ? " in FP8" : "", how);
    if (!t->soft) signals_deadline(DEADLINE, what);
}

/* As ops, captured, replayed: the same bytes as without graphs. */
static enum klein_status compare_graphs(struct selftest_request *t, struct klein *k,
                                        const struct outcome *want, struct klein_error *err)
{
    static const char *const kinds[] = {"stages", "request"};
    static const char *const runs[RUNS_WITH_GRAPHS] = {"as ops", "captured", "replayed"};
    for (int kind = 0; kind < 2; kind++)
        for (int run = 0; run < RUNS_WITH_GRAPHS; run++) {
            struct outcome got;
            begin_deadline(t, "with graphs");
            TRY(make_picture(k, t, kind ? KLEIN_GRAPH_REQUEST : KLEIN_GRAPH_STAGES, STEPS, 0, &got, err));
            int same = got.hash == want->hash && !memcmp(got.rgb, want->rgb, want->rgb_bytes);
            if (!same && t->same)
                snprintf(t->different, sizeof t->different, "--graph %s, %s", kinds[kind], runs[run]);
            t->same &= same;
            t->seconds[1 + kind] = got.seconds;
            free_outcome(&got);
        }
    return KLEIN_OK;
}

static enum klein_status on_device(struct selftest_request *t, struct outcome *o, struct klein_error *err)
{
    struct klein *k;
    struct outcome plain;
    begin_deadline(t, "op by op");
    TRY(open_model(t, t->device, KLEIN_DTYPE_BF16, t->fp8 ? KLEIN_PRECISION_FP8 : KLEIN_PRECISION_BF16, &k,
                   err));
    enum klein_status status = make_picture(k, t, KLEIN_GRAPH_OFF, STEPS, 1, o, err);
    t->same = 1;
    if (!status && t->graphs) status = compare_graphs(t, k, o, err);
    if (!status)
        status = make_picture(k, t, KLEIN_GRAPH_OFF, STEPS, 0, &plain, err); /* without taps, for the time */
    if (!status) {
        t->seconds[0] = plain.seconds;
        if (t->same && (plain.hash != o->hash || memcmp(plain.rgb, o->rgb, o->rgb_bytes))) {
            t->same = 0;
            snprintf(t->different, sizeof t->different, "--graph off, a second time");
        }
        free_outcome(&plain);
    }
    klein_close(k);
    return status;
}

static int largest_difference(const struct outcome *a, const struct outcome *b)
{
    int largest = 0;
    for (size_t i = 0; i < a->rgb_bytes; i++) {
        int d = abs(a->rgb[i] - b->rgb[i]);
        if (d > largest) largest = d;
    }
    return largest;
}

static enum klein_status in_bf16(struct selftest_request *t, struct klein_error *err)
{
    struct outcome exact = {0}, processor = {0}, device = {0};
    enum klein_status status = make_other(t, "cpu", KLEIN_DTYPE_F32, STEPS, &exact, err);
    if (!status) status = make_other(t, "cpu", KLEIN_DTYPE_BF16, STEPS, &processor, err);
    if (!status) status = on_device(t, &device, err);
    if (!status) {
        t->cpu_error = tensor_relative_l2(processor.latents, exact.latents);
        t->limit = SELFTEST_REQUEST_FACTOR * t->cpu_error;
        t->error = tensor_relative_l2(device.latents, exact.latents);
        t->largest_difference = largest_difference(&device, &processor);
    }
    free_outcome(&exact);
    free_outcome(&processor);
    free_outcome(&device);
    return status;
}

/* All requests begin with the same noise at the same sigma, so one step is enough of the other. */
static enum klein_status in_fp8(struct selftest_request *t, struct klein_error *err)
{
    struct outcome bf16 = {0}, fp8 = {0};
    begin_deadline(t, "a first step in BF16");
    enum klein_status status = make_other(t, t->device, KLEIN_DTYPE_BF16, ONE_STEP, &bf16, err);
    if (!status) status = on_device(t, &fp8, err);
    if (!status) {
        t->limit = SELFTEST_FP8_LIMIT;
        t->error = tensor_relative_l2(fp8.velocity, bf16.velocity);
    }
    free_outcome(&bf16);
    free_outcome(&fp8);
    return status;
}

enum klein_status selftest_request_run(struct selftest_request *t, struct klein_error *err)
{
    const enum klein_status status = t->fp8 ? in_fp8(t, err) : in_bf16(t, err);
    signals_deadline(0, "");
    return status;
}

const char *selftest_request_judge(const struct selftest_request *t, char *text, size_t size)
{
    if (!(t->error <= t->limit))
        snprintf(text, size, "%s off by %.3g (relative L2 against %s), limit %.3g",
                 t->fp8 ? "the first velocity is" : "latents are", t->error, t->fp8 ? "BF16" : "F32",
                 t->limit);
    else if (t->fp8 && t->error < SELFTEST_FP8_LEAST)
        snprintf(text, size, "the first velocity is that in BF16: nothing was in FP8");
    else if (!t->same)
        snprintf(text, size, "other bytes with %s", t->different);
    else
        return NULL;
    return text;
}
