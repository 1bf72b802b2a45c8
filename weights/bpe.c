#include "bpe.h"

#include <stdlib.h>
#include <string.h>

void bpe_init(struct bpe *b)
{
    *b = (struct bpe){0};
    memset(b->byte, -1, sizeof b->byte);
}

void bpe_free(struct bpe *b)
{
    free(b->tokens);
    free(b->pool);
    free(b->pairs);
    free(b->index);
    bpe_init(b);
}

static enum klein_status no_memory(struct klein_error *err)
{
    return fail(err, KLEIN_E_NO_MEMORY, "tokenizer: out of memory");
}

/* --- the index: spelling -> id, while building --- */

static uint32_t hash_text(const char *text, size_t n)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)text[i]) * 16777619u;
    return h ^ (h >> 15);
}

/* The slot that holds text, or the empty one where it belongs. There is always an empty one. */
static struct bpe_name *index_slot(const struct bpe *b, uint32_t hash, const char *text, size_t n)
{
    for (size_t i = hash;; i++) {
        struct bpe_name *slot = &b->index[i & (b->index_slots - 1)];
        if (slot->id < 0) return slot;
        const struct bpe_entry *e = &b->tokens[slot->id];
        if (slot->hash == hash && e->n == n && memcmp(b->pool + e->at, text, n) == 0) return slot;
    }
}

static int find(const struct bpe *b, const char *text, size_t n)
{
    return b->index_slots ? index_slot(b, hash_text(text, n), text, n)->id : -1;
}

static int grow_index(struct bpe *b)
{
    const struct bpe old = *b;
    const size_t slots = old.index_slots ? 2 * old.index_slots : 1024;
    struct bpe_name *index = malloc(slots * sizeof *index);
    if (!index) return 0;
    memset(index, -1, slots * sizeof *index);
    b->index = index;
    b->index_slots = slots;
    for (size_t i = 0; i < old.index_slots; i++) {
        const struct bpe_name name = old.index[i];
        if (name.id >= 0)
            *index_slot(b, name.hash, b->pool + b->tokens[name.id].at, b->tokens[name.id].n) = name;
    }
    free(old.index);
    return 1;
}

/* --- building --- */

/* The byte that one character of the alphabet stands for, -1 if it is not in the alphabet. */
static int alphabet_byte(int c)
{
    if ((c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff)) return c;
    if (c >= 0x100 && c <= 0x120) return c - 0x100;        /* 0..32 */
    if (c >= 0x121 && c <= 0x142) return c - 0x121 + 0x7f; /* 127..160 */
    return c == 0x143 ? 0xad : -1;
}

/* Spelling to bytes; returns their number, 0 if a character is not of the alphabet. bytes may be text. */
static size_t decode(const char *text, size_t n, char *bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        const unsigned char lead = (unsigned char)text[i++];
        int c = lead;
        if (lead >= 0xc2 && lead < 0xe0 && i < n && (text[i] & 0xc0) == 0x80)
            c = (lead & 31) << 6 | (text[i++] & 63);
        else if (lead >= 0x80)
            return 0;
        const int byte = alphabet_byte(c);
        if (byte < 0) return 0;
        bytes[count++] = (char)byte;
    }
    return count;
}

static int grow_tokens(struct bpe *b, int id, size_t n)
{
    if (id >= b->token_room) {
        const int room = id < 512 ? 1024 : 2 * id;
        struct bpe_entry *tokens = realloc(b->tokens, (size_t)room * sizeof *tokens);
        if (!tokens) return 0;
        memset(tokens + b->token_room, 0, (size_t)(room - b->token_room) * sizeof *tokens);
        b->tokens = tokens;
        b->token_room = room;
    }
    if (b->pool_used + n > b->pool_room) {
        const size_t room = 2 * (b->pool_used + n) + BPE_TOKEN_MAX;
        char *pool = realloc(b->pool, room);
        if (!pool) return 0;
        b->pool = pool;
        b->pool_room = room;
    }
    return 4 * ((size_t)b->names + 1) <= 3 * b->index_slots || grow_index(b);
}

