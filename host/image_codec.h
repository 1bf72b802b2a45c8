/* image_codec.h: between image.c and the codecs. */
#ifndef KLEIN_IMAGE_CODEC_H
#define KLEIN_IMAGE_CODEC_H

#include "../base/error.h"
#include "image.h"

#define IMAGE_MAX_SIDE 16384
#ifndef IMAGE_MAX_PIXELS /* the build for fuzzing has less */
#define IMAGE_MAX_PIXELS 100000000
#endif

/* An encoded picture in memory; name is for messages. */
struct image_source {
    const uint8_t *bytes;
    size_t n;
    const char *name;
};

/* Checks a size read from a header against the limits; and allocates the pixels. */
enum klein_status image_check_size(const struct image_source *from, int64_t width, int64_t height,
                                   struct klein_error *err);
enum klein_status image_allocate(const struct image_source *from, int64_t width, int64_t height,
                                 struct klein_image *out, struct klein_error *err);

/* Readers. On failure out->rgb may be set: the caller frees it. *orientation is 1 on entry, and set to
 * EXIF's 1..8. */
typedef enum klein_status image_reader(const struct image_source *from, struct klein_image *out,
                                       int *orientation, struct klein_error *err);
image_reader image_png_read, image_jpeg_read, image_webp_read, image_stb_read;

/* Writers, into a malloc'ed buffer. quality 1..100. */
typedef enum klein_status image_writer(const struct klein_image *image, int quality, const char *parameters,
                                       uint8_t **bytes, size_t *n, struct klein_error *err);
image_writer image_png_write, image_jpeg_write, image_webp_write;

/* image_exif.c. The orientation of an EXIF block (with or without its "Exif\0\0" prefix): 1..8; 1 if it has
 * none or is damaged. */
int exif_orientation(const uint8_t *bytes, size_t n);
/* A TIFF block whose only content is the EXIF UserComment, malloc'ed; NULL without memory. At most max_units
 * UTF-16 units are kept. */
uint8_t *exif_with_comment(const char *utf8, size_t max_units, size_t *n);
/* Turns and mirrors the image from EXIF orientation to upright. */
enum klein_status exif_turn_upright(struct klein_image *image, int orientation, struct klein_error *err);

/* The next code point of a UTF-8 text, which is advanced; U+FFFD for what is none; 0 at the end. */
uint32_t utf8_next(const char **text);

#endif
