#include "pipeline.h"

/* A job's data in device memory. Everything that differs between two jobs of one shape is here, so the stages can be graphs. */
struct inputs {
    struct qwen3_prompt prompt[2];
    struct tensor embeds;                        /* [text_length, text_width] f32, in place of prompt[0] */
    struct tensor picture[KLEIN_MAX_REFERENCES]; /* [h * w, 3] u8 */
    struct tensor sigmas;                        /* [1, steps] f32 */
    struct tensor dts;                           /* [steps, 1] f32 */
    struct tensor numbers;                       /* [1, steps] I32: 0, 1, 2, ... */
    struct rope text_rope;
    struct dit_tables tables;
    struct tensor step, dt; /* [1, 1]: number and dt of the step that is computed */
};

/* What the stages hand on. */
struct work {
    struct run *r;
    const struct model *m;
    const struct job *job;
    struct stages *stages;
    struct inputs in;
    struct tensor
        ctx[2]; /* [text_length, text_width] act: of the prompt, and of the empty prompt if guided */
    struct dit_image target, references[KLEIN_MAX_REFERENCES];
    struct tensor x;   /* [tokens, channels] f32: from noise to latents */
    struct tensor own; /* its rows that this device has */
    struct dit_request q[2];
};

/* Whether this device computes the pass over the prompt (0), over the empty prompt (1). */
static int has_pass(const struct work *w, int i)
{
    return i <= w->job->guided && (share_size(w->r->passes) == 1 || w->r->passes.rank == i);
}

/* The device whose results are the request's. */
static int is_first(const struct run *r)
{
    return r->tokens.rank == 0 && r->passes.rank == 0;
}

int job_tokens(const struct job *job)
{
    return (job->width / VAE_SCALE) * (job->height / VAE_SCALE);
}

static void event(const struct job *job, enum klein_stage stage, int image, int step, int finished)
{
    if (job->event) job->event(job->event_user, stage, image, step, finished);
}

/* A stage of one's own, or a part of the one that is the whole request. */
static struct stage *part(struct work *w, size_t offset)
{
    return w->stages ? (struct stage *)((char *)w->stages + offset) : NULL;
}
#define PART(name) part(w, offsetof(struct stages, name))

/* --- inputs -------------------------------------------------------------------------------------------- */

/* Tables that depend on the shape alone: computed once per arena. */
static void make_constants(struct work *w)
{
    struct run *r = w->r;
    int length = w->m->cfg->text_length, steps = w->job->steps;
    int32_t numbers[KLEIN_MAX_STEPS];
    for (int32_t i = 0; i < steps; i++) numbers[i] = i;
    r->skip = w->stages && w->stages->constants;
    w->in.text_rope = qwen3_rope(r, &w->m->text, length);
    w->in.tables = dit_tables(r, &w->m->dit, length, w->target, w->references, w->job->n_references);
    w->in.numbers = run_upload(r, DT_I32, 1, steps, numbers);
    r->skip = 0;
    if (w->stages) w->stages->constants = run_ok(r);
}

static void make_inputs(struct work *w)
{
    struct run *r = w->r;
    const struct job *job = w->job;
    struct inputs *in = &w->in;
    int length = w->m->cfg->text_length, steps = job->steps;
    float dts[KLEIN_MAX_STEPS];
    for (int i = 0; i < steps; i++) dts[i] = job->sigmas ? job->sigmas[i + 1] - job->sigmas[i] : 0;
    for (int i = job->prompt_embeds ? 1 : 0; i < 1 + job->guided; i++) {
        in->prompt[i].ids = run_upload(r, DT_I32, 1, length, job->ids[i]);
        in->prompt[i].real = run_upload(r, DT_I32, 1, 1, &job->real[i]);
    }
    if (job->prompt_embeds)
        in->embeds = run_upload(r, DT_F32, length, w->m->cfg->dit.text_width, job->prompt_embeds);
    for (int k = 0; k < job->n_references; k++) {
        const struct klein_image *image = &job->references[k];
        in->picture[k] = run_upload(r, DT_U8, image->height * image->width, 3, image->rgb);
    }
    in->sigmas = run_upload(r, DT_F32, 1, steps, job->sigmas);
    in->dts = run_upload(r, DT_F32, steps, 1, dts);
    in->step = run_tensor(r, DT_I32, 1, 1);
    in->dt = run_tensor(r, DT_F32, 1, 1);
}

/* --- stages -------------------------------------------------------------------------------------------- */

