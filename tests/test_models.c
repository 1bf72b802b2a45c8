/* The three networks, one by one, against tensors of diffusers and transformers (tests/golden/README.md has
 * their names). In f32 every tensor is within 1e-4 relative L2, on the reference backend, on the fast one and
 * on the soft GPU.
 */
#include "support/fixture.h"

#include "../engine/klein.h"
#include "../engine/sampler.h"

#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32_TOLERANCE 1e-4

struct backend {
    char name[16];
};

static struct backend backends[] = {{"ref"}, {"cpu"}, {"soft sm_90a"}}; /* the soft GPU last: it is slow */

#define EACH_BACKEND(suite, test) FIRST_BACKENDS(suite, test, sizeof backends / sizeof *backends - SANITIZED)
#define FIRST_BACKENDS(suite, test, count)                                                                   \
    ParameterizedTestParameters(suite, test)                                                                 \
    {                                                                                                        \
        return cr_make_param_array(struct backend, backends, count);                                         \
    }                                                                                                        \
    ParameterizedTest(struct backend *backend, suite, test)

/* --- schedule --- */

static void compare_sigmas(struct st_file *file, const char *in, const char *out, int tokens, int steps)
{
    float got[64];
    struct tensor want = golden(file, out);
    const float *custom = in ? golden(file, in).ptr : NULL;
    cr_assert(want.cols == steps + 1);
    sampler_sigmas(got, tokens, steps, custom);
    for (int i = 0; i <= steps; i++) {
        double d = fabs((double)got[i] - tensor_get(want, 0, i));
        cr_assert(d <= 5e-7, "%s[%d]: %.9g, expected %.9g", out, i, (double)got[i],
                  (double)tensor_get(want, 0, i));
    }
}

Test(models, sigmas)
{
    static const int sizes[][2] = {{64, 64},     {256, 256},   {512, 512},   {768, 768},
                                   {1024, 1024}, {1360, 768},  {1040, 1056}, {1056, 1056},
                                   {1440, 1440}, {1792, 1792}, {2048, 2048}};
    static const int steps[] = {1, 2, 4, 8, 20, 50};
    struct st_file *file = golden_open(GOLDEN("sigmas.safetensors"));
    char name[64], in[64];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t n = 0; n < sizeof steps / sizeof *steps; n++) {
            int tokens = sizes[s][0] / 16 * (sizes[s][1] / 16);
            snprintf(name, sizeof name, "%dx%d.sigmas.%d", sizes[s][0], sizes[s][1], steps[n]);
            compare_sigmas(file, NULL, name, tokens, steps[n]);
            snprintf(name, sizeof name, "%dx%d.mu.%d", sizes[s][0], sizes[s][1], steps[n]);
            double mu = sampler_mu(tokens, steps[n]), want = tensor_get(golden(file, name), 0, 0);
            cr_assert(fabs(mu - want) <= 1e-6 * want, "%s: %.9g, expected %.9g", name, mu, want);
        }
    static const int custom_sizes[][2] = {{64, 96}, {1024, 1024}, {2048, 2048}};
    for (const char *c = "abc"; *c; c++)
        for (int s = 0; s < 3; s++) {
            snprintf(in, sizeof in, "custom.%c.in", *c);
            snprintf(name, sizeof name, "custom.%c.%dx%d", *c, custom_sizes[s][0], custom_sizes[s][1]);
            compare_sigmas(file, in, name, custom_sizes[s][0] / 16 * (custom_sizes[s][1] / 16),
                           golden(file, in).cols);
        }
    st_close(file);
}

/* --- text encoder --- */

