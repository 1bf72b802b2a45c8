/* What a user of the library relies on: the same bytes each time, several images, two contexts, progress, cancelling, plans, errors. */
#include "support/alloc.h"
#include "support/fixture.h"

#include "../engine/context.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash_of(struct klein *k, const struct klein_request *q)
{
    struct klein_error err;
    struct klein_result result;
    OK(klein_generate(k, q, &result, &err));
    uint64_t h = result.latent_hashes[0];
    for (size_t i = 0; i < (size_t)result.width * (size_t)result.height * 3; i++)
        h = (h ^ result.images[0].rgb[i]) * 0x100000001b3u;
    klein_result_free(&result);
    return h;
}

Test(pipeline, same_bytes_whatever_the_threads)
{
    struct klein_request q = {
        .size = sizeof q, .prompt = "a cat", .width = 96, .height = 80, .steps = 2, .seed = 7};
    for (int dtype = KLEIN_DTYPE_F32; dtype <= KLEIN_DTYPE_BF16; dtype++) {
        uint64_t hash[3];
        for (int threads = 1; threads <= 3; threads++) {
            struct klein *k = open_tiny("cpu", (enum klein_dtype)dtype, threads, 0);
            hash[threads - 1] = hash_of(k, &q);
            cr_assert(hash_of(k, &q) == hash[threads - 1], "not the same on repetition");
            klein_close(k);
        }
        cr_assert(hash[0] == hash[1] && hash[0] == hash[2], "the number of threads changes the picture");
    }
}

/* What klein_request.finished got, and a cancel once `stop` images were there. */
struct finished {
    int images, stop;
    uint64_t hashes[3], pixels[3];
};

static void on_finished(void *user, int image, const struct klein_result *so_far)
{
    struct finished *f = user;
    cr_assert(image == f->images && so_far->seeds[image] == 41 + (uint64_t)image);
    f->hashes[f->images] = so_far->latent_hashes[image];
    f->pixels[f->images++] = fnv1a(so_far->images[image].rgb, 32 * 48 * 3);
}

static int stop_when_enough(void *user, const struct klein_progress *p)
{
    struct finished *f = user;
    return f->stop && f->images >= f->stop;
}

Test(pipeline, finished_images_are_handed_over_at_once)
{
    struct klein_error err;
    struct klein_result result;
    struct finished all = {0}, some = {.stop = 2};
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 48,
                              .steps = 2,
                              .seed = 41,
                              .images = 3,
                              .progress = stop_when_enough,
                              .progress_user = &all,
                              .finished = on_finished,
                              .finished_user = &all};
    OK(klein_generate(k, &q, &result, &err));
    cr_assert(all.images == 3);
    for (int i = 0; i < 3; i++)
        cr_assert(all.hashes[i] == result.latent_hashes[i] &&
                  all.pixels[i] == fnv1a(result.images[i].rgb, 32 * 48 * 3));
    klein_result_free(&result);
    q.progress_user = q.finished_user = &some;
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(some.images == 2 && some.hashes[1] == all.hashes[1] && some.pixels[0] == all.pixels[0]);
    klein_close(k);
}

Test(pipeline, several_images_are_those_of_their_seeds)
{
    struct klein_error err;
    struct klein_result many, one;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {
        .size = sizeof q, .prompt = "a cat", .width = 32, .height = 48, .steps = 2, .seed = 41, .images = 3};
    OK(klein_generate(k, &q, &many, &err));
    cr_assert(many.n_images == 3);
    for (int i = 0; i < 3; i++) {
        q.images = 1;
        q.seed = 41 + (uint64_t)i;
        OK(klein_generate(k, &q, &one, &err));
        cr_assert(many.seeds[i] == q.seed);
        cr_assert(many.latent_hashes[i] == one.latent_hashes[0], "image %d differs from its seed's", i);
        cr_assert(!memcmp(many.images[i].rgb, one.images[0].rgb, 32 * 48 * 3));
        klein_result_free(&one);
    }
    cr_assert(many.latent_hashes[0] != many.latent_hashes[1]);
    klein_result_free(&many);
    klein_close(k);
}

