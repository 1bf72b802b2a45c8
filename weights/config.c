#include "config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define LARGEST (1 << 20) /* of any one size; products of two stay far below 2^63 */

/* The published sizes.   source: model 1, 4.3 */
static const struct official {
    const char *name, *title, *license;
    int distilled, heads, double_blocks, single_blocks, text_width, text_mlp, tied;
} official[] = {
    {"klein-4b", "klein 4B", "Apache-2.0", 1, 24, 5, 20, 2560, 9728, 1},
    {"klein-base-4b", "klein base 4B", "Apache-2.0", 0, 24, 5, 20, 2560, 9728, 1},
    {"klein-9b", "klein 9B", "FLUX Non-Commercial", 1, 32, 8, 24, 4096, 12288, 0},
    {"klein-base-9b", "klein base 9B", "FLUX Non-Commercial", 0, 32, 8, 24, 4096, 12288, 0},
};
#define OFFICIAL ((int)(sizeof official / sizeof *official))

void config_defaults(struct model_config *c)
{
    *c = (struct model_config){
        .distilled = -1,
        .text_length = 512,
        .default_width = 1024,
        .default_height = 1024,
        .dit = {.head_dim = 128,
                .in_channels = 128,
                .timestep_channels = 256,
                .rope_axes = {32, 32, 32, 32},
                .rope_theta = 2000,
                .eps = 1e-6f},
        .text = {.layers = 36,
                 .heads = 32,
                 .kv_heads = 8,
                 .head_dim = 128,
                 .vocab = 151936,
                 .rope_theta = 1e6f,
                 .eps = 1e-6f,
                 .outputs = {9, 18, 27},
                 .n_outputs = 3},
        .vae = {.encoder_channels = {128, 256, 512, 512},
                .decoder_channels = {128, 256, 512, 512},
                .latent_channels = 32,
                .layers_per_block = 2,
                .norm_groups = 32,
                .quant_conv = 1,
                .post_quant_conv = 1,
                .bn_eps = 1e-4f},
    };
}

static void fill_official(struct model_config *c, const struct official *o)
{
    config_defaults(c);
    c->distilled = o->distilled;
    c->dit.width = o->heads * c->dit.head_dim;
    c->dit.heads = o->heads;
    c->dit.double_blocks = o->double_blocks;
    c->dit.single_blocks = o->single_blocks;
    c->dit.text_width = c->text.n_outputs * o->text_width;
    c->dit.mlp_width = 3 * c->dit.width;
    c->text.width = o->text_width;
    c->text.mlp_width = o->text_mlp;
    c->text.tied = o->tied;
}

/* Every kind of structure of the real model at sizes that a test can afford.   source: model 11.2 */
static void fill_tiny(struct model_config *c)
{
    config_defaults(c);
    c->distilled = 1;
    c->default_width = c->default_height = 128;
    c->dit.width = 256;
    c->dit.heads = 2;
    c->dit.double_blocks = 2;
    c->dit.single_blocks = 3;
    c->dit.text_width = 3 * 64;
    c->dit.mlp_width = 3 * 256;
    c->text = (struct text_config){.width = 64,
                                   .layers = 4,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .head_dim = 128,
                                   .mlp_width = 96,
                                   .vocab = 512,
                                   .rope_theta = 1e6f,
                                   .eps = 1e-6f,
                                   .outputs = {1, 2, 3},
                                   .n_outputs = 3,
                                   .tied = 1};
    static const int channels[VAE_LEVELS] = {32, 64, 128, 128};
    memcpy(c->vae.encoder_channels, channels, sizeof channels);
    memcpy(c->vae.decoder_channels, channels, sizeof channels);
}

const char *config_list(int i)
{
    return i < 0 || i > OFFICIAL ? NULL : i == OFFICIAL ? "tiny" : official[i].name;
}

enum klein_status config_named(const char *name, struct model_config *out, struct klein_error *err)
{
    char known[128] = "";
    for (int i = 0; config_list(i); i++) {
        if (!strcmp(name, config_list(i))) {
            if (i < OFFICIAL)
                fill_official(out, &official[i]);
            else
                fill_tiny(out);
            return config_finish(out, name, err);
        }
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", config_list(i));
    }
    return fail(err, KLEIN_E_USAGE, "no configuration is called \"%.60s\"; there are %s", name, known);
}

/* The official model of these sizes, or NULL. The VAE does not count: it may be the one with the small
 * decoder. */
static const struct official *official_of(const struct model_config *c)
{
    for (int i = 0; i < OFFICIAL; i++) {
        struct model_config o;
        fill_official(&o, &official[i]);
        if (o.distilled == c->distilled && !memcmp(&o.dit, &c->dit, sizeof o.dit) &&
            o.text.width == c->text.width && o.text.mlp_width == c->text.mlp_width)
            return &official[i];
    }
    return NULL;
}

const char *config_license(const struct model_config *c)
{
    const struct official *o = official_of(c);
    return c->license[0] ? c->license : o ? o->license : "unknown";
}

struct range {
    const char *what;
    int value, min, max;
};

static enum klein_status check_ranges(const struct range *r, int n, const char *name, struct klein_error *err)
{
    for (int i = 0; i < n; i++)
        if (r[i].value < r[i].min || r[i].value > r[i].max)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %s is %d; it must be %d to %d", name, r[i].what,
                        r[i].value, r[i].min, r[i].max);
    return KLEIN_OK;
}
#define CHECK_RANGES(name, err, ...)                                                                         \
    check_ranges((struct range[]){__VA_ARGS__},                                                              \
                 (int)(sizeof(struct range[]){__VA_ARGS__} / sizeof(struct range)), name, err)

