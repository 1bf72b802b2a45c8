/* conv_pick.h: which kernel computes a convolution, and in bands of how many rows: pure functions of the shape and the chip. */
#ifndef KLEIN_CONV_PICK_H
#define KLEIN_CONV_PICK_H

#include "../../base/dtype.h"
#include "../../base/error.h"
#include "../tuned.h"

#include <stdint.h>

struct conv_shape {
    int arch;            /* 80 for sm_80 */
    int multiprocessors; /* of the device */
    enum dtype act;
    int cin, cout, ksize, stride, upsample;
    int rows, ow; /* of y */
    int placed;   /* bias is F32 or absent, w 16-byte aligned */
    int aligned;  /* pointers and rows of y and residual are multiples of 16 bytes, cout of 8 */
};

struct conv_variant {
    const char *name;   /* of the kernel */
    int tile_w, tile_h; /* pixels of y per block; tile_h 1: any tile_w pixels one after the other */
    int tile_n;         /* couts per block */
    unsigned threads, shared;
    int persistent; /* as many blocks as multiprocessors, which walk over the tiles */
    int cost;       /* of a tile and k block, relative to the others' that run on the same chip */
};

/* The i-th variant; NULL past the last. */
const struct conv_variant *conv_variant(int i);
/* Whether v computes s rightly. */
int conv_takes(const struct conv_variant *v, const struct conv_shape *s);
/* The variant for s. `among` (NULL or "": all), as KLEIN_CONV is: names of kernels with commas between, one of which is taken.
 * KLEIN_E_INPUT if there is none of such a name, KLEIN_E_UNSUPPORTED if none of them takes s. */
enum klein_status conv_pick(const struct conv_shape *s, const char *among, const struct conv_variant **out,
                            struct klein_error *err);
/* The variant of that name if it takes s; else, and for no name, NULL. */
const struct conv_variant *conv_named(const struct conv_shape *s, const char *name);
/* What a table of tuned kernels calls s: all but the chip. */
void conv_key(const struct conv_shape *s, char out[TUNED_KEY]);
/* Why the rules pick v, for people. */
void conv_reason(const struct conv_shape *s, const struct conv_variant *v, char *out, size_t size);
/* Chunks of pixels for which v finds the moments of `rows` rows of y (args.h: moments); 0: it does not. */
int64_t conv_chunks(const struct conv_variant *v, const struct conv_shape *s, int rows);
/* Tiles of a launch that makes `rows` rows of y. */
int64_t conv_tiles(const struct conv_variant *v, const struct conv_shape *s, int rows);
/* Rows of y per launch, if at most `most` (>= 1) are possible: the number that leaves the fewest multiprocessors idle. Enlarged
 * images: even numbers. */
int conv_band_rows(const struct conv_variant *v, const struct conv_shape *s, int most);

#endif
