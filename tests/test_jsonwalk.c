/* The tokenizer's reader of JSON. */
#include "../weights/jsonwalk.h"
#include "support/support.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

Test(tokenizer, walker_reads_strings_as_json_says)
{
    static const struct {
        const char *json, *text; /* text NULL: refused */
    } cases[] = {
        {"\"\"", ""},
        {" \"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "a\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20AC\\ud83d\\uDE00\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"\"\\ud83d\"", NULL},
        {"\"\\ud83d\\u0041\"", NULL},
        {"\"\\ude00\"", NULL},
        {"\"\\u00g0\"", NULL},
        {"\"\\u00", NULL},
        {"\"\\ud83d\\u", NULL},
        {"\"\\", NULL},
        {"\"\\x\"", NULL},
        {"\"a\nb\"", NULL},
        {"\"abc", NULL},
        {"\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", NULL}, /* longer than the buffer */
        {"abc", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t bytes = strlen(cases[i].json);
        char *copy = malloc(bytes + 1), text[32];
        struct walker w;
        size_t n;
        memcpy(copy, cases[i].json, bytes);
        walk_over(&w, copy, bytes, "walk");
        if (cases[i].text) {
            OK(walk_string(&w, text, sizeof text, &n, &err));
            cr_assert(n == strlen(cases[i].text) && strcmp(text, cases[i].text) == 0, "%s: %s", cases[i].json,
                      text);
            OK(walk_end(&w, &err));
        } else {
            FAILS(walk_string(&w, text, sizeof text, &n, &err), KLEIN_E_MODEL_CORRUPT, "walk: JSON: ");
        }
        free(copy);
    }
}

Test(tokenizer, walker_skips_whole_values)
{
    static const char *const values[] = {"1", "\"a,]}\\\"\"", "{\"a\":[1,{\"b\":\"]\"}]}", "[[],[[]]]",
                                         "null"};
    char text[512];
    struct walker w;
    struct json_slice slice;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        int more;
        snprintf(text, sizeof text, " [ %s , %s]", values[i], values[i]);
        walk_over(&w, text, strlen(text), "walk");
        OK(walk_enter(&w, '[', &err));
        for (int k = 0; k < 2; k++) {
            OK(walk_next(&w, k, ']', &more, &err));
            OK(walk_skip(&w, &slice, &err));
            cr_assert(more && strncmp(slice.at, values[i], strlen(values[i])) == 0);
            cr_assert(slice.bytes - strlen(values[i]) <= 1);
        }
        OK(walk_next(&w, 2, ']', &more, &err));
        cr_assert(!more);
        OK(walk_end(&w, &err));
    }
    memset(text, '[', 200);
    walk_over(&w, text, 200, "walk");
    FAILS(walk_skip(&w, &slice, &err), KLEIN_E_MODEL_CORRUPT, "deep");
    walk_over(&w, "{\"a\":[1", 7, "walk");
    FAILS(walk_skip(&w, &slice, &err), KLEIN_E_MODEL_CORRUPT, "the text ends");
    walk_over(&w, " ,", 2, "walk");
    FAILS(walk_skip(&w, &slice, &err), KLEIN_E_MODEL_CORRUPT, "value expected");
}
