/* soft.h: the inside of the soft GPU's processor: what a running block is. Driver objects are in driver.h.
 *
 * One host thread runs one block at a time: it owns a `slot` (stacks, shared-memory window, shadow memory). Nothing here is
 * locked, because a block and all that belongs to it stays with its host thread. */
#ifndef KLEIN_SOFT_SOFT_H
#define KLEIN_SOFT_SOFT_H

#include "emulate.h"
#include "softgpu.h"
#include "../cuda/driver_api.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    LANES = 32,
    WARPS_MAX = 32,
    NAMED_BARRIERS = 16,
    MBARS_MAX = 64,
    CLOCKS = WARPS_MAX +
             MBARS_MAX,  /* who can write shared memory: a warp, or a copy that completes on an mbarrier */
    WINDOW = 256 * 1024, /* shared addresses are below this: wgmma descriptors hold 18 bits */
    WARPGROUP = 128,
    FLIGHTS_MAX = 256,
};

struct grid;
struct block;
struct warp;

/* What a parked fiber waits for. */
enum wait {
    RUNNING,
    WAIT_WARP,
    WAIT_GROUP,
    WAIT_BARRIER,
    WAIT_MBAR,
    WAIT_REGISTERS,
    WAIT_GRID,
    WAIT_SLEEP,
    EXITED
};

/* One 16-byte cp.async on its way; `group` counts the thread's commits. */
struct copy16 {
    const void *from;
    uint32_t to, group;
    int bytes;
    bool landed;
};

struct thread {
    soft_position position; /* first: soft_here points at it */
    void *sp;
    struct block *block;
    struct warp *warp;
    int id, lane;
    enum wait wait;
    uint32_t wait_address, wait_phase; /* barrier id or mbarrier; phase waited for */
    const char *op;                    /* what it last called, for reports */
    soft_site site;
    struct copy16 *copies; /* ring of COPIES_MAX */
    uint32_t copies_first, copies_end, copy_group;
    uint32_t bulk_group;   /* tensor stores committed */
    uint32_t wgmma_posted; /* index of this thread's next wgmma in its warpgroup */
    bool wgmma_fenced;
    struct access *log; /* global and shared accesses since the warp last met; counters.cpp */
    uint32_t log_end, log_size;
};
enum { COPIES_MAX = 512 };

/* A vector clock: at[u] is how much of unit u's past is known (happened before). */
struct clock {
    uint32_t at[CLOCKS];
};

/* Lanes or warps meeting for one operation. */
struct meeting {
    const char *op;
    soft_site site;
    int arrived;
    void *arguments[WARPGROUP];
};

struct warp {
    int id;
    uint32_t ready, live; /* masks of lanes */
    struct meeting meeting;
    struct clock seen;    /* by generic accesses of this warp */
    struct clock proxied; /* and made visible to the asynchronous proxy */
    int registers;        /* per thread, for setmaxnreg */
};

struct barrier {
    int expected, arrived;
    uint32_t waiting[WARPS_MAX], here[WARPS_MAX]; /* lanes parked; lanes that came, parked or not */
    struct clock seen, proxied;
};

struct mbar {
    uint32_t address;
    int expected, pending;
    int64_t bytes;     /* transaction count still to come; may be negative until the arrivals are in */
    int64_t announced; /* by expect_tx, and not yet issued */
    uint32_t phase;    /* completed phases */
    uint32_t waiting[WARPS_MAX];
    struct clock seen, proxied; /* what was released into completed phases: known to who waited */
    struct clock arrived_seen, arrived_proxied; /* and into the one under way */
    uint32_t *looked;                           /* by thread: phases that it has waited for */
    soft_site site;
};

/* A tensor copy on its way. */
struct flight {
    const void *map;
    int at[5];
    uint32_t address, bytes;
    struct mbar *bar; /* loads */
    uint32_t phase;
    struct thread *thread; /* stores: whose group */
    uint32_t group;
    bool landed; /* stores: data written, but the thread has not waited */
    soft_site site;
};

struct cell;     /* race.cpp */
struct products; /* wgmma.cpp */
struct unpacked; /* tensor_core.cpp */

struct slot {
    char *stacks; /* of MAX_THREADS fibers, ... */
    int guarded;  /* ... so many with an inaccessible page at the end */
    char *window; /* shared memory, WINDOW bytes */
    struct thread *threads;
    struct copy16 *copies;
    struct cell *cells;    /* shadow of the window */
    uint32_t *read_clocks; /* [cell][warp] */
    uint16_t *read_masks;
    struct products *products[WARPS_MAX / 4];
    uint32_t *looked; /* [mbarrier][thread] */
    struct unpacked *unpacked;
    struct block *block; /* reused */
};

enum outcome { BLOCK_DONE, BLOCK_STALLED, BLOCK_ASLEEP, BLOCK_FAULT };

struct block {
    struct grid *grid;
    struct slot *slot;
    soft_grid_position position;
    int threads, warps_used, live;
    struct thread *thread;
    struct warp warps[WARPS_MAX];
    uint32_t ready_warps;
    int last_warp;
    void *main_sp, *main_bottom; /* the host thread's own stack; bottom and size for AddressSanitizer only */
    size_t main_size;
    enum outcome outcome;
    uint64_t random;

    uint32_t shared_base, shared_size; /* offset of the dynamic shared memory; 0 size: none */
    bool shared_taken;
    struct barrier barriers[NAMED_BARRIERS];
    struct mbar mbars[MBARS_MAX];
    int mbar_count;
    struct flight flights[FLIGHTS_MAX]; /* in order of issue */
    int flight_count;
    struct meeting groups[WARPS_MAX / 4];
    int free_registers;                     /* of the block's own: given up by setmaxnreg.dec */
    bool registers_reserved[WARPS_MAX / 4]; /* taken from them by a warpgroup that is still gathering */
    int64_t
        reads_pending; /* wgmma operands and tensor stores not yet read: only then writers look for overlaps */
    bool grid_waited;
    struct softgpu_counters counters;
};

