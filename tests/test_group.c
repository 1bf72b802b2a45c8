/* Several soft GPUs on one request: the bytes are those of one, eager and as graphs, under seeds; a device that fails, a cancelled request and
 * a device that never comes end in a message, and nothing hangs. About 60 s. */
#include "support/support.h"

#include "../engine/group.h"
#include "../kernels/soft/softgpu.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;
static const int gpus[GROUP_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};

/* The soft GPU that all devices of the test are. */
static void machine(const char *claim, uint64_t seed, enum softgpu_async async)
{
    struct softgpu_config c;
    setenv("KLEIN_SOFT", claim, 1);
    cr_assert(softgpu_config_from_env(&c));
    c.seed = seed;
    c.async = async;
    c.check_races = 0;
    cr_assert(softgpu_configure(&c));
}

/* How the group is made up. */
struct members {
    int n, heads, base;
    enum klein_parallel parallel;
    enum klein_precision precision;
};

/* A model of two blocks with as many heads, random weights, on devices 0 .. n-1. */
static struct klein *open_group(struct members g)
{
    struct model_config c;
    struct klein *members[GROUP_MAX], *k;
    OK(config_named("tiny", &c, &err));
    c.distilled = !g.base;
    c.text_length = 40;
    c.dit.heads = g.heads;
    c.dit.head_dim = g.heads > 2 ? 64 : 128;
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
        struct klein_open_options o = {.size = sizeof o, .device = device, .precision = g.precision};
        OK(checkpoint_random(&c, DT_BF16, 5, &checkpoint, &err));
        OK(context_open(checkpoint, &o, &members[i], &err));
    }
    OK(group_open(members, g.n, g.parallel, &k, &err));
    return k;
}

/* 9 tokens: uneven parts. */
static struct klein_request small(uint64_t seed)
{
    return (struct klein_request){.size = sizeof(struct klein_request),
                                  .prompt = "a red balloon on a wooden table",
                                  .width = 48,
                                  .height = 48,
                                  .steps = 2,
                                  .seed = seed};
}

static uint64_t hash_of(const struct klein_result *r)
{
    const size_t pixels = (size_t)r->width * (size_t)r->height;
    uint64_t hash = 0;
    for (int i = 0; i < r->n_images; i++) {
        hash = hash * 31 + r->latent_hashes[i];
        hash = hash * 31 + fnv1a(r->images[i].rgb, pixels * 3);
        hash = hash * 31 + r->seeds[i];
        if (r->latents) hash = hash * 31 + fnv1a(r->latents[i], pixels / 256 * 128 * sizeof(float));
    }
    if (r->prompt_embeds)
        hash = hash * 31 +
               fnv1a(r->prompt_embeds, (size_t)r->embed_rows * (size_t)r->embed_cols * sizeof(float));
    return hash;
}

static uint64_t picture(struct klein *k, const struct klein_request *q)
{
    struct klein_result result;
    OK(klein_generate(k, q, &result, &err));
    cr_assert(!q->return_latents == !result.latents && !q->return_embeds == !result.prompt_embeds);
    uint64_t hash = hash_of(&result);
    klein_result_free(&result);
    return hash;
}

/* The group's pictures are those of one device: op by op, and as stages and as one graph, each of which runs as ops, is captured and is
 * replayed, with another prompt and seed each time. */
static void check_equal(const char *claim, struct members g, struct klein_request q)
{
    static const char *const prompts[2] = {"a heart", "two green stars"};
    static const enum klein_graph kinds[] = {KLEIN_GRAPH_OFF,     KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_REQUEST,
                                             KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_STAGES,  KLEIN_GRAPH_STAGES,
                                             KLEIN_GRAPH_STAGES};
    const int pictures = g.n < 8 ? 7 : 4; /* eight devices take minutes for all: no graphs of stages */
    uint64_t want[2];
    struct members one = g;
    one.n = 1;
    machine(claim, 3, SOFTGPU_LATE);
    struct klein *alone = open_group(one), *k = open_group(g);
    for (int i = 0; i < 2; i++) {
        q.prompt = prompts[i];
        q.seed = (uint64_t)i;
        want[i] = picture(alone, &q);
    }
    cr_assert(want[0] != want[1]);
    for (int i = 0; i < pictures; i++) {
        q.prompt = prompts[i % 2];
        q.seed = (uint64_t)i % 2;
        q.graph = kinds[i];
        cr_assert(picture(k, &q) == want[i % 2], "picture %d, graph %d differs", i, (int)q.graph);
    }
    klein_close(alone), klein_close(k);
}

Test(group, ulysses_2_sm_90a, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2}, small(0));
}

Test(group, ulysses_2_sm_80, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_80:2", (struct members){.n = 2, .heads = 2}, small(0));
}

