#include "tokenizer.h"

#include "tokenizer_load.h"
#include "unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define TEXT_MAX (1 << 20) /* bytes; far beyond any prompt, and 60 MB of buffers at most */

enum klein_status tokenizer_open(const char *dir, struct tokenizer **out, struct klein_error *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return fail(err, KLEIN_E_NO_MEMORY, "%s: out of memory", dir);
    const enum klein_status status = tokenizer_load_dir(t, dir, err);
    if (status)
        tokenizer_close(t);
    else
        *out = t;
    return status;
}

enum klein_status tokenizer_from_json(const char *json, size_t bytes, const char *name,
                                      struct tokenizer **out, struct klein_error *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return fail(err, KLEIN_E_NO_MEMORY, "%s: out of memory", name);
    const enum klein_status status = tokenizer_load_json(t, json, bytes, name, err);
    if (status)
        tokenizer_close(t);
    else
        *out = t;
    return status;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    bpe_free(&t->bpe);
    free(t->added);
    free(t);
}

int tokenizer_vocab(const struct tokenizer *t)
{
    return t->bpe.vocab;
}

const char *tokenizer_token(const struct tokenizer *t, int id, size_t *bytes)
{
    *bytes = 0;
    if (id < 0 || id >= t->bpe.vocab || !t->bpe.tokens[id].n) return NULL;
    *bytes = t->bpe.tokens[id].n;
    return t->bpe.pool + t->bpe.tokens[id].at;
}

/* --- the pre-tokeniser: the regex of tokenizer_load.c by hand --- */

/* (?i:'s|'t|'re|'ve|'m|'ll|'d), i.e. the code points in it: 0, 2 or 3. U+017F (long s) folds to s; nothing
 * else is odd. */
