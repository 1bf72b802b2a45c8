#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ".png" in the last part of the path; its end if there is none. */
static const char *extension(const char *path)
{
    const char *base = base_name(path), *dot = strrchr(base, '.');
    return dot && dot > base ? dot : path + strlen(path);
}

/* "%d" or "%03d" in the last part of the path: where it is, how long, how many digits at least. NULL if there
 * is none. */
static const char *number_pattern(const char *path, int *length, int *digits)
{
    for (const char *p = strchr(base_name(path), '%'); p; p = strchr(p + 1, '%')) {
        int padded = p[1] == '0' && p[2] >= '1' && p[2] <= '9';
        *length = padded ? 4 : 2;
        *digits = padded ? p[2] - '0' : 1;
        if (p[*length - 1] == 'd') return p;
    }
    return NULL;
}

static enum klein_status too_long(const char *path, struct klein_error *err)
{
    return fail(err, KLEIN_E_OUTPUT, "%.60s...: the path is too long", path);
}

/* A device or pipe, which is written to as it is; other files are replaced by one made beside them. */
static int is_special(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

/* Permissions do not tell all: of /proc, or of a disk that cannot be written to. */
static enum klein_status try_beside(const char *path, const char *folder, struct klein_error *err)
{
    char file[4096 + 16];
    snprintf(file, sizeof file, "%s.XXXXXX", path);
    int fd = mkstemp(file);
    if (fd < 0) return fail(err, KLEIN_E_OUTPUT, "%s: cannot write in %s: %s", path, folder, strerror(errno));
    close(fd);
    unlink(file);
    return KLEIN_OK;
}

enum klein_status output_check_file(const char *path, struct klein_error *err)
{
    char folder[4096];
    int n = (int)(base_name(path) - path);
    if (n >= (int)sizeof folder || strlen(path) >= sizeof folder - 16) return too_long(path, err);
    snprintf(folder, sizeof folder, "%.*s", n, path);
    if (!*path) return fail(err, KLEIN_E_USAGE, "an output needs a file name, not an empty text");
    if (is_folder(path)) return fail(err, KLEIN_E_OUTPUT, "\"%s\" is a folder, not a file name", path);
    if (!n) snprintf(folder, sizeof folder, ".");
    if (access(folder, F_OK) && errno == ENOENT)
        return fail(err, KLEIN_E_OUTPUT, "%s: the folder %s does not exist; make it first (mkdir -p)", path,
                    folder);
    if (!is_folder(folder)) return fail(err, KLEIN_E_OUTPUT, "%s: %s is not a folder", path, folder);
    if (access(folder, W_OK | X_OK))
        return fail(err, KLEIN_E_OUTPUT, "%s: cannot write in %s: %s", path, folder, strerror(errno));
    if (!access(path, F_OK) && access(path, W_OK))
        return fail(err, KLEIN_E_OUTPUT, "%s: %s", path, strerror(errno));
    return is_special(path) ? KLEIN_OK : try_beside(path, folder, err);
}

static enum klein_status check_format(struct output *o, struct klein_error *err)
{
    if (o->format != IMAGE_AUTO) return KLEIN_OK;
    const char *dot = o->path && strcmp(o->path, "-") && !is_folder(o->path) ? extension(o->path) : "";
    o->format = *dot ? image_format_of(o->path) : IMAGE_PNG;
    if (o->format == IMAGE_AUTO)
        return fail(err, KLEIN_E_USAGE,
                    "%s: cannot write \"%s\"; use .png, .jpg or .webp, or say --format png", o->path, dot);
    return KLEIN_OK;
}

enum klein_status output_check(struct output *o, struct klein_error *err)
{
    TRY(check_format(o, err));
    if (o->path && !strcmp(o->path, "-")) {
        if (o->images > 1)
            return fail(err, KLEIN_E_USAGE, "-o - takes one picture, not %d; use -n 1 or -o FILE", o->images);
        if (isatty(STDOUT_FILENO))
            return fail(err, KLEIN_E_USAGE,
                        "-o - would write picture data to the terminal; redirect it (-o - > cat.png), or "
                        "look at it with --show");
        return KLEIN_OK;
    }
    char path[4096];
    TRY(output_path(o, 0, 0, path, sizeof path, err));
    return output_check_file(path, err);
}

/* folder/klein-SEED.png, or with -1, -2, ... */
static enum klein_status own_name(const struct output *o, uint64_t seed, char *path, size_t size,
                                  struct klein_error *err)
{
    static const char *const extensions[] = {
        [IMAGE_PNG] = "png", [IMAGE_JPEG] = "jpg", [IMAGE_WEBP] = "webp"};
    const char *folder = o->path ? o->path : "",
               *slash = *folder && folder[strlen(folder) - 1] != '/' ? "/" : "";
    for (int i = 0; i < 100000; i++) {
        char number[16] = "";
        if (i) snprintf(number, sizeof number, "-%d", i);
        int n = snprintf(path, size, "%s%sklein-%" PRIu64 "%s.%s", folder, slash, seed, number,
                         extensions[o->format]);
        if (n >= (int)size) return too_long(folder, err);
        if (access(path, F_OK)) return KLEIN_OK;
    }
    return fail(err, KLEIN_E_OUTPUT, "%s: all names are taken; give one with -o", path);
}

enum klein_status output_path(const struct output *o, int image, uint64_t seed, char *path, size_t size,
                              struct klein_error *err)
{
    if (!o->path || is_folder(o->path)) return own_name(o, seed, path, size, err);
    int length, digits, n;
    const char *pattern = number_pattern(o->path, &length, &digits);
    if (pattern) {
        n = snprintf(path, size, "%.*s%0*d%s", (int)(pattern - o->path), o->path, digits, image + 1,
                     pattern + length);
    } else if (o->images > 1) {
        const char *dot = extension(o->path);
        n = snprintf(path, size, "%.*s-%d%s", (int)(dot - o->path), o->path, image + 1, dot);
    } else {
        n = snprintf(path, size, "%s", o->path);
    }
    return n < (int)size ? KLEIN_OK : too_long(o->path, err);
}
