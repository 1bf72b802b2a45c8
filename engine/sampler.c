#include "sampler.h"

#include <math.h>

double sampler_mu(int tokens, int steps)
{
    /* Two lines fitted by the model's authors, for 10 and 200 steps; between them linear in the steps. */
    double mu_10 = 8.73809524e-05 * tokens + 1.89833333, mu_200 = 0.00016927 * tokens + 0.45666666;
    if (tokens > 4300) return mu_200;
    double slope = (mu_200 - mu_10) / 190;
    return slope * steps + mu_200 - 200 * slope;
}

void sampler_sigmas(float *sigmas, int tokens, int steps, const float *custom)
{
    double e = exp(sampler_mu(tokens, steps));
    for (int i = 0; i < steps; i++) {
        double s = custom ? custom[i] : 1 - (double)i / steps;
        sigmas[i] = (float)(e / (e + 1 / s - 1));
    }
    sigmas[steps] = 0;
}
