/* sync.cpp: how the threads of a block wait for one another: barriers, warp operations, mbarriers, register budget, grids. */
#include "soft.h"

/* ---- block and named barriers (PTX ISA 9.7.13.1) ------------------------------------------------------------- */

void soft_barrier(int id, int threads, bool wait, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, wait ? "bar.sync" : "bar.arrive", site);
    t->wait_address = (uint32_t)id;
    if (id < 0 || id >= NAMED_BARRIERS)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "barrier %d does not exist (0..15)", id);
    if (threads <= 0 || threads % LANES || threads > b->threads)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "barrier %d of %d threads: must be a multiple of 32 and at most the block's %d", id, threads,
              b->threads);
    struct barrier *bar = &b->barriers[id];
    if (!bar->arrived) {
        memset(bar, 0, sizeof *bar);
        bar->expected = threads;
    } else if (bar->expected != threads) {
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "barrier %d of %d threads, but others wait at it as a barrier of %d", id, threads,
              bar->expected);
    }
    uint32_t me = 1u << t->lane;
    struct warp *w = t->warp;
    if (bar->here[w->id] & me)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "arrives at barrier %d twice in one round (%d of %d threads are there)", id, bar->arrived,
              bar->expected);
    bar->here[w->id] |= me;
    if (bar->here[w->id] == 0xffffffffu) race_release(w, &bar->seen, &bar->proxied);
    if (wait) bar->waiting[w->id] |= me;
    if (++bar->arrived < bar->expected) {
        if (wait) park(t, WAIT_BARRIER);
        return;
    }
    bar->arrived = 0;
    b->counters.barriers++;
    for (int i = 0; i < b->warps_used; i++) {
        if (!bar->waiting[i]) continue;
        race_acquire(&b->warps[i], &bar->seen, &bar->proxied);
        if (soft_config.count_accesses) count_flush(b, &b->warps[i]);
        wake(b, i, i == w->id ? bar->waiting[i] & ~me : bar->waiting[i]);
    }
}

/* ---- the lanes of a warp -------------------------------------------------------------------------------------- */

void soft_warp_sync(soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "bar.warp.sync", site);
    meet_warp(t, NULL, NULL);
}

struct shuffle {
    uint32_t value, result;
    soft_shuffle kind;
    int argument;
};

static void shuffle(struct warp *w, struct block *b, void **arguments)
{
    struct shuffle **s = (struct shuffle **)arguments;
    for (int lane = 0; lane < LANES; lane++) {
        int from = s[lane]->kind == SOFT_SHFL_XOR ? lane ^ s[lane]->argument : s[lane]->argument;
        s[lane]->result = s[from & (LANES - 1)]->value;
    }
}

uint32_t soft_shfl(uint32_t value, soft_shuffle kind, int argument, soft_site site)
{
    static const char *const names[] = {"shfl.bfly", "shfl.idx"};
    struct thread *t = self_thread();
    enter(t, names[kind], site);
    struct shuffle s = {value, 0, kind, argument};
    meet_warp(t, &s, shuffle);
    return s.result;
}

void soft_sleep(soft_site site)
{
    enter(self_thread(), "nanosleep", site);
    park(self_thread(), WAIT_SLEEP);
}

void soft_trap(soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "trap", site);
    fault(t, CUDA_ERROR_ILLEGAL_INSTRUCTION, "the kernel gave up: a precondition does not hold");
}

/* ---- mbarriers (9.7.13.15): state beside the memory, so that misuse is seen ------------------------------------ */

struct mbar *mbar_find(struct block *b, uint32_t address)
{
    for (int i = 0; i < b->mbar_count; i++)
        if (b->mbars[i].address == address) return &b->mbars[i];
    return NULL;
}

static struct mbar *mbar_get(struct thread *t, uint32_t address)
{
    struct mbar *m = mbar_find(t->block, address);
    if (!m) fault(t, CUDA_ERROR_LAUNCH_FAILED, "shared+0x%x is not an initialised mbarrier", address);
    return m;
}

static int mbar_unit(const struct block *b, const struct mbar *m)
{
    return WARPS_MAX + (int)(m - b->mbars);
}

