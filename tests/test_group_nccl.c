/* Groups whose devices do not reach each other's memory exchange by NCCL, of which there is a stand-in (driver/nccl_standin.c). */
#include "group/group.h"

#include "../engine/group.h"
#include "../kernels/group/nccl_library.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct klein_error err;

#define STANDIN KLEIN_BINARY_DIR "/tests/libnccl_standin.so"

static void setup(void)
{
    setenv("KLEIN_SOFT_PEERS", "0", 1);
    setenv("KLEIN_NCCL", STANDIN, 1);
}
TestSuite(group_nccl, .init = setup);

Test(group_nccl, ulysses_2, .timeout = 400, .disabled = SANITIZED)
{
    check_group_is_one("sm_90a:2", (struct members){.n = 2, .heads = 2}, small_request(0));
}

/* Attention's result is exchanged in BF16 and quantised after, by token: not the bytes of one card, but no farther from these than BF16 is, and
 * the same each time. */
Test(group_nccl, ulysses_2_fp8, .timeout = 400, .disabled = SANITIZED)
{
    enum { ONE, TWO, BF16, REPLAYED, RUNS };
    static const struct {
        int n;
        enum klein_precision precision;
    } runs[RUNS] = {{1, KLEIN_PRECISION_FP8},
                    {2, KLEIN_PRECISION_FP8},
                    {1, KLEIN_PRECISION_BF16},
                    {2, KLEIN_PRECISION_FP8}};
    struct klein_result r[RUNS];
    struct tensor latents[RUNS];
    soft_machine("sm_89:2", 3, SOFTGPU_LATE);
    for (int i = 0; i < RUNS; i++) {
        struct klein_request q = small_request(0);
        struct klein *k =
            open_group((struct members){.n = runs[i].n, .heads = 2, .precision = runs[i].precision});
        q.return_latents = 1;
        q.graph = i == REPLAYED ? KLEIN_GRAPH_REQUEST : KLEIN_GRAPH_OFF;
        for (int again = 0; again < (i == REPLAYED ? 2 : 0); again++) generate_hash(k, &q);
        OK(klein_generate(k, &q, &r[i], &err));
        latents[i] = tensor_of(r[i].latents[0], DT_F32, 128, r[i].width / 16 * (r[i].height / 16));
        klein_close(k);
    }
    const double two = relative_l2(latents[TWO], latents[ONE]),
                 bf16 = relative_l2(latents[BF16], latents[ONE]);
    cr_assert(two <= bf16, "two cards %g, BF16 %g", two, bf16);
    cr_assert(r[TWO].latent_hashes[0] == r[REPLAYED].latent_hashes[0]);
    for (int i = 0; i < RUNS; i++) klein_result_free(&r[i]);
}

Test(group_nccl, guidance_by_passes, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(0);
    q.guidance = 3;
    check_group_is_one("sm_120a:2",
                       (struct members){.n = 2, .heads = 2, .base = 1, .parallel = KLEIN_PARALLEL_CFG}, q);
}

/* Two pictures of one request, by four devices. */
Test(group_nccl, ulysses_4, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(1);
    q.images = 2;
    soft_machine("sm_90a:4", 0, SOFTGPU_LATE);
    struct klein *one = open_group((struct members){.n = 1, .heads = 4}),
                 *four = open_group((struct members){.n = 4, .heads = 4});
    cr_assert(generate_hashes(one, &q).latents == generate_hashes(four, &q).latents);
    klein_close(one), klein_close(four);
}

Test(group_nccl, seeds_and_landings, .timeout = 400, .disabled = SANITIZED)
{
    uint64_t want = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        soft_machine("sm_90a:2", seed, (enum softgpu_async)seed);
        struct klein *k = open_group((struct members){.n = 2, .heads = 2});
        struct klein_request q = small_request(1);
        q.steps = 1;
        for (int i = 0; i < 2; i++) {
            uint64_t hash = generate_hash(k, &q);
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
    struct klein_request q = small_request(1);
    struct klein_result result;
    int ops = 0;
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    const uint64_t want = generate_hash(k, &q);
    for (int i = 0; i < 2; i++) cr_assert(generate_hash(k, &q) == want);
    OK(group_generate(k->group, &q, observe, &ops, &result, &err));
    cr_assert(result_hash(&result) == want && ops > 50);
    klein_result_free(&result);
    for (int rank = 0; rank < 2; rank++) {
        cache_release(&k->group->member[rank]->plans, k->group->member[rank]->device, NULL);
        for (int i = 0; i < 3; i++) cr_assert(generate_hash(k, &q) == want);
    }
    klein_close(k);
}

/* One a test: NCCL keeps a device's context, with its fault, until the process ends. */
Test(group_nccl, a_device_fails_amid_ops, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){2, KLEIN_PARALLEL_ULYSSES, 0, 40, 0, 0, SOFTGPU_LATE});
}

Test(group_nccl, a_device_fails_in_a_graph, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){2, KLEIN_PARALLEL_ULYSSES, 1, 40, 2, 0, SOFTGPU_LATE});
}

Test(group_nccl, a_device_fails_in_its_pass, .timeout = 400, .disabled = SANITIZED)
{
    check_group_failure((struct failure){2, KLEIN_PARALLEL_CFG, 0, 40, 2, 0, SOFTGPU_LATE});
}

/* Each time the communicators are made anew. */
Test(group_nccl, cancelled_and_usable_after, .timeout = 400, .disabled = SANITIZED)
{
    check_group_cancelled();
}

/* NCCL fails amid a request: its own words, and the group is of use again. */
Test(group_nccl, a_send_fails, .timeout = 400, .disabled = SANITIZED)
{
    struct klein_request q = small_request(1);
    struct klein_result result;
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    const uint64_t want = generate_hash(k, &q);
    setenv("KLEIN_STANDIN", "send", 1);
    q.graph = KLEIN_GRAPH_OFF;
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL,
          "NCCL: send and receive: remote process exited: the link is down");
    cr_assert(strstr(err.message, "soft:") && strstr(err.message, "exchange 3x"), "%s", err.message);
    unsetenv("KLEIN_STANDIN");
    q.graph = KLEIN_GRAPH_STAGES;
    for (int i = 0; i < 3; i++) cr_assert(generate_hash(k, &q) == want);
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
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
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
