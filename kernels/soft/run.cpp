/* run.cpp: executes launched kernels. Blocks are taken by the host threads in an order that depends on the seed; each runs to its end
 * on one of them. A programmatic dependent is treated as badly as the rules allow: a few of its blocks start before its predecessor
 * does anything (also if that ended long ago), and are set aside where they wait for it. */
#include "driver.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum { HOST_THREADS_MAX = 64, EARLY_BLOCKS = 3 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    int threads, busy, asleep; /* busy: that have not ended; asleep: of these, with blocks that sleep */
    uint64_t job, round;
    struct grid *grid; /* NULL: nobody uses the pool */
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0, 0, NULL};

static int host_threads(void)
{
    if (soft_config.threads)
        return soft_config.threads < HOST_THREADS_MAX ? soft_config.threads : HOST_THREADS_MAX;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return 1;
    int n = CPU_COUNT(&set);
    return n < HOST_THREADS_MAX ? n : HOST_THREADS_MAX;
}

static uint64_t blocks_of(const struct grid *g)
{
    return (uint64_t)g->dim[0] * g->dim[1] * g->dim[2];
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
    return b ? gcd(b, a % b) : a;
}

/* The i-th block to run: a permutation that depends on the seed. */
static uint64_t block_order(const struct grid *g, uint64_t i)
{
    uint64_t n = blocks_of(g), seed = soft_config.seed;
    if (!seed || n < 2) return i;
    uint64_t stride = (seed * 2654435761u + g->number * 40503u) % n | 1;
    while (gcd(stride, n) != 1) stride += 2;
    return (i * (stride % n) + seed) % n;
}

static void finish(struct block *b)
{
    b->counters.blocks = 1;
    block_finish(b);
}

/* ---- sleep ---------------------------------------------------------------------------------------------------------- */

uint64_t soft_progress;
static pthread_cond_t others = PTHREAD_COND_INITIALIZER; /* of soft_lock */
enum { NAP_MS = 5, PATIENCE_ALL = 2000 / NAP_MS /* naps if all devices sleep */ };

void done_something(void)
{
    __atomic_fetch_add(&soft_progress, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&others);
}

void wait_for_others(void)
{
    pthread_cond_wait(&others, &soft_lock);
}

/* Counts its own naps, not time: a process may be stopped for long. */
bool let_others_run(int device)
{
    static uint64_t told, seen;
    static int naps;
    bool all = true;
    uint64_t now = __atomic_load_n(&soft_progress, __ATOMIC_RELAXED);
    if (told != now) {
        told = now;
        pthread_cond_broadcast(&others);
    }
    soft_contexts[device].asleep = true;
    for (const struct CUctx_st &c : soft_contexts) all = all && (!c.retained || c.asleep);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += NAP_MS * 1000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    bool timed_out = pthread_cond_timedwait(&others, &soft_lock, &until) != 0;
    soft_contexts[device].asleep = false;
    now = __atomic_load_n(&soft_progress, __ATOMIC_RELAXED);
    naps = now != seen ? 0 : naps + timed_out;
    seen = now;
    int sleepers = 1;
    for (const struct CUctx_st &c : soft_contexts) sleepers += c.asleep;
    int patience = (soft_config.patience ? soft_config.patience : 30) * 1000 / NAP_MS;
    return naps < (all && PATIENCE_ALL < patience ? PATIENCE_ALL : patience) * sleepers;
}

