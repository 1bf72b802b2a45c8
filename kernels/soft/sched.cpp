/* sched.cpp: fibers. A block's threads are fibers that switch directly to one another: no polling, a parked fiber is woken by
 * whoever completes what it waits for. When nobody can run, something asynchronous lands; when nothing is under way either, the
 * block is finished, waits for the grid before it, or is deadlocked. */
#include "soft.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__)
#error "the soft GPU switches fibers in assembly, which exists for x86-64 only (fiber_x86_64.S)"
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK = 260 * 1024 };
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)          ((void)(address), (void)(size))
#define __sanitizer_start_switch_fiber(save, bottom, size)  ((void)(save), (void)(bottom), (void)(size))
#define __sanitizer_finish_switch_fiber(save, bottom, size) ((void)(save))
enum { STACK = 68 * 1024 };
#endif
enum { THREADS_MAX = WARPS_MAX * LANES, PAGE = 4096 };

extern "C" void fiber_switch(void **save, void *to);

thread_local const soft_position *soft_here;

uint64_t block_random(struct block *b)
{
    uint64_t x = b->random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return b->random = x;
}

/* ---- who runs next ------------------------------------------------------------------------------------------ */

static int random_bit(uint32_t mask, uint64_t random)
{
    int turn = (int)(random & 31);
    uint32_t turned = mask >> turn | (turn ? mask << (32 - turn) : 0);
    return (__builtin_ctz(turned) + turn) & 31;
}

static struct thread *pick_ready(struct block *b)
{
    if (!b->ready_warps) return NULL;
    int w = b->last_warp, lane;
    bool stay = b->ready_warps >> w & 1;
    if (soft_config.seed == 0) {
        if (!stay) w = __builtin_ctz(b->ready_warps);
        lane = __builtin_ctz(b->warps[w].ready);
    } else {
        uint64_t r = block_random(b);
        if (!stay || r % 8 == 0) w = random_bit(b->ready_warps, r >> 8);
        lane = random_bit(b->warps[w].ready, r >> 16);
    }
    b->last_warp = w;
    b->warps[w].ready &= ~(1u << lane);
    if (!b->warps[w].ready) b->ready_warps &= ~(1u << w);
    struct thread *t = &b->thread[w * LANES + lane];
    t->wait = RUNNING;
    return t;
}

static struct thread *pick(struct block *b)
{
    if (soft_config.async == SOFTGPU_RANDOM && b->flight_count && block_random(b) % 16 == 0)
        flights_land_one(b, true);
    while (!b->ready_warps)
        if (!flights_land_one(b, soft_config.seed != 0)) break;
    return pick_ready(b);
}

/* Leaves the running fiber for `to`, or for the host thread's own stack (NULL). */
static void leave(struct block *b, void **save, struct thread *to)
{
    void *fake = NULL;
    const void *bottom = to ? b->slot->stacks + (size_t)to->id * STACK + PAGE : b->main_bottom;
    soft_here = to ? &to->position : NULL;
    __sanitizer_start_switch_fiber(&fake, bottom, to ? STACK - PAGE : b->main_size);
    fiber_switch(save, to ? to->sp : b->main_sp);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
}

static void go_on(struct thread *from)
{
    struct block *b = from->block;
    struct thread *next = pick(b);
    if (next != from) leave(b, &from->sp, next);
}

void wake(struct block *b, int warp, uint32_t lanes)
{
    if (!lanes) return;
    b->warps[warp].ready |= lanes;
    b->ready_warps |= 1u << warp;
}

void park(struct thread *t, enum wait why)
{
    t->wait = why;
    go_on(t);
}

void yield_randomly(struct thread *t)
{
    struct block *b = t->block;
    if (soft_config.seed == 0 || block_random(b) % 4) return;
    wake(b, t->warp->id, 1u << t->lane);
    go_on(t);
}

void enter(struct thread *t, const char *op, soft_site site)
{
    t->op = op;
    t->site = site;
}

/* ---- meeting ------------------------------------------------------------------------------------------------ */

static const char *file_name(soft_site site)
{
    const char *slash = site.file ? strrchr(site.file, '/') : NULL;
    return slash ? slash + 1 : site.file ? site.file : "?";
}

static void check_same(struct thread *t, const struct meeting *m, const char *who)
{
    if (m->op != t->op && strcmp(m->op, t->op))
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "divergence: this thread is in %s, others of its %s are in %s (%s:%d)", t->op, who, m->op,
              file_name(m->site), m->site.line);
    if (m->site.line != t->site.line)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "divergence: %s here and at %s:%d by others of its %s must be one instruction", t->op,
              file_name(m->site), m->site.line, who);
}

