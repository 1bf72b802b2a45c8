/* Several soft GPUs on one request: the latents are those of one, and the pictures too but for ulysses, which decodes in bands of rows; the
 * bytes are the same eager and as graphs, under seeds; a device that fails, a cancelled request and a device that never comes end in a
 * message, and nothing hangs. About 110 s. */
#include "group/group.h"

#include "../engine/group.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

Test(group, ulysses_2_sm_90a, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_90a:2", (struct members){.n = 2, .heads = 2}, small_request(0));
}

Test(group, ulysses_2_sm_80, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_80:2", (struct members){.n = 2, .heads = 2}, small_request(0));
}

Test(group, ulysses_2_fp8, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_89:2", (struct members){.n = 2, .heads = 2, .precision = KLEIN_PRECISION_FP8},
                       small_request(0));
}

Test(group, ulysses_2_copies, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_90a:2", (struct members){.n = 2, .heads = 2, .copies = 1}, small_request(0));
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
    check_group_is_one("sm_90a:2", (struct members){.n = 2, .heads = 2, .precision = KLEIN_PRECISION_FP8},
                       small_request(0));
}

Test(group, ulysses_4, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_90a:4", (struct members){.n = 4, .heads = 4}, small_request(0));
}

Test(group, ulysses_4_fp8, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(0);
    q.steps = 1;
    check_group_is_one(
        "sm_90a:4", (struct members){.n = 4, .heads = 4, .head_dim = 128, .precision = KLEIN_PRECISION_FP8},
        q);
}

Test(group, ulysses_8, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(0);
    q.steps = 1;
    check_group_is_one("sm_90a:8", (struct members){.n = 8, .heads = 8}, q);
}

/* Guidance on two devices, by passes and by tokens. */
Test(group, guidance_by_passes, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(0);
    q.guidance = 3;
    check_group_is_one("sm_90a:2",
                       (struct members){.n = 2, .heads = 2, .base = 1, .parallel = KLEIN_PARALLEL_CFG}, q);
}

Test(group, guidance_by_tokens, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(0);
    q.guidance = 3;
    check_group_is_one("sm_90a:2", (struct members){.n = 2, .heads = 2, .base = 1}, q);
}

/* Two references, so that a device's part of them begins within one and ends within the other; two pictures: the second begins while the
 * first is decoded. */
Test(group, ulysses_with_references, .timeout = 400, .disabled = SANITIZED)
{
    uint8_t *rgb = malloc(80 * 80 * 3);
    cr_assert(rgb);
    for (int i = 0; i < 80 * 80 * 3; i++) rgb[i] = (uint8_t)(i * 7 % 251);
    struct klein_image references[] = {{64, 64, rgb}, {80, 80, rgb}};
    struct klein_request q = small_request(1);
    q.references = references;
    q.n_references = 2;
    q.images = 2;
    q.return_latents = q.return_embeds = 1;
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *one = open_group((struct members){.n = 1, .heads = 2}),
                 *two = open_group((struct members){.n = 2, .heads = 2});
    cr_assert(generate_hashes(one, &q).latents == generate_hashes(two, &q).latents);
    klein_close(one), klein_close(two);
    free(rgb);
}

