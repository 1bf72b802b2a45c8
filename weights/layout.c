#include "layout.h"

#include <stdio.h>
#include <string.h>

/* In `from`, # is a number and * (at the end) any rest; in `to`, # is the next number of `from`, ~ the same
 * counted from the other end of the VAE's levels, * the rest. */
struct rule {
    const char *from, *to[LAYOUT_PIECES];
};

static const struct rule transformer_rules[] = {
    {"img_in.weight", {"x_embedder.weight"}},
    {"txt_in.weight", {"context_embedder.weight"}},
    {"time_in.in_layer.weight", {"time_guidance_embed.timestep_embedder.linear_1.weight"}},
    {"time_in.out_layer.weight", {"time_guidance_embed.timestep_embedder.linear_2.weight"}},
    {"guidance_in.in_layer.weight", {"time_guidance_embed.guidance_embedder.linear_1.weight"}},
    {"guidance_in.out_layer.weight", {"time_guidance_embed.guidance_embedder.linear_2.weight"}},
    {"double_stream_modulation_img.lin.weight", {"double_stream_modulation_img.linear.weight"}},
    {"double_stream_modulation_txt.lin.weight", {"double_stream_modulation_txt.linear.weight"}},
    {"single_stream_modulation.lin.weight", {"single_stream_modulation.linear.weight"}},
    {"final_layer.linear.weight", {"proj_out.weight"}},
    /* the same two halves in opposite orders */
    {"final_layer.adaLN_modulation.1.weight", {"norm_out.linear.shift", "norm_out.linear.scale"}},
    {"norm_out.linear.weight", {"norm_out.linear.scale", "norm_out.linear.shift"}},
    {"double_blocks.#.img_attn.qkv.weight",
     {"transformer_blocks.#.attn.to_q.weight", "transformer_blocks.#.attn.to_k.weight",
      "transformer_blocks.#.attn.to_v.weight"}},
    {"double_blocks.#.img_attn.proj.weight", {"transformer_blocks.#.attn.to_out.0.weight"}},
    {"double_blocks.#.img_attn.norm.query_norm.scale", {"transformer_blocks.#.attn.norm_q.weight"}},
    {"double_blocks.#.img_attn.norm.key_norm.scale", {"transformer_blocks.#.attn.norm_k.weight"}},
    {"double_blocks.#.img_mlp.0.weight", {"transformer_blocks.#.ff.linear_in.weight"}},
    {"double_blocks.#.img_mlp.2.weight", {"transformer_blocks.#.ff.linear_out.weight"}},
    {"double_blocks.#.txt_attn.qkv.weight",
     {"transformer_blocks.#.attn.add_q_proj.weight", "transformer_blocks.#.attn.add_k_proj.weight",
      "transformer_blocks.#.attn.add_v_proj.weight"}},
    {"double_blocks.#.txt_attn.proj.weight", {"transformer_blocks.#.attn.to_add_out.weight"}},
    {"double_blocks.#.txt_attn.norm.query_norm.scale", {"transformer_blocks.#.attn.norm_added_q.weight"}},
    {"double_blocks.#.txt_attn.norm.key_norm.scale", {"transformer_blocks.#.attn.norm_added_k.weight"}},
    {"double_blocks.#.txt_mlp.0.weight", {"transformer_blocks.#.ff_context.linear_in.weight"}},
    {"double_blocks.#.txt_mlp.2.weight", {"transformer_blocks.#.ff_context.linear_out.weight"}},
    {"single_blocks.#.linear1.weight", {"single_transformer_blocks.#.attn.to_qkv_mlp_proj.weight"}},
    {"single_blocks.#.linear2.weight", {"single_transformer_blocks.#.attn.to_out.weight"}},
    {"single_blocks.#.norm.query_norm.scale", {"single_transformer_blocks.#.attn.norm_q.weight"}},
    {"single_blocks.#.norm.key_norm.scale", {"single_transformer_blocks.#.attn.norm_k.weight"}},
    {NULL, {NULL}},
};

static const struct rule vae_rules[] = {
    {"@.mid.block_1.*", {"@.mid_block.resnets.0.*"}},
    {"@.mid.block_2.*", {"@.mid_block.resnets.1.*"}},
    {"@.mid.attn_1.norm.*", {"@.mid_block.attentions.0.group_norm.*"}},
    {"@.mid.attn_1.q.*", {"@.mid_block.attentions.0.to_q.*"}},
    {"@.mid.attn_1.k.*", {"@.mid_block.attentions.0.to_k.*"}},
    {"@.mid.attn_1.v.*", {"@.mid_block.attentions.0.to_v.*"}},
    {"@.mid.attn_1.proj_out.*", {"@.mid_block.attentions.0.to_out.0.*"}},
    {"@.norm_out.*", {"@.conv_norm_out.*"}},
    {"encoder.quant_conv.*", {"quant_conv.*"}},
    {"decoder.post_quant_conv.*", {"post_quant_conv.*"}},
    {"encoder.down.#.block.#.nin_shortcut.*", {"encoder.down_blocks.#.resnets.#.conv_shortcut.*"}},
    {"encoder.down.#.block.#.*", {"encoder.down_blocks.#.resnets.#.*"}},
    {"encoder.down.#.downsample.*", {"encoder.down_blocks.#.downsamplers.0.*"}},
    {"decoder.up.#.block.#.nin_shortcut.*", {"decoder.up_blocks.~.resnets.#.conv_shortcut.*"}},
    {"decoder.up.#.block.#.*", {"decoder.up_blocks.~.resnets.#.*"}},
    {"decoder.up.#.upsample.*", {"decoder.up_blocks.~.upsamplers.0.*"}},
    {NULL, {NULL}},
};

