#include "../host/image.h"
#include "../weights/safetensors.h"
#include "support/alloc.h"
#include "support/support.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct klein_error err;

struct bytes {
    uint8_t *data;
    size_t n;
};

static struct bytes file_bytes(const char *path)
{
    FILE *f = fopen(path, "rb");
    cr_assert(f, "%s", path);
    struct bytes b = {malloc(1 << 20), 0};
    b.n = fread(b.data, 1, 1 << 20, f);
    fclose(f);
    return b;
}

static const char *sample(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", GOLDEN("images"), name);
    return path;
}

static const char *scratch(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

static void put_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(data, 1, n, f) == n && !fclose(f), "%s", path);
}

/* Smooth, with a hard edge. */
static struct klein_image picture(int width, int height)
{
    struct klein_image image = {width, height, malloc(3 * (size_t)width * (size_t)height)};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = image.rgb + 3 * ((size_t)y * width + x);
            p[0] = (uint8_t)(x * 255 / width);
            p[1] = (uint8_t)(y * 255 / height);
            p[2] =
                (x - width / 2) * (x - width / 2) + (y - height / 2) * (y - height / 2) < height * height / 9
                    ? 220
                    : 40;
        }
    return image;
}

static int same_pixels(const struct klein_image *a, const struct klein_image *b)
{
    return a->width == b->width && a->height == b->height &&
           !memcmp(a->rgb, b->rgb, 3 * (size_t)a->width * (size_t)a->height);
}

/* ---- reading ---- */

static void each_sample(void (*use)(const char *path, const struct klein_image *expected))
{
    struct st_file *file;
    OK(st_open(GOLDEN("images.safetensors"), &file, &err));
    cr_assert(st_count(file) == 36, "%d samples", st_count(file));
    for (int i = 0; i < st_count(file); i++) {
        const struct st_tensor *t = st_get(file, i);
        cr_assert(t->dtype == DT_U8 && t->ndim == 3 && t->shape[2] == 3, "%s", t->name);
        use(sample(t->name), &(struct klein_image){(int)t->shape[1], (int)t->shape[0], (uint8_t *)t->data});
    }
    st_close(file);
}

static void reads_as(const char *path, const struct klein_image *expected)
{
    struct klein_image image;
    OK(image_read(path, &image, &err));
    cr_assert(image.width == expected->width && image.height == expected->height, "%s: %dx%d", path,
              image.width, image.height);
    for (int i = 0; i < 3 * image.width * image.height; i++)
        cr_assert(image.rgb[i] == expected->rgb[i], "%s: byte %d is %d, not %d", path, i, image.rgb[i],
                  expected->rgb[i]);
    image_free(&image);
    cr_assert(!image.rgb);
}

/* Every format and pixel type, all eight orientations: what Pillow reads. */
Test(image, reads_what_pillow_reads)
{
    each_sample(reads_as);
}

static int is_extra(const char *path)
{
    return !strstr(path, ".png") && !strstr(path, ".jpg") && !strstr(path, ".webp");
}

static void decodes_the_three(const char *path, const struct klein_image *expected)
{
    struct bytes b = file_bytes(path);
    struct klein_image image;
    if (is_extra(path)) {
        FAILS(image_decode(b.data, b.n, "upload", &image, &err), KLEIN_E_INPUT,
              "upload: not a PNG, JPEG or WebP picture");
        cr_assert(!image.rgb);
    } else {
        OK(image_decode(b.data, b.n, "upload", &image, &err));
        cr_assert(same_pixels(&image, expected), "%s", path);
        image_free(&image);
    }
    free(b.data);
}

Test(image, decodes_only_three_formats_from_elsewhere)
{
    each_sample(decodes_the_three);
}

/* A copy of the file to change in place (truncating and writing again is slow on some file systems). */
static int open_copy(const char *path, const char *copy, struct bytes *b)
{
    *b = file_bytes(path);
    int fd = open(copy, O_CREAT | O_RDWR | O_TRUNC, 0600);
    cr_assert(fd >= 0 && write(fd, b->data, b->n) == (ssize_t)b->n);
    return fd;
}

