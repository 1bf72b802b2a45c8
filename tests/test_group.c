/* Several soft GPUs on one request: the latents are those of one, and the pictures too but for ulysses, which decodes in bands of rows; the
 * bytes are the same eager and as graphs, under seeds; a device that fails, a cancelled request and a device that never comes end in a
 * message, and nothing hangs. About 80 s. */
#include "support/support.h"

#include "../engine/group.h"
#include "../engine/noise.h"
#include "../kernels/check/op_cases.h"
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
    int n, heads, base, f32;
    enum klein_parallel parallel;
    enum klein_precision precision;
    int copies; /* as if devices could not store into each other's memory (run.h) */
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

struct hashes {
    uint64_t latents, pictures; /* latents: with seeds and what else was returned */
};

static struct hashes hashes_of(const struct klein_result *r)
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

static uint64_t hash_of(const struct klein_result *r)
{
    const struct hashes h = hashes_of(r);
    return h.latents * 31 + h.pictures;
}

static struct hashes hashes(struct klein *k, const struct klein_request *q)
{
    struct klein_result r;
    OK(klein_generate(k, q, &r, &err));
    cr_assert(!q->return_latents == !r.latents && !q->return_embeds == !r.prompt_embeds);
    const struct hashes h = hashes_of(&r);
    klein_result_free(&r);
    return h;
}

static uint64_t picture(struct klein *k, const struct klein_request *q)
{
    const struct hashes h = hashes(k, q);
    return h.latents * 31 + h.pictures;
}

/* The group's latents are those of one device: op by op, and as stages and as one graph, each of which runs as ops, is captured and is
 * replayed, with another prompt and seed each time. So are its pictures, with ulysses those that it makes op by op. */
static void check_equal(const char *claim, struct members g, struct klein_request q)
{
    static const char *const prompts[2] = {"a heart", "two green stars"};
    static const enum klein_graph kinds[] = {KLEIN_GRAPH_OFF,     KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_REQUEST,
                                             KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_STAGES,  KLEIN_GRAPH_STAGES,
                                             KLEIN_GRAPH_STAGES};
    const int pictures =
        g.n < 8 && !g.copies ? 7 : 4; /* eight devices take minutes for all: no graphs of stages */
    struct hashes want[2];
    struct members one = g;
    one.n = 1;
    machine(claim, 3, SOFTGPU_LATE);
    struct klein *alone = open_group(one), *k = open_group(g);
    for (int i = 0; i < 2; i++) {
        q.prompt = prompts[i];
        q.seed = (uint64_t)i;
        want[i] = hashes(alone, &q);
    }
    cr_assert(want[0].latents != want[1].latents);
    for (int i = 0; i < pictures; i++) {
        q.prompt = prompts[i % 2];
        q.seed = (uint64_t)i % 2;
        q.graph = kinds[i];
        const struct hashes got = hashes(k, &q);
        cr_assert(got.latents == want[i % 2].latents, "latents %d, graph %d differ", i, (int)q.graph);
        if (i < 2 && g.parallel == KLEIN_PARALLEL_ULYSSES) want[i].pictures = got.pictures;
        cr_assert(got.pictures == want[i % 2].pictures, "picture %d, graph %d differs", i, (int)q.graph);
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

Test(group, ulysses_2_copies, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2, .copies = 1}, small(0));
}

/* What plans count: with stores the products' and attention's rows for the others, and meetings without any; with copies the same bytes as
 * exchanges. The model has 5 + 20 blocks; 512 tokens of text and 256 of the picture, half of which, and of 24 heads of 128, are one's own.
 * With stores q and o of the last block's text stay unmade; copies take all rows. */
