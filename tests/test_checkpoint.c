#include "../engine/model.h"
#include "../weights/info.h"
#include "support/models.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct klein_error err;

#define TRANSFORMER "transformer/diffusion_pytorch_model.safetensors"
#define TEXT        "text_encoder/model.safetensors"
#define VAE         "vae/diffusion_pytorch_model.safetensors"

static enum klein_status open_and_bind(const struct checkpoint_paths *paths, struct checkpoint **out)
{
    TRY(checkpoint_open(paths, out, &err));
    enum klein_status status = model_visit(*out, &err);
    if (status) {
        checkpoint_close(*out);
        *out = NULL;
    }
    return status;
}

/* Opens, binds, closes. */
static enum klein_status try_paths(const struct checkpoint_paths *paths)
{
    struct checkpoint *c;
    TRY(open_and_bind(paths, &c));
    checkpoint_close(c);
    return KLEIN_OK;
}

static enum klein_status try_model(const char *dir)
{
    return try_paths(&(struct checkpoint_paths){.model = dir});
}

/* A checkpoint's tensors, asked for again in another one of any kind. */
struct taken {
    struct checkpoint_entry entry;
    struct tensor tensor;
};

static struct tensor tensor_named(struct checkpoint *c, const struct checkpoint_entry *e)
{
    struct tensor t;
    OK(checkpoint_tensor(c, e->part, e->name, e->ndim, e->shape, &t, &err));
    return t;
}

/* Do the two models, both freshly opened, have the same bytes under all names that the model asks for? */
static void assert_same_weights(struct checkpoint *a, struct checkpoint *b)
{
    struct checkpoint *shapes;
    struct checkpoint_entry e;
    OK(checkpoint_shapes(checkpoint_config(a), &shapes, &err));
    OK(model_visit(shapes, &err));
    int n = 0;
    for (; checkpoint_entries(shapes, n, &e); n++) {
        struct tensor x = tensor_named(a, &e), y = tensor_named(b, &e);
        cr_assert(x.dtype == y.dtype && x.rows == y.rows && x.cols == y.cols, "%s", e.name);
        cr_assert(!memcmp(x.ptr, y.ptr, (size_t)x.rows * (size_t)x.cols * dtype_size(x.dtype)), "%s differs",
                  e.name);
    }
    cr_assert(n > 100);
    for (int part = 0; part < PART_COUNT; part++) {
        OK(checkpoint_all_used(a, (enum checkpoint_part)part, &err));
        OK(checkpoint_all_used(b, (enum checkpoint_part)part, &err));
    }
    checkpoint_close(shapes);
}

static struct checkpoint *opened(const struct checkpoint_paths *paths)
{
    struct checkpoint *c;
    OK(checkpoint_open(paths, &c, &err));
    return c;
}

static void assert_same_models(const struct checkpoint_paths *a, const struct checkpoint_paths *b)
{
    struct checkpoint *x = opened(a), *y = opened(b);
    assert_same_weights(x, y);
    checkpoint_close(x);
    checkpoint_close(y);
}

/* --- layouts ----------------------------------------------------------------------------------------------- */

Test(checkpoint, folder_has_the_values_of_the_random_checkpoint)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    struct checkpoint *random, *c = opened(&(struct checkpoint_paths){.model = dir});
    OK(checkpoint_random(&config, DT_BF16, 7, &random, &err));
    assert_same_weights(random, c);
    cr_assert(!memcmp(&checkpoint_config(c)->dit, &config.dit, sizeof config.dit));
    cr_assert(!memcmp(&checkpoint_config(c)->text, &config.text, sizeof config.text));
    cr_assert(!memcmp(&checkpoint_config(c)->vae, &config.vae, sizeof config.vae));
    cr_assert_str_eq(checkpoint_tokenizer_dir(c), in_test_dir("m/tokenizer"));
    cr_assert_str_eq(checkpoint_license(c), "unknown");
    checkpoint_close(random);
    checkpoint_close(c);
}

