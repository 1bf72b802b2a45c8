/* alloc.h: makes chosen allocations of klein fail. malloc, calloc, realloc, strdup, aligned_alloc,
 * posix_memalign and mmap, as called from klein's and the tests' own objects, go through here by the linker's
 * --wrap; what libraries allocate inside is untouched (jansson can be given our malloc with
 * json_set_alloc_funcs). Counts and failures are per thread. */
#ifndef KLEIN_TEST_ALLOC_H
#define KLEIN_TEST_ALLOC_H

/* Of the allocations of this thread from now on, the n-th (0-based) fails, and only that one; n < 0: none. */
void alloc_fail_at(int n);
/* Switches injection off; returns 1 if the chosen allocation was reached (and so failed). */
int alloc_fail_off(void);

/* Runs `call` again and again with its first, second, ... allocation failing, until it gets through without
 * reaching the failing one. Each failed run must leave a message and return KLEIN_E_NO_MEMORY (leaks are for
 * the sanitizer to find); `undo` cleans up after a run that succeeded, with or without a failed allocation.
 * `struct klein_error err` must be in scope. */
#define EACH_ALLOCATION_FAILS(call, undo) EACH_ALLOCATION_(call, undo, fails_status_ == KLEIN_E_NO_MEMORY)
/* The same, any status will do: jansson calls some of its own failed allocations a syntax error. */
#define EACH_ALLOCATION_FAILS_SOMEHOW(call, undo) EACH_ALLOCATION_(call, undo, 1)

#define EACH_ALLOCATION_(call, undo, allowed)                                                                \
    for (int fails_n_ = 0;; fails_n_++) {                                                                    \
        err = (struct klein_error){0};                                                                       \
        alloc_fail_at(fails_n_);                                                                             \
        enum klein_status fails_status_ = (call);                                                            \
        int fails_hit_ = alloc_fail_off();                                                                   \
        if (fails_status_ == KLEIN_OK) {                                                                     \
            undo;                                                                                            \
            if (!fails_hit_) break;                                                                          \
            continue;                                                                                        \
        }                                                                                                    \
        cr_assert(fails_hit_, "%s: without a failing allocation: %s", #call, err.message);                   \
        cr_assert((allowed) && err.message[0], "%s: allocation %d: got %s (%s)", #call, fails_n_,            \
                  status_name(fails_status_), err.message);                                                  \
    }

#endif
