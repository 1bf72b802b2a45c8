#include "group.h"
#include "memory.h"

#include "../base/clock.h"
#include "../kernels/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* Options as this version knows them: what an older caller's shorter struct lacks is zero. */
static enum klein_status read_options(const struct klein_open_options *from, struct klein_open_options *to,
                                      struct klein_error *err)
{
    *to = (struct klein_open_options){0};
    if (!from || from->size == 0 || from->size > sizeof *to)
        return fail(err, KLEIN_E_USAGE,
                    "klein_open: options->size must be sizeof(struct klein_open_options)");
    memcpy(to, from, from->size);
    return KLEIN_OK;
}

/* Room that a card must have beside the weights for "auto" to take it: for a picture. */
#define PICTURE_ROOM ((size_t)1 << 30)

static size_t room_needed(const struct klein *k, int fp8)
{
    struct memory_need n;
    memory_of_weights(k->checkpoint, DT_BF16, fp8, &n);
    n.arena = PICTURE_ROOM;
    return memory_in_turns(&n);
}

int context_can_hold(const struct klein *k, size_t bytes, int fp8)
{
    return room_needed(k, fp8) <= bytes;
}

/* For "auto": whether a GPU can hold the model. */
static enum klein_status check_room(void *user, struct device *gpu, struct klein_error *why)
{
    const struct klein *k = user;
    const size_t room = gpu->available(gpu);
    struct cuda_facts facts;
    if (context_can_hold(k, room, k->fp8)) return KLEIN_OK;
    cuda_facts(gpu, &facts);
    return fail(why, KLEIN_E_NO_MEMORY, "%s has %.2f GiB free, the weights and a picture need %.2f GiB",
                facts.name, (double)room / 0x1p30, (double)room_needed(k, k->fp8) / 0x1p30);
}

static enum klein_status open_device(struct klein *k, const struct klein_open_options *o,
                                     struct klein_error *err)
{
    struct device_options options = {.threads = o->threads};
    if (o->threads < 0 || o->threads > 4096)
        return fail(err, KLEIN_E_USAGE, "%d threads: must be from 1 to 4096 (0: all)", o->threads);
    if (o->precision != KLEIN_PRECISION_BF16 && o->precision != KLEIN_PRECISION_FP8)
        return fail(err, KLEIN_E_USAGE, "there is no precision %d", (int)o->precision);
    k->fp8 = o->precision == KLEIN_PRECISION_FP8;
    if (!o->device || !strcmp(o->device, "auto"))
        TRY(device_open_best(&options, check_room, k, &k->device, k->no_gpu, err));
    else
        TRY(device_open(o->device, &options, &k->device, err));
    if (!k->device->computes)
        return fail(err, KLEIN_E_NO_DEVICE, "device \"%s\" computes nothing: it only plans", o->device);
    k->device_label = device_label(k->device->name, k->device->number);
    cuda_use_tuned(k->device, KLEIN_VERSION, &k->warning);
    k->plans.budget = o->plan_bytes ? o->plan_bytes : k->device->memory / 4;
    k->act = o->dtype == KLEIN_DTYPE_F32 ? DT_F32 : o->dtype == KLEIN_DTYPE_BF16 ? DT_BF16 : k->device->act;
    return KLEIN_OK;
}

/* Whether the device multiplies weights that are in e4m3 in the files. */
static int quantised_files(const struct klein *k)
{
    struct checkpoint_entry e;
    for (int i = 0; k->device->place && checkpoint_entries(k->checkpoint, i, &e); i++)
        if (e.dtype == DT_F8E4M3) return 1;
    return 0;
}

/* Seconds since *begin, which is then now. */
static double lap(double *begin)
{
    const double before = *begin;
    *begin = clock_seconds();
    return *begin - before;
}

enum klein_status context_open(struct checkpoint *checkpoint, const struct klein_open_options *options,
                               struct klein **out, struct klein_error *err)
{
    *out = NULL;
    struct klein *k = calloc(1, sizeof *k);
    struct model *m = malloc(sizeof *m);
    if (!k || !m) {
        free(k);
        free(m);
        checkpoint_close(checkpoint);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a model context");
    }
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&k->busy, &attributes);
    pthread_mutexattr_destroy(&attributes);
    k->checkpoint = checkpoint;
    k->model = m;
    double begin = clock_seconds();
    enum klein_status status = queue_open(k, err);
    if (status == KLEIN_OK) status = model_bind(m, checkpoint, err);
    if (status == KLEIN_OK) status = open_device(k, options, err);
    k->times.device = lap(&begin);
    if (status == KLEIN_OK) status = memory_open(k, err);
    k->times.weights = lap(&begin);
    k->fp8 = status == KLEIN_OK && (k->fp8 || quantised_files(k));
    if (status == KLEIN_OK && checkpoint_tokenizer_dir(checkpoint))
        status = tokenizer_open(checkpoint_tokenizer_dir(checkpoint), &k->tokenizer, err);
    k->times.tokenizer = lap(&begin);
    if (status != KLEIN_OK) {
        klein_close(k);
        return status;
    }
    *out = k;
    return KLEIN_OK;
}