static void *generate_in_thread(void *hash)
{
    struct klein_request q = {
        .size = sizeof q, .prompt = "two contexts", .width = 32, .height = 32, .steps = 1, .seed = 3};
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 1, 0);
    *(uint64_t *)hash = hash_of(k, &q);
    klein_close(k);
    return NULL;
}

Test(pipeline, two_contexts_at_once)
{
    pthread_t thread[2];
    uint64_t hash[2] = {0, 1}, alone;
    for (int i = 0; i < 2; i++) cr_assert(!pthread_create(&thread[i], NULL, generate_in_thread, &hash[i]));
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    generate_in_thread(&alone);
    cr_assert(hash[0] == alone && hash[1] == alone);
}

static int cancel_at_second_step(void *user, const struct klein_progress *p)
{
    ++*(int *)user;
    return p->stage == KLEIN_STAGE_DENOISE && p->step == 1;
}

Test(pipeline, cancelled_within_a_step)
{
    struct klein_error err;
    struct klein_result result;
    int calls = 0;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 32,
                              .steps = 4,
                              .progress = cancel_at_second_step,
                              .progress_user = &calls};
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(result.n_images == 0 && !result.images && calls > 10);
    q.progress = NULL; /* the context is as good as new */
    OK(klein_generate(k, &q, &result, &err));
    klein_result_free(&result);
    klein_close(k);
}

static int progress_rises(void *user, const struct klein_progress *p)
{
    double *last = user;
    cr_assert(p->fraction >= *last && p->fraction <= 1, "progress went from %g to %g", *last, p->fraction);
    *last = p->fraction;
    return 0;
}

Test(pipeline, progress_rises_to_one)
{
    struct klein_error err;
    struct klein_result result;
    double last = 0;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 1);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 32,
                              .steps = 2,
                              .images = 2,
                              .progress = progress_rises,
                              .progress_user = &last};
    OK(klein_generate(k, &q, &result, &err));
    cr_assert(last == 1);
    klein_result_free(&result);
    klein_close(k);
}

/* Which counts a stage reported, in bits by number finished, and of how many. */
struct counted {
    unsigned seen[KLEIN_STAGE_COUNT];
    int steps[KLEIN_STAGE_COUNT];
};

static int count_steps(void *user, const struct klein_progress *p)
{
    struct counted *c = user;
    c->seen[p->stage] |= 1u << p->step;
    c->steps[p->stage] = p->steps;
    return 0;
}

/* The last of a stage is finished when the next begins. */
Test(pipeline, progress_counts_references_and_steps)
{
    struct klein_error err;
    struct klein_result result;
    struct counted c = {0};
    uint8_t pixels[3 * 64 * 64] = {0};
    const struct klein_image references[3] = {{64, 64, pixels}, {64, 64, pixels}, {64, 64, pixels}};
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 32,
                              .steps = 2,
                              .references = references,
                              .n_references = 3,
                              .progress = count_steps,
                              .progress_user = &c};
    OK(klein_generate(k, &q, &result, &err));
    const unsigned seen[] = {1, 7, 3, 1};
    const int steps[] = {0, 3, 2, 0};
    for (int s = 0; s < KLEIN_STAGE_COUNT; s++)
        cr_assert(c.seen[s] == seen[s] && c.steps[s] == steps[s], "%s: counts %x of %d, expected %x of %d",
                  klein_stage_name((enum klein_stage)s), c.seen[s], c.steps[s], seen[s], steps[s]);
    klein_result_free(&result);
    klein_close(k);
}

struct sixteen {
    unsigned seen;
    float first[128]; /* of reference 0, which is like all even ones */
};

static void look_at_reference(void *user, const struct klein_tap *tap)
{
    struct sixteen *s = user;
    int k;
    if (sscanf(tap->name, "ref_latents.%d", &k) != 1) return;
    cr_assert(k >= 0 && k < KLEIN_MAX_REFERENCES && tap->shape[0] == 16);
    if (!k) memcpy(s->first, tap->data, sizeof s->first);
    cr_assert(!memcmp(s->first, tap->data, sizeof s->first) == (k % 2 == 0), "reference %d", k);
    s->seen |= 1u << k;
}

