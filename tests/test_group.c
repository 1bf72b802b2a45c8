/* Several soft GPUs on one request: the bytes are those of one, eager and as graphs, under seeds; a device that fails, a cancelled request and
 * a device that never comes end in a message, and nothing hangs. About 60 s. */
#include "support/support.h"

#include "../engine/group.h"
#include "../kernels/group/nccl_library.h"
#include "../kernels/soft/softgpu.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void check_cancelled(void)
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

Test(group, cancelled_and_usable_after, .timeout = 400, .disabled = SANITIZED)
{
    check_cancelled();
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
    struct klein *k;
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    setenv("KLEIN_SOFT_PEERS", "0", 1);
    refused(2, KLEIN_PARALLEL_ULYSSES, KLEIN_E_UNSUPPORTED,
            "cannot access the memory of device 1 directly, so NCCL is needed: libnccl.so.2 was not found");
    struct klein_open_options o = nano(2, KLEIN_PARALLEL_REPLICA);
    OK(klein_open(&o, &k, &err)); /* which it offers */
    klein_close(k);
}

/* ---- devices that do not reach each other's memory: by NCCL, of which there is a stand-in (driver/nccl_standin.c) ------------ */

#define STANDIN KLEIN_BINARY_DIR "/tests/libnccl_standin.so"

static void setup(void)
{
    setenv("KLEIN_SOFT_PEERS", "0", 1);
    setenv("KLEIN_NCCL", STANDIN, 1);
}
TestSuite(group_nccl, .init = setup);

Test(group_nccl, ulysses_2, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2}, small(0));
}

Test(group_nccl, ulysses_2_fp8, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_89:2", (struct members){.n = 2, .heads = 2, .precision = KLEIN_PRECISION_FP8}, small(0));
}

Test(group_nccl, guidance_by_passes, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(0);
    q.guidance = 3;
    check_equal("sm_120a:2", (struct members){.n = 2, .heads = 2, .base = 1, .parallel = KLEIN_PARALLEL_CFG},
                q);
}

/* Two pictures of one request, by four devices. */
Test(group_nccl, ulysses_4, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(1);
    q.images = 2;
    machine("sm_90a:4", 0, SOFTGPU_LATE);
    struct klein *one = open_group((struct members){.n = 1, .heads = 4}),
                 *four = open_group((struct members){.n = 4, .heads = 4});
    cr_assert(picture(one, &q) == picture(four, &q));
    klein_close(one), klein_close(four);
}

Test(group_nccl, seeds_and_landings, .timeout = 400, .disabled = SANITIZED)
{
    uint64_t want = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        machine("sm_90a:2", seed, (enum softgpu_async)seed);
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

static void observe(void *user, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                    double seconds)
{
    ++*(int *)user;
}

/* What would make one device replay a graph while the other issues its ops: ops that are looked at on the first, a plan that one has dropped. */
Test(group_nccl, graphs_of_all_or_of_none, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(1);
    struct klein_result result;
    int ops = 0;
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    const uint64_t want = picture(k, &q);
    for (int i = 0; i < 2; i++) cr_assert(picture(k, &q) == want);
    OK(group_generate(k->group, &q, observe, &ops, &result, &err));
    cr_assert(hash_of(&result) == want && ops > 50);
    klein_result_free(&result);
    for (int rank = 0; rank < 2; rank++) {
        cache_release(&k->group->member[rank]->plans, k->group->member[rank]->device, NULL);
        for (int i = 0; i < 3; i++) cr_assert(picture(k, &q) == want);
    }
    klein_close(k);
}

/* One a test: NCCL keeps a device's context, with its fault, until the process ends. */
Test(group_nccl, a_device_fails_amid_ops, .timeout = 400, .disabled = SANITIZED)
{
    check_failure(2, KLEIN_PARALLEL_ULYSSES, 0, 40, 0);
}

Test(group_nccl, a_device_fails_in_a_graph, .timeout = 400, .disabled = SANITIZED)
{
    check_failure(2, KLEIN_PARALLEL_ULYSSES, 1, 40, 2);
}

Test(group_nccl, a_device_fails_in_its_pass, .timeout = 400, .disabled = SANITIZED)
{
    check_failure(2, KLEIN_PARALLEL_CFG, 0, 40, 2);
}

/* Each time the communicators are made anew. */
Test(group_nccl, cancelled_and_usable_after, .timeout = 400, .disabled = SANITIZED)
{
    check_cancelled();
}

/* NCCL fails amid a request: its own words, and the group is of use again. */
Test(group_nccl, a_send_fails, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small(1);
    struct klein_result result;
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    const uint64_t want = picture(k, &q);
    setenv("KLEIN_STANDIN", "send", 1);
    q.graph = KLEIN_GRAPH_OFF;
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL,
          "NCCL: send and receive: remote process exited: the link is down");
    cr_assert(strstr(err.message, "soft:") && strstr(err.message, "exchange 3x"), "%s", err.message);
    unsetenv("KLEIN_STANDIN");
    q.graph = KLEIN_GRAPH_STAGES;
    for (int i = 0; i < 3; i++) cr_assert(picture(k, &q) == want);
    klein_close(k);
}

