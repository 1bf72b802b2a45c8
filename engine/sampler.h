/* sampler.h: the schedule of a rectified flow. source: model 6 */
#ifndef KLEIN_SAMPLER_H
#define KLEIN_SAMPLER_H

/* mu from the number of *target* tokens (references never count) and steps. Discontinuous at 4300 tokens. */
double sampler_mu(int tokens, int steps);

/* sigmas[steps + 1]: e^mu / (e^mu + 1/s_i - 1) with s_i = 1 - i/steps, or s_i = custom[i] if custom is not
 * NULL; the last is 0. */
void sampler_sigmas(float *sigmas, int tokens, int steps, const float *custom);

#endif
