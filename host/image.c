#include "image_codec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX ((size_t)512 << 20) /* bytes: more than any picture within the limits */

enum klein_status image_check_size(const struct image_source *from, int64_t width, int64_t height,
                                   struct klein_error *err)
{
    if (width < 1 || height < 1)
        return fail(err, KLEIN_E_INPUT, "%s: damaged picture: it has no pixels", from->name);
    if (width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE || width * height > IMAGE_MAX_PIXELS)
        return fail(err, KLEIN_E_INPUT,
                    "%s: %lldx%lld pixels are too many: at most %d a side and %d megapixels in all",
                    from->name, (long long)width, (long long)height, IMAGE_MAX_SIDE,
                    IMAGE_MAX_PIXELS / 1000000);
    return KLEIN_OK;
}

enum klein_status image_allocate(const struct image_source *from, int64_t width, int64_t height,
                                 struct klein_image *out, struct klein_error *err)
{
    TRY(image_check_size(from, width, height, err));
    *out = (struct klein_image){(int)width, (int)height, malloc(3 * (size_t)width * (size_t)height)};
    return out->rgb ? KLEIN_OK
                    : fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for %dx%d pixels", from->name, out->width,
                           out->height);
}

void image_free(struct klein_image *image)
{
    free(image->rgb);
    *image = (struct klein_image){0};
}

/* The reader for the content; NULL for formats that are not among the three. */
static image_reader *reader_for(const struct image_source *from)
{
    const uint8_t *b = from->bytes;
    if (from->n >= 8 && !memcmp(b, "\x89PNG\r\n\x1a\n", 8)) return image_png_read;
    if (from->n >= 3 && !memcmp(b, "\xff\xd8\xff", 3)) return image_jpeg_read;
    if (from->n >= 12 && !memcmp(b, "RIFF", 4) && !memcmp(b + 8, "WEBP", 4)) return image_webp_read;
    return NULL;
}

static enum klein_status read_with(image_reader *read, const struct image_source *from,
                                   struct klein_image *out, struct klein_error *err)
{
    int orientation = 1;
    *out = (struct klein_image){0};
    enum klein_status status = read(from, out, &orientation, err);
    if (status == KLEIN_OK) status = exif_turn_upright(out, orientation, err);
    if (status != KLEIN_OK) image_free(out);
    return status;
}

enum klein_status image_decode(const void *bytes, size_t n, const char *name, struct klein_image *out,
                               struct klein_error *err)
{
    const struct image_source from = {bytes, n, name};
    image_reader *read = reader_for(&from);
    *out = (struct klein_image){0};
    if (!read) return fail(err, KLEIN_E_INPUT, "%s: not a PNG, JPEG or WebP picture", name);
    return read_with(read, &from, out, err);
}

static enum klein_status decode_local(const struct image_source *from, struct klein_image *out,
                                      struct klein_error *err)
{
    image_reader *read = reader_for(from);
    if (from->n == 0) return fail(err, KLEIN_E_INPUT, "%s: the file is empty", from->name);
    if (!read && from->n >= 12 && !memcmp(from->bytes + 4, "ftyp", 4))
        return fail(err, KLEIN_E_INPUT,
                    "%s: HEIC and AVIF are not supported: convert it to PNG, JPEG or WebP", from->name);
    return read_with(read ? read : image_stb_read, from, out, err);
}

/* Everything that fd has, malloc'ed. */
static enum klein_status read_all(int fd, const char *name, uint8_t **bytes, size_t *n,
                                  struct klein_error *err)
{
    size_t room = 0;
    *bytes = NULL;
    *n = 0;
    for (;;) {
        if (*n == room) {
            if (room > FILE_MAX) return fail(err, KLEIN_E_INPUT, "%s: too large for a picture", name);
            room = room ? 2 * room : (size_t)1 << 18;
            uint8_t *larger = realloc(*bytes, room);
            if (!larger) return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to read it", name);
            *bytes = larger;
        }
        ssize_t got = read(fd, *bytes + *n, room - *n);
        if (got == 0) return KLEIN_OK;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(err, KLEIN_E_INPUT, "%s: %s", name, strerror(errno));
        *n += (size_t)got;
    }
}

