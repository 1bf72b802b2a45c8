/* layout.h: the names that tensors have in the files of others, and ours.
 *
 * BFL's names (model 2.5, appendix A), prefixes that redistributions put before them, and decoder-only files
 * without the `decoder.` before their names all become the canonical names of checkpoint.h. The rules are by
 * name alone, so nothing has to be known about the file: no name of one naming occurs in the other with
 * another meaning. */
#ifndef KLEIN_LAYOUT_H
#define KLEIN_LAYOUT_H

#include "checkpoint.h"

#define LAYOUT_PIECES   3
#define LAYOUT_NAME_MAX 160

/* A file's tensor is cut by rows into `n` equal pieces, in this order; usually 1. */
struct layout {
    int n;
    char name[LAYOUT_PIECES][LAYOUT_NAME_MAX];
};

/* Returns 0, and nothing in *out, if the name is canonical already (or not one we know). */
int layout_translate(enum checkpoint_part part, const char *name, struct layout *out);

/* Does a canonical name belong to what is in the files but not needed: text encoder layers from `text_layers`
 * on, the final norm, lm_head, the batch counter of the VAE's BatchNorm? */
int layout_ignored(enum checkpoint_part part, const char *name, int text_layers);

/* "model.layers." and "model.layers.12.mlp..." gives 12; -1 if the name does not start so or has no number of
 * at most 3 digits. */
int layout_index(const char *name, const char *prefix);

#endif
