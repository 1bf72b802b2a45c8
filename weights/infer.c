/* Sizes from tensor shapes: all there is for single files, and a cross-check of the config.json of folders.
 */
#include "parts.h"
#include "layout.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct shapes {
    const struct part *part;
    struct klein_error *err; /* sticky */
};

/* Dimension d of the tensor of that (printf-style) name; 1 after a failure. */
__attribute__((format(printf, 3, 4))) static int dim(const struct shapes *s, int d, const char *format, ...)
{
    char name[LAYOUT_NAME_MAX];
    va_list ap;
    va_start(ap, format);
    vsnprintf(name, sizeof name, format, ap);
    va_end(ap);
    const struct source *t = part_find(s->part, name);
    static const char *const what[PART_COUNT] = {"FLUX.2 transformer", "Qwen3 text encoder", "FLUX.2 VAE"};
    if (!t) {
        fail(s->err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %s is missing; this is not a %s, or not all of it",
             s->part->path, name, what[s->part->which]);
    } else if (t->tensor->ndim <= d || source_dim(t, d) < 1 || source_dim(t, d) > 1 << 30) {
        fail(s->err, KLEIN_E_MODEL_CORRUPT, "%s: tensor %s has no dimension %d of a sensible size",
             st_path(t->file), name, d);
    } else {
        return (int)source_dim(t, d);
    }
    return 1;
}

static int has(const struct shapes *s, const char *name)
{
    return part_find(s->part, name) != NULL;
}

/* 1 + the largest N of names "<prefix>N."; 0 if there is none. */
static int count(const struct shapes *s, const char *prefix)
{
    int n = 0;
    for (int i = 0; i < s->part->sources; i++) {
        int index = layout_index(s->part->source[i].name, prefix);
        if (index >= n) n = index + 1;
    }
    return n;
}

static void infer_dit(const struct shapes *s, struct dit_config *d)
{
    if (count(s, "double_blocks.") || count(s, "single_blocks."))
        fail(s->err, KLEIN_E_UNSUPPORTED, "%s: has blocks that FLUX.2 [klein] does not have; is it FLUX.1?",
             s->part->path);
    if (has(s, "time_guidance_embed.guidance_embedder.linear_1.weight"))
        fail(s->err, KLEIN_E_UNSUPPORTED,
             "%s: has guidance_in tensors: this is FLUX.2 [dev], only [klein] is supported", s->part->path);
    d->width = dim(s, 0, "x_embedder.weight");
    d->in_channels = dim(s, 1, "x_embedder.weight");
    d->text_width = dim(s, 1, "context_embedder.weight");
    d->timestep_channels = dim(s, 1, "time_guidance_embed.timestep_embedder.linear_1.weight");
    d->head_dim = dim(s, 0, "transformer_blocks.0.attn.norm_q.weight");
    d->heads = d->width / d->head_dim;
    d->mlp_width = dim(s, 1, "transformer_blocks.0.ff.linear_out.weight");
    d->double_blocks = count(s, "transformer_blocks.");
    d->single_blocks = count(s, "single_transformer_blocks.");
}

static void infer_text(const struct shapes *s, struct text_config *t)
{
    t->vocab = dim(s, 0, "model.embed_tokens.weight");
    t->width = dim(s, 1, "model.embed_tokens.weight");
    t->head_dim = dim(s, 0, "model.layers.0.self_attn.q_norm.weight");
    t->heads = dim(s, 0, "model.layers.0.self_attn.q_proj.weight") / t->head_dim;
    t->kv_heads = dim(s, 0, "model.layers.0.self_attn.k_proj.weight") / t->head_dim;
    t->mlp_width = dim(s, 0, "model.layers.0.mlp.gate_proj.weight");
    t->layers = count(s, "model.layers.");
    t->tied = !has(s, "lm_head.weight");
}

static void infer_vae(const struct shapes *s, struct vae_config *v)
{
    for (int l = 0; l < VAE_LEVELS; l++) {
        v->encoder_channels[l] = dim(s, 0, "encoder.down_blocks.%d.resnets.0.conv1.weight", l);
        v->decoder_channels[VAE_LEVELS - 1 - l] = dim(s, 0, "decoder.up_blocks.%d.resnets.0.conv1.weight", l);
    }
    v->latent_channels = dim(s, 1, "decoder.conv_in.weight");
    v->layers_per_block = count(s, "encoder.down_blocks.0.resnets.");
    v->quant_conv = has(s, "quant_conv.weight");
    v->post_quant_conv = has(s, "post_quant_conv.weight");
}

enum klein_status infer_config(const struct part *p, struct model_config *c, struct klein_error *err)
{
    struct shapes s = {p, err};
    if (p->which == PART_TRANSFORMER) infer_dit(&s, &c->dit);
    if (p->which == PART_TEXT) infer_text(&s, &c->text);
    if (p->which == PART_VAE) infer_vae(&s, &c->vae);
    return err->status;
}

enum klein_status infer_compare(const struct part *p, const struct model_config *c, const char *file,
                                struct klein_error *err)
{
#define FIELD(key, field)                                                                                    \
    {                                                                                                        \
        key, offsetof(struct model_config, field)                                                            \
    }
    static const struct {
        const char *key;
        size_t offset;
    } fields[PART_COUNT][12] = {
        {FIELD("num_attention_heads x attention_head_dim", dit.width),
         FIELD("attention_head_dim", dit.head_dim), FIELD("in_channels", dit.in_channels),
         FIELD("joint_attention_dim", dit.text_width),
         FIELD("timestep_guidance_channels", dit.timestep_channels),
         FIELD("mlp_ratio x width", dit.mlp_width), FIELD("num_layers", dit.double_blocks),
         FIELD("num_single_layers", dit.single_blocks)},
        /* not num_hidden_layers: the last ones may be absent */
        {FIELD("vocab_size", text.vocab), FIELD("hidden_size", text.width), FIELD("head_dim", text.head_dim),
         FIELD("num_attention_heads", text.heads), FIELD("num_key_value_heads", text.kv_heads),
         FIELD("intermediate_size", text.mlp_width)},
        {FIELD("block_out_channels", vae.encoder_channels[0]),
         FIELD("block_out_channels", vae.encoder_channels[1]),
         FIELD("block_out_channels", vae.encoder_channels[2]),
         FIELD("block_out_channels", vae.encoder_channels[3]),
         FIELD("decoder's block_out_channels", vae.decoder_channels[0]),
         FIELD("decoder's block_out_channels", vae.decoder_channels[1]),
         FIELD("decoder's block_out_channels", vae.decoder_channels[2]),
         FIELD("decoder's block_out_channels", vae.decoder_channels[3]),
         FIELD("latent_channels", vae.latent_channels), FIELD("layers_per_block", vae.layers_per_block),
         FIELD("use_quant_conv", vae.quant_conv), FIELD("use_post_quant_conv", vae.post_quant_conv)},
    };
#undef FIELD
    struct model_config found = *c;
    TRY(infer_config(p, &found, err));
    for (int i = 0; i < 12 && fields[p->which][i].key; i++) {
        int says, is;
        memcpy(&says, (const char *)c + fields[p->which][i].offset, sizeof says);
        memcpy(&is, (const char *)&found + fields[p->which][i].offset, sizeof is);
        if (says != is)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %s is %d, but the tensors of this folder are for %d",
                        file, fields[p->which][i].key, says, is);
    }
    return KLEIN_OK;
}
