/* dit.h: the image model, a rectified-flow transformer with double- and single-stream blocks. source: model 3
 *
 * Tokens are always in the order [text ; target image ; reference 1 ; reference 2 ; ...]. Both streams of a
 * double block live in one buffer z [tokens, D]: rows < n_text are text and use the text weights, the others
 * are image (linear's two groups).
 *
 * A velocity is of the target's rows alone, so the last block makes k and v of text and references, and nothing else of them: what it adds to
 * their rows nobody reads, unless it is tapped (run.h: tap_blocks).
 *
 * Several devices (run.h: tokens) each have a part of the text's rows, of the target's and of the references', and all weights. Only
 * attention needs all tokens: around it rows are exchanged for heads (Ulysses), so each computes all tokens of its heads.
 *
 * Where devices reach each other's memory the product that makes q, k and v stores each head's rows at the device that has the head, and
 * attention each row of o at the device that has the token (ops.h: exchange_to); after each of the two all devices meet, and once before
 * the first product of a forward pass, as others may still use that part of their arenas for something else. More is not needed: what a
 * store of one kind replaces (q, k, v of the block before; its o) was last read before the meeting that the stores of the other kind end
 * with, by attention and by the product after it. */
#ifndef KLEIN_DIT_H
#define KLEIN_DIT_H

#include "rope.h"
#include "../weights/checkpoint.h"

#define DIT_MAX_BLOCKS 128
#define DIT_MAX_SPANS  18 /* text, target, 16 references */

enum { DIT_TEXT, DIT_IMAGE }; /* the two groups of a double block */

struct dit {
    const struct dit_config *cfg;
    struct tensor x_embedder, context_embedder; /* [D, in_channels], [D, text_width] */
    struct tensor time_in, time_out;            /* [D, timestep_channels], [D, D] */
    struct tensor modulation[2],
        modulation_single; /* [6 D, D] per stream: shift, scale, gate of attention, then of MLP; [3 D, D] */
    struct tensor final_scale, final_shift; /* [D, D] */
    struct tensor proj_out;                 /* [in_channels, D] */
    struct dit_double {
        struct dit_stream {
            struct weight qkv;                   /* [3 D, D] */
            struct tensor q_norm, k_norm;        /* [1, head_dim] */
            struct tensor proj, mlp_in, mlp_out; /* [D, D], [2 mlp, D] gate then up, [D, mlp] */
        } stream[2];
    } doubles[DIT_MAX_BLOCKS];
    struct dit_single {
        struct tensor in;             /* [3 D + 2 mlp, D]: q, k, v, gate, up */
        struct tensor q_norm, k_norm; /* [1, head_dim] */
        struct tensor out;            /* [D, D + mlp]: attention, mlp */
    } singles[DIT_MAX_BLOCKS];
};

enum klein_status dit_bind(struct dit *m, struct checkpoint *c, struct klein_error *err);

/* Everything that depends on the timestep alone, as one row of vectors of D: text stream, image stream, single-stream blocks, output. */
enum {
    DIT_MOD_TEXT = 0, /* shift, scale, gate of attention, then of MLP */
    DIT_MOD_IMAGE = 6,
    DIT_MOD_SINGLE = 12, /* shift, scale, gate */
    DIT_MOD_SCALE = 15,
    DIT_MOD_SHIFT,
    DIT_MOD
};

/* What depends on the images' sizes alone: built once per arena. The last two are of several devices that store for each other. */
struct dit_tables {
    struct rope rope;        /* [own tokens, head_dim / 2] */
    struct tensor to_all;    /* [1, own tokens] I32: which row among all an own one is */
    struct tensor to_owners; /* [1, tokens] I32: which device has a row, and where; both as in exchange_to */
};

/* What all steps of a request share: built once, from the arena of the run. */
struct dit_request {
    int n_text, n_target, n_tokens;
    struct tensor text;       /* [n_text, D] act: context_embedder(ctx) */
    struct tensor references; /* [n_tokens - n_text - n_target, D] act, rows may be 0 */
    struct dit_tables tables;
    struct tensor modulation; /* [steps, DIT_MOD * D] f32 */
    struct tensor now;        /* [1, DIT_MOD * D] f32: the row of the step that is computed; dit_select */
};

/* The rows of the text, of the target and of the references that a device has, counted within each of them. */
enum { DIT_TARGET = 1, DIT_REFERENCES, DIT_PARTS };
struct dit_rows {
    int first[DIT_PARTS], n[DIT_PARTS];
};
struct dit_rows dit_rows_of(struct share tokens, int rank, int n_text, int n_target, int n_references);

/* An image as the model sees it: rows x cols tokens. */
struct dit_image {
    int rows, cols;
    struct tensor latents; /* [rows * cols, in_channels] f32; unused for the target */
};

/* The tables for n_text tokens of text, the target and the references. */
struct dit_tables dit_tables(struct run *r, const struct dit *m, int n_text, struct dit_image target,
                             const struct dit_image *references, int n_references);

/* ctx [n_text, text_width] act; tables from dit_tables of the same images; sigmas [1, steps] f32. */
void dit_prepare(struct run *r, const struct dit *m, struct dit_request *q, struct tensor ctx,
                 struct dit_tables tables, struct dit_image target, const struct dit_image *references,
                 int n_references, struct tensor sigmas);

/* The next forward passes are at the step whose number is in step [1, 1] I32. */
void dit_select(struct run *r, const struct dit_request *q, struct tensor step);

/* The part of a request that depends on the prompt, for another prompt over the same everything else
 * (guidance). */
struct dit_request dit_with_text(struct run *r, const struct dit *m, const struct dit_request *q,
                                 struct tensor ctx);

/* v [own target tokens, in_channels] f32 = velocity at x, likewise, at the selected step; `step` names it in taps. */
void dit_forward(struct run *r, const struct dit *m, const struct dit_request *q, int step, struct tensor x,
                 struct tensor v);

#endif
