#include "unicode.h"

#include "../base/error.h"

#include <string.h>
#include <utf8proc.h>

/* Where the reference differs from utf8proc 2.8 (see unicode.h), sorted. U+11A7 is not new but inert all the
 * same: utf8proc lets a Hangul syllable swallow it. */
enum quirk {
    NONE,
    LETTER, /* assigned by Unicode 15.1 or 16.0 */
    NUMBER, /* assigned by Unicode 16.0 */
    INERT   /* assigned after Unicode 9.0: of class 0, neither composes nor decomposes */
};
static const struct {
    int32_t first, last;
    enum quirk quirk;
} quirks[] = {
    {0x007fd, 0x007fd, INERT},  {0x00898, 0x0089f, INERT},  {0x008ca, 0x008d3, INERT},
    {0x009fe, 0x009fe, INERT},  {0x00c3c, 0x00c3c, INERT},  {0x00d3b, 0x00d3c, INERT},
    {0x00eba, 0x00eba, INERT},  {0x011a7, 0x011a7, INERT},  {0x01715, 0x01715, INERT},
    {0x01abf, 0x01ace, INERT},  {0x01c89, 0x01c8a, LETTER}, {0x01df6, 0x01dfa, INERT},
    {0x0a7cb, 0x0a7cd, LETTER}, {0x0a7da, 0x0a7dc, LETTER}, {0x0a82c, 0x0a82c, INERT},
    {0x105c0, 0x105f3, LETTER}, {0x10d24, 0x10d27, INERT},  {0x10d40, 0x10d49, NUMBER},
    {0x10d4a, 0x10d65, LETTER}, {0x10d6f, 0x10d85, LETTER}, {0x10eab, 0x10eac, INERT},
    {0x10ec2, 0x10ec4, LETTER}, {0x10efd, 0x10eff, INERT},  {0x10f46, 0x10f50, INERT},
    {0x10f82, 0x10f85, INERT},  {0x11070, 0x11070, INERT},  {0x1133b, 0x1133b, INERT},
    {0x11380, 0x11389, LETTER}, {0x1138b, 0x1138b, LETTER}, {0x1138e, 0x1138e, LETTER},
    {0x11390, 0x113b5, LETTER}, {0x113b7, 0x113b7, LETTER}, {0x113d1, 0x113d1, LETTER},
    {0x113d3, 0x113d3, LETTER}, {0x1145e, 0x1145e, INERT},  {0x116d0, 0x116e3, NUMBER},
    {0x11839, 0x1183a, INERT},  {0x11930, 0x11930, INERT},  {0x11938, 0x11938, INERT},
    {0x1193d, 0x1193e, INERT},  {0x11943, 0x11943, INERT},  {0x119e0, 0x119e0, INERT},
    {0x11a34, 0x11a34, INERT},  {0x11a47, 0x11a47, INERT},  {0x11a99, 0x11a99, INERT},
    {0x11bc0, 0x11be0, LETTER}, {0x11bf0, 0x11bf9, NUMBER}, {0x11d42, 0x11d42, INERT},
    {0x11d44, 0x11d45, INERT},  {0x11d97, 0x11d97, INERT},  {0x11f41, 0x11f42, INERT},
    {0x13460, 0x143fa, LETTER}, {0x16100, 0x1611d, LETTER}, {0x16130, 0x16139, NUMBER},
    {0x16d40, 0x16d6c, LETTER}, {0x16d70, 0x16d79, NUMBER}, {0x16ff0, 0x16ff1, INERT},
    {0x18cff, 0x18cff, LETTER}, {0x1ccf0, 0x1ccf9, NUMBER}, {0x1e08f, 0x1e08f, INERT},
    {0x1e130, 0x1e136, INERT},  {0x1e2ae, 0x1e2ae, INERT},  {0x1e2ec, 0x1e2ef, INERT},
    {0x1e4ec, 0x1e4ef, INERT},  {0x1e5d0, 0x1e5ed, LETTER}, {0x1e5f0, 0x1e5f0, LETTER},
    {0x1e5f1, 0x1e5fa, NUMBER}, {0x2ebf0, 0x2ee5d, LETTER},
};

