/* attention_pick.h: which kernel computes an attention: a pure function of the shape and the chip. */
#ifndef KLEIN_ATTENTION_PICK_H
#define KLEIN_ATTENTION_PICK_H

#include "../../base/dtype.h"
#include "../../base/error.h"
#include "../tuned.h"

struct attention_shape {
    int arch;            /* 80 for sm_80 */
    int multiprocessors; /* of the device */
    enum dtype act;
    int heads, queries, keys, head_dim;
    int aligned; /* pointers and rows of q, k, v, o are multiples of 16 bytes */
    int e4m3;    /* o is F8_E4M3 */
};

struct attention_variant {
    const char *name; /* of the kernel */
    int rows;         /* queries per block */
    unsigned threads, shared;
    int maps;   /* takes attention_sm90_args, else flash_args */
    int halves; /* the last round's blocks can be cut in two: attention_cut */
};

/* The i-th variant; NULL past the last. */
const struct attention_variant *attention_variant(int i);
/* Whether v computes s rightly. */
int attention_takes(const struct attention_variant *v, const struct attention_shape *s);
/* The variant for s. `forced` (NULL or "": nobody) names one, as KLEIN_ATTENTION does: KLEIN_E_INPUT if there is none of that name,
 * KLEIN_E_UNSUPPORTED if it does not take s, or if none does. */
enum klein_status attention_pick(const struct attention_shape *s, const char *forced,
                                 const struct attention_variant **out, struct klein_error *err);
/* The variant of that name if it takes s; else, and for no name, NULL. */
const struct attention_variant *attention_named(const struct attention_shape *s, const char *name);
/* What a table of tuned kernels calls s: all but the chip. */
void attention_key(const struct attention_shape *s, char out[TUNED_KEY]);
/* Why the rules pick v, for people. */
void attention_reason(const struct attention_shape *s, const struct attention_variant *v, char *out,
                      size_t size);
/* Blocks of a head. */
int attention_blocks(const struct attention_variant *v, const struct attention_shape *s);
/* A launch: `whole` blocks of v->rows queries, then `halves` of half as many. Where what is left for a last round occupies no more than
 * half of the multiprocessors, all of it is halves: two multiprocessors have it done sooner than one, and rows are what they were. */
struct attention_cut {
    int64_t whole, halves;
};
struct attention_cut attention_cut(const struct attention_variant *v, const struct attention_shape *s);

#endif
