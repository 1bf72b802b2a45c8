/* The GPU backend end to end on the soft GPU, with the demo checkpoint: graphs against single launches, what happens between the launches
 * of a request, plans that are kept, cancelling, errors. The networks against goldens: test_models.c and test_pipeline.c; what pictures
 * show: test_nano.c; the kernels: test_kernels_*.c. */
#include "support/support.h"

#include "../base/clock.h"
#include "../engine/context.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct klein_error err;

static struct klein *open_nano(const char *device, size_t plan_bytes)
{
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = KLEIN_SOURCE_DIR "/weights/nano",
                                   .device = test_device(device),
                                   .threads = 1,
                                   .plan_bytes = plan_bytes};
    OK(klein_open(&o, &k, &err));
    return k;
}

/* A sixteenth of the demo checkpoint's picture, to be quick. */
static struct klein_request small(uint64_t seed)
{
    return (struct klein_request){.size = sizeof(struct klein_request),
                                  .prompt = "a red balloon on a wooden table",
                                  .width = 32,
                                  .height = 32,
                                  .steps = 4,
                                  .seed = seed};
}

static uint64_t picture(struct klein *k, const struct klein_request *q)
{
    struct klein_result result;
    OK(klein_generate(k, q, &result, &err));
    uint64_t hash = result.latent_hashes[0] * 31 +
                    fnv1a(result.images[0].rgb, (size_t)result.width * (size_t)result.height * 3);
    klein_result_free(&result);
    return hash;
}

/* Requests that differ in all that a graph may not remember. */
static struct klein_request varied(int i)
{
    static const char *const prompts[] = {"a red balloon on a wooden table", "a heart",
                                          "two green stars in the night sky, one on the left"};
    static const float sigmas[] = {1, 0.9f, 0.5f, 0.2f};
    struct klein_request q = small((uint64_t)i);
    q.prompt = prompts[i % 3];
    if (i % 2) q.sigmas = sigmas;
    return q;
}

static void check_graphs(const char *device)
{
    uint64_t want[3];
    struct klein *k = open_nano(device, 0);
    for (int i = 0; i < 3; i++) {
        struct klein_request q = varied(i);
        q.graph = KLEIN_GRAPH_OFF;
        want[i] = picture(k, &q);
    }
    cr_assert(want[0] != want[1] && want[1] != want[2]);
    for (int graph = KLEIN_GRAPH_STAGES; graph <= KLEIN_GRAPH_REQUEST; graph++)
        for (int i = 0; i < 4; i++) { /* as ops, captured, replayed */
            struct klein_request q = varied(i % 3);
            q.graph = (enum klein_graph)graph;
            cr_assert(picture(k, &q) == want[i % 3], "%s: request %d with graph %d differs", device, i,
                      graph);
        }
    klein_close(k);
}

Test(cuda, graphs_give_the_same_bytes_sm_90a)
{
    check_graphs("soft sm_90a");
}

#if !SANITIZED
Test(cuda, graphs_give_the_same_bytes_sm_80)
{
    check_graphs("soft sm_80");
}
#endif

static int go_on(void *user, const struct klein_progress *p)
{
    return 0;
}

/* The third request of a shape, which is replayed. As one graph it is one launch, so nothing can come in between. Who watches makes the
 * host wait for the step before the last, by an event. */
static void check_replay(struct klein *k, struct klein_request q)
{
    for (int watched = 0; watched < 2; watched++)
        for (int graph = KLEIN_GRAPH_STAGES; graph <= KLEIN_GRAPH_REQUEST; graph++) {
            struct softgpu_counters c;
            q.graph = (enum klein_graph)graph;
            q.progress = watched ? go_on : NULL;
            for (int i = watched ? 2 : 0; i < 3; i++) {
                softgpu_reset_counters();
                picture(k, &q);
            }
            softgpu_read_counters(&c);
            /* text, references (if there are none, a graph all the same), prepare, steps, decode */
            const int whole = graph == KLEIN_GRAPH_REQUEST, graphs = whole ? 1 : 4 + q.steps;
            cr_assert((int)c.graphs == graphs && c.stops_between_graphs == 0,
                      "graph %d: %d graphs of %d, %d stops between", graph, (int)c.graphs, graphs,
                      (int)c.stops_between_graphs);
            cr_assert((int)c.waits_between_graphs <= (watched && !whole ? q.steps : 0),
                      "%d waits in %d steps", (int)c.waits_between_graphs, q.steps);
            /* Marks of the stages' ends; the number of a step, what pace does, the launch. */
            cr_assert((int)c.calls_between_graphs <= (whole ? 0 : 8 + 4 + q.steps * (2 + 2 * watched)),
                      "graph %d: %d driver calls between graphs", graph, (int)c.calls_between_graphs);
        }
}

