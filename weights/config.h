/* config.h: what a model is, in numbers. Everything that differs between klein 4B, 9B, their base versions, the demo model
 * and any other size of the architecture is a field here; code never asks for a name. */
#ifndef KLEIN_CONFIG_H
#define KLEIN_CONFIG_H

#include "../base/error.h"

#define MAX_TEXT_OUTPUTS 4
#define VAE_LEVELS 4

struct model_config {
    char name[64]; /* "klein 4B"; derived from sizes and variant, "custom (...)" otherwise */
    int distilled; /* 1: few steps, no guidance; 0: base, classifier-free guidance */
    int toy;       /* klein.json says so: a demo checkpoint */
    int text_length;                    /* tokens, padding included: 512 */
    int default_width, default_height;  /* 1024 x 1024 unless klein.json says otherwise */
    int default_steps;
    float default_guidance;

    struct dit_config {
        int width, heads, head_dim;        /* D = heads * head_dim */
        int double_blocks, single_blocks;
        int in_channels;                   /* 128 = 4 * vae.latent_channels */
        int text_width;                    /* context_embedder input: text outputs * text.width */
        int mlp_width;                     /* 3 D: columns of one SwiGLU half */
        int timestep_channels;             /* 256 */
        int rope_axes[4];                  /* 32, 32, 32, 32; sum = head_dim */
        float rope_theta, eps;             /* 2000, 1e-6 */
    } dit;

    struct text_config {
        int width, layers, heads, kv_heads, head_dim, mlp_width, vocab;
        float rope_theta, eps;             /* 1e6, 1e-6 */
        int outputs[MAX_TEXT_OUTPUTS], n_outputs; /* residual stream after that many layers: 9, 18, 27 */
        int pad_token;                     /* 151643 */
    } text;

    struct vae_config {
        int encoder_channels[VAE_LEVELS], decoder_channels[VAE_LEVELS]; /* 128 256 512 512; decoder in the same order (level 0 = full resolution) */
        int latent_channels, layers_per_block, norm_groups;             /* 32, 2, 32 */
        int quant_conv, post_quant_conv;
        float bn_eps;                                                   /* 1e-4 (BatchNorm); GroupNorm's is always 1e-6 */
    } vae;
};

/* Fills the numbers of a named configuration: "klein-4b", "klein-base-4b", "klein-9b", "klein-base-9b", "tiny" (the small shape-faithful
 * instance of tests). KLEIN_E_USAGE listing the names otherwise. */
enum klein_status config_named(const char *name, struct model_config *out, struct klein_error *err);
const char *config_list(int i); /* names, NULL past the end */

#endif