void meet_warp(struct thread *t, void *argument, void (*fn)(struct warp *, struct block *, void **))
{
    struct warp *w = t->warp;
    struct meeting *m = &w->meeting;
    if (w->live != 0xffffffffu)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "%s needs all 32 lanes; lane %d has exited", t->op,
              __builtin_ctz(~w->live));
    if (!m->arrived) {
        m->op = t->op;
        m->site = t->site;
    } else {
        check_same(t, m, "warp");
    }
    m->arguments[t->lane] = argument;
    if (++m->arrived < LANES) {
        park(t, WAIT_WARP);
        return;
    }
    m->arrived = 0;
    if (soft_config.count_accesses) count_flush(t->block, w);
    if (fn) fn(w, t->block, m->arguments);
    wake(t->block, w->id, 0xffffffffu & ~(1u << t->lane));
}

void meet_group(struct thread *t, void *argument, void (*fn)(struct block *, int, void **))
{
    struct block *b = t->block;
    int group = t->id / WARPGROUP;
    if (b->threads < (group + 1) * WARPGROUP)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "%s needs whole warpgroups of 128 threads; the block has %d threads", t->op, b->threads);
    struct meeting *m = &b->groups[group];
    if (!m->arrived) {
        m->op = t->op;
        m->site = t->site;
    } else {
        check_same(t, m, "warpgroup");
    }
    m->arguments[t->id % WARPGROUP] = argument;
    if (++m->arrived < WARPGROUP) {
        park(t, WAIT_GROUP);
        return;
    }
    m->arrived = 0;
    fn(b, group, m->arguments);
    for (int w = group * 4; w < group * 4 + 4; w++)
        wake(b, w, 0xffffffffu & ~(w == t->warp->id ? 1u << t->lane : 0));
}

/* ---- faults ------------------------------------------------------------------------------------------------- */

static void report(struct block *b, const struct thread *t, CUresult code, const char *format, va_list ap)
{
    struct grid *g = b->grid;
    pthread_mutex_lock(&g->lock);
    if (g->result == CUDA_SUCCESS) { /* the first one counts */
        g->result = code;
        int n = snprintf(g->report, sizeof g->report, "kernel %s, block (%u, %u, %u)", g->kernel->name,
                         b->position.block[0], b->position.block[1], b->position.block[2]);
        if (t) {
            n += snprintf(g->report + n, sizeof g->report - (size_t)n, ", thread %d", t->id);
            if (t->op) n += snprintf(g->report + n, sizeof g->report - (size_t)n, ", %s", t->op);
            if (t->op && t->site.file)
                n += snprintf(g->report + n, sizeof g->report - (size_t)n, " at %s:%d", file_name(t->site),
                              t->site.line);
        }
        n += snprintf(g->report + n, sizeof g->report - (size_t)n, ": ");
        vsnprintf(g->report + n, sizeof g->report - (size_t)n, format, ap);
    }
    pthread_mutex_unlock(&g->lock);
    b->outcome = BLOCK_FAULT;
}

void fault(struct thread *t, CUresult code, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    report(t->block, t, code, format, ap);
    va_end(ap);
    leave(t->block, &t->sp, NULL); /* never resumed */
    __builtin_unreachable();
}

__attribute__((format(printf, 3, 4))) static void block_fault(struct block *b, CUresult code,
                                                              const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    report(b, NULL, code, format, ap);
    va_end(ap);
}

static struct sigaction previous_segv, previous_bus, previous_fpe;

static void on_signal(int number, siginfo_t *info, void *context)
{
    if (!soft_here) { /* not ours */
        const struct sigaction *p = number == SIGSEGV  ? &previous_segv
                                    : number == SIGBUS ? &previous_bus
                                                       : &previous_fpe;
        sigaction(number, p, NULL); /* the instruction runs again and meets the previous handler */
        return;
    }
    struct thread *t = self_thread();
    struct slot *s = t->block->slot;
    const char *at = (const char *)info->si_addr;
    const char *stack = s->stacks + (size_t)t->id * STACK;
    if (number == SIGFPE)
        fault(t, CUDA_ERROR_ILLEGAL_INSTRUCTION, "integer division by zero after this call");
    if (at >= stack - PAGE && at < stack + PAGE)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "stack overflow: more than %d KiB of local variables",
              STACK / 1024);
    if (at >= s->window + WINDOW && at < s->window + WINDOW + PAGE)
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS,
              "plain access beyond the dynamic shared memory (launched with %u bytes)",
              t->block->shared_size);
    char where[256];
    memory_describe(at, where, sizeof where);
    fault(t, CUDA_ERROR_ILLEGAL_ADDRESS, "plain access out of bounds, after this call: %s", where);
}

