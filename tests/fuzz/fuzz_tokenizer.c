/* fuzz_tokenizer: the first byte chooses what the rest is:
 *   text to encode with the small golden tokenizer; a whole tokenizer.json; or a patch (position, bytes to
 * drop, bytes to insert) of a valid one, which gets further than a whole file does. What opens must encode.
 */
#include "../../weights/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct tokenizer *small;
static char valid[64 << 10];
static size_t valid_n;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char folder[] = KLEIN_SOURCE_DIR "/tests/golden/models/tiny/tokenizer";
    struct klein_error err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    FILE *f = fopen(path, "rb");
    if (f) valid_n = fread(valid, 1, sizeof valid, f);
    if (!valid_n || tokenizer_open(folder, &small, &err)) {
        fprintf(stderr, "%s: %s\n", folder, err.message);
        exit(1);
    }
    fclose(f);
    return 0;
}

static void encode(const struct tokenizer *t, const char *text, size_t n)
{
    struct klein_error err = {0};
    int32_t *ids;
    int count, ascii = 1;
    if (tokenizer_encode(t, text, n, &ids, &count, &err)) {
        if (err.status != KLEIN_E_USAGE) abort();
        return;
    }
    size_t at = 0;
    for (size_t i = 0; i < n; i++) ascii &= (unsigned char)text[i] < 128;
    for (int i = 0; i < count; i++) {
        size_t bytes;
        const char *token = tokenizer_token(t, ids[i], &bytes);
        if (!token) abort();
        if (ascii && (at + bytes > n || memcmp(text + at, token, bytes))) abort();
        at += bytes;
    }
    if (ascii && at != n) abort();
    free(ids);
}

static void open_and_use(const char *json, size_t n)
{
    struct klein_error err = {0};
    struct tokenizer *t;
    if (tokenizer_from_json(json, n, "fuzz", &t, &err)) {
        if (t || !err.message[0]) abort();
        return;
    }
    encode(t, "a red balloon, <think>it's\n\n 12 e\xcc\x81", 34);
    tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1) return 0;
    const char *rest = (const char *)data + 1;
    if (data[0] == 't') {
        encode(small, rest, n - 1);
    } else if (data[0] == 'j') {
        open_and_use(rest, n - 1);
    } else if (n >= 4) {
        const size_t at = (size_t)(data[1] << 8 | data[2]) % valid_n, most = valid_n - at;
        const size_t dropped = data[3] < most ? data[3] : most, inserted = n - 4;
        char *json = malloc(valid_n + inserted);
        memcpy(json, valid, at);
        memcpy(json + at, rest + 3, inserted);
        memcpy(json + at + inserted, valid + at + dropped, most - dropped);
        open_and_use(json, valid_n - dropped + inserted);
        free(json);
    }
    return 0;
}
