/* emulate.h: what the soft GPU offers to the host bodies in device.h, ptx.h and tile.h. A kernel never includes it.
 *
 * A CUDA thread is a fiber. A function here that waits (barrier, warp operation, mbarrier) parks the calling fiber; the last
 * of those who meet does the work for all of them, so that a warp's ldmatrix or mma is one call of vectorised host code.
 * Shared-memory addresses are 32-bit offsets, exactly as in PTX. Every misuse ends the kernel with a report (softgpu.h). */
#ifndef KLEIN_SOFT_EMULATE_H
#define KLEIN_SOFT_EMULATE_H

#include <stddef.h>
#include <stdint.h>

#define SOFT_API __attribute__((visibility("default")))

/* Where in a kernel's source a primitive was called: the last, defaulted parameter of each primitive that can wait or fail. */
struct soft_site {
    const char *file;
    int line;
    static constexpr soft_site here(const char *file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return {file, line};
    }
};

/* The position of the running fiber. */
struct soft_grid_position {
    unsigned block[3], grid[3], threads;
};
struct soft_position {
    unsigned thread;
    const soft_grid_position *grid;
};
extern SOFT_API thread_local const soft_position *soft_here __attribute__((tls_model("initial-exec")));

/* A kernel registers itself by a constructor; cuModuleGetFunction finds it by name. */
struct soft_kernel {
    const char *name, *file;
    void (*enter)(const void *args);
    size_t args_size, args_align;
    int threads, min_blocks;
    struct soft_kernel *next;
};
SOFT_API void soft_register(struct soft_kernel *kernel);

/* Memory. soft_global checks an access to device memory (bounds, alignment, owner) and counts its sectors; soft_shared turns a
 * shared address into a host pointer after the same checks and the race check. */
enum soft_access { SOFT_READ, SOFT_WRITE, SOFT_READ_CONSTANT /* what no kernel writes */ };
SOFT_API void *soft_dynamic_shared(size_t size, size_t align, soft_site site);
SOFT_API uint32_t soft_shared_address(const void *p, soft_site site);
SOFT_API void *soft_shared(uint32_t address, int bytes, soft_access access, soft_site site);
SOFT_API void soft_global(const void *p, int bytes, soft_access access, soft_site site);

/* Threads of a block and of a warp. Barrier `id` of `threads` threads; `wait` = false is bar.arrive. */
enum soft_shuffle { SOFT_SHFL_XOR, SOFT_SHFL_INDEX };
SOFT_API void soft_barrier(int id, int threads, bool wait, soft_site site);
SOFT_API void soft_warp_sync(soft_site site);
SOFT_API uint32_t soft_shfl(uint32_t value, soft_shuffle kind, int argument, soft_site site);
[[noreturn]] SOFT_API void soft_trap(soft_site site);

/* Between devices. A thread that polls memory sleeps between its looks: then other threads, and other devices, get their turn. */
SOFT_API void soft_sleep(soft_site site);
SOFT_API uint32_t soft_load_acquire(const void *p, soft_site site);
SOFT_API void soft_store_release(void *p, uint32_t value, soft_site site);
SOFT_API uint32_t soft_atomic_add(void *p, uint32_t value, soft_site site);

/* sm_80: asynchronous copies of 16 bytes, matrix loads, tensor cores. */
SOFT_API void soft_cp_async(uint32_t to, const void *from, int bytes, soft_site site);
SOFT_API void soft_cp_async_commit(void);
SOFT_API void soft_cp_async_wait(int newest, soft_site site);
SOFT_API void soft_ldmatrix(uint32_t *r, uint32_t address, int matrices, bool trans, soft_site site);
SOFT_API void soft_stmatrix(uint32_t address, const uint32_t *r, int matrices, bool trans, soft_site site);
/* A warp tile: mi x ni instructions m16n8 with one k step of 32 bytes per row. d [mi][ni][4], a [mi][4], b [ni][2]. */
enum soft_operand { SOFT_BF16, SOFT_E4M3 };
SOFT_API void soft_mma(float *d, const uint32_t *a, const uint32_t *b, int mi, int ni, soft_operand type,
                       soft_site site);

/* sm_90: mbarriers, tensor copies, warpgroup matrix products. */
SOFT_API void soft_mbar_init(uint32_t bar, uint32_t count, soft_site site);
SOFT_API void soft_mbar_arrive(uint32_t bar, uint32_t expect_bytes, soft_site site);
SOFT_API void soft_mbar_wait(uint32_t bar, uint32_t parity, soft_site site);
SOFT_API void soft_fence_mbar_init(void);
SOFT_API void soft_fence_proxy_async(void);
SOFT_API void soft_tma_load(uint32_t to, const void *map, uint32_t bar, const int *at, int rank,
                            soft_site site);
SOFT_API void soft_tma_store(const void *map, uint32_t from, const int *at, int rank, soft_site site);
SOFT_API void soft_bulk_commit(void);
SOFT_API void soft_bulk_wait(int newest, soft_site site);
SOFT_API void soft_tensor_map(const void *map, soft_site site); /* prefetch: only checked */
SOFT_API void soft_wgmma(float *d, int n, const uint32_t *a, uint64_t a_desc, uint64_t b_desc,
                         bool b_mn_major, bool accumulate, soft_operand type, soft_site site);
SOFT_API void soft_wgmma_fence(void);
SOFT_API void soft_wgmma_commit(soft_site site);
SOFT_API void soft_wgmma_wait(int newest, soft_site site);
SOFT_API void soft_setmaxnreg(int registers, bool increase, soft_site site);
SOFT_API void soft_grid_wait(soft_site site);
SOFT_API void soft_grid_launch_dependents(void);

/* A variable in shared memory that threads exchange data through: each access is seen by the race check. */
template <class T>
struct shared {
    T raw;
    operator T() const
    {
        soft_shared(soft_shared_address(&raw, {}), sizeof(T), SOFT_READ, {});
        return raw;
    }
    shared &operator=(T value)
    {
        soft_shared(soft_shared_address(&raw, {}), sizeof(T), SOFT_WRITE, {});
        raw = value;
        return *this;
    }
    shared &operator=(const shared &other)
    {
        return *this = (T)other;
    }
};

#endif