/* ---- exchanges alone ---------------------------------------------------------------------------------------- */

struct pair {
    struct device *dev[2];
    void *memory[2];
    struct exchange_args a[2];
    uint32_t *rows[2]; /* of each, on the host */
};

enum { SMALL_COLS = 1024 };

/* Device i has the rows of its half; after the exchange both have both halves. */
static void open_pair(struct pair *p, int rows)
{
    const size_t bytes = (size_t)rows * SMALL_COLS * 4;
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    for (int i = 0; i < 2; i++)
        OK(device_open(i ? "soft:1" : "soft:0", &(struct device_options){0}, &p->dev[i], &err));
    OK(p->dev[0]->exchange->join(p->dev, 2, &err));
    for (int i = 0; i < 2; i++) {
        const int half = rows / 2;
        OK(device_bind(p->dev[i], &err));
        p->memory[i] = p->dev[i]->alloc(p->dev[i], bytes);
        p->rows[i] = malloc(bytes);
        for (int j = 0; j < rows * SMALL_COLS; j++) p->rows[i][j] = (uint32_t)j * 2654435761u + (uint32_t)i;
        OK(p->dev[i]->upload(p->dev[i], p->memory[i], p->rows[i], bytes, &err));
        struct tensor t = tensor_of(p->memory[i], DT_F32, rows, SMALL_COLS);
        p->a[i] = (struct exchange_args){.size = 2, .rank = i, .tensors = 1, .from[0] = t, .to[0] = t};
        p->a[i].way[!i] = (struct exchange_way){.cols = SMALL_COLS, .span[0] = {i * half, i * half, half}};
    }
}

static void close_pair(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        device_bind(p->dev[i], &err);
        p->dev[i]->free(p->dev[i], p->memory[i], 0);
        free(p->rows[i]);
    }
    device_close(p->dev[0]), device_close(p->dev[1]);
}

struct side {
    struct pair *p;
    int rank;
    enum klein_status status;
    struct klein_error err;
};

static void *one_side(void *user)
{
    struct side *s = user;
    struct device *dev = s->p->dev[s->rank];
    s->status = device_bind(dev, &s->err);
    if (s->status == KLEIN_OK) s->status = dev->exchange->rows(dev, &s->p->a[s->rank], &s->err);
    if (s->status == KLEIN_OK) s->status = dev->wait(dev, &s->err);
    return NULL;
}

