/* The JSON files of a model folder.   source: model 2.1; diffusers and transformers for names and defaults of
 * keys */
#include "config.h"
#include "json.h"

#include <math.h>
#include <string.h>

#define DEPTH 16 /* what save_pretrained writes needs 3 */
#define SIZE  (1 << 20)

static enum klein_status unsupported(const struct js_object *o, const char *key, const char *wanted)
{
    return fail(o->err, KLEIN_E_UNSUPPORTED, "%s: only %s %s is supported", o->name, key, wanted);
}

static void want_text(const struct js_object *o, const char *key, const char *wanted)
{
    if (strcmp(js_text(o, key, wanted), wanted)) unsupported(o, key, wanted);
}

static void want_bool(const struct js_object *o, const char *key, int wanted)
{
    if (js_bool(o, key, wanted) != wanted) unsupported(o, key, wanted ? "true" : "false");
}

static void want_int(const struct js_object *o, const char *key, int wanted)
{
    if (js_int(o, key, 0, SIZE, wanted) != wanted)
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: only %s %d is supported", o->name, key, wanted);
}

static void want_absent(const struct js_object *o, const char *key)
{
    if (!o->err->status && json_object_get(o->object, key) && !json_is_null(json_object_get(o->object, key)))
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: \"%s\" is not supported", o->name, key);
}

/* A list of VAE_LEVELS strings, all `wanted`. */
static void want_levels(const struct js_object *o, const char *key, const char *wanted)
{
    const json_t *list = json_object_get(o->object, key);
    if (!list) return;
    int same = json_array_size(list) == VAE_LEVELS;
    for (size_t i = 0; same && i < VAE_LEVELS; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        same = text && !strcmp(text, wanted);
    }
    if (!same)
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: only 4 levels of %s are supported in \"%s\"", o->name, wanted,
             key);
}

static int size_of(const struct js_object *o, const char *key)
{
    js_require(o, key);
    return js_int(o, key, 1, SIZE, 1);
}

/* It is printed on terminals. */
static void read_license(const struct js_object *o, struct model_config *c)
{
    const char *text = js_text(o, "license", "");
    size_t n = strlen(text), printable = 0;
    while (text[printable] >= ' ' && text[printable] <= '~') printable++;
    if (printable < n || n >= sizeof c->license)
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"license\" must be up to %zu printable ASCII characters",
             o->name, sizeof c->license - 1);
    else
        memcpy(c->license, text, n);
}

static void read_klein(const struct js_object *o, struct model_config *c)
{
    static const char *const known[] = {
        "text_outputs",  "text_length",      "distilled", "default_width", "default_height",
        "default_steps", "default_guidance", "toy",       "license"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o->object, key, value)
    {
        size_t i = 0, n = sizeof known / sizeof *known;
        while (i < n && strcmp(key, known[i])) i++;
        if (i == n) {
            fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: unknown key \"%.60s\"", o->name, key);
            return;
        }
    }
    int outputs[MAX_TEXT_OUTPUTS] = {0},
        n = js_ints(o, "text_outputs", 1, MAX_BLOCKS, outputs, MAX_TEXT_OUTPUTS);
    if (n) {
        memcpy(c->text.outputs, outputs, sizeof outputs);
        c->text.n_outputs = n;
    }
    c->text_length = js_int(o, "text_length", 16, 8192, c->text_length);
    c->distilled = js_bool(o, "distilled", c->distilled);
    c->default_width = js_int(o, "default_width", 16, 16384, c->default_width);
    c->default_height = js_int(o, "default_height", 16, 16384, c->default_height);
    c->default_steps = js_int(o, "default_steps", 1, 1000, c->default_steps);
    c->default_guidance = (float)js_real(o, "default_guidance", 1, 100, c->default_guidance);
    c->toy = js_bool(o, "toy", c->toy);
    read_license(o, c);
    if (c->default_width % 16 || c->default_height % 16)
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: the default size %d x %d is not of multiples of 16", o->name,
             c->default_width, c->default_height);
}