/* As many as there may be. What the image model makes of them: models/dit_references; one more: bad_requests. */
Test(pipeline, sixteen_references)
{
    struct klein_error err;
    struct klein_result result;
    struct sixteen s = {0};
    uint8_t pixels[2][3 * 64 * 64] = {{0}};
    struct klein_image references[KLEIN_MAX_REFERENCES];
    memset(pixels[1], 200, sizeof pixels[1]);
    for (int k = 0; k < KLEIN_MAX_REFERENCES; k++)
        references[k] = (struct klein_image){64, 64, pixels[k % 2]};
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 32,
                              .steps = 1,
                              .references = references,
                              .n_references = KLEIN_MAX_REFERENCES,
                              .tap = look_at_reference,
                              .tap_user = &s};
    OK(klein_generate(k, &q, &result, &err));
    cr_assert(s.seen == 0xffff && result.n_images == 1, "%x", s.seen);
    klein_result_free(&result);
    klein_close(k);
}

/* Bytes in memory of this process that are mapped from files of a folder. */
static size_t resident(const char *folder)
{
    char line[1024];
    size_t kib, all = 0;
    int counts = 0;
    FILE *f = fopen("/proc/self/smaps", "r");
    cr_assert(f);
    while (fgets(line, sizeof line, f)) {
        if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' ')) counts = strstr(line, folder) != NULL;
        if (counts && sscanf(line, "Rss: %zu kB", &kib) == 1) all += kib << 10;
    }
    fclose(f);
    return all;
}

struct pages {
    size_t text[KLEIN_STAGE_COUNT]; /* of the text encoder: the most in that stage */
};

static int look_at_pages(void *user, const struct klein_progress *p)
{
    struct pages *pages = user;
    size_t bytes = resident(GOLDEN_MODEL("tiny/text_encoder/"));
    if (bytes > pages->text[p->stage]) pages->text[p->stage] = bytes;
    return 0;
}

/* When memory is short nothing of the encoder need stay: its pages are given back before denoising. */
Test(pipeline, pages_of_the_text_encoder_are_given_back)
{
    struct klein_error err;
    struct klein_result result;
    struct pages pages = {0};
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 32,
                              .height = 32,
                              .steps = 1,
                              .progress = look_at_pages,
                              .progress_user = &pages};
    OK(klein_generate(k, &q, &result, &err));
    cr_assert(pages.text[KLEIN_STAGE_TEXT] > 100 << 10, "%zu bytes while it computes",
              pages.text[KLEIN_STAGE_TEXT]);
    cr_assert(!pages.text[KLEIN_STAGE_DENOISE] && !pages.text[KLEIN_STAGE_DECODE], "%zu, %zu bytes are left",
              pages.text[KLEIN_STAGE_DENOISE], pages.text[KLEIN_STAGE_DECODE]);
    klein_result_free(&result);
    klein_close(k);
}