void catch_signals(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; /* fault() leaves the handler by a switch */
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
        sigaction(SIGFPE, &action, &previous_fpe);
    });
    enum { HANDLER_STACK = 64 * 1024 };
    static thread_local bool has_stack;
    if (has_stack) return;
    has_stack = true;
    stack_t stack = {};
    stack.ss_sp = mmap(NULL, HANDLER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack.ss_size = HANDLER_STACK;
    if (stack.ss_sp != MAP_FAILED) sigaltstack(&stack, NULL);
}

/* ---- blocks ------------------------------------------------------------------------------------------------- */

static char *map_pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "soft GPU: cannot map %zu bytes: %s\n", bytes, strerror(errno));
        abort();
    }
    return (char *)p;
}

struct slot *slot_new(void)
{
    struct slot *s = (struct slot *)map_pages(sizeof *s);
    s->stacks = map_pages((size_t)THREADS_MAX * STACK);
    char *window = map_pages(WINDOW + 3 * PAGE);
    s->window = (char *)(((uintptr_t)window + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    mprotect(s->window + WINDOW, PAGE, PROT_NONE);
    s->threads = (struct thread *)map_pages(sizeof(struct thread) * THREADS_MAX);
    s->copies = (struct copy16 *)map_pages(sizeof(struct copy16) * COPIES_MAX * THREADS_MAX);
    s->looked = (uint32_t *)map_pages(sizeof(uint32_t) * MBARS_MAX * THREADS_MAX);
    s->unpacked = (struct unpacked *)map_pages(unpacked_bytes);
    s->block = (struct block *)map_pages(sizeof(struct block));
    s->block->slot = s;
    return s;
}

/* As many as were needed: a process may have only so many mappings. */
static void guard_stacks(struct slot *s, int threads)
{
    for (; s->guarded < threads; s->guarded++)
        mprotect(s->stacks + (size_t)s->guarded * STACK, PAGE, PROT_NONE);
}

static void thread_main(void)
{
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
    struct thread *t = self_thread();
    struct block *b = t->block;
    b->grid->kernel->enter(b->grid->args);
    t = self_thread();
    struct warp *w = t->warp;
    enter(t, "exit", {});
    if (t->copies_first != t->copies_end)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "ends with a cp.async that it never waited for (to shared+0x%x)",
              t->copies[t->copies_first % COPIES_MAX].to);
    flights_check_exit(b, t);
    products_check_exit(b, t);
    if (w->meeting.arrived)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "divergence: this thread exits, others of its warp are in %s (%s:%d)", w->meeting.op,
              file_name(w->meeting.site), w->meeting.site.line);
    w->live &= ~(1u << t->lane);
    if (!w->live && soft_config.count_accesses) count_flush(b, w);
    b->live--;
    park(t, EXITED);
    abort(); /* nobody wakes it */
}

