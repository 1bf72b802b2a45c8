#include "inputs.h"
#include "size.h"

#include "../engine/resize.h"
#include "../weights/safetensors.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LATENT_CHANNELS = 128 }; /* of packed latents, in all FLUX.2 models */

/* The file's bytes and a zero byte, or NULL with errno. Reads at most limit + 1. */
static char *read_all(FILE *in, size_t limit, size_t *bytes)
{
    char *text = malloc(limit + 2);
    if (!text) return NULL;
    *bytes = fread(text, 1, limit + 1, in);
    if (ferror(in)) {
        int saved = errno;
        free(text);
        errno = saved;
        return NULL;
    }
    text[*bytes] = 0;
    return text;
}

enum klein_status inputs_prompt(const char *path, char **out, struct klein_error *err)
{
    int from_stdin = !strcmp(path, "-");
    const char *name = from_stdin ? "standard input" : path;
    FILE *in = from_stdin ? stdin : fopen(path, "rb");
    size_t n = 0;
    char *text = in ? read_all(in, INPUTS_PROMPT_MAX, &n) : NULL;
    if (!text) fail(err, KLEIN_E_INPUT, "%s: cannot read the prompt: %s", name, strerror(errno));
    if (in && !from_stdin) fclose(in);
    if (!text) return err->status;
    if (n > INPUTS_PROMPT_MAX)
        fail(err, KLEIN_E_INPUT, "%s: a prompt of more than %d bytes; is this the right file?", name,
             INPUTS_PROMPT_MAX);
    else if (memchr(text, 0, n))
        fail(err, KLEIN_E_INPUT, "%s: not a text file (it has zero bytes)", name);
    if (err->status) {
        free(text);
        return err->status;
    }
    if (n && text[n - 1] == '\n') text[--n] = 0;
    if (n && text[n - 1] == '\r') text[--n] = 0;
    *out = text;
    return KLEIN_OK;
}

static void shape_text(char *out, size_t size, const struct st_tensor *t)
{
    size_t used = (size_t)snprintf(out, size, "%s [", dtype_name(t->dtype));
    for (int i = 0; i < t->ndim && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    if (used < size) snprintf(out + used, size - used, "]");
}

static int is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_BF16 || t == DT_F16;
}

/* Checks that the tensor's last `ndim` sizes are `shape` (0: any), with nothing but a 1 before them, and
 * copies it as f32. */
static enum klein_status copy_tensor(const struct st_file *file, const char *path, const char *name, int ndim,
                                     int64_t *shape, const char *expected, float **out,
                                     struct klein_error *err)
{
    char found[128];
    const struct st_tensor *t = st_find(file, name);
    if (!t)
        return fail(err, KLEIN_E_INPUT, "%s: has no tensor \"%s\"%s%s%s", path, name,
                    st_count(file) ? ", but \"" : "", st_count(file) ? st_get(file, 0)->name : "",
                    st_count(file) ? "\"" : "");
    shape_text(found, sizeof found, t);
    int fits = is_float(t->dtype) && (t->ndim == ndim || (t->ndim == ndim + 1 && t->shape[0] == 1));
    for (int i = 0; fits && i < ndim; i++) {
        int64_t size = t->shape[t->ndim - ndim + i];
        fits = size > 0 && (!shape[i] || shape[i] == size);
        shape[i] = size;
    }
    if (!fits)
        return fail(err, KLEIN_E_INPUT, "%s: \"%s\" is %s; it must be F32 (or BF16, F16) %s", path, name,
                    found, expected);
    size_t n = t->bytes / dtype_size(t->dtype);
    float *values = malloc(n * sizeof *values);
    if (!values) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for \"%s\", %s", path, name, found);
    for (size_t i = 0; i < n; i++) {
        values[i] = f32_load(t->data, t->dtype, i);
        if (isfinite(values[i])) continue;
        free(values);
        return fail(err, KLEIN_E_INPUT, "%s: \"%s\" has a NaN or an infinity at element %zu", path, name, i);
    }
    *out = values;
    return KLEIN_OK;
}

static enum klein_status read_tensor(const char *path, const char *name, int ndim, int64_t *shape,
                                     const char *expected, float **out, struct klein_error *err)
{
    struct klein_error cause = {0};
    struct st_file *file;
    /* Whatever is wrong with this file, it is an input, no model. */
    if (st_open(path, &file, &cause)) return fail(err, KLEIN_E_INPUT, "%s", cause.message);
    enum klein_status status = copy_tensor(file, path, name, ndim, shape, expected, out, err);
    st_close(file);
    return status;
}

enum klein_status inputs_latents(const char *path, float **out, int *width, int *height,
                                 struct klein_error *err)
{
    int64_t shape[3] = {LATENT_CHANNELS, 0, 0};
    TRY(read_tensor(path, "latents", 3, shape, "[1, 128, height/16, width/16]", out, err));
    if (shape[1] <= SIZE_LARGEST / SIZE_STEP && shape[2] <= SIZE_LARGEST / SIZE_STEP) {
        *height = (int)shape[1] * SIZE_STEP;
        *width = (int)shape[2] * SIZE_STEP;
        return KLEIN_OK;
    }
    free(*out);
    *out = NULL;
    return fail(err, KLEIN_E_INPUT, "%s: latents for a picture of more than %d pixels per side", path,
                SIZE_LARGEST);
}

enum klein_status inputs_embeds(const char *path, int rows, int cols, float **out, struct klein_error *err)
{
    char expected[64];
    int64_t shape[2] = {rows, cols};
    snprintf(expected, sizeof expected, "[1, %d, %d] for this model", rows, cols);
    return read_tensor(path, "prompt_embeds", 2, shape, expected, out, err);
}

enum klein_status inputs_sigmas(const char *text, float **out, int *n, struct klein_error *err)
{
    float *sigmas = malloc(KLEIN_MAX_STEPS * sizeof *sigmas);
    if (!sigmas) return fail(err, KLEIN_E_NO_MEMORY, "no memory for --sigmas");
    double before = 1;
    int count = 0;
    for (const char *p = text;; p++) {
        char *end;
        double value = strtod(p, &end);
        /* the first may be 1; every other one is less than the one before it */
        int falling = count == 0 ? value <= before : value < before;
        if (end == p || (*end && *end != ',') || !(value > 0) || !falling || count == KLEIN_MAX_STEPS) {
            free(sigmas);
            return fail(
                err, KLEIN_E_USAGE,
                "--sigmas must be falling numbers from 1 to above 0, such as 1,0.75,0.5,0.25, not \"%s\"",
                text);
        }
        sigmas[count++] = (float)value;
        before = value;
        p = end;
        if (!*p) break;
    }
    *out = sigmas;
    *n = count;
    return KLEIN_OK;
}

enum klein_status inputs_references(const char *const *paths, int n, struct klein_image *images,
                                    struct klein_error *err)
{
    int scaled[2], fitted[2];
    for (int i = 0; i < n; i++) {
        struct klein_error cause = {0};
        TRY(image_read(paths[i], &images[i], err));
        if (reference_size(images[i].width, images[i].height, &scaled[0], &scaled[1], &fitted[0], &fitted[1],
                           &cause))
            return fail(err, cause.status, "%s: %s", paths[i], cause.message);
    }
    return KLEIN_OK;
}
