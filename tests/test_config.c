#include "../weights/config.h"
#include "support/support.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

/* What the official repositories hold (model description 2.1, 4.3), reduced to the keys that matter. */
#define MODEL_INDEX                                                                                          \
    "{\"_class_name\":\"Flux2KleinPipeline\",\"_diffusers_version\":\"0.37.0.dev0\",\"is_distilled\":true}"
#define SCHEDULER                                                                                            \
    "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\",\"num_train_timesteps\":1000,\"shift\":3.0,\"use_" \
    "dynamic_shifting\":true,"                                                                               \
    "\"base_shift\":0.5,\"max_shift\":1.15,\"time_shift_type\":\"exponential\",\"invert_sigmas\":false,"     \
    "\"shift_terminal\":null,"                                                                               \
    "\"stochastic_sampling\":false,\"use_karras_sigmas\":false}"
#define TRANSFORMER                                                                                          \
    "{\"_class_name\":\"Flux2Transformer2DModel\",\"patch_size\":1,\"in_channels\":128,\"out_channels\":"    \
    "null,\"num_layers\":5,"                                                                                 \
    "\"num_single_layers\":20,\"attention_head_dim\":128,\"num_attention_heads\":24,\"joint_attention_"      \
    "dim\":7680,"                                                                                            \
    "\"timestep_guidance_channels\":256,\"mlp_ratio\":3.0,\"axes_dims_rope\":[32,32,32,32],\"rope_theta\":"  \
    "2000,\"eps\":1e-06,"                                                                                    \
    "\"guidance_embeds\":false}"
#define TEXT                                                                                                 \
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"hidden_size\":2560,\"num_hidden_"  \
    "layers\":36,"                                                                                           \
    "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"head_dim\":128,\"intermediate_size\":9728,"      \
    "\"vocab_size\":151936,"                                                                                 \
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000,\"rope_scaling\":null,\"hidden_act\":\"silu\","           \
    "\"attention_bias\":false,"                                                                              \
    "\"use_sliding_window\":false,\"sliding_window\":null,\"tie_word_embeddings\":true,\"max_position_"      \
    "embeddings\":40960}"
#define VAE                                                                                                  \
    "{\"_class_name\":\"AutoencoderKLFlux2\",\"act_fn\":\"silu\",\"batch_norm_eps\":0.0001,\"block_out_"     \
    "channels\":[128,256,512,512],"                                                                          \
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","            \
    "\"DownEncoderBlock2D\"],"                                                                               \
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","                    \
    "\"UpDecoderBlock2D\"],\"force_upcast\":true,"                                                           \
    "\"in_channels\":3,\"out_channels\":3,\"latent_channels\":32,\"layers_per_block\":2,\"mid_block_add_"    \
    "attention\":true,"                                                                                      \
    "\"norm_num_groups\":32,\"patch_size\":[2,2],\"use_quant_conv\":true,\"use_post_quant_conv\":true}"

static const char *const good[CONFIG_FILES] = {
    [CONFIG_KLEIN] = "{}",          [CONFIG_MODEL_INDEX] = MODEL_INDEX,
    [CONFIG_SCHEDULER] = SCHEDULER, [CONFIG_TRANSFORMER] = TRANSFORMER,
    [CONFIG_TEXT] = TEXT,           [CONFIG_VAE] = VAE,
};

/* All files, one of them with `key` set to the JSON `value` (NULL: removed; key NULL: nothing changed). */
static enum klein_status read_all(enum config_file which, const char *key, const char *value,
                                  struct model_config *c)
{
    config_defaults(c);
    for (int i = 0; i < CONFIG_FILES; i++) {
        json_t *root = json_loads(good[i], 0, NULL);
        cr_assert(root, "%s", good[i]);
        if (key && i == (int)which) {
            json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
            cr_assert(v || !value, "%s", value);
            if (v)
                json_object_set_new(root, key, v);
            else
                json_object_del(root, key);
        }
        char *text = json_dumps(root, 0);
        enum klein_status status =
            config_parse((enum config_file)i, text, strlen(text), "file.json", c, &err);
        free(text);
        json_decref(root);
        if (status) return status;
    }
    return config_finish(c, "model", &err);
}

