/* parameters.h: how a picture was made, as text inside the picture: the "parameters" convention of
 * AUTOMATIC1111's web UI, which many viewers and web UIs read: the prompt, then one line "Steps: 4, Sampler:
 * Euler, ...". */
#ifndef KLEIN_PARAMETERS_H
#define KLEIN_PARAMETERS_H

#include "../engine/klein.h"

struct parameters {
    const char *prompt;
    int steps, width, height, references;
    float guidance;
    uint64_t seed, latent_hash;
    const char *model, *noise, *dtype, *precision, *device;
};

/* malloc'ed; NULL when out of memory. */
char *parameters_text(const struct parameters *p);

#endif