Test(checkpoint, bfl_names_are_the_same_model)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    write_bfl_transformer(dir, in_test_dir("flux-2-klein-small.safetensors"));
    write_bfl_vae(dir, in_test_dir("ae.safetensors"), 0);
    struct st_file *f;
    OK(st_open(in_test_dir("flux-2-klein-small.safetensors"), &f, &err));
    cr_assert(st_count(f) == 9 + 12 * 1 + 4 * 2);
    st_close(f);
    struct checkpoint_paths folder = {.model = dir};
    struct checkpoint_paths files = {.model = dir,
                                     .transformer = in_test_dir("flux-2-klein-small.safetensors"),
                                     .vae = in_test_dir("ae.safetensors")};
    assert_same_models(&folder, &files);
    /* the single file as the model, its other parts beside it, as in the official repository */
    copy_tree(in_test_dir("flux-2-klein-small.safetensors"), in_test_dir("m/flux-2-klein-small.safetensors"));
    struct checkpoint_paths single = {.model = in_test_dir("m/flux-2-klein-small.safetensors")};
    assert_same_models(&folder, &single);

    struct checkpoint *c;
    struct part_info info;
    struct tensor_info t;
    OK(open_and_bind(&files, &c));
    checkpoint_part_info(c, PART_TRANSFORMER, &info);
    cr_assert(!strcmp(info.naming, "BFL") && info.files == 1 && info.used.parameters == info.all.parameters);
    cr_assert_str_eq(info.path, files.transformer);
    checkpoint_part_info(c, PART_TEXT, &info);
    cr_assert(!strcmp(info.naming, "diffusers") && info.used.tensors == 1 + 3 * 11 &&
              info.all.tensors == 1 + 4 * 11 + 1);
    int ignored = 0, unknown = 0;
    for (int i = 0; checkpoint_part_tensor(c, PART_TEXT, i, &t); i++) {
        ignored += t.state == TENSOR_IGNORED;
        unknown += t.state == TENSOR_UNKNOWN;
    }
    cr_assert(ignored == 12 && !unknown);
    int shifts = 0;
    for (int i = 0; checkpoint_part_tensor(c, PART_TRANSFORMER, i, &t); i++)
        shifts += !strcmp(t.name, "norm_out.linear.shift") &&
                  !strcmp(t.file_name, "final_layer.adaLN_modulation.1.weight") && t.piece == 0 &&
                  t.pieces == 2 && t.shape[0] == 512 && t.state == TENSOR_USED;
    cr_assert(shifts == 1);
    checkpoint_close(c);
}

/* Rows of the halves, in each naming, told apart without the other naming's help. */
Test(checkpoint, final_modulation_halves)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    write_bfl_transformer(dir, in_test_dir("klein.safetensors"));
    struct st_file *diffusers, *bfl;
    OK(st_open(in_test_dir("m/" TRANSFORMER), &diffusers, &err));
    OK(st_open(in_test_dir("klein.safetensors"), &bfl, &err));
    for (int which = 0; which < 2; which++) {
        struct checkpoint *c =
            opened(&(struct checkpoint_paths){.model = dir, .transformer = which ? st_path(bfl) : NULL});
        const struct st_tensor *t = which ? st_find(bfl, "final_layer.adaLN_modulation.1.weight")
                                          : st_find(diffusers, "norm_out.linear.weight");
        struct tensor scale, shift;
        OK(checkpoint_tensor(c, PART_TRANSFORMER, "norm_out.linear.scale", 2, (int64_t[]){256, 256}, &scale,
                             &err));
        OK(checkpoint_tensor(c, PART_TRANSFORMER, "norm_out.linear.shift", 2, (int64_t[]){256, 256}, &shift,
                             &err));
        const char *first = t->data, *second = first + t->bytes / 2;
        cr_assert(!memcmp(scale.ptr, which ? second : first, t->bytes / 2) &&
                  !memcmp(shift.ptr, which ? first : second, t->bytes / 2));
        checkpoint_close(c);
    }
    st_close(diffusers);
    st_close(bfl);
}

