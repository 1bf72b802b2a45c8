#include "group.h"
#include "memory.h"
#include "noise.h"
#include "resize.h"
#include "../base/clock.h"
#include "../base/hash.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Everything one call needs beside the caller's request; freed as a whole. */
struct generation {
    struct klein *k;
    const struct klein_request *request;
    struct klein_result *result;
    struct settled settled;
    struct job job;
    struct run run;
    double total_flops;
    int warm;  /* for the sake of what the device keeps */
    int turns; /* the text encoder's weights and the others take turns in the device's memory */
    int32_t *ids[2];
    void *ctx; /* the encoder's output as it comes from the device */
    float **start, **latents;
    uint8_t **rgb;

    struct klein_progress progress;
    double stage_begin, begin;
    struct span { /* of a stage, between two marks of the device */
        enum klein_stage stage;
        int from, to;
    } spans[RUN_MARKS / 2];
    int n_spans;
    struct issued_op issued[RUN_ISSUED]; /* of the run */
    op_observer *observer;
    void *observer_user;
};

__attribute__((format(printf, 2, 3))) static void warn(struct klein_result *result, const char *format, ...)
{
    size_t used = strlen(result->warning);
    if (used) used += (size_t)snprintf(result->warning + used, sizeof result->warning - used, "; ");
    if (used >= sizeof result->warning) return;
    va_list ap;
    va_start(ap, format);
    vsnprintf(result->warning + used, sizeof result->warning - used, format, ap);
    va_end(ap);
}

/* --- hooks of the run ----------------------------------------------------------------------------------- */

/* [channels, h, w] as torch draws and diffusers takes it, to tokens [h * w, channels], and back. */
static void pack(float *tokens, const float *planes, int n_tokens, int channels)
{
    for (int t = 0; t < n_tokens; t++)
        for (int c = 0; c < channels; c++)
            tokens[(size_t)t * (size_t)channels + (size_t)c] =
                planes[(size_t)c * (size_t)n_tokens + (size_t)t];
}

static void unpack(float *planes, const float *tokens, int n_tokens, int channels)
{
    pack(planes, tokens, channels, n_tokens); /* the transpose of the transpose */
}

/* Picture `image` is in host memory: checks that it is one, and tells who waits for it. */
static void finish_image(struct generation *g, int image)
{
    size_t n = (size_t)job_tokens(&g->job) * (size_t)g->k->model->cfg->dit.in_channels;
    for (size_t j = 0; j < n; j++)
        if (!(g->latents[image][j] - g->latents[image][j] == 0)) {
            fail(&g->run.err, KLEIN_E_NUMERIC,
                 "image %d has latents that are not numbers: the weights or the inputs are damaged",
                 image + 1);
            return;
        }
    g->result->latent_hashes[image] = fnv1a(g->latents[image], n * sizeof(float));
    if (g->result->latents)
        unpack(g->result->latents[image], g->latents[image], job_tokens(&g->job),
               g->k->model->cfg->dit.in_channels);
    if (g->result->prompt_embeds && image == 0)
        dtype_convert(g->result->prompt_embeds, DT_F32, g->ctx, g->k->act,
                      (size_t)g->result->embed_rows * (size_t)g->result->embed_cols);
    if (g->request->finished) g->request->finished(g->request->finished_user, image, g->result);
}

/* A stage's steps, of which there is an event each; 0: it has none. */
static int steps_of(const struct generation *g, enum klein_stage stage)
{
    return stage == KLEIN_STAGE_DENOISE      ? g->settled.steps
           : stage == KLEIN_STAGE_REFERENCES ? g->settled.n_references
                                             : 0;
}

/* On a device that works on after an op was issued, a stage's time is that between two marks in its stream. A request that is one graph
 * has none: its stages are then 0. */
static void mark_stage(struct generation *g, enum klein_stage stage, int step, int finished)
{
    struct run *r = &g->run;
    int last = step >= steps_of(g, stage) - 1;
    if (r->walked || !run_ok(r) || g->n_spans == RUN_MARKS / 2 || (finished && !last)) return;
    struct span *span = &g->spans[g->n_spans];
    *span = (struct span){stage, 2 * g->n_spans, 2 * g->n_spans + 1};
    r->dev->mark(r->dev, finished ? span->to : span->from, &r->err);
    g->n_spans += finished;
}

