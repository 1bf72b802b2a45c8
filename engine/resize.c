#include "resize.h"

#include "../base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights are integers scaled by 2^22: a sum of bytes times weights then fits 32 bits with room for the
 * filter's overshoot. This and the rounding at each place below are Pillow's, so that results are too.
 * source: Pillow, Resample.c */
#define WEIGHT_BITS     22
#define LANCZOS_SUPPORT 3.0

/* One axis of a separable filter: output i is the sum over k < taps[i] of weight[i * stride + k] *
 * input[first[i] + k]. */
struct filter {
    int n, stride;
    int *first, *taps;
    int32_t *weight;
};

static double sinc(double x)
{
    if (x == 0) return 1;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x)
{
    return x >= -LANCZOS_SUPPORT && x < LANCZOS_SUPPORT ? sinc(x) * sinc(x / LANCZOS_SUPPORT) : 0;
}

static int32_t fixed_point(double w)
{
    w *= 1 << WEIGHT_BITS;
    return (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
}

static void filter_free(struct filter *f)
{
    free(f->first);
    free(f->taps);
    free(f->weight);
}

/* From `in` samples to `out`. When shrinking, the filter is stretched over all samples that an output covers
 * (antialiasing). */
static enum klein_status filter_make(struct filter *f, int in, int out, struct klein_error *err)
{
    double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, support = LANCZOS_SUPPORT * stretch;
    int stride = (int)ceil(support) * 2 + 1;
    *f = (struct filter){.n = out, .stride = stride};
    f->first = malloc((size_t)out * sizeof *f->first);
    f->taps = malloc((size_t)out * sizeof *f->taps);
    f->weight = malloc((size_t)out * (size_t)stride * sizeof *f->weight);
    double *exact = malloc((size_t)stride * sizeof *exact);
    if (!f->first || !f->taps || !f->weight || !exact) {
        free(exact);
        filter_free(f);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for resizing from %d to %d pixels", in, out);
    }
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, inverse = 1 / stretch, sum = 0;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > in) last = in;
        for (int k = 0; k < last - first; k++)
            sum += exact[k] = lanczos((k + first - center + 0.5) * inverse);
        f->first[i] = first;
        f->taps[i] = last - first;
        for (int k = 0; k < last - first; k++)
            f->weight[(size_t)i * stride + k] = fixed_point(sum != 0 ? exact[k] / sum : exact[k]);
    }
    free(exact);
    return KLEIN_OK;
}

