#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum klein_status js_file(const char *path, size_t max, char **out, size_t *n, struct klein_error *err)
{
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not hang us */
    if (fd < 0) return fail(err, KLEIN_E_MODEL_MISSING, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: not a regular file", path);
    }
    if ((uint64_t)st.st_size > max) {
        close(fd);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %lld bytes, at most %zu are expected", path,
                    (long long)st.st_size, max);
    }
    size_t size = (size_t)st.st_size, have = 0;
    char *text = malloc(size + 1);
    if (!text) {
        close(fd);
        return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for %zu bytes", path, size);
    }
    while (have < size) {
        ssize_t got = read(fd, text + have, size - have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        have += (size_t)got;
    }
    close(fd);
    if (have < size) {
        free(text);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: cannot be read beyond byte %zu of %zu", path, have,
                    size);
    }
    text[size] = 0;
    *out = text;
    *n = size;
    return KLEIN_OK;
}

/* jansson recurses once per level; this bounds it before it starts. */
static int deeper_than(const char *text, size_t n, int depth)
{
    int level = 0, in_string = 0;
    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            if (text[i] == '\\')
                i++;
            else if (text[i] == '"')
                in_string = 0;
        } else if (text[i] == '"') {
            in_string = 1;
        } else if (text[i] == '{' || text[i] == '[') {
            if (++level > depth) return 1;
        } else if (text[i] == '}' || text[i] == ']') {
            level--;
        }
    }
    return 0;
}

enum klein_status js_parse(const char *text, size_t n, int depth, const char *name, json_t **out,
                           struct klein_error *err)
{
    *out = NULL;
    if (deeper_than(text, n, depth))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: JSON nested deeper than %d levels", name, depth);
    json_error_t e = {0};
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!root) {
        enum json_error_code code = json_error_code(&e);
        if (code == json_error_unknown ||
            code == json_error_out_of_memory) /* unknown: jansson's own malloc failed */
            return fail(err, KLEIN_E_NO_MEMORY, "%s: no memory for its JSON", name);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: not valid JSON: line %d: %.120s", name, e.line, e.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: not a JSON object", name);
    }
    *out = root;
    return KLEIN_OK;
}

enum klein_status js_read(const char *path, size_t max, int depth, json_t **out, struct klein_error *err)
{
    char *text;
    size_t n;
    *out = NULL;
    TRY(js_file(path, max, &text, &n, err));
    enum klein_status status = js_parse(text, n, depth, path, out, err);
    free(text);
    return status;
}

/* The value of a key; NULL if it is absent, null, or something failed before. */
static const json_t *value_of(const struct js_object *o, const char *key)
{
    if (o->err->status) return NULL;
    const json_t *v = json_object_get(o->object, key);
    return v && !json_is_null(v) ? v : NULL;
}

void js_require(const struct js_object *o, const char *key)
{
    if (!o->err->status && !value_of(o, key))
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" is missing", o->name, key);
}

static int int_of(const struct js_object *o, const char *key, const json_t *v, int min, int max, int fallback)
{
    json_int_t i = json_integer_value(v);
    if (json_is_integer(v) && i >= min && i <= max) return (int)i;
    fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" must be an integer from %d to %d", o->name, key, min,
         max);
    return fallback;
}

int js_int(const struct js_object *o, const char *key, int min, int max, int fallback)
{
    const json_t *v = value_of(o, key);
    return v ? int_of(o, key, v, min, max, fallback) : fallback;
}

double js_real(const struct js_object *o, const char *key, double min, double max, double fallback)
{
    const json_t *v = value_of(o, key);
    if (!v) return fallback;
    double d = json_number_value(v);
    if (json_is_number(v) && d >= min && d <= max) return d;
    fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" must be a number from %g to %g", o->name, key, min, max);
    return fallback;
}

int js_bool(const struct js_object *o, const char *key, int fallback)
{
    const json_t *v = value_of(o, key);
    if (!v) return fallback;
    if (json_is_boolean(v)) return json_is_true(v);
    fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" must be true or false", o->name, key);
    return fallback;
}

const char *js_text(const struct js_object *o, const char *key, const char *fallback)
{
    const json_t *v = value_of(o, key);
    if (!v) return fallback;
    if (json_is_string(v)) return json_string_value(v);
    fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" must be a string", o->name, key);
    return fallback;
}

int js_ints(const struct js_object *o, const char *key, int min, int max, int *out, int max_n)
{
    const json_t *v = value_of(o, key);
    if (!v) return 0;
    size_t n = json_array_size(v); /* 0 if it is no array */
    if (n < 1 || n > (size_t)max_n) {
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" must be a list of 1 to %d integers", o->name, key,
             max_n);
        return 0;
    }
    for (size_t i = 0; i < n; i++) out[i] = int_of(o, key, json_array_get(v, i), min, max, min);
    return o->err->status ? 0 : (int)n;
}