/* A kernel launch being executed. */
struct grid {
    const struct soft_kernel *kernel;
    const void *args;
    unsigned dim[3], threads, shared_bytes;
    int registers; /* per thread at launch */
    int device;
    uint64_t number; /* launches so far: part of the seed */
    bool dependent;  /* launched with the programmatic attribute */
    bool released;   /* what it depends on is complete */
    bool given_up;   /* it slept for too long */
    pthread_mutex_t lock;
    CUresult result;
    char report[4096];
    uint64_t next; /* next block index, taken by the host threads */
};

extern struct softgpu_config soft_config;

/* sched.cpp */
static inline struct thread *self_thread(void)
{
    return (struct thread *)soft_here;
}
uint64_t block_random(struct block *b);
void park(struct thread *t, enum wait why); /* returns when somebody woke t */
void wake(struct block *b, int warp, uint32_t lanes);
void yield_randomly(struct thread *t);
void enter(struct thread *t, const char *op, soft_site site); /* every primitive starts with it */
[[noreturn]] __attribute__((format(printf, 3, 4))) void fault(struct thread *t, CUresult code,
                                                              const char *format, ...);
/* Until it ended, or all threads wait for the grid before (stalled), or those that could go on sleep (asleep). */
enum outcome block_run(struct block *b);
void wake_all(struct block *b, enum wait from); /* who waits so goes on at the next block_run */
void block_deadlock(struct block *b, const char *why);
struct block *block_start(struct slot *s, struct grid *g, uint64_t index);
void block_finish(struct block *b);
struct slot *slot_new(void);
void catch_signals(
    void); /* in each host thread that runs blocks: plain accesses out of bounds are reported, not fatal */

/* Runs fn once all lanes of the warp called with the same op (and place): fn gets their arguments by lane. */
void meet_warp(struct thread *t, void *argument,
               void (*fn)(struct warp *w, struct block *b, void **arguments));
void meet_group(struct thread *t, void *argument, void (*fn)(struct block *b, int group, void **arguments));

/* sync.cpp */
struct mbar *mbar_find(struct block *b, uint32_t address);
void mbar_complete_bytes(struct block *b, struct mbar *m, uint32_t phase, uint32_t bytes, soft_site site,
                         struct thread *blame);
void describe_waiters(struct block *b, char *out, size_t size);

/* access.cpp: end the kernel if the access is misaligned or out of bounds */
void *checked_shared(struct thread *t, uint32_t address, uint32_t bytes, uint32_t align, soft_access access);
void check_global(struct thread *t, const void *p, uint64_t bytes, uint32_t align, soft_access access);

/* async.cpp */
bool flights_land_one(struct block *b, bool random); /* lands a load; false: none */
void flights_check_exit(struct block *b, struct thread *t);
bool flights_reading(struct block *b, uint32_t from, uint32_t to, struct flight **which);

/* wgmma.cpp */
void products_reset(struct block *b);
void products_check_exit(struct block *b, struct thread *t);
bool products_reading(struct block *b, uint32_t from, uint32_t to, int *group, soft_site *site);

/* tensor_core.cpp: d[l][j] += sum over k of a[l][k] b[k][j], for fragments; see there */
struct fragment_rows {
    float *d;       /* j = 0..n-1 */
    const float *a; /* [k][4]: low row, low row, high row, high row */
};
void tensor_core(const struct fragment_rows *rows, int count, const float *b, int n, int k,
                 soft_operand type);
extern float e4m3_values[256];
float bf16_value(uint16_t h);
extern const size_t
    unpacked_bytes; /* of a slot; not thread_local: a library that is opened late gets little of that */

/* race.cpp */
void race_reset(struct block *b);
void race_read(struct thread *t, uint32_t address, int bytes);
void race_write(struct thread *t, uint32_t address, int bytes);
void race_copy_issue(struct thread *t, uint32_t address);
void race_copy_land(struct thread *t, uint32_t address);
void race_bulk_write(struct thread *t, uint32_t address, uint32_t bytes, const struct mbar *bar);
void race_bulk_read(struct thread *t, const struct clock *seen, const struct clock *proxied, uint32_t address,
                    uint32_t bytes, const char *what);
void race_bulk_read_done(struct block *b, int first_warp, int warps, uint32_t address, uint32_t bytes);
void race_release(struct warp *w, struct clock *seen, struct clock *proxied); /* into a barrier */
void race_acquire(struct warp *w, const struct clock *seen, const struct clock *proxied);
void race_complete(struct mbar *m); /* its phase */
void race_fence_proxy(struct warp *w);

/* counters.cpp */
void count_access(struct thread *t, uint64_t address, int bytes, bool global);
void count_flush(struct block *b, struct warp *w);
void count_phases(struct block *b, const uint32_t *addresses, int lanes,
                  int bytes); /* shared accesses of one warp instruction */
void counters_add(const struct softgpu_counters *c);
void count_call(void);
void count_stop(void);
void count_wait(void);
void count_pinned(size_t taken, size_t given_back);
void count_graph(void);

/* memory.cpp */
struct allocation {
    char *base;  /* what the caller got */
    size_t size; /* what the caller asked for */
    char *map;   /* mapping with its guard pages */
    size_t map_size;
    int device; /* -1: pinned host memory */
    uint64_t number;
};
const struct allocation *memory_find(const void *p); /* the one that contains p */
void memory_describe(const void *p, char *out, size_t size);
bool memory_accessible(const struct allocation *a, int device);

#endif
