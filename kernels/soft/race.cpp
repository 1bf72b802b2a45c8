/* race.cpp: is every access to shared memory ordered after the accesses that it must not overtake?
 *
 * Vector clocks, per warp and per mbarrier (as the unit that a tensor load belongs to). For each 16 bytes the last writer and the
 * last read of each warp are kept with the time on their own clock; an access is ordered if the accessing warp knows that time.
 * Clocks travel through barriers and mbarriers. A second clock per warp holds what fence.proxy.async has made visible to the
 * asynchronous proxy (tensor copies, wgmma). Seen are the accesses through ptx.h and shared<T>; lanes of one warp are one unit. */
#include "soft.h"

#include <sys/mman.h>

enum source { NOBODY, GENERIC, COPY16, BULK };

struct cell {
    uint32_t clock; /* of the last write, on its unit's clock; PENDING: a cp.async that was not waited for */
    uint16_t mask;  /* its bytes */
    uint16_t line;
    uint8_t unit, source;
};
enum { CELLS = WINDOW / 16 };
static const uint32_t PENDING = 0xffffffffu;

void race_reset(struct block *b)
{
    struct slot *s = b->slot;
    if (!soft_config.check_races || !b->shared_size) return;
    if (!s->cells) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, access = PROT_READ | PROT_WRITE;
        s->cells = (struct cell *)mmap(NULL, sizeof(struct cell) * CELLS, access, flags, -1, 0);
        s->read_clocks = (uint32_t *)mmap(NULL, sizeof(uint32_t) * CELLS * WARPS_MAX, access, flags, -1, 0);
        s->read_masks = (uint16_t *)mmap(NULL, sizeof(uint16_t) * CELLS * WARPS_MAX, access, flags, -1, 0);
    }
    size_t first = b->shared_base >= 1024 ? (b->shared_base - 1024) / 16 : 0, count = CELLS - first,
           warps = (size_t)b->warps_used;
    memset(s->cells + first, 0, sizeof(struct cell) * count);
    memset(s->read_clocks + first * warps, 0, sizeof(uint32_t) * count * warps);
    memset(s->read_masks + first * warps, 0, sizeof(uint16_t) * count * warps);
}

/* The bytes of the access that fall into cell c. */
static uint16_t bytes_in(uint32_t c, uint32_t address, uint32_t bytes)
{
    uint32_t from = address > c * 16 ? address - c * 16 : 0, to = address + bytes - c * 16;
    if (to > 16) to = 16;
    return (uint16_t)((0xffffu << from) & (0xffffu >> (16 - to)));
}

static const char *unit_name(const struct block *b, unsigned unit, char *out, size_t size)
{
    if (unit < WARPS_MAX)
        snprintf(out, size, "warp %u", unit);
    else
        snprintf(out, size, "a tensor load that completes on mbarrier shared+0x%x",
                 b->mbars[unit - WARPS_MAX].address);
    return out;
}

/* The access of t conflicts with the write recorded in cell c. */
[[noreturn]] static void conflict_with_write(struct thread *t, uint32_t c, const char *does)
{
    const struct cell *cell = &t->block->slot->cells[c];
    char who[96];
    unit_name(t->block, cell->unit, who, sizeof who);
    if (cell->source == COPY16 && cell->clock == PENDING)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "race: %s shared+0x%x, into which a cp.async of %s (line %d) is still under way: "
              "cp.async.wait_group is missing or allows too many groups",
              does, c * 16, who, cell->line);
    if (cell->source == BULK)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "race: %s shared+0x%x, which %s (line %d) writes in its phase %u: this thread has not waited "
              "for that phase, or the stage was released before it was read",
              does, c * 16, who, cell->line, cell->clock - 1);
    fault(t, CUDA_ERROR_LAUNCH_FAILED,
          "race: %s shared+0x%x, written by %s (%sline %d) with no barrier in between", does, c * 16, who,
          cell->source == COPY16 ? "cp.async, " : "", cell->line);
}

static void check_not_being_read(struct thread *t, uint32_t address, uint32_t bytes)
{
    struct block *b = t->block;
    if (!b->reads_pending) return;
    int group;
    soft_site site;
    if (products_reading(b, address, address + bytes, &group, &site))
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "race: overwrites shared+0x%x, which a wgmma of warpgroup %d (line %d) may still read: it was "
              "not waited for",
              address, group, site.line);
    struct flight *f;
    if (flights_reading(b, address, address + bytes, &f))
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "race: overwrites shared+0x%x, which a tensor store of thread %d (line %d) may still read: its "
              "group was not waited for",
              address, f->thread->id, f->site.line);
}

/* No other warp's read of these bytes is unordered before this write. */
static void check_reads(struct thread *t, uint32_t c, uint16_t mask)
{
    struct block *b = t->block;
    const uint32_t *clocks = b->slot->read_clocks + (size_t)c * (size_t)b->warps_used;
    const uint16_t *masks = b->slot->read_masks + (size_t)c * (size_t)b->warps_used;
    const struct clock *seen = &t->warp->seen;
    for (int w = 0; w < b->warps_used; w++)
        if (clocks[w] > seen->at[w] && (masks[w] & mask) && w != t->warp->id)
            fault(t, CUDA_ERROR_LAUNCH_FAILED,
                  "race: overwrites shared+0x%x, which warp %d has read, with no barrier in between", c * 16,
                  w);
}