/* A base model of random weights: two passes a step. */
static struct klein *open_base(void)
{
    struct model_config c;
    struct checkpoint *checkpoint;
    struct klein *k;
    struct klein_open_options o = {.size = sizeof o, .device = test_device("soft sm_90a"), .threads = 1};
    OK(config_named("tiny", &c, &err));
    c.distilled = 0;
    c.text_length = 40;
    c.dit.double_blocks = c.dit.single_blocks = 1;
    c.vae.layers_per_block = 1;
    c.vae.norm_groups = 8;
    for (int i = 0; i < VAE_LEVELS; i++) c.vae.encoder_channels[i] = c.vae.decoder_channels[i] = 16;
    OK(checkpoint_random(&c, DT_BF16, 5, &checkpoint, &err));
    OK(context_open(checkpoint, &o, &k, &err));
    return k;
}

/* The soft GPU without what makes it slow, or with a launch that fails. */
static void set_up(uint64_t fail_launch)
{
    struct softgpu_config c;
    test_device("soft sm_90a");
    cr_assert(softgpu_config_from_env(&c));
    c.check_races = 0;
    c.fail_launch = fail_launch;
    cr_assert(softgpu_configure(&c));
}

/* Once a shape's stages are graphs nothing stops between their launches, also with a reference and guidance. */
Test(cuda, nothing_stops_between_graphs)
{
    uint8_t *rgb = calloc(64 * 64, 3);
    struct klein_image reference = {64, 64, rgb};
    struct klein_request q = small(1);
    q.width = q.height = 16;
    q.steps = 2;
    q.guidance = 1;
    set_up(0);
    struct klein *k = open_base();
    check_replay(k, q);
    q.references = &reference;
    q.n_references = 1;
    q.guidance = 3;
    check_replay(k, q);
    klein_close(k);
    free(rgb);
}

static int cancel_at_half(void *user, const struct klein_progress *p)
{
    ++*(int *)user;
    return p->fraction > 0.5;
}

Test(cuda, cancelled_between_steps_and_usable_after)
{
    struct klein *k = open_nano("soft sm_90a", 0);
    struct klein_request q = small(1), cancelled = q;
    struct klein_result result;
    uint64_t want = picture(k, &q);
    int polls = 0;
    cancelled.progress = cancel_at_half;
    cancelled.progress_user = &polls;
    for (int i = 0; i < 3; i++)
        FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(polls > 3);
    cr_assert(picture(k, &q) == want);
    klein_close(k);
}

/* Several images of one call, references, and shapes that take turns in little memory: the same as each alone. */
Test(cuda, plans_are_kept_and_dropped)
{
    struct klein *k = open_nano("soft sm_90a", 1); /* a byte: no plan survives its request */
    uint8_t *rgb = malloc(64 * 64 * 3);
    cr_assert(rgb);
    for (int i = 0; i < 64 * 64 * 3; i++) rgb[i] = (uint8_t)(i * 7 % 251);
    struct klein_image reference = {64, 64, rgb};
    struct klein_request q = small(3), wide = small(3), edit = small(3);
    wide.width = 48;
    edit.references = &reference;
    edit.n_references = 1;
    edit.prompt = "make it green"; /* references are at least 64 x 64 */
    uint64_t want[3] = {picture(k, &q), picture(k, &wide), picture(k, &edit)};
    cr_assert(want[0] != want[2]);
    cr_assert(picture(k, &q) == want[0] && k->plans.hits == 1);
    klein_close(k);

    k = open_nano("soft sm_90a", 0);
    for (int i = 0; i < 2; i++)
        cr_assert(picture(k, &q) == want[0] && picture(k, &wide) == want[1] && picture(k, &edit) == want[2]);
    cr_assert(k->plans.requests == 6 && k->plans.hits == 3 && k->plans.plans == 3);
    struct klein_result result;
    q.images = 3;
    q.seed = 2;
    OK(klein_generate(k, &q, &result, &err));
    q = small(3);
    cr_assert(result.latent_hashes[1] * 31 + fnv1a(result.images[1].rgb, 32 * 32 * 3) == want[0]);
    klein_result_free(&result);
    klein_close(k);
    free(rgb);
}