Test(checkpoint, prefixed_names)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    write_bfl_transformer(dir, in_test_dir("klein.safetensors"));
    static const char *const prefixes[] = {"model.diffusion_model.", "diffusion_model."};
    for (int i = 0; i < 2; i++) {
        const char *to = in_test_dir("klein-%d.safetensors", i);
        edit_tensors(in_test_dir("klein.safetensors"), to, &(struct edit)PREFIX(prefixes[i]), 1);
        assert_same_models(&(struct checkpoint_paths){.model = dir},
                           &(struct checkpoint_paths){.model = dir, .transformer = to});
    }
    edit_tensors(in_test_dir("klein.safetensors"), in_test_dir("klein-x.safetensors"),
                 &(struct edit)PREFIX("net."), 1);
    FAILS(try_paths(
              &(struct checkpoint_paths){.model = dir, .transformer = in_test_dir("klein-x.safetensors")}),
          KLEIN_E_MODEL_CORRUPT, "x_embedder.weight is missing; this is not a FLUX.2 transformer");
    edit_tensors(in_test_dir("klein.safetensors"), in_test_dir("klein-y.safetensors"),
                 &(struct edit)DOUBLE("img_in.weight", "model.diffusion_model.img_in.weight"), 1);
    FAILS(try_paths(
              &(struct checkpoint_paths){.model = dir, .transformer = in_test_dir("klein-y.safetensors")}),
          KLEIN_E_MODEL_CORRUPT, "x_embedder.weight is there twice");
}

Test(checkpoint, small_decoder)
{
    struct model_config config = small_config(), narrow = config;
    const char *dir = small_model("m", &config, 0);
    const int channels[VAE_LEVELS] = {32, 32, 32, 32};
    memcpy(narrow.vae.decoder_channels, channels, sizeof channels);
    const char *small = small_model("narrow", &narrow, 0);
    OK(try_model(small)); /* by decoder_block_out_channels */
    write_bfl_vae(small, in_test_dir("full_encoder_small_decoder.safetensors"), 0);
    write_bfl_vae(small, in_test_dir("small_decoder.safetensors"), 1);
    struct checkpoint_paths whole = {.model = dir,
                                     .vae = in_test_dir("full_encoder_small_decoder.safetensors")};
    assert_same_models(&(struct checkpoint_paths){.model = dir, .vae = small}, &whole);

    /* the decoder alone: encoder and statistics are the model's own, which here were made from the same seed and names */
    struct checkpoint_paths bare = {.model = dir, .vae = in_test_dir("small_decoder.safetensors")};
    assert_same_models(&whole, &bare);
    struct checkpoint *c = opened(&bare);
    cr_assert(checkpoint_config(c)->vae.decoder_channels[3] == 32 &&
              checkpoint_config(c)->vae.encoder_channels[3] == 64);
    checkpoint_close(c);
    bare.model = NULL;
    bare.transformer = in_test_dir("m/transformer");
    bare.text_encoder = in_test_dir("m/text_encoder");
    OK(try_paths(&bare)); /* the folder of the transformer has a vae */
}

Test(checkpoint, shards)
{
    struct model_config config = small_config();
    const char *one = small_model("one", &config, 0), *many = small_model("many", &config, 300000);
    cr_assert(access(in_test_dir("many/text_encoder/model-00002-of-00002.safetensors"), R_OK) == 0,
              "expected two shards");
    cr_assert(access(in_test_dir("many/transformer/diffusion_pytorch_model.safetensors.index.json"), R_OK) ==
              0);
    cr_assert(access(in_test_dir("many/vae/diffusion_pytorch_model.safetensors"), R_OK) != 0);
    assert_same_models(&(struct checkpoint_paths){.model = one}, &(struct checkpoint_paths){.model = many});
}

