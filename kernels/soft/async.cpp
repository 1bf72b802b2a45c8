/* async.cpp: copies that land later than they are issued. Until then their destination holds NaN. When they land is the choice of
 * the mode: cp.async at the thread's wait_group, tensor loads when nobody else can run (late); at a random moment; at once. */
#include "soft.h"
#include "tensor_map.h"

/* ---- cp.async (9.7.9.25.3) ----------------------------------------------------------------------------------------- */

static void land_copy(struct thread *t, struct copy16 *c)
{
    char *to = t->block->slot->window + c->to;
    if (c->bytes == 16) {
        memcpy(to, c->from, 16);
    } else {
        memset(to, 0, 16);
        memcpy(to, c->from, (size_t)c->bytes);
    }
    c->landed = true;
}

void soft_cp_async(uint32_t to, const void *from, int bytes, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "cp.async", site);
    if (bytes < 0 || bytes > 16) fault(t, CUDA_ERROR_LAUNCH_FAILED, "source size %d is not in 0..16", bytes);
    if ((uintptr_t)from % 16)
        fault(t, CUDA_ERROR_MISALIGNED_ADDRESS, "reads from %p: not a multiple of 16", from);
    if (bytes) check_global(t, from, (uint64_t)bytes, 16, SOFT_READ);
    void *p = checked_shared(t, to, 16, 16, SOFT_WRITE);
    if (t->copies_end - t->copies_first == COPIES_MAX)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "more than %d cp.async of one thread are under way", COPIES_MAX);
    if (soft_config.check_races) race_copy_issue(t, to);
    if (soft_config.count_accesses) {
        count_access(t, to, 16, false);
        if (bytes) count_access(t, (uint64_t)(uintptr_t)from, bytes, true);
    }
    b->counters.cp_async_bytes += 16;
    struct copy16 *c = &t->copies[t->copies_end++ % COPIES_MAX];
    *c = {from, to, t->copy_group, bytes, false};
    if (soft_config.async == SOFTGPU_NOW || (soft_config.async == SOFTGPU_RANDOM && block_random(b) % 4 == 0))
        land_copy(t, c);
    else
        memset(p, 0xff, 16);
}

void soft_cp_async_commit(void)
{
    self_thread()->copy_group++;
}

void soft_cp_async_wait(int newest, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "cp.async.wait_group", site);
    for (; t->copies_first != t->copies_end; t->copies_first++) {
        struct copy16 *c = &t->copies[t->copies_first % COPIES_MAX];
        if (c->group + (uint32_t)newest >= t->copy_group) break;
        if (!c->landed) land_copy(t, c);
        if (soft_config.check_races) race_copy_land(t, c->to);
    }
    yield_randomly(t);
}

/* ---- tensor copies (9.7.9.25.5) ------------------------------------------------------------------------------------ */

static const struct soft_tensor_map *get_map(struct thread *t, const void *map)
{
    const struct grid *g = t->block->grid;
    const char *p = (const char *)map, *args = (const char *)g->args;
    if ((uintptr_t)p % 64)
        fault(t, CUDA_ERROR_MISALIGNED_ADDRESS, "tensor map at %p: not 64-byte aligned", map);
    if (!(p >= args && p + 128 <= args + g->kernel->args_size) && !memory_find(map))
        fault(t, CUDA_ERROR_ILLEGAL_ADDRESS,
              "tensor map at %p is neither in the kernel's arguments nor in device memory", map);
    const struct soft_tensor_map *m = (const struct soft_tensor_map *)map;
    if (m->magic != SOFT_TENSOR_MAP_MAGIC)
        fault(t, CUDA_ERROR_ILLEGAL_INSTRUCTION, "the tensor map was not written by cuTensorMapEncodeTiled");
    return m;
}

void soft_tensor_map(const void *map, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "prefetch.tensormap", site);
    get_map(t, map);
}

static uint32_t box_count(const struct soft_tensor_map *m, int d)
{
    return d < m->rank ? ((uint32_t)m->box[d] + m->element_stride[d] - 1) / m->element_stride[d] : 1;
}

static uint32_t box_bytes(const struct soft_tensor_map *m)
{
    uint32_t bytes = (uint32_t)m->stride[0];
    for (int d = 0; d < m->rank; d++) bytes *= box_count(m, d);
    return bytes;
}

/* Between the tensor and the box in shared memory, row by row; outside the tensor a load gives zeros and a store does nothing. */
static void copy_box(struct block *b, const struct flight *f)
{
    const struct soft_tensor_map *m = (const struct soft_tensor_map *)f->map;
    const uint32_t element = (uint32_t)m->stride[0], inner = m->box[0] * element, span = m->swizzle;
    int64_t low = f->at[0] < 0 ? -(int64_t)f->at[0] : 0,
            high = (int64_t)m->dim[0] - f->at[0]; /* columns inside */
    if (high > m->box[0]) high = m->box[0];
    uint32_t address = f->address, n[5];
    for (int d = 0; d < 5; d++) n[d] = d ? box_count(m, d) : 1;
    char row[256 * 8];
    uint32_t i[5] = {};
    for (i[4] = 0; i[4] < n[4]; i[4]++)
        for (i[3] = 0; i[3] < n[3]; i[3]++)
            for (i[2] = 0; i[2] < n[2]; i[2]++)
                for (i[1] = 0; i[1] < n[1]; i[1]++, address += inner) {
                    bool inside = high > low;
                    char *global = (char *)m->base;
                    for (int d = 1; d < m->rank; d++) {
                        int64_t at = (int64_t)f->at[d] + (int64_t)i[d] * m->element_stride[d];
                        inside = inside && at >= 0 && at < m->dim[d];
                        global += at * (int64_t)m->stride[d];
                    }
                    global += ((int64_t)f->at[0] + low) * element;
                    size_t offset = (size_t)low * element,
                           bytes = inside ? (size_t)(high - low) * element : 0;
                    if (f->bar) {
                        memset(row, 0, inner);
                        if (bytes) memcpy(row + offset, global, bytes);
                    }
                    for (uint32_t c = 0; c < inner; c += 16) {
                        char *shared =
                            b->slot->window + (span ? soft_swizzle(address + c, span) : address + c);
                        if (f->bar)
                            memcpy(shared, row + c, 16);
                        else
                            memcpy(row + c, shared, 16);
                    }
                    if (!f->bar && bytes) memcpy(global, row + offset, bytes);
                }
}

