/* gemm_pick.h: which kernel computes a product of linear_kernel_args: a pure function of the shape and the chip. */
#ifndef KLEIN_GEMM_PICK_H
#define KLEIN_GEMM_PICK_H

#include "../../base/dtype.h"
#include "../../base/error.h"
#include "../device/args.h"
#include "../tuned.h"

/* Kinds of segments as a set: 1 << enum linear_segment_kind. */
enum {
    GEMM_LINEAR = 1 << LINEAR_SEGMENT_PLAIN | 1 << LINEAR_SEGMENT_SILU | 1 << LINEAR_SEGMENT_RESIDUAL,
    GEMM_QKV = 1 << LINEAR_SEGMENT_PLAIN | 1 << LINEAR_SEGMENT_NORM_ROPE | 1 << LINEAR_SEGMENT_SWIGLU
};

struct gemm_shape {
    int arch;                /* 80 for sm_80 */
    int multiprocessors;     /* of the device */
    int shared_max;          /* bytes of shared memory that a block may have */
    enum dtype type;         /* of x and the weights: DT_BF16, DT_F8E4M3 */
    int kinds;               /* of its segments */
    int groups;              /* x has scales per 128 columns */
    int e4m3_y;              /* kinds of which a result is in e4m3, with such scales */
    int rows[LINEAR_GROUPS]; /* of y, per group */
    int segments, w_rows[LINEAR_SEGMENTS];
    int k; /* only for the key */
};

struct gemm_variant {
    const char *name; /* of the kernel */
    int kinds;        /* that it knows */
    int groups;       /* for x with scales per 128 columns */
    int e4m3_y;       /* kinds whose results it can write in e4m3 with such scales */
    enum dtype type;
    int arch;       /* the least */
    int arch_exact; /* runs on `arch` only */
    int bm, bn;
    unsigned threads, shared;
    int blocks;  /* that a multiprocessor's registers hold */
    double rate; /* of its main loop, relative to the others': an estimate, see gemm_pick.c */
};

/* The i-th variant; NULL past the last. */
const struct gemm_variant *gemm_variant(int i);
/* Whether nvcc makes e4m3 products of mma.sync from f16 ones on that chip, which has no such instruction. */
int gemm_e4m3_by_f16(int arch);
/* Whether v is for results in e4m3 (gemm_to_e4m3_sm89.cu, _sm90.cu): at least one of NORM_ROPE and PLAIN; of GEMM_LINEAR all. */
int gemm_to_e4m3(const struct gemm_variant *v);
/* Whether v computes s rightly on s->arch. Kernels of exactly sm_90 are launched by gemm_sm90_launch. */
int gemm_takes(const struct gemm_variant *v, const struct gemm_shape *s);
/* Tiles, and blocks of a launch with a block per tile. */
int64_t gemm_tiles(const struct gemm_variant *v, const struct gemm_shape *s);
/* The variant for s. `among` (NULL or "": all), as KLEIN_GEMM is: names of kernels with commas between, one of which is taken.
 * KLEIN_E_INPUT if there is none of such a name, KLEIN_E_UNSUPPORTED if none of them takes s. */
enum klein_status gemm_pick(const struct gemm_shape *s, const char *among, const struct gemm_variant **out,
                            struct klein_error *err);
/* The variant of that name if it takes s; else, and for no name, NULL. */
const struct gemm_variant *gemm_named(const struct gemm_shape *s, const char *name);
/* What a table of tuned kernels calls s: all but the chip. */
void gemm_key(const struct gemm_shape *s, char out[TUNED_KEY]);
/* Why the rules pick v, for people. */
void gemm_reason(const struct gemm_shape *s, const struct gemm_variant *v, char *out, size_t size);

#endif