/* When memory is short only what the stage needs is there. A prompt that comes as embeddings needs no encoder. */
static void take_turns(struct generation *g, enum klein_stage stage, int finished)
{
    int encodes = !g->settled.prompt_embeds || g->settled.guided;
    if (!g->turns || stage != KLEIN_STAGE_TEXT || !run_ok(&g->run)) return;
    if (!finished && encodes) memory_hold(g->k, MEMORY_TEXT, &g->run.err);
    if (finished) memory_hold(g->k, MEMORY_OTHERS, &g->run.err);
}

static void on_event(void *user, enum klein_stage stage, int image, int step, int finished)
{
    struct generation *g = user;
    if (!finished) take_turns(g, stage, 0);
    struct klein_progress *p = &g->progress;
    if (!finished) run_observe_issued(&g->run); /* they are of the stage before */
    p->stage = stage;
    p->image = image;
    p->steps = steps_of(g, stage);
    p->step = p->steps ? step + finished : 0;
    if (g->run.dev->mark) {
        mark_stage(g, stage, step, finished);
    } else {
        double time = clock_seconds();
        if (finished) g->result->seconds[stage] += time - g->stage_begin;
        g->stage_begin = time;
    }
    if (stage == KLEIN_STAGE_DECODE && finished && run_ok(&g->run)) finish_image(g, image);
    if (finished) take_turns(g, stage, 1);
    /* The encoder is not needed again in this call: its mapped pages may leave memory (a later call maps them
     * back in). */
    if (stage == KLEIN_STAGE_TEXT && finished) checkpoint_drop_pages(g->k->checkpoint, PART_TEXT);
}

static int on_poll(struct run *r)
{
    struct generation *g = r->hook_user;
    if (g->k->group && group_stopped(g->k->group)) return 1;
    if (!g->request->progress) return 0;
    /* Blocks that are looked at compute more than was planned (dit_forward). */
    g->progress.fraction = g->total_flops > 0 ? fmin(r->flops / g->total_flops, 1) : 0;
    return g->request->progress(g->request->progress_user, &g->progress);
}

static void on_op(struct run *r, enum op_id op, const struct op_cost *cost, double seconds)
{
    struct generation *g = r->hook_user;
    g->observer(g->observer_user, g->progress.stage, op, cost, seconds);
}

static void deliver_tap(struct generation *g, struct klein_tap tap, const char *name)
{
    char full[96];
    if (g->progress.image)
        snprintf(full, sizeof full, "%s@%d", name, g->progress.image);
    else
        snprintf(full, sizeof full, "%s", name);
    tap.name = full;
    g->request->tap(g->request->tap_user, &tap);
}

static void on_tap(struct run *r, const char *name, struct tensor t)
{
    struct generation *g = r->hook_user;
    size_t n = (size_t)t.rows * (size_t)t.cols;
    char *raw = malloc(n * dtype_size(t.dtype));
    float *values = malloc(n * sizeof *values);
    if (!raw || !values) {
        fail(&r->err, KLEIN_E_NO_MEMORY, "no memory for the tap %s", name);
        goto done;
    }
    run_download(r, raw, t);
    struct klein_tap tap = {.ndim = 2, .shape = {t.rows, t.cols}, .data = values};
    if (!strcmp(name, "image")) { /* [h * w, 3] to [3, h, w] */
        tap.ndim = 3;
        tap.shape[0] = 3;
        tap.shape[1] = g->settled.height;
        tap.shape[2] = g->settled.width;
        for (int c = 0; c < 3; c++)
            for (int p = 0; p < t.rows; p++)
                values[(size_t)c * (size_t)t.rows + (size_t)p] =
                    f32_load(raw, t.dtype, (size_t)p * 3 + (size_t)c);
    } else {
        dtype_convert(values, DT_F32, raw, t.dtype, n);
    }
    if (run_ok(r)) deliver_tap(g, tap, name);
done:
    free(raw);
    free(values);
}

/* --- inputs --------------------------------------------------------------------------------------------- */