static void write_index(const char *dir, const char *tensor, const char *file)
{
    char text[512];
    snprintf(text, sizeof text,
             "{\"weight_map\":{\"model.embed_tokens.weight\":\"a.safetensors\",\"%s\":%s}}", tensor, file);
    write_text(in_test_dir("%s/text_encoder/model.safetensors.index.json", dir), text);
}

Test(checkpoint, broken_indexes)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0),
               *index = in_test_dir("m/text_encoder/model.safetensors.index.json");
    cr_assert(!rename(in_test_dir("m/" TEXT), in_test_dir("m/text_encoder/a.safetensors")));
    FAILS(try_model(dir), KLEIN_E_MODEL_MISSING,
          "text_encoder: has neither diffusion_pytorch_model.safetensors nor model.safetensors");
    static const struct {
        const char *file, *message;
        enum klein_status status;
    } bad[] = {
        {"\"../a.safetensors\"", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"\"/etc/passwd\"", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"\"..\"", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"\"\"", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"\"x\\\\a.safetensors\"", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"7", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"null", "not in a file of this folder", KLEIN_E_MODEL_CORRUPT},
        {"\"b.safetensors\"", "b.safetensors: No such file", KLEIN_E_MODEL_MISSING},
        {"\"config.json\"", "config.json: says that its header has", KLEIN_E_MODEL_CORRUPT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index("m", "model.layers.0.mlp.up_proj.weight", bad[i].file);
        FAILS(try_model(dir), bad[i].status, bad[i].message);
    }
    write_index("m", "model.layers.0.none.weight", "\"a.safetensors\"");
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "model.layers.0.none.weight is not in a.safetensors");
    /* layers that are not needed are not looked for: they may be anywhere but outside the folder */
    write_index("m", "model.layers.3.mlp.up_proj.weight", "\"b.safetensors\"");
    OK(try_model(dir));
    write_index("m", "model.layers.3.mlp.up_proj.weight", "\"../b.safetensors\"");
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "not in a file of this folder");
    write_text(index, "{\"weight_map\":{}}");
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "\"weight_map\" is missing or empty");
    write_text(index, "{\"weight_map\":[]}");
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "\"weight_map\" is missing or empty");
    write_text(index, "[[[");
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "index.json: not valid JSON");
}

Test(checkpoint, parts_from_elsewhere)
{
    struct model_config config = small_config();
    const char *a = small_model("a", &config, 0), *b = small_model("b", &config, 0);
    struct checkpoint_paths whole = {.model = a};
    assert_same_models(&whole,
                       &(struct checkpoint_paths){.model = a, .transformer = in_test_dir("b/transformer")});
    assert_same_models(&whole,
                       &(struct checkpoint_paths){.model = a, .transformer = b, .text_encoder = b, .vae = b});
    assert_same_models(&whole, &(struct checkpoint_paths){.model = a,
                                                          .text_encoder = in_test_dir("b/" TEXT),
                                                          .vae = in_test_dir("b/" VAE)});
    struct checkpoint_paths apart = {.transformer = in_test_dir("a/transformer"),
                                     .text_encoder = in_test_dir("b/text_encoder"),
                                     .vae = in_test_dir("b/vae/")};
    assert_same_models(&whole, &apart);

    struct checkpoint *c =
        opened(&(struct checkpoint_paths){.model = a, .text_encoder = in_test_dir("b/text_encoder")});
    cr_assert_str_eq(checkpoint_tokenizer_dir(c),
                     in_test_dir("b/tokenizer")); /* beside the folder that was given */
    checkpoint_close(c);
    c = opened(&(struct checkpoint_paths){.model = a, .text_encoder = in_test_dir("b/" TEXT)});
    cr_assert_str_eq(checkpoint_tokenizer_dir(c), in_test_dir("a/tokenizer")); /* a file: the model's */
    checkpoint_close(c);
    copy_tree(in_test_dir("b/" TEXT), in_test_dir("qwen.safetensors"));
    apart.text_encoder = in_test_dir("qwen.safetensors");
    c = opened(&apart);
    cr_assert_str_eq(checkpoint_tokenizer_dir(c), in_test_dir("a/tokenizer")); /* beside the transformer */
    checkpoint_close(c);

    FAILS(try_model(in_test_dir("absent")), KLEIN_E_MODEL_MISSING, "absent: No such file");
    FAILS(try_paths(&(struct checkpoint_paths){.model = a, .vae = in_test_dir("absent")}),
          KLEIN_E_MODEL_MISSING, "absent: No such file");
    FAILS(try_paths(&(struct checkpoint_paths){.transformer = a, .vae = a}), KLEIN_E_USAGE,
          "neither a model nor a text_encoder");
    FAILS(try_model(in_test_dir("a/scheduler")), KLEIN_E_MODEL_MISSING,
          "scheduler/transformer: No such file");
    cr_assert(!remove(in_test_dir("a/" VAE)));
    FAILS(try_model(a), KLEIN_E_MODEL_MISSING, "vae: has neither");
    OK(try_paths(&(struct checkpoint_paths){.model = a, .vae = b}));
}

