/* resize.h: fitting reference images as the reference pipelines do.                                  source: model 5.1
 * LANCZOS is Pillow 13's to the bit: antialiased, separable, 8-bit fixed-point passes. Its order of the passes is followed too
 * (rows first when an image loses more than twice as many rows as columns); Pillow 12 and before differ there, by rounding.
 * Images here are RGB already. diffusers resizes first and converts after, which matters only for palette images and those with
 * alpha; BFL converts first, and so do we. */
#ifndef KLEIN_RESIZE_H
#define KLEIN_RESIZE_H

#include "klein.h"

/* Resizes `in` to width x height. out->rgb is malloc'ed. KLEIN_E_NO_MEMORY, KLEIN_E_USAGE for a side below 1. */
enum klein_status resize_lanczos(const struct klein_image *in, int width, int height, struct klein_image *out,
                                 struct klein_error *err);

/* What a reference of that size becomes: area capped at 1024 * 1024 (scaled by the square root, sides truncated), then centre-cropped
 * to multiples of 16. KLEIN_E_INPUT if a side is < 64 or the aspect ratio > 8. Never enlarges. The four outputs are distinct. */
enum klein_status reference_size(int width, int height, int *resized_w, int *resized_h, int *final_w,
                                 int *final_h, struct klein_error *err);

/* The fitted image. out->rgb is malloc'ed. */
enum klein_status reference_fit(const struct klein_image *in, struct klein_image *out,
                                struct klein_error *err);

#endif