static enum klein_status add(struct bpe *b, const char *name, const char *text, size_t n, int id,
                             struct klein_error *err)
{
    if (id < 0 || id >= BPE_VOCAB_MAX)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: token \"%.64s\" has id %d; 0..%d are possible", name,
                    text, id, BPE_VOCAB_MAX - 1);
    if (!n || n > BPE_TOKEN_MAX)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: token %d has %zu bytes; 1..%d are possible", name, id, n,
                    BPE_TOKEN_MAX);
    if (!grow_tokens(b, id, n)) return no_memory(err);
    const uint32_t hash = hash_text(text, n);
    struct bpe_name *slot = index_slot(b, hash, text, n);
    if (slot->id >= 0)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: token \"%.64s\" has two ids, %d and %d", name, text,
                    slot->id, id);
    if (b->tokens[id].n)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: token \"%.64s\": another one has its id %d", name, text,
                    id);
    memcpy(b->pool + b->pool_used, text, n);
    b->tokens[id] = (struct bpe_entry){.at = (uint32_t)b->pool_used, .n = (uint16_t)n};
    b->pool_used += n;
    *slot = (struct bpe_name){hash, id};
    b->names++;
    if (id >= b->vocab) b->vocab = id + 1;
    return KLEIN_OK;
}

enum klein_status bpe_token(struct bpe *b, const char *name, const char *text, size_t n, int id,
                            struct klein_error *err)
{
    char byte[2];
    TRY(add(b, name, text, n, id, err));
    if (n <= 2 && decode(text, n, byte) == 1) b->byte[(unsigned char)byte[0]] = id;
    return KLEIN_OK;
}

enum klein_status bpe_literal(struct bpe *b, const char *name, const char *text, size_t n, int id,
                              struct klein_error *err)
{
    if (id < 0 || find(b, text, n) != id) TRY(add(b, name, text, n, id, err));
    b->tokens[id].literal = 1;
    return KLEIN_OK;
}

/* The slot of a pair, or the empty one where it belongs. */
static struct bpe_pair *pair_slot(struct bpe_pair *pairs, size_t slots, int32_t left, int32_t right)
{
    const uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (size_t i = (size_t)((key * 0x9e3779b97f4a7c15u) >> 32);; i++) {
        struct bpe_pair *p = &pairs[i & (slots - 1)];
        if (p->left < 0 || (p->left == left && p->right == right)) return p;
    }
}

static int grow_pairs(struct bpe *b)
{
    const size_t slots = b->pair_slots ? 2 * b->pair_slots : 1024;
    struct bpe_pair *pairs = malloc(slots * sizeof *pairs);
    if (!pairs) return 0;
    memset(pairs, -1, slots * sizeof *pairs);
    for (size_t i = 0; i < b->pair_slots; i++)
        if (b->pairs[i].left >= 0)
            *pair_slot(pairs, slots, b->pairs[i].left, b->pairs[i].right) = b->pairs[i];
    free(b->pairs);
    b->pairs = pairs;
    b->pair_slots = slots;
    return 1;
}

enum klein_status bpe_merge(struct bpe *b, const char *name, const char *left, size_t left_n,
                            const char *right, size_t right_n, struct klein_error *err)
{
    char whole[2 * BPE_TOKEN_MAX];
    const int rank = b->merges;
    if (left_n > BPE_TOKEN_MAX || right_n > BPE_TOKEN_MAX)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: merge %d is too long", name, rank);
    memcpy(whole, left, left_n);
    memcpy(whole + left_n, right, right_n);
    const int l = find(b, left, left_n), r = find(b, right, right_n), id = find(b, whole, left_n + right_n);
    if (l < 0 || r < 0 || id < 0)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: merge %d, \"%.*s\" + \"%.*s\": %s not in the vocabulary",
                    name, rank, (int)left_n, left, (int)right_n, right,
                    l < 0   ? "the left part is"
                    : r < 0 ? "the right part is"
                            : "the result is");
    if (4 * ((size_t)rank + 1) > 3 * b->pair_slots && !grow_pairs(b)) return no_memory(err);
    struct bpe_pair *p = pair_slot(b->pairs, b->pair_slots, l, r);
    if (p->left >= 0)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: merge %d, \"%.*s\" + \"%.*s\", repeats merge %d", name,
                    rank, (int)left_n, left, (int)right_n, right, p->rank);
    *p = (struct bpe_pair){l, r, rank, id};
    b->merges++;
    return KLEIN_OK;
}