static const char *const transformer_prefixes[] = {"model.diffusion_model.", "diffusion_model.", NULL};
static const char *const bare_decoder[] = {
    "conv_in.", "mid.", "up.", "norm_out.", "conv_out.", "mid_block.", "up_blocks.", "conv_norm_out.", NULL};

static const char *after(const char *text, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(text, prefix, n) ? NULL : text + n;
}

/* A number of at most 3 digits without leading zeros; -1 otherwise. */
static int number(const char **text)
{
    const char *p = *text;
    int n = 0, digits = 0;
    while (*p >= '0' && *p <= '9' && digits < 4) n = 10 * n + (*p++ - '0'), digits++;
    if (digits < 1 || digits > 3 || (digits > 1 && **text == '0')) return -1;
    *text = p;
    return n;
}

int layout_index(const char *name, const char *prefix)
{
    const char *p = after(name, prefix);
    int n = p ? number(&p) : -1;
    return n >= 0 && *p == '.' ? n : -1;
}

struct match {
    int number[2];
    const char *half, *rest;
};

static int matches(const char *pattern, const char *name, struct match *m)
{
    int numbers = 0;
    for (; *pattern; pattern++) {
        if (*pattern == '*') {
            m->rest = name;
            return *name != 0;
        }
        if (*pattern == '@') {
            m->half = after(name, "encoder") ? "encoder" : "decoder";
            if (!(name = after(name, m->half))) return 0;
        } else if (*pattern == '#') {
            if ((m->number[numbers++] = number(&name)) < 0) return 0;
        } else if (*pattern != *name++) {
            return 0;
        }
    }
    return *name == 0;
}

/* 0 if the result is too long or a level does not exist. */
static int expand(const char *pattern, const struct match *m, char out[LAYOUT_NAME_MAX])
{
    size_t n = 0;
    for (int numbers = 0; *pattern; pattern++) {
        char piece[16] = {*pattern};
        const char *text = piece;
        if (*pattern == '@') {
            text = m->half;
        } else if (*pattern == '*') {
            text = m->rest;
        } else if (*pattern == '#' || *pattern == '~') {
            int i = m->number[numbers++];
            if (*pattern == '~') i = VAE_LEVELS - 1 - i;
            if (i < 0) return 0;
            snprintf(piece, sizeof piece, "%d", i);
        }
        size_t length = strlen(text);
        if (n + length >= LAYOUT_NAME_MAX) return 0;
        memcpy(out + n, text, length);
        n += length;
    }
    out[n] = 0;
    return 1;
}

static int one_name(struct layout *out, const char *name)
{
    out->n = 1;
    return snprintf(out->name[0], LAYOUT_NAME_MAX, "%s", name) < LAYOUT_NAME_MAX;
}

static int translate(enum checkpoint_part part, const char *name, struct layout *out)
{
    char full[LAYOUT_NAME_MAX];
    const char *original = name;
    if (part == PART_TRANSFORMER) {
        for (int i = 0; transformer_prefixes[i] && name == original; i++) {
            const char *rest = after(name, transformer_prefixes[i]);
            if (rest && *rest) name = rest;
        }
    } else if (part == PART_VAE) {
        for (int i = 0; bare_decoder[i] && name == original; i++)
            if (after(name, bare_decoder[i]) &&
                snprintf(full, sizeof full, "decoder.%s", name) < LAYOUT_NAME_MAX)
                name = full;
    } else {
        return 0;
    }
    for (const struct rule *r = part == PART_VAE ? vae_rules : transformer_rules; r->from; r++) {
        struct match m = {0};
        if (!matches(r->from, name, &m)) continue;
        for (out->n = 0; out->n < LAYOUT_PIECES && r->to[out->n]; out->n++)
            if (!expand(r->to[out->n], &m, out->name[out->n])) return 0;
        return 1;
    }
    return name != original && one_name(out, name);
}

/* The scales of a quantised weight go where it goes; those of a fused one with its first piece. */
int layout_translate(enum checkpoint_part part, const char *name, struct layout *out)
{
    static const char weight[] = ".weight", *const scales[] = {".weight_scale", ".input_scale"};
    char of_weight[LAYOUT_NAME_MAX];
    for (int i = 0; i < 2 && part == PART_TRANSFORMER; i++) {
        size_t n = strlen(name), suffix = strlen(scales[i]);
        if (n <= suffix || n >= LAYOUT_NAME_MAX || strcmp(name + n - suffix, scales[i])) continue;
        snprintf(of_weight, sizeof of_weight, "%.*s%s", (int)(n - suffix), name, weight);
        if (!translate(part, of_weight, out)) return 0;
        const size_t length = strlen(out->name[0]), ending = strlen(weight);
        if (length <= ending) return 0; /* nothing but the prefix of a redistribution before ".weight" */
        out->n = 1;
        return length - ending + suffix < LAYOUT_NAME_MAX &&
               strcpy(out->name[0] + length - ending, scales[i]);
    }
    return translate(part, name, out);
}

int layout_ignored(enum checkpoint_part part, const char *name, int text_layers)
{
    if (part == PART_VAE) return !strcmp(name, "bn.num_batches_tracked");
    if (part != PART_TEXT) return 0;
    return layout_index(name, "model.layers.") >= text_layers || !strcmp(name, "model.norm.weight") ||
           !strcmp(name, "lm_head.weight");
}
