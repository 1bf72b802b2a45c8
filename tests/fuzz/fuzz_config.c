/* fuzz_config: the first byte chooses what the rest is: one of the JSON files of a model folder, a patch (position, bytes to drop, bytes
 * to insert) of the valid one, or a tensor name to translate. A configuration that passes must be safe to build tables from. */
#include "../../weights/config.h"
#include "../../weights/layout.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const valid[CONFIG_FILES] = {
    [CONFIG_KLEIN] = "{\"text_outputs\":[9,18,27],\"text_length\":512,\"distilled\":true,\"default_width\":"
                     "128,\"default_height\":128,"
                     "\"default_steps\":4,\"default_guidance\":1.5,\"toy\":false,\"license\":\"MIT\"}",
    [CONFIG_MODEL_INDEX] = "{\"_class_name\":\"Flux2KleinPipeline\",\"is_distilled\":true}",
    [CONFIG_SCHEDULER] = "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\",\"use_dynamic_shifting\":true,"
                         "\"shift_terminal\":null}",
    [CONFIG_TRANSFORMER] =
        "{\"_class_name\":\"Flux2Transformer2DModel\",\"patch_size\":1,\"in_channels\":128,\"out_channels\":"
        "null,\"num_layers\":5,"
        "\"num_single_layers\":20,\"attention_head_dim\":128,\"num_attention_heads\":24,\"joint_attention_"
        "dim\":7680,\"mlp_ratio\":3.0,"
        "\"axes_dims_rope\":[32,32,32,32],\"rope_theta\":2000,\"eps\":1e-06,\"guidance_embeds\":false}",
    [CONFIG_TEXT] =
        "{\"model_type\":\"qwen3\",\"hidden_size\":2560,\"num_hidden_layers\":36,\"num_attention_heads\":32,"
        "\"num_key_value_heads\":8,\"head_dim\":128,\"intermediate_size\":9728,\"vocab_size\":151936,\"rms_"
        "norm_eps\":1e-06,"
        "\"rope_parameters\":{\"rope_theta\":1e6,\"rope_type\":\"default\"},\"tie_word_embeddings\":true}",
    [CONFIG_VAE] = "{\"_class_name\":\"AutoencoderKLFlux2\",\"block_out_channels\":[128,256,512,512],"
                   "\"decoder_block_out_channels\":"
                   "[96,192,384,384],\"latent_channels\":32,\"layers_per_block\":2,\"norm_num_groups\":32,"
                   "\"patch_size\":[2,2],"
                   "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
                   "\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"
                   "\"use_quant_conv\":true,\"batch_norm_eps\":0.0001}",
};

static void require(int condition)
{
    if (!condition) abort();
}

/* What engine/ relies on. */
static void look(const struct model_config *c)
{
    require(c->dit.width == c->dit.heads * c->dit.head_dim &&
            c->dit.in_channels == 4 * c->vae.latent_channels);
    require(c->dit.double_blocks >= 1 && c->dit.double_blocks <= MAX_BLOCKS && c->dit.single_blocks >= 1 &&
            c->dit.single_blocks <= MAX_BLOCKS);
    require(c->dit.mlp_width >= 1 && c->dit.eps > 0 && c->dit.rope_theta >= 1);
    require(c->dit.rope_axes[0] + c->dit.rope_axes[1] + c->dit.rope_axes[2] + c->dit.rope_axes[3] ==
            c->dit.head_dim);
    require(c->text.n_outputs >= 1 && c->text.n_outputs <= MAX_TEXT_OUTPUTS && c->text.layers <= MAX_BLOCKS);
    for (int i = 0; i < c->text.n_outputs; i++)
        require(c->text.outputs[i] > (i ? c->text.outputs[i - 1] : 0));
    require(c->text.outputs[c->text.n_outputs - 1] <= c->text.layers &&
            c->text.heads % c->text.kv_heads == 0 && c->text.vocab >= 1);
    require(c->vae.layers_per_block >= 1 && c->vae.layers_per_block <= 3);
    for (int l = 0; l < VAE_LEVELS; l++)
        require(c->vae.encoder_channels[l] % c->vae.norm_groups == 0 &&
                c->vae.decoder_channels[l] % c->vae.norm_groups == 0);
    require(c->default_width % 16 == 0 && c->default_height % 16 == 0 && c->default_steps >= 1 &&
            c->default_guidance >= 1);
    require(memchr(c->license, 0, sizeof c->license) != NULL);
    require(c->text_length >= 16 && c->name[0] && (c->distilled == 0 || c->distilled == 1));
}

/* Everything valid but file `which`. */
static void read_all(enum config_file which, const char *json, size_t n)
{
    struct klein_error err = {0};
    struct model_config c;
    config_defaults(&c);
    for (int i = 0; i < CONFIG_FILES && !err.status; i++) {
        int theirs = i == (int)which;
        config_parse((enum config_file)i, theirs ? json : valid[i], theirs ? n : strlen(valid[i]), "fuzz", &c,
                     &err);
    }
    if (!err.status && !config_finish(&c, "fuzz", &err))
        look(&c);
    else
        require(err.status && err.message[0]);
}

static void translate(enum checkpoint_part part, const char *text, size_t n)
{
    struct layout out;
    char *name = malloc(n + 1);
    memcpy(name, text, n);
    name[n] = 0;
    if (layout_translate(part, name, &out)) {
        require(out.n >= 1 && out.n <= LAYOUT_PIECES);
        for (int i = 0; i < out.n; i++)
            require(out.name[i][0] && strnlen(out.name[i], LAYOUT_NAME_MAX) < LAYOUT_NAME_MAX);
    }
    layout_ignored(part, name, 27);
    free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1) return 0;
    const char *rest = (const char *)data + 1;
    enum config_file which = (enum config_file)(data[0] % CONFIG_FILES);
    int mode = data[0] / CONFIG_FILES % 3;
    if (mode == 0) {
        translate((enum checkpoint_part)(data[0] % PART_COUNT), rest, n - 1);
    } else if (mode == 1) {
        read_all(which, rest, n - 1);
    } else if (n >= 3) {
        size_t size = strlen(valid[which]), at = data[1] << 1 < (int)size ? (size_t)data[1] << 1 : size;
        size_t dropped = data[2] < size - at ? data[2] : size - at, inserted = n - 3;
        char *json = malloc(size + inserted + 1);
        memcpy(json, valid[which], at);
        memcpy(json + at, data + 3, inserted);
        memcpy(json + at + inserted, valid[which] + at + dropped, size - at - dropped);
        read_all(which, json, size - dropped + inserted);
        free(json);
    }
    return 0;
}