static void read_model_index(const struct js_object *o, struct model_config *c)
{
    js_require(o, "_class_name");
    const char *class = js_text(o, "_class_name", "Flux2Klein");
    if (!strncmp(class, "Flux2KleinKV", 12))
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: the reference-KV variant of klein (%.60s) is not supported",
             o->name, class);
    else if (strncmp(class, "Flux2Klein", 10))
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: a %.60s, not a FLUX.2 [klein] model (Flux2KleinPipeline)",
             o->name, class);
    int distilled = js_bool(o, "is_distilled", 0); /* absent in the base repositories */
    if (c->distilled < 0) c->distilled = distilled;
}

static void read_scheduler(const struct js_object *o, struct model_config *c)
{
    want_text(o, "_class_name", "FlowMatchEulerDiscreteScheduler");
    js_require(o, "use_dynamic_shifting"); /* its default is false */
    want_bool(o, "use_dynamic_shifting", 1);
    want_text(o, "time_shift_type", "exponential");
    want_int(o, "num_train_timesteps", 1000);
    static const char *const off[] = {"invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas",
                                      "use_beta_sigmas", "stochastic_sampling"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) want_bool(o, off[i], 0);
    want_absent(o, "shift_terminal");
}

static void read_transformer(const struct js_object *o, struct model_config *c)
{
    struct dit_config *d = &c->dit;
    want_text(o, "_class_name", "Flux2Transformer2DModel");
    want_absent(o, "quantization_config");
    want_int(o, "patch_size", 1);
    if (js_bool(o, "guidance_embeds", 0))
        fail(o->err, KLEIN_E_UNSUPPORTED,
             "%s: guidance_embeds is true: this is FLUX.2 [dev], only [klein] is supported", o->name);
    d->heads = size_of(o, "num_attention_heads");
    d->head_dim = size_of(o, "attention_head_dim");
    d->double_blocks = size_of(o, "num_layers");
    d->single_blocks = size_of(o, "num_single_layers");
    d->in_channels = size_of(o, "in_channels");
    d->text_width = size_of(o, "joint_attention_dim");
    d->timestep_channels = js_int(o, "timestep_guidance_channels", 2, SIZE, d->timestep_channels);
    want_int(o, "out_channels", d->in_channels);
    d->rope_theta = (float)js_real(o, "rope_theta", 1, 1e9, d->rope_theta);
    d->eps = (float)js_real(o, "eps", 1e-12, 1e-2, d->eps);
    int axes[4], n = js_ints(o, "axes_dims_rope", 0, 1024, axes, 4);
    if (n == 4) memcpy(d->rope_axes, axes, sizeof axes);
    if (n && n != 4) fail(o->err, KLEIN_E_UNSUPPORTED, "%s: %d RoPE axes, only 4 are supported", o->name, n);
    if (d->heads > 4096 || d->head_dim > 1024)
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: %d heads of %d are too many", o->name, d->heads,
             d->head_dim);
    if (o->err->status) return;
    d->width = d->heads * d->head_dim;
    double mlp = js_real(o, "mlp_ratio", 1.0 / 64, 64, 3) * d->width;
    d->mlp_width = (int)mlp;
    if (mlp != d->mlp_width)
        fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: mlp_ratio x %d is no integer", o->name, d->width);
}

/* rope_theta is a key of the file, or (transformers 5) of an object in it, which may also ask for other kinds
 * of RoPE. */
static void read_rope(const struct js_object *o, struct text_config *t)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    double theta = js_real(o, "rope_theta", 1, 1e9, 0);
    for (int i = 0; i < 2; i++) {
        const json_t *inner = json_object_get(o->object, places[i]);
        if (!inner || json_is_null(inner)) continue;
        if (!json_is_object(inner))
            fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"%s\" is not an object", o->name, places[i]);
        struct js_object rope = {o->name, inner, o->err};
        want_text(&rope, "rope_type", "default");
        want_text(&rope, "type", "default");
        theta = js_real(&rope, "rope_theta", 1, 1e9, theta);
    }
    if (!theta) fail(o->err, KLEIN_E_MODEL_CORRUPT, "%s: \"rope_theta\" is missing", o->name);
    t->rope_theta = (float)theta;
}