static void note_read(struct block *b, int warp, uint32_t c, uint16_t mask)
{
    size_t i = (size_t)c * (size_t)b->warps_used + (size_t)warp;
    uint32_t now = b->warps[warp].seen.at[warp];
    b->slot->read_masks[i] = b->slot->read_clocks[i] == now ? b->slot->read_masks[i] | mask : mask;
    b->slot->read_clocks[i] = now;
}

void race_read(struct thread *t, uint32_t address, int bytes)
{
    struct warp *w = t->warp;
    for (uint32_t c = address / 16; c * 16 < address + (uint32_t)bytes; c++) {
        const struct cell *cell = &t->block->slot->cells[c];
        uint16_t mask = bytes_in(c, address, (uint32_t)bytes);
        if ((cell->mask & mask) && cell->clock > w->seen.at[cell->unit]) conflict_with_write(t, c, "reads");
        note_read(t->block, w->id, c, mask);
    }
}

/* This warp's own writes are always known to it: its clock is where they were stamped, except for copies under way. */
static void write_cell(struct thread *t, uint32_t c, uint16_t mask, unsigned unit, uint32_t clock,
                       enum source source)
{
    struct cell *cell = &t->block->slot->cells[c];
    if ((cell->mask & mask) && cell->clock > t->warp->seen.at[cell->unit])
        conflict_with_write(t, c, "overwrites");
    check_reads(t, c, mask);
    *cell = {clock, mask, (uint16_t)t->site.line, (uint8_t)unit, (uint8_t)source};
}

void race_write(struct thread *t, uint32_t address, int bytes)
{
    check_not_being_read(t, address, (uint32_t)bytes);
    int w = t->warp->id;
    for (uint32_t c = address / 16; c * 16 < address + (uint32_t)bytes; c++)
        write_cell(t, c, bytes_in(c, address, (uint32_t)bytes), (unsigned)w, t->warp->seen.at[w], GENERIC);
}

void race_copy_issue(struct thread *t, uint32_t address)
{
    check_not_being_read(t, address, 16);
    write_cell(t, address / 16, 0xffff, (unsigned)t->warp->id, PENDING, COPY16);
}

void race_copy_land(struct thread *t, uint32_t address)
{
    int w = t->warp->id;
    t->block->slot->cells[address / 16].clock = t->warp->seen.at[w];
}

void race_bulk_write(struct thread *t, uint32_t address, uint32_t bytes, const struct mbar *bar)
{
    struct block *b = t->block;
    check_not_being_read(t, address, bytes);
    unsigned unit = WARPS_MAX + (unsigned)(bar - b->mbars);
    for (uint32_t c = address / 16; c * 16 < address + bytes; c++) {
        const struct cell *cell = &b->slot->cells[c];
        if ((cell->source == GENERIC || cell->source == COPY16) &&
            cell->clock > t->warp->proxied.at[cell->unit] && cell->clock <= t->warp->seen.at[cell->unit])
            fault(t, CUDA_ERROR_LAUNCH_FAILED,
                  "race: a tensor load overwrites shared+0x%x, written by plain stores of warp %d (line %d): "
                  "fence.proxy.async is missing",
                  c * 16, cell->unit, cell->line);
        write_cell(t, c, 0xffff, unit, bar->phase + 1, BULK);
    }
}

void race_bulk_read(struct thread *t, const struct clock *seen, const struct clock *proxied, uint32_t address,
                    uint32_t bytes, const char *what)
{
    for (uint32_t c = address / 16; c * 16 < address + bytes; c++) {
        const struct cell *cell = &t->block->slot->cells[c];
        if (cell->clock > seen->at[cell->unit]) conflict_with_write(t, c, what);
        if ((cell->source == GENERIC || cell->source == COPY16) && cell->clock > proxied->at[cell->unit])
            fault(t, CUDA_ERROR_LAUNCH_FAILED,
                  "race: %s shared+0x%x, written by plain stores of warp %d (line %d) that the asynchronous "
                  "proxy cannot see yet: "
                  "fence.proxy.async is missing between the stores and the barrier",
                  what, c * 16, cell->unit, cell->line);
    }
}

void race_bulk_read_done(struct block *b, int first_warp, int warps, uint32_t address, uint32_t bytes)
{
    for (uint32_t c = address / 16; c * 16 < address + bytes; c++)
        for (int w = first_warp; w < first_warp + warps; w++) note_read(b, w, c, 0xffff);
}

/* ---- clocks ----------------------------------------------------------------------------------------------------- */

static void join(struct clock *to, const struct clock *from)
{
    for (int i = 0; i < CLOCKS; i++)
        if (to->at[i] < from->at[i]) to->at[i] = from->at[i];
}

void race_release(struct warp *w, struct clock *seen, struct clock *proxied)
{
    join(seen, &w->seen);
    join(proxied, &w->proxied);
    w->seen.at[w->id]++; /* what the warp does from now on is later */
}

void race_fence_proxy(struct warp *w)
{
    w->proxied = w->seen;
    w->seen.at[w->id]++;
}

void race_acquire(struct warp *w, const struct clock *seen, const struct clock *proxied)
{
    join(&w->seen, seen);
    join(&w->proxied, proxied);
}

/* Not before: who waited for an earlier phase may look while this one is under way. */
void race_complete(struct mbar *m)
{
    join(&m->seen, &m->arrived_seen);
    join(&m->proxied, &m->arrived_proxied);
}
