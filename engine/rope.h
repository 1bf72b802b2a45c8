/* rope.h: rotary position tables, [tokens, head_dim / 2] f32 each, angles computed in f64.         source:
 * model 3.3, 4.3 */
#ifndef KLEIN_ROPE_H
#define KLEIN_ROPE_H

#include "run.h"

struct rope {
    struct tensor cos, sin;
};

/* Positions 0..n-1, one axis: frequency j is theta^(-2j / head_dim). */
struct rope rope_1d(struct run *r, int n, int head_dim, double theta);

/* A run of tokens with four coordinates (T, H, W, L): rows x cols of an image at T = t, or text (rows = 1)
 * along L. */
struct rope_span {
    int t, rows, cols;
    int text;     /* 1: coordinates (0, 0, 0, 0..cols-1); 0: (t, 0..rows-1, 0..cols-1, 0) */
    int first, n; /* only n of its tokens, from that one on */
};

/* Four axes of axis_dims[i] dims each (their sum is head_dim), spans one after the other; in memory for `room` rows. */
struct rope rope_4d(struct run *r, const struct rope_span *spans, int n_spans, int room, const int *axis_dims,
                    double theta);

#endif
