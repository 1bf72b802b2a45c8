#include "qwen3.h"

#include <math.h>
#include <stdio.h>

enum klein_status qwen3_bind(struct qwen3 *q, struct checkpoint *c, struct klein_error *err)
{
    const struct text_config *t = q->cfg = &checkpoint_config(c)->text;
    q->layers = t->outputs[t->n_outputs - 1];
    CHECK(q->layers <= QWEN3_MAX_LAYERS);
    char name[128];
#define MATRIX(to, n, k, ...)                                                                                \
    (snprintf(name, sizeof name, __VA_ARGS__),                                                               \
     checkpoint_tensor(c, PART_TEXT, name, 2, (int64_t[]){n, k}, to, err))
#define VECTOR(to, n, ...)                                                                                   \
    (snprintf(name, sizeof name, __VA_ARGS__),                                                               \
     checkpoint_tensor(c, PART_TEXT, name, 1, (int64_t[]){n}, to, err))
    TRY(MATRIX(&q->embed, t->vocab, t->width, "model.embed_tokens.weight"));
    for (int i = 0; i < q->layers; i++) {
        struct qwen3_layer *l = &q->layer[i];
        int d = t->width, dq = t->heads * t->head_dim, dkv = t->kv_heads * t->head_dim;
        TRY(VECTOR(&l->input_norm, d, "model.layers.%d.input_layernorm.weight", i));
        TRY(MATRIX(&l->qkv.part[0], dq, d, "model.layers.%d.self_attn.q_proj.weight", i));
        TRY(MATRIX(&l->qkv.part[1], dkv, d, "model.layers.%d.self_attn.k_proj.weight", i));
        TRY(MATRIX(&l->qkv.part[2], dkv, d, "model.layers.%d.self_attn.v_proj.weight", i));
        l->qkv.parts = 3;
        TRY(VECTOR(&l->q_norm, t->head_dim, "model.layers.%d.self_attn.q_norm.weight", i));
        TRY(VECTOR(&l->k_norm, t->head_dim, "model.layers.%d.self_attn.k_norm.weight", i));
        TRY(MATRIX(&l->out, d, dq, "model.layers.%d.self_attn.o_proj.weight", i));
        TRY(VECTOR(&l->post_norm, d, "model.layers.%d.post_attention_layernorm.weight", i));
        TRY(MATRIX(&l->gate_up.part[0], t->mlp_width, d, "model.layers.%d.mlp.gate_proj.weight", i));
        TRY(MATRIX(&l->gate_up.part[1], t->mlp_width, d, "model.layers.%d.mlp.up_proj.weight", i));
        l->gate_up.parts = 2;
        TRY(MATRIX(&l->down, d, t->mlp_width, "model.layers.%d.mlp.down_proj.weight", i));
    }
#undef MATRIX
#undef VECTOR
    return KLEIN_OK;
}

struct rope qwen3_rope(struct run *r, const struct qwen3 *q, int length)
{
    return rope_1d(r, length, q->cfg->head_dim, q->cfg->rope_theta);
}

void qwen3_forward(struct run *r, const struct qwen3 *q, struct tensor ctx, struct qwen3_prompt prompt,
                   struct rope rope)
{
    const struct text_config *t = q->cfg;
    int n = ctx.rows, d = t->width, dq = t->heads * t->head_dim, dkv = t->kv_heads * t->head_dim;
    size_t mark = arena_mark(r->arena, r->end);
    struct tensor h = run_tensor(r, r->act, n, d), a = run_tensor(r, r->act, n, d),
                  o = run_tensor(r, r->act, n, dq);
    struct tensor xq = run_tensor(r, r->act, n, dq), xk = run_tensor(r, r->act, n, dkv),
                  xv = run_tensor(r, r->act, n, dkv);
    struct tensor u = run_tensor(r, r->act, n, t->mlp_width);

    run_embed(r, &(struct embed_args){.y = h, .table = q->embed, .ids = prompt.ids});
    for (int i = 0, output = 0; i < q->layers; i++) {
        const struct qwen3_layer *l = &q->layer[i];
        run_rmsnorm(r, &(struct rmsnorm_args){.y = a, .x = h, .w = l->input_norm, .eps = t->eps});
        run_linear(r,
                   &(struct linear_args){.x = a,
                                         .epilogue = LINEAR_QKV,
                                         .group[0] = {.w = l->qkv, .q_norm = l->q_norm, .k_norm = l->k_norm},
                                         .qkv = {.q = xq,
                                                 .k = xk,
                                                 .v = xv,
                                                 .cos = rope.cos,
                                                 .sin = rope.sin,
                                                 .heads = t->heads,
                                                 .kv_heads = t->kv_heads,
                                                 .head_dim = t->head_dim,
                                                 .pairs = ROPE_HALF,
                                                 .eps = t->eps}});
        run_attention(r, &(struct attention_args){.o = o,
                                                  .q = xq,
                                                  .k = xk,
                                                  .v = xv,
                                                  .keys = prompt.real,
                                                  .heads = t->heads,
                                                  .kv_heads = t->kv_heads,
                                                  .head_dim = t->head_dim,
                                                  .causal = 1,
                                                  .scale = 1 / sqrtf((float)t->head_dim)});
        run_linear(
            r,
            &(struct linear_args){
                .y = h, .x = o, .epilogue = LINEAR_RESIDUAL, .residual = h, .group[0].w = weight_of(l->out)});
        run_rmsnorm(r, &(struct rmsnorm_args){.y = a, .x = h, .w = l->post_norm, .eps = t->eps});
        run_linear(
            r, &(struct linear_args){.y = u, .x = a, .epilogue = LINEAR_SWIGLU, .group[0].w = l->gate_up});
        run_linear(r, &(struct linear_args){.y = h,
                                            .x = u,
                                            .epilogue = LINEAR_RESIDUAL,
                                            .residual = h,
                                            .group[0].w = weight_of(l->down)});
        if (i + 1 == t->outputs[output])
            run_copy(r, &(struct copy_args){.y = tensor_cols(ctx, d * output++, d), .x = h});
    }
    arena_release(r->arena, r->end, mark);
}
