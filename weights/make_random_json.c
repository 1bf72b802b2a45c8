/* The files of a diffusers folder that are not weights.   source: model 2.1 */
#include "make_random_json.h"
#include "json.h"
#include "tokenizer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SPECIAL 151643 /* the id of <|endoftext|> in Qwen3's vocabulary */
#define FILE_LIMIT    (128 << 20)

enum klein_status make_random_write_json(json_t *json, const char *folder, const char *name,
                                         struct klein_error *err)
{
    char path[PATH_MAX];
    enum klein_status status = KLEIN_OK;
    if (!json)
        status = fail(err, KLEIN_E_NO_MEMORY, "%s/%s: no memory", folder, name);
    else if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path ||
             json_dump_file(json, path, JSON_INDENT(2) | JSON_REAL_PRECISION(15)))
        status = fail(err, KLEIN_E_OUTPUT, "%s/%s: cannot write: %s", folder, name, strerror(errno));
    json_decref(json);
    return status;
}

/* 1e-6f as 1e-6, not as 9.99999997e-07. */
static double decimal(float f)
{
    char text[32];
    snprintf(text, sizeof text, "%.6g", (double)f);
    return strtod(text, NULL);
}

static json_t *list(const int *values, int n)
{
    json_t *l = json_array();
    for (int i = 0; i < n; i++)
        if (json_array_append_new(l, json_integer(values[i]))) {
            json_decref(l);
            return NULL;
        }
    return l;
}

static json_t *model_index(const struct model_config *c)
{
    return json_pack("{s:s, s:s, s:o*, s:[s,s], s:[s,s], s:[s,s], s:[s,s], s:[s,s]}", "_class_name",
                     "Flux2KleinPipeline", "_diffusers_version", "0.37.0", "is_distilled",
                     c->distilled ? json_true() : NULL, "scheduler", "diffusers",
                     "FlowMatchEulerDiscreteScheduler", "text_encoder", "transformers", "Qwen3ForCausalLM",
                     "tokenizer", "transformers", "Qwen2TokenizerFast", "transformer", "diffusers",
                     "Flux2Transformer2DModel", "vae", "diffusers", "AutoencoderKLFlux2");
}

static json_t *scheduler(void)
{
    return json_pack("{s:s, s:i, s:f, s:b, s:f, s:f, s:i, s:i, s:s, s:b, s:n, s:b, s:b, s:b, s:b}",
                     "_class_name", "FlowMatchEulerDiscreteScheduler", "num_train_timesteps", 1000, "shift",
                     3.0, "use_dynamic_shifting", 1, "base_shift", 0.5, "max_shift", 1.15,
                     "base_image_seq_len", 256, "max_image_seq_len", 4096, "time_shift_type", "exponential",
                     "invert_sigmas", 0, "shift_terminal", "stochastic_sampling", 0, "use_karras_sigmas", 0,
                     "use_exponential_sigmas", 0, "use_beta_sigmas", 0);
}

static json_t *transformer(const struct dit_config *d)
{
    return json_pack("{s:s, s:i, s:i, s:n, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:o, s:i, s:f, s:b}",
                     "_class_name", "Flux2Transformer2DModel", "patch_size", 1, "in_channels", d->in_channels,
                     "out_channels", "num_layers", d->double_blocks, "num_single_layers", d->single_blocks,
                     "attention_head_dim", d->head_dim, "num_attention_heads", d->heads,
                     "joint_attention_dim", d->text_width, "timestep_guidance_channels", d->timestep_channels,
                     "mlp_ratio", (double)d->mlp_width / d->width, "axes_dims_rope", list(d->rope_axes, 4),
                     "rope_theta", (int)d->rope_theta, "eps", decimal(d->eps), "guidance_embeds", 0);
}

static json_t *text_encoder(const struct text_config *t)
{
    return json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:n, s:s, s:b, s:f, s:b, "
                     "s:n, s:b, s:i, s:s}",
                     "architectures", "Qwen3ForCausalLM", "model_type", "qwen3", "hidden_size", t->width,
                     "num_hidden_layers", t->layers, "num_attention_heads", t->heads, "num_key_value_heads",
                     t->kv_heads, "head_dim", t->head_dim, "intermediate_size", t->mlp_width, "vocab_size",
                     t->vocab, "rms_norm_eps", decimal(t->eps), "rope_theta", decimal(t->rope_theta),
                     "rope_scaling", "hidden_act", "silu", "attention_bias", 0, "attention_dropout", 0.0,
                     "use_sliding_window", 0, "sliding_window", "tie_word_embeddings", t->tied,
                     "max_position_embeddings", 40960, "torch_dtype", "bfloat16");
}

