/* jsonwalk.h: reading JSON that is too big for a document. jansson needs 0.2 s and 60 MB for a tokenizer.json
 * (300 thousand strings); the walker reads the bytes in place, in a tenth of that. It checks what it returns
 * (strings, integers, separators); what it skips it only delimits. */
#ifndef KLEIN_JSONWALK_H
#define KLEIN_JSONWALK_H

#include "../base/error.h"

#include <stddef.h>

#define WALK_DEPTH_MAX 64 /* nesting of what is skipped; real files have 6 */

struct walker {
    const char *at, *end;
    const char *name; /* for messages */
};

struct json_slice { /* one value, still as text; at is NULL when there was none */
    const char *at;
    size_t bytes;
};

void walk_over(struct walker *w, const char *text, size_t bytes, const char *name);

/* Reading an object is:    TRY(walk_enter(&w, '{', err));
 *                          for (int i = 0;; i++) {
 *                              TRY(walk_next(&w, i, '}', &more, err));
 *                              if (!more) break;
 *                              TRY(walk_key(...)); read or skip the value
 *                          }
 * and an array the same with '[', ']' and no key. All return KLEIN_E_MODEL_CORRUPT with the name and what stands there.
 */
enum klein_status walk_enter(struct walker *w, char bracket, struct klein_error *err);
enum klein_status walk_next(struct walker *w, int elements_before, char closing, int *more,
                            struct klein_error *err);
/* The string's bytes, escapes resolved, with a final 0 that *n does not count. A string of `room` bytes or
 * more is an error. */
enum klein_status walk_string(struct walker *w, char *text, size_t room, size_t *n, struct klein_error *err);
enum klein_status walk_key(struct walker *w, char *text, size_t room, size_t *n, struct klein_error *err);
enum klein_status walk_int(struct walker *w, int *value, struct klein_error *err);
enum klein_status walk_skip(struct walker *w, struct json_slice *value, struct klein_error *err);
enum klein_status walk_end(struct walker *w, struct klein_error *err); /* nothing but space is left */
char walk_peek(struct walker *w); /* first byte of the next token; 0 at the end */

#endif
