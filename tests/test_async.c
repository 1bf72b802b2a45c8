/* Requests that run by themselves, warm-up, latents and embeddings out. Soft GPU only where graphs matter. About 15 s. */
#include "support/alloc.h"
#include "support/support.h"

#include "../engine/context.h"
#include "../kernels/soft/softgpu.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

static struct klein *open_on(const char *device)
{
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = KLEIN_SOURCE_DIR "/weights/nano",
                                   .device = test_device(device),
                                   .threads = 1};
    OK(klein_open(&o, &k, &err));
    return k;
}

static struct klein_request small(uint64_t seed)
{
    return (struct klein_request){.size = sizeof(struct klein_request),
                                  .prompt = "a red balloon on a wooden table",
                                  .width = 32,
                                  .height = 32,
                                  .steps = 2,
                                  .seed = seed};
}

static uint64_t hash_of(struct klein *k, const struct klein_request *q)
{
    struct klein_result result;
    OK(klein_generate(k, q, &result, &err));
    uint64_t hash = result.latent_hashes[0];
    klein_result_free(&result);
    return hash;
}

/* What a request's klein_done saw. */
struct end {
    int times, order;
    uint64_t id, hash;
    enum klein_status status;
    char message[128];
};
static int ends; /* only the context's thread counts */

static void on_done(void *user, uint64_t id, enum klein_status status, struct klein_result *result,
                    const struct klein_error *e)
{
    struct end *end = user;
    end->times++;
    end->order = ++ends;
    end->id = id;
    end->status = status;
    end->hash = status == KLEIN_OK ? result->latent_hashes[0] : 0;
    snprintf(end->message, sizeof end->message, "%.100s", e->message);
}

static int cancels_itself(void *user, const struct klein_progress *p)
{
    return p->stage == KLEIN_STAGE_DENOISE;
}

/* Five requests, their memory taken away at once: in order, as klein_generate gives them; one cancels itself, one is cancelled. */
Test(async, requests_run_in_order)
{
    struct klein *k = open_on("cpu");
    struct end end[5] = {0};
    uint64_t want[2], id[5];
    for (uint64_t i = 0; i < 2; i++) {
        struct klein_request q = small(i);
        want[i] = hash_of(k, &q);
    }
    for (int i = 0; i < 5; i++) {
        char prompt[64];
        struct klein_request q = small((uint64_t)(i & 1));
        snprintf(prompt, sizeof prompt, "%s", q.prompt);
        q.prompt = prompt;
        if (i == 2) q.progress = cancels_itself;
        OK(klein_submit(k, &q, on_done, &end[i], &id[i], &err));
        memset(prompt, 'x', sizeof prompt - 1);
        if (i == 3) cr_assert(klein_cancel(k, id[3]));
    }
    klein_wait(k, id[1]);
    cr_assert(end[0].times == 1 && end[1].times == 1);
    klein_wait(k, 0);
    for (int i = 0; i < 5; i++)
        cr_assert(end[i].times == 1 && end[i].order == i + 1 && end[i].id == id[i], "request %d", i);
    cr_assert(end[0].hash == want[0] && end[1].hash == want[1] && end[4].hash == want[0]);
    for (int i = 2; i < 4; i++)
        cr_assert(end[i].status == KLEIN_E_CANCELLED && !strcmp(end[i].message, "cancelled"));
    cr_assert(!klein_cancel(k, id[4]) && !klein_cancel(k, 99));
    klein_close(k);
}

Test(async, close_cancels)
{
    struct klein *k = open_on("cpu");
    struct end end[3] = {0};
    uint64_t id;
    for (int i = 0; i < 3; i++) {
        struct klein_request q = small(1);
        q.width = q.height = 128;
        q.steps = 500; /* for minutes, if nobody stopped it */
        OK(klein_submit(k, &q, on_done, &end[i], &id, &err));
    }
    klein_close(k);
    for (int i = 0; i < 3; i++) cr_assert(end[i].times == 1 && end[i].status == KLEIN_E_CANCELLED);
}

/* Taking the result, and calling the context within callbacks. */
struct caller {
    struct klein *k;
    struct klein_result taken;
    enum klein_status within_done, within_progress;
};

static int calls_from_progress(void *user, const struct klein_progress *p)
{
    struct caller *c = user;
    struct klein_result result;
    struct klein_error e;
    struct klein_request q = small(1);
    c->within_progress = klein_generate(c->k, &q, &result, &e);
    return 0;
}

static void takes(void *user, uint64_t id, enum klein_status status, struct klein_result *result,
                  const struct klein_error *e)
{
    struct caller *c = user;
    struct klein_result other;
    struct klein_error ignored;
    struct klein_request q = small(1);
    klein_wait(c->k, 0); /* returns */
    c->within_done = klein_generate(c->k, &q, &other, &ignored);
    klein_result_free(&other);
    c->taken = *result;
    *result = (struct klein_result){0};
}

Test(async, callbacks_may_call)
{
    struct caller c = {.k = open_on("cpu"), .within_done = KLEIN_E_INTERNAL};
    struct klein_request q = small(1);
    uint64_t id;
    q.progress = calls_from_progress;
    q.progress_user = &c;
    OK(klein_submit(c.k, &q, takes, &c, &id, &err));
    klein_wait(c.k, id);
    klein_close(c.k);
    cr_assert(c.within_done == KLEIN_OK && c.within_progress == KLEIN_E_USAGE);
    cr_assert(c.taken.n_images == 1 && c.taken.images[0].width == 32);
    klein_result_free(&c.taken);
}