/* Says what of an over-long prompt the model does not see. */
static void warn_cut(struct generation *g, const char *prompt, int whole, int length)
{
    static const char head[] = "<|im_start|>user\n";
    struct klein_error err = {0};
    int32_t *ids = NULL, *head_ids = NULL;
    int n = 0, n_head = 0;
    char cut[64] = "";
    if (!tokenizer_encode(g->k->tokenizer, prompt, strlen(prompt), &ids, &n, &err) &&
        !tokenizer_encode(g->k->tokenizer, head, sizeof head - 1, &head_ids, &n_head, &err)) {
        size_t used = 0;
        for (int i = length - n_head; i < n && used < 40; i++) {
            size_t bytes;
            const char *text = tokenizer_token(g->k->tokenizer, ids[i], &bytes);
            if (!text || used + bytes >= sizeof cut) break;
            memcpy(cut + used, text, bytes);
            used += bytes;
        }
        cut[used] = 0;
    }
    warn(g->result,
         "the prompt is %d tokens too long: the model sees the first %d and not the end, from \"%s\" on",
         whole - length, length, cut);
    free(ids);
    free(head_ids);
}

static enum klein_status make_ids(struct generation *g, int which, const char *prompt,
                                  struct klein_error *err)
{
    const struct model_config *config = g->k->model->cfg;
    int length = config->text_length, whole;
    int32_t *ids = g->ids[which] = malloc((size_t)length * sizeof *ids);
    if (!ids) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %d token ids", length);
    g->job.ids[which] = ids;
    if (!g->k->tokenizer) { /* random weights: any ids will do */
        for (int i = 0; i < length; i++)
            ids[i] = (int32_t)((unsigned)i * 2654435761u % (unsigned)config->text.vocab);
        g->job.real[which] = length;
        return KLEIN_OK;
    }
    TRY(tokenizer_prompt(g->k->tokenizer, prompt, length, ids, &g->job.real[which], &whole, err));
    for (int i = 0; i < length; i++)
        if (ids[i] < 0 || ids[i] >= config->text.vocab)
            return fail(err, KLEIN_E_MODEL_CORRUPT,
                        "token id %d is outside the text encoder's vocabulary of %d: tokenizer and text "
                        "encoder do not belong together",
                        ids[i], config->text.vocab);
    if (which == 0) {
        g->result->prompt_tokens = g->job.real[0];
        if (whole > length) warn_cut(g, prompt, whole, length);
        if (g->request->tap)
            deliver_tap(g, (struct klein_tap){.is_int32 = 1, .ndim = 1, .shape = {length}, .data = ids},
                        "input_ids");
    }
    return KLEIN_OK;
}

static enum klein_status make_text(struct generation *g, struct klein_error *err)
{
    const struct klein_request *q = g->request;
    if (!q->prompt_embeds) {
        if (!q->prompt) return fail(err, KLEIN_E_USAGE, "no prompt");
        TRY(make_ids(g, 0, q->prompt, err));
    }
    return g->settled.guided ? make_ids(g, 1, "", err) : KLEIN_OK;
}

static enum klein_status make_references(struct generation *g, struct klein_error *err)
{
    for (int k = 0; k < g->settled.n_references; k++)
        TRY(reference_fit(&g->request->references[k], &g->settled.references[k], err));
    return KLEIN_OK;
}

static enum klein_status make_start(struct generation *g, int image, struct klein_error *err)
{
    const struct klein_request *q = g->request;
    int tokens = job_tokens(&g->job), channels = g->k->model->cfg->dit.in_channels;
    size_t n = (size_t)tokens * (size_t)channels;
    g->start[image] = malloc(n * sizeof(float));
    g->latents[image] = malloc(n * sizeof(float));
    if (!g->start[image] || !g->latents[image]) return fail(err, KLEIN_E_NO_MEMORY, "no memory for latents");
    const float *planes = q->latents;
    if (!planes) {
        noise_torch(g->latents[image], n, q->seed + (uint64_t)image, q->noise);
        planes = g->latents[image];
    }
    pack(g->start[image], planes, tokens, channels);
    return KLEIN_OK;
}