Test(group, plans)
{
    const struct klein_request q = {.size = sizeof q, .prompt = "", .width = 256, .height = 256, .steps = 1};
    const double own = 768 / 2 * (24 * 128 / 2) * 2.0, of_text = own * 512 / 768;
    struct model_config c;
    OK(config_named("klein-4b", &c, &err));
    for (int copies = 0; copies < 2; copies++) {
        struct plan plan;
        double made = 0, exchanged = 0;
        int meetings = 0;
        OK(plan_make_share(&c, DT_BF16, &q, (struct share){.size = 2, .copies = copies}, (struct share){0},
                           &plan, &err));
        for (int i = 0; i < plan.n_ops; i++) {
            const struct plan_op *o = &plan.ops[i];
            if (o->stage != KLEIN_STAGE_DENOISE) continue;
            (o->op == OP_exchange ? &exchanged : &made)[0] += o->cost.sent * o->count;
            if (o->op == OP_exchange && !o->cost.sent) meetings += o->count;
        }
        cr_assert((copies ? exchanged : made) == 25 * 4 * own - (copies ? 0 : 2 * of_text),
                  "copies %d: %g %g", copies, made, exchanged);
        cr_assert((copies ? made : exchanged) == 0);
        cr_assert(meetings == (copies ? 0 : 2 * 25 + 1), "copies %d: %d meetings", copies, meetings);
        plan_free(&plan);
    }
}

/* There attention's result leaves in e4m3, with the scales of heads. */
Test(group, ulysses_2_fp8_groups, .timeout = 400, .disabled = SANITIZED)
{
    check_equal("sm_90a:2", (struct members){.n = 2, .heads = 2, .precision = KLEIN_PRECISION_FP8}, small(0));
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
    cr_assert(hashes(one, &q).latents == hashes(two, &q).latents);
    klein_close(one), klein_close(two);
    free(rgb);
}