/* A message that has no room in scratch memory goes in rounds. */
Test(group_nccl, long_messages, .timeout = 120)
{
    enum { ROWS = 2 * 4500 }; /* 18 MB to the other: two rounds of 16 MiB at most */
    struct pair p;
    pthread_t thread;
    open_pair(&p, ROWS);
    struct side sides[2] = {{.p = &p, .rank = 0}, {.p = &p, .rank = 1}};
    for (int i = 0; i < 2; i++) {
        OK(device_bind(p.dev[i], &err));
        OK(p.dev[i]->exchange->begin(p.dev[i], p.memory, &err));
    }
    cr_assert(!pthread_create(&thread, NULL, one_side, &sides[1]));
    one_side(&sides[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) {
        const size_t half = (size_t)ROWS / 2 * SMALL_COLS;
        cr_assert(sides[i].status == KLEIN_OK, "%s", sides[i].err.message);
        OK(device_bind(p.dev[i], &err));
        memcpy(p.rows[i] + half * (size_t)!i, p.rows[!i] + half * (size_t)!i, half * 4);
        uint32_t *got = malloc(2 * half * 4);
        OK(p.dev[i]->download(p.dev[i], got, p.memory[i], 2 * half * 4, &err));
        cr_assert(!memcmp(got, p.rows[i], 2 * half * 4), "device %d", i);
        free(got);
    }
    close_pair(&p);
}

/* A device whose other one never comes: stop, from any thread, ends what it has begun and what it begins. */
Test(group_nccl, stop_ends_all, .timeout = 60)
{
    struct pair p;
    pthread_t thread;
    open_pair(&p, 8);
    struct side side = {.p = &p};
    OK(device_bind(p.dev[0], &err));
    OK(p.dev[0]->exchange->begin(p.dev[0], p.memory, &err));
    for (int i = 0; i < 2; i++) {
        side = (struct side){.p = &p};
        cr_assert(!pthread_create(&thread, NULL, one_side, &side));
        if (!i) usleep(50000);
        p.dev[1]->exchange->stop(p.dev[1]);
        pthread_join(thread, NULL);
        cr_assert(side.status == KLEIN_E_CANCELLED &&
                      strstr(side.err.message, "another device of the group failed"),
                  "%s", side.err.message);
    }
    close_pair(&p);
}

/* ---- opening ------------------------------------------------------------------------------------------------ */

static enum klein_status join_two(void)
{
    struct device *dev[2];
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    for (int i = 0; i < 2; i++)
        OK(device_open(i ? "soft:1" : "soft:0", &(struct device_options){0}, &dev[i], &err));
    const enum klein_status status = dev[0]->exchange->join(dev, 2, &err);
    cr_assert(status != KLEIN_OK || (dev[0]->exchange == dev[1]->exchange));
    const int by_nccl = dev[0]->exchange->alike;
    cr_assert(by_nccl == (status == KLEIN_OK));
    device_close(dev[0]), device_close(dev[1]);
    return status;
}

Test(group_nccl, libraries_that_do_not_do)
{
    static const char peers[] =
        "(device 0) cannot access the memory of device 1 directly, so NCCL is needed: ";
    unsetenv("KLEIN_NCCL");
    FAILS(join_two(), KLEIN_E_UNSUPPORTED, "libnccl.so.2 was not found, as it does not run on the soft GPU");
    setenv("KLEIN_NCCL", "/no/such/library", 1);
    FAILS(join_two(), KLEIN_E_UNSUPPORTED,
          "/no/such/library was not found: install NCCL 2 (KLEIN_NCCL=FILE says where "
          "it is); --parallel replica "
          "exchanges nothing");
    cr_assert(strstr(err.message, peers), "%s", err.message);
    setenv("KLEIN_NCCL", "libm.so.6", 1);
    FAILS(join_two(), KLEIN_E_UNSUPPORTED, "has no ncclGetVersion");
    setenv("KLEIN_NCCL", STANDIN, 1);
    setenv("KLEIN_STANDIN", "old", 1);
    FAILS(join_two(), KLEIN_E_UNSUPPORTED, "NCCL 2.18.5 is too old: 2.19 or later is needed");
    setenv("KLEIN_STANDIN", "older", 1);
    FAILS(join_two(), KLEIN_E_UNSUPPORTED, "NCCL 2.8.4 is too old");
    setenv("KLEIN_STANDIN", "init", 1);
    FAILS(join_two(), KLEIN_E_INTERNAL,
          "NCCL: making communicators: unhandled system error: no room in /dev/shm");
    unsetenv("KLEIN_STANDIN");
    OK(join_two());
}

Test(group_nccl, forced_where_there_are_peers)
{
    setenv("KLEIN_SOFT_PEERS", "1", 1);
    setenv("KLEIN_EXCHANGE", "nccl", 1);
    OK(join_two());
    setenv("KLEIN_NCCL", "/no/such/library", 1);
    FAILS(join_two(), KLEIN_E_UNSUPPORTED, "KLEIN_EXCHANGE is nccl, so NCCL is needed: ");
    setenv("KLEIN_EXCHANGE", "smoke", 1);
    FAILS(join_two(), KLEIN_E_USAGE, "KLEIN_EXCHANGE is \"smoke\"");
}