enum klein_status bpe_finish(struct bpe *b, const char *name, struct klein_error *err)
{
    for (int i = 0; i < 256; i++)
        if (b->byte[i] < 0)
            return fail(err, KLEIN_E_UNSUPPORTED, "%s: no token for byte 0x%02x: not a byte-level vocabulary",
                        name, i);
    if (!b->pairs && !grow_pairs(b)) return no_memory(err);
    for (int id = 0; id < b->vocab; id++) {
        struct bpe_entry *e = &b->tokens[id];
        const size_t n = e->literal ? 0 : decode(b->pool + e->at, e->n, b->pool + e->at);
        if (n) e->n = (uint16_t)n; /* else nothing can be merged into it: it keeps its spelling */
    }
    free(b->index);
    b->index = NULL;
    b->index_slots = 0;
    return KLEIN_OK;
}

/* --- encoding --- */

struct bpe_symbol { /* a token of the piece; token 0 begins at byte 0, tokens stay in place of their first
                       byte */
    int32_t id;     /* -1: merged into the one before */
    int32_t previous, next; /* -1: none */
};

struct bpe_candidate { /* a pair that may be merged, if it is still there: the symbol at `at` and its next */
    int32_t rank, at, id;
};

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (struct bpe_scratch){0};
}

static int grow_scratch(struct bpe_scratch *s, size_t n)
{
    if (n <= s->room) return 1;
    bpe_scratch_free(s);
    const size_t room = 2 * n + 64;
    s->symbols = malloc(room * sizeof *s->symbols);
    s->heap =
        malloc(3 * room * sizeof *s->heap); /* n - 1 pairs at first, each of n - 1 merges adds two at most */
    if (s->symbols && s->heap) s->room = room;
    return s->room > 0;
}

static int before(struct bpe_candidate a, struct bpe_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void push(struct bpe_candidate *heap, size_t *n, struct bpe_candidate c)
{
    size_t i = (*n)++;
    for (; i && before(c, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
}

static struct bpe_candidate pop(struct bpe_candidate *heap, size_t *n)
{
    const struct bpe_candidate top = heap[0], last = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* The merge of the symbol at `at` with its next one; NULL if there is none. */
static const struct bpe_pair *pair_at(const struct bpe *b, const struct bpe_symbol *symbols, int32_t at)
{
    const int32_t id = symbols[at].id, next = symbols[at].next;
    if (id < 0 || next < 0) return NULL;
    const struct bpe_pair *p = pair_slot(b->pairs, b->pair_slots, id, symbols[next].id);
    return p->left < 0 ? NULL : p;
}

static void push_pair(const struct bpe *b, struct bpe_scratch *s, size_t *candidates, int32_t at)
{
    const struct bpe_pair *p = pair_at(b, s->symbols, at);
    if (p) push(s->heap, candidates, (struct bpe_candidate){p->rank, at, p->id});
}

/* The reference's algorithm: of all mergeable neighbours the pair of lowest rank, the leftmost among equals.
 * Outdated candidates are recognised when they come up, by what they would have made. */
enum klein_status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                             int32_t *ids, size_t *count, struct klein_error *err)
{
    size_t candidates = 0;
    if (!grow_scratch(s, n)) return no_memory(err);
    struct bpe_symbol *symbols = s->symbols;

    for (size_t i = 0; i < n; i++)
        symbols[i] = (struct bpe_symbol){b->byte[(unsigned char)text[i]], (int32_t)i - 1,
                                         i + 1 < n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < n; i++) push_pair(b, s, &candidates, (int32_t)i);

    while (candidates) {
        const struct bpe_candidate c = pop(s->heap, &candidates);
        struct bpe_symbol *left = &symbols[c.at];
        const struct bpe_pair *pair = pair_at(b, symbols, c.at);
        if (!pair || pair->id != c.id) continue;
        struct bpe_symbol *right = &symbols[left->next];
        left->id = c.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].previous = c.at;
        if (left->previous >= 0) push_pair(b, s, &candidates, left->previous);
        push_pair(b, s, &candidates, c.at);
    }
    *count = 0;
    for (int32_t i = n ? 0 : -1; i >= 0; i = symbols[i].next) ids[(*count)++] = symbols[i].id;
    return KLEIN_OK;
}