/* After a warm-up the first request is a replay on all devices: text, references, prepare, two steps, decode. */
Test(group, warmed_up, .timeout = 400, .disabled = SANITIZED)
{
    static const enum klein_parallel ways[2] = {KLEIN_PARALLEL_ULYSSES, KLEIN_PARALLEL_REPLICA};
    for (int i = 0; i < 2; i++) {
        struct softgpu_counters c;
        struct klein_request q = small_request(1), shape = q;
        shape.prompt = NULL;
        q.images = ways[i] == KLEIN_PARALLEL_REPLICA ? 2 : 1;
        soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
        struct klein *k = open_group((struct members){.n = 2, .heads = 2, .parallel = ways[i]});
        q.graph = KLEIN_GRAPH_OFF;
        const uint64_t want = generate_hash(k, &q);
        q.graph = KLEIN_GRAPH_STAGES;
        OK(klein_warm_up(k, &shape, 1, &err));
        softgpu_reset_counters();
        cr_assert(generate_hash(k, &q) == want);
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
    soft_machine("sm_90a:4", 0, SOFTGPU_LATE);
    struct members g = {.n = 1, .heads = 2, .parallel = KLEIN_PARALLEL_REPLICA};
    struct klein *one = open_group(g);
    g.n = 4;
    struct klein *four = open_group(g);
    for (int images = 1; images <= 5; images += 4) {
        struct klein_request q = small_request(7);
        int next = 0;
        q.images = images;
        q.steps = 1;
        q.return_latents = q.return_embeds = images > 1;
        uint64_t want = generate_hash(one, &q);
        q.finished = next_one;
        q.finished_user = &next;
        cr_assert(generate_hash(four, &q) == want, "%d pictures differ", images);
        cr_assert(next == images);
    }
    klein_close(one), klein_close(four);
}

static void check_seeds(int n, uint64_t first, uint64_t end)
{
    uint64_t want = 0;
    char machine[16];
    snprintf(machine, sizeof machine, "sm_90a:%d", n);
    for (uint64_t seed = first; seed < end; seed++) {
        soft_machine(machine, seed, (enum softgpu_async)(seed % 3));
        struct klein *k = open_group((struct members){.n = n, .heads = n});
        struct klein_request q = small_request(1);
        q.steps = 1;
        for (int i = 0; i < (n > 2 ? 1 : 2); i++) {
            uint64_t hash = generate_hash(k, &q);
            want = want ? want : hash;
            cr_assert(hash == want, "%d devices, seed %d", n, (int)seed);
        }
        klein_close(k);
    }
}

Test(group, seeds_and_landings, .timeout = 400, .disabled = SANITIZED)
{
    check_seeds(2, 0, 6);
}

Test(group, seeds_and_landings_of_four, .timeout = 400, .disabled = SANITIZED)
{
    check_seeds(4, 1, 3);
}

Test(group, a_device_fails, .timeout = 400, .disabled = SANITIZED)
{
    for (int device = 0; device < 2; device++)
        for (int before = 0; before < 3; before += 2) { /* op by op; in graphs */
            check_group_failure(
                (struct failure){2, KLEIN_PARALLEL_ULYSSES, device, 40, before, 0, SOFTGPU_LATE});
            check_group_failure((struct failure){2, KLEIN_PARALLEL_CFG, device, 40, before, 0, SOFTGPU_LATE});
        }
    check_group_failure((struct failure){2, KLEIN_PARALLEL_REPLICA, 1, 30, 0, 0, SOFTGPU_LATE});
}

/* The first launch, some in between, the last ones; under seeds and landings. */
Test(group, a_device_fails_under_seeds, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){2, KLEIN_PARALLEL_ULYSSES, 1, 60, 0, 1, SOFTGPU_RANDOM});
    check_group_failure((struct failure){2, KLEIN_PARALLEL_ULYSSES, 0, 90, 0, 2, SOFTGPU_NOW});
    check_group_failure((struct failure){2, KLEIN_PARALLEL_REPLICA, 0, 1, 0, 3, SOFTGPU_RANDOM});
    check_group_failure((struct failure){2, KLEIN_PARALLEL_REPLICA, 1, -2, 1, 4, SOFTGPU_RANDOM});
}

Test(group, one_of_four_fails, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){4, KLEIN_PARALLEL_ULYSSES, 3, 40, 2, 2, SOFTGPU_RANDOM});
}

Test(group, one_of_eight_fails, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){8, KLEIN_PARALLEL_ULYSSES, 7, 40, 0, 1, SOFTGPU_RANDOM});
}

Test(group, cancelled_and_usable_after, .timeout = 400, .disabled = SANITIZED)
{
    check_group_cancelled();
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

static void refused(int n, enum klein_parallel parallel, enum klein_status status, const char *text)
{
    struct klein *k;
    struct klein_open_options o = nano_options(n, parallel);
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
    refused(0, KLEIN_PARALLEL_REPLICA, KLEIN_E_USAGE, "parallel is 2 but n_gpus 0: name the GPUs in gpus");
    struct klein_open_options o = nano_options(2, KLEIN_PARALLEL_ULYSSES);
    o.gpus = (int[]){1, 1};
    FAILS(klein_open(&o, &k, &err), KLEIN_E_USAGE, "named twice");
    o = nano_options(3, KLEIN_PARALLEL_REPLICA);
    o.gpus = (int[]){0, 6, 5}; /* opened side by side: the first error */
    FAILS(klein_open(&o, &k, &err), KLEIN_E_NO_DEVICE, "6");
    o = nano_options(2, KLEIN_PARALLEL_ULYSSES);
    o.device = "cpu";
    FAILS(klein_open(&o, &k, &err), KLEIN_E_USAGE, "cuda or soft");
    o = nano_options(2, KLEIN_PARALLEL_ULYSSES);
    OK(klein_open(&o, &k, &err));
    struct klein_request q = small_request(1);
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
    struct klein_open_options o = nano_options(2, KLEIN_PARALLEL_REPLICA);
    OK(klein_open(&o, &k, &err)); /* which it offers */
    klein_close(k);
}
