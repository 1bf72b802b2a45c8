/* pipeline.h: one request as the sequence of its stages, on whatever device the run has. On the null device
 * the same call measures the arena and counts the work. */
#ifndef KLEIN_PIPELINE_H
#define KLEIN_PIPELINE_H

#include "klein.h"
#include "model.h"
#include "stage.h"

/* A request with every default resolved. Pointers are host memory of the caller. On a device that does not
 * compute only sizes are read, and all data pointers may be NULL. */
struct job {
    int width, height; /* multiples of 16 */
    int steps, images;
    const float *sigmas; /* [steps + 1] */
    float guidance;
    int guided; /* classifier-free guidance: two forward passes per step */

    /* Text: token ids, [0] the prompt, [1] the empty prompt if guided; or prompt_embeds [text_length,
     * text_width] in place of [0]. */
    const int32_t *ids[2]; /* text_length each */
    int real[2];           /* tokens before the padding */
    const float *prompt_embeds;

    const struct klein_image *references; /* fitted: sides are multiples of 16 */
    int n_references;

    const float *const *start; /* per image: [tokens, channels] noise */
    float **latents;           /* per image: receives the final [tokens, channels] */
    uint8_t **rgb;             /* per image: receives [height, width, 3] */
    void *ctx; /* receives [text_length, text_width] of the prompt, activations; NULL: not wanted */
    int warm; /* it is about what the device keeps, not about the picture: of the steps only as many as that needs */

    /* Called as the request proceeds: `finished` = 0 when a stage begins, 1 when it ended, in denoising after every step, and after every
     * reference (step -1: there was none). NULL allowed. */
    void (*event)(void *user, enum klein_stage stage, int image, int step, int finished);
    void *event_user;
};

/* What a device keeps between jobs of the same shape over the same arena memory (struct shape, cache.h): the stages that it
 * captured. Zero at first. */
struct stages {
    struct stage text, references, prepare, step, decode;
    struct stage request; /* all of them as one, if `whole` */
    int whole;
    int constants; /* the tables at the arena's low end are filled */
};

/* Runs the job; look at r->err afterwards. Uses r->arena from empty. stages NULL: nothing is kept. */
void pipeline_run(struct run *r, const struct model *m, const struct job *job, struct stages *stages);
void stages_free(struct device *dev, struct stages *s);
/* Which stages have run, and which of these are graphs, as a number: equal for those whose next run is of the same kinds. */
int stages_captured(const struct stages *s);

/* Tokens of the picture and channels per token. */
int job_tokens(const struct job *job);

#endif
