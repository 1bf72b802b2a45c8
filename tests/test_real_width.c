/* One block of each kind with the widths of klein 4B, and its VAE, against the published classes: few tokens, the weights of a random
 * checkpoint (tools/golden/real_width.py repeats its recipe). In f32 on the CPU within 1e-4 relative L2; in bf16 on the soft GPU at most
 * twice as far from the f32 result as the same classes in bf16 are. What is particular about these sizes: 24 heads, 27648 rows of
 * weights in one product, sums of 12288, heads of a VAE that are 512 wide. */
#include "support/fixture.h"

#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32_TOLERANCE 1e-4
#define ARENA_BYTES   ((size_t)256 << 20)

/* klein 4B with one block of each kind, of which one part is bound. */
struct real {
    struct fixture f; /* model: NULL but for the part */
    struct st_file *file;
    struct model_config config;
};

struct backend {
    char name[16];
    enum dtype act;
};
static struct backend backends[] = {{"cpu", DT_F32}, {"soft sm_90a", DT_BF16}, {"soft sm_80", DT_BF16}};
enum { BACKENDS = SANITIZED ? 1 : sizeof backends / sizeof *backends };

#define EACH_BACKEND(suite, test)                                                                            \
    ParameterizedTestParameters(suite, test)                                                                 \
    {                                                                                                        \
        return cr_make_param_array(struct backend, backends, BACKENDS);                                      \
    }                                                                                                        \
    ParameterizedTest(struct backend *backend, suite, test)

static enum klein_status place(void *user, enum checkpoint_part part, const char *name, int ndim,
                               const int64_t *shape, struct tensor *t, struct klein_error *err)
{
    const struct fixture *f = user;
    enum weight_kind kind = ndim == 1       ? WEIGHT_VECTOR
                            : ndim == 2     ? WEIGHT_MATRIX
                            : shape[3] == 1 ? WEIGHT_CONV_1X1
                                            : WEIGHT_CONV_3X3;
    return f->device->place(f->device, kind, f->r.act, t, err);
}

static void open_real(struct real *m, const struct backend *backend)
{
    struct klein_error err;
    *m = (struct real){.file = golden_open(GOLDEN("real_width.safetensors"))};
    struct fixture *f = &m->f;
    OK(config_named("klein-4b", &m->config, &err));
    m->config.dit.double_blocks = m->config.dit.single_blocks = 1;
    m->config.text.vocab = 512;
    m->config.text.n_outputs = m->config.text.outputs[0] = 1;
    OK(checkpoint_random(&m->config, DT_BF16, 1, &f->checkpoint, &err));
    cr_assert(!setenv("KLEIN_SOFT_RACES", "0", 1)); /* faster; the kernels' own tests check them */
    OK(device_open(test_device(backend->name), &(struct device_options){.threads = 2}, &f->device, &err));
    f->model = calloc(1, sizeof *f->model);
    void *memory = f->device->alloc(f->device, ARENA_BYTES);
    cr_assert(f->model && memory);
    arena_over(&f->arena, memory, ARENA_BYTES);
    f->r = (struct run){.dev = f->device, .act = backend->act, .arena = &f->arena};
    if (f->device->place) checkpoint_place(f->checkpoint, place, f);
}

/* After a part was bound: its weights are where kernels read them. */
static void wait_for_weights(struct real *m)
{
    struct klein_error err;
    if (m->f.device->wait) OK(m->f.device->wait(m->f.device, &err));
}

static void close_real(struct real *m)
{
    fixture_close(&m->f);
    st_close(m->file);
}

/* A golden input, whose values are exact in bf16, as `dtype`. */
static struct tensor input(struct real *m, const char *name, enum dtype dtype)
{
    struct tensor t = golden(m->file, name);
    const size_t n = (size_t)t.rows * (size_t)t.cols;
    void *converted = malloc(n * dtype_size(dtype));
    cr_assert(converted);
    dtype_convert(converted, dtype, t.ptr, t.dtype, n);
    struct tensor out = run_upload(&m->f.r, dtype, t.rows, t.cols, converted);
    cr_assert(run_ok(&m->f.r), "%s", m->f.r.err.message);
    free(converted);
    return out;
}

/* t, or every `every`-th row of it, against golden `name`. */
static void compare(struct real *m, struct tensor t, const char *name, int every)
{
    char full[64], bound[64];
    snprintf(full, sizeof full, every > 1 ? "%s@%d" : "%s", name, every);
    snprintf(bound, sizeof bound, "%s.bf16_error", name);
    const double limit = m->f.r.act == DT_F32 ? F32_TOLERANCE : 2 * tensor_get(golden(m->file, bound), 0, 0);
    fixture_compare(&m->f, every_row(t, every), m->file, full, limit);
}

/* --- the image model --- */

static struct real *tapped;
static int taps;

/* step.0.double.0.img is dit.double.0.img@3. */
static void compare_tap(struct run *r, const char *name, struct tensor t)
{
    char want[64];
    cr_assert(!strncmp(name, "step.0.", 7), "%s", name);
    snprintf(want, sizeof want, "dit.%s", name + 7);
    compare(tapped, t, want, 3);
    taps++;
}