static void read_text(const struct js_object *o, struct model_config *c)
{
    struct text_config *t = &c->text;
    want_text(o, "model_type", "qwen3");
    want_absent(o, "quantization_config");
    want_text(o, "hidden_act", "silu");
    want_bool(o, "attention_bias", 0);
    want_bool(o, "use_sliding_window", 0);
    t->width = size_of(o, "hidden_size");
    t->layers = size_of(o, "num_hidden_layers");
    t->heads = size_of(o, "num_attention_heads");
    t->kv_heads = size_of(o, "num_key_value_heads");
    t->head_dim = js_int(o, "head_dim", 2, SIZE, 128); /* Qwen3's default; not hidden_size / heads */
    t->mlp_width = size_of(o, "intermediate_size");
    t->vocab = size_of(o, "vocab_size");
    t->eps = (float)js_real(o, "rms_norm_eps", 1e-12, 1e-2, 1e-6);
    t->tied = js_bool(o, "tie_word_embeddings", 0);
    read_rope(o, t);
}

static void read_vae(const struct js_object *o, struct model_config *c)
{
    struct vae_config *v = &c->vae;
    want_text(o, "_class_name", "AutoencoderKLFlux2");
    want_text(o, "act_fn", "silu");
    want_int(o, "in_channels", 3);
    want_int(o, "out_channels", 3);
    want_bool(o, "mid_block_add_attention", 1);
    want_levels(o, "down_block_types", "DownEncoderBlock2D");
    want_levels(o, "up_block_types", "UpDecoderBlock2D");
    int patch[2] = {2, 2};
    js_ints(o, "patch_size", 1, SIZE, patch, 2);
    if (patch[0] != 2 || patch[1] != 2) unsupported(o, "patch_size", "[2, 2]");
    js_require(o, "block_out_channels");
    int n = js_ints(o, "block_out_channels", 1, SIZE, v->encoder_channels, VAE_LEVELS);
    memcpy(v->decoder_channels, v->encoder_channels, sizeof v->decoder_channels);
    int m = js_ints(o, "decoder_block_out_channels", 1, SIZE, v->decoder_channels, VAE_LEVELS);
    if (n != VAE_LEVELS || (m && m != VAE_LEVELS))
        fail(o->err, KLEIN_E_UNSUPPORTED, "%s: only VAEs of %d levels are supported", o->name, VAE_LEVELS);
    v->latent_channels = js_int(o, "latent_channels", 1, SIZE, v->latent_channels);
    v->layers_per_block = js_int(o, "layers_per_block", 1, SIZE, v->layers_per_block);
    v->norm_groups = js_int(o, "norm_num_groups", 1, SIZE, v->norm_groups);
    v->quant_conv = js_bool(o, "use_quant_conv", 1);
    v->post_quant_conv = js_bool(o, "use_post_quant_conv", 1);
    v->bn_eps = (float)js_real(o, "batch_norm_eps", 0, 1, v->bn_eps);
}

enum klein_status config_parse(enum config_file which, const char *json, size_t n, const char *name,
                               struct model_config *c, struct klein_error *err)
{
    static void (*const read[CONFIG_FILES])(const struct js_object *, struct model_config *) = {
        [CONFIG_KLEIN] = read_klein,
        [CONFIG_MODEL_INDEX] = read_model_index,
        [CONFIG_SCHEDULER] = read_scheduler,
        [CONFIG_TEXT] = read_text,
        [CONFIG_TRANSFORMER] = read_transformer,
        [CONFIG_VAE] = read_vae,
    };
    json_t *root;
    TRY(js_parse(json, n, DEPTH, name, &root, err));
    read[which](&(struct js_object){name, root, err}, c);
    json_decref(root);
    return err->status;
}