static json_t *vae(const struct vae_config *v)
{
    const char *down = "DownEncoderBlock2D", *up = "UpDecoderBlock2D";
    int same = !memcmp(v->encoder_channels, v->decoder_channels, sizeof v->encoder_channels);
    return json_pack("{s:s, s:i, s:i, s:[s,s,s,s], s:[s,s,s,s], s:o, s:o*, s:i, s:i, s:i, s:s, s:i, s:b, "
                     "s:b, s:b, s:f, s:f, s:[i,i]}",
                     "_class_name", "AutoencoderKLFlux2", "in_channels", 3, "out_channels", 3,
                     "down_block_types", down, down, down, down, "up_block_types", up, up, up, up,
                     "block_out_channels", list(v->encoder_channels, VAE_LEVELS),
                     "decoder_block_out_channels", same ? NULL : list(v->decoder_channels, VAE_LEVELS),
                     "layers_per_block", v->layers_per_block, "latent_channels", v->latent_channels,
                     "norm_num_groups", v->norm_groups, "act_fn", "silu", "sample_size", 1024,
                     "use_quant_conv", v->quant_conv, "use_post_quant_conv", v->post_quant_conv,
                     "mid_block_add_attention", 1, "batch_norm_eps", decimal(v->bn_eps),
                     "batch_norm_momentum", 0.1, "patch_size", 2, 2);
}

/* What differs from what the official folders leave implicit; NULL in *out if nothing does. */
static enum klein_status klein_json(const struct model_config *c, const char *folder, struct klein_error *err)
{
    struct model_config d;
    config_defaults(&d);
    json_t *o = json_object();
    int failed = !o;
    if (c->text.n_outputs != d.text.n_outputs || memcmp(c->text.outputs, d.text.outputs, sizeof(int[3])))
        failed |= json_object_set_new(o, "text_outputs", list(c->text.outputs, c->text.n_outputs));
    if (c->text_length != d.text_length)
        failed |= json_object_set_new(o, "text_length", json_integer(c->text_length));
    if (c->default_width != d.default_width)
        failed |= json_object_set_new(o, "default_width", json_integer(c->default_width));
    if (c->default_height != d.default_height)
        failed |= json_object_set_new(o, "default_height", json_integer(c->default_height));
    if (c->default_steps != (c->distilled ? 4 : 50))
        failed |= json_object_set_new(o, "default_steps", json_integer(c->default_steps));
    if (c->default_guidance != (c->distilled ? 1 : 4))
        failed |= json_object_set_new(o, "default_guidance", json_real(decimal(c->default_guidance)));
    if (c->toy) failed |= json_object_set_new(o, "toy", json_true());
    if (!failed && !json_object_size(o)) {
        json_decref(o);
        return KLEIN_OK;
    }
    if (failed) json_decref(o);
    return make_random_write_json(failed ? NULL : o, folder, "klein.json", err);
}

enum klein_status make_random_configs(const struct model_config *c, const char *folder,
                                      struct klein_error *err)
{
    TRY(make_random_write_json(model_index(c), folder, "model_index.json", err));
    TRY(make_random_write_json(scheduler(), folder, "scheduler/scheduler_config.json", err));
    TRY(make_random_write_json(transformer(&c->dit), folder, "transformer/config.json", err));
    TRY(make_random_write_json(text_encoder(&c->text), folder, "text_encoder/config.json", err));
    TRY(make_random_write_json(vae(&c->vae), folder, "vae/config.json", err));
    return klein_json(c, folder, err);
}

/* --- tokenizer --------------------------------------------------------------------------------------------
 */

static enum klein_status copy_file(const char *from, const char *to, const char *name,
                                   struct klein_error *err)
{
    char source[PATH_MAX], target[PATH_MAX], *text;
    size_t n;
    if (snprintf(source, sizeof source, "%s/%s", from, name) >= PATH_MAX ||
        snprintf(target, sizeof target, "%s/%s", to, name) >= PATH_MAX)
        return fail(err, KLEIN_E_OUTPUT, "%.200s...: the path is too long", to);
    struct klein_error absent = {0};
    if (js_file(source, FILE_LIMIT, &text, &n, &absent) == KLEIN_E_MODEL_MISSING) return KLEIN_OK;
    if (absent.status) return fail(err, absent.status, "%s", absent.message);
    FILE *f = fopen(target, "wb");
    int failed = !f || fwrite(text, 1, n, f) != n;
    if (f) failed |= fclose(f);
    free(text);
    return failed ? fail(err, KLEIN_E_OUTPUT, "%s: cannot write: %s", target, strerror(errno)) : KLEIN_OK;
}

