/* The tokenizer's Unicode tables: classes and normal forms of all code points. */
#include "../weights/unicode.h"
#include "support/support.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <zlib.h>

static json_t *load_json(const char *path)
{
    json_error_t e;
    json_t *v = json_load_file(path, JSON_ALLOW_NUL, &e);
    cr_assert(v, "%s: line %d: %s", path, e.line, e.text);
    return v;
}

Test(tokenizer, classes_of_all_code_points)
{
    json_t *list = load_json(GOLDEN("tokenizer/unicode.json"));
    unsigned char *expected = malloc(0x110000);
    memset(expected, CHAR_OTHER, 0x110000);
    for (int k = 0; k < 3; k++) {
        static const char *const names[] = {"letters", "numbers", "spaces"};
        static const enum char_class classes[] = {CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE};
        const json_t *entry = json_array_get(list, (size_t)k);
        json_t *range;
        size_t i;
        cr_assert_str_eq(json_string_value(json_array_get(entry, 0)), names[k]);
        json_array_foreach(json_array_get(entry, 1), i,
                           range) for (json_int_t c = json_integer_value(json_array_get(range, 0));
                                       c <= json_integer_value(json_array_get(range, 1)); c++) expected[c] =
            (unsigned char)classes[k];
    }
    expected['\r'] = expected['\n'] = CHAR_NEWLINE;
    for (int32_t c = 0; c < 0x110000; c++)
        if (c < 0xd800 || c >= 0xe000)
            cr_assert(unicode_class(c) == expected[c], "U+%04X is of class %d, not %d", c, unicode_class(c),
                      expected[c]);
    free(expected);
    json_decref(list);
}

Test(tokenizer, normalises_all_code_points)
{
    json_t *list = load_json(GOLDEN("tokenizer/unicode.json"));
    const json_t *sums = json_array_get(json_array_get(list, 3), 1);
    cr_assert_eq(json_array_size(sums), 0x110);
    for (int32_t block = 0; block < 0x110; block++) {
        uLong sum = crc32(0, NULL, 0);
        for (int32_t c = block << 12; c < (block + 1) << 12; c++) {
            /* x U+0345 c U+0334 e U+0301 c U+0301 newline */
            char text[32] = "x\xcd\x85";
            int32_t cps[32 * UNICODE_NFC_ROOM], spare[32 * UNICODE_NFC_ROOM];
            unsigned char out[4 * 32 * UNICODE_NFC_ROOM];
            size_t n = 3, bytes = 0;
            if (c >= 0xd800 && c < 0xe000) continue;
            n += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)text + n);
            memcpy(text + n,
                   "\xcc\xb4"
                   "e\xcc\x81",
                   5);
            n += 5;
            n += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)text + n);
            memcpy(text + n, "\xcc\x81\n", 3);
            n += 3;
            const size_t count = unicode_decode(text, n, 1, cps, spare);
            for (size_t i = 0; i < count; i++) bytes += (size_t)utf8proc_encode_char(cps[i], out + bytes);
            sum = crc32(sum, out, (uInt)bytes);
        }
        cr_assert_eq((json_int_t)sum, json_integer_value(json_array_get(sums, (size_t)block)), "U+%05X..%05X",
                     block << 12, (block << 12) + 0xfff);
    }
    json_decref(list);
}