static void encode_text(struct work *w)
{
    struct run *r = w->r;
    int rows = w->m->cfg->text_length, cols = w->m->cfg->dit.text_width;
    event(w->job, KLEIN_STAGE_TEXT, 0, 0, 0);
    stage_begin(r, PART(text));
    for (int i = 0; i < 1 + w->job->guided; i++) {
        w->ctx[i] = run_tensor(r, r->act, rows, cols);
        if (!has_pass(w, i)) continue;
        if (i == 0 && w->job->prompt_embeds)
            run_copy(r, &(struct copy_args){.y = w->ctx[0], .x = w->in.embeds});
        else
            qwen3_forward(r, &w->m->text, w->ctx[i], w->in.prompt[i], w->in.text_rope);
    }
    stage_end(r, PART(text));
    run_tap(r, w->ctx[0], "prompt_embeds");
    event(w->job, KLEIN_STAGE_TEXT, 0, 0, 1);
}

static void encode_references(struct work *w)
{
    struct run *r = w->r;
    event(w->job, KLEIN_STAGE_REFERENCES, 0, 0, 0);
    stage_begin(r, PART(references));
    for (int k = 0; k < w->job->n_references; k++) {
        const struct klein_image *image = &w->job->references[k];
        struct dit_image *out = &w->references[k];
        out->latents = run_tensor(r, DT_F32, out->rows * out->cols, w->m->cfg->dit.in_channels);
        vae_encode(r, &w->m->vae, out->latents, w->in.picture[k], image->height, image->width);
        run_tap(r, out->latents, "ref_latents.%d", k);
        if (k < w->job->n_references - 1) event(w->job, KLEIN_STAGE_REFERENCES, 0, k, 1);
    }
    stage_end(r, PART(references));
    event(w->job, KLEIN_STAGE_REFERENCES, 0, w->job->n_references - 1, 1);
}

static void prepare(struct work *w)
{
    struct run *r = w->r;
    stage_begin(r, PART(prepare));
    int first = !has_pass(w, 0);
    dit_prepare(r, &w->m->dit, &w->q[first], w->ctx[first], w->in.tables, w->target, w->references,
                w->job->n_references, w->in.sigmas);
    if (!first && has_pass(w, 1)) w->q[1] = dit_with_text(r, &w->m->dit, &w->q[0], w->ctx[1]);
    stage_end(r, PART(prepare));
}

/* Each device has one of the two velocities: both get the other's. */
static void exchange_passes(struct run *r, struct tensor v, struct tensor u)
{
    struct tensor own = r->passes.rank ? u : v;
    struct exchange_args a = {.size = r->passes.size,
                              .rank = r->passes.rank,
                              .tensors = 1,
                              .ready = 1,
                              .from[0] = own,
                              .to[0] = own};
    a.way[!a.rank] = (struct exchange_way){.cols = own.cols, .span[0].rows = own.rows};
    run_exchange(r, &a);
}

/* Each device has some rows of the latents: all get all. */
static void exchange_latents(struct work *w)
{
    struct run *r = w->r;
    struct exchange_args a = {
        .size = r->tokens.size, .rank = r->tokens.rank, .tensors = 1, .from[0] = w->x, .to[0] = w->x};
    int first = share_first(r->tokens, a.rank, w->x.rows);
    for (int i = 0; i < a.size; i++)
        if (i != a.rank)
            a.way[i] = (struct exchange_way){.cols = w->x.cols, .span[0] = {first, first, w->own.rows}};
    run_exchange(r, &a);
}

/* One Euler step. It reads which one from memory, so all are one graph; `i` names it in taps. */
static void step(struct work *w, int i)
{
    struct run *r = w->r;
    size_t mark = arena_mark(r->arena, r->end);
    stage_begin(r, PART(step));
    int guided = w->job->guided, room = share_most(r->tokens, w->x.rows);
    struct tensor x = w->own, v = tensor_rows(run_tensor(r, DT_F32, room, x.cols), 0, x.rows), u = v;
    if (guided) u = tensor_rows(run_tensor(r, DT_F32, room, x.cols), 0, x.rows);
    dit_select(r, &w->q[!has_pass(w, 0)], w->in.step);
    run_embed(r, &(struct embed_args){.y = w->in.dt, .table = w->in.dts, .ids = w->in.step});
    if (has_pass(w, 0)) dit_forward(r, &w->m->dit, &w->q[0], i, x, v);
    if (guided) {
        int tap_blocks = r->tap_blocks; /* taps are of the prompt's pass */
        r->tap_blocks = 0;
        if (has_pass(w, 1)) dit_forward(r, &w->m->dit, &w->q[1], i, x, u);
        r->tap_blocks = tap_blocks;
        if (share_size(r->passes) > 1) exchange_passes(r, v, u);
        run_cfg(r, &(struct cfg_args){.y = v, .cond = v, .uncond = u, .guidance = w->job->guidance});
    }
    run_tap(r, v, "velocity.%d", i);
    run_euler(r, &(struct euler_args){.y = x, .x = x, .v = v, .dt = w->in.dt});
    run_tap(r, x, "latents.%d", i);
    stage_end(r, PART(step));
    arena_release(r->arena, r->end, mark);
}

