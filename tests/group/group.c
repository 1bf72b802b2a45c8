#include "group.h"

#include "../../engine/group.h"
#include "../../engine/noise.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

void soft_machine(const char *claim, uint64_t seed, enum softgpu_async async)
{
    struct softgpu_config c;
    setenv("KLEIN_SOFT", claim, 1);
    cr_assert(softgpu_config_from_env(&c));
    c.seed = seed;
    c.async = async;
    c.check_races = 0;
    cr_assert(softgpu_configure(&c));
}

struct klein *open_group(struct members g)
{
    struct model_config c;
    struct klein *members[GROUP_MAX], *k;
    OK(config_named("tiny", &c, &err));
    c.distilled = !g.base;
    c.text_length = 40;
    c.dit.heads = g.heads;
    c.dit.head_dim = g.head_dim ? g.head_dim : g.heads > 2 ? 64 : 128;
    c.dit.width = g.heads * c.dit.head_dim;
    c.dit.mlp_width = c.dit.width;
    c.dit.double_blocks = c.dit.single_blocks = 1;
    for (int i = 0; i < 4; i++) c.dit.rope_axes[i] = c.dit.head_dim / 4;
    c.vae.layers_per_block = 1;
    c.vae.norm_groups = 8;
    for (int i = 0; i < VAE_LEVELS; i++) c.vae.encoder_channels[i] = c.vae.decoder_channels[i] = 16;
    for (int i = 0; i < g.n; i++) {
        struct checkpoint *checkpoint;
        char device[24];
        snprintf(device, sizeof device, "soft:%d", i);
        struct klein_open_options o = {.size = sizeof o,
                                       .device = device,
                                       .precision = g.precision,
                                       .dtype = g.f32 ? KLEIN_DTYPE_F32 : KLEIN_DTYPE_AUTO};
        OK(checkpoint_random(&c, DT_BF16, 5, &checkpoint, &err));
        OK(context_open(checkpoint, &o, &members[i], &err));
    }
    OK(group_open(members, g.n, g.parallel, &k, &err));
    for (int i = 0; i < g.n && g.copies; i++) members[i]->tokens.copies = 1;
    return k;
}

struct klein_request small_request(uint64_t seed)
{
    return (struct klein_request){.size = sizeof(struct klein_request),
                                  .prompt = "a red balloon on a wooden table",
                                  .width = 48,
                                  .height = 48,
                                  .steps = 2,
                                  .seed = seed};
}

static struct hashes result_hashes(const struct klein_result *r)
{
    const size_t pixels = (size_t)r->width * (size_t)r->height;
    struct hashes h = {0};
    for (int i = 0; i < r->n_images; i++) {
        h.latents = (h.latents * 31 + r->latent_hashes[i]) * 31 + r->seeds[i];
        if (r->latents) h.latents = h.latents * 31 + fnv1a(r->latents[i], pixels / 256 * 128 * sizeof(float));
        h.pictures = h.pictures * 31 + fnv1a(r->images[i].rgb, pixels * 3);
    }
    if (r->prompt_embeds)
        h.latents = h.latents * 31 +
                    fnv1a(r->prompt_embeds, (size_t)r->embed_rows * (size_t)r->embed_cols * sizeof(float));
    return h;
}

uint64_t result_hash(const struct klein_result *r)
{
    const struct hashes h = result_hashes(r);
    return h.latents * 31 + h.pictures;
}

struct hashes generate_hashes(struct klein *k, const struct klein_request *q)
{
    struct klein_result r;
    OK(klein_generate(k, q, &r, &err));
    cr_assert(!q->return_latents == !r.latents && !q->return_embeds == !r.prompt_embeds);
    const struct hashes h = result_hashes(&r);
    klein_result_free(&r);
    return h;
}

uint64_t generate_hash(struct klein *k, const struct klein_request *q)
{
    const struct hashes h = generate_hashes(k, q);
    return h.latents * 31 + h.pictures;
}