/* Whether the plan for that width holds memory. */
static int holds(const struct klein *k, int width)
{
    for (int i = 0; i < k->plans.plans; i++)
        if (k->plans.plan[i]->shape.width == width) return k->plans.plan[i]->memory != NULL;
    return 0;
}

/* A budget that lacks a byte for three plans: the one that was not used for longest goes, and comes back. */
Test(cuda, the_oldest_plan_goes_first)
{
    struct klein_request q[3];
    uint64_t want[3];
    set_up(0);
    struct klein *k = open_base();
    for (int i = 0; i < 3; i++) {
        q[i] = small(1);
        q[i].steps = q[i].guidance = 1;
        q[i].width = 16 * (i + 1), q[i].height = 16;
        want[i] = picture(k, &q[i]);
    }
    cr_assert(holds(k, 16) && holds(k, 32) && holds(k, 48));
    k->plans.budget = cache_bytes(&k->plans) - 1;
    cr_assert(picture(k, &q[0]) == want[0]); /* the first is now the latest */
    cr_assert(holds(k, 16) && !holds(k, 32) && holds(k, 48));
    cr_assert(picture(k, &q[1]) == want[1]);
    cr_assert(holds(k, 16) && holds(k, 32) && !holds(k, 48));
    cr_assert(picture(k, &q[2]) == want[2]);
    cr_assert(!holds(k, 16) && holds(k, 32) && holds(k, 48));
    cr_assert(k->plans.plans == 3 && k->plans.hits == 3); /* plans stay, their memory goes */
    klein_close(k);
}

/* More shapes than are kept: the one that was not asked for for longest is forgotten. */
Test(cuda, sixteen_plans_at_most)
{
    struct plan_cache c = {.budget = 0};
    struct shape shape = {.width = 0};
    for (int i = 0; i < CACHE_PLANS; i++) {
        shape.width = i;
        cr_assert(!cache_find(&c, &shape) && cache_add(&c, NULL, &shape, &err));
    }
    cr_assert(c.plans == 16);
    shape.width = 0;
    cr_assert(cache_find(&c, &shape));
    for (int i = 0; i < 2; i++) {
        shape.width = 100 + i;
        cr_assert(!cache_find(&c, &shape) && cache_add(&c, NULL, &shape, &err) && c.plans == 16);
    }
    for (int i = 0; i < CACHE_PLANS; i++) {
        shape.width = i;
        cr_assert(!cache_peek(&c, &shape) == (i == 1 || i == 2), "plan %d", i);
    }
    cache_close(&c, NULL);
    cr_assert(!c.plans);
}

/* Who asks for one graph and gets something else is told so. */
Test(cuda, what_is_not_one_graph_says_so)
{
    static const char *const says[] = {"", "several images are made by graphs of stages",
                                       "soft runs op by op with KLEIN_SYNC"};
    for (int i = 0; i < 3; i++) {
        struct klein_result result;
        struct klein_request q = small(1);
        q.steps = q.guidance = 1;
        q.width = q.height = 16;
        q.graph = KLEIN_GRAPH_REQUEST;
        q.images = i == 1 ? 2 : 1;
        if (i == 2) setenv("KLEIN_SYNC", "1", 1);
        set_up(0);
        struct klein *k = open_base();
        OK(klein_generate(k, &q, &result, &err));
        cr_assert(*says[i] ? strstr(result.warning, says[i]) != NULL : !*result.warning, "\"%s\"",
                  result.warning);
        klein_result_free(&result);
        klein_close(k);
    }
}

#if !SANITIZED
/* On sm_90a: above. */
Test(cuda, two_pictures_of_one_call)
{
    static const char *const chips[] = {"soft sm_80", "soft sm_89"};
    setenv("KLEIN_SOFT_RACES", "0", 1); /* they are looked for elsewhere */
    for (int chip = 0; chip < 2; chip++) {
        struct klein *k = open_nano(chips[chip], 0);
        struct klein_request q = small(5);
        struct klein_result result;
        q.steps = 1, q.images = 2;
        OK(klein_generate(k, &q, &result, &err));
        q.images = 1;
        for (int i = 0; i < 2; i++) {
            q.seed = 5 + (uint64_t)i;
            cr_assert(result.latent_hashes[i] * 31 + fnv1a(result.images[i].rgb, 32 * 32 * 3) ==
                          picture(k, &q),
                      "%s: picture %d", chips[chip], i);
        }
        klein_result_free(&result);
        klein_close(k);
    }
}
#endif

