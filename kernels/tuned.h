/* tuned.h: which kernel was the fastest for which shape on a GPU: the table that `klein tune` writes and a device is opened with.
 *
 * A file in the user's cache, one per kind of GPU, JSON:
 *   {"klein": "0.1.0", "gpu": "NVIDIA H100 80GB HBM3", "arch": 90, "multiprocessors": 132, "driver": 13000,
 *    "shapes": [{"shape": KEY, "kernel": NAME, "built_in": NAME, "candidates": [{"kernel": NAME, "seconds": S} or {"kernel", "excluded": WHY}],
 *                "peers": [{"library": "cuDNN", "seconds": S, "ours": S} or {"library": "cuBLASLt", "excluded": WHY}]}]}
 * KEY is what gemm_key, attention_key and conv_key (the pick headers) make of a shape. */
#ifndef KLEIN_TUNED_H
#define KLEIN_TUNED_H

#include "../base/error.h"

#include <jansson.h>

enum { TUNED_KEY = 160, TUNED_PATH = 1024 };

/* What a table is valid for. */
struct tuned_for {
    const char *version; /* of klein */
    const char *gpu;
    int arch, multiprocessors, driver;
};

struct tuned {
    json_t *file; /* the object above; the strings below are in it */
    struct tuned_row {
        const char *key, *kernel;
        const json_t *shape; /* its element of "shapes" */
    } * row;
    int n;
};

/* $XDG_CACHE_HOME/klein/tune-GPU-smARCH.json, or in ~/.cache. KLEIN_E_OUTPUT: neither variable is set, or too long. */
enum klein_status tuned_path(const struct tuned_for *f, char out[TUNED_PATH], struct klein_error *err);
/* An empty table. NULL: no memory. Free with tuned_free. */
struct tuned *tuned_new(const struct tuned_for *f);
/* *out is NULL with KLEIN_OK if there is no such file. KLEIN_E_INPUT, with a line for the user, if it is no such table, or one of another
 * GPU, driver or version, or names a kernel that is not there. */
enum klein_status tuned_read(const char *path, const struct tuned_for *f, struct tuned **out,
                             struct klein_error *err);
/* Takes an element of "shapes" over (also on failure), in place of that of the same key. */
enum klein_status tuned_add(struct tuned *t, json_t *shape, struct klein_error *err);
/* By rename; makes the folders that are missing. */
enum klein_status tuned_write(const struct tuned *t, const char *path, struct klein_error *err);
void tuned_free(struct tuned *t); /* NULL allowed */

/* NULL: the table (or NULL) has none of that key. */
const struct tuned_row *tuned_find(const struct tuned *t, const char *key);
const char *tuned_kernel(const struct tuned *t, const char *key);

#endif
