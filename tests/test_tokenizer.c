#include "../weights/tokenizer.h"
#include "support/alloc.h"
#include "support/support.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define TINY(file) GOLDEN("models/tiny/tokenizer" file)

static struct klein_error err;

/* --- helpers --- */

static json_t *load_json(const char *path)
{
    json_error_t e;
    json_t *v = json_load_file(path, JSON_ALLOW_NUL, &e);
    cr_assert(v, "%s: line %d: %s", path, e.line, e.text);
    return v;
}

/* The real tokenizer.json of Qwen3, which the repository has compressed. The caller frees it. */
static char *qwen3_json(size_t *n)
{
    const size_t most = 6 << 20;
    char *text = malloc(most);
    gzFile f = gzopen(GOLDEN("tokenizer/qwen3_tokenizer.json.gz"), "rb");
    cr_assert(f && text);
    const int got = gzread(f, text, (unsigned)most);
    cr_assert(got > 5000000 && (size_t)got < most && gzclose(f) == Z_OK, "%d bytes", got);
    *n = (size_t)got;
    return text;
}

static struct tokenizer *open_qwen3(void)
{
    size_t n;
    char *text = qwen3_json(&n);
    struct tokenizer *t;
    OK(tokenizer_from_json(text, n, "qwen3", &t, &err));
    free(text);
    return t;
}

static void expect_ids(const struct tokenizer *t, const char *text, size_t bytes, const json_t *expected)
{
    int32_t *ids;
    int n;
    OK(tokenizer_encode(t, text, bytes, &ids, &n, &err));
    int same = n == (int)json_array_size(expected);
    for (int i = 0; same && i < n; i++)
        same = ids[i] == json_integer_value(json_array_get(expected, (size_t)i));
    if (!same) {
        for (int i = 0; i < n; i++) fprintf(stderr, "%d ", ids[i]);
        fprintf(stderr, "instead of ");
        json_dumpf(expected, stderr, JSON_COMPACT);
    }
    cr_assert(same, "ids of \"%s\" differ", text);
    free(ids);
}

static void expect_strings(const struct tokenizer *t, const char *path, size_t at_least)
{
    json_t *list = load_json(path), *entry;
    size_t i;
    cr_assert(json_array_size(list) >= at_least);
    json_array_foreach(list, i, entry)
    {
        const json_t *text = json_array_get(entry, 0);
        expect_ids(t, json_string_value(text), json_string_length(text), json_array_get(entry, 1));
    }
    json_decref(list);
}

static const char *path_of(const char *name)
{
    static char path[8][256];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", test_dir(), name);
    return p;
}

static void write_file(const char *folder, const char *file, const void *text, size_t n)
{
    char path[512];
    mkdir(folder, 0700);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(text, 1, n, f) == n && fclose(f) == 0);
}

static void write_json(const char *folder, const char *file, const json_t *v)
{
    char *text = json_dumps(v, 0);
    write_file(folder, file, text, strlen(text));
    free(text);
}

/* vocab.json and merges.txt out of a tokenizer.json. */
static void write_vocab_and_merges(const char *folder, const json_t *root)
{
    const json_t *model = json_object_get(root, "model"), *merges = json_object_get(model, "merges"), *pair;
    char *text = NULL;
    size_t n, i;
    FILE *f = open_memstream(&text, &n);
    fputs("#version: 0.2\n", f);
    json_array_foreach(merges, i, pair) fprintf(f, "%s %s\n", json_string_value(json_array_get(pair, 0)),
                                                json_string_value(json_array_get(pair, 1)));
    fclose(f);
    write_json(folder, "vocab.json", json_object_get(model, "vocab"));
    write_file(folder, "merges.txt", text, n);
    free(text);
}

static enum klein_status from_value(const json_t *root, size_t flags, struct tokenizer **t)
{
    char *text = json_dumps(root, flags);
    const enum klein_status status = tokenizer_from_json(text, strlen(text), "edited", t, &err);
    free(text);
    return status;
}

