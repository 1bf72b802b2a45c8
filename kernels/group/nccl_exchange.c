#include "nccl_exchange.h"
#include "nccl_library.h"
#include "staging.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct member {
    struct nccl_group *group;
    struct cuda_device *device;
    ncclComm_t comm;      /* NULL: none */
    pthread_mutex_t busy; /* held while comm is given work: it is not aborted then */
    pthread_t abort;
    int aborting; /* the thread was started */
    char *arena;
    uint64_t exchanges;           /* how many it has announced since begin */
    struct exchange_args said[2]; /* the last two of them */
};

/* Of all devices of a group, in the host's memory. */
struct nccl_group {
    struct nccl nccl;
    int size, left;       /* left: have not been closed */
    int stopped;          /* atomic */
    pthread_mutex_t lock; /* of what the members announce, and of making communicators */
    pthread_cond_t announced;
    struct member member[GROUP_MAX];
};

static struct cuda_device *cuda_of(struct device *dev)
{
    return (struct cuda_device *)dev;
}

static int is_stopped(struct nccl_group *g)
{
    return __atomic_load_n(&g->stopped, __ATOMIC_SEQ_CST);
}

static enum klein_status stopped(struct klein_error *err)
{
    return fail(err, KLEIN_E_CANCELLED, "another device of the group failed");
}

/* ---- communicators ------------------------------------------------------------------------------------------ */

/* Ends the work of the communicator at once, frees it once the graphs with its calls are freed. */
static void *abort_one(void *user)
{
    struct member *m = user;
    m->group->nccl.CommAbort(m->comm);
    return NULL;
}

static void begin_abort(struct member *m)
{
    if (m->comm && !m->aborting) m->aborting = !pthread_create(&m->abort, NULL, abort_one, m);
}

/* All graphs with calls of the communicators have been freed. */
static void end_communicators(struct nccl_group *g)
{
    for (int i = 0; i < g->size; i++) begin_abort(&g->member[i]);
    for (int i = 0; i < g->size; i++) {
        struct member *m = &g->member[i];
        if (m->aborting)
            pthread_join(m->abort, NULL);
        else if (m->comm)
            abort_one(m); /* no thread could be started */
        m->comm = NULL;
        m->aborting = 0;
    }
}

/* A few bytes from each to each: NCCL connects two devices when they first meet, and here none waits for another host thread. */
static enum klein_status connect_all(struct nccl_group *g, struct klein_error *err)
{
    const struct nccl *n = &g->nccl;
    ncclResult_t r = n->GroupStart();
    for (int i = 0; i < g->size; i++)
        for (int j = 0; j < g->size; j++) {
            const struct member *m = &g->member[i];
            char *to = m->device->scratch, *from = to + 4096 + 16 * j;
            if (i == j) continue;
            if (!r) r = n->Send(to, 16, ncclUint8, j, m->comm, m->device->gpu->stream);
            if (!r) r = n->Recv(from, 16, ncclUint8, j, m->comm, m->device->gpu->stream);
        }
    ncclResult_t end = n->GroupEnd();
    TRY(nccl_check(n, r ? r : end, g->member[0].comm, "connecting", err));
    for (int i = 0; i < g->size; i++) {
        TRY(gpu_bind(g->member[i].device->gpu, err));
        TRY(gpu_sync(g->member[i].device->gpu, err));
    }
    return KLEIN_OK;
}

static enum klein_status make_communicators(struct nccl_group *g, struct klein_error *err)
{
    ncclComm_t comms[GROUP_MAX] = {0};
    int ordinals[GROUP_MAX];
    for (int i = 0; i < g->size; i++) ordinals[i] = g->member[i].device->gpu->ordinal;
    TRY(nccl_check(&g->nccl, g->nccl.CommInitAll(comms, g->size, ordinals), NULL, "making communicators",
                   err));
    for (int i = 0; i < g->size; i++) g->member[i].comm = comms[i];
    enum klein_status status = connect_all(g, err);
    if (status != KLEIN_OK) end_communicators(g);
    return status;
}

/* ---- the group ---------------------------------------------------------------------------------------------- */

static void free_group(struct nccl_group *g)
{
    for (int i = 0; i < g->size; i++) pthread_mutex_destroy(&g->member[i].busy);
    pthread_cond_destroy(&g->announced);
    pthread_mutex_destroy(&g->lock);
    nccl_close(&g->nccl);
    free(g);
}

static const struct device_exchange nccl_exchange;

