/* bpe.h: byte-level byte-pair encoding. A token is a string of bytes; files spell each byte as one printable
 * character (GPT-2's alphabet: '!'..'~' and most of Latin-1 stand for themselves, the other 68 bytes for
 * U+0100..U+0143).
 *
 * Building: bpe_token for the whole vocabulary, bpe_merge by rank, bpe_literal for the added tokens,
 * bpe_finish. After that the tables are immutable and may be used by several threads. */
#ifndef KLEIN_BPE_H
#define KLEIN_BPE_H

#include "../base/error.h"

#include <stddef.h>
#include <stdint.h>

#define BPE_VOCAB_MAX (1 << 20) /* ids; Qwen3 has 151,669 */
#define BPE_TOKEN_MAX 4096      /* bytes of one token as spelled in the file; Qwen3's longest has 256 */

struct bpe {
    int vocab; /* every id is in [0, vocab) */
    struct bpe_entry {
        uint32_t at; /* of its bytes in pool */
        uint16_t n;  /* 0: no such id */
        uint16_t literal;
    } * tokens; /* by id */
    char *pool;
    int32_t byte[256]; /* id of each single byte */
    struct bpe_pair {
        int32_t left, right, rank, id; /* id of the merged token; left < 0: empty slot */
    } * pairs;
    size_t pair_slots; /* power of two, open addressing */

    /* while building */
    int token_room, merges, names;
    size_t pool_used, pool_room;
    struct bpe_name {
        uint32_t hash;
        int32_t id; /* < 0: empty slot */
    } * index;      /* spelling -> id, open addressing */
    size_t index_slots;
};

void bpe_init(struct bpe *b);
void bpe_free(struct bpe *b); /* after bpe_init; also when building failed */

/* `name` is the file, for messages. KLEIN_E_MODEL_CORRUPT: id out of range or taken, string taken;
 * KLEIN_E_NO_MEMORY. */
enum klein_status bpe_token(struct bpe *b, const char *name, const char *text, size_t n, int id,
                            struct klein_error *err);
/* The next merge. KLEIN_E_MODEL_CORRUPT: a part or their concatenation is no token, or the pair came before.
 */
enum klein_status bpe_merge(struct bpe *b, const char *name, const char *left, size_t left_n,
                            const char *right, size_t right_n, struct klein_error *err);
/* A token that is written as it is, not in the byte alphabet. May be in the vocabulary already, under the
 * same id. */
enum klein_status bpe_literal(struct bpe *b, const char *name, const char *text, size_t n, int id,
                              struct klein_error *err);
/* Checks that all 256 bytes have tokens (KLEIN_E_UNSUPPORTED), turns spellings into bytes, frees what only
 * building needs. */
enum klein_status bpe_finish(struct bpe *b, const char *name, struct klein_error *err);

/* Working memory of bpe_encode: zeroed before the first use, grows, freed with bpe_scratch_free. One per
 * thread. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t room; /* bytes of text that fit */
};
void bpe_scratch_free(struct bpe_scratch *s);

/* The ids of one piece of text (n bytes, n < 2^29; at most n ids) into ids; *count of them. O(n log n). */
enum klein_status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                             int32_t *ids, size_t *count, struct klein_error *err);

#endif