static enum klein_status copy_tokenizer(const struct model_config *c, const char *from, const char *to,
                                        struct klein_error *err)
{
    static const char *const files[] = {
        "tokenizer.json",    "tokenizer_config.json",   "vocab.json",         "merges.txt",
        "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"};
    struct tokenizer *t;
    TRY(tokenizer_open(from, &t, err));
    int vocab = tokenizer_vocab(t);
    tokenizer_close(t);
    if (vocab > c->text.vocab)
        return fail(err, KLEIN_E_USAGE, "%s: this tokenizer has ids up to %d, the model a vocabulary of %d",
                    from, vocab - 1, c->text.vocab);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) TRY(copy_file(from, to, files[i], err));
    return KLEIN_OK;
}

/* The printable character that stands for a byte in byte-level BPE (GPT-2's table), as UTF-8, and its number
 * in the order of those characters, which is the byte's id in Qwen3's vocabulary too. */
static int byte_token(int byte, char utf8[3])
{
    int printable = 0, others = 0;
    for (int b = 0; b < byte; b++) {
        int shown = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
        printable += shown;
        others += !shown;
    }
    int shown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173),
        code = shown ? byte : 256 + others;
    if (code < 128) {
        utf8[0] = (char)code;
        utf8[1] = 0;
    } else {
        utf8[0] = (char)(0xc0 | code >> 6);
        utf8[1] = (char)(0x80 | (code & 63));
        utf8[2] = 0;
    }
    return shown ? printable : 188 + others;
}

/* Every byte is a token; no merges. The special tokens have Qwen3's ids if the vocabulary has room for them.
 */
static json_t *byte_tokenizer(int vocab)
{
    static const struct {
        const char *text;
        int offset;
    } special[] = {
        {"<|endoftext|>", 0}, {"<|im_start|>", 1}, {"<|im_end|>", 2}, {"<think>", 24}, {"</think>", 25}};
    json_t *bytes = json_object(), *added = json_array();
    int failed = !bytes || !added;
    for (int b = 0; b < 256; b++) {
        char token[4];
        int id = byte_token(b, token);
        failed |= json_object_set_new(bytes, token, json_integer(id));
    }
    for (int i = 0; i < (int)(sizeof special / sizeof *special); i++) {
        int id = vocab > FIRST_SPECIAL + 25 ? FIRST_SPECIAL + special[i].offset : 256 + i;
        failed |= json_array_append_new(
            added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", special[i].text,
                             "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", i < 3));
    }
    const char *regex = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                        "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
                        "\\s+(?!\\S)|\\s+";
    if (failed) {
        json_decref(bytes);
        json_decref(added);
        return NULL;
    }
    return json_pack("{s:s, s:n, s:n, s:o, s:{s:s}, s:{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, {s:s, s:b, s:b, "
                     "s:b}]}, s:{s:s, s:b, s:b, s:b}, "
                     "s:{s:s, s:b, s:b, s:b}, s:{s:s, s:n, s:n, s:s, s:s, s:b, s:b, s:b, s:o, s:[]}}",
                     "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer", "type",
                     "NFC", "pre_tokenizer", "type", "Sequence", "pretokenizers", "type", "Split", "pattern",
                     "Regex", regex, "behavior", "Isolated", "invert", 0, "type", "ByteLevel",
                     "add_prefix_space", 0, "trim_offsets", 0, "use_regex", 0, "post_processor", "type",
                     "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0, "use_regex", 0, "decoder", "type",
                     "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0, "use_regex", 0, "model", "type",
                     "BPE", "dropout", "unk_token", "continuing_subword_prefix", "", "end_of_word_suffix", "",
                     "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab", bytes, "merges");
}

/* Qwen3's template as far as one message of a user goes. */
static json_t *tokenizer_config(void)
{
    return json_pack("{s:s, s:b, s:n, s:s, s:s, s:n, s:i, s:s}", "tokenizer_class", "Qwen2Tokenizer",
                     "add_prefix_space", 0, "bos_token", "eos_token", "<|im_end|>", "pad_token",
                     "<|endoftext|>", "unk_token", "model_max_length", 131072, "chat_template",
                     "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + "
                     "'<|im_end|>\\n' }}{% endfor %}"
                     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
                     "{% if enable_thinking is defined and not enable_thinking %}{{ "
                     "'<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}");
}

enum klein_status make_random_tokenizer(const struct model_config *c, const char *from, const char *folder,
                                        struct klein_error *err)
{
    if (from) return copy_tokenizer(c, from, folder, err);
    if (c->text.vocab < 256 + 5)
        return fail(err, KLEIN_E_USAGE, "a vocabulary of %d has no room for 256 bytes and the special tokens",
                    c->text.vocab);
    TRY(make_random_write_json(byte_tokenizer(c->text.vocab), folder, "tokenizer.json", err));
    return make_random_write_json(tokenizer_config(), folder, "tokenizer_config.json", err);
}