static uint8_t byte_of(int32_t sum)
{
    int32_t v = (sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS;
    return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v;
}

/* in: rows of `in_width` pixels, out: rows of f->n pixels. */
static void resize_rows(const struct filter *f, const uint8_t *in, int in_width, uint8_t *out, int height)
{
    for (int y = 0; y < height; y++, in += 3 * (size_t)in_width, out += 3 * (size_t)f->n)
        for (int x = 0; x < f->n; x++) {
            const int32_t *w = f->weight + (size_t)x * f->stride;
            const uint8_t *p = in + 3 * (size_t)f->first[x];
            int32_t r = 0, g = 0, b = 0;
            for (int k = 0; k < f->taps[x]; k++, p += 3) {
                r += p[0] * w[k];
                g += p[1] * w[k];
                b += p[2] * w[k];
            }
            out[3 * x] = byte_of(r);
            out[3 * x + 1] = byte_of(g);
            out[3 * x + 2] = byte_of(b);
        }
}

/* Columns: the same over rows of `bytes` bytes; `sums` has room for one row. */
static void resize_columns(const struct filter *f, const uint8_t *in, uint8_t *out, size_t bytes,
                           int32_t *sums)
{
    for (int y = 0; y < f->n; y++, out += bytes) {
        memset(sums, 0, bytes * sizeof *sums);
        for (int k = 0; k < f->taps[y]; k++) {
            int32_t w = f->weight[(size_t)y * f->stride + k];
            const uint8_t *row = in + (size_t)(f->first[y] + k) * bytes;
            for (size_t x = 0; x < bytes; x++) sums[x] += row[x] * w;
        }
        for (size_t x = 0; x < bytes; x++) out[x] = byte_of(sums[x]);
    }
}

static enum klein_status image_new(struct klein_image *out, int width, int height, struct klein_error *err)
{
    *out = (struct klein_image){width, height, malloc(3 * (size_t)width * (size_t)height)};
    return out->rgb ? KLEIN_OK
                    : fail(err, KLEIN_E_NO_MEMORY, "no memory for an image of %dx%d", width, height);
}

static enum klein_status resize_width(const struct klein_image *in, int width, struct klein_image *out,
                                      struct klein_error *err)
{
    struct filter f;
    TRY(filter_make(&f, in->width, width, err));
    enum klein_status status = image_new(out, width, in->height, err);
    if (status == KLEIN_OK) resize_rows(&f, in->rgb, in->width, out->rgb, in->height);
    filter_free(&f);
    return status;
}

static enum klein_status resize_height(const struct klein_image *in, int height, struct klein_image *out,
                                       struct klein_error *err)
{
    struct filter f;
    size_t bytes = 3 * (size_t)in->width;
    TRY(filter_make(&f, in->height, height, err));
    int32_t *sums = malloc(bytes * sizeof *sums);
    enum klein_status status =
        sums ? image_new(out, in->width, height, err)
             : fail(err, KLEIN_E_NO_MEMORY, "no memory for resizing to %d rows", height);
    if (status == KLEIN_OK) resize_columns(&f, in->rgb, out->rgb, bytes, sums);
    free(sums);
    filter_free(&f);
    return status;
}

/* Pixels [left, left + width) x [top, top + height) of `in`. */
static enum klein_status image_crop(const struct klein_image *in, int left, int top, int width, int height,
                                    struct klein_image *out, struct klein_error *err)
{
    TRY(image_new(out, width, height, err));
    for (int y = 0; y < height; y++)
        memcpy(out->rgb + 3 * (size_t)y * width, in->rgb + 3 * ((size_t)(top + y) * in->width + left),
               3 * (size_t)width);
    return KLEIN_OK;
}

enum klein_status resize_lanczos(const struct klein_image *in, int width, int height, struct klein_image *out,
                                 struct klein_error *err)
{
    *out = (struct klein_image){0};
    if (width < 1 || height < 1)
        return fail(err, KLEIN_E_USAGE, "cannot resize to %dx%d pixels", width, height);
    /* Pillow 13's rule; up to Pillow 12 the width always came first. An axis that keeps its size passes
     * unchanged: its weights are exactly 0 and 1. */
    int lost_rows = in->height - height, lost_columns = in->width - width;
    int height_first = lost_rows > 0 && lost_rows > 2 * lost_columns;
    struct klein_image half;
    TRY(height_first ? resize_height(in, height, &half, err) : resize_width(in, width, &half, err));
    enum klein_status status =
        height_first ? resize_width(&half, width, out, err) : resize_height(&half, height, out, err);
    free(half.rgb);
    return status;
}

enum klein_status reference_size(int width, int height, int *resized_w, int *resized_h, int *final_w,
                                 int *final_h, struct klein_error *err)
{
    const double area = 1024 * 1024;
    if (width < 64 || height < 64)
        return fail(err, KLEIN_E_INPUT,
                    "a reference of %dx%d is too small: both sides must have at least 64 pixels", width,
                    height);
    if (width > 8L * height || height > 8L * width)
        return fail(err, KLEIN_E_INPUT, "a reference of %dx%d is too narrow: at most 8 times as long as wide",
                    width, height);
    double pixels = (double)width * height, scale = pixels > area ? sqrt(area / pixels) : 1;
    *resized_w = (int)(width * scale);
    *resized_h = (int)(height * scale);
    *final_w = *resized_w / 16 * 16;
    *final_h = *resized_h / 16 * 16;
    return KLEIN_OK;
}

enum klein_status reference_fit(const struct klein_image *in, struct klein_image *out,
                                struct klein_error *err)
{
    int w, h, final_w, final_h;
    *out = (struct klein_image){0};
    TRY(reference_size(in->width, in->height, &w, &h, &final_w, &final_h, err));
    struct klein_image resized = *in;
    if (w != in->width || h != in->height) TRY(resize_lanczos(in, w, h, &resized, err));
    enum klein_status status =
        image_crop(&resized, (w - final_w) / 2, (h - final_h) / 2, final_w, final_h, out, err);
    if (resized.rgb != in->rgb) free(resized.rgb);
    return status;
}