Test(cuda, devices_that_are_not_there)
{
    struct device *dev;
    setenv("KLEIN_SOFT", "sm_90a:2", 1);
    FAILS(device_open("soft:2", &(struct device_options){0}, &dev, &err), KLEIN_E_NO_DEVICE, "2");
    OK(device_open("soft:1", &(struct device_options){0}, &dev, &err));
    cr_assert(!strcmp(dev->name, "soft") && dev->act == DT_BF16 && dev->memory > 0);
    device_close(dev);
    FAILS(device_open("soft:x", &(struct device_options){0}, &dev, &err), KLEIN_E_NO_DEVICE,
          "does not exist");
    FAILS(device_open("cpu:1", &(struct device_options){0}, &dev, &err), KLEIN_E_NO_DEVICE, "does not exist");
}

Test(cuda, a_card_that_is_too_old)
{
    struct device *dev;
    setenv("KLEIN_SOFT", "sm_75", 1);
    FAILS(device_open("soft", &(struct device_options){0}, &dev, &err), KLEIN_E_UNSUPPORTED,
          "has compute capability 7.5: klein needs 8.0 (Ampere) or later; use --device cpu");
}

/* A device that is lost amid a request, op by op or in a graph: the error says what failed where; the context gives no picture any more,
 * and can be closed. */
static void check_lost(int before, enum klein_graph graph)
{
    struct klein_result result;
    set_up(0);
    struct klein *k = open_nano("soft sm_90a", 0);
    struct klein_request q = small(1);
    q.graph = graph;
    for (int i = 0; i < before; i++) picture(k, &q);
    set_up(60);
    for (int i = 0; i < 2; i++) {
        FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INTERNAL, "CUDA_ERROR_LAUNCH_FAILED");
        cr_assert(strstr(err.message, "Soft GPU sm_90a"), "%s", err.message);
        cr_assert(i || strstr(err.message, "fails as asked for, as number 60"), "%s", err.message);
        klein_result_free(&result);
    }
    klein_close(k);
}

Test(cuda, a_device_is_lost)
{
    check_lost(0, KLEIN_GRAPH_STAGES);
    check_lost(2, KLEIN_GRAPH_STAGES);
    check_lost(2, KLEIN_GRAPH_REQUEST);
}

/* What loading pins is staging alone (place.c), whatever the weights take; closing gives it back. */
Test(cuda, pinned_memory_while_loading)
{
    struct softgpu_counters c;
    softgpu_reset_counters();
    klein_close(open_nano("soft sm_90a", 0));
    softgpu_read_counters(&c);
    cr_assert(c.pinned_peak > 0 && c.pinned_peak <= 32 << 20, "%d bytes", (int)c.pinned_peak);
    softgpu_reset_counters();
    softgpu_read_counters(&c);
    cr_assert(c.pinned_peak == 0);
}

#if !SANITIZED
/* Of wall time where the machine is idle, else of processor time. The steps of the first request, and all of the second, are
 * captured and launched. */
Test(cuda, the_demo_within_a_minute)
{
    struct klein *k = open_nano("soft sm_90a", 0);
    struct klein_request q = small(1);
    q.width = q.height = 0;
    q.graph = KLEIN_GRAPH_STAGES;
    for (int i = 0; i < 2; i++) {
        struct klein_result result;
        const double wall = clock_seconds(), begin = (double)clock() / CLOCKS_PER_SEC;
        OK(klein_generate(k, &q, &result, &err));
        const double took = fmin(clock_seconds() - wall, (double)clock() / CLOCKS_PER_SEC - begin);
        cr_assert(result.width == 128 && result.steps == 4);
        cr_assert(took <= 60, "%.1f s", took);
        cr_log_info("request %d: %.1f s", i, took);
        klein_result_free(&result);
    }
    klein_close(k);
}
#endif

/* A card that is too small for the weights: an error with what is free, and nothing left behind. */
Test(cuda, weights_that_do_not_fit)
{
    struct klein *k;
    setenv("KLEIN_SOFT", "sm_90a", 1);
    setenv("KLEIN_SOFT_MEMORY", "72", 1);
    struct klein_open_options o = {
        .size = sizeof o, .model = KLEIN_SOURCE_DIR "/weights/nano", .device = "soft"};
    FAILS(klein_open(&o, &k, &err), KLEIN_E_NO_MEMORY, "are free");
    cr_assert(!strstr(err.message, "working memory"), "it is not known yet: %s", err.message);
}