static void encode(struct fixture *f, struct st_file *file, const char *prompt, const char *suffix, int every)
{
    char name[64];
    size_t mark = arena_mark(&f->arena, 0);
    snprintf(name, sizeof name, "%s.input_ids", prompt);
    struct tensor ids = golden(file, name);
    struct qwen3_prompt in = {.ids = run_upload(&f->r, DT_I32, 1, f->model->cfg->text_length, ids.ptr)};
    snprintf(name, sizeof name, "%s.real", prompt);
    in.real = run_upload(&f->r, DT_I32, 1, 1, golden(file, name).ptr);
    struct tensor ctx =
        run_tensor(&f->r, f->r.act, f->model->cfg->text_length, f->model->cfg->dit.text_width);
    qwen3_forward(&f->r, &f->model->text, ctx, in, qwen3_rope(&f->r, &f->model->text, ctx.rows));
    snprintf(name, sizeof name, "%s.prompt_embeds%s", prompt, suffix);
    fixture_compare(f, every_row(ctx, every), file, name, F32_TOLERANCE);
    arena_release(&f->arena, 0, mark);
}

/* Embeddings so small that the first norm's eps decides how they are scaled. */
static void faint(struct fixture *f, struct st_file *file)
{
    struct qwen3 q = f->model->text;
    struct tensor table = fixture_download(f, q.embed);
    for (int i = 0; i < table.rows * table.cols; i++) ((float *)table.ptr)[i] *= 0x1p-10f;
    q.embed = fixture_f32(f, table);
    free(table.ptr);
    struct qwen3_prompt in = {
        .ids = run_upload(&f->r, DT_I32, 1, f->model->cfg->text_length, golden(file, "short.input_ids").ptr),
        .real = run_upload(&f->r, DT_I32, 1, 1, golden(file, "short.real").ptr)};
    struct tensor ctx =
        run_tensor(&f->r, f->r.act, f->model->cfg->text_length, f->model->cfg->dit.text_width);
    qwen3_forward(&f->r, &q, ctx, in, qwen3_rope(&f->r, &q, ctx.rows));
    fixture_compare(f, every_row(ctx, 31), file, "faint.prompt_embeds@31", F32_TOLERANCE);
}

EACH_BACKEND(models, encoder)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), backend->name, DT_F32);
    struct st_file *file = golden_open(GOLDEN("encoder.safetensors"));
    encode(&f, file, "short", "", 1);
    encode(&f, file, "empty", "@11", 11);
    encode(&f, file, "unicode", "@11", 11);
    encode(&f, file, "long", "@11", 11);
    if (strncmp(backend->name, "soft", 4) != 0) faint(&f, file); /* eps reaches all devices the same way */
    st_close(file);
    fixture_close(&f);
}

/* --- image model --- */

static struct {
    struct fixture *f;
    struct st_file *file;
    const char *prefix;
    int every, seen;
} tapping;

/* Compares step.0.double.J.img with PREFIX.double.J.img (or its every-11th-row form). */
static void compare_tap(struct run *r, const char *name, struct tensor t)
{
    char want[96];
    cr_assert(!strncmp(name, "step.0.", 7), "%s", name);
    snprintf(want, sizeof want, tapping.every > 1 ? "%s.%s@%d" : "%s.%s", tapping.prefix, name + 7,
             tapping.every);
    fixture_compare(tapping.f, every_row(t, tapping.every), tapping.file, want, F32_TOLERANCE);
    tapping.seen++;
}

/* The model at the golden's time, with 4 x 6 tokens to make and so many references: its three again and again. */
static struct dit_request request(struct fixture *f, struct st_file *file, struct tensor text, int references)
{
    static const int spans[3][2] = {{3, 5}, {2, 7}, {5, 4}};
    char name[64];
    struct dit_image images[KLEIN_MAX_REFERENCES];
    for (int k = 0; k < references; k++) {
        snprintf(name, sizeof name, "ref.%d", k % 3);
        images[k] = (struct dit_image){spans[k % 3][0], spans[k % 3][1], fixture_f32(f, golden(file, name))};
    }
    float t = tensor_get(golden(file, "t"), 0, 0);
    struct dit_image target = {.rows = 4, .cols = 6};
    struct dit_tables tables = dit_tables(&f->r, &f->model->dit, text.rows, target, images, references);
    struct dit_request q;
    dit_prepare(&f->r, &f->model->dit, &q, fixture_f32(f, text), tables, target, images, references,
                run_upload(&f->r, DT_F32, 1, 1, &t));
    dit_select(&f->r, &q, run_upload(&f->r, DT_I32, 1, 1, &(int32_t){0}));
    return q;
}