/* --- what it computes --- */

Test(tokenizer, qwen3_equals_the_reference)
{
    struct tokenizer *t = open_qwen3();
    cr_assert_eq(tokenizer_vocab(t), 151669);
    expect_strings(t, GOLDEN("tokenizer/qwen3_strings.json"), 900);
    tokenizer_close(t);
}

Test(tokenizer, prompts_are_wrapped_cut_and_padded_like_the_reference)
{
    static const int32_t empty[] = {151644, 872, 198,    151645, 198,    151644,
                                    77091,  198, 151667, 271,    151668, 271};
    struct tokenizer *t = open_qwen3();
    json_t *list = load_json(GOLDEN("tokenizer/prompts.json")), *entry;
    int32_t ids[514];
    int real, whole;
    size_t i;
    json_array_foreach(list, i, entry)
    {
        const json_t *expected = json_array_get(entry, 4);
        const char *prompt = json_string_value(json_array_get(entry, 0));
        const int length = (int)json_integer_value(json_array_get(entry, 1));
        memset(ids, -1, sizeof ids);
        OK(tokenizer_prompt(t, prompt, length, ids, &real, &whole, &err));
        cr_assert_eq(real, json_integer_value(json_array_get(entry, 2)));
        cr_assert_eq(whole, json_integer_value(json_array_get(entry, 3)));
        for (int k = 0; k < length; k++)
            cr_assert_eq(ids[k], k < real ? json_integer_value(json_array_get(expected, (size_t)k)) : 151643,
                         "\"%s\" %d: id %d", prompt, length, k);
        cr_assert_eq(ids[length], -1, "written beyond the end");
    }
    json_decref(list);

    OK(tokenizer_prompt(t, "", 16, ids, &real, &whole, &err));
    cr_assert(real == 12 && whole == 12 && memcmp(ids, empty, sizeof empty) == 0);
    for (int k = 12; k < 16; k++) cr_assert_eq(ids[k], 151643);
    tokenizer_close(t);
}

Test(tokenizer, small_vocabulary_equals_the_reference)
{
    struct tokenizer *t;
    OK(tokenizer_open(TINY(""), &t, &err));
    cr_assert_eq(tokenizer_vocab(t), 606);
    expect_strings(t, GOLDEN("tokenizer/tiny_strings.json"), 250);
    tokenizer_close(t);
}

Test(tokenizer, all_spellings_of_the_file_mean_the_same)
{
    json_t *root = load_json(TINY("/tokenizer.json")), *pair;
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    struct tokenizer *t;
    size_t i;
    char line[256];
    for (int as_strings = 0; as_strings < 2; as_strings++) {
        /* compact, indented, escaped, merges before the vocabulary */
        const size_t flags[] = {JSON_COMPACT, JSON_INDENT(7), JSON_ENSURE_ASCII, JSON_SORT_KEYS};
        for (int k = 0; k < 4; k++) {
            OK(from_value(root, flags[k], &t));
            expect_strings(t, GOLDEN("tokenizer/tiny_strings.json"), 250);
            tokenizer_close(t);
        }
        json_array_foreach(merges, i, pair)
        {
            if (as_strings) break;
            snprintf(line, sizeof line, "%s %s", json_string_value(json_array_get(pair, 0)),
                     json_string_value(json_array_get(pair, 1)));
            json_array_set_new(merges, i, json_string(line));
        }
    }
    json_decref(root);
}