static enum klein_status open_files(void *unused, const struct klein_open_options *o, struct klein **out,
                                    struct klein_error *err)
{
    struct checkpoint *checkpoint;
    struct checkpoint_paths paths = {.model = o->model,
                                     .transformer = o->transformer,
                                     .text_encoder = o->text_encoder,
                                     .vae = o->vae,
                                     .variant = (int)o->variant};
    const double begin = clock_seconds();
    TRY(checkpoint_open(&paths, &checkpoint, err));
    if (!checkpoint_tokenizer_dir(checkpoint)) {
        checkpoint_close(checkpoint);
        return fail(err, KLEIN_E_MODEL_MISSING,
                    "%s has no tokenizer: tokenizer/tokenizer.json, or vocab.json and merges.txt, is missing "
                    "beside the text encoder",
                    o->model ? o->model : o->text_encoder);
    }
    const double files = clock_seconds() - begin;
    TRY(context_open(checkpoint, o, out, err));
    (*out)->times.files = files;
    return KLEIN_OK;
}

static enum klein_status check_gpus(const struct klein_open_options *o, struct klein_error *err)
{
    if (o->n_gpus < 0 || o->n_gpus > GROUP_MAX || !o->gpus)
        return fail(err, KLEIN_E_USAGE, "%d GPUs: a group has 1 to %d", o->n_gpus, GROUP_MAX);
    for (int i = 0; i < o->n_gpus; i++)
        for (int j = 0; j < i; j++)
            if (o->gpus[i] == o->gpus[j])
                return fail(err, KLEIN_E_USAGE, "GPU %d is named twice", o->gpus[i]);
    if (o->device && strcmp(o->device, "cuda") && strcmp(o->device, "soft"))
        return fail(err, KLEIN_E_USAGE,
                    "device \"%s\" with several GPUs: it must be cuda or soft, and no more", o->device);
    return KLEIN_OK;
}

/* One member of a group on its way. */
struct opening {
    struct klein_open_options options; /* its device is `device` */
    char device[32];
    context_opener *open;
    void *user;
    struct klein *k;
    struct klein_error err;
    pthread_t thread;
    int started;
};

static void *open_member(void *user)
{
    struct opening *o = user;
    if (o->open(o->user, &o->options, &o->k, &o->err) != KLEIN_OK) o->k = NULL;
    return NULL;
}

/* Side by side: each card loads all weights. If several fail the first one's error is that of all. */
enum klein_status context_open_several(const struct klein_open_options *o, context_opener *open, void *user,
                                       struct klein **out, struct klein_error *err)
{
    struct opening opening[GROUP_MAX];
    struct klein *members[GROUP_MAX];
    const struct opening *failed = NULL;
    const int n = o->n_gpus;
    TRY(check_gpus(o, err));
    for (int i = 0; i < n; i++) {
        struct opening *m = &opening[i];
        *m = (struct opening){.options = *o, .open = open, .user = user};
        snprintf(m->device, sizeof m->device, "%s:%d", o->device ? o->device : "cuda", o->gpus[i]);
        m->options.device = m->device;
        m->started = i + 1 < n && !pthread_create(&m->thread, NULL, open_member, m);
        if (!m->started) open_member(m); /* the last one, or there are no more threads */
    }
    for (int i = 0; i < n; i++) {
        if (opening[i].started) pthread_join(opening[i].thread, NULL);
        members[i] = opening[i].k;
        if (!failed && !members[i]) failed = &opening[i];
    }
    if (!failed) return group_open(members, n, o->parallel, out, err);
    for (int i = n; i--;) klein_close(members[i]);
    *err = failed->err;
    return err->status;
}

EXPORT enum klein_status klein_open(const struct klein_open_options *options, struct klein **out,
                                    struct klein_error *err)
{
    struct klein_open_options o;
    *out = NULL;
    *err = (struct klein_error){0};
    TRY(read_options(options, &o, err));
    if (!o.model && !(o.transformer && o.text_encoder && o.vae))
        return fail(err, KLEIN_E_USAGE,
                    "no model: give its folder, or transformer, text encoder and VAE one by one");
    if (!o.n_gpus && o.parallel != KLEIN_PARALLEL_ULYSSES) /* which is 0: not set */
        return fail(err, KLEIN_E_USAGE,
                    "parallel is %d but n_gpus 0: name the GPUs in gpus and n_gpus, or leave parallel 0",
                    (int)o.parallel);
    return o.n_gpus ? context_open_several(&o, open_files, NULL, out, err) : open_files(NULL, &o, out, err);
}