void soft_mbar_init(uint32_t address, uint32_t count, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "mbarrier.init", site);
    soft_shared(address, 8, SOFT_WRITE, site);
    enter(t, "mbarrier.init", site);
    if (count == 0 || count > (1u << 20) - 1)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "count %u is not in 1..2^20-1", count);
    if (mbar_find(b, address))
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "shared+0x%x is initialised twice", address);
    if (b->mbar_count == MBARS_MAX)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "more than %d mbarriers in a block", MBARS_MAX);
    struct mbar *m = &b->mbars[b->mbar_count++];
    memset(m, 0, sizeof *m);
    m->address = address;
    m->expected = m->pending = (int)count;
    m->looked = b->slot->looked + (size_t)(m - b->mbars) * (size_t)b->threads;
    memset(m->looked, 0, sizeof *m->looked * (size_t)b->threads);
    m->site = site;
}

/* Ends the phase if everything came: the waiters go on, and what was released into the barrier is known to those who waited. */
static void mbar_advance(struct block *b, struct mbar *m, struct thread *blame)
{
    if (m->pending || m->bytes > 0) return;
    if (m->bytes < 0)
        fault(blame, CUDA_ERROR_LAUNCH_FAILED,
              "mbarrier shared+0x%x, phase %u: %lld bytes more were copied than expect_tx announced (count "
              "full boxes)",
              m->address, m->phase, (long long)-m->bytes);
    m->phase++;
    m->pending = m->expected;
    race_complete(m);
    m->seen.at[mbar_unit(b, m)] = m->proxied.at[mbar_unit(b, m)] = m->phase;
    for (int w = 0; w < b->warps_used; w++) {
        wake(b, w, m->waiting[w]);
        m->waiting[w] = 0;
    }
}

void soft_mbar_arrive(uint32_t address, uint32_t expect_bytes, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, expect_bytes ? "mbarrier.arrive.expect_tx" : "mbarrier.arrive", site);
    struct mbar *m = mbar_get(t, address);
    if (m->pending == 0)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "mbarrier shared+0x%x, phase %u: more arrivals than its count of %d", address, m->phase,
              m->expected);
    race_release(t->warp, &m->arrived_seen, &m->arrived_proxied);
    m->bytes += expect_bytes;
    m->announced += expect_bytes;
    m->pending--;
    mbar_advance(t->block, m, t);
    yield_randomly(t);
}

void mbar_complete_bytes(struct block *b, struct mbar *m, uint32_t phase, uint32_t bytes, soft_site site,
                         struct thread *blame)
{
    if (m->phase != phase) {
        enter(blame, "tensor load", site);
        fault(blame, CUDA_ERROR_LAUNCH_FAILED,
              "mbarrier shared+0x%x went on to phase %u before this load of its phase %u landed: expect_tx "
              "announced too few bytes",
              m->address, m->phase, phase);
    }
    m->bytes -= bytes;
    mbar_advance(b, m, blame);
}

[[noreturn]] static void missed_phase(struct thread *t, const struct mbar *m, uint32_t phase)
{
    fault(t, CUDA_ERROR_LAUNCH_FAILED,
          "mbarrier shared+0x%x completed phase %u and the next before this thread looked, which would make "
          "it wait for ever: whoever arms "
          "the barrier again must know that all who wait for a phase have seen it",
          m->address, phase);
}

void soft_mbar_wait(uint32_t address, uint32_t parity, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "mbarrier.try_wait", site);
    struct mbar *m = mbar_get(t, address);
    uint32_t phase = m->phase, *looked = &m->looked[t->id];
    bool next = (*looked & 1) == (parity & 1); /* it waits for the phase after the last that it has seen */
    if (next && phase > *looked + 1) missed_phase(t, m, *looked);
    if ((phase & 1) == (parity & 1)) { /* the phase with this parity is under way */
        t->wait_address = address;
        t->wait_phase = phase;
        m->waiting[t->warp->id] |= 1u << t->lane;
        park(t, WAIT_MBAR);
        if (m->phase - phase > 1) missed_phase(t, m, phase);
    } else {
        yield_randomly(t);
    }
    if (next) *looked = phase + ((phase & 1) == (parity & 1));
    race_acquire(t->warp, &m->seen, &m->proxied);
}

void soft_fence_mbar_init(void) {
} /* orders the init with the copy engine; the barrier that must follow orders the threads */

void soft_fence_proxy_async(void)
{
    race_fence_proxy(self_thread()->warp);
}

/* ---- registers, grids ------------------------------------------------------------------------------------------ */