EACH_BACKEND(real_width, dit)
{
    struct real m;
    struct klein_error err = {0};
    open_real(&m, backend);
    struct run *r = &m.f.r;
    struct dit *dit = &m.f.model->dit;
    OK(dit_bind(dit, m.f.checkpoint, &err));
    wait_for_weights(&m);

    const struct dit_image target = {.rows = 2, .cols = 3},
                           reference = {2, 2, input(&m, "dit.reference", DT_F32)};
    const struct tensor text = input(&m, "dit.text", r->act), x = input(&m, "dit.x", DT_F32),
                        t = input(&m, "dit.t", DT_F32), v = run_tensor(r, DT_F32, x.rows, x.cols);
    struct dit_request q;
    dit_prepare(r, dit, &q, text, dit_tables(r, dit, text.rows, target, &reference, 1), target, &reference, 1,
                t);
    dit_select(r, &q, run_upload(r, DT_I32, 1, 1, &(int32_t){0}));
    tapped = &m;
    r->tap = compare_tap;
    r->tap_blocks = 1;
    dit_forward(r, dit, &q, 0, x, v);
    compare(&m, v, "dit.velocity", 1);
    cr_assert(taps == 3, "%d taps", taps); /* double block: text, image; single block */

    /* Nobody looks at the block: it makes less, and the same velocity. */
    struct tensor want = fixture_download(&m.f, v), got;
    r->tap_blocks = 0;
    dit_forward(r, dit, &q, 0, x, v);
    got = fixture_download(&m.f, v);
    cr_assert(!memcmp(got.ptr, want.ptr, (size_t)v.rows * (size_t)v.cols * sizeof(float)),
              "%s: differs by %g", backend->name, relative_l2(got, want));
    free(got.ptr), free(want.ptr);
    close_real(&m);
}

/* --- the text encoder --- */

EACH_BACKEND(real_width, qwen3)
{
    struct real m;
    struct klein_error err = {0};
    open_real(&m, backend);
    struct run *r = &m.f.r;
    struct qwen3 *text = &m.f.model->text;
    OK(qwen3_bind(text, m.f.checkpoint, &err));
    wait_for_weights(&m);
    const struct tensor ids = golden(m.file, "text.ids");
    const struct qwen3_prompt prompt = {.ids = run_upload(r, DT_I32, 1, ids.cols, ids.ptr),
                                        .real = run_upload(r, DT_I32, 1, 1, golden(m.file, "text.real").ptr)};
    const struct tensor ctx = run_tensor(r, r->act, ids.cols, m.config.text.width);
    qwen3_forward(r, text, ctx, prompt, qwen3_rope(r, text, ctx.rows));
    compare(&m, ctx, "text.layer", 3);
    close_real(&m);
}

/* --- the autoencoder --- */

EACH_BACKEND(real_width, vae)
{
    enum { HEIGHT = 16, WIDTH = 32 };
    struct real m;
    struct klein_error err = {0};
    open_real(&m, backend);
    struct run *r = &m.f.r;
    struct vae *vae = &m.f.model->vae;
    OK(vae_bind(vae, m.f.checkpoint, &err));
    wait_for_weights(&m);
    const struct tensor latents = input(&m, "vae.latents", DT_F32),
                        rgb = run_upload(r, DT_U8, HEIGHT * WIDTH, 3, golden(m.file, "vae.pixels").ptr),
                        tokens = run_tensor(r, DT_F32, latents.rows, latents.cols),
                        image = run_tensor(r, r->act, HEIGHT * WIDTH, 3);
    if (strcmp(backend->name, "soft sm_80")) { /* whose kernels sm_90a has, too, where the image is halved */
        vae_encode(r, vae, tokens, rgb, HEIGHT, WIDTH);
        compare(&m, tokens, "vae.encoded", 1);
    }
    vae_decode(r, vae, image, latents, HEIGHT, WIDTH);
    compare(&m, image, "vae.image", 1);
    close_real(&m);
}

/* --- the weights that the goldens were made with --- */

Test(real_width, weights)
{
    struct real m;
    struct klein_error err = {0};
    open_real(&m, &backends[0]);
    const struct tensor want = golden(m.file, "dit.weights");
    struct tensor x_embedder = {0};
    checkpoint_place(m.f.checkpoint, NULL, NULL);
    OK(checkpoint_tensor(m.f.checkpoint, PART_TRANSFORMER, "x_embedder.weight", 2,
                         (int64_t[]){m.config.dit.width, m.config.dit.in_channels}, &x_embedder, &err));
    cr_assert(want.rows == 8 && want.dtype == DT_BF16 && x_embedder.cols == want.cols);
    cr_assert(!memcmp(x_embedder.ptr, want.ptr, (size_t)want.rows * (size_t)want.cols * sizeof(bf16)),
              "weights/random.c gives other numbers: run tools/golden/real_width.py");
    close_real(&m);
}
