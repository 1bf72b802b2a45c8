/* Groups decode in bands of rows: the pictures are one device's to rounding, and as near to F32. */
#include "group/group.h"

#include "../engine/group.h"
#include "../engine/noise.h"
#include "../kernels/check/op_cases.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

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
    soft_machine(claim, 2, SOFTGPU_RANDOM);
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
    struct klein_request q = small_request(1);
    q.width = q.height = 64;
    q.steps = 2;
    soft_machine("sm_90a:2", 1, SOFTGPU_LATE);
    for (int i = 0; i < 2; i++) {
        struct klein *k;
        struct klein_open_options o = nano_options(1 + i, KLEIN_PARALLEL_ULYSSES);
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
    struct klein_request q = small_request(4);
    q.width = 64;
    q.height = 16; /* 2 rows of latents: by the first device alone */
    q.steps = 1;
    soft_machine("sm_90a:4", 2, SOFTGPU_RANDOM);
    struct klein *one = open_group(g);
    g.n = 4;
    struct klein *four = open_group(g);
    cr_assert(generate_hash(one, &q) == generate_hash(four, &q));
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
    soft_machine("sm_90a:2", 0, SOFTGPU_LATE);
    struct klein *k = open_group((struct members){.n = 2, .heads = 2});
    struct klein_request q = small_request(1), cancelled = q;
    int polls = 0;
    q.steps = cancelled.steps = 1;
    softgpu_reset_counters();
    const uint64_t want = generate_hash(k, &q);
    softgpu_read_counters(&n);
    cancelled.graph = KLEIN_GRAPH_OFF;
    cancelled.progress = cancel_decoding;
    cancelled.progress_user = &polls;
    FAILS(klein_generate(k, &cancelled, &result, &err), KLEIN_E_CANCELLED, "cancelled");
    cr_assert(polls > 20 && generate_hash(k, &q) == want);
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