Test(pipeline, bad_requests)
{
    struct klein_error err;
    struct klein_result result;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 1, 0);
    uint8_t pixels[3 * 32 * 32] = {0};
    const struct klein_image small = {32, 32, pixels};
    const float rising[2] = {0.5f, 0.7f};
    const struct {
        struct klein_request q;
        const char *message;
    } cases[] = {
        {{.prompt = "x", .width = 520, .height = 512},
         "width 520: must be a multiple of 16; the nearest is 528"},
        {{.prompt = "x", .width = 512, .height = 0}, "give both width and height"},
        {{.prompt = "x", .width = 8, .height = 512}, "width 8: must be from 16"},
        {{.prompt = "x", .width = 512, .height = 100000}, "height 100000: must be from 16 to 4096"},
        {{.prompt = "x", .width = -16, .height = 16}, "width -16"},
        {{.prompt = "x", .steps = -1}, "-1 steps"},
        {{.prompt = "x", .steps = 1001}, "1001 steps: must be from 1 to 1000"},
        {{.prompt = "x", .images = 65}, "65 images"},
        {{.prompt = "x", .guidance = NAN}, "guidance nan"},
        {{.prompt = "x", .steps = 2, .sigmas = rising}, "sigma 2 is 0.7"},
        {{.prompt = "x", .n_references = 17, .references = &small}, "17 reference images: at most 16"},
        {{.prompt = NULL}, "no prompt"},
        {{.prompt = "\xff"}, "UTF-8"},
        {{.prompt = "x", .prompt_embeds = rising, .embed_rows = 3},
         "prompt embeddings have 3 rows: this model needs 512"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct klein_request q = cases[i].q;
        q.size = sizeof q;
        FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_USAGE, cases[i].message);
    }
    struct klein_request q = {.size = sizeof q, .prompt = "x", .references = &small, .n_references = 1};
    FAILS(klein_generate(k, &q, &result, &err), KLEIN_E_INPUT, "reference 1");
    FAILS(klein_generate(k, &(struct klein_request){.prompt = "x"}, &result, &err), KLEIN_E_USAGE,
          "size must be");
    klein_close(k);

    struct klein *none = k;
    FAILS(klein_open(&(struct klein_open_options){.size = sizeof(struct klein_open_options)}, &none, &err),
          KLEIN_E_USAGE, "no model");
    cr_assert(!none);
    FAILS(klein_open(&(struct klein_open_options){.size = sizeof(struct klein_open_options),
                                                  .model = GOLDEN_MODEL("tiny"),
                                                  .device = "null"},
                     &none, &err),
          KLEIN_E_NO_DEVICE, "computes nothing");
    FAILS(klein_open(&(struct klein_open_options){.size = sizeof(struct klein_open_options),
                                                  .model = GOLDEN_MODEL("tiny"),
                                                  .device = "abacus"},
                     &none, &err),
          KLEIN_E_NO_DEVICE, "abacus");
}

Test(pipeline, warnings)
{
    struct klein_error err;
    struct klein_result result;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    char prompt[8000] = "";
    for (int i = 0; i < 1200; i++) strcat(prompt, i < 1199 ? "word " : "end");
    struct klein_request q = {
        .size = sizeof q, .prompt = prompt, .width = 16, .height = 16, .steps = 1, .guidance = 3};
    OK(klein_generate(k, &q, &result, &err));
    cr_assert(strstr(result.warning, "guidance 3 is ignored"), "%s", result.warning);
    cr_assert(strstr(result.warning, "tokens too long"), "%s", result.warning);
    cr_assert(strstr(result.warning, "word"), "%s", result.warning);
    cr_assert(result.prompt_tokens == 512);
    klein_result_free(&result);
    klein_close(k);
}

Test(pipeline, embeddings_replace_the_encoder)
{
    struct klein_error err;
    struct klein_result with, without;
    struct klein *k = open_tiny("cpu", KLEIN_DTYPE_F32, 2, 0);
    struct st_file *file = golden_open(GOLDEN("encoder.safetensors"));
    char prompt[512] = "";
    struct tensor text = golden(file, "short.prompt");
    memcpy(prompt, text.ptr, (size_t)text.cols);
    struct klein_request q = {.size = sizeof q, .prompt = prompt, .width = 32, .height = 32, .steps = 1};
    OK(klein_generate(k, &q, &without, &err));
    q.prompt_embeds = golden(file, "short.prompt_embeds").ptr;
    q.embed_rows = 512;
    OK(klein_generate(k, &q, &with, &err));
    struct tensor a = tensor_of(with.images[0].rgb, DT_U8, 32, 96),
                  b = tensor_of(without.images[0].rgb, DT_U8, 32, 96);
    cr_assert(max_abs_diff(a, b) <= 1);
    klein_result_free(&with);
    klein_result_free(&without);
    st_close(file);
    klein_close(k);
}