EXPORT void klein_close(struct klein *k)
{
    struct klein_error none = {0};
    if (!k) return;
    queue_close(k->queue);
    k->queue = NULL;
    if (k->group) {
        group_close(k->group); /* closes all members, this one too */
        return;
    }
    if (k->device) device_bind(k->device, &none);
    pthread_mutex_destroy(&k->busy);
    tokenizer_close(k->tokenizer);
    cache_close(&k->plans, k->device);
    device_close(k->device);
    checkpoint_close(k->checkpoint);
    free(k->model);
    free(k);
}

enum klein_status read_request(const struct klein_request *from, struct klein_request *to,
                               struct klein_error *err)
{
    *to = (struct klein_request){0};
    if (!from || from->size == 0 || from->size > sizeof *to)
        return fail(err, KLEIN_E_USAGE, "request->size must be sizeof(struct klein_request)");
    memcpy(to, from, from->size);
    return KLEIN_OK;
}

enum klein_status context_enter(struct klein *k, struct klein_error *err)
{
    if (pthread_mutex_lock(&k->busy))
        return fail(err, KLEIN_E_USAGE, "the context works on a request, which called this");
    enum klein_status status = device_bind(k->device, err);
    if (status != KLEIN_OK) context_leave(k);
    return status;
}

void context_leave(struct klein *k)
{
    pthread_mutex_unlock(&k->busy);
}

EXPORT enum klein_status klein_generate(struct klein *k, const struct klein_request *request,
                                        struct klein_result *result, struct klein_error *err)
{
    struct klein_request q;
    *result = (struct klein_result){0};
    *err = (struct klein_error){0};
    TRY(read_request(request, &q, err));
    TRY(context_enter(k, err));
    enum klein_status status = context_generate(k, &q, NULL, NULL, result, err);
    context_leave(k);
    return status;
}

static int all_are_warm(struct klein *k, const struct klein_request *q)
{
    for (int i = 0; k->group && i < k->group->size; i++)
        if (!context_is_warm(k->group->member[i], q)) return 0;
    return k->group || context_is_warm(k, q);
}

EXPORT enum klein_status klein_warm_up(struct klein *k, const struct klein_request *requests, int n,
                                       struct klein_error *err)
{
    struct klein_request q;
    *err = (struct klein_error){0};
    TRY(context_enter(k, err));
    for (int i = 0; i < n && err->status == KLEIN_OK; i++)
        if (read_request(&requests[i], &q, err) == KLEIN_OK) context_warm_up(k, &q, err);
    for (int i = 0; i < n && err->status == KLEIN_OK; i++)
        if (read_request(&requests[i], &q, err) == KLEIN_OK && !all_are_warm(k, &q))
            fail(err, KLEIN_E_NO_MEMORY,
                 "request %d of %d is not kept ready: %s keeps %.2f GiB of working memory (plan_bytes), and "
                 "%d "
                 "shapes",
                 i + 1, n, k->device->name, (double)k->plans.budget / 0x1p30, CACHE_PLANS);
    context_leave(k);
    return err->status;
}

EXPORT void klein_result_free(struct klein_result *result)
{
    for (int i = 0; i < result->n_images; i++) free(result->images[i].rgb);
    free(result->images);
    free(result->seeds);
    free(result->latent_hashes);
    for (int i = 0; result->latents && i < result->n_images; i++) free(result->latents[i]);
    free(result->latents);
    free(result->prompt_embeds);
    *result = (struct klein_result){0};
}

EXPORT void klein_model_info(const struct klein *k, struct klein_model_info *info)
{
    const struct model_config *c = k->model->cfg;
    *info = (struct klein_model_info){
        .name = c->name,
        .device = k->device_label.text,
        .dtype = k->act == DT_F32 ? "f32" : "bf16",
        .precision = k->fp8             ? "fp8"
                     : k->act == DT_F32 ? "f32"
                                        : "bf16",
        .license = checkpoint_license(k->checkpoint),
        .distilled = c->distilled,
        .toy = c->toy,
        .default_width = c->default_width,
        .default_height = c->default_height,
        .default_steps = c->default_steps,
        .default_guidance = c->default_guidance,
        .text_length = c->text_length,
        .text_width = c->dit.text_width,
        .no_gpu = *k->no_gpu ? k->no_gpu : NULL,
    };
    if (k->group) group_info(k->group, info);
    struct checkpoint_entry e;
    for (int i = 0; checkpoint_entries(k->checkpoint, i, &e); i++) {
        uint64_t n = 1;
        for (int d = 0; d < e.ndim; d++) n *= (uint64_t)e.shape[d];
        info->parameters += n;
    }
}

EXPORT const char *klein_stage_name(enum klein_stage stage)
{
    static const char *const names[KLEIN_STAGE_COUNT] = {"text", "references", "denoise", "decode"};
    return (unsigned)stage < KLEIN_STAGE_COUNT ? names[stage] : "?";
}

EXPORT const char *klein_version(void)
{
    return KLEIN_VERSION;
}

EXPORT const char *klein_status_name(enum klein_status status)
{
    return status_name(status);
}

EXPORT const char *klein_status_text(enum klein_status status)
{
    return status_text(status);
}