static size_t contraction(const int32_t *cps, size_t n)
{
    if (n < 2 || cps[0] != '\'') return 0;
    const int32_t a = cps[1] | 32, b = n > 2 ? cps[2] | 32 : 0;
    if (a == 's' || cps[1] == 0x17f || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* End of the piece that begins at i < n. Alternatives in the order of the regex; each character is of exactly
 * one class. */
static size_t piece_end(const int32_t *cps, const unsigned char *classes, size_t i, size_t n)
{
    const size_t short_form = contraction(cps + i, n - i);
    if (short_form) return i + short_form;

    /* [^\r\n\p{L}\p{N}]?\p{L}+ */
    size_t end = i + (classes[i] == CHAR_SPACE || classes[i] == CHAR_OTHER);
    if (end < n && classes[end] == CHAR_LETTER) {
        while (end < n && classes[end] == CHAR_LETTER) end++;
        return end;
    }
    /* \p{N} */
    if (classes[i] == CHAR_NUMBER) return i + 1;

    /*  ?[^\s\p{L}\p{N}]+[\r\n]* */
    end = i + (cps[i] == ' ');
    if (end < n && classes[end] == CHAR_OTHER) {
        while (end < n && classes[end] == CHAR_OTHER) end++;
        while (end < n && classes[end] == CHAR_NEWLINE) end++;
        return end;
    }
    /* \s*[\r\n]+: up to the last newline of the white space */
    size_t after_newline = 0;
    for (end = i; end < n && (classes[end] == CHAR_SPACE || classes[end] == CHAR_NEWLINE); end++)
        if (classes[end] == CHAR_NEWLINE) after_newline = end + 1;
    if (after_newline) return after_newline;

    /* \s+(?!\S)|\s+: the last space before a word belongs to the word's piece, if it is not alone */
    return end < n && end - i > 1 ? end - 1 : end;
}

/* --- encoding --- */

/* The buffers of one call, each large enough for the whole text. */
struct encoder {
    const struct tokenizer *t;
    int32_t *cps, *spare;   /* code points of one segment, normalised */
    unsigned char *classes; /* of each */
    char *piece;            /* one piece as UTF-8 */
    struct bpe_scratch scratch;
    int32_t *ids; /* the result */
    size_t n, room;
};

static enum klein_status no_memory(size_t bytes, struct klein_error *err)
{
    return fail(err, KLEIN_E_NO_MEMORY, "tokenizer: out of memory for a text of %zu bytes", bytes);
}

static enum klein_status reserve(struct encoder *e, size_t more, struct klein_error *err)
{
    if (e->n + more <= e->room) return KLEIN_OK;
    const size_t room = 2 * (e->n + more) + 64;
    int32_t *ids = realloc(e->ids, room * sizeof *ids);
    if (!ids) return no_memory(more, err);
    e->ids = ids;
    e->room = room;
    return KLEIN_OK;
}

/* A stretch of text without added tokens. */
static enum klein_status encode_segment(struct encoder *e, const char *text, size_t bytes,
                                        struct klein_error *err)
{
    const size_t n = unicode_decode(text, bytes, e->t->nfc, e->cps, e->spare);
    for (size_t i = 0; i < n; i++) e->classes[i] = (unsigned char)unicode_class(e->cps[i]);
    for (size_t i = 0, end; i < n; i = end) {
        size_t piece = 0, count;
        end = piece_end(e->cps, e->classes, i, n);
        for (size_t j = i; j < end; j++)
            piece += (size_t)utf8proc_encode_char(e->cps[j], (utf8proc_uint8_t *)e->piece + piece);
        TRY(reserve(e, piece, err));
        TRY(bpe_encode(&e->t->bpe, &e->scratch, e->piece, piece, e->ids + e->n, &count, err));
        e->n += count;
    }
    return KLEIN_OK;
}

/* The longest added token at the beginning of text, or -1. */
static int32_t added_at(const struct tokenizer *t, const char *text, size_t bytes, size_t *length)
{
    if (!t->starts[(unsigned char)text[0]]) return -1;
    for (int i = 0; i < t->n_added; i++) {
        const char *token = tokenizer_token(t, t->added[i], length);
        if (*length <= bytes && memcmp(token, text, *length) == 0) return t->added[i];
    }
    return -1;
}

static enum klein_status encode(struct encoder *e, const char *text, size_t bytes, struct klein_error *err)
{
    size_t begin = 0; /* of the text not encoded yet */
    for (size_t i = 0, length; i < bytes; i += length) {
        const int32_t id = added_at(e->t, text + i, bytes - i, &length);
        if (id < 0) {
            length = 1;
            continue;
        }
        TRY(encode_segment(e, text + begin, i - begin, err));
        TRY(reserve(e, 1, err));
        e->ids[e->n++] = id;
        begin = i + length;
    }
    return encode_segment(e, text + begin, bytes - begin, err);
}

static enum klein_status check_text(const char *text, size_t bytes, size_t *chars, struct klein_error *err)
{
    if (bytes > TEXT_MAX)
        return fail(err, KLEIN_E_USAGE, "text of %zu bytes: at most %d are possible; shorten it", bytes,
                    TEXT_MAX);
    const size_t valid = unicode_valid(text, bytes, chars);
    if (valid < bytes)
        return fail(err, KLEIN_E_USAGE, "text is not UTF-8: byte %zu is 0x%02x", valid,
                    (unsigned char)text[valid]);
    return KLEIN_OK;
}

enum klein_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, int32_t **ids,
                                   int *n, struct klein_error *err)
{
    size_t chars;
    *ids = NULL;
    *n = 0;
    TRY(check_text(text, bytes, &chars, err));

    const size_t most = chars * UNICODE_NFC_ROOM + 1;
    struct encoder e = {.t = t,
                        .cps = malloc(most * sizeof *e.cps),
                        .spare = malloc(most * sizeof *e.spare),
                        .classes = malloc(most),
                        .piece = malloc(most * 4)};
    enum klein_status status =
        e.cps && e.spare && e.classes && e.piece ? reserve(&e, 1, err) : no_memory(bytes, err);
    if (!status) status = encode(&e, text, bytes, err);
    free(e.cps);
    free(e.spare);
    free(e.classes);
    free(e.piece);
    bpe_scratch_free(&e.scratch);
    if (status) {
        free(e.ids);
        return status;
    }
    *ids = e.ids;
    *n = (int)e.n;
    return KLEIN_OK;
}

enum klein_status tokenizer_prompt(const struct tokenizer *t, const char *prompt, int length, int32_t *ids,
                                   int *real, int *whole, struct klein_error *err)
{
    static const char head[] = "<|im_start|>user\n";
    static const char tail[] = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    const size_t n = strlen(prompt);
    size_t chars;
    TRY(check_text(prompt, n, &chars, err)); /* here, so that a message counts from the prompt's beginning */
    char *text = malloc(n + sizeof head + sizeof tail);
    int32_t *all;
    if (!text) return no_memory(n, err);
    memcpy(text, head, sizeof head - 1);
    memcpy(text + sizeof head - 1, prompt, n);
    memcpy(text + sizeof head - 1 + n, tail, sizeof tail);
    const enum klein_status status =
        tokenizer_encode(t, text, n + sizeof head + sizeof tail - 2, &all, whole, err);
    free(text);
    TRY(status);
    *real = *whole < length ? *whole : length;
    for (int i = 0; i < length; i++) ids[i] = i < *real ? all[i] : t->pad;
    free(all);
    return KLEIN_OK;
}
