#include "jsonwalk.h"

#include <limits.h>
#include <string.h>
#include <utf8proc.h>

void walk_over(struct walker *w, const char *text, size_t bytes, const char *name)
{
    *w = (struct walker){text, text + bytes, name};
}

static enum klein_status bad(const struct walker *w, const char *what, struct klein_error *err)
{
    int shown = 0;
    if (w->at >= w->end)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: JSON: %s, but the text ends", w->name, what);
    while (shown < 24 && w->at + shown < w->end && (unsigned char)w->at[shown] >= ' ') shown++;
    return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: JSON: %s at \"%.*s\"", w->name, what, shown, w->at);
}

char walk_peek(struct walker *w)
{
    while (w->at < w->end && (*w->at == ' ' || *w->at == '\n' || *w->at == '\r' || *w->at == '\t')) w->at++;
    return w->at < w->end ? *w->at : 0;
}

static enum klein_status expect(struct walker *w, char c, struct klein_error *err)
{
    char what[] = "'?' expected";
    what[1] = c;
    if (walk_peek(w) != c) return bad(w, what, err);
    w->at++;
    return KLEIN_OK;
}

enum klein_status walk_enter(struct walker *w, char bracket, struct klein_error *err)
{
    return expect(w, bracket, err);
}

enum klein_status walk_next(struct walker *w, int elements_before, char closing, int *more,
                            struct klein_error *err)
{
    *more = walk_peek(w) != closing;
    if (!*more)
        w->at++;
    else if (elements_before)
        return expect(w, ',', err);
    return KLEIN_OK;
}

enum klein_status walk_end(struct walker *w, struct klein_error *err)
{
    walk_peek(w);
    return w->at == w->end ? KLEIN_OK : bad(w, "text after the end of the JSON value", err);
}

static int hex4(const struct walker *w, const char *at)
{
    int value = 0;
    if (w->end - at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        const char c = at[i];
        const int digit = c >= '0' && c <= '9'                 ? c - '0'
                          : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                               : -1;
        if (digit < 0) return -1;
        value = 16 * value + digit;
    }
    return value;
}

/* The code point of \uXXXX, or of the surrogate pair \uD8XX\uDCXX; w->at is behind the first u. */
static enum klein_status unicode_escape(struct walker *w, int *cp, struct klein_error *err)
{
    *cp = hex4(w, w->at);
    if (*cp >= 0xd800 && *cp < 0xdc00 && w->end - w->at >= 6 && w->at[4] == '\\' && w->at[5] == 'u') {
        const int low = hex4(w, w->at + 6);
        if (low >= 0xdc00 && low < 0xe000) {
            *cp = 0x10000 + ((*cp - 0xd800) << 10) + (low - 0xdc00);
            w->at += 6;
        }
    }
    if (*cp < 0 || (*cp >= 0xd800 && *cp < 0xe000)) return bad(w, "bad \\u escape", err);
    w->at += 4;
    return KLEIN_OK;
}

enum klein_status walk_string(struct walker *w, char *text, size_t room, size_t *n, struct klein_error *err)
{
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    TRY(expect(w, '"', err));
    for (*n = 0; w->at < w->end;) {
        const char c = *w->at++;
        if (c == '"') {
            text[*n] = 0;
            return KLEIN_OK;
        }
        if (*n + 4 >= room) return bad(w, "string is too long", err);
        if ((unsigned char)c < ' ') return bad(w, "control character in a string", err);
        if (c != '\\') {
            text[(*n)++] = c;
        } else if (w->at < w->end && *w->at == 'u') {
            int cp;
            w->at++;
            TRY(unicode_escape(w, &cp, err));
            *n += (size_t)utf8proc_encode_char(cp, (utf8proc_uint8_t *)text + *n);
        } else {
            const char *escape = w->at < w->end && *w->at ? strchr(escapes, *w->at) : NULL;
            if (!escape) return bad(w, "bad escape in a string", err);
            text[(*n)++] = meanings[escape - escapes];
            w->at++;
        }
    }
    return bad(w, "'\"' expected", err);
}

enum klein_status walk_key(struct walker *w, char *text, size_t room, size_t *n, struct klein_error *err)
{
    TRY(walk_string(w, text, room, n, err));
    return expect(w, ':', err);
}

enum klein_status walk_int(struct walker *w, int *value, struct klein_error *err)
{
    long v = 0;
    const int negative = walk_peek(w) == '-';
    const char *digits = w->at + negative;
    for (w->at = digits; w->at < w->end && *w->at >= '0' && *w->at <= '9' && v <= INT_MAX; w->at++)
        v = 10 * v + (*w->at - '0');
    const int fraction = w->at < w->end && (*w->at == '.' || (*w->at | 32) == 'e');
    if (w->at == digits || v > INT_MAX || fraction) return bad(w, "integer expected", err);
    *value = (int)(negative ? -v : v);
    return KLEIN_OK;
}

/* From behind the opening quote to behind the closing one. */
static const char *skip_string(const char *at, const char *end)
{
    while (at < end && *at != '"') at += *at == '\\' && end - at > 1 ? 2 : 1;
    return at < end ? at + 1 : end;
}

enum klein_status walk_skip(struct walker *w, struct json_slice *value, struct klein_error *err)
{
    int depth = 0;
    walk_peek(w);
    const char *start = w->at, *at = start;
    for (; at < w->end; at++) {
        const char c = *at;
        if (c == '"') {
            at = skip_string(at + 1, w->end) - 1;
        } else if (c == '{' || c == '[') {
            if (++depth > WALK_DEPTH_MAX) break;
        } else if (c == ',' || c == '}' || c == ']') {
            if (!depth) break;
            depth -= c != ',';
        }
    }
    w->at = at;
    if (depth > WALK_DEPTH_MAX) return bad(w, "nested too deeply", err);
    if (at == start || at == w->end) return bad(w, "value expected", err);
    *value = (struct json_slice){start, (size_t)(at - start)};
    return KLEIN_OK;
}