/* Room for what the request wants back beside pictures. */
static enum klein_status make_returned(struct generation *g, struct klein_error *err)
{
    const struct model_config *config = g->k->model->cfg;
    struct klein_result *result = g->result;
    size_t embeds = (size_t)config->text_length * (size_t)config->dit.text_width;
    if (g->request->return_latents) {
        result->latents = calloc((size_t)g->settled.images, sizeof *result->latents);
        if (!result->latents) return fail(err, KLEIN_E_NO_MEMORY, "no memory for the returned latents");
    }
    if (!g->request->return_embeds) return KLEIN_OK;
    result->embed_rows = config->text_length;
    result->embed_cols = config->dit.text_width;
    result->prompt_embeds = malloc(embeds * sizeof(float));
    g->job.ctx = g->ctx = malloc(embeds * dtype_size(g->k->act));
    return result->prompt_embeds && g->ctx
               ? KLEIN_OK
               : fail(err, KLEIN_E_NO_MEMORY, "no memory for the returned prompt embeddings");
}

static enum klein_status make_images(struct generation *g, struct klein_error *err)
{
    struct klein_result *result = g->result;
    size_t n = (size_t)g->settled.images, bytes = (size_t)g->settled.width * (size_t)g->settled.height * 3,
           latents = (size_t)job_tokens(&g->job) * (size_t)g->k->model->cfg->dit.in_channels;
    g->start = calloc(n, sizeof *g->start);
    g->latents = calloc(n, sizeof *g->latents);
    g->rgb = calloc(n, sizeof *g->rgb);
    result->images = calloc(n, sizeof *result->images);
    result->seeds = calloc(n, sizeof *result->seeds);
    result->latent_hashes = calloc(n, sizeof *result->latent_hashes);
    if (!g->start || !g->latents || !g->rgb || !result->images || !result->seeds || !result->latent_hashes)
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for %zu images", n);
    TRY(make_returned(g, err));
    for (size_t i = 0; i < n; i++) {
        TRY(make_start(g, (int)i, err));
        uint8_t *rgb = g->rgb[i] = malloc(bytes);
        if (!rgb) return fail(err, KLEIN_E_NO_MEMORY, "no memory for an image of %zu bytes", bytes);
        result->images[i] = (struct klein_image){g->settled.width, g->settled.height, rgb};
        result->seeds[i] = g->request->seed + i;
        result->n_images = (int)i + 1;
        if (result->latents && !(result->latents[i] = malloc(latents * sizeof(float))))
            return fail(err, KLEIN_E_NO_MEMORY, "no memory for the returned latents");
    }
    return KLEIN_OK;
}

/* --- the call ------------------------------------------------------------------------------------------- */

static struct shape shape_of(const struct generation *g)
{
    const struct settled *s = &g->settled;
    struct shape shape = {.width = s->width,
                          .height = s->height,
                          .steps = s->steps,
                          .guided = s->guided,
                          .embeds = s->prompt_embeds != NULL,
                          .whole = g->request->graph == KLEIN_GRAPH_REQUEST && s->images == 1,
                          .n_references = s->n_references,
                          .guidance = s->guidance};
    for (int i = 0; i < s->n_references; i++) {
        shape.reference[i][0] = s->references[i].width;
        shape.reference[i][1] = s->references[i].height;
    }
    return shape;
}

/* What the request's shape costs: as planned before, or now. */
static enum klein_status find_plan(struct generation *g, struct cached_plan **out, struct klein_error *err)
{
    struct klein *k = g->k;
    struct shape shape = shape_of(g);
    struct plan plan;
    if ((*out = cache_find(&k->plans, &shape))) return KLEIN_OK;
    const double begin = clock_seconds();
    TRY(plan_make_share(k->model->cfg, k->act, g->request, k->tokens, k->passes, &plan, err));
    if (!k->times.plan) k->times.plan = clock_seconds() - begin;
    struct plan_stage *stage = plan.stage;
    double once = stage[KLEIN_STAGE_TEXT].flops + stage[KLEIN_STAGE_REFERENCES].flops,
           each = (stage[KLEIN_STAGE_DENOISE].flops + stage[KLEIN_STAGE_DECODE].flops) / g->settled.images;
    size_t bytes = plan.arena_bytes;
    plan_free(&plan);
    if (!(*out = cache_add(&k->plans, k->device, &shape, err))) return err->status;
    (*out)->bytes = bytes;
    (*out)->flops = once;
    (*out)->flops_per_image = each;
    return KLEIN_OK;
}