static void velocity(struct fixture *f, struct st_file *file, const char *prefix, struct tensor text,
                     const char *x_name, int references, int every)
{
    char name[64];
    size_t mark = arena_mark(&f->arena, 0);
    struct dit_request q = request(f, file, text, references);
    struct tensor x = fixture_f32(f, golden(file, x_name)), v = run_tensor(&f->r, DT_F32, x.rows, x.cols);

    tapping.f = f;
    tapping.file = file;
    tapping.prefix = prefix;
    tapping.every = every;
    tapping.seen = 0;
    f->r.tap = every ? compare_tap : NULL;
    f->r.tap_blocks = every != 0;
    dit_forward(&f->r, &f->model->dit, &q, 0, x, v);
    cr_assert(tapping.seen == (every ? 7 : 0), "%d taps",
              tapping.seen); /* 2 double blocks x 2 streams, 3 single */
    snprintf(name, sizeof name, "%s.velocity", prefix);
    fixture_compare(f, v, file, name, F32_TOLERANCE);
    arena_release(&f->arena, 0, mark);
}

/* What is made once per request. */
static void prepared(struct fixture *f, struct st_file *file)
{
    size_t mark = arena_mark(&f->arena, 0);
    struct dit_request q = request(f, file, golden(file, "small.text"), 1);
    const int D = f->model->cfg->dit.width;
    const struct {
        const char *name;
        int first, n;
    } modulations[] = {{"small.mod.txt", DIT_MOD_TEXT, 6},
                       {"small.mod.img", DIT_MOD_IMAGE, 6},
                       {"small.mod.single", DIT_MOD_SINGLE, 3}};
    for (int i = 0; i < 3; i++)
        fixture_compare(f, tensor_cols(q.now, modulations[i].first * D, modulations[i].n * D), file,
                        modulations[i].name, F32_TOLERANCE);
    fixture_compare(f, q.text, file, "small.txt_in", F32_TOLERANCE);
    fixture_compare(f, q.references, file, "small.ref_in", F32_TOLERANCE);
    arena_release(&f->arena, 0, mark);
}

EACH_BACKEND(models, dit_blocks)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), backend->name, DT_F32);
    struct st_file *file = golden_open(GOLDEN("dit.safetensors"));
    prepared(&f, file);
    velocity(&f, file, "small", golden(file, "small.text"), "small.x", 1, 1);
    st_close(file);
    fixture_close(&f);
}

FIRST_BACKENDS(models, dit_references, 2)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), backend->name, DT_F32);
    struct st_file *file = golden_open(GOLDEN("dit.safetensors")),
                   *encoder = golden_open(GOLDEN("encoder.safetensors"));
    struct tensor text = golden(encoder, "short.prompt_embeds");
    velocity(&f, file, "r0", text, "x", 0, 0);
    velocity(&f, file, "r1", text, "x", 1, 0);
    velocity(&f, file, "r3", text, "x", 3, 11);
    velocity(&f, file, "r16", text, "x", 16, 0);
    st_close(encoder);
    st_close(file);
    fixture_close(&f);
}

static struct precision {
    struct backend backend;
    enum dtype act;
} precisions[] = {{{"ref"}, DT_F32},         {{"cpu"}, DT_F32},          {{"cpu"}, DT_BF16},
                  {{"soft sm_90a"}, DT_F32}, {{"soft sm_90a"}, DT_BF16}, {{"soft sm_80"}, DT_BF16}};

ParameterizedTestParameters(models, dit_last_block)
{
    return cr_make_param_array(struct precision, precisions,
                               SANITIZED ? 3 : sizeof precisions / sizeof *precisions);
}