/* A text encoder of another size does not fit the transformer. */
Test(checkpoint, parts_that_do_not_belong_together)
{
    struct model_config config = small_config(), wide = config;
    wide.text.width = 64;
    wide.dit.text_width = 128;
    const char *a = small_model("a", &config, 0), *b = small_model("b", &wide, 0);
    FAILS(try_paths(&(struct checkpoint_paths){.model = a, .text_encoder = b}), KLEIN_E_MODEL_CORRUPT,
          "the transformer wants 64 text values per token, the text encoder gives 2 x 64: they do not belong "
          "together");
}

/* --- distilled or base --------------------------------------------------------------------------------------- */

static int distilled(const struct checkpoint_paths *paths)
{
    struct checkpoint *c = opened(paths);
    int is = checkpoint_config(c)->distilled;
    cr_assert(checkpoint_config(c)->default_steps == (is ? 4 : 50) &&
              checkpoint_config(c)->default_guidance == (is ? 1 : 4));
    checkpoint_close(c);
    return is;
}

Test(checkpoint, distilled_or_base)
{
    struct model_config config = small_config(), base = config;
    base.distilled = 0;
    base.default_steps = 50;
    base.default_guidance = 4;
    const char *d = small_model("d", &config, 0), *b = small_model("b", &base, 0);
    cr_assert(distilled(&(struct checkpoint_paths){.model = d}) == 1);
    cr_assert(distilled(&(struct checkpoint_paths){.model = b}) == 0);
    cr_assert(distilled(&(struct checkpoint_paths){.model = d, .variant = 2}) == 0);
    cr_assert(distilled(&(struct checkpoint_paths){.model = b, .variant = 1}) == 1);
    cr_assert(distilled(&(struct checkpoint_paths){.model = d, .transformer = b}) ==
              0); /* it goes with the transformer */
    cr_assert(distilled(&(struct checkpoint_paths){.model = d, .vae = b, .text_encoder = b}) == 1);

    static const struct {
        const char *name;
        int distilled;
    } files[] = {
        {"flux-2-klein-base-4b.safetensors", 0}, {"flux-2-klein-4b.safetensors", 1}, {"x.safetensors", -1}};
    for (int i = 0; i < 3; i++) {
        const char *file = in_test_dir("%s", files[i].name);
        write_bfl_transformer(d, file);
        struct checkpoint_paths paths = {.model = d, .transformer = file};
        if (files[i].distilled >= 0) {
            cr_assert(distilled(&paths) == files[i].distilled, "%s", file);
        } else {
            FAILS(try_paths(&paths), KLEIN_E_USAGE, "say --distilled or --base");
            paths.variant = 2;
            cr_assert(distilled(&paths) == 0);
        }
    }
    write_bfl_transformer(b, in_test_dir("b/x.safetensors")); /* beside a model_index.json that tells */
    cr_assert(distilled(&(struct checkpoint_paths){.model = in_test_dir("b/x.safetensors")}) == 0);
    edit_json(in_test_dir("b/klein.json"), "distilled", "true");
    edit_json(in_test_dir("b/klein.json"), "default_steps", "4");
    edit_json(in_test_dir("b/klein.json"), "default_guidance", "1");
    cr_assert(distilled(&(struct checkpoint_paths){.model = b}) == 1);
    cr_assert(distilled(&(struct checkpoint_paths){.model = b, .variant = 2}) ==
              0); /* with a base's defaults */
    cr_assert(!remove(in_test_dir("d/model_index.json")));
    FAILS(try_model(d), KLEIN_E_USAGE, "d/transformer: nothing tells whether");
    cr_assert(distilled(&(struct checkpoint_paths){.model = d, .variant = 1}) == 1);
}