Test(tokenizer, vocab_and_merges_equal_tokenizer_json)
{
    const char *folder = path_of("parts");
    json_t *root = load_json(TINY("/tokenizer.json"));
    json_t *added = load_json(TINY("/added_tokens.json")),
           *config = load_json(TINY("/tokenizer_config.json"));
    struct tokenizer *t;
    write_vocab_and_merges(folder, root);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_MISSING, "added_tokens.json");
    write_json(folder, "added_tokens.json", added);
    OK(tokenizer_open(folder, &t, &err));
    expect_strings(t, GOLDEN("tokenizer/tiny_strings.json"), 250);
    tokenizer_close(t);

    /* The config is preferred. */
    write_file(folder, "added_tokens.json", "broken", 6);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_CORRUPT, "added_tokens.json");
    write_json(folder, "tokenizer_config.json", config);
    OK(tokenizer_open(folder, &t, &err));
    expect_strings(t, GOLDEN("tokenizer/tiny_strings.json"), 250);
    tokenizer_close(t);

    json_object_set_new(json_object_get(json_object_get(config, "added_tokens_decoder"), "580"), "lstrip",
                        json_true());
    write_json(folder, "tokenizer_config.json", config);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_UNSUPPORTED, "lstrip");
    json_object_set_new(json_object_get(config, "added_tokens_decoder"), "58x", json_object());
    json_object_del(json_object_get(config, "added_tokens_decoder"), "580");
    write_json(folder, "tokenizer_config.json", config);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_CORRUPT, "58x");

    json_decref(root);
    json_decref(added);
    json_decref(config);
}

Test(tokenizer, qwen3_vocab_and_merges_alone_suffice)
{
    const char *folder = path_of("qwen3");
    size_t n;
    char *text = qwen3_json(&n);
    json_t *root = json_loadb(text, n, 0, NULL);
    struct tokenizer *t;
    cr_assert(root);
    write_vocab_and_merges(folder, root);
    json_decref(root);
    free(text);
    OK(tokenizer_open(folder, &t, &err));
    expect_strings(t, GOLDEN("tokenizer/qwen3_strings.json"), 900);
    tokenizer_close(t);
}

/* Text comes back from its ids (after NFC, which leaves these as they are), also where quadratic work would
 * not end. */
Test(tokenizer, long_texts_survive)
{
    static const char *const units[] = {"a",       " ",        "\n",          "<",       "😀",
                                        "猫と犬 ", "it's 12 ", "<|im_end|>x", "\xcc\x81"};
    struct tokenizer *t;
    OK(tokenizer_open(TINY(""), &t, &err));
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        const size_t unit = strlen(units[u]), n = 100000 / unit * unit;
        char *text = malloc(n);
        int32_t *ids;
        int count;
        size_t at = 0;
        for (size_t i = 0; i < n; i++) text[i] = units[u][i % unit];
        OK(tokenizer_encode(t, text, n, &ids, &count, &err));
        for (int i = 0; i < count; i++) {
            size_t bytes;
            const char *token = tokenizer_token(t, ids[i], &bytes);
            cr_assert(token && at + bytes <= n && memcmp(text + at, token, bytes) == 0, "unit %zu, token %d",
                      u, i);
            at += bytes;
        }
        cr_assert_eq(at, n);
        free(ids);
        free(text);
    }
    /* Marks in falling order of class: canonical ordering must not be quadratic either. */
    char *marks = malloc(1 + 4 * 60000);
    int32_t *ids;
    int count;
    marks[0] = 'x';
    for (int i = 0; i < 60000; i++)
        memcpy(marks + 1 + 4 * i, "\xcc\x81\xcc\x96", 4); /* U+0301 (230), U+0316 (220) */
    OK(tokenizer_encode(t, marks, 1 + 4 * 60000, &ids, &count, &err));
    cr_assert(count > 60000);
    free(ids);
    free(marks);
    tokenizer_close(t);
}

