/* async.c: requests that run by themselves, one after the other, in one thread of the context. */
#include "context.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* A submitted request with copies of all it points to. */
struct ticket {
    uint64_t id;
    struct klein_request request;
    char *prompt;
    float *sigmas, *latents, *embeds;
    struct klein_image references[KLEIN_MAX_REFERENCES];
    klein_done *done;
    void *user;
    int (*progress)(void *user, const struct klein_progress *p); /* the caller's */
    void *progress_user;
    atomic_int cancelled;
    struct ticket *next;
};

struct queue {
    struct klein *k;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t more, ended;
    pthread_t worker;
    int started, closing;
    struct ticket *first, **last; /* the first one runs, or is the next to */
    uint64_t ids;
};

static void ticket_free(struct ticket *t)
{
    if (!t) return;
    free(t->prompt);
    free(t->sigmas);
    free(t->latents);
    free(t->embeds);
    for (int i = 0; i < KLEIN_MAX_REFERENCES; i++) free(t->references[i].rgb);
    free(t);
}

/* Sets *to; NULL stays NULL. */
static int copy(void *to, const void *from, size_t bytes)
{
    void *p = from ? malloc(bytes ? bytes : 1) : NULL;
    if (p) memcpy(p, from, bytes);
    memcpy(to, &p, sizeof p);
    return p || !from;
}

static int on_progress(void *user, const struct klein_progress *p)
{
    struct ticket *t = user;
    return atomic_load(&t->cancelled) || (t->progress && t->progress(t->progress_user, p));
}

static int copy_all(struct ticket *t, const struct klein *k, const struct klein_request *q,
                    const struct settled *s)
{
    const struct dit_config *dit = &k->model->cfg->dit;
    const size_t tokens = (size_t)(s->width / VAE_SCALE) * (size_t)(s->height / VAE_SCALE);
    int ok =
        copy(&t->prompt, q->prompt, q->prompt ? strlen(q->prompt) + 1 : 0) &&
        copy(&t->sigmas, q->sigmas, (size_t)s->steps * sizeof(float)) &&
        copy(&t->latents, q->latents, tokens * (size_t)dit->in_channels * sizeof(float)) &&
        copy(&t->embeds, q->prompt_embeds, (size_t)q->embed_rows * (size_t)dit->text_width * sizeof(float));
    for (int i = 0; i < q->n_references && ok; i++) {
        const struct klein_image *from = &q->references[i];
        t->references[i] = (struct klein_image){.width = from->width, .height = from->height};
        ok = copy(&t->references[i].rgb, from->rgb, (size_t)from->width * (size_t)from->height * 3);
    }
    t->request = *q;
    t->request.prompt = t->prompt;
    t->request.sigmas = t->sigmas;
    t->request.latents = t->latents;
    t->request.prompt_embeds = t->embeds;
    t->request.references = t->references;
    t->progress = q->progress;
    t->progress_user = q->progress_user;
    t->request.progress = on_progress; /* which is also how it is cancelled */
    t->request.progress_user = t;
    return ok;
}

static enum klein_status ticket_make(struct klein *k, const struct klein_request *request,
                                     struct ticket **out, struct klein_error *err)
{
    struct klein_request q;
    struct settled s;
    *out = NULL;
    TRY(read_request(request, &q, err));
    if (!q.prompt && !q.prompt_embeds) return fail(err, KLEIN_E_USAGE, "no prompt");
    TRY(settle(k->model->cfg, &q, &s, err));
    struct ticket *t = calloc(1, sizeof *t);
    int ok = t && copy_all(t, k, &q, &s);
    settled_free(&s);
    if (!ok) {
        ticket_free(t);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a copy of the request");
    }
    *out = t;
    return KLEIN_OK;
}

