/* access.cpp: shared and global memory as kernels reach them: addresses, bounds, alignment. */
#include "driver.h"

void *soft_dynamic_shared(size_t size, size_t align, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "SHARED", site);
    if (size > b->shared_size)
        fault(t, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
              "the kernel uses %zu bytes of shared memory but was launched with %u", size, b->shared_size);
    if (align > 1024)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "shared memory is 1024-aligned at most, not %zu", align);
    if (!b->shared_taken) { /* no more aligned than asked for */
        b->shared_taken = true;
        if (soft_config.seed && align < 1024)
            b->shared_base -= (uint32_t)(block_random(b) % (1024 / align) * align);
    }
    return b->slot->window + b->shared_base;
}

uint32_t soft_shared_address(const void *p, soft_site site)
{
    struct thread *t = self_thread();
    uintptr_t offset = (uintptr_t)p - (uintptr_t)t->block->slot->window;
    if (offset >= WINDOW) {
        enter(t, "shared_address", site);
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS, "%p is not in shared memory", p);
    }
    return (uint32_t)offset;
}

static const char *access_name(soft_access access)
{
    return access == SOFT_WRITE ? "writes" : "reads";
}

void *checked_shared(struct thread *t, uint32_t address, uint32_t bytes, uint32_t align, soft_access access)
{
    struct block *b = t->block;
    if (address % align)
        fault(t, CUDA_ERROR_MISALIGNED_ADDRESS, "%s %u bytes at shared+0x%x: not a multiple of %u",
              access_name(access), bytes, address, align);
    if (address < b->shared_base || address + bytes > b->shared_base + b->shared_size)
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS,
              "%s %u bytes at shared+0x%x: outside the dynamic shared memory, shared+0x%x .. +%u bytes",
              access_name(access), bytes, address, b->shared_base, b->shared_size);
    return b->slot->window + address;
}

void *soft_shared(uint32_t address, int bytes, soft_access access, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, access == SOFT_WRITE ? "st.shared" : "ld.shared", site);
    void *p = checked_shared(t, address, (uint32_t)bytes, (uint32_t)bytes, access);
    if (soft_config.check_races) (access == SOFT_WRITE ? race_write : race_read)(t, address, bytes);
    if (soft_config.count_accesses) count_access(t, address, bytes, false);
    return p;
}

void check_global(struct thread *t, const void *p, uint64_t bytes, uint32_t align, soft_access access)
{
    if ((uintptr_t)p % align)
        fault(t, CUDA_ERROR_MISALIGNED_ADDRESS, "%s %llu bytes at %p: not a multiple of %u",
              access_name(access), (unsigned long long)bytes, p, align);
    const struct allocation *a = memory_find(p);
    if (!a || (const char *)p + bytes > a->base + a->size) {
        char where[256];
        memory_describe(p, where, sizeof where);
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS, "%s %llu bytes out of bounds: %s", access_name(access),
              (unsigned long long)bytes, where);
    }
    if (access == SOFT_WRITE && !t->block->grid->released)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "writes global memory before griddepcontrol.wait: the kernels before it may still use it");
    if (!memory_accessible(a, t->block->grid->device))
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS, "%s memory of device %d from device %d without peer access",
              access_name(access), a->device, t->block->grid->device);
}

void soft_global(const void *p, int bytes, soft_access access, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, access == SOFT_WRITE ? "st.global" : "ld.global", site);
    check_global(t, p, (uint64_t)bytes, (uint32_t)bytes, access);
    if (access == SOFT_READ && !t->block->grid->released)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "reads global memory before griddepcontrol.wait, and not as data that no kernel writes");
    if (soft_config.count_accesses) count_access(t, (uint64_t)(uintptr_t)p, bytes, true);
}

/* ---- words that several devices, or the host, use at a time -------------------------------------------------------- */

uint32_t soft_load_acquire(const void *p, soft_site site)
{
    soft_global(p, 4, SOFT_READ, site);
    return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE);
}

void soft_store_release(void *p, uint32_t value, soft_site site)
{
    soft_global(p, 4, SOFT_WRITE, site);
    __atomic_store_n((uint32_t *)p, value, __ATOMIC_RELEASE);
    __atomic_fetch_add(&soft_progress, 1, __ATOMIC_RELAXED);
}

uint32_t soft_atomic_add(void *p, uint32_t value, soft_site site)
{
    soft_global(p, 4, SOFT_WRITE, site);
    return __atomic_fetch_add((uint32_t *)p, value, __ATOMIC_ACQ_REL);
}

/* ---- ldmatrix, stmatrix (9.7.14.5.15, .16) ---------------------------------------------------------------------- */

struct matrices {
    uint32_t *r;
    uint32_t address;
    int count;
    bool trans, store;
};

/* Lane 8j + i holds the address of row i of matrix j. Register j of lane l is row l/4, columns 2(l%4), +1; transposed: rows
 * 2(l%4), +1 of column l/4. */
static void move_matrices(struct warp *w, struct block *b, void **arguments)
{
    struct matrices **m = (struct matrices **)arguments;
    const struct matrices *first = m[0];
    uint32_t addresses[LANES];
    char *row[LANES];
    for (int i = 0; i < 8 * first->count; i++) {
        struct thread *t = &b->thread[w->id * LANES + i];
        addresses[i] = m[i]->address;
        row[i] = (char *)checked_shared(t, m[i]->address, 16, 16, first->store ? SOFT_WRITE : SOFT_READ);
        if (soft_config.check_races) (first->store ? race_write : race_read)(t, m[i]->address, 16);
    }
    count_phases(b, addresses, 8 * first->count, 16);
    if (!first->trans && !first->store) { /* the usual case, a word at a time */
        for (int lane = 0; lane < LANES; lane++)
            for (int j = 0; j < first->count; j++)
                memcpy(&m[lane]->r[j], row[8 * j + lane / 4] + 4 * (lane % 4), 4);
        return;
    }
    for (int lane = 0; lane < LANES; lane++)
        for (int j = 0; j < first->count; j++)
            for (int half = 0; half < 2; half++) {
                int r = first->trans ? 2 * (lane % 4) + half : lane / 4;
                int c = first->trans ? lane / 4 : 2 * (lane % 4) + half;
                char *element = row[8 * j + r] + 2 * c;
                uint16_t *reg = (uint16_t *)&m[lane]->r[j] + half;
                if (first->store)
                    memcpy(element, reg, 2);
                else
                    memcpy(reg, element, 2);
            }
}

void soft_ldmatrix(uint32_t *r, uint32_t address, int matrices, bool trans, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, trans ? "ldmatrix.trans" : "ldmatrix", site);
    struct matrices m = {r, address, matrices, trans, false};
    meet_warp(t, &m, move_matrices);
}

void soft_stmatrix(uint32_t address, const uint32_t *r, int matrices, bool trans, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, trans ? "stmatrix.trans" : "stmatrix", site);
    struct matrices m = {const_cast<uint32_t *>(r), address, matrices, trans, true};
    meet_warp(t, &m, move_matrices);
}