Test(pipeline, plan_matches_the_published_counts)
{
    /* FLOPs per step and of the encoder and decoder: the figures of the model's description, in TFLOP, which count what nothing reads:
     * q, MLP and output of text and references in the last block, and the attention of these q. */
    static const struct {
        int size, references;
        double step, decode;
    } cases[] = {
        {512, 0, 10.17, 2.516}, {512, 1, 44.32, 2.516}, {1024, 0, 34.82, 10.475}, {1024, 2, 128.89, 10.475}};
    struct klein_error err;
    struct model_config config;
    struct klein_image references[2] = {{1024, 1024, NULL}, {1024, 1024, NULL}};
    OK(config_named("klein-4b", &config, &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct plan plan;
        struct klein_request q = {.size = sizeof q,
                                  .width = cases[i].size,
                                  .height = cases[i].size,
                                  .references = references,
                                  .n_references = cases[i].references};
        OK(plan_make(&config, DT_BF16, &q, &plan, &err));
        double step = plan.stage[KLEIN_STAGE_DENOISE].flops / 4e12,
               text = plan.stage[KLEIN_STAGE_TEXT].flops / 1e12;
        const double n_target = plan.width / 16 * (plan.height / 16), rest = 512 + 4096 * cases[i].references,
                     D = 3072,
                     unread = rest * (2 * D * 7 * D + 2 * 4 * D * D + 4 * (n_target + rest) * D) / 1e12,
                     made = cases[i].step - unread;
        double decoded = plan.stage[KLEIN_STAGE_DECODE].flops / 1e12;
        cr_assert(fabs(step / made - 1) < 0.002,
                  "step: %.3f TFLOP, published %.3f, of which %.3f are not read", step, cases[i].step,
                  unread);
        cr_assert(fabs(decoded / cases[i].decode - 1) < 0.005, "decode: %.3f TFLOP, published %.3f", decoded,
                  cases[i].decode);
        cr_assert(text > 2.7 && text < 3.0, "text: %.3f TFLOP", text);
        cr_assert(plan.arena_bytes > (size_t)64 << 20 && plan.arena_bytes < (size_t)1536 << 20, "arena: %zu",
                  plan.arena_bytes);
        plan_free(&plan);
    }
}

/* The decoder's last image of 256 channels at full resolution and one of 128, and a little. */
Test(pipeline, arena_of_four_megapixels)
{
    struct klein_error err;
    struct model_config config;
    const struct klein_image reference = {1024, 1024, NULL};
    OK(config_named("klein-4b", &config, &err));
    for (int i = 0; i < 4; i++) {
        struct plan plan;
        struct klein_request q = {
            .size = sizeof q, .width = 2048, .height = 2048, .references = &reference, .n_references = i / 2};
        OK(plan_make(&config, i % 2 ? DT_F32 : DT_BF16, &q, &plan, &err));
        const size_t images = (size_t)2048 * 2048 * (256 + 128) * (i % 2 ? 4 : 2);
        cr_assert(plan.arena_bytes <= images + images / 20, "%.2f GiB", (double)plan.arena_bytes / 0x1p30);
        plan_free(&plan);
    }
}

Test(pipeline, example)
{
    char command[1024], path[512], header[16] = "";
    snprintf(path, sizeof path, "%s/minimal.ppm", test_dir());
    snprintf(command, sizeof command, "'%s/minimal' '%s' 'a cat' '%s' 2>/dev/null", KLEIN_BINARY_DIR,
             GOLDEN_MODEL("tiny"), path);
    cr_assert(system(command) == 0, "%s", command);
    FILE *f = fopen(path, "rb");
    cr_assert(f && fread(header, 1, 12, f) == 12 && !memcmp(header, "P6\n64 64\n255", 12), "%s", header);
    fclose(f);
}

Test(pipeline, allocation_failures)
{
    struct klein_error err;
    struct klein *k;
    struct klein_result result;
    struct klein_open_options o = {.size = sizeof o,
                                   .model = GOLDEN_MODEL("tiny"),
                                   .device = "cpu",
                                   .dtype = KLEIN_DTYPE_F32,
                                   .threads = 1};
    EACH_ALLOCATION_FAILS(klein_open(&o, &k, &err), klein_close(k));

    k = open_tiny("cpu", KLEIN_DTYPE_F32, 1, 1);
    uint8_t pixels[3 * 64 * 64] = {0};
    const struct klein_image reference = {64, 64, pixels};
    struct klein_request q = {.size = sizeof q,
                              .prompt = "a cat",
                              .width = 16,
                              .height = 16,
                              .steps = 1,
                              .references = &reference,
                              .n_references = 1};
    EACH_ALLOCATION_FAILS(klein_generate(k, &q, &result, &err), klein_result_free(&result));
    klein_close(k);
}
