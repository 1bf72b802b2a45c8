/* models.h: small checkpoints on disk, whole and damaged. */
#ifndef KLEIN_TEST_MODELS_H
#define KLEIN_TEST_MODELS_H

#include "../../weights/checkpoint.h"
#include "../../weights/safetensors.h"

/* All kinds of structure at the least size: D 256, 1 + 2 blocks, text width 32 with 4 layers of which 3 are used, VAE 32 32 64 64. */
struct model_config small_config(void);

/* "<test_dir()>/<printf-style>"; lives until the test ends. */
__attribute__((format(printf, 1, 2))) const char *in_test_dir(const char *format, ...);

/* A random checkpoint of that configuration as a diffusers folder in the test directory; returns its path. `shard_bytes` as in make_random. */
const char *small_model(const char *name, const struct model_config *c, uint64_t shard_bytes);

/* One change of a safetensors file. */
struct edit {
    const char *tensor; /* NULL: every tensor */
    enum { EDIT_DROP, EDIT_RENAME, EDIT_PREFIX, EDIT_DTYPE, EDIT_SHAPE, EDIT_DOUBLE } what;
    const char *text; /* new name, or prefix; EDIT_DOUBLE: name of the copy */
    enum dtype dtype; /* EDIT_DTYPE: values are converted to F32 or F16, bytes are reinterpreted for others */
    int ndim;         /* EDIT_SHAPE: the first elements are kept, or zeros follow */
    int64_t shape[4];
};
#define DROP(name)                                                                                           \
    {                                                                                                        \
        .tensor = name, .what = EDIT_DROP                                                                    \
    }
#define RENAME(name, to)                                                                                     \
    {                                                                                                        \
        .tensor = name, .what = EDIT_RENAME, .text = to                                                      \
    }
#define PREFIX(prefix)                                                                                       \
    {                                                                                                        \
        .what = EDIT_PREFIX, .text = prefix                                                                  \
    }
#define DTYPE(name, type)                                                                                    \
    {                                                                                                        \
        .tensor = name, .what = EDIT_DTYPE, .dtype = type                                                    \
    }
#define SHAPE(name, n, ...)                                                                                  \
    {                                                                                                        \
        .tensor = name, .what = EDIT_SHAPE, .ndim = n, .shape = { __VA_ARGS__ }                              \
    }
#define DOUBLE(name, copy)                                                                                   \
    {                                                                                                        \
        .tensor = name, .what = EDIT_DOUBLE, .text = copy                                                    \
    }
/* Writes `from` with the edits applied to `to` (which may be `from`). */
void edit_tensors(const char *from, const char *to, const struct edit *edits, int n);

/* BFL-named copies of a diffusers folder's part, written from the tables of the model description, not by weights/layout.c. */
void write_bfl_transformer(const char *folder, const char *to);
void write_bfl_vae(const char *folder, const char *to,
                   int bare_decoder); /* bare: decoder alone, without "decoder." */

void write_text(const char *path, const char *text);
/* Sets `key` of a JSON file to a JSON value; removes it if `value` is NULL. */
void edit_json(const char *path, const char *key, const char *value);
void copy_tree(const char *from, const char *to);
void remove_tree(const char *path);

#endif