Test(tokenizer, ids_name_their_bytes)
{
    struct tokenizer *t;
    size_t n;
    OK(tokenizer_open(TINY(""), &t, &err));
    const char *token = tokenizer_token(t, 0, &n);
    cr_assert(n == 1 && token[0] == '!');
    token = tokenizer_token(t, 188,
                            &n); /* GPT-2's order: the 188 bytes that stand for themselves, then 0, 1, ... */
    cr_assert(n == 1 && token[0] == 0);
    token = tokenizer_token(t, 188 + 67, &n);
    cr_assert(n == 1 && token[0] == (char)0xad);
    token = tokenizer_token(t, 581, &n);
    cr_assert(n == 12 && memcmp(token, "<|im_start|>", 12) == 0);
    cr_assert(!tokenizer_token(t, -1, &n) && !tokenizer_token(t, 606, &n));
    tokenizer_close(t);
}

/* --- what it refuses --- */

Test(tokenizer, text_must_be_utf8)
{
    static const struct {
        const char *text;
        size_t bytes;
        int offset;
    } cases[] = {
        {"ab\xff", 3, 2},
        {"\x80", 1, 0},
        {"a\xc3", 2, 1},
        {"\xc0\x80", 2, 0},
        {"ok \xed\xa0\x80", 6, 3},
        {"\xe2\x82", 2, 0},
        {"\xf4\x90\x80\x80", 4, 0},
        {"<think>\xf0\x9f\x98", 10, 7},
        {"\xe0\x80\xaf", 3, 0},
    };
    struct tokenizer *t;
    char expected[32];
    int32_t *ids, padded[64];
    int n, real, whole;
    OK(tokenizer_open(TINY(""), &t, &err));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(expected, sizeof expected, "byte %d ", cases[i].offset);
        FAILS(tokenizer_encode(t, cases[i].text, cases[i].bytes, &ids, &n, &err), KLEIN_E_USAGE, expected);
        cr_assert(!ids && !n);
        FAILS(tokenizer_prompt(t, cases[i].text, 64, padded, &real, &whole, &err), KLEIN_E_USAGE, expected);
    }
    OK(tokenizer_encode(t, "a\0b", 3, &ids, &n, &err)); /* NUL is a character */
    cr_assert(n == 3);
    free(ids);

    char *huge = calloc(1, (1 << 20) + 1);
    FAILS(tokenizer_encode(t, huge, (1 << 20) + 1, &ids, &n, &err), KLEIN_E_USAGE, "shorten");
    free(huge);
    tokenizer_close(t);
}

/* Sets (or, with value NULL, deletes) the element at a path such as "added_tokens/0/lstrip". */
static void edit(json_t *at, const char *path, const char *value)
{
    char key[64];
    for (const char *slash; (slash = strchr(path, '/')); path = slash + 1) {
        snprintf(key, sizeof key, "%.*s", (int)(slash - path), path);
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
        cr_assert(at, "%s", key);
    }
    if (json_is_array(at)) {
        cr_assert(
            value ? json_array_set_new(at, (size_t)atoi(path), json_loads(value, JSON_DECODE_ANY, NULL)) == 0
                  : json_array_remove(at, (size_t)atoi(path)) == 0);
    } else {
        cr_assert(value ? json_object_set_new(at, path, json_loads(value, JSON_DECODE_ANY, NULL)) == 0
                        : json_object_del(at, path) == 0);
    }
}