enum klein_status nccl_join(struct device *const *devices, int n, const char *why, struct klein_error *err)
{
    struct nccl nccl;
    struct klein_error e = {0};
    if (nccl_open(cuda_of(devices[0])->cu.soft, &nccl, &e) != KLEIN_OK)
        return fail(err, e.status, "%s, so NCCL is needed: %s; --parallel replica exchanges nothing", why,
                    e.message);
    struct nccl_group *g = calloc(1, sizeof *g);
    if (!g) {
        nccl_close(&nccl);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a group of devices");
    }
    g->nccl = nccl;
    g->size = g->left = n;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->announced, NULL);
    for (int i = 0; i < n; i++) {
        g->member[i].group = g;
        g->member[i].device = cuda_of(devices[i]);
        pthread_mutex_init(&g->member[i].busy, NULL);
    }
    enum klein_status status = make_communicators(g, err);
    if (status != KLEIN_OK) {
        free_group(g);
        return status;
    }
    for (int i = 0; i < n; i++) {
        struct cuda_device *cuda = cuda_of(devices[i]);
        cuda->group.size = n;
        cuda->group.rank = i;
        cuda->group.nccl = g;
        cuda->base.exchange = &nccl_exchange;
    }
    return KLEIN_OK;
}

void nccl_leave(struct cuda_device *cuda)
{
    struct nccl_group *g = cuda->group.nccl;
    if (g->left == g->size) end_communicators(g); /* of all, while all are open */
    if (!--g->left) free_group(g);
}

static enum klein_status begin(struct device *dev, void *const *arenas, struct klein_error *err)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct nccl_group *g = cuda->group.nccl;
    struct member *m = &g->member[cuda->group.rank];
    enum klein_status status = KLEIN_OK;
    pthread_mutex_lock(&g->lock);
    if (is_stopped(g)) { /* the first one that comes: for all */
        end_communicators(g);
        status = make_communicators(g, err);
        if (status == KLEIN_OK) __atomic_store_n(&g->stopped, 0, __ATOMIC_SEQ_CST);
    }
    m->arena = arenas[cuda->group.rank];
    m->exchanges = 0;
    pthread_mutex_unlock(&g->lock);
    return status == KLEIN_OK ? gpu_bind(cuda->gpu, err) : status;
}

static void stop(struct device *dev)
{
    struct nccl_group *g = cuda_of(dev)->group.nccl;
    pthread_mutex_lock(&g->lock);
    int before = is_stopped(g);
    __atomic_store_n(&g->stopped, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&g->announced);
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < g->size && !before; i++) {
        pthread_mutex_lock(&g->member[i].busy);
        begin_abort(&g->member[i]);
        pthread_mutex_unlock(&g->member[i].busy);
    }
}

/* ---- an exchange -------------------------------------------------------------------------------------------- */

/* Tells the others, waits for what they say about the same exchange. While waiting it looks after its own device: a fault there ends it. */
static enum klein_status announce(struct member *m, const struct exchange_args *a, struct klein_error *err)
{
    struct nccl_group *g = m->group;
    struct gpu *gpu = m->device->gpu;
    enum klein_status status = KLEIN_OK;
    pthread_mutex_lock(&g->lock);
    m->said[m->exchanges++ % 2] = *a;
    pthread_cond_broadcast(&g->announced);
    for (int i = 0; i < g->size; i++)
        while (g->member[i].exchanges < m->exchanges && !is_stopped(g) && status == KLEIN_OK) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 1000000;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            if (!pthread_cond_timedwait(&g->announced, &g->lock, &until) || gpu->capturing) continue;
            pthread_mutex_unlock(&g->lock);
            status = gpu_poll(gpu, err);
            pthread_mutex_lock(&g->lock);
        }
    pthread_mutex_unlock(&g->lock);
    return status == KLEIN_OK && is_stopped(g) ? stopped(err) : status;
}

/* What device `from` said about the exchange that m announced last: nobody announces the one after the next before m announces the next. */
static const struct exchange_args *said_by(const struct member *m, int from)
{
    return &m->group->member[from].said[(m->exchanges - 1) % 2];
}

/* Vectors of 16 bytes from one to another. */
static int message_length(const struct exchange_args *a, int to)
{
    int64_t rows = 0, width = a->way[to].cols * (int64_t)dtype_size(a->from[0].dtype) / 16;
    for (int s = 0; s < EXCHANGE_PARTS; s++) rows += a->way[to].span[s].rows;
    CHECK(rows * width * a->tensors < INT32_MAX);
    return (int)(rows * width * a->tensors);
}

/* Messages in scratch memory: those to each device, then those from each; the one to itself is not sent. */
static int slot_length(const struct member *m)
{
    return (int)(CUDA_SCRATCH / 16 / 2 / (size_t)m->group->size);
}

static char *slot_of(const struct member *m, int incoming, int other)
{
    if (other == m->device->group.rank) incoming = 0;
    return (char *)m->device->scratch +
           (size_t)(incoming * m->group->size + other) * (size_t)slot_length(m) * 16;
}

