#include "tokenizer_load.h"

#include "json.h"
#include "jsonwalk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX  (128 << 20) /* bytes; Qwen3's tokenizer.json has 11 MB */
#define DEPTH_MAX 32          /* of the JSON without vocabulary and merges; real files have 5 */
#define ADDED_MAX 4096

/* The pre-tokeniser that tokenizer.c implements by hand. */
static const char qwen_regex[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* Qwen3's added tokens, from id 151643 on: used with a vocab.json that has exactly the ids below. */
#define QWEN_VOCAB 151643
static const char *const qwen_added[] = {
    "<|endoftext|>",  "<|im_start|>",   "<|im_end|>",      "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>",  "<|box_end|>",    "<|quad_start|>",  "<|quad_end|>",         "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",   "<|video_pad|>",        "<tool_call>",
    "</tool_call>",   "<|fim_prefix|>", "<|fim_middle|>",  "<|fim_suffix|>",       "<|fim_pad|>",
    "<|repo_name|>",  "<|file_sep|>",   "<tool_response>", "</tool_response>",     "<think>",
    "</think>",
};

/* --- vocabulary and merges, the big parts --- */

static enum klein_status read_vocab(struct tokenizer *t, const char *text, size_t bytes, const char *name,
                                    struct klein_error *err)
{
    struct walker w;
    char token[BPE_TOKEN_MAX + 8];
    walk_over(&w, text, bytes, name);
    TRY(walk_enter(&w, '{', err));
    for (int i = 0, more;; i++) {
        size_t n;
        int id;
        TRY(walk_next(&w, i, '}', &more, err));
        if (!more) return walk_end(&w, err);
        TRY(walk_key(&w, token, sizeof token, &n, err));
        TRY(walk_int(&w, &id, err));
        TRY(bpe_token(&t->bpe, name, token, n, id, err));
    }
}

/* "left right" */
static enum klein_status read_merge(struct bpe *b, const char *line, size_t n, const char *name,
                                    struct klein_error *err)
{
    const char *space = memchr(line, ' ', n);
    const size_t left = space ? (size_t)(space - line) : 0;
    if (!left)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: merge %d is not two tokens: \"%.*s\"", name, b->merges,
                    (int)(n < 64 ? n : 64), line);
    return bpe_merge(b, name, line, left, space + 1, n - left - 1, err);
}

/* ["left right", ...] or [["left", "right"], ...] */
static enum klein_status read_merges(struct tokenizer *t, const char *text, size_t bytes, const char *name,
                                     struct klein_error *err)
{
    struct walker w;
    char left[2 * BPE_TOKEN_MAX], right[BPE_TOKEN_MAX + 8];
    walk_over(&w, text, bytes, name);
    TRY(walk_enter(&w, '[', err));
    for (int i = 0, more;; i++) {
        size_t left_n, right_n;
        TRY(walk_next(&w, i, ']', &more, err));
        if (!more) return walk_end(&w, err);
        if (walk_peek(&w) == '"') {
            TRY(walk_string(&w, left, sizeof left, &left_n, err));
            TRY(read_merge(&t->bpe, left, left_n, name, err));
            continue;
        }
        TRY(walk_enter(&w, '[', err));
        TRY(walk_string(&w, left, sizeof left, &left_n, err));
        TRY(walk_next(&w, 1, ']', &more, err));
        TRY(walk_string(&w, right, sizeof right, &right_n, err));
        TRY(walk_next(&w, 2, ']', &more, err));
        if (more) return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: merge %d is not two tokens", name, i);
        TRY(bpe_merge(&t->bpe, name, left, left_n, right, right_n, err));
    }
}

static enum klein_status read_merges_txt(struct tokenizer *t, const char *text, size_t bytes,
                                         const char *name, struct klein_error *err)
{
    for (const char *at = text, *end = text + bytes; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((newline ? newline : end) - at);
        if (n && at[n - 1] == '\r') n--;
        if (n && !(n >= 8 && memcmp(at, "#version", 8) == 0)) TRY(read_merge(&t->bpe, at, n, name, err));
        at = newline ? newline + 1 : end;
    }
    return KLEIN_OK;
}

/* --- added tokens --- */

