/* tokenizer.h: the Qwen3 tokenizer (byte-level BPE) and the chat template around a prompt.   source: model 4.1, 4.2, 4.4
 * Immutable after opening: one tokenizer may be used from several threads. */
#ifndef KLEIN_TOKENIZER_H
#define KLEIN_TOKENIZER_H

#include "../base/error.h"

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* From a folder with tokenizer.json, or vocab.json + merges.txt (added tokens then from tokenizer_config.json or added_tokens.json,
 * else Qwen3's own). */
enum klein_status tokenizer_open(const char *dir, struct tokenizer **out, struct klein_error *err);
/* From the bytes of a tokenizer.json (fuzz target). */
enum klein_status tokenizer_from_json(const char *json, size_t bytes, const char *name,
                                      struct tokenizer **out, struct klein_error *err);
void tokenizer_close(struct tokenizer *t); /* NULL allowed */

int tokenizer_vocab(const struct tokenizer *t); /* ids are in [0, vocab) */

/* Plain encoding of UTF-8 text (added tokens recognised). *ids is malloc'ed, the caller frees it. Invalid UTF-8: KLEIN_E_USAGE with the byte offset. */
enum klein_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, int32_t **ids,
                                   int *n, struct klein_error *err);

/* The bytes of one token; for messages ("cut after ..."). Lives as long as t; NULL if there is no such id. */
const char *tokenizer_token(const struct tokenizer *t, int id, size_t *bytes);

/* Template + encode + truncate on the right + pad on the right with <|endoftext|>: exactly `length` ids. (A tokenizer that lacks
 * one of the template's tokens is refused when it is opened.)
 * *real = tokens before the padding; *whole = tokens before truncation (> length: something was cut). */
enum klein_status tokenizer_prompt(const struct tokenizer *t, const char *prompt, int length, int32_t *ids,
                                   int *real, int *whole, struct klein_error *err);

#endif
