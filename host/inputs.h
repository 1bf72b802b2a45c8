/* inputs.h: what a request is made of: the prompt, reference pictures, tensors. Everything is malloc'ed. */
#ifndef KLEIN_INPUTS_H
#define KLEIN_INPUTS_H

#include "image.h"

#include "../base/error.h"

#define INPUTS_PROMPT_MAX (1 << 20) /* bytes */

/* The text of a file ("-": standard input) without its last line end. KLEIN_E_INPUT: unreadable, longer than
 * INPUTS_PROMPT_MAX, or not text. */
enum klein_status inputs_prompt(const char *path, char **out, struct klein_error *err);

/* The tensor `latents` [1, 128, height / 16, width / 16] (or without the 1) of a safetensors file, any float
 * type; *width and *height in pixels. */
enum klein_status inputs_latents(const char *path, float **out, int *width, int *height,
                                 struct klein_error *err);

/* The tensor `prompt_embeds` [1, rows, cols] or [rows, cols]. */
enum klein_status inputs_embeds(const char *path, int rows, int cols, float **out, struct klein_error *err);

/* "1,0.75,0.5": strictly decreasing numbers in (0, 1]; at most KLEIN_MAX_STEPS. KLEIN_E_USAGE. */
enum klein_status inputs_sigmas(const char *text, float **out, int *n, struct klein_error *err);

/* Reads pictures and checks that each can be a reference. images[n] must be zeroed; after a failure those
 * read so far are still to be freed (image_free). */
enum klein_status inputs_references(const char *const *paths, int n, struct klein_image *images,
                                    struct klein_error *err);

#endif