Test(config, official_files_are_the_named_configuration)
{
    struct model_config c, named;
    OK(read_all(CONFIG_KLEIN, NULL, NULL, &c));
    OK(config_named("klein-4b", &named, &err));
    cr_assert(!memcmp(&c, &named, sizeof c));
    cr_assert(c.distilled == 1 && c.default_steps == 4 && c.default_guidance == 1 &&
              c.default_width == 1024 && c.text_length == 512);
    OK(read_all(CONFIG_MODEL_INDEX, "is_distilled", NULL, &c)); /* as in the base repositories */
    OK(config_named("klein-base-4b", &named, &err));
    cr_assert(!memcmp(&c, &named, sizeof c));
    cr_assert(c.distilled == 0 && c.default_steps == 50 && c.default_guidance == 4);
}

Test(config, names)
{
    struct model_config c;
    int n = 0;
    for (; config_list(n); n++) OK(config_named(config_list(n), &c, &err));
    cr_assert(n == 5 && !config_list(-1) && !config_list(n + 1));
    FAILS(config_named("klein-5b", &c, &err), KLEIN_E_USAGE,
          "no configuration is called \"klein-5b\"; there are klein-4b, klein-base-4b, klein-9b, "
          "klein-base-9b, tiny");
    OK(config_named("tiny", &c, &err));
    cr_assert_str_eq(c.name, "custom (D 256)");
    cr_assert_str_eq(config_license(&c), "unknown");
    OK(config_named("klein-9b", &c, &err));
    cr_assert_str_eq(config_license(&c), "FLUX Non-Commercial");
    cr_assert(c.dit.width == 4096 && c.text.width == 4096 && c.text.mlp_width == 12288 && !c.text.tied &&
              c.dit.text_width == 12288);
}

Test(config, what_may_differ)
{
    struct model_config c;
    OK(read_all(CONFIG_MODEL_INDEX, "_class_name", "\"Flux2KleinInpaintPipeline\"", &c));
    OK(read_all(CONFIG_TRANSFORMER, "num_layers", "7", &c));
    cr_assert(c.dit.double_blocks == 7 && !strcmp(c.name, "custom (D 3072)") &&
              !strcmp(config_license(&c), "unknown"));
    OK(read_all(CONFIG_TRANSFORMER, "mlp_ratio", "2.5", &c));
    cr_assert(c.dit.mlp_width == 7680);
    OK(read_all(CONFIG_TRANSFORMER, "out_channels", "128", &c));
    OK(read_all(CONFIG_TRANSFORMER, "axes_dims_rope", "[16,48,64,0]", &c));
    cr_assert(c.dit.rope_axes[2] == 64);
    OK(read_all(CONFIG_TRANSFORMER, "rope_theta", "10000.0", &c));
    cr_assert(c.dit.rope_theta == 10000);
    OK(read_all(CONFIG_TRANSFORMER, "a key of a later version", "[{}]", &c));
    OK(read_all(CONFIG_TEXT, "head_dim", NULL, &c)); /* Qwen3's default is 128, not hidden_size / heads */
    cr_assert(c.text.head_dim == 128);
    OK(read_all(CONFIG_TEXT, "rope_scaling", "{\"rope_theta\":500000.0,\"rope_type\":\"default\"}", &c));
    cr_assert(c.text.rope_theta == 500000);
    OK(read_all(CONFIG_TEXT, "rope_parameters", "{\"rope_theta\":5e5,\"rope_type\":\"default\"}",
                &c)); /* transformers 5 */
    cr_assert(c.text.rope_theta == 500000);
    OK(read_all(CONFIG_TEXT, "tie_word_embeddings", "false", &c));
    cr_assert(!c.text.tied);
    OK(read_all(CONFIG_VAE, "decoder_block_out_channels", "[96,192,384,384]", &c));
    cr_assert(c.vae.decoder_channels[0] == 96 && c.vae.encoder_channels[0] == 128 &&
              !strcmp(c.name, "klein 4B"));
    OK(read_all(CONFIG_VAE, "decoder_block_out_channels", "null", &c));
    cr_assert(c.vae.decoder_channels[0] == 128);
    OK(read_all(CONFIG_VAE, "use_quant_conv", "false", &c));
    cr_assert(!c.vae.quant_conv && c.vae.post_quant_conv);
    OK(read_all(CONFIG_VAE, "batch_norm_eps", "1e-3", &c));
    cr_assert(c.vae.bn_eps == 1e-3f);
}

