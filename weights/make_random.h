/* make_random.h: writes a checkpoint of random weights in the official diffusers layout: a stand-in of the
 * real size and shape for latency work, and material for tests. The values are those of checkpoint_random
 * with the same configuration and seed in BF16. */
#ifndef KLEIN_MAKE_RANDOM_H
#define KLEIN_MAKE_RANDOM_H

#include "checkpoint.h"

struct make_random_options {
    const struct model_config *config;
    const char *dir; /* created; if it exists it must be an empty folder */
    uint64_t seed;
    const char
        *tokenizer_dir; /* copied from; NULL: a tokenizer of single bytes and the special tokens is written */
    int used_only;      /* leave out the text encoder's last layers, which klein does not read (but diffusers
                           wants) */
    uint64_t shard_bytes; /* largest file; 0: as Hugging Face does it (text encoder 5 GB, others 10 GB) */
    int (*progress)(void *user, uint64_t done, uint64_t total); /* bytes; non-zero: cancel. May be NULL */
    void *user;
};

/* `bind` asks the checkpoint for every tensor of the model (engine/model.h: model_visit). The folder appears
 * when it is complete: a temporary one beside it is renamed, or removed after a failure. Errors:
 * KLEIN_E_OUTPUT (also too little space), KLEIN_E_USAGE, KLEIN_E_NO_MEMORY, KLEIN_E_CANCELLED, and those of
 * the tokenizer. */
enum klein_status make_random(const struct make_random_options *o,
                              enum klein_status (*bind)(struct checkpoint *, struct klein_error *),
                              struct klein_error *err);

#endif
