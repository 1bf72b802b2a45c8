/* EXIF: a TIFF file in miniature. We read one tag of it and write another. */
#include "image_codec.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define EXIF_ORIENTATION  0x0112
#define EXIF_IFD          0x8769
#define EXIF_USER_COMMENT 0x9286
enum { TIFF_SHORT = 3, TIFF_LONG = 4, TIFF_UNDEFINED = 7 };

static uint32_t load(const uint8_t *p, int bytes, int little)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[little ? bytes - 1 - i : i];
    return v;
}

int exif_orientation(const uint8_t *bytes, size_t n)
{
    if (n >= 6 && !memcmp(bytes, "Exif\0", 6)) bytes += 6, n -= 6;
    if (n < 8 || (memcmp(bytes, "II*\0", 4) && memcmp(bytes, "MM\0*", 4))) return 1;
    int little = bytes[0] == 'I';
    size_t directory = load(bytes + 4, 4, little);
    if (directory > n - 2) return 1;
    size_t entries = load(bytes + directory, 2, little);
    const uint8_t *entry = bytes + directory + 2;
    for (size_t i = 0; i < entries && (size_t)(bytes + n - entry) >= 12; i++, entry += 12)
        if (load(entry, 2, little) == EXIF_ORIENTATION && load(entry + 2, 2, little) == TIFF_SHORT) {
            uint32_t value = load(entry + 8, 2, little);
            return value >= 1 && value <= 8 ? (int)value : 1;
        }
    return 1;
}

uint32_t utf8_next(const char **text)
{
    if (!**text) return 0;
    utf8proc_int32_t c;
    utf8proc_ssize_t length = utf8proc_iterate((const utf8proc_uint8_t *)*text, -1, &c);
    *text += length > 0 ? length : 1;
    return length > 0 ? (uint32_t)c : 0xfffd;
}

static uint8_t *store(uint8_t *p, int bytes, uint32_t v)
{
    for (int i = bytes; i--;) *p++ = (uint8_t)(v >> 8 * i);
    return p;
}

static uint8_t *store_entry(uint8_t *p, uint32_t tag, uint32_t type, uint32_t count, uint32_t value)
{
    return store(store(store(store(p, 2, tag), 2, type), 4, count), 4, value);
}

uint8_t *exif_with_comment(const char *utf8, size_t max_units, size_t *n)
{
    enum { HEADER = 8, DIRECTORY = 2 + 12 + 4, COMMENT = HEADER + 2 * DIRECTORY, CODE = 8 };
    size_t units = 0;
    uint32_t c;
    for (const char *t = utf8; (c = utf8_next(&t));) {
        size_t more = c > 0xffff ? 2 : 1;
        if (units + more > max_units) break;
        units += more;
    }
    *n = COMMENT + CODE + 2 * units;
    uint8_t *exif = malloc(*n), *p = exif;
    if (!exif) return NULL;

    memcpy(p, "MM\0*",
           4); /* big-endian throughout, as readers expect the text of a "UNICODE" comment to be */
    p = store(p + 4, 4, HEADER);
    p = store_entry(store(p, 2, 1), EXIF_IFD, TIFF_LONG, 1, HEADER + DIRECTORY);
    p = store(p, 4, 0);
    p = store_entry(store(p, 2, 1), EXIF_USER_COMMENT, TIFF_UNDEFINED, (uint32_t)(CODE + 2 * units), COMMENT);
    p = store(p, 4, 0);
    memcpy(p, "UNICODE", CODE);
    p += CODE;
    while (p < exif + *n) {
        c = utf8_next(&utf8);
        if (c > 0xffff) p = store(p, 2, 0xd800 + ((c - 0x10000) >> 10));
        p = store(p, 2, c > 0xffff ? 0xdc00 + (c & 0x3ff) : c);
    }
    return exif;
}

enum klein_status exif_turn_upright(struct klein_image *image, int orientation, struct klein_error *err)
{
    if (orientation <= 1) return KLEIN_OK;
    int w = image->width, h = image->height, swap = orientation >= 5;
    int mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    int mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    struct klein_image upright = {swap ? h : w, swap ? w : h, malloc(3 * (size_t)w * (size_t)h)};
    if (!upright.rgb) return fail(err, KLEIN_E_NO_MEMORY, "no memory to turn an image of %dx%d", w, h);
    uint8_t *to = upright.rgb;
    for (int y = 0; y < upright.height; y++)
        for (int x = 0; x < upright.width; x++, to += 3) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (mirror_x) from_x = w - 1 - from_x;
            if (mirror_y) from_y = h - 1 - from_y;
            memcpy(to, image->rgb + 3 * ((size_t)from_y * w + from_x), 3);
        }
    free(image->rgb);
    *image = upright;
    return KLEIN_OK;
}
