#include "size.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Two numbers in [1, 1e6] with one of `separators` between them. */
static int parse_pair(const char *text, const char *separators, double *a, double *b)
{
    char *end;
    *a = strtod(text, &end);
    if (end == text || !*end || !strchr(separators, *end)) return 0;
    const char *second = end + 1;
    *b = strtod(second, &end);
    return end != second && !*end && *a > 0 && *b > 0 && *a <= 1e6 && *b <= 1e6;
}

enum klein_status size_parse(const char *text, const char *name, struct size *out, struct klein_error *err)
{
    double w, h;
    /* "0x10" would be a hexadecimal number to strtod; no size starts with 0. */
    if (text[0] == '0' || !parse_pair(text, "xX*", &w, &h) || w != floor(w) || h != floor(h))
        return fail(err, KLEIN_E_USAGE, "%s must be WIDTHxHEIGHT in pixels, such as 1024x768, not \"%s\"",
                    name, text);
    *out = (struct size){(int)w, (int)h};
    return KLEIN_OK;
}

static int nearest(double side)
{
    double rounded = floor(side / SIZE_STEP + 0.5) * SIZE_STEP;
    return rounded < SIZE_STEP ? SIZE_STEP : rounded > SIZE_LARGEST ? SIZE_LARGEST : (int)rounded;
}

enum klein_status size_check(struct size size, struct klein_error *err)
{
    struct size good = {nearest(size.width), nearest(size.height)};
    if (good.width == size.width && good.height == size.height) return KLEIN_OK;
    if (size.width > SIZE_LARGEST || size.height > SIZE_LARGEST)
        return fail(err, KLEIN_E_USAGE,
                    "%dx%d is too large: a side can have %d pixels at most; the nearest size is %dx%d",
                    size.width, size.height, SIZE_LARGEST, good.width, good.height);
    return fail(err, KLEIN_E_USAGE,
                "%dx%d: width and height must be multiples of %d; the nearest size is %dx%d", size.width,
                size.height, SIZE_STEP, good.width, good.height);
}

/* One side given alone, before the other one follows from it. */
static enum klein_status check_side(const char *name, int side, struct klein_error *err)
{
    if (side == nearest(side)) return KLEIN_OK;
    return fail(err, KLEIN_E_USAGE, "%s %d must be a multiple of %d up to %d; the nearest is %d", name, side,
                SIZE_STEP, SIZE_LARGEST, nearest(side));
}

static enum klein_status parse_aspect(const char *text, double *out, struct klein_error *err)
{
    double a, b;
    if (parse_pair(text, ":/", &a, &b) && a / b <= 16 && b / a <= 16) {
        *out = a / b;
        return KLEIN_OK;
    }
    return fail(err, KLEIN_E_USAGE, "--aspect must be two numbers such as 16:9, at most 16:1, not \"%s\"",
                text);
}

enum klein_status size_choose(const char *size, int width, int height, const char *aspect, struct size usual,
                              struct size *out, struct klein_error *err)
{
    double ratio = (double)usual.width / usual.height;
    *out = (struct size){0, 0};
    if (size && (width || height || aspect))
        return fail(err, KLEIN_E_USAGE, "--size says everything; leave out %s",
                    aspect  ? "--aspect"
                    : width ? "-W"
                            : "-H");
    if (width && height && aspect)
        return fail(err, KLEIN_E_USAGE, "-W, -H and --aspect together say too much; leave one out");
    if (size) {
        TRY(size_parse(size, "--size", out, err));
        return size_check(*out, err);
    }
    if (aspect) TRY(parse_aspect(aspect, &ratio, err));
    if (width) TRY(check_side("width", width, err));
    if (height) TRY(check_side("height", height, err));
    if (width && height) {
        *out = (struct size){width, height};
    } else if (width) {
        *out = (struct size){width, nearest(width / ratio)};
    } else if (height) {
        *out = (struct size){nearest(height * ratio), height};
    } else if (aspect) {
        double area = (double)usual.width * usual.height;
        *out = (struct size){nearest(sqrt(area * ratio)), nearest(sqrt(area / ratio))};
    } else {
        return KLEIN_OK;
    }
    return size_check(*out, err);
}