enum klein_status image_read(const char *path, struct klein_image *out, struct klein_error *err)
{
    int standard = !strcmp(path, "-"), fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    struct image_source from = {.name = standard ? "standard input" : path};
    uint8_t *bytes;
    *out = (struct klein_image){0};
    if (fd < 0) return fail(err, KLEIN_E_INPUT, "%s: %s", path, strerror(errno));
    enum klein_status status = read_all(fd, from.name, &bytes, &from.n, err);
    from.bytes = bytes;
    if (status == KLEIN_OK) status = decode_local(&from, out, err);
    free(bytes);
    if (!standard) close(fd);
    return status;
}

enum image_format image_format_of(const char *path_or_name)
{
    static const struct {
        const char *name;
        enum image_format format;
    } formats[] = {{"png", IMAGE_PNG}, {"jpg", IMAGE_JPEG}, {"jpeg", IMAGE_JPEG}, {"webp", IMAGE_WEBP}};
    const char *slash = strrchr(path_or_name, '/'), *name = slash ? slash + 1 : path_or_name,
               *dot = strrchr(name, '.');
    if (dot) name = dot + 1;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcasecmp(name, formats[i].name)) return formats[i].format;
    return IMAGE_AUTO;
}

enum klein_status image_encode(const struct klein_image *image, enum image_format format, int quality,
                               const char *parameters, uint8_t **bytes, size_t *n, struct klein_error *err)
{
    static image_writer *const writers[] = {image_png_write, image_png_write, image_jpeg_write,
                                            image_webp_write};
    *bytes = NULL;
    *n = 0;
    if (quality < 0 || quality > 100) return fail(err, KLEIN_E_USAGE, "quality %d is not in 1..100", quality);
    return writers[format](image, quality ? quality : 95, parameters, bytes, n, err);
}

static enum klein_status write_all(int fd, const char *name, const uint8_t *bytes, size_t n,
                                   struct klein_error *err)
{
    while (n > 0) {
        ssize_t put = write(fd, bytes, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return fail(err, KLEIN_E_OUTPUT, "%s: %s", name, strerror(errno));
        bytes += put;
        n -= (size_t)put;
    }
    return KLEIN_OK;
}

/* Writes to `path` itself, which is made with `flags`; on failure a file made here is removed. Messages are about `name`. */
static enum klein_status write_file(const char *path, const char *name, int flags, const uint8_t *bytes,
                                    size_t n, struct klein_error *err)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0666);
    if (fd < 0) return fail(err, KLEIN_E_OUTPUT, "%s: %s", name, strerror(errno));
    enum klein_status status = write_all(fd, name, bytes, n, err);
    if (close(fd) && status == KLEIN_OK) status = fail(err, KLEIN_E_OUTPUT, "%s: %s", name, strerror(errno));
    if (status != KLEIN_OK && flags & O_EXCL) unlink(path);
    return status;
}

static enum klein_status replace_file(const char *path, const uint8_t *bytes, size_t n,
                                      struct klein_error *err)
{
    char *temporary;
    if (asprintf(&temporary, "%s.%ld.tmp", path, (long)getpid()) < 0)
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory to write it", path);
    unlink(temporary); /* one of this name was left by a killed process */
    enum klein_status status = write_file(temporary, path, O_CREAT | O_EXCL, bytes, n, err);
    if (status == KLEIN_OK && rename(temporary, path)) {
        status = fail(err, KLEIN_E_OUTPUT, "%s: %s", path, strerror(errno));
        unlink(temporary);
    }
    free(temporary);
    return status;
}

enum klein_status image_write(const char *path, const struct klein_image *image, enum image_format format,
                              int quality, const char *parameters, struct klein_error *err)
{
    int standard = !strcmp(path, "-");
    struct stat st;
    uint8_t *bytes;
    size_t n;
    if (format == IMAGE_AUTO) format = standard ? IMAGE_PNG : image_format_of(path);
    if (format == IMAGE_AUTO)
        return fail(err, KLEIN_E_USAGE,
                    "%s: what format? End the name in .png, .jpg or .webp, or name the format", path);
    TRY(image_encode(image, format, quality, parameters, &bytes, &n, err));
    enum klein_status status;
    if (standard)
        status = write_all(STDOUT_FILENO, "standard output", bytes, n, err);
    else if (!stat(path, &st) && !S_ISREG(st.st_mode))
        status = write_file(path, path, 0, bytes, n, err);
    else
        status = replace_file(path, bytes, n, err);
    free(bytes);
    return status;
}