static enum quirk quirk_of(int32_t cp)
{
    size_t low = 0, high = sizeof quirks / sizeof quirks[0];
    if (cp < quirks[0].first) return NONE;
    while (high - low > 1) { /* quirks[low].first <= cp < quirks[high].first */
        const size_t middle = (low + high) / 2;
        if (quirks[middle].first <= cp)
            low = middle;
        else
            high = middle;
    }
    return cp <= quirks[low].last ? quirks[low].quirk : NONE;
}

/* White_Space without \r and \n; a stable property. */
static int is_space(int32_t cp)
{
    return cp == ' ' || (cp >= 9 && cp <= 12) || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

enum char_class unicode_class(int32_t cp)
{
    if (cp == '\r' || cp == '\n') return CHAR_NEWLINE;
    if (is_space(cp)) return CHAR_SPACE;
    const enum quirk quirk = quirk_of(cp);
    const utf8proc_category_t category = utf8proc_category(cp);
    if (quirk == LETTER || (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO))
        return CHAR_LETTER;
    if (quirk == NUMBER || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO))
        return CHAR_NUMBER;
    return CHAR_OTHER;
}

size_t unicode_valid(const char *text, size_t bytes, size_t *chars)
{
    size_t at = 0;
    for (*chars = 0; at < bytes; ++*chars) {
        utf8proc_int32_t cp;
        const utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(bytes - at), &cp);
        if (n <= 0) break;
        at += (size_t)n;
    }
    return at;
}

static int combining_class(int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class;
}

/* Canonical ordering of one run of marks: stable, and linear where utf8proc's own is quadratic. */
static void sort_marks(int32_t *cps, size_t n, int32_t *spare)
{
    size_t i = 1;
    while (i < n && combining_class(cps[i - 1]) <= combining_class(cps[i])) i++;
    if (i >= n) return; /* the common case: in order already */

    size_t place[256] = {0}, sum = 0;
    for (i = 0; i < n; i++) place[combining_class(cps[i])]++;
    for (int c = 0; c < 256; c++) {
        const size_t count = place[c];
        place[c] = sum;
        sum += count;
    }
    for (i = 0; i < n; i++) spare[place[combining_class(cps[i])]++] = cps[i];
    memcpy(cps, spare, n * sizeof *cps);
}

/* Orders and composes fully decomposed text in place; returns its new length. */
static size_t compose(int32_t *cps, size_t n, int32_t *spare)
{
    for (size_t i = 0; i < n;) {
        const size_t start = i;
        while (i < n && combining_class(cps[i])) i++;
        sort_marks(cps + start, i - start, spare);
        i += i == start;
    }
    const utf8proc_ssize_t m =
        utf8proc_normalize_utf32(cps, (utf8proc_ssize_t)n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    CHECK(m >= 0);
    return (size_t)m;
}

size_t unicode_decode(const char *text, size_t bytes, int nfc, int32_t *cps, int32_t *spare)
{
    size_t done = 0, n = 0; /* cps[0..done) is final, cps[done..n) decomposed */
    for (size_t at = 0; at < bytes;) {
        utf8proc_int32_t cp;
        const utf8proc_ssize_t step =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(bytes - at), &cp);
        CHECK(step > 0);
        at += (size_t)step;
        if (!nfc || cp < 0xc0) { /* decomposes to itself */
            cps[n++] = cp;
        } else if (quirk_of(cp) == INERT) { /* a starter that nothing combines with */
            n = done + compose(cps + done, n - done, spare);
            cps[n++] = cp;
            done = n;
        } else {
            const utf8proc_ssize_t m = utf8proc_decompose_char(cp, cps + n, UNICODE_NFC_ROOM,
                                                               UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, NULL);
            CHECK(m > 0 && m <= UNICODE_NFC_ROOM);
            n += (size_t)m;
        }
    }
    return nfc ? done + compose(cps + done, n - done, spare) : n;
}
