#include "group.h"
#include "../base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening -------------------------------------------------------------------------------------------- */

static const char *const names[] = {"ulysses", "cfg", "replica"};

static void close_members(struct klein *const *members, int n)
{
    for (int i = n - 1; i >= 0; i--) klein_close(members[i]);
}

/* What member i computes. */
static void share_out(struct group *g)
{
    for (int i = 0; i < g->size; i++) {
        struct klein *k = g->member[i];
        struct share share = {.rank = i, .size = g->size};
        if (g->size > 1 && k->device->exchange) share.copies = !k->device->exchange->direct;
        k->group = g;
        k->rank = i;
        if (g->parallel == KLEIN_PARALLEL_ULYSSES) k->tokens = share;
        if (g->parallel == KLEIN_PARALLEL_CFG) k->passes = share;
    }
}

static enum klein_status check_members(struct klein *const *members, int n, enum klein_parallel parallel,
                                       struct klein_error *err)
{
    const struct model_config *c = members[0]->model->cfg;
    /* A request that any number can share, to see whether this number can share the model. */
    const struct settled s = {.width = 16 * VAE_SCALE, .height = 16 * VAE_SCALE, .guided = !c->distilled};
    const struct share share = {.size = n}, all = {0};
    if ((unsigned)parallel > KLEIN_PARALLEL_REPLICA)
        return fail(err, KLEIN_E_USAGE, "there is no way %d to use several devices", (int)parallel);
    if (n < 1 || n > GROUP_MAX)
        return fail(err, KLEIN_E_USAGE, "%d devices: a group has 1 to %d", n, GROUP_MAX);
    if (parallel == KLEIN_PARALLEL_CFG && n > 2)
        return fail(err, KLEIN_E_USAGE, "cfg takes 2 devices, one per pass, not %d", n);
    if (parallel == KLEIN_PARALLEL_REPLICA || n == 1) return KLEIN_OK;
    if (!members[0]->device->exchange)
        return fail(err, KLEIN_E_UNSUPPORTED, "devices \"%s\" do not work together on one picture",
                    members[0]->device->name);
    return share_check(c, &s, parallel == KLEIN_PARALLEL_ULYSSES ? share : all,
                       parallel == KLEIN_PARALLEL_CFG ? share : all, err);
}

enum klein_status group_open(struct klein *const *members, int n, enum klein_parallel parallel,
                             struct klein **out, struct klein_error *err)
{
    struct device *devices[GROUP_MAX];
    enum klein_status status = check_members(members, n, parallel, err);
    struct group *g = status == KLEIN_OK ? calloc(1, sizeof *g) : NULL;
    *out = NULL;
    if (status == KLEIN_OK && !g) status = fail(err, KLEIN_E_NO_MEMORY, "no memory for a group of devices");
    for (int i = 0; status == KLEIN_OK && i < n; i++) devices[i] = members[i]->device;
    if (status == KLEIN_OK && n > 1 && parallel != KLEIN_PARALLEL_REPLICA)
        status = devices[0]->exchange->join(devices, n, err);
    if (status != KLEIN_OK) {
        free(g);
        close_members(members, n);
        return status;
    }
    g->parallel = parallel;
    g->size = n;
    memcpy(g->member, members, sizeof *members * (size_t)n);
    for (int i = 0; i < n; i++) g->gpus[i] = devices[i]->number;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    share_out(g);
    *out = members[0];
    return KLEIN_OK;
}

void group_info(const struct group *g, struct klein_model_info *info)
{
    info->device = g->member[0]->device->name; /* without its number */
    info->gpus = g->gpus;
    info->n_gpus = g->size;
    info->parallel = names[g->parallel];
}

/* Its devices work on one picture, each waiting for the others. */
static int exchanges(const struct group *g)
{
    return g->parallel != KLEIN_PARALLEL_REPLICA && g->size > 1;
}

/* They have to replay the same graphs (device.h). */
static int alike(const struct group *g)
{
    return exchanges(g) && g->member[0]->device->exchange->alike;
}

static void forget_graphs(struct group *g)
{
    struct klein_error none = {0};
    for (int i = 0; i < g->size; i++) {
        device_bind(g->member[i]->device, &none);
        cache_forget_graphs(&g->member[i]->plans, g->member[i]->device);
    }
}

