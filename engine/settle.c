#include "context.h"
#include "resize.h"
#include "sampler.h"

#include <math.h>
#include <stdlib.h>

#define MAX_SIDE 4096 /* pixels; 65536 tokens at the most, which the attention of the VAE can still do */

static enum klein_status settle_size(const struct model_config *config, const struct klein_request *q,
                                     struct settled *s, struct klein_error *err)
{
    s->width = q->width;
    s->height = q->height;
    if (!s->width != !s->height)
        return fail(err, KLEIN_E_USAGE, "size %dx%d: give both width and height, or neither", q->width,
                    q->height);
    if (!s->width) {
        s->width = s->n_references ? s->references[0].width : config->default_width;
        s->height = s->n_references ? s->references[0].height : config->default_height;
    }
    const int sides[2] = {s->width, s->height};
    const char *const names[2] = {"width", "height"};
    for (int i = 0; i < 2; i++) {
        int side = sides[i], nearest = (side + VAE_SCALE / 2) / VAE_SCALE * VAE_SCALE;
        if (side < VAE_SCALE || side > MAX_SIDE)
            return fail(err, KLEIN_E_USAGE, "%s %d: must be from %d to %d", names[i], side, VAE_SCALE,
                        MAX_SIDE);
        if (side % VAE_SCALE)
            return fail(err, KLEIN_E_USAGE, "%s %d: must be a multiple of %d; the nearest is %d", names[i],
                        side, VAE_SCALE, nearest);
    }
    return KLEIN_OK;
}

static enum klein_status settle_references(const struct klein_request *q, struct settled *s,
                                           struct klein_error *err)
{
    if (q->n_references < 0 || q->n_references > KLEIN_MAX_REFERENCES)
        return fail(err, KLEIN_E_USAGE, "%d reference images: at most %d", q->n_references,
                    KLEIN_MAX_REFERENCES);
    if (!q->n_references) return KLEIN_OK;
    s->references = calloc((size_t)q->n_references, sizeof *s->references);
    if (!s->references) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %d references", q->n_references);
    s->n_references = q->n_references;
    for (int k = 0; k < q->n_references; k++) {
        int w, h;
        struct klein_error e = {0};
        if (reference_size(q->references[k].width, q->references[k].height, &w, &h, &s->references[k].width,
                           &s->references[k].height, &e))
            return fail(err, e.status, "reference %d: %s", k + 1, e.message);
    }
    return KLEIN_OK;
}

static enum klein_status settle_schedule(const struct model_config *config, const struct klein_request *q,
                                         struct settled *s, struct klein_error *err)
{
    s->steps = q->steps ? q->steps : config->default_steps;
    if (s->steps < 1 || s->steps > KLEIN_MAX_STEPS)
        return fail(err, KLEIN_E_USAGE, "%d steps: must be from 1 to %d", s->steps, KLEIN_MAX_STEPS);
    for (int i = 0; q->sigmas && i < s->steps; i++) {
        float before = i ? q->sigmas[i - 1] : INFINITY, sigma = q->sigmas[i];
        if (!(sigma > 0 && sigma <= 1 && sigma < before))
            return fail(err, KLEIN_E_USAGE, "sigma %d is %g: sigmas fall strictly from at most 1 to above 0",
                        i + 1, (double)sigma);
    }
    s->sigmas = malloc((size_t)(s->steps + 1) * sizeof *s->sigmas);
    if (!s->sigmas) return fail(err, KLEIN_E_NO_MEMORY, "no memory for %d steps", s->steps);
    sampler_sigmas(s->sigmas, (s->width / VAE_SCALE) * (s->height / VAE_SCALE), s->steps, q->sigmas);
    return KLEIN_OK;
}

static enum klein_status settle_rest(const struct model_config *config, const struct klein_request *q,
                                     struct settled *s, struct klein_error *err)
{
    s->images = q->images ? q->images : 1;
    if (s->images < 1 || s->images > KLEIN_MAX_IMAGES)
        return fail(err, KLEIN_E_USAGE, "%d images: must be from 1 to %d", s->images, KLEIN_MAX_IMAGES);
    if (!(q->guidance >= 0 && q->guidance <= 100))
        return fail(err, KLEIN_E_USAGE, "guidance %g: must be from 0 to 100", (double)q->guidance);
    s->guidance = config->distilled || !q->guidance ? config->default_guidance : q->guidance;
    s->guided = !config->distilled && s->guidance > 1;
    if (q->prompt_embeds && q->embed_rows != config->text_length)
        return fail(err, KLEIN_E_USAGE, "prompt embeddings have %d rows: this model needs %d", q->embed_rows,
                    config->text_length);
    s->prompt_embeds = q->prompt_embeds;
    TRY(settle_references(q, s, err));
    TRY(settle_size(config, q, s, err));
    return settle_schedule(config, q, s, err);
}

enum klein_status settle(const struct model_config *config, const struct klein_request *request,
                         struct settled *out, struct klein_error *err)
{
    *out = (struct settled){0};
    enum klein_status status = settle_rest(config, request, out, err);
    if (status != KLEIN_OK) settled_free(out);
    return status;
}

void settled_free(struct settled *s)
{
    for (int k = 0; k < s->n_references; k++) free(s->references[k].rgb);
    free(s->references);
    free(s->sigmas);
    *s = (struct settled){0};
}

struct job settled_job(const struct settled *s)
{
    return (struct job){.width = s->width,
                        .height = s->height,
                        .steps = s->steps,
                        .images = s->images,
                        .sigmas = s->sigmas,
                        .guidance = s->guidance,
                        .guided = s->guided,
                        .prompt_embeds = s->prompt_embeds,
                        .references = s->references,
                        .n_references = s->n_references};
}