/* A part of a file is an error with its name and the reason, or already the whole picture. */
static void fails_truncated(const char *path, const struct klein_image *expected)
{
    const char *part = scratch("part");
    struct bytes b;
    int failures = 0, fd = open_copy(path, part, &b);
    for (int sixteenth = 15; sixteenth >= 0; sixteenth--) {
        struct klein_image image;
        cr_assert(!ftruncate(fd, (off_t)(b.n * sixteenth / 16)));
        err = (struct klein_error){0};
        if (image_read(part, &image, &err) == KLEIN_OK) {
            cr_assert(same_pixels(&image, expected), "%s: half a picture from %d/16", path, sixteenth);
            image_free(&image);
            continue;
        }
        failures++;
        cr_assert(!image.rgb && err.status == KLEIN_E_INPUT, "%s %d/16: %s", path, sixteenth, err.message);
        cr_assert(!strncmp(err.message, part, strlen(part)) && strlen(err.message) > strlen(part) + 10, "%s",
                  err.message);
        cr_assert(!strchr(err.message, '\n'), "%s", err.message);
    }
    cr_assert(failures >= (strstr(path, "animated.gif") ? 8 : 15), "%s: %d", path,
              failures); /* of an animation we want only the first frame */
    close(fd);
    free(b.data);
}

Test(image, never_reads_half_a_picture)
{
    each_sample(fails_truncated);
}

static void survives_damage(const char *path, const struct klein_image *expected)
{
    const char *damaged = scratch("damaged");
    struct bytes b;
    int fd = open_copy(path, damaged, &b);
    for (size_t i = 0; i < b.n; i += 5) {
        struct klein_image image;
        uint8_t byte = b.data[i] ^ (uint8_t)(1 + i * 37 % 255);
        cr_assert(pwrite(fd, &byte, 1, (off_t)i) == 1);
        err = (struct klein_error){0};
        if (image_read(damaged, &image, &err) == KLEIN_OK) {
            cr_assert(image.width > 0 && image.height > 0 && image.rgb);
            image_free(&image);
        } else {
            cr_assert(!image.rgb && !strncmp(err.message, damaged, strlen(damaged)), "%s byte %zu: %s", path,
                      i, err.message);
        }
        cr_assert(pwrite(fd, b.data + i, 1, (off_t)i) == 1);
    }
    close(fd);
    free(b.data);
}

/* And nothing is printed: the decoders' warnings end in messages or nowhere. */
Test(image, survives_damage_in_silence)
{
    const char *log = scratch("log");
    int saved = dup(STDERR_FILENO), fd = open(log, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(fd, STDERR_FILENO);
    each_sample(survives_damage);
    dup2(saved, STDERR_FILENO);
    struct stat st;
    cr_assert(!fstat(fd, &st) && st.st_size == 0, "%lld bytes printed", (long long)st.st_size);
    close(fd);
}

static uint32_t big(const uint8_t *p, int bytes)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[i];
    return v;
}