struct block *block_start(struct slot *s, struct grid *g, uint64_t index)
{
    struct block *b = s->block;
    bool abandoned = b->outcome != BLOCK_DONE;
    guard_stacks(s, (int)g->threads);
    memset(b, 0, sizeof *b);
    b->slot = s;
    b->grid = g;
    b->threads = b->live = (int)g->threads;
    b->warps_used = b->threads / LANES;
    b->thread = s->threads;
    b->position.block[0] = (unsigned)(index % g->dim[0]);
    b->position.block[1] = (unsigned)(index / g->dim[0] % g->dim[1]);
    b->position.block[2] = (unsigned)(index / g->dim[0] / g->dim[1]);
    memcpy(b->position.grid, g->dim, sizeof g->dim);
    b->position.threads = g->threads;
    b->random = (soft_config.seed + 1) * 0x9e3779b97f4a7c15ull ^ (g->number + 1) * 0xbf58476d1ce4e5b9ull ^
                (index + 1) * 0x94d049bb133111ebull;
    if (!b->random) b->random = 1;
    b->shared_size = g->shared_bytes;
    b->shared_base = WINDOW - ((g->shared_bytes + 1023) & ~1023u);
    memset(s->window + b->shared_base, 0xff, WINDOW - b->shared_base); /* NaN in f32, bf16 and e4m3 */
    for (int i = 0; i < b->threads; i++) {
        struct thread *t = &b->thread[i];
        struct access *log = t->log;
        uint32_t log_size = t->log_size;
        memset(t, 0, sizeof *t);
        t->log = log;
        t->log_size = log_size;
        t->position = {(unsigned)i, &b->position};
        t->block = b;
        t->warp = &b->warps[i / LANES];
        t->id = i;
        t->lane = i % LANES;
        t->copies = s->copies + (size_t)i * COPIES_MAX;
        char *stack = s->stacks + (size_t)i * STACK;
        size_t dirty =
            abandoned ? STACK - PAGE : 2 * PAGE; /* what the last fiber, which never returned, had poisoned */
        ASAN_UNPOISON_MEMORY_REGION(stack + STACK - dirty, dirty);
        /* thread_main starts with the stack pointer here, 8 modulo 16. The lanes of a warp run in lockstep: STACK is no power of
         * two and they start at different places in a page, so that their variables do not compete for the same cache lines. */
        void **top = (void **)(stack + STACK - t->lane * 128) - 1;
        *--top = (void *)thread_main;
        t->sp = top - 6;
        memset(t->sp, 0, 6 * sizeof *top);
    }
    for (int w = 0; w < b->warps_used; w++) {
        b->warps[w].id = w;
        b->warps[w].live = 0xffffffffu;
        b->warps[w].seen.at[w] = 1;
        b->warps[w].registers = g->registers;
        wake(b, w, 0xffffffffu);
    }
    race_reset(b);
    products_reset(b);
    return b;
}

void wake_all(struct block *b, enum wait from)
{
    for (int i = 0; i < b->threads; i++)
        if (b->thread[i].wait == from) wake(b, i / LANES, 1u << i % LANES);
}

void block_deadlock(struct block *b, const char *why)
{
    char waiters[3000];
    describe_waiters(b, waiters, sizeof waiters);
    block_fault(b, CUDA_ERROR_LAUNCH_TIMEOUT, "deadlock: %s\n%s", why, waiters);
}

enum outcome block_run(struct block *b)
{
    b->outcome = BLOCK_STALLED;
    struct thread *t = pick_ready(b);
    if (t) {
#if defined(__SANITIZE_ADDRESS__)
        pthread_attr_t attributes;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &b->main_bottom, &b->main_size);
        pthread_attr_destroy(&attributes);
#endif
        leave(b, &b->main_sp, t);
    }
    if (b->outcome == BLOCK_FAULT) return b->outcome;
    if (b->live) {
        for (int i = 0; i < b->threads; i++) {
            if (b->thread[i].wait == WAIT_GRID && !b->grid->released) return BLOCK_STALLED;
            if (b->thread[i].wait == WAIT_SLEEP) return b->outcome = BLOCK_ASLEEP;
        }
        block_deadlock(b, "no thread can go on and nothing is under way");
        return BLOCK_FAULT;
    }
    return b->outcome = BLOCK_DONE;
}

void block_finish(struct block *b)
{
    if (b->outcome == BLOCK_DONE) {
        for (int i = 0; i < b->flight_count; i++)
            if (b->flights[i].bar) {
                block_fault(b, CUDA_ERROR_LAUNCH_FAILED,
                            "ends while a tensor load (%s:%d) into shared+0x%x is under way: its mbarrier "
                            "shared+0x%x was never waited for",
                            file_name(b->flights[i].site), b->flights[i].site.line, b->flights[i].address,
                            b->flights[i].bar->address);
                break;
            }
        for (int i = 0; i < b->mbar_count; i++)
            if (b->mbars[i].bytes)
                block_fault(b, CUDA_ERROR_LAUNCH_FAILED,
                            "ends with mbarrier shared+0x%x still expecting %lld bytes: expect_tx announced "
                            "more than was copied",
                            b->mbars[i].address, (long long)b->mbars[i].bytes);
        for (int i = 0; i < NAMED_BARRIERS; i++)
            if (b->barriers[i].arrived)
                block_fault(b, CUDA_ERROR_LAUNCH_FAILED,
                            "ends while barrier %d has %d of %d threads: an arrival too many", i,
                            b->barriers[i].arrived, b->barriers[i].expected);
        if (b->grid->dependent && !b->grid_waited)
            block_fault(
                b, CUDA_ERROR_LAUNCH_FAILED,
                "was launched as a programmatic dependent but no thread executed griddepcontrol.wait");
    }
    counters_add(&b->counters);
}
