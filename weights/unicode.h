/* unicode.h: what the tokenizer needs to know about characters, exactly as the reference (Hugging Face
 * tokenizers 0.23.3) knows it. That library classifies by Unicode 16.0 (Oniguruma) and normalises by
 * Unicode 9.0; utf8proc 2.8 of Debian 12 holds 15.0. A short table in unicode.c lists the difference; the
 * test of all code points notices when another version of either arrives. */
#ifndef KLEIN_UNICODE_H
#define KLEIN_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum char_class {
    CHAR_LETTER,  /* \p{L} */
    CHAR_NUMBER,  /* \p{N}: digits, letter numbers, other numbers */
    CHAR_NEWLINE, /* \r \n */
    CHAR_SPACE,   /* the rest of \s: White_Space */
    CHAR_OTHER    /* everything else, unassigned ones included */
};
enum char_class unicode_class(int32_t cp);

/* Bytes of `text` before the first that is not well-formed UTF-8: `bytes` if all is well. *chars = code
 * points in them. */
size_t unicode_valid(const char *text, size_t bytes, size_t *chars);

/* The code points of well-formed UTF-8, as they are or in Normalisation Form C; returns how many.
 * cps has room for one per character, with nfc for UNICODE_NFC_ROOM per character; `spare` for as many (used
 * for nfc only). */
#define UNICODE_NFC_ROOM 4 /* code points in the longest canonical decomposition of one */
size_t unicode_decode(const char *text, size_t bytes, int nfc, int32_t *cps, int32_t *spare);

#endif