/* --- damaged tensors ------------------------------------------------------------------------------------------- */

Test(checkpoint, wrong_tensors_are_named)
{
    static const struct {
        const char *file;
        struct edit edit;
        enum klein_status status;
        const char *message;
    } bad[] = {
        {TRANSFORMER, DROP("proj_out.weight"), KLEIN_E_MODEL_CORRUPT,
         "transformer: tensor proj_out.weight [128, 256] is missing"},
        {TRANSFORMER, DROP("x_embedder.weight"), KLEIN_E_MODEL_CORRUPT, "x_embedder.weight is missing"},
        {TRANSFORMER, SHAPE("proj_out.weight", 2, 256, 128), KLEIN_E_MODEL_CORRUPT,
         "tensor proj_out.weight is [256, 128], [128, 256] is expected"},
        {TRANSFORMER, SHAPE("proj_out.weight", 1, 32768), KLEIN_E_MODEL_CORRUPT, "is [32768], [128, 256]"},
        {TRANSFORMER, SHAPE("proj_out.weight", 0, 0), KLEIN_E_MODEL_CORRUPT, "is [], [128, 256]"},
        {TRANSFORMER, SHAPE("norm_out.linear.weight", 2, 511, 256), KLEIN_E_MODEL_CORRUPT,
         "norm_out.linear.weight: its rows do not divide by 2"},
        {TRANSFORMER, SHAPE("norm_out.linear.weight", 2, 256, 256), KLEIN_E_MODEL_CORRUPT,
         "norm_out.linear.weight (for norm_out.linear.scale) is [128, 256] per piece, [256, 256] is "
         "expected"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "proj_out.bias"), KLEIN_E_MODEL_CORRUPT,
         "transformer: 1 tensors that this model does not have: proj_out.bias"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "diffusion_model.weight_scale"), KLEIN_E_MODEL_CORRUPT,
         "transformer: 1 tensors that this model does not have: diffusion_model.weight_scale"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "model.diffusion_model.x.input_scale"), KLEIN_E_MODEL_CORRUPT,
         "does not have: model.diffusion_model.x.input_scale"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "transformer_blocks.1.attn.to_q.weight"),
         KLEIN_E_MODEL_CORRUPT, "num_layers is 1, but the tensors of this folder are for 2"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "final_layer.linear.weight"), KLEIN_E_MODEL_CORRUPT,
         "proj_out.weight is there twice"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "guidance_in.in_layer.weight"), KLEIN_E_UNSUPPORTED,
         "FLUX.2 [dev]"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "time_guidance_embed.guidance_embedder.linear_1.weight"),
         KLEIN_E_UNSUPPORTED, "FLUX.2 [dev]"},
        {TRANSFORMER, DOUBLE("proj_out.weight", "double_blocks.0.img_mod.lin.weight"), KLEIN_E_UNSUPPORTED,
         "is it FLUX.1?"},
        {TRANSFORMER, DTYPE("proj_out.weight", DT_F8E4M3), KLEIN_E_UNSUPPORTED,
         "proj_out.weight is F8_E4M3 without a weight_scale"},
        {TRANSFORMER, DTYPE("proj_out.weight", DT_U8), KLEIN_E_UNSUPPORTED, "is U8; quantised"},
        {TRANSFORMER, DTYPE("proj_out.weight", DT_I32), KLEIN_E_UNSUPPORTED, "is I32; quantised"},
        {TEXT, DROP("model.layers.2.mlp.up_proj.weight"), KLEIN_E_MODEL_CORRUPT,
         "model.layers.2.mlp.up_proj.weight [48, 32] is missing"},
        {TEXT, SHAPE("model.embed_tokens.weight", 2, 299, 32), KLEIN_E_MODEL_CORRUPT,
         "vocab_size is 300, but the tensors of this folder are for 299"},
        {TEXT, RENAME("model.norm.weight", "model.norm.bias"), KLEIN_E_MODEL_CORRUPT,
         "does not have: model.norm.bias"},
        {VAE, DROP("bn.running_var"), KLEIN_E_MODEL_CORRUPT, "bn.running_var [128] is missing"},
        {VAE, SHAPE("decoder.conv_in.weight", 2, 64, 32), KLEIN_E_MODEL_CORRUPT,
         "is [64, 32], [64, 32, 3, 3]"},
        {VAE, DROP("quant_conv.weight"), KLEIN_E_MODEL_CORRUPT,
         "use_quant_conv is 1, but the tensors of this folder are for 0"},
    };
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    copy_tree(dir, in_test_dir("good"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        edit_tensors(in_test_dir("good/%s", bad[i].file), in_test_dir("m/%s", bad[i].file), &bad[i].edit, 1);
        FAILS(try_model(dir), bad[i].status, bad[i].message);
        copy_tree(in_test_dir("good/%s", bad[i].file), in_test_dir("m/%s", bad[i].file));
    }
    OK(try_model(dir));
}