struct register_request {
    int registers;
    bool increase;
};

/* 9.7.19.5. What the block's warpgroups gave up is its pool; an increase waits until the pool holds enough. */
static void change_registers(struct block *b, int group, void **arguments)
{
    struct register_request *r = (struct register_request *)arguments[0];
    if (!r->increase) {
        b->free_registers += (b->warps[group * 4].registers - r->registers) * WARPGROUP;
        for (int i = 0; i < b->threads; i++) /* those who wait look again */
            if (b->thread[i].wait == WAIT_REGISTERS) wake(b, i / LANES, 1u << i % LANES);
    }
    b->registers_reserved[group] = false;
    for (int w = group * 4; w < group * 4 + 4; w++) b->warps[w].registers = r->registers;
}

void soft_setmaxnreg(int registers, bool increase, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, increase ? "setmaxnreg.inc" : "setmaxnreg.dec", site);
    if (registers < 24 || registers > 256 || registers % 8)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "%d registers: must be a multiple of 8 in 24..256", registers);
    int now = t->warp->registers, group = t->id / WARPGROUP, delta = (registers - now) * WARPGROUP;
    if (increase ? delta < 0 : delta > 0)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "to %d registers, but the thread has %d (launch: %d)", registers,
              now, b->grid->registers);
    t->wait_address = (uint32_t)registers;
    while (increase && !b->registers_reserved[group] && b->free_registers < delta) park(t, WAIT_REGISTERS);
    if (increase && !b->registers_reserved[group]) {
        b->registers_reserved[group] = true;
        b->free_registers -= delta;
    }
    struct register_request r = {registers, increase};
    meet_group(t, &r, change_registers);
}

/* 9.7.13.13. Until the grid before is complete, the block is set aside (run.cpp). */
void soft_grid_wait(soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "griddepcontrol.wait", site);
    t->block->grid_waited = true;
    if (!t->block->grid->released) park(t, WAIT_GRID);
}

void soft_grid_launch_dependents(void)
{
    /* nothing: dependents start before anything else anyway (run.cpp) */
}

/* ---- who waits where -------------------------------------------------------------------------------------------- */

static bool same_wait(const struct thread *a, const struct thread *b)
{
    return a->wait == b->wait && a->wait_address == b->wait_address && a->wait_phase == b->wait_phase &&
           a->site.line == b->site.line;
}

void describe_waiters(struct block *b, char *out, size_t size)
{
    size_t n = 0;
    for (int i = 0, j; i < b->threads && n + 200 < size; i = j) {
        const struct thread *t = &b->thread[i];
        for (j = i + 1; j < b->threads && same_wait(t, &b->thread[j]); j++) continue;
        if (t->wait == EXITED) continue;
        n += (size_t)snprintf(out + n, size - n, "  threads %d-%d: ", i, j - 1);
        const struct mbar *m = t->wait == WAIT_MBAR ? mbar_find(b, t->wait_address) : NULL;
        const struct barrier *bar = &b->barriers[t->wait_address % NAMED_BARRIERS];
        if (m)
            n += (size_t)snprintf(
                out + n, size - n,
                "mbarrier shared+0x%x, waiting for phase %u (now %u): %d of %d arrivals, %lld bytes missing",
                m->address, t->wait_phase, m->phase, m->expected - m->pending, m->expected,
                (long long)m->bytes);
        else if (t->wait == WAIT_BARRIER)
            n += (size_t)snprintf(out + n, size - n, "barrier %u: %d of %d threads arrived", t->wait_address,
                                  bar->arrived, bar->expected);
        else if (t->wait == WAIT_SLEEP)
            n += (size_t)snprintf(out + n, size - n, "asleep, until memory changes");
        else if (t->wait == WAIT_REGISTERS)
            n += (size_t)snprintf(out + n, size - n,
                                  "setmaxnreg.inc to %u: %d registers are free in the block", t->wait_address,
                                  b->free_registers);
        else
            n += (size_t)snprintf(out + n, size - n, "%s with the rest of the %s", t->op,
                                  t->wait == WAIT_GROUP ? "warpgroup" : "warp");
        const char *slash = t->site.file ? strrchr(t->site.file, '/') : NULL;
        n += (size_t)snprintf(out + n, size - n, " (%s:%d)\n", slash ? slash + 1 : "?", t->site.line);
    }
}