static enum klein_status add(struct tokenizer *t, const char *name, const char *text, int id,
                             struct klein_error *err)
{
    if (t->n_added == ADDED_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: more than %d added tokens", name, ADDED_MAX);
    TRY(bpe_literal(&t->bpe, name, text, strlen(text), id, err));
    t->added[t->n_added++] = id;
    t->starts[(unsigned char)text[0]] = 1;
    return KLEIN_OK;
}

/* {"content": ..., and flags that change where it matches}. */
static enum klein_status add_described(struct tokenizer *t, const char *name, const json_t *token, int id,
                                       struct klein_error *err)
{
    const struct js_object o = {name, token, err};
    static const char *const flags[] = {"single_word", "lstrip", "rstrip", "normalized"};
    js_require(&o, "content");
    const char *text = js_text(&o, "content", "");
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (js_bool(&o, flags[i], 0))
            fail(err, KLEIN_E_UNSUPPORTED,
                 "%s: added token \"%.64s\" is marked %s; only tokens found as they are in the raw text work",
                 name, text, flags[i]);
    if (err->status) return err->status;
    return add(t, name, text, id, err);
}

/* [{"id": ..., "content": ...}, ...] of tokenizer.json */
static enum klein_status read_added(struct tokenizer *t, const char *name, const json_t *list,
                                    struct klein_error *err)
{
    size_t i;
    json_t *token;
    if (!json_is_array(list))
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: \"added_tokens\" must be a list", name);
    json_array_foreach(list, i, token)
    {
        const struct js_object o = {name, token, err};
        js_require(&o, "id");
        const int id = js_int(&o, "id", 0, BPE_VOCAB_MAX - 1, 0);
        TRY(add_described(t, name, token, id, err));
    }
    return KLEIN_OK;
}

/* {"151643": {"content": ...}, ...} of tokenizer_config.json */
static enum klein_status read_added_config(struct tokenizer *t, const char *name, json_t *map,
                                           struct klein_error *err)
{
    const char *key;
    json_t *token;
    json_object_foreach(map, key, token)
    {
        char *end;
        const long id = strtol(key, &end, 10);
        if (end == key || *end || id < 0 || id >= BPE_VOCAB_MAX)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: \"%.64s\" among the added tokens is no id", name,
                        key);
        TRY(add_described(t, name, token, (int)id, err));
    }
    return KLEIN_OK;
}

/* {"<|endoftext|>": 151643, ...} of added_tokens.json */
static enum klein_status read_added_map(struct tokenizer *t, const char *name, json_t *map,
                                        struct klein_error *err)
{
    const struct js_object o = {name, map, err};
    const char *key;
    json_t *id;
    json_object_foreach(map, key, id) TRY(add(t, name, key, js_int(&o, key, 0, BPE_VOCAB_MAX - 1, -1), err));
    return KLEIN_OK;
}

static int32_t find_added(const struct tokenizer *t, const char *text)
{
    for (int i = 0; i < t->n_added; i++) {
        size_t n;
        const char *token = tokenizer_token(t, t->added[i], &n);
        if (n == strlen(text) && memcmp(token, text, n) == 0) return t->added[i];
    }
    return -1;
}

/* After all tokens and merges: finishes the tables, orders the added tokens, and refuses what lacks a token of the template. */
static enum klein_status finish(struct tokenizer *t, const char *name, struct klein_error *err)
{
    static const char *const needed[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>",
                                         "</think>"};
    TRY(bpe_finish(&t->bpe, name, err));
    const struct bpe_entry *tokens = t->bpe.tokens;
    for (int i = 1; i < t->n_added; i++) { /* insertion sort: there are few */
        const int32_t id = t->added[i];
        int j = i;
        for (; j && tokens[t->added[j - 1]].n < tokens[id].n; j--) t->added[j] = t->added[j - 1];
        t->added[j] = id;
    }
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (find_added(t, needed[i]) < 0)
            return fail(err, KLEIN_E_UNSUPPORTED, "%s: no added token \"%s\": not a Qwen3 tokenizer", name,
                        needed[i]);
    t->pad = find_added(t, needed[0]);
    return KLEIN_OK;
}

/* --- tokenizer.json --- */

static const char *type_of(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "(none)";
}

static int is_type(const json_t *part, const char *type)
{
    return strcmp(type_of(part), type) == 0;
}

