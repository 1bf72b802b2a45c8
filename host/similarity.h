/* similarity.h: how alike two pictures of one size are. */
#ifndef KLEIN_SIMILARITY_H
#define KLEIN_SIMILARITY_H

#include "image.h"

/* Peak signal-to-noise ratio in dB over all samples; INFINITY for equal pictures. */
double similarity_psnr(const struct klein_image *a, const struct klein_image *b);
/* Structural similarity: Wang et al. 2004, Gaussian windows of 11x11 with sigma 1.5, K 0.01 and 0.03, the mean over the windows that
 * lie within the picture and over R, G, B; 1 for equal pictures. Sides of at least 11. KLEIN_E_NO_MEMORY. */
enum klein_status similarity_ssim(const struct klein_image *a, const struct klein_image *b, double *out,
                                  struct klein_error *err);

#endif