Test(checkpoint, many_leftovers_are_counted)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0), *file = in_test_dir("m/" VAE);
    static const char *const names[] = {"e.1", "e.2", "e.3", "e.4", "e.5"};
    struct edit edits[5];
    for (int i = 0; i < 5; i++) edits[i] = (struct edit)DOUBLE("bn.running_mean", names[i]);
    edit_tensors(file, file, edits, 5);
    FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT,
          "vae: 5 tensors that this model does not have: e.1 e.2 e.3 ...");
}

Test(checkpoint, truncated_files)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    static const char *const files[] = {TRANSFORMER, TEXT, VAE};
    for (int i = 0; i < 3; i++) {
        const char *file = in_test_dir("m/%s", files[i]);
        copy_tree(file, in_test_dir("whole"));
        struct st_file *f;
        OK(st_open(file, &f, &err));
        size_t size = st_size(f);
        st_close(f);
        cr_assert(!truncate(file, (off_t)size - 1));
        FAILS(try_model(dir), KLEIN_E_MODEL_CORRUPT, "the file is truncated or damaged");
        copy_tree(in_test_dir("whole"), file);
    }
    OK(try_model(dir));
}

Test(checkpoint, layers_that_are_not_needed_may_be_anything)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0), *file = in_test_dir("m/" TEXT);
    struct edit damage[] = {
        DROP("model.layers.3.mlp.up_proj.weight"),
        SHAPE("model.layers.3.mlp.down_proj.weight", 1, 1),
        DTYPE("model.layers.3.self_attn.q_proj.weight", DT_F8E4M3),
        RENAME("model.layers.3.self_attn.k_proj.weight", "model.layers.77.none"),
        DOUBLE("model.norm.weight", "lm_head.weight"),
    };
    copy_tree(dir, in_test_dir("whole"));
    edit_tensors(file, file, damage, 5);
    assert_same_models(&(struct checkpoint_paths){.model = in_test_dir("whole")},
                       &(struct checkpoint_paths){.model = dir});
    /* all of it gone, as make_random's used_only leaves it; also as a single file */
    struct st_file *f;
    OK(st_open(in_test_dir("whole/" TEXT), &f, &err));
    struct edit drop[64];
    int n = 0;
    for (int i = 0; i < st_count(f); i++)
        if (!strncmp(st_get(f, i)->name, "model.layers.3.", 15) ||
            !strcmp(st_get(f, i)->name, "model.norm.weight"))
            drop[n++] = (struct edit)DROP(st_get(f, i)->name);
    cr_assert(n == 12);
    edit_tensors(in_test_dir("whole/" TEXT), in_test_dir("text.safetensors"), drop, n);
    st_close(f);
    assert_same_models(
        &(struct checkpoint_paths){.model = in_test_dir("whole")},
        &(struct checkpoint_paths){.model = dir, .text_encoder = in_test_dir("text.safetensors")});
}