static void denoise(struct work *w, int image)
{
    struct run *r = w->r;
    event(w->job, KLEIN_STAGE_DENOISE, image, 0, 0);
    prepare(w);
    /* A step is captured when it runs for the second time, and then is that of all. */
    const int steps = w->job->warm && w->stages && !w->stages->whole && w->job->steps > 2 ? 2 : w->job->steps;
    for (int i = 0; i < steps; i++) {
        run_assign(r, w->in.step, tensor_cols(w->in.numbers, i, 1));
        step(w, i);
        /* Somebody watches: the host stays near the device. */
        if (r->poll && !r->walked && r->dev->graphs && run_ok(r)) r->dev->graphs->pace(r->dev, &r->err);
        event(w->job, KLEIN_STAGE_DENOISE, image, i, 1);
    }
}

static struct tensor decode(struct work *w, int image)
{
    struct run *r = w->r;
    int pixels = w->job->width * w->job->height;
    event(w->job, KLEIN_STAGE_DECODE, image, 0, 0);
    stage_begin(r, PART(decode));
    struct tensor picture = run_tensor(r, r->act, pixels, 3), rgb = run_tensor(r, DT_U8, pixels, 3);
    if (share_size(r->tokens) > 1) exchange_latents(w);
    if (is_first(r) || share_size(vae_bands(r, w->job->height)) > 1)
        vae_decode(r, &w->m->vae, picture, w->x, w->job->height, w->job->width);
    if (is_first(r)) {
        run_tap(r, picture, "image");
        run_to_u8(r, &(struct to_u8_args){.y = rgb, .x = picture});
    }
    stage_end(r, PART(decode));
    return rgb;
}

/* --- the request --------------------------------------------------------------------------------------- */

static void make_image(struct work *w, int image, size_t mark)
{
    struct run *r = w->r;
    denoise(w, image);
    /* What the steps share is made again per image, so that decoding has the whole arena: it is far cheaper
     * than a step. */
    arena_release(r->arena, r->end, mark);
    struct tensor rgb = decode(w, image);
    arena_release(r->arena, r->end, mark);
    stage_end(r, image == 0 && w->stages && w->stages->whole ? PART(request) : NULL);
    if (image == 0 && w->job->ctx && is_first(r)) run_download(r, w->job->ctx, w->ctx[0]);
    if (w->job->latents && is_first(r)) run_download(r, w->job->latents[image], w->x);
    if (w->job->rgb && is_first(r)) run_download(r, w->job->rgb[image], rgb);
    event(w->job, KLEIN_STAGE_DECODE, image, 0, 1);
}

static struct dit_image image_of(int width, int height)
{
    return (struct dit_image){.rows = height / VAE_SCALE, .cols = width / VAE_SCALE};
}

void pipeline_run(struct run *r, const struct model *m, const struct job *job, struct stages *stages)
{
    struct work work = {.r = r, .m = m, .job = job, .stages = stages}, *w = &work;
    w->target = image_of(job->width, job->height);
    for (int k = 0; k < job->n_references; k++)
        w->references[k] = image_of(job->references[k].width, job->references[k].height);
    make_constants(w);
    make_inputs(w);
    w->x = run_tensor(r, DT_F32, job_tokens(job), m->cfg->dit.in_channels);
    int first = share_first(r->tokens, r->tokens.rank, w->x.rows);
    w->own = tensor_rows(w->x, first, share_first(r->tokens, r->tokens.rank + 1, w->x.rows) - first);
    for (int image = 0; image < job->images && run_ok(r); image++) {
        run_fill(r, w->x, job->start ? job->start[image] : NULL);
        if (image == 0) {
            if (stages && stages->whole) stage_begin(r, PART(request));
            encode_text(w);
            encode_references(w);
        }
        make_image(w, image, arena_mark(r->arena, r->end));
    }
}

int stages_captured(const struct stages *s)
{
    const struct stage *all[] = {&s->text, &s->references, &s->prepare, &s->step, &s->decode, &s->request};
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) n = n * 3 + (all[i]->graph ? 2 : all[i]->ran != 0);
    return n;
}

void stages_free(struct device *dev, struct stages *s)
{
    struct stage *all[] = {&s->text, &s->references, &s->prepare, &s->step, &s->decode, &s->request};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) stage_free(dev, all[i]);
    *s = (struct stages){.whole = s->whole};
}