static enum klein_status check_dit(const struct dit_config *d, const char *name, struct klein_error *err)
{
    TRY(CHECK_RANGES(name, err, {"transformer width", d->width, 2, LARGEST},
                     {"transformer heads", d->heads, 1, 4096}, {"transformer head_dim", d->head_dim, 2, 1024},
                     {"number of double blocks", d->double_blocks, 1, MAX_BLOCKS},
                     {"number of single blocks", d->single_blocks, 1, MAX_BLOCKS},
                     {"in_channels", d->in_channels, 4, 4096},
                     {"text width of the transformer", d->text_width, 1, LARGEST},
                     {"transformer MLP width", d->mlp_width, 1, LARGEST},
                     {"timestep channels", d->timestep_channels, 2, 4096}));
    int sum = 0;
    for (int a = 0; a < 4; a++) {
        TRY(CHECK_RANGES(name, err, {"a RoPE axis", d->rope_axes[a], 0, d->head_dim}));
        if (d->rope_axes[a] % 2)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: a RoPE axis is odd (%d)", name, d->rope_axes[a]);
        sum += d->rope_axes[a];
    }
    if (sum != d->head_dim)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: the RoPE axes sum to %d, head_dim is %d", name, sum,
                    d->head_dim);
    if (d->heads * d->head_dim != d->width)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: transformer width %d is not %d heads of %d", name,
                    d->width, d->heads, d->head_dim);
    if (d->timestep_channels % 2)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: timestep channels are odd", name);
    return KLEIN_OK;
}

static enum klein_status check_text(const struct text_config *t, const char *name, struct klein_error *err)
{
    TRY(CHECK_RANGES(
        name, err, {"text encoder width", t->width, 1, LARGEST},
        {"text encoder layers", t->layers, 1, MAX_BLOCKS}, {"text encoder heads", t->heads, 1, 4096},
        {"text encoder KV heads", t->kv_heads, 1, 4096}, {"text encoder head_dim", t->head_dim, 2, 1024},
        {"text encoder MLP width", t->mlp_width, 1, LARGEST}, {"vocabulary", t->vocab, 1, INT_MAX / 2},
        {"number of text outputs", t->n_outputs, 1, MAX_TEXT_OUTPUTS}));
    if (t->heads % t->kv_heads || t->head_dim % 2)
        return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %d text encoder heads of %d cannot share %d KV heads",
                    name, t->heads, t->head_dim, t->kv_heads);
    for (int i = 0; i < t->n_outputs; i++)
        if (t->outputs[i] <= (i ? t->outputs[i - 1] : 0) || t->outputs[i] > t->layers)
            return fail(err, KLEIN_E_MODEL_CORRUPT,
                        "%s: hidden states after layers 9, 18, 27 (or \"text_outputs\" of klein.json) must "
                        "increase and exist, the text encoder "
                        "has %d layers",
                        name, t->layers);
    return KLEIN_OK;
}

static enum klein_status check_vae(const struct vae_config *v, const char *name, struct klein_error *err)
{
    TRY(CHECK_RANGES(name, err, {"VAE latent channels", v->latent_channels, 1, 1024},
                     {"VAE layers per block", v->layers_per_block, 1, 3},
                     {"VAE norm groups", v->norm_groups, 1, 1024}));
    for (int i = 0; i < 2 * VAE_LEVELS; i++) {
        int channels = i < VAE_LEVELS ? v->encoder_channels[i] : v->decoder_channels[i - VAE_LEVELS];
        TRY(CHECK_RANGES(name, err, {"VAE channels", channels, 1, 65536}));
        if (channels % v->norm_groups)
            return fail(err, KLEIN_E_MODEL_CORRUPT, "%s: %d VAE channels do not divide into %d groups", name,
                        channels, v->norm_groups);
    }
    return KLEIN_OK;
}

enum klein_status config_finish(struct model_config *c, const char *name, struct klein_error *err)
{
    CHECK(c->distilled == 0 || c->distilled == 1);
    if (!c->default_steps) c->default_steps = c->distilled ? 4 : 50;
    if (!(c->default_guidance > 0)) c->default_guidance = c->distilled ? 1 : 4;
    TRY(check_dit(&c->dit, name, err));
    TRY(check_text(&c->text, name, err));
    TRY(check_vae(&c->vae, name, err));
    if (c->dit.text_width != c->text.n_outputs * c->text.width)
        return fail(err, KLEIN_E_MODEL_CORRUPT,
                    "%s: the transformer wants %d text values per token, the text encoder gives %d x %d: "
                    "they do not belong together "
                    "(klein 4B goes with Qwen3-4B, 9B with Qwen3-8B)",
                    name, c->dit.text_width, c->text.n_outputs, c->text.width);
    if (c->dit.in_channels != 4 * c->vae.latent_channels)
        return fail(
            err, KLEIN_E_MODEL_CORRUPT,
            "%s: the transformer wants %d channels, the VAE gives 4 x %d: they do not belong together", name,
            c->dit.in_channels, c->vae.latent_channels);
    TRY(CHECK_RANGES(name, err, {"text length", c->text_length, 16, 8192}));
    const struct official *o = official_of(c);
    if (o)
        snprintf(c->name, sizeof c->name, "%s", o->title);
    else
        snprintf(c->name, sizeof c->name, "custom (D %d)", c->dit.width);
    return KLEIN_OK;
}
