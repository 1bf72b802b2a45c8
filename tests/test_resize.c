#include "../engine/resize.h"
#include "../weights/safetensors.h"
#include "support/alloc.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

static struct klein_image view(const struct st_tensor *t)
{
    cr_assert(t && t->dtype == DT_U8 && t->ndim == 3 && t->shape[2] == 3);
    return (struct klein_image){(int)t->shape[1], (int)t->shape[0], (uint8_t *)t->data};
}

/* Pillow's results, in every byte: one pass, two, none, both orders, one pixel, large factors. */
Test(resize, lanczos_is_pillows)
{
    struct st_file *file;
    OK(st_open(GOLDEN("lanczos.safetensors"), &file, &err));
    cr_assert(st_count(file) == 2 * 22);
    for (int i = 0; i < st_count(file) / 2; i++) {
        char name[32];
        snprintf(name, sizeof name, "%d.in", i);
        struct klein_image in = view(st_find(file, name)), out;
        snprintf(name, sizeof name, "%d.out", i);
        struct klein_image expected = view(st_find(file, name));
        OK(resize_lanczos(&in, expected.width, expected.height, &out, &err));
        cr_assert(out.width == expected.width && out.height == expected.height);
        for (int k = 0; k < 3 * out.width * out.height; k++)
            cr_assert(out.rgb[k] == expected.rgb[k], "%s (%dx%d to %dx%d): byte %d is %d, not %d", name,
                      in.width, in.height, out.width, out.height, k, out.rgb[k], expected.rgb[k]);
        free(out.rgb);
    }
    st_close(file);
}

/* Rows of width, height, size after the cap, final size; zeros where diffusers refuses. */
Test(resize, reference_sizes_are_diffusers)
{
    struct st_file *file;
    OK(st_open(GOLDEN("references.safetensors"), &file, &err));
    const struct st_tensor *t = st_find(file, "sizes");
    cr_assert(t && t->dtype == DT_I32 && t->ndim == 2 && t->shape[0] == 130 && t->shape[1] == 6);
    int refused = 0;
    for (int i = 0; i < t->shape[0]; i++) {
        const int32_t *row = (const int32_t *)t->data + 6 * i;
        int w, h, final_w, final_h;
        err = (struct klein_error){0};
        enum klein_status status = reference_size(row[0], row[1], &w, &h, &final_w, &final_h, &err);
        if (row[2] == 0) {
            cr_assert(status == KLEIN_E_INPUT, "%dx%d is accepted", row[0], row[1]);
            refused++;
            continue;
        }
        cr_assert(status == KLEIN_OK, "%dx%d: %s", row[0], row[1], err.message);
        cr_assert(w == row[2] && h == row[3] && final_w == row[4] && final_h == row[5], "%dx%d: %dx%d, %dx%d",
                  row[0], row[1], w, h, final_w, final_h);
    }
    cr_assert(refused >= 5 && refused < 65, "%d", refused);
    st_close(file);
}

/* The picture that tools/golden/images.py makes of the same size: byte i is a hash of i. */
static struct klein_image picture(int width, int height)
{
    size_t n = 3 * (size_t)width * (size_t)height;
    struct klein_image image = {width, height, malloc(n)};
    for (size_t i = 0; i < n; i++) {
        uint32_t h = (uint32_t)i * 2654435761u;
        h = (h ^ h >> 15) * 2246822519u;
        image.rgb[i] = (uint8_t)(h >> 24);
    }
    return image;
}

Test(resize, fitted_references_are_diffusers)
{
    struct st_file *file;
    OK(st_open(GOLDEN("references.safetensors"), &file, &err));
    const struct st_tensor *t = st_find(file, "hashes");
    cr_assert(t && t->dtype == DT_I64 && t->ndim == 2 && t->shape[0] == 10 && t->shape[1] == 3);
    for (int i = 0; i < t->shape[0]; i++) {
        int64_t row[3];
        memcpy(row, (const char *)t->data + i * sizeof row, sizeof row);
        struct klein_image in = picture((int)row[0], (int)row[1]), out;
        OK(reference_fit(&in, &out, &err));
        cr_assert(fnv1a(out.rgb, 3 * (size_t)out.width * (size_t)out.height) == (uint64_t)row[2], "%dx%d",
                  in.width, in.height);
        free(out.rgb);
        free(in.rgb);
    }
    st_close(file);
}

Test(resize, refuses_what_makes_no_sense)
{
    struct klein_image in = picture(100, 50), out;
    FAILS(resize_lanczos(&in, 0, 10, &out, &err), KLEIN_E_USAGE, "0x10");
    FAILS(reference_fit(&in, &out, &err), KLEIN_E_INPUT, "100x50 is too small");
    cr_assert(!out.rgb);
    free(in.rgb);
    in = picture(64, 520);
    FAILS(reference_fit(&in, &out, &err), KLEIN_E_INPUT, "64x520 is too narrow");
    free(in.rgb);
}

Test(resize, survives_failing_allocations)
{
    struct klein_image in = picture(1100, 1000), out;
    EACH_ALLOCATION_FAILS(reference_fit(&in, &out, &err), free(out.rgb));
    free(in.rgb);
}
