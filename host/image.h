/* image.h: pictures in and out of files. Images are RGB8, struct klein_image of klein.h, pixels malloc'ed
 * (image_free).
 *
 * Reading follows what diffusers' load_image makes of a file with Pillow: the EXIF orientation is applied,
 * alpha is dropped (not blended), palette, grey and CMYK become RGB, of 16-bit samples the upper byte is
 * taken, of an animation the first frame. Colour profiles are ignored. The format is judged by content. Sides
 * up to 16384 and 100 megapixels in all, checked before decoding; a damaged or truncated file is an error,
 * never half a picture. */
#ifndef KLEIN_IMAGE_H
#define KLEIN_IMAGE_H

#include "../engine/klein.h"

enum image_format { IMAGE_AUTO, IMAGE_PNG, IMAGE_JPEG, IMAGE_WEBP };

/* Reads a local file: PNG, JPEG, WebP, and BMP, GIF, TGA, PNM, PSD through stb_image. "-" reads stdin.
 * KLEIN_E_INPUT with path and reason, KLEIN_E_NO_MEMORY. */
enum klein_status image_read(const char *path, struct klein_image *out, struct klein_error *err);
/* Decodes what may come from anywhere: PNG, JPEG, WebP only. `name` is for messages. */
enum klein_status image_decode(const void *bytes, size_t n, const char *name, struct klein_image *out,
                               struct klein_error *err);

/* From a file extension, or a name ("png", "jpg", "jpeg", "webp"); IMAGE_AUTO if unknown. */
enum image_format image_format_of(const char *path_or_name);

/* Encodes into a malloc'ed buffer. quality: 1..100 for JPEG and WebP (WebP: 100 is lossless), 0: 95; PNG
 * ignores it. `parameters`: UTF-8 text that describes how the picture was made, where A1111 puts it (PNG text
 * "parameters", JPEG and WebP EXIF UserComment; JPEG holds 32737 UTF-16 units, the rest is cut off); NULL:
 * none. IMAGE_AUTO is PNG. KLEIN_E_OUTPUT, KLEIN_E_NO_MEMORY. */
enum klein_status image_encode(const struct klein_image *image, enum image_format format, int quality,
                               const char *parameters, uint8_t **bytes, size_t *n, struct klein_error *err);
/* Encodes and writes to a temporary file beside `path`, then renames it. IMAGE_AUTO: by the extension. "-":
 * stdout (IMAGE_AUTO: PNG). Something that is no regular file (/dev/null, a pipe) is written to directly. */
enum klein_status image_write(const char *path, const struct klein_image *image, enum image_format format,
                              int quality, const char *parameters, struct klein_error *err);
void image_free(struct klein_image *image);

#endif