Test(checkpoint, other_float_types)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0);
    static const enum dtype types[] = {DT_F32, DT_F16};
    for (int i = 0; i < 2; i++) {
        copy_tree(dir, in_test_dir("other"));
        struct edit all[] = {DTYPE(NULL, types[i]), DROP("bn.num_batches_tracked")};
        edit_tensors(in_test_dir("m/" TRANSFORMER), in_test_dir("other/" TRANSFORMER), all, 1);
        edit_tensors(in_test_dir("m/" VAE), in_test_dir("other/" VAE), all, 2);
        struct checkpoint *a = opened(&(struct checkpoint_paths){.model = dir}),
                          *b = opened(&(struct checkpoint_paths){.model = in_test_dir("other")});
        struct checkpoint_entry e = {PART_TRANSFORMER, "proj_out.weight", 2, {128, 256}, DT_BF16};
        struct tensor x = tensor_named(a, &e), y = tensor_named(b, &e);
        cr_assert(x.dtype == DT_BF16 && y.dtype == types[i]);
        double difference = max_abs_diff(y, x);
        cr_assert(types[i] == DT_F32 ? difference == 0 : difference < 1e-4, "%g", difference);
        checkpoint_close(a);
        checkpoint_close(b);
        OK(try_model(in_test_dir("other")));
    }
}

/* A header of odd length puts every tensor at an odd address. */
Test(checkpoint, misaligned_data_are_refused)
{
    struct model_config config = small_config();
    const char *dir = small_model("m", &config, 0), *file = in_test_dir("m/" VAE);
    FILE *in = fopen(file, "rb"), *out = fopen(in_test_dir("odd"), "wb");
    unsigned char size[8];
    cr_assert(in && out && fread(size, 1, 8, in) == 8);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | size[i];
    char *text = malloc(header + 1);
    cr_assert(fread(text, 1, header, in) == header);
    text[header++] = ' ';
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)(header >> 8 * i);
    fwrite(size, 1, 8, out);
    fwrite(text, 1, header, out);
    for (int ch; (ch = getc(in)) != EOF;) putc(ch, out);
    fclose(in);
    fclose(out);
    free(text);
    copy_tree(in_test_dir("odd"), file);
    FAILS(try_model(dir), KLEIN_E_UNSUPPORTED, "does not begin at a multiple of its element size");
}

Test(checkpoint, failures_stick)
{
    struct model_config config = small_config();
    struct checkpoint *c = opened(&(struct checkpoint_paths){.model = small_model("m", &config, 0)});
    struct tensor t;
    err = (struct klein_error){0};
    cr_assert(checkpoint_tensor(c, PART_VAE, "none", 1, (int64_t[]){1}, &t, &err) == KLEIN_E_MODEL_CORRUPT);
    struct klein_error first = err;
    cr_assert(checkpoint_tensor(c, PART_VAE, "bn.running_var", 1, (int64_t[]){128}, &t, &err) ==
              KLEIN_E_MODEL_CORRUPT);
    cr_assert(checkpoint_all_used(c, PART_VAE, &err) == KLEIN_E_MODEL_CORRUPT);
    cr_assert_str_eq(err.message, first.message);
    checkpoint_drop_pages(c, PART_VAE);
    checkpoint_close(c);
}
