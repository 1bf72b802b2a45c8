#include "pipeline.h"

int job_tokens(const struct job *job)
{
    return (job->width / VAE_SCALE) * (job->height / VAE_SCALE);
}

static void event(const struct job *job, enum klein_stage stage, int image, int step, int finished)
{
    if (job->event) job->event(job->event_user, stage, image, step, finished);
}

/* ctx[i] [text_length, text_width] act: of the prompt, and of the empty prompt if the request is guided. */
static void encode_text(struct run *r, const struct model *m, const struct job *job, struct tensor ctx[2])
{
    int rows = m->cfg->text_length, cols = m->cfg->dit.text_width;
    event(job, KLEIN_STAGE_TEXT, 0, 0, 0);
    for (int i = 0; i < 1 + job->guided; i++) {
        ctx[i] = run_tensor(r, r->act, rows, cols);
        size_t mark = arena_mark(r->arena, r->end);
        if (i == 0 && job->prompt_embeds)
            run_copy(r, &(struct copy_args){.y = ctx[0],
                                            .x = run_upload(r, DT_F32, rows, cols, job->prompt_embeds)});
        else
            qwen3_forward(r, &m->text, ctx[i], job->ids[i], job->real[i]);
        arena_release(r->arena, r->end, mark);
    }
    run_tap(r, ctx[0], "prompt_embeds");
    event(job, KLEIN_STAGE_TEXT, 0, 0, 1);
}

static void encode_references(struct run *r, const struct model *m, const struct job *job,
                              struct dit_image *out)
{
    int channels = m->cfg->dit.in_channels;
    event(job, KLEIN_STAGE_REFERENCES, 0, 0, 0);
    for (int k = 0; k < job->n_references; k++) {
        const struct klein_image *image = &job->references[k];
        out[k] = (struct dit_image){.rows = image->height / VAE_SCALE, .cols = image->width / VAE_SCALE};
        out[k].latents = run_tensor(r, DT_F32, out[k].rows * out[k].cols, channels);
        size_t mark = arena_mark(r->arena, r->end);
        struct tensor rgb = run_upload(r, DT_U8, image->height * image->width, 3, image->rgb);
        vae_encode(r, &m->vae, out[k].latents, rgb, image->height, image->width);
        arena_release(r->arena, r->end, mark);
        run_tap(r, out[k].latents, "ref_latents.%d", k);
    }
    event(job, KLEIN_STAGE_REFERENCES, 0, 0, 1);
}

/* x [tokens, channels] f32: from noise to latents, one Euler step per sigma. */
static void denoise(struct run *r, const struct model *m, const struct job *job,
                    const struct dit_request q[2], struct tensor x, int image)
{
    size_t mark = arena_mark(r->arena, r->end);
    struct tensor v = run_tensor(r, DT_F32, x.rows, x.cols), u = v;
    if (job->guided) u = run_tensor(r, DT_F32, x.rows, x.cols);
    for (int i = 0; i < job->steps; i++) {
        dit_forward(r, &m->dit, &q[0], i, x, v);
        if (job->guided) {
            int tap_blocks = r->tap_blocks; /* taps are of the prompt's pass */
            r->tap_blocks = 0;
            dit_forward(r, &m->dit, &q[1], i, x, u);
            r->tap_blocks = tap_blocks;
            run_cfg(r, &(struct cfg_args){.y = v, .cond = v, .uncond = u, .guidance = job->guidance});
        }
        run_tap(r, v, "velocity.%d", i);
        float dt = job->sigmas ? job->sigmas[i + 1] - job->sigmas[i] : 0;
        run_euler(r, &(struct euler_args){.y = x, .x = x, .v = v, .dt = dt});
        run_tap(r, x, "latents.%d", i);
        event(job, KLEIN_STAGE_DENOISE, image, i, 1);
    }
    arena_release(r->arena, r->end, mark);
}

static void decode(struct run *r, const struct model *m, const struct job *job, struct tensor x, int image)
{
    int pixels = job->width * job->height;
    size_t mark = arena_mark(r->arena, r->end);
    event(job, KLEIN_STAGE_DECODE, image, 0, 0);
    struct tensor picture = run_tensor(r, r->act, pixels, 3), rgb = run_tensor(r, DT_U8, pixels, 3);
    vae_decode(r, &m->vae, picture, x, job->height, job->width);
    run_tap(r, picture, "image");
    run_to_u8(r, &(struct to_u8_args){.y = rgb, .x = picture});
    if (job->rgb) run_download(r, job->rgb[image], rgb);
    event(job, KLEIN_STAGE_DECODE, image, 0, 1);
    arena_release(r->arena, r->end, mark);
}

void pipeline_run(struct run *r, const struct model *m, const struct job *job)
{
    int channels = m->cfg->dit.in_channels;
    struct tensor ctx[2];
    struct dit_image references[KLEIN_MAX_REFERENCES];
    struct dit_image target = {.rows = job->height / VAE_SCALE, .cols = job->width / VAE_SCALE};
    struct dit_request q[2];

    encode_text(r, m, job, ctx);
    encode_references(r, m, job, references);
    struct tensor x = run_tensor(r, DT_F32, job_tokens(job), channels);
    size_t mark = arena_mark(r->arena, r->end);
    for (int image = 0; image < job->images && run_ok(r); image++) {
        event(job, KLEIN_STAGE_DENOISE, image, 0, 0);
        if (r->dev->computes)
            r->dev->upload(r->dev, x.ptr, job->start[image],
                           (size_t)x.rows * (size_t)channels * sizeof(float), &r->err);
        /* What the steps share is made again per image, so that decoding has the whole arena: it is far
         * cheaper than a step. */
        dit_prepare(r, &m->dit, &q[0], ctx[0], target, references, job->n_references, job->sigmas,
                    job->steps);
        if (job->guided) q[1] = dit_with_text(r, &m->dit, &q[0], ctx[1]);
        denoise(r, m, job, q, x, image);
        if (job->latents) run_download(r, job->latents[image], x);
        arena_release(r->arena, r->end, mark);
        decode(r, m, job, x, image);
    }
}
