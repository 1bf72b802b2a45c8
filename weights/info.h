/* info.h: facts about an open checkpoint, for `klein info`. Ask after the model was bound (engine/model.h): before, nothing is used. */
#ifndef KLEIN_INFO_H
#define KLEIN_INFO_H

#include "checkpoint.h"

struct part_info {
    const char *path;   /* file or folder; NULL for a checkpoint without files */
    const char *naming; /* "diffusers" or "BFL" (also its prefixed variants); NULL without files */
    int files;
    struct {
        uint64_t tensors, parameters,
            bytes; /* tensors by canonical name: fused ones of BFL files count as their parts */
    } all, used;   /* all: of the opened files; shards with nothing but unused layers are not opened */
    uint64_t parameters_by_dtype[DT_COUNT]; /* of the used ones */
};
void checkpoint_part_info(const struct checkpoint *c, enum checkpoint_part part, struct part_info *out);

/* Tensor i of a part's files, by canonical name; returns 0 past the end. Strings live as long as c. */
struct tensor_info {
    const char *name;      /* canonical */
    const char *file_name; /* the tensor's name in the file */
    const char *file;      /* path */
    const char *dtype;
    int ndim;
    int64_t shape[8];  /* in the file */
    int piece, pieces; /* this is the piece-th of so many equal row ranges */
    enum { TENSOR_USED, TENSOR_IGNORED, TENSOR_UNKNOWN } state;
};
int checkpoint_part_tensor(const struct checkpoint *c, enum checkpoint_part part, int i,
                           struct tensor_info *out);

/* Do the VAE's BatchNorm statistics look like those of the FLUX.2 VAE: variances within 2.9..3.5, means near-equal in groups of four
 * (model 5)? One line about it in text[0..n). Not a reason to refuse a checkpoint: others may have been trained. */
int checkpoint_vae_sanity(const struct checkpoint *c, char *text, size_t n);

#endif