void group_close(struct group *g)
{
    if (alike(g)) forget_graphs(g); /* of all, before any is closed */
    for (int i = 0; i < g->size; i++) g->member[i]->group = NULL;
    close_members(g->member, g->size);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

/* ---- meeting and stopping ------------------------------------------------------------------------------- */

int group_stopped(struct group *g)
{
    return __atomic_load_n(&g->stopped, __ATOMIC_ACQUIRE);
}

void group_stop(struct klein *k, const struct klein_error *why)
{
    struct group *g = k->group;
    pthread_mutex_lock(&g->lock);
    /* Who only ended because the others did has nothing to say. */
    if (g->failed < 0 && !(g->stopped && why->status == KLEIN_E_CANCELLED)) {
        g->failed = k->rank;
        g->err = *why;
    }
    __atomic_store_n(&g->stopped, 1, __ATOMIC_RELEASE);
    if (exchanges(g)) k->device->exchange->stop(k->device);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

/* Until all have come, or one has stopped the group. */
static enum klein_status meet(struct group *g, struct klein_error *err)
{
    pthread_mutex_lock(&g->lock);
    int meeting = g->meetings;
    if (++g->arrived == g->size) {
        g->arrived = 0;
        g->meetings++;
        pthread_cond_broadcast(&g->changed);
    }
    while (g->meetings == meeting && !g->stopped) pthread_cond_wait(&g->changed, &g->lock);
    int met = g->meetings != meeting;
    pthread_mutex_unlock(&g->lock);
    return met ? KLEIN_OK : fail(err, KLEIN_E_CANCELLED, "another device of the group failed");
}

enum klein_status group_begin(struct klein *k, struct cached_plan *plan, int turns, struct klein_error *err)
{
    struct group *g = k->group;
    if (!exchanges(g)) return KLEIN_OK;
    g->arena[k->rank] = plan->memory;
    g->captured[k->rank] = turns ? -1 : stages_captured(&plan->stages);
    TRY(meet(g, err));
    TRY(k->device->exchange->begin(k->device, g->arena, err));
    int same = !turns;
    for (int i = 0; i < g->size; i++) same = same && g->captured[i] == g->captured[k->rank];
    if (alike(g) && !same) stages_free(k->device, &plan->stages);
    return meet(g, err);
}

/* ---- a request ------------------------------------------------------------------------------------------ */

/* A member's part. */
struct part {
    struct klein *k;
    struct klein_request request;
    op_observer *observer;
    void *observer_user;
    struct klein_result result;
    int none; /* no picture is left for it */
    int warm; /* group_warm_up */
    pthread_t thread;
    int started;
};

static void *run_part(void *user)
{
    struct part *p = user;
    struct klein_error err = {0};
    enum klein_status status =
        p->warm ? context_warm_alone(p->k, &p->request, &err)
                : context_generate_alone(p->k, &p->request, p->observer, p->observer_user, &p->result, &err);
    if (status != KLEIN_OK) group_stop(p->k, &err);
    return NULL;
}

/* Consecutive pictures for each replica; the first ones have one more. */
static void some_pictures(struct part *p, int images)
{
    int rank = p->k->rank, size = p->k->group->size, first = (images * rank + size - 1) / size;
    p->request.images = (images * (rank + 1) + size - 1) / size - first;
    p->request.seed += (uint64_t)first;
    p->none = !p->request.images;
}

/* The first member's progress stands for all; the others report nothing. */
struct progress {
    const struct klein_request *request;
    int images;
};

static int on_progress(void *user, const struct klein_progress *p)
{
    const struct progress *all = user;
    struct klein_progress q = *p;
    q.images = all->images;
    return all->request->progress(all->request->progress_user, &q);
}

static void make_parts(struct group *g, struct part *parts, const struct klein_request *request, int images,
                       int observed)
{
    for (int i = 0; i < g->size; i++) {
        struct part *p = &parts[i];
        *p = (struct part){.k = g->member[i], .request = *request};
        if (i) {
            p->request.progress = NULL;
            p->request.tap = NULL;
            p->request.finished = NULL;
        }
        if (g->parallel == KLEIN_PARALLEL_REPLICA) some_pictures(p, images);
        /* Who looks at the first device's ops makes it run them as they come. */
        if (alike(g) && (observed || request->tap)) p->request.graph = KLEIN_GRAPH_OFF;
    }
}

/* The pictures of the other replicas behind those of the first; the latter's result becomes that of all. */
static enum klein_status gather(struct group *g, struct part *parts, const struct klein_request *request,
                                int images, struct klein_result *result, struct klein_error *err)
{
    size_t n = (size_t)images;
    struct klein_image *pictures = realloc(result->images, n * sizeof *pictures);
    if (pictures) result->images = pictures;
    uint64_t *seeds = realloc(result->seeds, n * sizeof *seeds);
    if (seeds) result->seeds = seeds;
    uint64_t *hashes = realloc(result->latent_hashes, n * sizeof *hashes);
    if (hashes) result->latent_hashes = hashes;
    float **latents = NULL;
    if (result->latents && (latents = realloc(result->latents, n * sizeof *latents)))
        result->latents = latents;
    if (!pictures || !seeds || !hashes || (result->latents && !latents))
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for %d images", images);
    for (int i = 1; i < g->size; i++) {
        struct klein_result *from = &parts[i].result;
        for (int j = 0; j < from->n_images; j++) {
            int to = result->n_images++;
            pictures[to] = from->images[j];
            seeds[to] = from->seeds[j];
            hashes[to] = from->latent_hashes[j];
            from->images[j].rgb = NULL;
            if (latents) {
                latents[to] = from->latents[j];
                from->latents[j] = NULL;
            }
            if (request->finished) request->finished(request->finished_user, to, result);
        }
    }
    return KLEIN_OK;
}

/* The first failure, and whose it was. */
static enum klein_status failure(const struct group *g, struct klein_error *err)
{
    if (g->failed < 0) return KLEIN_OK;
    if (g->err.status == KLEIN_E_CANCELLED) return fail(err, g->err.status, "%s", g->err.message);
    const struct device *dev = g->member[g->failed]->device;
    return g->size == 1 ? fail(err, g->err.status, "%s", g->err.message)
                        : fail(err, g->err.status, "%s:%d: %s", dev->name, dev->number, g->err.message);
}

static void run_parts(struct group *g, struct part *parts)
{
    g->stopped = g->arrived = 0;
    g->failed = -1;
    for (int i = 1; i < g->size; i++) {
        struct klein_error err = {0};
        if (parts[i].none) continue;
        parts[i].started = !pthread_create(&parts[i].thread, NULL, run_part, &parts[i]);
        if (parts[i].started) continue;
        fail(&err, KLEIN_E_NO_MEMORY, "no thread can be started");
        group_stop(g->member[i], &err);
    }
    if (!parts[0].none) run_part(&parts[0]);
    for (int i = 1; i < g->size; i++)
        if (parts[i].started) pthread_join(parts[i].thread, NULL);
    if (g->stopped && alike(g)) forget_graphs(g);
    /* Only now nobody writes to another's memory any more. */
    struct klein_error none = {0};
    for (int i = g->size - 1; i >= 0; i--) {
        device_bind(g->member[i]->device, &none);
        cache_trim(&g->member[i]->plans, g->member[i]->device);
    }
}

static enum klein_status check_request(const struct group *g, const struct klein_request *q,
                                       struct klein_error *err)
{
    if (q->images < 0 || q->images > KLEIN_MAX_IMAGES)
        return fail(err, KLEIN_E_USAGE, "%d images: must be from 1 to %d", q->images, KLEIN_MAX_IMAGES);
    if (g->parallel == KLEIN_PARALLEL_ULYSSES && g->size > 1 && q->tap)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "intermediate tensors are spread over the devices with %s: take one device",
                    names[g->parallel]);
    if (g->parallel == KLEIN_PARALLEL_REPLICA && g->size > 1 && q->tap && q->images > 1)
        return fail(err, KLEIN_E_UNSUPPORTED, "intermediate tensors of several pictures: take one device");
    return KLEIN_OK;
}

enum klein_status group_generate(struct group *g, const struct klein_request *request, op_observer *observer,
                                 void *observer_user, struct klein_result *result, struct klein_error *err)
{
    struct part parts[GROUP_MAX];
    const int images = request->images ? request->images : 1;
    const double begin = clock_seconds();
    struct progress progress = {request, images};
    *result = (struct klein_result){0};
    *err = (struct klein_error){0};
    TRY(check_request(g, request, err));
    make_parts(g, parts, request, images, observer != NULL);
    parts[0].observer = observer;
    parts[0].observer_user = observer_user;
    if (request->progress) {
        parts[0].request.progress = on_progress;
        parts[0].request.progress_user = &progress;
    }
    run_parts(g, parts);
    enum klein_status status = failure(g, err);
    *result = parts[0].result;
    if (status == KLEIN_OK && g->parallel == KLEIN_PARALLEL_REPLICA)
        status = gather(g, parts, request, images, result, err);
    for (int i = 1; i < g->size; i++) klein_result_free(&parts[i].result);
    result->total_seconds = clock_seconds() - begin;
    if (status != KLEIN_OK) klein_result_free(result);
    return status;
}

enum klein_status group_warm_up(struct group *g, const struct klein_request *request, struct klein_error *err)
{
    struct part parts[GROUP_MAX];
    for (int i = 0; i < g->size; i++)
        parts[i] = (struct part){.k = g->member[i], .request = *request, .warm = 1};
    run_parts(g, parts);
    return failure(g, err);
}