/* Messages to the others, or from them, as the kernel wants them; the whole of each. */
static struct staging_kernel_args staging_of(const struct member *m, int incoming)
{
    struct staging_kernel_args k = {0};
    const int rank = m->device->group.rank;
    for (int i = 0; i < m->group->size; i++) {
        const struct exchange_args *a = said_by(m, incoming ? i : rank);
        const struct exchange_way *way = &a->way[incoming ? rank : i];
        const int element = (int)dtype_size(a->from[0].dtype);
        k.way[i].staged = slot_of(m, incoming, i);
        k.way[i].count = message_length(a, incoming ? rank : i);
        k.way[i].width = way->cols * element / 16;
        for (int t = 0; t < a->tensors; t++) {
            const struct tensor *x = incoming ? &a->to[t] : &a->from[t];
            char *first = x->ptr; /* in the sender's arena: the same place of one's own */
            if (incoming) first = m->arena + (first - m->group->member[i].arena);
            k.way[i].rows[t] = first + (incoming ? way->to_col : way->from_col) * element;
            k.way[i].ld[t] = x->ld * element;
        }
        for (int s = 0; s < EXCHANGE_PARTS; s++) {
            k.way[i].span[s].row = incoming ? way->span[s].to : way->span[s].from;
            k.way[i].span[s].rows = way->span[s].rows;
        }
    }
    return k;
}

/* The part of each message that the next round takes, after what the last one took; the longest part. */
static int next_round(const struct member *m, const struct staging_kernel_args *all,
                      struct staging_kernel_args *k)
{
    const int room = slot_length(m);
    int longest = 0;
    for (int i = 0; i < m->group->size; i++) {
        const int first = k->way[i].first + k->way[i].count, left = all->way[i].count - first;
        k->way[i].first = first;
        k->way[i].count = left < room ? left : room;
        if (k->way[i].count > longest) longest = k->way[i].count;
    }
    return longest;
}

static enum klein_status stage(struct member *m, const char *kernel, const struct staging_kernel_args *k,
                               int longest, int dependent, struct klein_error *err)
{
    const int blocks = (longest + 4 * STAGING_THREADS - 1) / (4 * STAGING_THREADS);
    if (!longest) return KLEIN_OK;
    return gpu_launch(
        m->device->gpu,
        &(struct launch){.kernel = kernel,
                         .grid = {blocks < 256 ? (unsigned)blocks : 256, (unsigned)m->group->size},
                         .threads = STAGING_THREADS,
                         .args = k,
                         .dependent = dependent},
        err);
}

static enum klein_status transfer(struct member *m, const struct staging_kernel_args *out,
                                  const struct staging_kernel_args *in, struct klein_error *err)
{
    const struct nccl *n = &m->group->nccl;
    const int rank = m->device->group.rank;
    enum klein_status status;
    pthread_mutex_lock(&m->busy);
    if (is_stopped(m->group)) {
        status = stopped(err);
    } else {
        ncclResult_t r = n->GroupStart();
        for (int i = 0; i < m->group->size; i++) {
            const size_t sent = (size_t)out->way[i].count * 16, received = (size_t)in->way[i].count * 16;
            if (i == rank) continue;
            if (!r && sent)
                r = n->Send(out->way[i].staged, sent, ncclUint8, i, m->comm, m->device->gpu->stream);
            if (!r && received)
                r = n->Recv(in->way[i].staged, received, ncclUint8, i, m->comm, m->device->gpu->stream);
        }
        ncclResult_t end = n->GroupEnd();
        status = nccl_check(n, r ? r : end, m->comm, "send and receive", err);
    }
    pthread_mutex_unlock(&m->busy);
    return status;
}

/* `ready` needs nothing here: what comes in is written by this device's own stream. */
static enum klein_status rows(struct device *dev, const struct exchange_args *a, struct klein_error *err)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct member *m = &cuda->group.nccl->member[cuda->group.rank];
    CHECK(a->size == cuda->group.size && a->rank == cuda->group.rank);
    gpu_op(cuda->gpu, "exchange", "");
    TRY(announce(m, a, err));
    const struct staging_kernel_args to_send = staging_of(m, 0), to_come = staging_of(m, 1);
    struct staging_kernel_args out = to_send, in = to_come;
    for (int i = 0; i < a->size; i++) out.way[i].count = in.way[i].count = 0;
    for (;;) {
        const int sent = next_round(m, &to_send, &out), received = next_round(m, &to_come, &in);
        if (!sent && !received) return KLEIN_OK;
        TRY(stage(m, "staging_pack", &out, sent, 1, err));
        TRY(transfer(m, &out, &in, err));
        TRY(stage(m, "staging_unpack", &in, received, 0, err));
    }
}

static const struct device_exchange nccl_exchange = {
    .alike = 1, .join = NULL, .begin = begin, .rows = rows, .stop = stop};
