/* image.h: pictures in and out of files. Images are RGB8, struct klein_image of klein.h, pixels malloc'ed (image_free). */
#ifndef KLEIN_IMAGE_H
#define KLEIN_IMAGE_H

#include "../engine/klein.h"

enum image_format { IMAGE_AUTO, IMAGE_PNG, IMAGE_JPEG, IMAGE_WEBP };

/* Reads PNG, JPEG (EXIF orientation applied), WebP by content; other local formats through stb_image. Alpha is dropped, as
 * BFL and PIL's convert("RGB") do; palette, grey and 16-bit images are expanded.
 * "-" reads stdin. Sides up to 16384, at most 100 megapixels, checked before decoding. KLEIN_E_INPUT with path and reason. */
enum klein_status image_read(const char *path, struct klein_image *out, struct klein_error *err);
enum klein_status image_decode(const void *bytes, size_t n, const char *name, struct klein_image *out, struct klein_error *err);

/* From a file extension, or a name ("png", "jpg", "jpeg", "webp"); IMAGE_AUTO if unknown. */
enum image_format image_format_of(const char *path_or_name);

/* Encodes into a malloc'ed buffer. `parameters`: text metadata (PNG tEXt/iTXt "parameters", JPEG and WebP EXIF UserComment), NULL: none. */
enum klein_status image_encode(const struct klein_image *image, enum image_format format, int quality, const char *parameters,
                               uint8_t **bytes, size_t *n, struct klein_error *err);
/* Encodes and writes to a temporary file beside `path`, then renames. "-": stdout. */
enum klein_status image_write(const char *path, const struct klein_image *image, enum image_format format, int quality,
                              const char *parameters, struct klein_error *err);
void image_free(struct klein_image *image);

#endif
