#include "models.h"
#include "support.h"

#include "../../engine/model.h"
#include "../../weights/make_random.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

struct model_config small_config(void)
{
    struct model_config c;
    OK(config_named("tiny", &c, &err));
    c.dit.double_blocks = 1;
    c.dit.single_blocks = 2;
    c.dit.mlp_width = 128;
    c.text.width = 32;
    c.text.outputs[0] = 1;
    c.text.outputs[1] = 3;
    c.text.outputs[2] = 0;
    c.text.n_outputs = 2;
    c.text.mlp_width = 48;
    c.text.vocab = 300;
    c.text.kv_heads = 2;
    c.dit.text_width = 64;
    const int channels[VAE_LEVELS] = {32, 32, 64, 64};
    memcpy(c.vae.encoder_channels, channels, sizeof channels);
    memcpy(c.vae.decoder_channels, channels, sizeof channels);
    c.vae.layers_per_block = 1;
    OK(config_finish(&c, "small", &err));
    return c;
}

const char *in_test_dir(const char *format, ...)
{
    static char kept[128][256];
    char path[256];
    int n = snprintf(path, sizeof path, "%s/", test_dir()), i = 0;
    va_list ap;
    va_start(ap, format);
    n += vsnprintf(path + n, sizeof path - (size_t)n, format, ap);
    va_end(ap);
    while (i < 128 && kept[i][0] && strcmp(kept[i], path)) i++;
    cr_assert(i < 128 && n < (int)sizeof path);
    return strcpy(kept[i], path);
}

const char *small_model(const char *name, const struct model_config *c, uint64_t shard_bytes)
{
    const char *dir = in_test_dir("%s", name);
    struct make_random_options o = {.config = c, .dir = dir, .seed = 7, .shard_bytes = shard_bytes};
    OK(make_random(&o, model_visit, &err));
    return dir;
}

/* --- editing --------------------------------------------------------------------------------------------- */

static uint16_t f16_of(float f) /* nearest for normal numbers, zero below: enough to write files */
{
    uint32_t u = f32_bits(f), sign = u >> 16 & 0x8000, e = u >> 23 & 255, m = u & 0x7fffff;
    if (e < 113) return (uint16_t)sign;
    return (uint16_t)(sign | ((((e - 112) << 10 | m >> 13)) + (m >> 12 & 1)));
}

static size_t elements_of(const struct st_tensor *t)
{
    size_t n = 1;
    for (int d = 0; d < t->ndim; d++) n *= (size_t)t->shape[d];
    return n;
}

/* Replaces t's data by a new allocation, which it returns. */
static void *apply(struct st_tensor *t, const struct edit *e)
{
    size_t n = elements_of(t), bytes = n * 8 + 8;
    if (e->what == EDIT_SHAPE) {
        t->ndim = e->ndim;
        memcpy(t->shape, e->shape, sizeof e->shape);
        bytes = elements_of(t) * 8 + 8 > bytes ? elements_of(t) * 8 + 8 : bytes;
    }
    char *data = calloc(1, bytes);
    if (e->what == EDIT_DTYPE && (e->dtype == DT_F32 || e->dtype == DT_F16)) {
        for (size_t i = 0; i < n; i++) {
            float f = f32_load(t->data, t->dtype, i);
            if (e->dtype == DT_F32)
                ((float *)data)[i] = f;
            else
                ((uint16_t *)data)[i] = f16_of(f);
        }
    } else {
        memcpy(data, t->data, t->bytes);
    }
    if (e->what == EDIT_DTYPE) t->dtype = e->dtype;
    t->data = data;
    return data;
}

