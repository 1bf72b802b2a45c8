/* json.h: JSON that nobody vouches for, read through jansson with the limits and messages that klein needs.
 * Every error is KLEIN_E_MODEL_CORRUPT (KLEIN_E_MODEL_MISSING if the file cannot be opened) and names the
 * file and the key. */
#ifndef KLEIN_JSON_H
#define KLEIN_JSON_H

#include "../base/error.h"

#include <jansson.h>
#include <stddef.h>

/* Reads a whole regular file of at most `max` bytes. *out is malloc'ed (one zero byte follows the n bytes);
 * the caller frees it. */
enum klein_status js_file(const char *path, size_t max, char **out, size_t *n, struct klein_error *err);

/* Parses one object; refuses duplicate keys, NUL characters, invalid UTF-8, text after the object and more
 * than `depth` nested braces and brackets. `name` is for messages. The caller json_decref()s *out. */
enum klein_status js_parse(const char *text, size_t n, int depth, const char *name, json_t **out,
                           struct klein_error *err);
enum klein_status js_read(const char *path, size_t max, int depth, json_t **out,
                          struct klein_error *err); /* both at once */

/* Typed access to the keys of one object. Sticky like err itself: after a failure the getters return the
 * fallback, so that a list of them is checked once at its end. A key that is absent or null counts as
 * missing: `fallback` is returned, and json_require makes that an error beforehand. */
struct js_object {
    const char *name; /* of the file */
    const json_t *object;
    struct klein_error *err;
};
void js_require(const struct js_object *o, const char *key);
int js_int(const struct js_object *o, const char *key, int min, int max, int fallback);
double js_real(const struct js_object *o, const char *key, double min, double max,
               double fallback); /* integers too */
int js_bool(const struct js_object *o, const char *key, int fallback);
const char *js_text(const struct js_object *o, const char *key,
                    const char *fallback); /* lives as long as the object */
/* A list of 1..max_n integers into out; returns their number, 0 if missing (or failed). */
int js_ints(const struct js_object *o, const char *key, int min, int max, int *out, int max_n);

#endif