/* Sequence(Split(qwen_regex, Isolated), ByteLevel) and nothing else. */
static int is_qwen_pretokenizer(const json_t *p)
{
    const json_t *list = json_object_get(p, "pretokenizers"), *split = json_array_get(list, 0),
                 *bytes = json_array_get(list, 1);
    const char *regex = json_string_value(json_object_get(json_object_get(split, "pattern"), "Regex"));
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    return is_type(p, "Sequence") && json_array_size(list) == 2 && is_type(split, "Split") &&
           is_type(bytes, "ByteLevel") && regex && strcmp(regex, qwen_regex) == 0 && behavior &&
           strcmp(behavior, "Isolated") == 0 && !json_is_true(json_object_get(split, "invert")) &&
           !json_is_true(json_object_get(bytes, "add_prefix_space")) &&
           json_is_false(json_object_get(bytes, "use_regex"));
}

static int is_empty(const json_t *v) /* absent, null, false, 0 or "" */
{
    return !v || json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
           (json_is_string(v) && !json_string_length(v));
}

/* Everything except vocabulary, merges and added tokens: it must be what tokenizer.c does. */
static enum klein_status check_kind(struct tokenizer *t, const json_t *root, const char *name,
                                    struct klein_error *err)
{
    static const char *const off[] = {
        "dropout",       "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback", "ignore_merges"};
    const json_t *model = json_object_get(root, "model"), *normalizer = json_object_get(root, "normalizer");
    const json_t *pre = json_object_get(root, "pre_tokenizer"),
                 *post = json_object_get(root, "post_processor");
    if (!is_type(model, "BPE"))
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: model type %.64s; byte-level BPE is supported", name,
                    type_of(model));
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++)
        if (!is_empty(json_object_get(model, off[i])))
            return fail(err, KLEIN_E_UNSUPPORTED, "%s: BPE option %s is not supported", name, off[i]);
    t->nfc = is_type(normalizer, "NFC");
    if (!t->nfc && !is_empty(normalizer))
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: normalizer %.64s; NFC or none is supported", name,
                    type_of(normalizer));
    if (!is_qwen_pretokenizer(pre))
        return fail(err, KLEIN_E_UNSUPPORTED, "%s: pre_tokenizer is not that of Qwen2 and Qwen3", name);
    if (!is_empty(post) && !is_type(post, "ByteLevel"))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: post_processor %.64s adds tokens; only ByteLevel is supported", name, type_of(post));
    return KLEIN_OK;
}

/* Where in the text the two big values are. */
static enum klein_status find_big_parts(struct walker *w, struct json_slice *vocab, struct json_slice *merges,
                                        struct klein_error *err)
{
    char key[256];
    size_t n;
    struct json_slice skipped;
    TRY(walk_enter(w, '{', err));
    for (int i = 0, more;; i++) {
        TRY(walk_next(w, i, '}', &more, err));
        if (!more) return KLEIN_OK;
        TRY(walk_key(w, key, sizeof key, &n, err));
        if (strcmp(key, "model")) {
            TRY(walk_skip(w, &skipped, err));
            continue;
        }
        TRY(walk_enter(w, '{', err));
        for (int j = 0;; j++) {
            TRY(walk_next(w, j, '}', &more, err));
            if (!more) break;
            TRY(walk_key(w, key, sizeof key, &n, err));
            struct json_slice *value = !strcmp(key, "vocab")    ? vocab
                                       : !strcmp(key, "merges") ? merges
                                                                : &skipped;
            TRY(walk_skip(w, value, err));
        }
    }
}

/* The document without the two big values, for jansson. */
static enum klein_status parse_rest(const char *json, size_t bytes, struct json_slice a, struct json_slice b,
                                    const char *name, json_t **out, struct klein_error *err)
{
    if (a.at > b.at) return parse_rest(json, bytes, b, a, name, out, err);
    const struct json_slice parts[] = {{json, (size_t)(a.at - json)},
                                       {"0", 1},
                                       {a.at + a.bytes, (size_t)(b.at - a.at) - a.bytes},
                                       {"0", 1},
                                       {b.at + b.bytes, bytes - b.bytes - (size_t)(b.at - json)}};
    char *rest = malloc(bytes - a.bytes - b.bytes + 2);
    size_t n = 0;
    if (!rest) return fail(err, KLEIN_E_NO_MEMORY, "%s: out of memory", name);
    for (int i = 0; i < 5; i++) {
        memcpy(rest + n, parts[i].at, parts[i].bytes);
        n += parts[i].bytes;
    }
    const enum klein_status status = js_parse(rest, n, DEPTH_MAX, name, out, err);
    free(rest);
    return status;
}