/* In the last block text and references are only attended to, unless somebody looks at it; the velocity has the same bytes. */
ParameterizedTest(struct precision *p, models, dit_last_block)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), p->backend.name, p->act);
    struct st_file *file = golden_open(GOLDEN("dit.safetensors"));
    const struct dit_config *d = &f.model->cfg->dit;
    const double D = d->width, mlp = d->mlp_width;
    for (int references = 0; references < 2; references++) {
        struct dit_request q = request(&f, file, golden(file, "small.text"), references);
        struct tensor x = fixture_f32(&f, golden(file, "small.x")), got[2];
        double flops[2];
        for (int looked_at = 0; looked_at < 2; looked_at++) {
            struct tensor v = run_tensor(&f.r, DT_F32, x.rows, x.cols);
            f.r.tap_blocks = looked_at;
            f.r.flops = 0;
            dit_forward(&f.r, &f.model->dit, &q, 0, x, v);
            flops[looked_at] = f.r.flops;
            got[looked_at] = fixture_download(&f, v);
        }
        /* q, gate and up, out; attention */
        const double rows = q.n_tokens - q.n_target,
                     less = rows * (2 * D * (D + 2 * mlp) + 2 * (D + mlp) * D + 4 * q.n_tokens * D);
        cr_assert(flops[1] - flops[0] == less, "%.0f of %.0f FLOP less, expected %.0f", flops[1] - flops[0],
                  flops[1], less);
        /* oneDNN does not promise the same bytes for other numbers of rows: the processor's products in BF16. */
        const int may_round = !strcmp(p->backend.name, "cpu") && p->act == DT_BF16;
        cr_assert(
            may_round ? relative_l2(got[0], got[1]) <= 0x1p-8
                      : !memcmp(got[0].ptr, got[1].ptr, (size_t)x.rows * (size_t)x.cols * sizeof(float)),
            "%d references: %s differs by %g", references, p->backend.name, relative_l2(got[0], got[1]));
        free(got[0].ptr), free(got[1].ptr);
    }
    st_close(file);
    fixture_close(&f);
}

Test(models, rope)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), "ref", DT_F32);
    struct st_file *file = golden_open(GOLDEN("dit.safetensors"));
    const int n_text = 7, n_image = 24 + 15 + 14 + 20;
    struct tensor text = tensor_rows(golden(file, "small.text"), 0, n_text);
    struct rope rope = request(&f, file, text, 3).tables.rope;
    fixture_compare(&f, tensor_rows(rope.cos, n_text, n_image), file, "r3.rope_cos", 1e-6);
    fixture_compare(&f, tensor_rows(rope.sin, n_text, n_image), file, "r3.rope_sin", 1e-6);
    st_close(file);
    fixture_close(&f);
}

/* As many references as there may be: T of reference k is 10 + 10 k, read back from the slowest pair of its axis. */
Test(models, references_are_in_order_of_time)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), "ref", DT_F32);
    const int n_text = 3, pairs = f.model->cfg->dit.rope_axes[0] / 2, slowest = pairs - 1;
    struct dit_image target = {.rows = 2, .cols = 2}, images[KLEIN_MAX_REFERENCES];
    for (int k = 0; k < KLEIN_MAX_REFERENCES; k++)
        images[k] = (struct dit_image){.rows = 1, .cols = 1 + k % 2};
    struct rope rope = dit_tables(&f.r, &f.model->dit, n_text, target, images, KLEIN_MAX_REFERENCES).rope;
    double frequency = pow(f.model->cfg->dit.rope_theta, -(double)slowest / pairs);
    for (int k = 0, row = n_text + 4; k < KLEIN_MAX_REFERENCES; row += images[k++].cols)
        for (int i = 0; i < images[k].cols; i++) {
            double t = atan2(tensor_get(rope.sin, row + i, slowest), tensor_get(rope.cos, row + i, slowest)) /
                       frequency;
            cr_assert(fabs(t - (10 + 10 * k)) < 0.01, "T of reference %d is %g", k, t);
        }
    fixture_close(&f);
}

/* --- VAE --- */