void edit_tensors(const char *from, const char *to, const struct edit *edits, int n)
{
    struct st_file *f;
    OK(st_open(from, &f, &err));
    int count = 0, allocations = 0, most = 2 * st_count(f) * (n + 1) + 1;
    struct st_tensor *out = calloc((size_t)most, sizeof *out);
    void **owned = calloc((size_t)most, sizeof *owned);
    for (int i = 0; i < st_count(f); i++) {
        struct st_tensor t = *st_get(f, i);
        int keep = 1;
        for (int k = 0; k < n; k++) {
            const struct edit *e = &edits[k];
            if (e->tensor && strcmp(e->tensor, st_get(f, i)->name)) continue;
            if (e->what == EDIT_DROP) {
                keep = 0;
            } else if (e->what == EDIT_RENAME) {
                t.name = e->text;
            } else if (e->what == EDIT_PREFIX) {
                char *name = owned[allocations++] = malloc(strlen(e->text) + strlen(t.name) + 1);
                t.name = strcat(strcpy(name, e->text), t.name);
            } else if (e->what == EDIT_DOUBLE) {
                out[count] = t;
                out[count++].name = e->text;
            } else {
                owned[allocations++] = apply(&t, e);
            }
        }
        if (keep) out[count++] = t;
    }
    struct st_writer *w;
    OK(st_write_begin(to, out, count, NULL, &w, &err));
    OK(st_write_finish(w, &err));
    for (int i = 0; i < allocations; i++) free(owned[i]);
    free(owned);
    free(out);
    st_close(f);
}

void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs(text, f) >= 0 && !fclose(f), "%s", path);
}