/* After a warm-up the first request is a replay on all devices: text, references, prepare, two steps, decode. */
Test(group, warmed_up, .timeout = 400, .disabled = SANITIZED)
{
    static const enum klein_parallel ways[2] = {KLEIN_PARALLEL_ULYSSES, KLEIN_PARALLEL_REPLICA};
    for (int i = 0; i < 2; i++) {
        struct softgpu_counters c;
        struct klein_request q = small(1), shape = q;
        shape.prompt = NULL;
        q.images = ways[i] == KLEIN_PARALLEL_REPLICA ? 2 : 1;
        machine("sm_90a:2", 0, SOFTGPU_LATE);
        struct klein *k = open_group((struct members){.n = 2, .heads = 2, .parallel = ways[i]});
        q.graph = KLEIN_GRAPH_OFF;
        const uint64_t want = picture(k, &q);
        q.graph = KLEIN_GRAPH_STAGES;
        OK(klein_warm_up(k, &shape, 1, &err));
        softgpu_reset_counters();
        cr_assert(picture(k, &q) == want);
        softgpu_read_counters(&c);
        cr_assert(c.graphs == 2 * 6, "%d graphs", (int)c.graphs);
        shape.width = 33;
        FAILS(klein_warm_up(k, &shape, 1, &err), KLEIN_E_USAGE, "width 33");
        klein_close(k);
    }
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
    cr_assert(hashes(one, &q).latents == hashes(four, &q).latents);
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

/* ---- decoding in bands of rows ------------------------------------------------------------------------------------------- */

/* A device's part in decoding. */
struct decoding {
    struct klein *k;
    void *memory; /* DECODING_BYTES */
    const float *latents;
    int width, height;
    float *image; /* [height * width, 3]: receives it from the first device */
    struct klein_error err;
    pthread_t thread;
};
enum { DECODING_BYTES = 4 << 20, PIXELS = 64 * 80 };

static void *decode_part(void *user)
{
    struct decoding *d = user;
    struct device *dev = d->k->device;
    struct arena arena;
    arena_over(&arena, d->memory, DECODING_BYTES);
    struct run r = {.dev = dev, .arena = &arena, .act = d->k->act, .tokens = d->k->tokens};
    device_bind(dev, &r.err);
    struct tensor tokens = run_upload(&r, DT_F32, d->width * d->height / 256, 128, d->latents),
                  image = run_tensor(&r, r.act, d->width * d->height, 3),
                  f32 = run_tensor(&r, DT_F32, image.rows, 3);
    vae_decode(&r, &d->k->model->vae, image, tokens, d->height, d->width);
    if (d->k->rank == 0) {
        run_copy(&r, &(struct copy_args){.y = f32, .x = image});
        run_download(&r, d->image, f32);
    }
    dev->wait(dev, &r.err);
    d->err = r.err;
    return NULL;
}

/* The same latents by a group of g, each device in a thread of its own. */
static void decode(struct members g, int width, int height, float *image)
{
    static float latents[PIXELS / 2];
    struct decoding part[GROUP_MAX];
    void *arenas[GROUP_MAX];
    struct klein *k = open_group(g);
    noise_torch(latents, (size_t)(width * height / 2), 3, KLEIN_NOISE_TORCH);
    for (int i = 0; i < g.n; i++) {
        struct device *dev = k->group->member[i]->device;
        OK(device_bind(dev, &err));
        arenas[i] = dev->alloc(dev, DECODING_BYTES);
        cr_assert(arenas[i]);
        part[i] = (struct decoding){k->group->member[i], arenas[i], latents, width, height, image, {0}, 0};
    }
    for (int i = 0; i < g.n && g.n > 1; i++) {
        OK(device_bind(part[i].k->device, &err));
        OK(part[i].k->device->exchange->begin(part[i].k->device, arenas, &err));
    }
    for (int i = 0; i < g.n; i++) cr_assert(!pthread_create(&part[i].thread, NULL, decode_part, &part[i]));
    for (int i = 0; i < g.n; i++) pthread_join(part[i].thread, NULL);
    for (int i = 0; i < g.n; i++) {
        cr_assert(part[i].err.status == KLEIN_OK, "device %d: %s", i, part[i].err.message);
        OK(device_bind(part[i].k->device, &err));
        part[i].k->device->free(part[i].k->device, arenas[i], DECODING_BYTES);
    }
    klein_close(k);
}

/* In F32 the bands are one device's picture to rounding. In BF16 they are as near to that as one device is: other roundings, not more. */
static void check_bands(const char *claim, int n, int width, int height)
{
    static float images[4][PIXELS * 3];
    struct tensor t[4];
    machine(claim, 2, SOFTGPU_RANDOM);
    for (int i = 0; i < 4; i++) {
        t[i] = tensor_of(images[i], DT_F32, width * height, 3);
        decode((struct members){.n = i % 2 ? n : 1, .heads = n, .f32 = i < 2}, width, height, images[i]);
    }
    const double f32 = tensor_max_difference(t[1], t[0]), one = tensor_relative_l2(t[2], t[0]),
                 bands = tensor_relative_l2(t[3], t[0]);
    cr_assert(f32 < 1e-4, "F32, %d devices: %.2g off", n, f32);
    cr_assert(bands < 1.1 * one, "BF16, %d devices: relative L2 %.3g, one's %.3g", n, bands, one);
}

Test(group, bands_are_one_picture, .timeout = 400, .disabled = SANITIZED)
{
    check_bands("sm_90a:2", 2, 64, 80); /* 5 + 5 rows of latents */
    check_bands("sm_80:4", 4, 32, 48);  /* 1 + 2 + 1 + 2 */
}

/* The demo model's picture, whose weights are trained: the same latents, and within a level. */
Test(group, bands_of_a_trained_model, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_result result[2];
    struct klein_request q = small(1);
    q.width = q.height = 64;
    q.steps = 2;
    machine("sm_90a:2", 1, SOFTGPU_LATE);
    for (int i = 0; i < 2; i++) {
        struct klein *k;
        struct klein_open_options o = nano(1 + i, KLEIN_PARALLEL_ULYSSES);
        OK(klein_open(&o, &k, &err));
        OK(klein_generate(k, &q, &result[i], &err));
        klein_close(k);
    }
    cr_assert(result[0].latent_hashes[0] == result[1].latent_hashes[0]);
    const uint8_t *one = result[0].images[0].rgb, *bands = result[1].images[0].rgb;
    for (int i = 0; i < q.width * q.height * 3; i++)
        cr_assert(abs(one[i] - bands[i]) <= 1, "value %d: %d and %d", i, one[i], bands[i]);
    klein_result_free(&result[0]), klein_result_free(&result[1]);
}

Test(group, too_few_rows_for_bands, .timeout = 400, .disabled = SANITIZED)
{
    struct members g = {.n = 1, .heads = 4};
    struct klein_request q = small(4);
    q.width = 64;
    q.height = 16; /* 2 rows of latents: by the first device alone */
    q.steps = 1;
    machine("sm_90a:4", 2, SOFTGPU_RANDOM);
    struct klein *one = open_group(g);
    g.n = 4;
    struct klein *four = open_group(g);
    cr_assert(picture(one, &q) == picture(four, &q));
    klein_close(one), klein_close(four);
}

/* Each device has the arena that one has, laid out as the others', and its part of the work. */
Test(group, plans_by_bands)
{
    const struct klein_request q = {.size = sizeof q, .width = 1024, .height = 1024, .steps = 1};
    struct model_config c;
    struct plan one, part;
    double most = 0, sum = 0;
    size_t bytes = 0;
    OK(config_named("klein-4b", &c, &err));
    OK(plan_make(&c, DT_BF16, &q, &one, &err));
    for (int i = 0; i < 8; i++) {
        OK(plan_make_share(&c, DT_BF16, &q, (struct share){.rank = i, .size = 8}, (struct share){0}, &part,
                           &err));
        bytes = i ? bytes : part.arena_bytes;
        cr_assert(part.arena_bytes == bytes && bytes < one.arena_bytes + 16384,
                  "device %d: %zu bytes, one alone: %zu", i, part.arena_bytes, one.arena_bytes);
        double flops = part.stage[KLEIN_STAGE_DECODE].flops;
        most = flops > most ? flops : most;
        sum += flops;
        plan_free(&part);
    }
    double whole = one.stage[KLEIN_STAGE_DECODE].flops;
    cr_assert(most < whole / 7.99 && sum > 0.9999 * whole && sum < 1.0001 * whole);
    plan_free(&one);
}

static int cancel_decoding(void *user, const struct klein_progress *p)
{
    return p->stage == KLEIN_STAGE_DECODE && ++*(int *)user > 20;
}

/* While they decode: a device fails, or the request is cancelled. */
Test(group, bands_end, .timeout = 400, .disabled = SANITIZED)
{
    struct softgpu_config c;
    struct softgpu_counters n;
    struct klein_result result;
    machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    struct klein_request q = small(1), cancelled = q;
    int polls = 0;
    q.steps = cancelled.steps = 1;
    softgpu_reset_counters();
    const uint64_t want = picture(k, &q);
    softgpu_read_counters(&n);
    cancelled.graph = KLEIN_GRAPH_OFF;
    cancelled.progress = cancel_decoding;
    cancelled.progress_user = &polls;
    FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(polls > 20 && picture(k, &q) == want);
    klein_close(k);
    for (int device = 0; device < 2; device++) {
        k = open_group((struct members){.n = 2, .heads = 2});
        cr_assert(softgpu_config_from_env(&c));
        c.fail_device = device;
        c.fail_launch = n.kernels / 2 - 20;
        cr_assert(softgpu_configure(&c));
        FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL, device ? "soft:1" : "soft:0");
        cr_assert(strstr(err.message, "fails as asked for"), "%s", err.message);
        klein_close(k);
    }
}