static void run_ticket(struct klein *k, struct ticket *t)
{
    struct klein_result result = {0};
    struct klein_error err = {0};
    enum klein_status status;
    if (atomic_load(&t->cancelled)) {
        status = fail(&err, KLEIN_E_CANCELLED, "cancelled");
    } else {
        status = context_enter(k, &err);
        if (status == KLEIN_OK) {
            status = context_generate(k, &t->request, NULL, NULL, &result, &err);
            context_leave(k);
        }
    }
    t->done(t->user, t->id, status, &result, &err);
    klein_result_free(&result);
}

static void *work(void *user)
{
    struct queue *q = user;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        struct ticket *t = q->first;
        if (!t && q->closing) break;
        if (!t) {
            pthread_cond_wait(&q->more, &q->lock);
            continue;
        }
        pthread_mutex_unlock(&q->lock);
        run_ticket(q->k, t);
        pthread_mutex_lock(&q->lock);
        q->first = t->next;
        if (!q->first) q->last = &q->first;
        pthread_cond_broadcast(&q->ended);
        ticket_free(t);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

static int is_worker(const struct queue *q)
{
    return q->started && pthread_equal(q->worker, pthread_self());
}

enum klein_status queue_open(struct klein *k, struct klein_error *err)
{
    struct queue *q = k->queue = calloc(1, sizeof *q);
    if (!q) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a queue");
    q->k = k;
    q->last = &q->first;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->more, NULL);
    pthread_cond_init(&q->ended, NULL);
    return KLEIN_OK;
}

void queue_close(struct queue *q)
{
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    CHECK(!is_worker(q)); /* klein_close within a callback */
    q->closing = 1;
    for (struct ticket *t = q->first; t; t = t->next) atomic_store(&t->cancelled, 1);
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
    if (q->started) pthread_join(q->worker, NULL);
    pthread_cond_destroy(&q->ended);
    pthread_cond_destroy(&q->more);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

EXPORT enum klein_status klein_submit(struct klein *k, const struct klein_request *request, klein_done *done,
                                      void *user, uint64_t *id, struct klein_error *err)
{
    struct queue *q = k->queue;
    struct ticket *t;
    enum klein_status status = KLEIN_OK;
    *err = (struct klein_error){0};
    *id = 0;
    if (!done) return fail(err, KLEIN_E_USAGE, "klein_submit: nobody would learn of the end: done is NULL");
    TRY(ticket_make(k, request, &t, err));
    t->done = done;
    t->user = user;
    pthread_mutex_lock(&q->lock);
    if (q->closing)
        status = fail(err, KLEIN_E_CANCELLED, "the context is being closed");
    else if (!q->started && pthread_create(&q->worker, NULL, work, q))
        status = fail(err, KLEIN_E_NO_MEMORY, "the system gives no thread for requests");
    if (status == KLEIN_OK) {
        q->started = 1;
        *id = t->id = ++q->ids;
        *q->last = t;
        q->last = &t->next;
        pthread_cond_signal(&q->more);
    }
    pthread_mutex_unlock(&q->lock);
    if (status != KLEIN_OK) ticket_free(t);
    return status;
}

/* With the lock. */
static struct ticket *find(const struct queue *q, uint64_t id)
{
    struct ticket *t = q->first;
    while (t && t->id != id) t = t->next;
    return t;
}

EXPORT int klein_cancel(struct klein *k, uint64_t id)
{
    struct queue *q = k->queue;
    pthread_mutex_lock(&q->lock);
    struct ticket *t = find(q, id);
    if (t) atomic_store(&t->cancelled, 1);
    pthread_mutex_unlock(&q->lock);
    return t != NULL;
}

EXPORT void klein_wait(struct klein *k, uint64_t id)
{
    struct queue *q = k->queue;
    pthread_mutex_lock(&q->lock);
    const uint64_t last = id ? id : q->ids; /* they end in order */
    while (!is_worker(q) && q->first && q->first->id <= last) pthread_cond_wait(&q->ended, &q->lock);
    pthread_mutex_unlock(&q->lock);
}