static void put(uint8_t *p, int bytes, int little, uint32_t v)
{
    for (int i = 0; i < bytes; i++) p[little ? i : bytes - 1 - i] = (uint8_t)(v >> 8 * i);
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t crc = ~0u;
    while (n--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* The sample with other sizes in its header must be refused before any pixel is decoded. */
static void refuses_size(const char *name, size_t at, int size_bytes, int little, uint32_t first,
                         uint32_t second)
{
    struct bytes b = file_bytes(sample(name));
    struct klein_image image;
    put(b.data + at, size_bytes, little, first);
    put(b.data + at + size_bytes, size_bytes, little, second);
    if (!strcmp(name, "rgb.png")) put(b.data + 29, 4, 0, crc32_of(b.data + 12, 17));
    put_file(scratch("large"), b.data, b.n);
    FAILS(image_read(scratch("large"), &image, &err), KLEIN_E_INPUT,
          "pixels are too many: at most 16384 a side and 100 megapixels");
    cr_assert(!image.rgb);
    free(b.data);
}

static size_t find(const struct bytes *b, const char *what, size_t n)
{
    uint8_t *at = memmem(b->data, b->n, what, n);
    cr_assert(at);
    return (size_t)(at - b->data);
}

Test(image, limits_sizes_before_decoding)
{
    refuses_size("rgb.png", 16, 4, 0, 16385, 1);
    refuses_size("rgb.png", 16, 4, 0, 1, 0x7fffffff);
    refuses_size("rgb.png", 16, 4, 0, 10001, 10000);
    refuses_size("rgb.bmp", 18, 4, 1, 10001, 10000);
    refuses_size("rgb.tga", 12, 2, 1, 65535, 1);
    refuses_size("palette.gif", 6, 2, 1, 65535, 65535);

    struct bytes jpeg = file_bytes(sample("420.jpg")), lossy = file_bytes(sample("lossy.webp"));
    refuses_size("420.jpg", find(&jpeg, "\xff\xc0\x00\x11\x08", 5) + 5, 2, 0, 65500, 65500);
    refuses_size("lossy.webp", find(&lossy, "\x9d\x01\x2a", 3) + 3, 2, 1, 16383, 16383);
    free(jpeg.data);
    free(lossy.data);
}

Test(image, says_what_is_wrong_with_a_file)
{
    struct klein_image image;
    FAILS(image_read(scratch("nothing"), &image, &err), KLEIN_E_INPUT, "nothing: No such file");
    FAILS(image_read(test_dir(), &image, &err), KLEIN_E_INPUT, "Is a directory");
    put_file(scratch("file"), "", 0);
    FAILS(image_read(scratch("file"), &image, &err), KLEIN_E_INPUT, "file: the file is empty");
    put_file(scratch("file"), "a red balloon on a wooden table", 31);
    FAILS(image_read(scratch("file"), &image, &err), KLEIN_E_INPUT,
          "file: not a picture in a known format (PNG,");
    put_file(scratch("file"),
             "\0\0\0\x18"
             "ftypheic\0\0\0\0",
             16);
    FAILS(image_read(scratch("file"), &image, &err), KLEIN_E_INPUT, "convert it to PNG");
    put_file(scratch("file"), "P5 2 2 65535 abcdefgh", 21);
    FAILS(image_read(scratch("file"), &image, &err), KLEIN_E_INPUT,
          "file: PNM with more than 8 bits is not supported");
    struct bytes b = file_bytes(sample("rgb.png"));
    FAILS(image_decode(b.data, b.n - 40, "ref.png", &image, &err), KLEIN_E_INPUT,
          "ref.png: PNG file is truncated");
    free(b.data);
    b = file_bytes(sample("grey.jpg"));
    FAILS(image_decode(b.data, b.n - 40, "ref.jpg", &image, &err), KLEIN_E_INPUT,
          "ref.jpg: JPEG file is truncated");
    free(b.data);
    b = file_bytes(sample("lossy.webp"));
    FAILS(image_decode(b.data, b.n - 40, "ref.webp", &image, &err), KLEIN_E_INPUT,
          "ref.webp: damaged WebP: file is truncated");
    free(b.data);
}

Test(image, reads_standard_input)
{
    struct klein_image image;
    int fd = open(sample("rgb.png"), O_RDONLY);
    dup2(fd, STDIN_FILENO);
    close(fd);
    OK(image_read("-", &image, &err));
    cr_assert(image.width == 24 && image.height == 16);
    image_free(&image);
    FAILS(image_read("-", &image, &err), KLEIN_E_INPUT, "standard input: the file is empty");
}

/* ---- writing ---- */

static struct bytes encoded(const struct klein_image *image, enum image_format format, int quality,
                            const char *parameters)
{
    struct bytes b;
    OK(image_encode(image, format, quality, parameters, &b.data, &b.n, &err));
    return b;
}

/* Encodes and decodes again; the peak signal-to-noise ratio in dB, INFINITY for equal pixels. */
static double round_trip(int width, int height, enum image_format format, int quality)
{
    struct klein_image image = picture(width, height), back;
    struct bytes b = encoded(&image, format, quality, "a text");
    OK(image_decode(b.data, b.n, "memory", &back, &err));
    cr_assert(back.width == width && back.height == height);
    double sum = 0;
    int n = 3 * width * height;
    for (int i = 0; i < n; i++) sum += (image.rgb[i] - back.rgb[i]) * (image.rgb[i] - back.rgb[i]);
    free(b.data);
    image_free(&back);
    image_free(&image);
    return sum == 0 ? INFINITY : 10 * log10(255. * 255. * n / sum);
}

Test(image, keeps_pixels)
{
    static const int sizes[][2] = {{1, 1}, {1, 9}, {17, 5}, {64, 48}, {257, 130}};
    for (int i = 0; i < 5; i++) {
        int w = sizes[i][0], h = sizes[i][1];
        cr_assert(isinf(round_trip(w, h, IMAGE_PNG, 0)), "PNG %dx%d", w, h);
        cr_assert(isinf(round_trip(w, h, IMAGE_AUTO, 0)), "PNG %dx%d", w, h);
        cr_assert(isinf(round_trip(w, h, IMAGE_WEBP, 100)), "WebP %dx%d", w, h);
    }
    /* 40 dB is a mean error of 2.6 levels: invisible. What a fifth of the quality loses must show in the number. */
    cr_assert(round_trip(257, 130, IMAGE_JPEG, 0) > 40, "%f", round_trip(257, 130, IMAGE_JPEG, 0));
    cr_assert(round_trip(257, 130, IMAGE_JPEG, 20) < 40);
    cr_assert(round_trip(257, 130, IMAGE_WEBP, 0) > 35, "%f", round_trip(257, 130, IMAGE_WEBP, 0));
    cr_assert(round_trip(257, 130, IMAGE_WEBP, 5) < 35);
}

Test(image, refuses_to_encode_nonsense)
{
    struct klein_image image = picture(8, 8), long_image = picture(16384, 1);
    struct bytes b;
    FAILS(image_encode(&image, IMAGE_JPEG, 101, NULL, &b.data, &b.n, &err), KLEIN_E_USAGE, "quality 101");
    FAILS(image_encode(&image, IMAGE_JPEG, -1, NULL, &b.data, &b.n, &err), KLEIN_E_USAGE, "quality -1");
    FAILS(image_encode(&long_image, IMAGE_WEBP, 0, NULL, &b.data, &b.n, &err), KLEIN_E_OUTPUT,
          "16384x1: use PNG");
    image_free(&image);
    image_free(&long_image);
}

/* The data of the PNG chunk of that type, NULL if there is none; the checksums of all chunks are verified. */
static const uint8_t *png_chunk(const struct bytes *b, const char *type, size_t *n)
{
    const uint8_t *found = NULL;
    size_t at = 8;
    while (at < b->n) {
        size_t length = big(b->data + at, 4);
        cr_assert(at + 12 + length <= b->n);
        cr_assert(big(b->data + at + 8 + length, 4) == crc32_of(b->data + at + 4, 4 + length));
        if (!memcmp(b->data + at + 4, type, 4)) {
            found = b->data + at + 8;
            *n = length;
        }
        at += 12 + length;
    }
    cr_assert(at == b->n);
    return found;
}

static void png_text_is(const char *parameters, const char *type, const char *content, size_t content_length)
{
    struct klein_image image = picture(20, 10);
    struct bytes b = encoded(&image, IMAGE_PNG, 0, parameters);
    size_t n;
    const uint8_t *text = png_chunk(&b, type, &n);
    cr_assert(text && n == content_length && !memcmp(text, content, n), "%s", parameters);
    cr_assert(!png_chunk(&b, type[0] == 'i' ? "tEXt" : "iTXt", &n));
    free(b.data);
    image_free(&image);
}

#define PNG_TEXT_IS(parameters, type, content) png_text_is(parameters, type, content, sizeof content - 1)

Test(image, png_carries_parameters)
{
    PNG_TEXT_IS("a fox\nSteps: 4, Seed: 42", "tEXt", "parameters\0a fox\nSteps: 4, Seed: 42");
    PNG_TEXT_IS("caf\xc3\xa9 \xc3\xbf", "tEXt", "parameters\0caf\xe9 \xff");
    PNG_TEXT_IS("\xe7\x8c\xab \xf0\x9f\x90\x88", "iTXt", "parameters\0\0\0\0\0\xe7\x8c\xab \xf0\x9f\x90\x88");
    PNG_TEXT_IS("next\xc2\x85line\x01", "iTXt", "parameters\0\0\0\0\0next\xc2\x85line\x01");
    PNG_TEXT_IS("tab\there", "iTXt", "parameters\0\0\0\0\0tab\there"); /* not allowed in tEXt */

    struct klein_image image = picture(20, 10);
    struct bytes b = encoded(&image, IMAGE_PNG, 0, NULL);
    size_t n;
    cr_assert(!png_chunk(&b, "tEXt", &n) && !png_chunk(&b, "iTXt", &n) && png_chunk(&b, "IDAT", &n));
    free(b.data);
    image_free(&image);
}

/* The UserComment of a big-endian EXIF block: walks IFD 0 to the EXIF IFD to the tag. */
static const uint8_t *user_comment(const uint8_t *tiff, size_t size, size_t *n)
{
    static const uint32_t path[] = {0x8769, 0x9286};
    size_t directory;
    cr_assert(size > 8 && !memcmp(tiff, "MM\0*", 4));
    directory = big(tiff + 4, 4);
    for (int level = 0; level < 2; level++) {
        cr_assert(directory + 2 <= size && big(tiff + directory, 2) == 1, "one entry");
        const uint8_t *entry = tiff + directory + 2;
        cr_assert(directory + 18 <= size && big(entry, 2) == path[level] &&
                  big(entry + 2, 2) == (level ? 7u : 4u));
        cr_assert(big(entry + 12, 4) == 0, "no further directory");
        *n = big(entry + 4, 4);
        directory = big(entry + 8, 4);
    }
    cr_assert(directory + *n == size && *n >= 8 && !memcmp(tiff + directory, "UNICODE", 8));
    *n -= 8;
    return tiff + directory + 8;
}

#define WORDS "caf\xc3\xa9 \xe7\x8c\xab \xf0\x9f\x90\x88\nSeed: 1"
static const uint8_t words_utf16[] = {0, 'c', 0,    'a',  0,    'f',  0, 0xe9, 0, ' ', 0x73, 0x2b,
                                      0, ' ', 0xd8, 0x3d, 0xdc, 0x08, 0, '\n', 0, 'S', 0,    'e',
                                      0, 'e', 0,    'd',  0,    ':',  0, ' ',  0, '1'};

static const uint8_t *jpeg_exif(const struct bytes *b, size_t *n)
{
    for (size_t at = 2; at + 4 <= b->n && b->data[at] == 0xff && b->data[at + 1] != 0xda;
         at += 2 + big(b->data + at + 2, 2))
        if (b->data[at + 1] == 0xe1) {
            cr_assert(!memcmp(b->data + at + 4, "Exif\0", 6));
            *n = big(b->data + at + 2, 2) - 8;
            return b->data + at + 10;
        }
    return NULL;
}

static const uint8_t *webp_exif(const struct bytes *b, size_t *n)
{
    cr_assert(!memcmp(b->data, "RIFF", 4) && !memcmp(b->data + 8, "WEBP", 4));
    for (size_t at = 12; at + 8 <= b->n;) {
        const uint8_t *p = b->data + at;
        *n = p[4] | (size_t)p[5] << 8 | (size_t)p[6] << 16;
        cr_assert(memcmp(p, "VP8X", 4) || p[8] & 8, "the EXIF flag");
        if (!memcmp(p, "EXIF", 4)) return p + 8;
        at += 8 + (*n + 1) / 2 * 2;
    }
    return NULL;
}

Test(image, jpeg_and_webp_carry_parameters)
{
    struct klein_image image = picture(20, 10);
    for (int webp = 0; webp < 2; webp++) {
        struct bytes b = encoded(&image, webp ? IMAGE_WEBP : IMAGE_JPEG, 90, WORDS);
        size_t size, n;
        const uint8_t *exif = webp ? webp_exif(&b, &size) : jpeg_exif(&b, &size), *comment;
        cr_assert(exif);
        comment = user_comment(exif, size, &n);
        cr_assert(n == sizeof words_utf16 && !memcmp(comment, words_utf16, n));
        free(b.data);
        b = encoded(&image, webp ? IMAGE_WEBP : IMAGE_JPEG, 90, NULL);
        cr_assert(!(webp ? webp_exif(&b, &size) : jpeg_exif(&b, &size)));
        free(b.data);
    }
    image_free(&image);
}

/* A JPEG marker holds 64 KB: the text is cut there, between characters, and the picture stays good. */
Test(image, jpeg_cuts_long_parameters)
{
    enum { CATS = 20000 };
    struct klein_image image = picture(20, 10), back;
    char *text = malloc(4 * CATS + 2);
    text[0] = 'x';
    for (int i = 0; i < CATS; i++) memcpy(text + 1 + 4 * i, "\xf0\x9f\x90\x88", 5);
    struct bytes b = encoded(&image, IMAGE_JPEG, 95, text);
    size_t size, n;
    const uint8_t *exif = jpeg_exif(&b, &size), *comment = user_comment(exif, size, &n);
    cr_assert(n == 2 * 32737, "%zu", n); /* x and 16368 pairs */
    cr_assert(big(comment + n - 4, 4) == 0xd83ddc08);
    OK(image_decode(b.data, b.n, "memory", &back, &err));
    image_free(&back);
    free(b.data);
    free(text);
    image_free(&image);
}

static int files_in(const char *folder)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

Test(image, writes_whole_files_or_none)
{
    struct klein_image image = picture(20, 10), back;
    static const char *const names[] = {"a.png", "b.JPG", "c.jpeg", "d.webp"};
    mkdir(scratch("out"), 0700);
    for (int i = 0; i < 4; i++) {
        char path[64];
        snprintf(path, sizeof path, "out/%s", names[i]);
        put_file(scratch(path), "old", 3);
        OK(image_write(scratch(path), &image, IMAGE_AUTO, 0, "text", &err));
        struct bytes b = file_bytes(scratch(path));
        static const char *const starts[] = {"\x89PNG", "\xff\xd8\xff", "\xff\xd8\xff", "RIFF"};
        cr_assert(!memcmp(b.data, starts[i], strlen(starts[i])), "%s", path);
        free(b.data);
        OK(image_read(scratch(path), &back, &err));
        image_free(&back);
    }
    FAILS(image_write(scratch("out/e.gif"), &image, IMAGE_AUTO, 0, NULL, &err), KLEIN_E_USAGE,
          "e.gif: what format?");
    FAILS(image_write(scratch("out/png"), &image, IMAGE_AUTO, 101, NULL, &err), KLEIN_E_USAGE, "quality");
    FAILS(image_write(scratch("out/none/a.png"), &image, IMAGE_AUTO, 0, NULL, &err), KLEIN_E_OUTPUT, "a.png");
    mkdir(scratch("out/dir.png"), 0700);
    FAILS(image_write(scratch("out/dir.png"), &image, IMAGE_AUTO, 0, NULL, &err), KLEIN_E_OUTPUT,
          "dir.png: Is a directory");
    cr_assert(files_in(scratch("out")) == 5, "%d files", files_in(scratch("out"))); /* no temporary ones */

    OK(image_write("/dev/null", &image, IMAGE_PNG, 0, NULL, &err));
    struct stat st;
    cr_assert(!stat("/dev/null", &st) && S_ISCHR(st.st_mode), "still a device");
    FAILS(image_write("/dev/full", &image, IMAGE_PNG, 0, NULL, &err), KLEIN_E_OUTPUT,
          "/dev/full: No space left");
    image_free(&image);
}

Test(image, writes_standard_output)
{
    struct klein_image image = picture(20, 10), back;
    const char *path = scratch("stdout");
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(fd, STDOUT_FILENO);
    close(fd);
    enum klein_status status = image_write("-", &image, IMAGE_AUTO, 0, NULL, &err);
    dup2(saved, STDOUT_FILENO);
    cr_assert(status == KLEIN_OK);
    OK(image_read(path, &back, &err));
    cr_assert(same_pixels(&image, &back));
    image_free(&back);
    image_free(&image);
}

Test(image, knows_formats_by_name)
{
    cr_assert(image_format_of("png") == IMAGE_PNG && image_format_of("x/y.z/a.b.PNG") == IMAGE_PNG);
    cr_assert(image_format_of("jpg") == IMAGE_JPEG && image_format_of("a.jpeg") == IMAGE_JPEG);
    cr_assert(image_format_of("webp") == IMAGE_WEBP && image_format_of("./a.WebP") == IMAGE_WEBP);
    cr_assert(image_format_of("") == IMAGE_AUTO && image_format_of("a.png/b") == IMAGE_AUTO);
    cr_assert(image_format_of("-") == IMAGE_AUTO && image_format_of("a.") == IMAGE_AUTO &&
              image_format_of("apng") == IMAGE_AUTO);
}

/* ---- memory ---- */

Test(image, survives_failing_allocations)
{
    static const char *const names[] = {"exif6.png", "exif6.webp",    "exif6.jpg",
                                        "cmyk.jpg",  "animated.webp", "rle.tga"};
    struct klein_image image;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        EACH_ALLOCATION_FAILS(image_read(sample(names[i]), &image, &err), image_free(&image));
    /* stb_image takes a GIF whose state it cannot allocate for no GIF */
    EACH_ALLOCATION_FAILS_SOMEHOW(image_read(sample("palette.gif"), &image, &err), image_free(&image));
    image = picture(40, 30);
    for (int format = IMAGE_PNG; format <= IMAGE_WEBP; format++) {
        struct bytes b;
        EACH_ALLOCATION_FAILS(image_encode(&image, (enum image_format)format, 0, WORDS, &b.data, &b.n, &err),
                              free(b.data));
    }
    image_free(&image);
}