/* [3, h, w] in [-1, 1] to u8 [h * w, 3]. */
static struct tensor pixels_u8(struct fixture *f, struct tensor planes)
{
    static uint8_t rgb[3 * 128 * 128];
    for (int p = 0; p < planes.cols; p++)
        for (int c = 0; c < 3; c++) rgb[3 * p + c] = (uint8_t)lrintf((tensor_get(planes, c, p) + 1) * 127.5f);
    return run_upload(&f->r, DT_U8, planes.cols, 3, rgb);
}

/* image [pixels, 3] in device memory against a golden [3, pixels]. */
static void compare_planes(struct fixture *f, struct tensor image, struct st_file *file, const char *name)
{
    struct tensor got = fixture_download(f, image), want = golden(file, name);
    float *pixels = malloc((size_t)want.rows * (size_t)want.cols * sizeof *pixels);
    cr_assert(pixels && want.rows * want.cols == 3 * got.rows);
    for (int p = 0; p < got.rows; p++)
        for (int c = 0; c < 3; c++) pixels[3 * p + c] = ((const float *)want.ptr)[c * got.rows + p];
    double error = relative_l2(got, tensor_of(pixels, DT_F32, got.rows, 3));
    cr_assert(error <= F32_TOLERANCE, "%s on %s: relative L2 %.3g", name, f->device->name, error);
    free(pixels);
    free(got.ptr);
}

static void encode_picture(struct fixture *f, struct st_file *file, const char *picture, int w, int h)
{
    char name[64];
    size_t mark = arena_mark(&f->arena, 0);
    snprintf(name, sizeof name, "%s.pixels", picture);
    struct tensor rgb = pixels_u8(f, golden(file, name)),
                  tokens = run_tensor(&f->r, DT_F32, (w / 16) * (h / 16), 128);
    vae_encode(&f->r, &f->model->vae, tokens, rgb, h, w);
    snprintf(name, sizeof name, "%s.ref_latents", picture);
    fixture_compare(f, tokens, file, name, F32_TOLERANCE);
    arena_release(&f->arena, 0, mark);
}

static void vae_size(struct fixture *f, struct st_file *file, int w, int h, int encoder)
{
    char name[64];
    size_t mark = arena_mark(&f->arena, 0);
    snprintf(name, sizeof name, "%dx%d", w, h);
    if (encoder) encode_picture(f, file, name, w, h);
    snprintf(name, sizeof name, "%dx%d.latents", w, h);
    struct tensor x = fixture_f32(f, golden(file, name)), image = run_tensor(&f->r, f->r.act, w * h, 3);
    vae_decode(&f->r, &f->model->vae, image, x, h, w);
    snprintf(name, sizeof name, "%dx%d.image", w, h);
    compare_planes(f, image, file, name);
    arena_release(&f->arena, 0, mark);
}

EACH_BACKEND(models, vae)
{
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), backend->name, DT_F32);
    struct st_file *file = golden_open(GOLDEN("vae.safetensors"));
    encode_picture(&f, file, "flat", 32, 32); /* GroupNorm's eps matters */
    vae_size(&f, file, 64, 48, 1);
    vae_size(&f, file, 48, 80, 1);
    st_close(file);
    fixture_close(&f);
}

EACH_BACKEND(models, small_decoder)
{
    struct klein_error err;
    struct fixture f;
    fixture_open(&f, GOLDEN_MODEL("tiny"), backend->name, DT_F32);
    checkpoint_close(f.checkpoint);
    OK(checkpoint_open(
        &(struct checkpoint_paths){.model = GOLDEN_MODEL("tiny"), .vae = GOLDEN_MODEL("small-decoder/vae")},
        &f.checkpoint, &err));
    OK(model_place(f.model, f.checkpoint, f.device, DT_F32, 0, &err));
    struct st_file *file = golden_open(GOLDEN("small_decoder.safetensors"));
    vae_size(&f, file, 64, 48, 0);
    st_close(file);
    fixture_close(&f);
}