Test(tokenizer, what_is_not_this_family_is_refused)
{
    static const struct {
        const char *path, *value;
        enum klein_status status;
        const char *message;
    } cases[] = {
        {"model/type", "\"WordPiece\"", KLEIN_E_UNSUPPORTED, "WordPiece"},
        {"model/type", NULL, KLEIN_E_UNSUPPORTED, "BPE"},
        {"model/type", "3", KLEIN_E_UNSUPPORTED, "BPE"},
        {"model/dropout", "0.1", KLEIN_E_UNSUPPORTED, "dropout"},
        {"model/unk_token", "\"a\"", KLEIN_E_UNSUPPORTED, "unk_token"},
        {"model/continuing_subword_prefix", "\"##\"", KLEIN_E_UNSUPPORTED, "continuing_subword_prefix"},
        {"model/end_of_word_suffix", "\"</w>\"", KLEIN_E_UNSUPPORTED, "end_of_word_suffix"},
        {"model/byte_fallback", "true", KLEIN_E_UNSUPPORTED, "byte_fallback"},
        {"model/ignore_merges", "true", KLEIN_E_UNSUPPORTED, "ignore_merges"},
        {"normalizer", "{\"type\":\"NFKC\"}", KLEIN_E_UNSUPPORTED, "NFKC"},
        {"normalizer", "[]", KLEIN_E_UNSUPPORTED, "normalizer"},
        {"pre_tokenizer", NULL, KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/type", "\"Whitespace\"", KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\p{L}+\"", KLEIN_E_UNSUPPORTED,
         "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/0/pattern", "{\"String\":\" \"}", KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"", KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/0/invert", "true", KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/1/add_prefix_space", "true", KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/1/use_regex", NULL, KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"pre_tokenizer/pretokenizers/1", NULL, KLEIN_E_UNSUPPORTED, "pre_tokenizer"},
        {"post_processor/type", "\"TemplateProcessing\"", KLEIN_E_UNSUPPORTED, "TemplateProcessing"},
        {"added_tokens/3/lstrip", "true", KLEIN_E_UNSUPPORTED, "lstrip"},
        {"added_tokens/3/rstrip", "true", KLEIN_E_UNSUPPORTED, "rstrip"},
        {"added_tokens/3/single_word", "true", KLEIN_E_UNSUPPORTED, "single_word"},
        {"added_tokens/3/normalized", "true", KLEIN_E_UNSUPPORTED, "normalized"},
        {"added_tokens/25", NULL, KLEIN_E_UNSUPPORTED, "</think>"},
        {"added_tokens/0", NULL, KLEIN_E_UNSUPPORTED, "<|endoftext|>"},
        {"model/vocab/A", NULL, KLEIN_E_UNSUPPORTED, "byte 0x41"},
        {"model", "7", KLEIN_E_MODEL_CORRUPT, "'{' expected"},
        {"model", NULL, KLEIN_E_UNSUPPORTED, "not a BPE"},
        {"model/vocab", NULL, KLEIN_E_UNSUPPORTED, "not a BPE"},
        {"model/vocab", "[]", KLEIN_E_MODEL_CORRUPT, "'{' expected"},
        {"model/vocab", "null", KLEIN_E_MODEL_CORRUPT, "'{' expected"},
        {"model/vocab/A", "-1", KLEIN_E_MODEL_CORRUPT, "\"A\" has id -1"},
        {"model/vocab/A", "1048576", KLEIN_E_MODEL_CORRUPT, "id 1048576"},
        {"model/vocab/A", "4294967328", KLEIN_E_MODEL_CORRUPT, "integer expected"},
        {"model/vocab/A", "33", KLEIN_E_MODEL_CORRUPT, "its id 33"},
        {"model/vocab/A", "1.5", KLEIN_E_MODEL_CORRUPT, "integer expected"},
        {"model/vocab/A", "\"1\"", KLEIN_E_MODEL_CORRUPT, "integer expected"},
        {"model/merges", NULL, KLEIN_E_UNSUPPORTED, "not a BPE"},
        {"model/merges", "{}", KLEIN_E_MODEL_CORRUPT, "'[' expected"},
        {"model/merges/4", "[\"a\"]", KLEIN_E_MODEL_CORRUPT, "expected"},
        {"model/merges/4", "[\"a\",\"b\",\"c\"]", KLEIN_E_MODEL_CORRUPT, "not two tokens"},
        {"model/merges/4", "\"ab\"", KLEIN_E_MODEL_CORRUPT, "not two tokens"},
        {"model/merges/4", "\" b\"", KLEIN_E_MODEL_CORRUPT, "not two tokens"},
        {"model/merges/4", "5", KLEIN_E_MODEL_CORRUPT, "expected"},
        {"model/merges/4", "[\"a\", 5]", KLEIN_E_MODEL_CORRUPT, "expected"},
        {"model/merges/4", "[\"nix\",\"a\"]", KLEIN_E_MODEL_CORRUPT, "left part"},
        {"model/merges/4", "\"a nix\"", KLEIN_E_MODEL_CORRUPT, "right part"},
        {"model/merges/4", "\"~ ~\"", KLEIN_E_MODEL_CORRUPT, "result"},
        {"added_tokens", "{}", KLEIN_E_MODEL_CORRUPT, "must be a list"},
        {"added_tokens/3", "\"x\"", KLEIN_E_MODEL_CORRUPT, "id"},
        {"added_tokens/3/id", NULL, KLEIN_E_MODEL_CORRUPT, "\"id\" is missing"},
        {"added_tokens/3/id", "-5", KLEIN_E_MODEL_CORRUPT, "id"},
        {"added_tokens/3/id", "5", KLEIN_E_MODEL_CORRUPT, "its id 5"},
        {"added_tokens/3/id", "581", KLEIN_E_MODEL_CORRUPT, "its id 581"},
        {"added_tokens/3/content", "\"\"", KLEIN_E_MODEL_CORRUPT, "0 bytes"},
        {"added_tokens/3/content", "\"A\"", KLEIN_E_MODEL_CORRUPT, "two ids"},
        {"added_tokens/3/content", "\"<think>\"", KLEIN_E_MODEL_CORRUPT, "two ids"},
        {"added_tokens/3/content", "9", KLEIN_E_MODEL_CORRUPT, "content"},
        {"added_tokens/3/content", NULL, KLEIN_E_MODEL_CORRUPT, "content"},
        {"added_tokens/3/lstrip", "1", KLEIN_E_MODEL_CORRUPT, "lstrip"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *root = load_json(TINY("/tokenizer.json"));
        struct tokenizer *t = (struct tokenizer *)1;
        edit(root, cases[i].path, cases[i].value);
        FAILS(from_value(root, 0, &t), cases[i].status, cases[i].message);
        cr_assert(!t && strstr(err.message, "edited"), "%s: %s", cases[i].path, err.message);
        json_decref(root);
    }
    /* Repeating a merge would change its rank. */
    json_t *root = load_json(TINY("/tokenizer.json"));
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    struct tokenizer *t;
    json_array_append(merges, json_array_get(merges, 2));
    FAILS(from_value(root, 0, &t), KLEIN_E_MODEL_CORRUPT, "repeats merge 2");
    json_decref(root);
}

Test(tokenizer, added_tokens_may_be_in_the_vocabulary)
{
    json_t *root = load_json(TINY("/tokenizer.json"));
    struct tokenizer *t;
    edit(root, "model/vocab/<|im_start|>", "581");
    OK(from_value(root, 0, &t));
    expect_strings(t, GOLDEN("tokenizer/tiny_strings.json"), 250);
    tokenizer_close(t);
    edit(root, "model/vocab/<|im_start|>", "606");
    FAILS(from_value(root, 0, &t), KLEIN_E_MODEL_CORRUPT, "two ids");
    json_decref(root);
}

Test(tokenizer, without_normalizer_text_stays)
{
    json_t *root = load_json(TINY("/tokenizer.json"));
    struct tokenizer *t;
    int32_t *ids;
    int n;
    edit(root, "normalizer", "null");
    OK(from_value(root, 0, &t));
    OK(tokenizer_encode(t, "~e\xcc\x81", 4, &ids, &n, &err));
    cr_assert(n == 4, "%d", n);
    free(ids);
    tokenizer_close(t);
    json_decref(root);
}

Test(tokenizer, missing_files_are_named)
{
    const char *folder = path_of("nothing");
    struct tokenizer *t;
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_MISSING, "nothing");
    cr_assert(!t);
    write_file(folder, "vocab.json", "{}", 2);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_MISSING, "merges.txt");
    write_file(folder, "merges.txt", "\n#version: 0.2\r\n\n", 17);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_MISSING, "added_tokens.json");
    write_file(folder, "merges.txt", "a b c\n", 6);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_CORRUPT, "merges.txt");
    write_file(folder, "vocab.json", "{\"a\":0} x", 9);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_CORRUPT, "vocab.json");
    write_file(folder, "tokenizer.json", "", 0);
    FAILS(tokenizer_open(folder, &t, &err), KLEIN_E_MODEL_CORRUPT, "tokenizer.json");
    char *deep = malloc(5000);
    memset(deep, 'x', 5000);
    deep[4999] = 0;
    FAILS(tokenizer_open(deep, &t, &err), KLEIN_E_MODEL_MISSING, "too long");
    free(deep);
}

