/* run.cpp: executes launched kernels. Blocks are taken by the host threads in an order that depends on the seed; each runs to its end
 * on one of them. A programmatic dependent is treated as badly as the rules allow: a few of its blocks start before its predecessor
 * does anything (also if that ended long ago), and are set aside where they wait for it. */
#include "driver.h"

#include <sched.h>
#include <stdlib.h>

enum { HOST_THREADS_MAX = 64, EARLY_BLOCKS = 3 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    int threads, busy;
    uint64_t job;
    struct grid *grid;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, NULL};

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

static void run_blocks(struct slot *s, struct grid *g)
{
    uint64_t n = blocks_of(g), i;
    while (__atomic_load_n(&g->result, __ATOMIC_RELAXED) == CUDA_SUCCESS &&
           (i = __atomic_fetch_add(&g->next, 1, __ATOMIC_RELAXED)) < n) {
        struct block *b = block_start(s, g, block_order(g, i));
        block_run(b);
        finish(b);
    }
}

/* Slots of whoever holds the driver's lock: 0 for running, the others for blocks that are set aside. */
static struct slot *driver_slot(int i)
{
    static struct slot *slots[1 + CHAIN_MAX * EARLY_BLOCKS];
    if (!slots[i]) slots[i] = slot_new();
    return slots[i];
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
        run_blocks(slot, g);
        pthread_mutex_lock(&pool.lock);
        if (--pool.busy == 0) pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

static void run_on_all(struct grid *g)
{
    int wanted = host_threads() - 1;
    bool parallel = wanted > 0 && blocks_of(g) > 1;
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
    run_blocks(driver_slot(0), g);
    if (parallel) {
        pthread_mutex_lock(&pool.lock);
        while (pool.busy) pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
}

/* The first blocks of a dependent, before what it depends on has run. */
static void run_early(struct grid *g, struct block **early, int slots_from)
{
    uint64_t n = blocks_of(g);
    for (int i = 0; i < EARLY_BLOCKS && (uint64_t)i < n; i++) {
        struct block *b = block_start(driver_slot(slots_from + i), g, block_order(g, g->next++));
        if (block_run(b) == BLOCK_STALLED)
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
        for (int t = 0; t < b->threads; t++)
            if (b->thread[t].wait == WAIT_GRID) wake(b, t / LANES, 1u << t % LANES);
        block_run(b);
        finish(b);
    }
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
        if (g->result == CUDA_SUCCESS) resume(g, early[i]);
        if (g->result == CUDA_SUCCESS) run_on_all(g);
        result = g->result;
        if (result != CUDA_SUCCESS) set_report(g->report);
        struct softgpu_counters c = {};
        c.kernels = 1;
        c.dependents = tasks[i]->dependent;
        counters_add(&c);
    }
    return result;
}