Test(config, klein_json)
{
    struct model_config c;

    OK(read_all(CONFIG_KLEIN, "text_outputs", "[10, 20, 36]", &c));
    cr_assert(c.text.n_outputs == 3 && c.text.outputs[0] == 10 && c.text.outputs[2] == 36);
    OK(read_all(CONFIG_KLEIN, "text_length", "64", &c));
    cr_assert(c.text_length == 64);
    OK(read_all(CONFIG_KLEIN, "distilled", "false", &c)); /* over model_index.json */
    cr_assert(c.distilled == 0 && c.default_steps == 50);
    OK(read_all(CONFIG_KLEIN, "default_width", "128", &c));
    cr_assert(c.default_width == 128 && c.default_height == 1024);
    OK(read_all(CONFIG_KLEIN, "default_steps", "8", &c));
    cr_assert(c.default_steps == 8);
    OK(read_all(CONFIG_KLEIN, "default_guidance", "2.5", &c));
    cr_assert(c.default_guidance == 2.5f);
    OK(read_all(CONFIG_KLEIN, "toy", "true", &c));
    cr_assert(c.toy == 1);
    OK(read_all(CONFIG_KLEIN, "license", "\"MIT\"", &c));
    cr_assert_str_eq(config_license(&c), "MIT");
    FAILS(read_all(CONFIG_KLEIN, "license", "\"MIT\\u001b[1m\"", &c), KLEIN_E_MODEL_CORRUPT,
          "printable ASCII");
    FAILS(read_all(CONFIG_KLEIN, "license", "\"a licence with a name of forty characters\"", &c),
          KLEIN_E_MODEL_CORRUPT, "up to 39");
}