void check_group_is_one(const char *claim, struct members g, struct klein_request q)
{
    static const char *const prompts[2] = {"a heart", "two green stars"};
    static const enum klein_graph kinds[] = {KLEIN_GRAPH_OFF,     KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_REQUEST,
                                             KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_STAGES,  KLEIN_GRAPH_STAGES,
                                             KLEIN_GRAPH_STAGES};
    /* Eight devices, or four of wider heads, take minutes for all: no graphs of stages. */
    const int pictures = g.n * (g.head_dim ? 2 : 1) < 8 && !g.copies ? 7 : 4;
    struct hashes want[2];
    struct members one = g;
    one.n = 1;
    soft_machine(claim, 3, SOFTGPU_LATE);
    struct klein *alone = open_group(one), *k = open_group(g);
    for (int i = 0; i < 2; i++) {
        q.prompt = prompts[i];
        q.seed = (uint64_t)i;
        want[i] = generate_hashes(alone, &q);
    }
    cr_assert(want[0].latents != want[1].latents);
    for (int i = 0; i < pictures; i++) {
        q.prompt = prompts[i % 2];
        q.seed = (uint64_t)i % 2;
        q.graph = kinds[i];
        const struct hashes got = generate_hashes(k, &q);
        cr_assert(got.latents == want[i % 2].latents, "latents %d, graph %d differ", i, (int)q.graph);
        if (i < 2 && g.parallel == KLEIN_PARALLEL_ULYSSES) want[i].pictures = got.pictures;
        cr_assert(got.pictures == want[i % 2].pictures, "picture %d, graph %d differs", i, (int)q.graph);
    }
    klein_close(alone), klein_close(k);
}

void check_group_failure(struct failure f)
{
    struct softgpu_config c;
    struct softgpu_counters counters = {0};
    struct klein_result result;
    char name[16];
    const int many = f.n > 2; /* they take long: one pass, one step */
    snprintf(name, sizeof name, "sm_90a:%d", f.n);
    soft_machine(name, f.seed, f.async);
    struct klein *k = open_group(
        (struct members){.n = f.n, .heads = many ? f.n : 2, .base = !many, .parallel = f.parallel});
    struct klein_request q = small_request(1);
    q.guidance = many ? 1 : 3;
    q.steps = many ? 1 : 2;
    q.images = f.parallel == KLEIN_PARALLEL_REPLICA ? f.n : 1;
    for (int i = 0; i < f.before; i++) {
        softgpu_reset_counters();
        generate_hash(k, &q);
        softgpu_read_counters(&counters);
    }
    cr_assert(softgpu_config_from_env(&c));
    c.seed = f.seed;
    c.async = f.async;
    c.check_races = 0;
    c.fail_device = f.device;
    c.fail_launch = (uint64_t)(f.launch < 0 ? (int)counters.kernels / f.n + f.launch : f.launch);
    cr_assert(softgpu_configure(&c));
    snprintf(name, sizeof name, "soft:%d", f.device);
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL, name);
    cr_assert(strstr(err.message, "fails as asked for"), "%s", err.message);
    klein_close(k);
}

static int cancel_late(void *user, const struct klein_progress *p)
{
    return ++*(int *)user && p->fraction > 0.3;
}

void check_group_cancelled(void)
{
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    struct klein_request q = small_request(1), cancelled = q;
    struct klein_result result;
    int polls = 0;
    uint64_t want = generate_hash(k, &q);
    cancelled.progress = cancel_late;
    cancelled.progress_user = &polls;
    for (int i = 0; i < 3; i++) {
        FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
        cr_assert(generate_hash(k, &q) == want);
    }
    cr_assert(polls > 3);
    klein_close(k);
}

static const int first_gpus[GROUP_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};

struct klein_open_options nano_options(int n, enum klein_parallel parallel)
{
    return (struct klein_open_options){.size = sizeof(struct klein_open_options),
                                       .model = KLEIN_SOURCE_DIR "/weights/nano",
                                       .device = "soft",
                                       .gpus = first_gpus,
                                       .n_gpus = n,
                                       .parallel = parallel};
}