/* A copy of exactly n bytes, so that the sanitizer sees a read beyond them. */
static enum klein_status open_copy(const char *text, size_t n, struct tokenizer **t)
{
    char *copy = malloc(n ? n : 1);
    memcpy(copy, text, n);
    err = (struct klein_error){0};
    const enum klein_status status = tokenizer_from_json(copy, n, "copy", t, &err);
    free(copy);
    return status;
}

Test(tokenizer, truncated_and_damaged_files_fail_cleanly)
{
    json_t *root = load_json(TINY("/tokenizer.json"));
    char *text = json_dumps(root, JSON_COMPACT);
    const size_t n = strlen(text);
    struct tokenizer *t;
    uint32_t seed = 1;
    int opened = 0;
    for (size_t cut = 0; cut < n; cut += cut < 600 || cut + 600 > n ? 1 : 61) {
        cr_assert(open_copy(text, cut, &t) == KLEIN_E_MODEL_CORRUPT && !t, "cut to %zu bytes: %s", cut,
                  err.message);
        cr_assert(err.message[0]);
    }
    for (int i = 0; i < 1500; i++) {
        static const char bytes[] = "{}[]\",:\\0-9eEau \n\xff\x80\xc3";
        seed = seed * 1664525 + 1013904223;
        char *byte = &text[(seed >> 8) % n], before = *byte;
        *byte = bytes[(seed >> 3) % (sizeof bytes)];
        if (open_copy(text, n, &t) == KLEIN_OK)
            opened++;
        else
            cr_assert(!t && err.message[0]);
        tokenizer_close(t);
        *byte = before;
    }
    cr_assert(opened > 0 && opened < 1500, "%d", opened); /* some flips are harmless */
    OK(tokenizer_from_json(text, n, "whole", &t, &err));
    tokenizer_close(t);
    free(text);
    json_decref(root);
}

Test(tokenizer, failed_allocations_are_errors)
{
    struct tokenizer *t;
    int32_t *ids, padded[32];
    int n, real, whole;
    json_set_alloc_funcs(malloc, free);
    EACH_ALLOCATION_FAILS_SOMEHOW(tokenizer_open(TINY(""), &t, &err), tokenizer_close(t));
    const char *folder = path_of("small");
    json_t *root = load_json(TINY("/tokenizer.json")), *added = load_json(TINY("/added_tokens.json"));
    write_vocab_and_merges(folder, root);
    write_json(folder, "added_tokens.json", added);
    json_decref(root);
    json_decref(added);
    EACH_ALLOCATION_FAILS_SOMEHOW(tokenizer_open(folder, &t, &err), tokenizer_close(t));

    OK(tokenizer_open(TINY(""), &t, &err));
    EACH_ALLOCATION_FAILS(
        tokenizer_encode(t, "a red balloon <think> e\xcc\x81 and again", 34, &ids, &n, &err), free(ids));
    EACH_ALLOCATION_FAILS(tokenizer_prompt(t, "a cat", 32, padded, &real, &whole, &err), (void)0);
    tokenizer_close(t);
}