static enum klein_status run_job(struct generation *g, struct cached_plan *plan, struct klein_error *err)
{
    struct device *dev = g->k->device;
    struct arena arena;
    struct run *r = &g->run;
    TRY(memory_prepare(g->k, g->request, plan, &g->turns, err));
    if (g->turns)
        warn(
            g->result,
            "text encoder and transformer do not fit into %s's memory together: each request loads them anew",
            dev->name);
    TRY(cache_take_memory(&g->k->plans, dev, plan, err));
    if (g->k->group) TRY(group_begin(g->k, plan, g->turns, err));
    arena_over(&arena, plan->memory, plan->bytes);
    *r = (struct run){.dev = dev,
                      .arena = &arena,
                      .act = g->k->act,
                      .tokens = g->k->tokens,
                      .passes = g->k->passes,
                      .hook_user = g,
                      .poll = g->request->progress || g->k->group ? on_poll : NULL,
                      .observe = g->observer ? on_op : NULL,
                      .issued = dev->mark ? g->issued : NULL,
                      .tap = g->request->tap ? on_tap : NULL,
                      .tap_blocks = g->request->tap && g->request->tap_blocks};
    pipeline_run(r, g->k->model, &g->job, g->request->graph == KLEIN_GRAPH_OFF ? NULL : &plan->stages);
    run_observe_issued(r);
    if (g->k->group && !run_ok(r)) group_stop(g->k, &r->err);
    if (dev->wait) dev->wait(dev, &r->err);
    for (int i = 0; i < g->n_spans && run_ok(r); i++)
        g->result->seconds[g->spans[i].stage] += dev->between(dev, g->spans[i].from, g->spans[i].to);
    if (!g->k->group) cache_trim(&g->k->plans, dev); /* else others may still write to it */
    if (!run_ok(r)) return fail(err, r->err.status, "%s", r->err.message);
    g->progress.fraction = 1;
    if (g->request->progress) g->request->progress(g->request->progress_user, &g->progress);
    return KLEIN_OK;
}

/* What was asked for and is not done. */
static void warn_no_graph(struct generation *g)
{
    const struct device *dev = g->k->device;
    if (g->request->graph != KLEIN_GRAPH_REQUEST) return;
    if (!dev->graphs)
        warn(g->result, "the request is not one graph: %s runs op by op%s", dev->name,
             dev->place ? " with KLEIN_SYNC" : "");
    else if (g->settled.images > 1)
        warn(g->result, "the request is not one graph: several images are made by graphs of stages");
}

static enum klein_status generate(struct generation *g, struct klein_error *err)
{
    const struct klein_request *q = g->request;
    const struct model_config *config = g->k->model->cfg;
    struct klein_result *result = g->result;
    TRY(settle(config, q, &g->settled, err));
    g->job = settled_job(&g->settled);
    g->progress = (struct klein_progress){.images = g->settled.images};
    result->width = g->settled.width;
    result->height = g->settled.height;
    result->steps = g->settled.steps;
    result->guidance = g->settled.guidance;
    if (config->distilled && q->guidance && q->guidance != g->settled.guidance)
        warn(result, "guidance %g is ignored: this model is step-distilled", (double)q->guidance);

    if (g->k->warning.message[0]) warn(result, "%s", g->k->warning.message);
    g->k->warning = (struct klein_error){0};
    warn_no_graph(g);

    struct cached_plan *plan;
    TRY(find_plan(g, &plan, err));
    g->total_flops = plan->flops + plan->flops_per_image * g->settled.images;

    TRY(make_text(g, err));
    TRY(make_references(g, err));
    TRY(make_images(g, err));
    if (q->tap)
        deliver_tap(g,
                    (struct klein_tap){.ndim = 1, .shape = {g->settled.steps + 1}, .data = g->settled.sigmas},
                    "sigmas");
    g->job.start = (const float *const *)g->start;
    g->job.latents = g->latents;
    g->job.rgb = g->rgb;
    g->job.warm = g->warm;
    g->job.event = on_event;
    g->job.event_user = g;
    return run_job(g, plan, err);
}

static void generation_free(struct generation *g)
{
    for (int i = 0; i < g->settled.images; i++) {
        if (g->start) free(g->start[i]);
        if (g->latents) free(g->latents[i]);
    }
    free(g->start);
    free(g->latents);
    free(g->rgb);
    free(g->ctx);
    free(g->ids[0]);
    free(g->ids[1]);
    settled_free(&g->settled);
}

