/* exchange.cu: rows to other devices of the machine by plain stores, and words that say when they are there. A block stores its part; the
 * one that ends last tells the other devices, then waits for theirs. So only one block of a device waits, and for other devices only:
 * blocks need not be resident at the same time.
 *
 * Rows that other kernels store into the others' memory (route.h) need only the words: exchange_meet. What a kernel's blocks stored is
 * seen by the kernel after it once that has passed grid_wait (or was launched after it); there one thread's fence.sys and release make all
 * of it seen by whoever acquires the word, and what that device launches next sees it too. */
#include "../device/device.h"
#include "../device/ptx_peer.h"
#include "../device/ptx_sm90.h"
#include "route.h"

/* Until all devices have come to exchange `number`. */
DEVICE void wait_for(const exchange_state *s, const uint32_t *word, int size, int rank, uint32_t number)
{
    for (int i = 0; i < size; i++)
        while (i != rank && (int)(ld_acquire_sys_4(word + i) - number) < 0) {
            if (ld_acquire_sys_4(s->stop)) return;
            nanosleep(100);
        }
}

/* Rows for device `to` by all blocks of the grid's row. */
DEVICE void store_rows(const exchange_kernel_args &args, const exchange_state *s, int to, int tensor)
{
    enum { BATCH = 4 };
    const auto &way = args.way[to];
    const auto &t = args.tensor[tensor];
    const int vectors = way.bytes / 16, step = grid_x() * EXCHANGE_THREADS;
    char *const there = route_place(s, to, t.to) + way.to_byte;
    const char *const here = t.from + way.from_byte;
    for (int part = 0; part < EXCHANGE_SPANS; part++) {
        const auto &span = way.span[part];
        const int64_t all = (int64_t)span.rows * vectors;
        for (int64_t i = block_x() * EXCHANGE_THREADS + thread_index(); i < all; i += BATCH * step) {
            u32x4 v[BATCH];
            UNROLL
            for (int j = 0; j < BATCH; j++) {
                const int64_t at = i + j * step;
                if (at < all)
                    v[j] = ld_global_16(here + (span.from + at / vectors) * t.ldfrom + at % vectors * 16);
            }
            UNROLL
            for (int j = 0; j < BATCH; j++) {
                const int64_t at = i + j * step;
                if (at < all)
                    st_global_16(there + (span.to + at / vectors) * t.ldto + at % vectors * 16, v[j]);
            }
        }
    }
}

/* Tells the others that this device has come to exchange `number`, whatever it stored for them before, and waits for them. */
DEVICE void meet(exchange_state *s, int size, int rank, uint32_t number)
{
    fence_sys();
    for (int i = 0; i < size; i++)
        if (i != rank) st_release_sys_4(&s->state[i]->done[rank], number);
    wait_for(s, s->done, size, rank, number);
    s->blocks = 0;
    s->number = number;
}

KERNEL(exchange_meet, exchange_kernel_args, EXCHANGE_MEET_THREADS, 1)
{
    grid_wait();
    grid_launch_dependents();
    if (thread_index() == 0) meet(args.state, args.size, args.rank, args.state->number + 1);
}

KERNEL(exchange_rows, exchange_kernel_args, EXCHANGE_THREADS, 4)
{
    exchange_state *const s = args.state;
    const int to = (args.rank + 1 + block_y() / args.tensors) % args.size;
    grid_wait();
    grid_launch_dependents();
    const uint32_t number = s->number + 1;
    if (args.ready) {
        if (thread_index() == 0) {
            fence_sys();
            for (int i = 0; i < args.size; i++) /* by every block: the same */
                if (i != args.rank) st_release_sys_4(&s->state[i]->ready[args.rank], number);
            wait_for(s, s->ready, args.size, args.rank, number);
        }
        sync_threads();
    }
    store_rows(args, s, to, block_y() % args.tensors);
    sync_threads();
    if (thread_index()) return;
    fence_sys();
    if (atom_add_gpu_4(&s->blocks, 1) + 1 < (uint32_t)(grid_x() * grid_y())) return;
    meet(s, args.size, args.rank, number);
}
