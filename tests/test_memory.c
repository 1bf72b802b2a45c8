/* Memory of a GPU planned before it is taken, on the soft GPU with a card of any size: what is planned is what is placed; a text encoder
 * that is freed after use; requests that are refused, and what they are told to do instead. About 25 s. */
#include "support/support.h"

#include "../engine/memory.h"
#include "../kernels/cuda/cuda.h"
#include "../kernels/soft/softgpu.h"

#include <stdlib.h>
#include <string.h>

static struct klein_error err;

/* A card with room for so many bytes beside the scratch memory. */
static enum klein_status open_on(const char *arch, size_t room, enum klein_precision precision,
                                 struct klein **k)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.memory = gpu_scratch_bytes + room;
    c.check_races = 0;
    cr_assert(softgpu_configure(&c));
    struct klein_open_options o = {.size = sizeof o,
                                   .model = KLEIN_SOURCE_DIR "/weights/nano",
                                   .device = "soft",
                                   .threads = 1,
                                   .plan_bytes = 1u << 30,
                                   .precision = precision};
    return klein_open(&o, k, &err);
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

static uint64_t picture(struct klein *k, const struct klein_request *q, const char *warning)
{
    struct klein_result result;
    OK(klein_generate(k, q, &result, &err));
    cr_assert(warning ? strstr(result.warning, warning) != NULL : !*result.warning, "warning \"%s\"",
              result.warning);
    uint64_t hash = result.latent_hashes[0] * 31 +
                    fnv1a(result.images[0].rgb, (size_t)result.width * (size_t)result.height * 3);
    klein_result_free(&result);
    return hash;
}

static size_t placed(const struct klein *k)
{
    struct cuda_facts facts;
    cr_assert(cuda_facts(k->device, &facts));
    return facts.weights;
}

static size_t arena_of(const struct klein *k, const struct klein_request *q)
{
    struct plan plan;
    OK(plan_make(k->model->cfg, k->act, q, &plan, &err));
    size_t bytes = plan.arena_bytes;
    plan_free(&plan);
    return bytes;
}

static struct memory_need need_of(enum klein_precision precision, const struct klein_request *q)
{
    struct klein *k;
    struct memory_need n;
    OK(open_on("sm_90a", 1u << 30, precision, &k));
    memory_of_weights(k->checkpoint, k->act, precision == KLEIN_PRECISION_FP8, &n);
    cr_assert(n.weights[PART_TEXT] && n.weights[PART_VAE] && placed(k) == memory_weights(&n));
    n.arena = arena_of(k, q);
    klein_close(k);
    return n;
}

Test(memory, what_is_planned_is_placed)
{
    struct klein_request q = small(1);
    struct memory_need bf16 = need_of(KLEIN_PRECISION_BF16, &q), fp8 = need_of(KLEIN_PRECISION_FP8, &q);
    cr_assert(bf16.weights[PART_TEXT] == fp8.weights[PART_TEXT] &&
              bf16.weights[PART_VAE] == fp8.weights[PART_VAE]);
    cr_assert(fp8.weights[PART_TRANSFORMER] < 0.62 * (double)bf16.weights[PART_TRANSFORMER] &&
              fp8.weights[PART_TRANSFORMER] > 0.5 * (double)bf16.weights[PART_TRANSFORMER]);
}

/* What "auto" asks. */
Test(memory, what_a_card_can_hold)
{
    const size_t picture = (size_t)1 << 30;
    struct klein *k;
    OK(open_on("sm_90a", 1u << 30, KLEIN_PRECISION_BF16, &k));
    struct memory_need bf16, fp8;
    memory_of_weights(k->checkpoint, DT_BF16, 0, &bf16);
    memory_of_weights(k->checkpoint, DT_BF16, 1, &fp8);
    cr_assert(context_can_hold(k, memory_in_turns(&bf16) + picture, 0));
    cr_assert(!context_can_hold(k, memory_in_turns(&bf16) + picture - 1, 0));
    cr_assert(context_can_hold(k, memory_in_turns(&fp8) + picture, 1));
    klein_close(k);
}

/* Room for all weights and the request, to the byte; a byte less; room for it in turns, to the byte: the same picture. */
Test(memory, the_encoder_is_freed_after_use)
{
    struct klein_request q = small(1), other = small(2);
    const struct memory_need n = need_of(KLEIN_PRECISION_BF16, &q);
    struct klein *k;
    other.prompt = "a heart";
    OK(open_on("sm_90a", memory_whole(&n), KLEIN_PRECISION_BF16, &k));
    const uint64_t want = picture(k, &q, NULL), want_other = picture(k, &other, NULL);
    cr_assert(placed(k) == memory_weights(&n));
    klein_close(k);

    OK(open_on("sm_90a", memory_whole(&n) - 1, KLEIN_PRECISION_BF16, &k));
    cr_assert(placed(k) == memory_weights(&n)); /* they have room, until a request comes */
    cr_assert(picture(k, &q, "do not fit") == want);
    cr_assert(placed(k) == n.weights[PART_TRANSFORMER] + n.weights[PART_VAE]);
    klein_close(k);

    OK(open_on("sm_90a", memory_in_turns(&n), KLEIN_PRECISION_BF16, &k));
    cr_assert(placed(k) == 0);
    cr_assert(picture(k, &q, "do not fit") == want);
    cr_assert(picture(k, &other, "do not fit") == want_other);
    /* A size that has room with all weights in place, by turns with one that has not. */
    q.width = q.height = 16;
    const size_t arena = arena_of(k, &q);
    klein_close(k);
    OK(open_on("sm_90a", memory_weights(&n) + arena, KLEIN_PRECISION_BF16, &k));
    cr_assert(picture(k, &other, "do not fit") == want_other);
    const uint64_t little = picture(k, &q, NULL);
    cr_assert(placed(k) == memory_weights(&n));
    cr_assert(picture(k, &other, "do not fit") == want_other && picture(k, &q, NULL) == little);
    klein_close(k);
}