enum klein_status context_generate(struct klein *k, const struct klein_request *request,
                                   op_observer *observer, void *observer_user, struct klein_result *result,
                                   struct klein_error *err)
{
    return k->group ? group_generate(k->group, request, observer, observer_user, result, err)
                    : context_generate_alone(k, request, observer, observer_user, result, err);
}

enum klein_status context_generate_alone(struct klein *k, const struct klein_request *request,
                                         op_observer *observer, void *observer_user,
                                         struct klein_result *result, struct klein_error *err)
{
    struct generation g = {
        .k = k, .request = request, .result = result, .observer = observer, .observer_user = observer_user};
    *result = (struct klein_result){0};
    *err = (struct klein_error){0};
    g.begin = clock_seconds();
    enum klein_status status = device_bind(k->device, err);
    if (status == KLEIN_OK) status = generate(&g, err);
    result->total_seconds = clock_seconds() - g.begin;
    generation_free(&g);
    if (status != KLEIN_OK) klein_result_free(result);
    return status;
}

/* --- warming up ------------------------------------------------------------------------------------------- */

/* What of a request decides what a device keeps. */
static struct klein_request warm_request(const struct klein_request *request)
{
    struct klein_request q = *request;
    q.prompt = "";
    if (q.images > 1 && q.graph == KLEIN_GRAPH_REQUEST) q.graph = KLEIN_GRAPH_STAGES; /* as shape_of says */
    q.images = 1;
    q.return_latents = q.return_embeds = q.tap_blocks = 0;
    q.progress = NULL;
    q.tap = NULL;
    q.finished = NULL;
    return q;
}

enum klein_status context_warm_alone(struct klein *k, const struct klein_request *q, struct klein_error *err)
{
    struct klein_result result = {0};
    struct generation g = {.k = k, .request = q, .result = &result, .warm = 1};
    enum klein_status status = device_bind(k->device, err);
    if (status == KLEIN_OK) status = generate(&g, err);
    generation_free(&g);
    klein_result_free(&result);
    return status;
}

enum klein_status context_warm_up(struct klein *k, const struct klein_request *request,
                                  struct klein_error *err)
{
    struct klein_request q = warm_request(request);
    struct klein_image references[KLEIN_MAX_REFERENCES];
    const int n = q.n_references < KLEIN_MAX_REFERENCES ? q.n_references : KLEIN_MAX_REFERENCES;
    enum klein_status status = KLEIN_OK;
    for (int i = 0; i < n; i++) { /* black pictures */
        references[i] = q.references[i];
        references[i].rgb = calloc((size_t)references[i].width * (size_t)references[i].height, 3);
        if (!references[i].rgb) status = fail(err, KLEIN_E_NO_MEMORY, "no memory for a reference");
    }
    q.references = references;
    /* The first time ops run as they come, the second time they are captured (stage.h). */
    for (int i = 0; i < (k->device->graphs ? 2 : 0) && status == KLEIN_OK; i++)
        status = k->group ? group_warm_up(k->group, &q, err) : context_warm_alone(k, &q, err);
    if (!k->device->graphs && status == KLEIN_OK) {
        struct cached_plan *plan;
        struct generation g = {.k = k, .request = &q};
        status = settle(k->model->cfg, &q, &g.settled, err);
        if (status == KLEIN_OK) status = find_plan(&g, &plan, err);
        settled_free(&g.settled);
    }
    for (int i = 0; i < n; i++) free(references[i].rgb);
    return status;
}

int context_is_warm(struct klein *k, const struct klein_request *request)
{
    struct klein_request q = warm_request(request);
    struct generation g = {.k = k, .request = &q};
    struct klein_error none = {0};
    if (settle(k->model->cfg, &q, &g.settled, &none) != KLEIN_OK) return 0;
    const struct shape shape = shape_of(&g);
    const struct cached_plan *plan = cache_peek(&k->plans, &shape);
    settled_free(&g.settled);
    if (!plan || !k->device->graphs || q.graph == KLEIN_GRAPH_OFF) return plan != NULL;
    return plan->memory && (shape.whole ? plan->stages.request.graph : plan->stages.decode.graph);
}
