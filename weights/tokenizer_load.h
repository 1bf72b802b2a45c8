/* tokenizer_load.h: what a tokenizer consists of; filled by tokenizer_load.c, used by tokenizer.c. */
#ifndef KLEIN_TOKENIZER_LOAD_H
#define KLEIN_TOKENIZER_LOAD_H

#include "bpe.h"
#include "tokenizer.h"

struct tokenizer {
    struct bpe bpe; /* vocabulary with the added tokens, merges */
    int nfc;        /* text between added tokens is normalised */
    int32_t pad;    /* <|endoftext|> */
    int32_t *added; /* ids of the added tokens, longest first: found in the raw text before anything else */
    int n_added;
    unsigned char starts[256]; /* 1: some added token begins with that byte */
};

/* Both fill a zeroed t; on failure the caller frees what is there with tokenizer_close. */
enum klein_status tokenizer_load_json(struct tokenizer *t, const char *json, size_t bytes, const char *name,
                                      struct klein_error *err);
enum klein_status tokenizer_load_dir(struct tokenizer *t, const char *dir, struct klein_error *err);

#endif