/* A cancelled request leaves the weights as they are; the next one finds what it needs. */
static int cancel_in_text(void *user, const struct klein_progress *p)
{
    return p->stage == KLEIN_STAGE_TEXT && p->fraction > 0;
}

Test(memory, cancelled_with_the_encoder_in_place)
{
    struct klein_request q = small(1), cancelled = q;
    const struct memory_need n = need_of(KLEIN_PRECISION_BF16, &q);
    struct klein_result result;
    struct klein *k;
    OK(open_on("sm_90a", memory_in_turns(&n), KLEIN_PRECISION_BF16, &k));
    const uint64_t want = picture(k, &q, "do not fit");
    cancelled.progress = cancel_in_text;
    FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(picture(k, &q, "do not fit") == want);
    klein_close(k);
}

/* Requests without room: told at once, with what would fit and only that. */
static void check_offer(const char *arch, size_t room, struct klein_request q, const char *const *said,
                        const char *const *unsaid)
{
    struct klein *k;
    struct klein_result result;
    OK(open_on(arch, room, KLEIN_PRECISION_BF16, &k));
    struct klein_request tiny = small(1);
    tiny.width = tiny.height = 16;
    const uint64_t before = picture(k, &tiny, "");
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_NO_MEMORY, "of the memory of soft");
    for (; *said; said++) cr_assert(strstr(err.message, *said), "\"%s\" not in: %s", *said, err.message);
    for (; *unsaid; unsaid++) cr_assert(!strstr(err.message, *unsaid), "\"%s\" in: %s", *unsaid, err.message);
    cr_assert(picture(k, &tiny, "") == before); /* and nothing is broken */
    klein_close(k);
}

#define TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NO_TEXTS   ((const char *const[]){NULL})

Test(memory, requests_that_do_not_fit_are_refused)
{
    struct klein_request q = small(1), whole = q, edit = q;
    const struct memory_need n = need_of(KLEIN_PRECISION_BF16, &q), f = need_of(KLEIN_PRECISION_FP8, &q);
    /* FP8 where the chip has it, a smaller size in any case */
    check_offer("sm_90a", memory_in_turns(&n) - 1, q, TEXTS("--precision fp8 (", "16x16 ("),
                TEXTS("graph", "references"));
    check_offer("sm_80", memory_in_turns(&n) - 1, q, TEXTS("16x16 ("), TEXTS("fp8", "graph", "references"));
    cr_assert(memory_in_turns(&f) < memory_in_turns(&n));
    /* one graph: the encoder cannot be freed within it */
    whole.graph = KLEIN_GRAPH_REQUEST;
    check_offer("sm_80", memory_whole(&n) - 1, whole, TEXTS("--graph stages, which frees the text encoder"),
                TEXTS("fp8", "references"));
    /* references */
    uint8_t *rgb = calloc(128 * 128, 3);
    struct klein_image reference = {128, 128, rgb};
    edit.references = &reference;
    edit.n_references = 1;
    check_offer("sm_80", memory_in_turns(&n), edit, TEXTS("no references ("), TEXTS("fp8", "graph"));
    free(rgb);
}

Test(memory, models_that_do_not_fit_are_refused)
{
    struct klein_request q = small(1);
    const struct memory_need n = need_of(KLEIN_PRECISION_BF16, &q), f = need_of(KLEIN_PRECISION_FP8, &q);
    struct klein *k;
    const size_t least = n.weights[PART_TRANSFORMER] + n.weights[PART_VAE],
                 least_fp8 = f.weights[PART_TRANSFORMER] + f.weights[PART_VAE];
    FAILS(open_on("sm_90a", least - 1, KLEIN_PRECISION_BF16, &k), KLEIN_E_NO_MEMORY,
          "what would fit: --precision fp8 (");
    FAILS(open_on("sm_80", least - 1, KLEIN_PRECISION_BF16, &k), KLEIN_E_NO_MEMORY, "use --device cpu");
    FAILS(open_on("sm_90a", least_fp8 - 1, KLEIN_PRECISION_BF16, &k), KLEIN_E_NO_MEMORY, "use --device cpu");
    OK(open_on("sm_90a", least, KLEIN_PRECISION_BF16, &k));
    cr_assert(placed(k) == 0);
    klein_close(k);
}
