#include "similarity.h"

#include "../base/error.h"

#include <math.h>
#include <stdlib.h>

enum { WINDOW = 11, MOMENTS = 5 }; /* of x, y, x x, y y, x y */

double similarity_psnr(const struct klein_image *a, const struct klein_image *b)
{
    const size_t n = (size_t)a->width * (size_t)a->height * 3;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a->rgb[i] - b->rgb[i];
        sum += d * d;
    }
    return sum > 0 ? 10 * log10(255.0 * 255.0 * (double)n / sum) : INFINITY;
}

static void gaussian(double w[WINDOW])
{
    double sum = 0;
    for (int i = 0; i < WINDOW; i++) sum += w[i] = exp(-(i - 5) * (i - 5) / (2 * 1.5 * 1.5));
    for (int i = 0; i < WINDOW; i++) w[i] /= sum;
}

/* The window's weighted moments down column x, from row y. */
static void column(const struct klein_image *a, const struct klein_image *b, int channel, int x, int y,
                   const double w[WINDOW], double m[MOMENTS])
{
    for (int k = 0; k < MOMENTS; k++) m[k] = 0;
    for (int i = 0; i < WINDOW; i++) {
        const size_t at = ((size_t)(y + i) * (size_t)a->width + (size_t)x) * 3 + (size_t)channel;
        const double p = a->rgb[at], q = b->rgb[at];
        m[0] += w[i] * p;
        m[1] += w[i] * q;
        m[2] += w[i] * p * p;
        m[3] += w[i] * q * q;
        m[4] += w[i] * p * q;
    }
}

static double of_window(const double m[MOMENTS])
{
    const double c1 = 0.01 * 255 * 0.01 * 255, c2 = 0.03 * 255 * 0.03 * 255;
    const double vx = m[2] - m[0] * m[0], vy = m[3] - m[1] * m[1], xy = m[4] - m[0] * m[1];
    return (2 * m[0] * m[1] + c1) * (2 * xy + c2) / ((m[0] * m[0] + m[1] * m[1] + c1) * (vx + vy + c2));
}

enum klein_status similarity_ssim(const struct klein_image *a, const struct klein_image *b, double *out,
                                  struct klein_error *err)
{
    double w[WINDOW], sum = 0;
    const int across = a->width - WINDOW + 1, down = a->height - WINDOW + 1;
    double(*columns)[MOMENTS] = malloc((size_t)a->width * sizeof *columns);
    if (!columns) return fail(err, KLEIN_E_NO_MEMORY, "no memory to compare pictures");
    gaussian(w);
    for (int channel = 0; channel < 3; channel++)
        for (int y = 0; y < down; y++) {
            for (int x = 0; x < a->width; x++) column(a, b, channel, x, y, w, columns[x]);
            for (int x = 0; x < across; x++) {
                double m[MOMENTS] = {0};
                for (int i = 0; i < WINDOW; i++)
                    for (int k = 0; k < MOMENTS; k++) m[k] += w[i] * columns[x + i][k];
                sum += of_window(m);
            }
        }
    free(columns);
    *out = sum / (3.0 * across * down);
    return KLEIN_OK;
}