Test(config, what_is_refused)
{
    static const struct {
        enum config_file file;
        const char *key, *value;
        enum klein_status status;
        const char *message;
    } bad[] = {
#define BAD(file, key, value, message) {CONFIG_##file, key, value, KLEIN_E_MODEL_CORRUPT, message}
#define UNSUPPORTED(file, key, value, message)                                                               \
    {                                                                                                        \
        CONFIG_##file, key, value, KLEIN_E_UNSUPPORTED, message                                              \
    }
        BAD(KLEIN, "text_output", "[9]", "file.json: unknown key \"text_output\""),
        BAD(KLEIN, "text_outputs", "[]", "\"text_outputs\" must be a list of 1 to 4"),
        BAD(KLEIN, "text_outputs", "[1,2,3,4,5]", "\"text_outputs\" must be a list of 1 to 4"),
        BAD(KLEIN, "text_outputs", "9", "\"text_outputs\" must be a list of 1 to 4"),
        BAD(KLEIN, "text_outputs", "[0,1,2]", "\"text_outputs\" must be an integer from 1 to"),
        BAD(KLEIN, "text_outputs", "[9.0,18,27]", "\"text_outputs\" must be an integer"),
        BAD(KLEIN, "text_outputs", "[9,9,27]", "must increase and exist"),
        BAD(KLEIN, "text_outputs", "[9,18,37]", "the text encoder has 36 layers"),
        BAD(KLEIN, "text_outputs", "[9,18]",
            "the transformer wants 7680 text values per token, the text encoder gives 2 x 2560"),
        BAD(KLEIN, "text_length", "15", "\"text_length\" must be an integer from 16 to 8192"),
        BAD(KLEIN, "text_length", "\"512\"", "\"text_length\" must be an integer"),
        BAD(KLEIN, "default_width", "100", "not of multiples of 16"),
        BAD(KLEIN, "default_height", "0", "\"default_height\" must be"),
        BAD(KLEIN, "default_steps", "0", "\"default_steps\" must be"),
        BAD(KLEIN, "default_guidance", "0.5", "\"default_guidance\" must be a number from 1 to 100"),
        BAD(KLEIN, "toy", "1", "\"toy\" must be true or false"),
        BAD(KLEIN, "distilled", "\"yes\"", "\"distilled\" must be true or false"),
        BAD(MODEL_INDEX, "_class_name", NULL, "\"_class_name\" is missing"),
        UNSUPPORTED(MODEL_INDEX, "_class_name", "\"Flux2Pipeline\"",
                    "a Flux2Pipeline, not a FLUX.2 [klein] model"),
        UNSUPPORTED(MODEL_INDEX, "_class_name", "\"Flux2KleinKVPipeline\"", "reference-KV variant"),
        BAD(MODEL_INDEX, "is_distilled", "\"true\"", "\"is_distilled\" must be true or false"),
        UNSUPPORTED(SCHEDULER, "_class_name", "\"DDIMScheduler\"",
                    "only _class_name FlowMatchEulerDiscreteScheduler is supported"),
        UNSUPPORTED(SCHEDULER, "use_dynamic_shifting", "false",
                    "only use_dynamic_shifting true is supported"),
        BAD(SCHEDULER, "use_dynamic_shifting", NULL, "\"use_dynamic_shifting\" is missing"),
        UNSUPPORTED(SCHEDULER, "time_shift_type", "\"linear\"", "time_shift_type exponential"),
        UNSUPPORTED(SCHEDULER, "num_train_timesteps", "500", "num_train_timesteps 1000"),
        UNSUPPORTED(SCHEDULER, "shift_terminal", "0.1", "\"shift_terminal\" is not supported"),
        UNSUPPORTED(SCHEDULER, "invert_sigmas", "true", "invert_sigmas false"),
        UNSUPPORTED(SCHEDULER, "stochastic_sampling", "true", "stochastic_sampling false"),
        UNSUPPORTED(SCHEDULER, "use_beta_sigmas", "true", "use_beta_sigmas false"),
        UNSUPPORTED(TRANSFORMER, "_class_name", "\"FluxTransformer2DModel\"",
                    "_class_name Flux2Transformer2DModel"),
        UNSUPPORTED(TRANSFORMER, "guidance_embeds", "true", "this is FLUX.2 [dev]"),
        UNSUPPORTED(TRANSFORMER, "patch_size", "2", "patch_size 1"),
        UNSUPPORTED(TRANSFORMER, "out_channels", "64", "out_channels 128"),
        UNSUPPORTED(TRANSFORMER, "quantization_config", "{\"quant_method\":\"bfl\"}",
                    "\"quantization_config\" is not supported"),
        UNSUPPORTED(TRANSFORMER, "axes_dims_rope", "[64,64]", "2 RoPE axes"),
        BAD(TRANSFORMER, "axes_dims_rope", "[32,32,32,30]", "the RoPE axes sum to 126, head_dim is 128"),
        BAD(TRANSFORMER, "axes_dims_rope", "[31,33,32,32]", "a RoPE axis is odd"),
        BAD(TRANSFORMER, "num_layers", NULL, "\"num_layers\" is missing"),
        BAD(TRANSFORMER, "num_layers", "null", "\"num_layers\" is missing"),
        BAD(TRANSFORMER, "num_layers", "-1", "\"num_layers\" must be an integer from 1"),
        BAD(TRANSFORMER, "num_layers", "5.0", "\"num_layers\" must be an integer"),
        BAD(TRANSFORMER, "num_layers", "129", "number of double blocks is 129; it must be 1 to 128"),
        BAD(TRANSFORMER, "num_single_layers", "9999999999",
            "\"num_single_layers\" must be an integer from 1"),
        BAD(TRANSFORMER, "num_attention_heads", "5000", "are too many"),
        BAD(TRANSFORMER, "attention_head_dim", "64", "the RoPE axes sum to 128, head_dim is 64"),
        BAD(TRANSFORMER, "in_channels", "64", "the transformer wants 64 channels, the VAE gives 4 x 32"),
        BAD(TRANSFORMER, "joint_attention_dim", "12288", "klein 4B goes with Qwen3-4B"),
        BAD(TRANSFORMER, "mlp_ratio", "2.0001", "is no integer"),
        BAD(TRANSFORMER, "mlp_ratio", "-1", "\"mlp_ratio\" must be a number"),
        BAD(TRANSFORMER, "eps", "0", "\"eps\" must be a number"),
        UNSUPPORTED(TEXT, "model_type", "\"mistral\"", "model_type qwen3"),
        UNSUPPORTED(TEXT, "hidden_act", "\"gelu\"", "hidden_act silu"),
        UNSUPPORTED(TEXT, "attention_bias", "true", "attention_bias false"),
        UNSUPPORTED(TEXT, "use_sliding_window", "true", "use_sliding_window false"),
        UNSUPPORTED(TEXT, "quantization_config", "{}", "\"quantization_config\" is not supported"),
        UNSUPPORTED(TEXT, "rope_scaling", "{\"rope_type\":\"yarn\",\"factor\":4.0}", "rope_type default"),
        UNSUPPORTED(TEXT, "rope_scaling", "{\"type\":\"linear\"}", "type default"),
        BAD(TEXT, "rope_scaling", "7", "\"rope_scaling\" is not an object"),
        BAD(TEXT, "rope_theta", NULL, "\"rope_theta\" is missing"),
        BAD(TEXT, "rope_theta", "\"1e6\"", "\"rope_theta\" must be a number"),
        BAD(TEXT, "num_key_value_heads", "5", "cannot share 5 KV heads"),
        BAD(TEXT, "num_hidden_layers", "20", "the text encoder has 20 layers"),
        BAD(TEXT, "hidden_size", "2561", "the text encoder gives 3 x 2561"),
        BAD(TEXT, "head_dim", "127", "heads of 127"),
        UNSUPPORTED(VAE, "_class_name", "\"AutoencoderKL\"", "_class_name AutoencoderKLFlux2"),
        UNSUPPORTED(VAE, "block_out_channels", "[128,256]", "only VAEs of 4 levels"),
        BAD(VAE, "block_out_channels", "[128,256,512,512,512]", "a list of 1 to 4"),
        BAD(VAE, "block_out_channels", "[128,256,512,500]", "500 VAE channels do not divide into 32 groups"),
        BAD(VAE, "block_out_channels", NULL, "\"block_out_channels\" is missing"),
        UNSUPPORTED(VAE, "decoder_block_out_channels", "[96,192]", "only VAEs of 4 levels"),
        UNSUPPORTED(VAE, "patch_size", "[1,1]", "patch_size [2, 2]"),
        UNSUPPORTED(VAE, "down_block_types", "[\"DownEncoderBlock2D\"]", "4 levels of DownEncoderBlock2D"),
        UNSUPPORTED(
            VAE, "up_block_types",
            "[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"AttnUpDecoderBlock2D\"]",
            "4 levels of UpDecoderBlock2D"),
        UNSUPPORTED(VAE, "mid_block_add_attention", "false", "mid_block_add_attention true"),
        UNSUPPORTED(VAE, "act_fn", "\"relu\"", "act_fn silu"),
        UNSUPPORTED(VAE, "in_channels", "4", "in_channels 3"),
        BAD(VAE, "layers_per_block", "4", "VAE layers per block is 4; it must be 1 to 3"),
        BAD(VAE, "latent_channels", "16", "the transformer wants 128 channels, the VAE gives 4 x 16"),
    };
    struct model_config c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        FAILS(read_all(bad[i].file, bad[i].key, bad[i].value, &c), bad[i].status, bad[i].message);
}

Test(config, broken_json)
{
    static const char *const broken[] = {
        "", "{", "[]", "null", "{\"a\":1,\"a\":2}", "{} x", "\xff", "{\"a\":\"\\u0000\"}"};
    struct model_config c;
    for (int file = 0; file < CONFIG_FILES; file++)
        for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
            config_defaults(&c);
            FAILS(config_parse((enum config_file)file, broken[i], strlen(broken[i]), "file.json", &c, &err),
                  KLEIN_E_MODEL_CORRUPT, "file.json: ");
        }
    char deep[100001];
    memset(deep, '[', 100000);
    deep[100000] = 0;
    FAILS(config_parse(CONFIG_VAE, deep, 100000, "file.json", &c, &err), KLEIN_E_MODEL_CORRUPT,
          "nested deeper than");
}