static enum klein_status load_parts(struct tokenizer *t, const json_t *root, struct json_slice vocab,
                                    struct json_slice merges, const char *name, struct klein_error *err)
{
    TRY(check_kind(t, root, name, err));
    TRY(read_vocab(t, vocab.at, vocab.bytes, name, err));
    TRY(read_merges(t, merges.at, merges.bytes, name, err));
    TRY(read_added(t, name, json_object_get(root, "added_tokens"), err));
    return finish(t, name, err);
}

static enum klein_status begin(struct tokenizer *t, struct klein_error *err)
{
    bpe_init(&t->bpe);
    t->added = malloc(ADDED_MAX * sizeof *t->added);
    return t->added ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "tokenizer: out of memory");
}

enum klein_status tokenizer_load_json(struct tokenizer *t, const char *json, size_t bytes, const char *name,
                                      struct klein_error *err)
{
    struct walker w;
    struct json_slice vocab = {0}, merges = {0};
    json_t *root;
    TRY(begin(t, err));
    walk_over(&w, json, bytes, name);
    TRY(find_big_parts(&w, &vocab, &merges, err));
    if (!vocab.at || !merges.at)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s: no \"model\" with \"vocab\" and \"merges\": not a BPE tokenizer", name);
    TRY(parse_rest(json, bytes, vocab, merges, name, &root, err));
    const enum klein_status status = load_parts(t, root, vocab, merges, name, err);
    json_decref(root);
    return status;
}

/* --- a folder --- */

static enum klein_status read_config(struct tokenizer *t, const char *text, size_t n, const char *name,
                                     struct klein_error *err)
{
    json_t *root;
    TRY(js_parse(text, n, DEPTH_MAX, name, &root, err));
    const enum klein_status status =
        read_added_config(t, name, json_object_get(root, "added_tokens_decoder"), err);
    json_decref(root);
    return status;
}

static enum klein_status read_added_tokens(struct tokenizer *t, const char *text, size_t n, const char *name,
                                           struct klein_error *err)
{
    json_t *root;
    TRY(js_parse(text, n, DEPTH_MAX, name, &root, err));
    const enum klein_status status = read_added_map(t, name, root, err);
    json_decref(root);
    return status;
}

static enum klein_status add_qwen(struct tokenizer *t, const char *dir, struct klein_error *err)
{
    const int n = (int)(sizeof qwen_added / sizeof qwen_added[0]);
    if (t->bpe.vocab != QWEN_VOCAB)
        return fail(err, KLEIN_E_MODEL_MISSING,
                    "%s: neither tokenizer_config.json nor added_tokens.json names the added tokens", dir);
    for (int i = 0; i < n; i++) TRY(add(t, dir, qwen_added[i], QWEN_VOCAB + i, err));
    return KLEIN_OK;
}

typedef enum klein_status reader(struct tokenizer *t, const char *text, size_t n, const char *name,
                                 struct klein_error *err);

/* Gives dir/file to `read`; *found = 0 if there is no such file. */
static enum klein_status read_file(struct tokenizer *t, const char *dir, const char *file, int *found,
                                   reader *read, struct klein_error *err)
{
    char path[4096], *text;
    size_t n;
    if (snprintf(path, sizeof path, "%s/%s", dir, file) >= (int)sizeof path)
        return fail(err, KLEIN_E_MODEL_MISSING, "%.256s...: path is too long", dir);
    *found = access(path, F_OK) == 0;
    if (!*found) return KLEIN_OK;
    TRY(js_file(path, FILE_MAX, &text, &n, err));
    const enum klein_status status = read(t, text, n, path, err);
    free(text);
    return status;
}

enum klein_status tokenizer_load_dir(struct tokenizer *t, const char *dir, struct klein_error *err)
{
    int found, merges;
    TRY(read_file(t, dir, "tokenizer.json", &found, tokenizer_load_json, err));
    if (found) return KLEIN_OK;

    TRY(begin(t, err));
    TRY(read_file(t, dir, "vocab.json", &found, read_vocab, err));
    TRY(read_file(t, dir, "merges.txt", &merges, read_merges_txt, err));
    if (!found || !merges)
        return fail(err, KLEIN_E_MODEL_MISSING, "%s: no tokenizer.json, nor vocab.json with merges.txt", dir);
    t->nfc = 1; /* as Qwen3's class does, whatever the files */
    TRY(read_file(t, dir, "tokenizer_config.json", &found, read_config, err));
    if (!t->n_added) TRY(read_file(t, dir, "added_tokens.json", &found, read_added_tokens, err));
    if (!t->n_added) TRY(add_qwen(t, dir, err));
    return finish(t, dir, err);
}
