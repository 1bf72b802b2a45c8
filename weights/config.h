/* config.h: what a model is, in numbers. Everything that differs between klein 4B, 9B, their base versions,
 * the demo model and any other size of the architecture is a field here; code never asks for a name. */
#ifndef KLEIN_CONFIG_H
#define KLEIN_CONFIG_H

#include "../base/error.h"

#include <stddef.h>

#define MAX_TEXT_OUTPUTS 4
#define MAX_BLOCKS       128 /* of one kind; also layers of the text encoder */
#define VAE_LEVELS       4

struct model_config {
    char name[64];   /* "klein 4B"; derived from sizes and variant, "custom (...)" otherwise */
    int distilled;   /* 1: few steps, no guidance; 0: base, classifier-free guidance */
    int toy;         /* klein.json says so: a demo checkpoint */
    int text_length; /* tokens, padding included: 512 */
    int default_width, default_height; /* 1024 x 1024 unless klein.json says otherwise */
    int default_steps;
    float default_guidance;
    char license[40]; /* klein.json says so; "" otherwise */

    struct dit_config {
        int width, heads, head_dim; /* D = heads * head_dim */
        int double_blocks, single_blocks;
        int in_channels;       /* 128 = 4 * vae.latent_channels */
        int text_width;        /* context_embedder input: text outputs * text.width */
        int mlp_width;         /* 3 D: columns of one SwiGLU half */
        int timestep_channels; /* 256 */
        int rope_axes[4];      /* 32, 32, 32, 32; sum = head_dim */
        float rope_theta, eps; /* 2000, 1e-6 */
    } dit;

    struct text_config {
        int width, layers, heads, kv_heads, head_dim, mlp_width, vocab;
        float rope_theta, eps;                    /* 1e6, 1e-6 */
        int outputs[MAX_TEXT_OUTPUTS], n_outputs; /* residual stream after that many layers: 9, 18, 27 */
        int tied; /* no lm_head tensor: the embedding serves for it. Nothing computes with either. */
    } text;

    struct vae_config {
        int encoder_channels[VAE_LEVELS],
            decoder_channels[VAE_LEVELS]; /* 128 256 512 512; decoder in the same order (level 0 = full
                                             resolution) */
        int latent_channels, layers_per_block, norm_groups; /* 32, 2, 32 */
        int quant_conv, post_quant_conv;
        float bn_eps; /* 1e-4 (BatchNorm); GroupNorm's is always 1e-6 */
    } vae;
};

/* Fills the numbers of a named configuration: "klein-4b", "klein-base-4b", "klein-9b", "klein-base-9b",
 * "tiny" (the small shape-faithful instance of tests). KLEIN_E_USAGE listing the names otherwise. */
enum klein_status config_named(const char *name, struct model_config *out, struct klein_error *err);
const char *config_list(int i); /* names, NULL past the end */

/* What klein.json says, else what weights of these sizes are published under: "Apache-2.0", "FLUX Non-Commercial", or "unknown" for sizes
 * that are not official. By sizes alone: nothing tells whose weights they are. */
const char *config_license(const struct model_config *c);

/* --- from files
 * ----------------------------------------------------------------------------------------------------- The
 * JSON files of a model folder, each filling its fields of one struct model_config that began with
 * config_defaults and ends with config_finish. Sizes must be there; what changes the arithmetic must be what
 * klein computes (anything else is KLEIN_E_UNSUPPORTED); keys without influence are ignored.
 *
 * klein.json is ours and optional: what the official folders leave implicit. Unknown keys are refused.
 *   "text_outputs"     [9, 18, 27]  the residual stream after that many layers is taken; 1..4 increasing numbers
 *   "text_length"      512          tokens of a prompt, padding included
 *   "distilled"                     overrides "is_distilled" of model_index.json
 *   "default_width", "default_height"   1024; pixels, multiples of 16
 *   "default_steps", "default_guidance" 4 and 1 for distilled models, 50 and 4 for base
 *   "toy"              false        a demonstration, not a model of the world; said wherever it is used
 *   "license"                       what the weights may be used under, such as "Apache-2.0"; printable ASCII */
enum config_file {
    CONFIG_KLEIN,
    CONFIG_MODEL_INDEX,
    CONFIG_SCHEDULER,
    CONFIG_TRANSFORMER,
    CONFIG_TEXT,
    CONFIG_VAE,
    CONFIG_FILES
};
#define CONFIG_JSON_MAX (1 << 20) /* bytes */

void config_defaults(struct model_config *c); /* distilled is -1: not known yet */
/* `name` is for messages. */
enum klein_status config_parse(enum config_file which, const char *json, size_t n, const char *name,
                               struct model_config *c, struct klein_error *err);
/* Checks the numbers by themselves and against each other, then fills what depends on them: steps, guidance,
 * name. `name` of the model is for messages. distilled must be known. */
enum klein_status config_finish(struct model_config *c, const char *name, struct klein_error *err);

#endif