Test(group, ulysses_2_fp8, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_89:2", (struct members){.n = 2, .heads = 2, .precision = KLEIN_PRECISION_FP8}, small(0));
}

Test(group, ulysses_4, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_90a:4", (struct members){.n = 4, .heads = 4}, small(0));
}

Test(group, ulysses_8, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(0);
    q.steps = 1;
    check_equal("sm_90a:8", (struct members){.n = 8, .heads = 8}, q);
}

/* Guidance on two devices, by passes and by tokens. */
Test(group, guidance_by_passes, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(0);
    q.guidance = 3;
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2, .base = 1, .parallel = KLEIN_PARALLEL_CFG},
                q);
}

Test(group, guidance_by_tokens, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(0);
    q.guidance = 3;
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2, .base = 1}, q);
}

/* Two references, so that a device's part of them begins within one and ends within the other; two pictures: the second begins while the
 * first is decoded. */
Test(group, ulysses_with_references, .timeout = 400, .disabled = SANITIZED)
{
    uint8_t *rgb = malloc(80 * 80 * 3);
    cr_assert(rgb);
    for (int i = 0; i < 80 * 80 * 3; i++) rgb[i] = (uint8_t)(i * 7 % 251);
    struct klein_image references[] = {{64, 64, rgb}, {80, 80, rgb}};
    struct klein_request q = small(1);
    q.references = references;
    q.n_references = 2;
    q.images = 2;
    q.return_latents = q.return_embeds = 1;
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *one = open_group((struct members){.n = 1, .heads = 2}),
                 *two = open_group((struct members){.n = 2, .heads = 2});
    cr_assert(picture(one, &q) == picture(two, &q));
    klein_close(one), klein_close(two);
    free(rgb);
}

/* Pictures over replicas, also where there are fewer pictures than devices: in order, with the seeds of one device, and with their latents
 * and the prompt's embeddings. */
static void next_one(void *user, int image, const struct klein_result *so_far)
{
    int *next = user;
    cr_assert(image == (*next)++ && so_far->n_images > image && so_far->images[image].rgb);
}

Test(group, replicas, .timeout = 400, .disabled = SANITIZED)
{
    machine("sm_90a:4", 0, SOFTGPU_LATE);
    struct members g = {.n = 1, .heads = 2, .parallel = KLEIN_PARALLEL_REPLICA};
    struct klein *one = open_group(g);
    g.n = 4;
    struct klein *four = open_group(g);
    for (int images = 1; images <= 5; images += 4) {
        struct klein_request q = small(7);
        int next = 0;
        q.images = images;
        q.steps = 1;
        q.return_latents = q.return_embeds = images > 1;
        uint64_t want = picture(one, &q);
        q.finished = next_one;
        q.finished_user = &next;
        cr_assert(picture(four, &q) == want, "%d pictures differ", images);
        cr_assert(next == images);
    }
    klein_close(one), klein_close(four);
}

Test(group, seeds_and_landings, .timeout = 400, .disabled = SANITIZED)
{
    uint64_t want = 0;
    for (uint64_t seed = 0; seed < 6; seed++) {
        machine("sm_90a:2", seed, (enum softgpu_async)(seed % 3));
        struct klein *k = open_group((struct members){.n = 2, .heads = 2});
        struct klein_request q = small(1);
        q.steps = 1;
        for (int i = 0; i < 2; i++) {
            uint64_t hash = picture(k, &q);
            want = want ? want : hash;
            cr_assert(hash == want, "seed %d", (int)seed);
        }
        klein_close(k);
    }
}

/* Whichever device fails, early or late, eager or in a graph: an error that names it, in time, and the group can be closed. */
static void check_failure(int n, enum klein_parallel parallel, int device, int launch, int before)
{
    struct softgpu_config c;
    struct klein_result result;
    char name[16];
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = n, .heads = 2, .base = 1, .parallel = parallel});
    struct klein_request q = small(1);
    q.guidance = 3;
    q.images = parallel == KLEIN_PARALLEL_REPLICA ? 2 : 1;
    for (int i = 0; i < before; i++) picture(k, &q);
    cr_assert(softgpu_config_from_env(&c));
    c.fail_device = device;
    c.fail_launch = (uint64_t)launch;
    cr_assert(softgpu_configure(&c));
    snprintf(name, sizeof name, "soft:%d", device);
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL, name);
    cr_assert(strstr(err.message, "fails as asked for"), "%s", err.message);
    klein_close(k);
}