void edit_json(const char *path, const char *key, const char *value)
{
    json_t *root = json_load_file(path, 0, NULL);
    if (!root) root = json_object();
    if (value)
        json_object_set_new(root, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(root, key);
    cr_assert(!json_dump_file(root, path, 0), "%s", path);
    json_decref(root);
}

void copy_tree(const char *from, const char *to)
{
    char command[1200];
    snprintf(command, sizeof command, "rm -rf '%s' && cp -r '%s' '%s'", to, from, to);
    cr_assert(!system(command), "%s", command);
}

void remove_tree(const char *path)
{
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s'", path);
    cr_assert(!system(command), "%s", command);
}

/* --- BFL's naming ------------------------------------------------------------------------------------------ */

#define BFL_MAX 512
struct bfl {
    struct st_file *from;
    struct st_tensor tensor[BFL_MAX];
    char name[BFL_MAX][96];
    void *owned[BFL_MAX];
    int n;
};

/* Appends a tensor that is the rows of the named ones (up to 3), stacked. */
static void stack(struct bfl *b, const char *name, const char *first, const char *second, const char *third)
{
    const char *names[3] = {first, second, third};
    size_t bytes = 0;
    struct st_tensor *t = &b->tensor[b->n];
    for (int i = 0; i < 3 && names[i]; i++) {
        const struct st_tensor *s = st_find(b->from, names[i]);
        cr_assert(s, "%s is not in %s", names[i], st_path(b->from));
        int64_t rows = i ? t->shape[0] + s->shape[0] : s->shape[0];
        *t = *s;
        if (t->ndim) t->shape[0] = rows;
        b->owned[b->n] = realloc(b->owned[b->n], bytes + s->bytes + 1);
        memcpy((char *)b->owned[b->n] + bytes, s->data, s->bytes);
        bytes += s->bytes;
    }
    snprintf(b->name[b->n], sizeof b->name[0], "%s", name);
    t->name = b->name[b->n];
    t->data = b->owned[b->n++];
}

__attribute__((format(printf, 3, 4))) static void one(struct bfl *b, const char *to, const char *format, ...)
{
    char from[160];
    va_list ap;
    va_start(ap, format);
    vsnprintf(from, sizeof from, format, ap);
    va_end(ap);
    stack(b, to, from, NULL, NULL);
}

static void finish(struct bfl *b, const char *to)
{
    struct st_writer *w;
    OK(st_write_begin(to, b->tensor, b->n, NULL, &w, &err));
    OK(st_write_finish(w, &err));
    for (int i = 0; i < b->n; i++) free(b->owned[i]);
    st_close(b->from);
    free(b);
}

static struct bfl *begin(const char *folder, const char *part)
{
    char path[512];
    struct bfl *b = calloc(1, sizeof *b);
    snprintf(path, sizeof path, "%s/%s/diffusion_pytorch_model.safetensors", folder, part);
    OK(st_open(path, &b->from, &err));
    return b;
}

void write_bfl_transformer(const char *folder, const char *to)
{
    struct bfl *b = begin(folder, "transformer");
    char n[4][160];
#define N(k, ...) (snprintf(n[k], sizeof n[k], __VA_ARGS__), n[k])
    one(b, "img_in.weight", "x_embedder.weight");
    one(b, "txt_in.weight", "context_embedder.weight");
    one(b, "time_in.in_layer.weight", "time_guidance_embed.timestep_embedder.linear_1.weight");
    one(b, "time_in.out_layer.weight", "time_guidance_embed.timestep_embedder.linear_2.weight");
    one(b, "double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight");
    one(b, "double_stream_modulation_txt.lin.weight", "double_stream_modulation_txt.linear.weight");
    one(b, "single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight");
    one(b, "final_layer.linear.weight", "proj_out.weight");
    one(b, "final_layer.adaLN_modulation.1.weight", "norm_out.linear.weight");
    char *halves = b->owned[b->n - 1], *swapped = malloc(b->tensor[b->n - 1].bytes);
    size_t half = b->tensor[b->n - 1].bytes / 2;
    memcpy(swapped, halves + half, half);
    memcpy(swapped + half, halves, half);
    memcpy(halves, swapped, 2 * half);
    free(swapped);
    for (int i = 0; st_find(b->from, N(3, "transformer_blocks.%d.attn.to_q.weight", i)); i++) {
        for (int text = 0; text < 2; text++) {
            static const char *const names[2][7] = {
                {"to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k", "ff"},
                {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k",
                 "ff_context"}};
            const char *const *d = names[text], *s = text ? "txt" : "img";
            char q[160];
            snprintf(q, sizeof q, "double_blocks.%d.%s_attn.qkv.weight", i, s);
            stack(b, q, N(0, "transformer_blocks.%d.attn.%s.weight", i, d[0]),
                  N(1, "transformer_blocks.%d.attn.%s.weight", i, d[1]),
                  N(2, "transformer_blocks.%d.attn.%s.weight", i, d[2]));
            one(b, N(0, "double_blocks.%d.%s_attn.proj.weight", i, s), "transformer_blocks.%d.attn.%s.weight",
                i, d[3]);
            one(b, N(0, "double_blocks.%d.%s_attn.norm.query_norm.scale", i, s),
                "transformer_blocks.%d.attn.%s.weight", i, d[4]);
            one(b, N(0, "double_blocks.%d.%s_attn.norm.key_norm.scale", i, s),
                "transformer_blocks.%d.attn.%s.weight", i, d[5]);
            one(b, N(0, "double_blocks.%d.%s_mlp.0.weight", i, s),
                "transformer_blocks.%d.%s.linear_in.weight", i, d[6]);
            one(b, N(0, "double_blocks.%d.%s_mlp.2.weight", i, s),
                "transformer_blocks.%d.%s.linear_out.weight", i, d[6]);
        }
    }
    for (int i = 0; st_find(b->from, N(3, "single_transformer_blocks.%d.attn.to_out.weight", i)); i++) {
        one(b, N(0, "single_blocks.%d.linear1.weight", i),
            "single_transformer_blocks.%d.attn.to_qkv_mlp_proj.weight", i);
        one(b, N(0, "single_blocks.%d.linear2.weight", i), "single_transformer_blocks.%d.attn.to_out.weight",
            i);
        one(b, N(0, "single_blocks.%d.norm.query_norm.scale", i),
            "single_transformer_blocks.%d.attn.norm_q.weight", i);
        one(b, N(0, "single_blocks.%d.norm.key_norm.scale", i),
            "single_transformer_blocks.%d.attn.norm_k.weight", i);
    }
    cr_assert(b->n < BFL_MAX);
    finish(b, to);
}

/* weight and bias of one layer; `matrix`: a linear that BFL stores as a 1x1 convolution. */
static void layer(struct bfl *b, const char *to, const char *from, int matrix)
{
    static const char *const suffix[] = {"weight", "bias"};
    for (int i = 0; i < 2; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s.%s", to, suffix[i]);
        one(b, name, "%s.%s", from, suffix[i]);
        if (matrix && i == 0) {
            struct st_tensor *t = &b->tensor[b->n - 1];
            t->ndim = 4;
            t->shape[2] = t->shape[3] = 1;
        }
    }
}

static void block(struct bfl *b, const char *to, const char *from)
{
    static const char *const names[][2] = {{"norm1", "norm1"},
                                           {"conv1", "conv1"},
                                           {"norm2", "norm2"},
                                           {"conv2", "conv2"},
                                           {"nin_shortcut", "conv_shortcut"}};
    for (int i = 0; i < 5; i++) {
        char t[160], f[160], probe[176];
        snprintf(t, sizeof t, "%s.%s", to, names[i][0]);
        snprintf(f, sizeof f, "%s.%s", from, names[i][1]);
        snprintf(probe, sizeof probe, "%s.weight", f);
        if (st_find(b->from, probe)) layer(b, t, f, 0);
    }
}

void write_bfl_vae(const char *folder, const char *to, int bare_decoder)
{
    struct bfl *b = begin(folder, "vae");
    char t[160], f[160];
#define T(...) (snprintf(t, sizeof t, __VA_ARGS__), t)
#define F(...) (snprintf(f, sizeof f, __VA_ARGS__), f)
    for (int decoder = bare_decoder; decoder < 2; decoder++) {
        const char *half = decoder ? "decoder" : "encoder", *bfl = bare_decoder ? ""
                                                                   : decoder    ? "decoder."
                                                                                : "encoder.";
        layer(b, T("%s%s", bfl, decoder ? "post_quant_conv" : "quant_conv"),
              decoder ? "post_quant_conv" : "quant_conv", 0);
        layer(b, T("%sconv_in", bfl), F("%s.conv_in", half), 0);
        layer(b, T("%snorm_out", bfl), F("%s.conv_norm_out", half), 0);
        layer(b, T("%sconv_out", bfl), F("%s.conv_out", half), 0);
        block(b, T("%smid.block_1", bfl), F("%s.mid_block.resnets.0", half));
        block(b, T("%smid.block_2", bfl), F("%s.mid_block.resnets.1", half));
        layer(b, T("%smid.attn_1.norm", bfl), F("%s.mid_block.attentions.0.group_norm", half), 0);
        layer(b, T("%smid.attn_1.q", bfl), F("%s.mid_block.attentions.0.to_q", half), 1);
        layer(b, T("%smid.attn_1.k", bfl), F("%s.mid_block.attentions.0.to_k", half), 1);
        layer(b, T("%smid.attn_1.v", bfl), F("%s.mid_block.attentions.0.to_v", half), 1);
        layer(b, T("%smid.attn_1.proj_out", bfl), F("%s.mid_block.attentions.0.to_out.0", half), 1);
        for (int l = 0; l < 4; l++) {
            for (int i = 0; st_find(b->from, F("%s.%s_blocks.%d.resnets.%d.conv1.weight", half,
                                               decoder ? "up" : "down", l, i));
                 i++)
                block(b, T("%s%s.%d.block.%d", bfl, decoder ? "up" : "down", decoder ? 3 - l : l, i),
                      F("%s.%s_blocks.%d.resnets.%d", half, decoder ? "up" : "down", l, i));
            if (l < 3)
                layer(b,
                      T("%s%s.%d.%ssample.conv", bfl, decoder ? "up" : "down", decoder ? 3 - l : l,
                        decoder ? "up" : "down"),
                      F("%s.%s_blocks.%d.%ssamplers.0.conv", half, decoder ? "up" : "down", l,
                        decoder ? "up" : "down"),
                      0);
        }
    }
    if (!bare_decoder) {
        one(b, "bn.running_mean", "bn.running_mean");
        one(b, "bn.running_var", "bn.running_var");
        one(b, "bn.num_batches_tracked", "bn.num_batches_tracked");
    }
    cr_assert(b->n < BFL_MAX);
    finish(b, to);
}