/* In a host thread of the pool: until the one that holds the driver's lock has let others run. */
static void sleep_in_pool(void)
{
    pthread_mutex_lock(&pool.lock);
    uint64_t round = pool.round;
    pool.asleep++;
    pthread_cond_broadcast(&pool.done);
    while (pool.round == round) pthread_cond_wait(&pool.start, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

/* In the one that holds the lock: once no thread of the pool runs a block, for these read the driver's tables. */
static void sleep_with_lock(struct grid *g)
{
    pthread_mutex_lock(&pool.lock);
    while (pool.grid == g && pool.busy > pool.asleep) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    if (!let_others_run(g->device)) __atomic_store_n(&g->given_up, true, __ATOMIC_RELAXED);
    if (pool.grid != g) return;
    pthread_mutex_lock(&pool.lock);
    pool.round++;
    pool.asleep = 0;
    pthread_cond_broadcast(&pool.start);
    pthread_mutex_unlock(&pool.lock);
}

static void run_to_end(struct block *b, bool in_pool)
{
    while (block_run(b) == BLOCK_ASLEEP) {
        if (in_pool)
            sleep_in_pool();
        else
            sleep_with_lock(b->grid);
        if (__atomic_load_n(&b->grid->given_up, __ATOMIC_RELAXED)) {
            block_deadlock(b, "it sleeps, and nothing else of the machine did anything for long");
            return;
        }
        wake_all(b, WAIT_SLEEP);
    }
}

/* ---- blocks --------------------------------------------------------------------------------------------------------- */

static void run_blocks(struct slot *s, struct grid *g, bool in_pool)
{
    uint64_t n = blocks_of(g), i;
    while (__atomic_load_n(&g->result, __ATOMIC_RELAXED) == CUDA_SUCCESS &&
           (i = __atomic_fetch_add(&g->next, 1, __ATOMIC_RELAXED)) < n) {
        struct block *b = block_start(s, g, block_order(g, i));
        run_to_end(b, in_pool);
        finish(b);
    }
}

/* Slots of whoever runs the device's work: 0 for running, the others for blocks that are set aside. */
static struct slot *driver_slot(int device, int i)
{
    static struct slot *slots[DEVICES_MAX][1 + CHAIN_MAX * EARLY_BLOCKS];
    if (!slots[device][i]) slots[device][i] = slot_new();
    return slots[device][i];
}

static void *worker(void *unused)
{
    struct slot *slot = slot_new();
    uint64_t seen = 0;
    catch_signals();
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (pool.job == seen) pthread_cond_wait(&pool.start, &pool.lock);
        seen = pool.job;
        struct grid *g = pool.grid;
        pthread_mutex_unlock(&pool.lock);
        run_blocks(slot, g, true);
        pthread_mutex_lock(&pool.lock);
        pool.busy--;
        pthread_cond_broadcast(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

static void run_on_all(struct grid *g)
{
    int wanted = host_threads() - 1;
    bool parallel =
        wanted > 0 && blocks_of(g) > 1 && !pool.grid; /* else another device's kernel sleeps in it */
    if (parallel) {
        pthread_mutex_lock(&pool.lock);
        for (; pool.threads < wanted; pool.threads++) {
            pthread_t t;
            if (pthread_create(&t, NULL, worker, NULL)) break;
            pthread_detach(t);
        }
        pool.grid = g;
        pool.job++;
        pool.busy = pool.threads;
        pthread_cond_broadcast(&pool.start);
        pthread_mutex_unlock(&pool.lock);
    }
    run_blocks(driver_slot(g->device, 0), g, false);
    if (!parallel) return;
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (pool.busy > pool.asleep) pthread_cond_wait(&pool.done, &pool.lock);
        bool ended = !pool.busy;
        pthread_mutex_unlock(&pool.lock);
        if (ended) break;
        sleep_with_lock(g);
    }
    pool.grid = NULL;
}

/* The first blocks of a dependent, before what it depends on has run. Of many devices fewer: each has slots of its own, and a process may
 * have only so many mappings. */
static void run_early(struct grid *g, struct block **early, int slots_from)
{
    const uint64_t n = blocks_of(g);
    const int most = soft_config.devices > 2 ? 1 : EARLY_BLOCKS;
    for (int i = 0; i < most && (uint64_t)i < n; i++) {
        struct block *b = block_start(driver_slot(g->device, slots_from + i), g, block_order(g, g->next++));
        enum outcome outcome = block_run(b);
        if (outcome == BLOCK_STALLED || outcome == BLOCK_ASLEEP)
            early[i] = b;
        else
            finish(b);
    }
}

static void resume(struct grid *g, struct block **early)
{
    g->released = true;
    for (int i = 0; i < EARLY_BLOCKS; i++) {
        struct block *b = early[i];
        if (!b || g->result != CUDA_SUCCESS) continue;
        wake_all(b, WAIT_GRID);
        wake_all(b, WAIT_SLEEP);
        run_to_end(b, false);
        finish(b);
    }
}

/* KLEIN_SOFT_FAIL */
static void induce_failure(struct grid *g)
{
    if (++soft_contexts[g->device].kernels != soft_config.fail_launch || g->device != soft_config.fail_device)
        return;
    g->result = CUDA_ERROR_LAUNCH_FAILED;
    snprintf(g->report, sizeof g->report, "kernel %s: fails as asked for, as number %llu of device %d",
             g->kernel->name, (unsigned long long)soft_config.fail_launch, g->device);
}

CUresult run_kernels(struct task *const *tasks, int count, int device)
{
    static uint64_t launches;
    struct grid grids[CHAIN_MAX];
    struct block *early[CHAIN_MAX][EARLY_BLOCKS] = {};
    catch_signals();
    for (int i = 0; i < count; i++) {
        struct task *t = tasks[i];
        struct grid *g = &grids[i];
        memset(g, 0, sizeof *g);
        g->kernel = t->function->kernel;
        g->args = t->args;
        memcpy(g->dim, t->grid, sizeof g->dim);
        g->threads = t->threads;
        g->shared_bytes = t->shared_bytes;
        g->registers = t->function->registers;
        g->device = device;
        g->number = launches++;
        g->dependent = t->dependent;
        g->released = !t->dependent;
        pthread_mutex_init(&g->lock, NULL);
    }
    for (int i = count - 1; i >= 0; i--)
        if (tasks[i]->dependent) run_early(&grids[i], early[i], 1 + i * EARLY_BLOCKS);
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < count && result == CUDA_SUCCESS; i++) {
        struct grid *g = &grids[i];
        induce_failure(g);
        if (g->result == CUDA_SUCCESS) resume(g, early[i]);
        if (g->result == CUDA_SUCCESS) run_on_all(g);
        result = g->result;
        if (result != CUDA_SUCCESS) set_report(device, g->report);
        struct softgpu_counters c = {};
        c.kernels = 1;
        c.dependents = tasks[i]->dependent;
        counters_add(&c);
    }
    return result;
}
