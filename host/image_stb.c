/* The less common formats of local files, through stb_image. */
#include "image_codec.h"

#include <stdlib.h>
#include <string.h>

#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_PNG
#define STBI_NO_JPEG
#define STBI_NO_PIC
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_STDIO
/* static declarations whose definitions are left out */
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_image.h>

/* stb_image takes the end of the file for zeros without a word, so truncation has to be seen here: bytes
 * asked for that are not there. Its buffer is refilled in fixed portions, of which the last may be short. */
struct reader {
    const struct image_source *from;
    size_t at;
    int overrun;
};

static int reader_read(void *user, char *to, int wanted)
{
    struct reader *r = user;
    size_t left = r->from->n - r->at, n = (size_t)wanted < left ? (size_t)wanted : left;
    int refill = wanted == (int)sizeof((stbi__context *)NULL)->buffer_start;
    if (n < (size_t)wanted && (n == 0 || !refill)) r->overrun = 1;
    memcpy(to, r->from->bytes + r->at, n);
    r->at += n;
    return (int)n;
}

static void reader_skip(void *user, int n)
{
    struct reader *r = user;
    size_t left = r->from->n - r->at;
    if ((size_t)n > left) r->overrun = 1;
    r->at += (size_t)n < left ? (size_t)n : left;
}

static int reader_eof(void *user)
{
    struct reader *r = user;
    return r->at == r->from->n;
}

enum klein_status image_stb_read(const struct image_source *from, struct klein_image *out, int *orientation,
                                 struct klein_error *err)
{
    const stbi_io_callbacks io = {reader_read, reader_skip, reader_eof};
    struct reader reader = {from, 0, 0};
    int width, height, components;
    if (!stbi_info_from_callbacks(&io, &reader, &width, &height, &components))
        return fail(err, KLEIN_E_INPUT,
                    "%s: not a picture in a known format (PNG, JPEG, WebP, BMP, GIF, TGA, PNM, PSD)",
                    from->name);
    TRY(image_check_size(from, width, height, err));
    reader = (struct reader){from, 0, 0};
    /* stb_image swaps their bytes, and reads beyond its own buffer when it makes RGB of 16-bit grey */
    if (from->bytes[0] == 'P' && stbi_is_16_bit_from_callbacks(&io, &reader))
        return fail(err, KLEIN_E_INPUT, "%s: PNM with more than 8 bits is not supported: convert it to PNG",
                    from->name);
    reader = (struct reader){from, 0, 0};
    out->rgb =
        stbi_load_from_callbacks(&io, &reader, &out->width, &out->height, &components, 3); /* by malloc */
    if (out->rgb && !reader.overrun) return KLEIN_OK;
    const char *reason = reader.overrun ? "file is truncated" : stbi_failure_reason();
    if (!reason) reason = "it cannot be decoded";
    if (!strcmp(reason, "outofmem"))
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to decode it", from->name);
    return fail(err, KLEIN_E_INPUT, "%s: damaged picture: %s", from->name, reason);
}