Test(async, bad_requests_are_refused_at_once)
{
    struct klein *k = open_on("cpu");
    struct end end = {0};
    struct klein_request q = small(1);
    uint64_t id;
    FAILS(klein_submit(k, &q, NULL, NULL, &id, &err), KLEIN_E_USAGE, "done is NULL");
    q.width = 33;
    FAILS(klein_submit(k, &q, on_done, &end, &id, &err), KLEIN_E_USAGE, "width 33");
    q = small(1);
    q.prompt = NULL;
    FAILS(klein_submit(k, &q, on_done, &end, &id, &err), KLEIN_E_USAGE, "no prompt");
    q.size = 0;
    FAILS(klein_submit(k, &q, on_done, &end, &id, &err), KLEIN_E_USAGE, "size");
    q = small(1);
    EACH_ALLOCATION_FAILS(klein_submit(k, &q, on_done, &end, &id, &err), klein_wait(k, 0));
    cr_assert(end.times >= 1 && end.status == KLEIN_OK);
    klein_close(k);
}

/* What comes out goes in: the same picture; each picture has its own latents. */
static void check_returned(const char *device)
{
    struct klein *k = open_on(device);
    struct klein_request q = small(5);
    struct klein_result out, again;
    q.images = 2;
    q.return_latents = q.return_embeds = 1;
    OK(klein_generate(k, &q, &out, &err));
    cr_assert(out.latents && out.prompt_embeds && memcmp(out.latents[0], out.latents[1], 512 * 4));
    struct klein_model_info info;
    klein_model_info(k, &info);
    cr_assert(out.embed_rows == info.text_length && out.embed_cols == info.text_width);
    float tokens[4 * 128];
    for (int t = 0; t < 4; t++)
        for (int c = 0; c < 128; c++) tokens[t * 128 + c] = out.latents[1][c * 4 + t];
    cr_assert(fnv1a(tokens, sizeof tokens) == out.latent_hashes[1]);
    q.prompt_embeds = out.prompt_embeds;
    q.embed_rows = out.embed_rows;
    q.prompt = NULL;
    OK(klein_generate(k, &q, &again, &err));
    cr_assert(again.latent_hashes[0] == out.latent_hashes[0] &&
              again.latent_hashes[1] == out.latent_hashes[1]);
    cr_assert(!memcmp(again.prompt_embeds, out.prompt_embeds,
                      (size_t)out.embed_rows * (size_t)out.embed_cols * sizeof(float)));
    klein_result_free(&again);
    klein_result_free(&out);
    klein_close(k);
}

Test(async, latents_and_embeddings_out_cpu)
{
    check_returned("cpu");
}

Test(async, example)
{
    char command[1024];
    snprintf(command, sizeof command,
             "'%s/async' '%s' 'a cat' 'a dog' | grep -c '^request [12]: 64x64' | grep -qx 2",
             KLEIN_BINARY_DIR, GOLDEN_MODEL("tiny"));
    cr_assert(system(command) == 0, "%s", command);
}

#if !SANITIZED
Test(async, latents_and_embeddings_out_soft)
{
    check_returned("soft sm_90a");
}

/* After a warm-up the first request is a replay, and gives the same bytes; in another thread, too. */
Test(async, warmed_up_requests_are_replays)
{
    struct klein *k = open_on("soft sm_90a");
    struct klein_request q = small(3), shapes[2] = {q, q};
    struct softgpu_counters c;
    struct end end = {0};
    uint64_t id;
    q.graph = KLEIN_GRAPH_OFF;
    const uint64_t want = hash_of(k, &q);
    q.graph = KLEIN_GRAPH_STAGES;
    shapes[0].prompt = NULL;
    shapes[1].graph = KLEIN_GRAPH_REQUEST;
    OK(klein_warm_up(k, shapes, 2, &err));
    softgpu_reset_counters();
    cr_assert(hash_of(k, &q) == want);
    softgpu_read_counters(&c);
    /* text, references, prepare, two steps, decode */
    cr_assert(c.graphs == 6 && c.stops_between_graphs == 0, "%d graphs, %d stops between", (int)c.graphs,
              (int)c.stops_between_graphs);
    q.graph = KLEIN_GRAPH_REQUEST;
    softgpu_reset_counters();
    cr_assert(hash_of(k, &q) == want);
    softgpu_read_counters(&c);
    cr_assert(c.graphs == 1);
    OK(klein_submit(k, &q, on_done, &end, &id, &err));
    klein_wait(k, id);
    cr_assert(end.status == KLEIN_OK && end.hash == want, "%s", end.message);
    shapes[0].width = 33;
    FAILS(klein_warm_up(k, shapes, 1, &err), KLEIN_E_USAGE, "width 33");
    k->plans.budget = 1;
    shapes[0].width = 16;
    FAILS(klein_warm_up(k, shapes, 1, &err), KLEIN_E_NO_MEMORY, "is not kept ready");
    klein_close(k);
}
#endif