static struct flight *flight_new(struct thread *t, const void *map, uint32_t address, const int *at, int rank,
                                 soft_access shared, soft_site site)
{
    struct block *b = t->block;
    const struct soft_tensor_map *m = get_map(t, map);
    if (m->rank != rank)
        fault(t, CUDA_ERROR_ILLEGAL_INSTRUCTION, "%d-D copy with a tensor map of rank %d", rank, m->rank);
    uint32_t bytes = box_bytes(m);
    checked_shared(t, address, bytes, 128, shared);
    uint64_t extent = m->stride[0] * m->dim[0];
    for (int d = 1; d < m->rank; d++) extent += m->stride[d] * (m->dim[d] - 1);
    check_global(t, (const void *)m->base, extent, 16, shared == SOFT_WRITE ? SOFT_READ : SOFT_WRITE);
    if (b->flight_count == FLIGHTS_MAX)
        fault(t, CUDA_ERROR_NOT_SUPPORTED, "more than %d tensor copies of a block are under way",
              FLIGHTS_MAX);
    struct flight *f = &b->flights[b->flight_count++];
    memset(f, 0, sizeof *f);
    f->map = map;
    f->address = address;
    f->bytes = bytes;
    f->thread = t;
    f->site = site;
    memcpy(f->at, at, sizeof(int) * (size_t)rank);
    b->counters.tma_bytes += bytes;
    return f;
}

static void flight_remove(struct block *b, int i)
{
    memmove(&b->flights[i], &b->flights[i + 1], sizeof *b->flights * (size_t)(--b->flight_count - i));
}

static void land_load(struct block *b, int i)
{
    struct flight f = b->flights[i];
    flight_remove(b, i);
    copy_box(b, &f);
    mbar_complete_bytes(b, f.bar, f.phase, f.bytes, f.site, f.thread);
}

bool flights_land_one(struct block *b, bool random)
{
    int loads[64], n = 0;
    for (int i = 0; i < b->flight_count && n < 64; i++)
        if (b->flights[i].bar) loads[n++] = i;
    if (!n) return false;
    land_load(b, loads[random ? block_random(b) % (uint64_t)n : 0]);
    return true;
}

void soft_tma_load(uint32_t to, const void *map, uint32_t bar, const int *at, int rank, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "tensor load", site);
    struct mbar *m = mbar_find(b, bar);
    if (!m)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "completes on shared+0x%x, which is not an initialised mbarrier",
              bar);
    struct flight *f = flight_new(t, map, to, at, rank, SOFT_WRITE, site);
    m->announced -= f->bytes;
    if (m->announced < 0) /* the ISA would allow to announce them later; klein announces first */
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "expect_tx announced %lld bytes too few on mbarrier shared+0x%x (a full box counts, clipped or "
              "not)",
              (long long)-m->announced, bar);
    f->bar = m;
    f->phase = m->phase;
    if (soft_config.check_races) race_bulk_write(t, to, f->bytes, m);
    memset(b->slot->window + to, 0xff, f->bytes);
    if (soft_config.async == SOFTGPU_NOW) land_load(b, b->flight_count - 1);
}

void soft_tma_store(const void *map, uint32_t from, const int *at, int rank, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "tensor store", site);
    struct flight *f = flight_new(t, map, from, at, rank, SOFT_READ, site);
    f->group = t->bulk_group;
    if (soft_config.check_races)
        race_bulk_read(t, &t->warp->seen, &t->warp->proxied, from, f->bytes, "reads");
    b->reads_pending++;
    if (soft_config.async == SOFTGPU_NOW) {
        copy_box(b, f);
        f->landed = true;
    }
}

void soft_bulk_commit(void)
{
    self_thread()->bulk_group++;
}

void soft_bulk_wait(int newest, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, "cp.async.bulk.wait_group", site);
    for (int i = 0; i < b->flight_count; i++) {
        struct flight *f = &b->flights[i];
        if (f->bar || f->thread != t || f->group + (uint32_t)newest >= t->bulk_group) continue;
        if (!f->landed) copy_box(b, f);
        if (soft_config.check_races) race_bulk_read_done(b, t->warp->id, 1, f->address, f->bytes);
        b->reads_pending--;
        flight_remove(b, i--);
    }
}

bool flights_reading(struct block *b, uint32_t from, uint32_t to, struct flight **which)
{
    for (int i = 0; i < b->flight_count; i++) {
        struct flight *f = &b->flights[i];
        if (f->bar || f->address >= to || f->address + f->bytes <= from) continue;
        *which = f;
        return true;
    }
    return false;
}

void flights_check_exit(struct block *b, struct thread *t)
{
    for (int i = 0; i < b->flight_count; i++)
        if (!b->flights[i].bar && b->flights[i].thread == t)
            fault(t, CUDA_ERROR_LAUNCH_FAILED,
                  "ends while its tensor store from shared+0x%x (line %d) may still read shared memory: "
                  "cp.async.bulk.wait_group is missing",
                  b->flights[i].address, b->flights[i].site.line);
}