Test(group, a_device_fails, .timeout = 400, .disabled = SANITIZED)
{
    for (int device = 0; device < 2; device++)
        for (int before = 0; before < 3; before += 2) { /* op by op; in graphs */
            check_failure(2, KLEIN_PARALLEL_ULYSSES, device, 40, before);
            check_failure(2, KLEIN_PARALLEL_CFG, device, 40, before);
        }
    check_failure(2, KLEIN_PARALLEL_REPLICA, 1, 30, 0);
}

static int cancel_late(void *user, const struct klein_progress *p)
{
    return ++*(int *)user && p->fraction > 0.3;
}

Test(group, cancelled_and_usable_after, .timeout = 400, .disabled = SANITIZED)
{
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    struct klein_request q = small(1), cancelled = q;
    struct klein_result result;
    int polls = 0;
    uint64_t want = picture(k, &q);
    cancelled.progress = cancel_late;
    cancelled.progress_user = &polls;
    for (int i = 0; i < 3; i++) {
        FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
        cr_assert(picture(k, &q) == want);
    }
    cr_assert(polls > 3);
    klein_close(k);
}

/* A device that waits for one which never comes. */
Test(group, a_device_never_comes, .timeout = 60)
{
    struct device *dev[2];
    void *memory[2];
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    setenv("KLEIN_SOFT_PATIENCE", "1", 1);
    for (int i = 0; i < 2; i++)
        OK(device_open(i ? "soft:1" : "soft:0", &(struct device_options){0}, &dev[i], &err));
    OK(dev[0]->exchange->join(dev, 2, &err));
    for (int i = 0; i < 2; i++) {
        OK(device_bind(dev[i], &err));
        memory[i] = dev[i]->alloc(dev[i], 256);
    }
    OK(device_bind(dev[0], &err));
    OK(dev[0]->exchange->begin(dev[0], memory, &err));
    struct tensor t = tensor_of(memory[0], DT_F32, 2, 32);
    struct exchange_args a = {.size = 2, .tensors = 1, .from[0] = t, .to[0] = t};
    a.way[1] = (struct exchange_way){.cols = 32, .span[0] = {0, 0, 1}};
    OK(dev[0]->exchange->rows(dev[0], &a, &err));
    FAILS(dev[0]->wait(dev[0], &err), KLEIN_E_INTERNAL, "deadlock");
    cr_assert(strstr(err.message, "exchange.cu"), "%s", err.message);
    device_close(dev[0]), device_close(dev[1]);
}

static struct klein_open_options nano(int n, enum klein_parallel parallel)
{
    return (struct klein_open_options){.size = sizeof(struct klein_open_options),
                                       .model = KLEIN_SOURCE_DIR "/weights/nano",
                                       .device = "soft",
                                       .gpus = gpus,
                                       .n_gpus = n,
                                       .parallel = parallel};
}

static void refused(int n, enum klein_parallel parallel, enum klein_status status, const char *text)
{
    struct klein *k;
    struct klein_open_options o = nano(n, parallel);
    FAILS(klein_open(&o, &k, &err), status, text);
    cr_assert(!k);
}

Test(group, refusals)
{
    struct klein *k;
    struct klein_result result;
    setenv("KLEIN_SOFT", "sm_90a:3", 1);
    refused(3, KLEIN_PARALLEL_ULYSSES, KLEIN_E_USAGE,
            "2 attention heads, which 3 devices cannot share evenly: ulysses takes 1 or 2");
    refused(3, KLEIN_PARALLEL_CFG, KLEIN_E_USAGE, "cfg takes 2 devices");
    refused(2, KLEIN_PARALLEL_CFG, KLEIN_E_USAGE, "a base model");
    refused(4, KLEIN_PARALLEL_REPLICA, KLEIN_E_NO_DEVICE, "3");
    refused(9, KLEIN_PARALLEL_REPLICA, KLEIN_E_USAGE, "1 to 8");
    refused(2, (enum klein_parallel)7, KLEIN_E_USAGE, "no way 7");
    struct klein_open_options o = nano(2, KLEIN_PARALLEL_ULYSSES);
    o.gpus = (int[]){1, 1};
    FAILS(klein_open(&o, &k, &err), KLEIN_E_USAGE, "named twice");
    o = nano(2, KLEIN_PARALLEL_ULYSSES);
    o.device = "cpu";
    FAILS(klein_open(&o, &k, &err), KLEIN_E_USAGE, "cuda or soft");
    o = nano(2, KLEIN_PARALLEL_ULYSSES);
    OK(klein_open(&o, &k, &err));
    struct klein_request q = small(1);
    q.width = q.height = 16;
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_USAGE, "too few");
    klein_close(k);
}

Test(group, no_peer_access)
{
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    setenv("KLEIN_SOFT_PEERS", "0", 1);
    refused(2, KLEIN_PARALLEL_ULYSSES, KLEIN_E_UNSUPPORTED, "cannot access the memory of device 1 directly");
}
