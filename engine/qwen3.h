/* qwen3.h: the text encoder: Qwen3 up to the last hidden state that the image model reads. source:
 * model 4.2, 4.3 */
#ifndef KLEIN_QWEN3_H
#define KLEIN_QWEN3_H

#include "rope.h"
#include "../weights/checkpoint.h"

#define QWEN3_MAX_LAYERS 128

struct qwen3 {
    const struct text_config *cfg;
    struct tensor embed; /* [vocab, width] */
    int layers;          /* that are needed: the last of cfg->outputs */
    struct qwen3_layer {
        struct tensor input_norm, post_norm; /* [1, width] */
        struct weight qkv;                   /* [(heads + 2 kv_heads) * head_dim, width] */
        struct tensor q_norm, k_norm;        /* [1, head_dim] */
        struct weight gate_up;               /* [2 mlp_width, width] */
        struct tensor out, down;             /* [width, heads * head_dim], [width, mlp_width] */
    } layer[QWEN3_MAX_LAYERS];
};

enum klein_status qwen3_bind(struct qwen3 *q, struct checkpoint *c, struct klein_error *err);

/* The tables for `length` tokens. */
struct rope qwen3_rope(struct run *r, const struct qwen3 *q, int length);

/* A prompt in device memory: ids [1, length] I32, and in real [1, 1] I32 how many of them come before the padding. */
struct qwen3_prompt {
    struct tensor ids, real;
};

/* ctx [length, outputs * width] act: the hidden states after each of cfg->outputs layers, side by side. Padding rows attend to the
 * prompt and to nothing else. */
void qwen3_forward(struct run *r, const struct qwen3 *q, struct tensor ctx, struct qwen3_prompt prompt,
                   struct rope rope);

#endif
