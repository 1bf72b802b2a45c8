/* wgmma.cpp: asynchronous products of a warpgroup (PTX ISA 9.7.15). The 128 threads post an instruction without waiting for one
 * another; it is computed at the wait_group that covers it (late), or earlier. From the first post on, the accumulators live here
 * and the thread's registers hold NaN, until all products on them were waited for. */
#include "soft.h"
#include "tensor_map.h"

#include <sys/mman.h>

enum { PRODUCTS_MAX = 128, SETS_MAX = 8, N_MAX = 256, K_BYTES = 32 };

struct product {
    uint64_t a_desc, b_desc;
    const uint32_t *a[WARPGROUP]; /* registers, or NULL: a is in shared memory */
    int n, posted, set;
    bool b_mn_major, accumulate, computed;
    soft_operand type;
    soft_site site;
    uint32_t a_from, a_to, b_from, b_to; /* what it reads */
};

struct accumulators {
    float *d[WARPGROUP];
    bool taken[WARPGROUP];
    int n, pending; /* products that use them */
    float values[WARPGROUP][N_MAX / 2] __attribute__((aligned(64)));
};

struct products {
    uint32_t first, end; /* not waited for: [first, end), modulo PRODUCTS_MAX */
    uint32_t groups, group_end[PRODUCTS_MAX];
    uint32_t commits[WARPGROUP];
    struct product ring[PRODUCTS_MAX];
    struct accumulators sets[SETS_MAX];
    float a[WARPGROUP / 4][K_BYTES][4] __attribute__((aligned(64))); /* [8 w + g][k][low, low, high, high] */
    float b[4][K_BYTES * N_MAX / 2] __attribute__((aligned(64)));    /* [q][k][n/2] */
};

void products_reset(struct block *b)
{
    for (int g = 0; g < WARPS_MAX / 4; g++) {
        struct products *p = b->slot->products[g];
        if (!p) continue;
        p->first = p->end = p->groups = 0;
        memset(p->commits, 0, sizeof p->commits);
        for (int i = 0; i < SETS_MAX; i++) p->sets[i].pending = 0;
    }
}

/* ---- operands in shared memory ----------------------------------------------------------------------------------- */

/* The matrix descriptor (9.7.15.5.1.2.2). */
struct descriptor {
    uint32_t start, leading, stride, base_offset, span;
};

static struct descriptor descriptor_of(uint64_t d)
{
    static const uint32_t spans[] = {0, 128, 64, 32};
    return {(uint32_t)(d & 0x3fff) << 4, (uint32_t)(d >> 16 & 0x3fff) << 4, (uint32_t)(d >> 32 & 0x3fff) << 4,
            (uint32_t)(d >> 49 & 7), spans[d >> 62 & 3]};
}

/* Address of the 16-byte chunk c (0, 1) of row r of a K-major operand. */
static uint32_t k_major_chunk(const struct descriptor *d, int r, int c)
{
    if (!d->span)
        return d->start + (uint32_t)(r / 8) * d->stride + (uint32_t)(r % 8) * 16 + (uint32_t)c * d->leading;
    return soft_swizzle(
        d->start + (uint32_t)(r / 8) * d->stride + (uint32_t)(r % 8) * d->span + (uint32_t)c * 16, d->span);
}

/* Address of the 16-byte chunk with elements mn..mn+7 at k of an MN-major operand of 16-bit elements. */
static uint32_t mn_major_chunk(const struct descriptor *d, int mn, int k)
{
    int row = (int)d->span / 2;
    return soft_swizzle(d->start + (uint32_t)(mn / row) * d->leading + (uint32_t)(k / 8) * d->stride +
                            (uint32_t)(k % 8) * d->span + (uint32_t)(mn % row) * 2,
                        d->span);
}

/* The bytes that the operand of `rows` rows spans, for the checks; ends the kernel if the descriptor cannot be right. */
static void operand_range(struct thread *t, const char *name, uint64_t desc, int rows, bool mn_major,
                          uint32_t *from, uint32_t *to)
{
    struct descriptor d = descriptor_of(desc);
    uint32_t repeat = d.span / 16; /* the pattern repeats every 8 * span bytes: address bits above 7 */
    if (d.span && (d.start >> 7 & (repeat - 1)) != d.base_offset)
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "misaligned tile: operand %s starts at shared+0x%x, which is not a multiple of %u (swizzle of "
              "%u bytes), and the descriptor's "
              "base offset is %u",
              name, d.start, 8 * d.span, d.span, d.base_offset);
    if (mn_major && !d.span)
        fault(t, CUDA_ERROR_NOT_SUPPORTED, "operand %s: the soft GPU does MN-major with a swizzle only",
              name);
    uint32_t low = WINDOW, high = 0;
    for (int r = 0; r < rows; r += 8)
        for (int c = 0; c < 2; c++) {
            uint32_t first = mn_major ? mn_major_chunk(&d, r, 8 * c) : k_major_chunk(&d, r, c), last = first;
            if (!mn_major) last = k_major_chunk(&d, r + 7, c);
            if (d.span) first &= ~(d.span - 1), last = (last & ~(d.span - 1)) + d.span - 16;
            if (mn_major) last = first + 7 * d.span + d.span - 16;
            if (first < low) low = first;
            if (last + 16 > high) high = last + 16;
        }
    checked_shared(t, low, high - low, 16, SOFT_READ);
    *from = low;
    *to = high;
}

static void decode_chunk(const char *chunk, soft_operand type, float *out)
{
    if (type == SOFT_BF16)
        for (int i = 0; i < 8; i++) out[i] = bf16_value(((const uint16_t *)chunk)[i]);
    else
        for (int i = 0; i < 16; i++) out[i] = e4m3_values[((const uint8_t *)chunk)[i]];
}

static void load_a_shared(struct block *b, struct products *p, const struct product *m)
{
    struct descriptor d = descriptor_of(m->a_desc);
    int per_chunk = m->type == SOFT_BF16 ? 8 : 16;
    float e[16];
    for (int r = 0; r < 64; r++)
        for (int c = 0; c < 2; c++) {
            decode_chunk(b->slot->window + k_major_chunk(&d, r, c), m->type, e);
            float(*row)[4] = p->a[r / 16 * 8 + r % 8] + c * per_chunk;
            int half = r % 16 / 8 * 2;
            for (int k = 0; k < per_chunk; k++) row[k][half] = row[k][half + 1] = e[k];
        }
}

/* Registers as for mma.sync: 0, 2 row g; 1, 3 row g + 8; 2, 3 the second half of k. */
static void load_a_registers(struct products *p, const struct product *m)
{
    int k = m->type == SOFT_BF16 ? 16 : 32, per_register = k / 8;
    for (int t = 0; t < WARPGROUP; t++) {
        int g = t % LANES / 4, q = t % 4;
        for (int r = 0; r < 4; r++)
            for (int x = 0; x < per_register; x++) {
                uint32_t bits = m->a[t][r];
                float *pattern = p->a[t / LANES * 8 + g][q * per_register + x + r / 2 * (k / 2)];
                pattern[r % 2 * 2] = pattern[r % 2 * 2 + 1] = m->type == SOFT_BF16
                                                                  ? bf16_value((uint16_t)(bits >> 16 * x))
                                                                  : e4m3_values[bits >> 8 * x & 255];
            }
    }
}

/* Column n of b belongs to q = n % 8 / 2; of its floats per 8 columns it is n % 2 and n % 2 + 2. */
static void load_b(struct block *b, struct products *p, const struct product *m)
{
    struct descriptor d = descriptor_of(m->b_desc);
    int per_chunk = m->type == SOFT_BF16 ? 8 : 16, width = m->n / 2;
    float e[16];
    if (m->b_mn_major) {
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < m->n; n += 8) {
                decode_chunk(b->slot->window + mn_major_chunk(&d, n, k), m->type, e);
                for (int i = 0; i < 8; i++) {
                    float *out = p->b[i / 2] + k * width + n / 2 + i % 2;
                    out[0] = out[2] = e[i];
                }
            }
        return;
    }
    for (int n = 0; n < m->n; n++)
        for (int c = 0; c < 2; c++) {
            decode_chunk(b->slot->window + k_major_chunk(&d, n, c), m->type, e);
            float *out = p->b[n % 8 / 2] + c * per_chunk * width + n / 8 * 4 + n % 2;
            for (int k = 0; k < per_chunk; k++, out += width) out[0] = out[2] = e[k];
        }
}

static void compute(struct block *b, struct products *p, struct product *m)
{
    struct accumulators *set = &p->sets[m->set];
    int k = m->type == SOFT_BF16 ? 16 : 32;
    if (m->a[0])
        load_a_registers(p, m);
    else
        load_a_shared(b, p, m);
    load_b(b, p, m);
    if (!m->accumulate)
        for (int t = 0; t < WARPGROUP; t++) memset(set->values[t], 0, sizeof(float) * (size_t)(m->n / 2));
    for (int q = 0; q < 4; q++) {
        struct fragment_rows rows[WARPGROUP / 4];
        for (int i = 0; i < WARPGROUP / 4; i++)
            rows[i] = {set->values[i / 8 * LANES + i % 8 * 4 + q], &p->a[i][0][0]};
        tensor_core(rows, WARPGROUP / 4, p->b[q], m->n / 2, k, m->type);
    }
    m->computed = true;
    b->counters.tensor_flops += 2ull * 64 * (uint64_t)(m->n * k);
}

/* ---- posting and waiting ------------------------------------------------------------------------------------------ */

static void give_back(struct accumulators *set)
{
    for (int i = 0; i < WARPGROUP; i++) memcpy(set->d[i], set->values[i], sizeof(float) * (size_t)set->n / 2);
}

static void all_posted(struct thread *t, struct products *p, struct product *m)
{
    struct block *b = t->block;
    operand_range(t, "b", m->b_desc, m->n, m->b_mn_major, &m->b_from, &m->b_to);
    if (!m->a[0]) operand_range(t, "a", m->a_desc, 64, false, &m->a_from, &m->a_to);
    if (soft_config.check_races) { /* what all four warps know */
        struct clock seen, proxied;
        const struct warp *w = &b->warps[t->id / WARPGROUP * 4];
        for (int i = 0; i < CLOCKS; i++) {
            seen.at[i] = proxied.at[i] = UINT32_MAX;
            for (int j = 0; j < 4; j++) {
                if (w[j].seen.at[i] < seen.at[i]) seen.at[i] = w[j].seen.at[i];
                if (w[j].proxied.at[i] < proxied.at[i]) proxied.at[i] = w[j].proxied.at[i];
            }
        }
        race_bulk_read(t, &seen, &proxied, m->b_from, m->b_to - m->b_from, "reads operand b at");
        if (!m->a[0])
            race_bulk_read(t, &seen, &proxied, m->a_from, m->a_to - m->a_from, "reads operand a at");
    }
    b->reads_pending++;
    if (soft_config.async == SOFTGPU_LATE || (soft_config.async == SOFTGPU_RANDOM && block_random(b) % 2))
        return;
    for (uint32_t i = p->first; i != p->end; i++) { /* in order */
        struct product *o = &p->ring[i % PRODUCTS_MAX];
        if (o->posted == WARPGROUP && !o->computed) compute(b, p, o);
    }
    if (soft_config.async == SOFTGPU_NOW) give_back(&p->sets[m->set]);
}

static int find_set(struct thread *t, struct products *p, int who, float *d, int n)
{
    int unused = -1;
    for (int i = 0; i < SETS_MAX; i++) {
        struct accumulators *s = &p->sets[i];
        if (s->pending && s->taken[who] && s->d[who] == d) {
            if (s->n != n)
                fault(t, CUDA_ERROR_LAUNCH_FAILED, "n = %d, but these accumulators are in use with n = %d", n,
                      s->n);
            return i;
        }
        if (!s->pending) unused = i;
    }
    if (unused < 0)
        fault(t, CUDA_ERROR_NOT_SUPPORTED, "more than %d sets of accumulators are in use", SETS_MAX);
    memset(p->sets[unused].taken, 0, sizeof p->sets[unused].taken);
    p->sets[unused].n = n;
    return unused;
}

void soft_wgmma(float *d, int n, const uint32_t *a, uint64_t a_desc, uint64_t b_desc, bool b_mn_major,
                bool accumulate, soft_operand type, soft_site site)
{
    struct thread *t = self_thread();
    struct block *b = t->block;
    enter(t, type == SOFT_BF16 ? "wgmma.bf16" : "wgmma.e4m3", site);
    int g = t->id / WARPGROUP, who = t->id % WARPGROUP;
    if ((g + 1) * WARPGROUP > b->threads)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "needs whole warpgroups of 128 threads");
    if (n < 8 || n > N_MAX || n % 8)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "n = %d is not a multiple of 8 in 8..256", n);
    if (b_mn_major && type != SOFT_BF16)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "8-bit operands are K-major only");
    struct products **slot = &b->slot->products[g];
    if (!*slot) {
        void *p = mmap(NULL, sizeof **slot, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) fault(t, CUDA_ERROR_OUT_OF_MEMORY, "no host memory");
        *slot = (struct products *)p;
    }
    struct products *p = *slot;
    uint32_t index = t->wgmma_posted++;
    if (index - p->first >= PRODUCTS_MAX)
        fault(t, CUDA_ERROR_NOT_SUPPORTED, "more than %d wgmma not waited for", PRODUCTS_MAX);
    struct product *m = &p->ring[index % PRODUCTS_MAX];
    if (index == p->end) {
        p->end++;
        memset(m, 0, sizeof *m);
        m->a_desc = a_desc, m->b_desc = b_desc, m->n = n, m->type = type, m->site = site;
        m->b_mn_major = b_mn_major, m->accumulate = accumulate;
        m->set = find_set(t, p, who, d, n);
        p->sets[m->set].pending++;
    } else if (m->a_desc != a_desc || m->b_desc != b_desc || m->n != n || m->type != type ||
               m->accumulate != accumulate || m->site.line != site.line) {
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "divergence: other threads of the warpgroup issued another wgmma (line %d) or other operands",
              m->site.line);
    }
    struct accumulators *set = &p->sets[m->set];
    if (!set->taken[who]) { /* the first product on these registers since they were waited for */
        if (!t->wgmma_fenced)
            fault(t, CUDA_ERROR_LAUNCH_FAILED,
                  "wgmma.fence is missing before the first wgmma on registers that were touched");
        set->taken[who] = true;
        set->d[who] = d;
        memcpy(set->values[who], d, sizeof(float) * (size_t)n / 2);
        if (soft_config.async != SOFTGPU_NOW) memset(d, 0xff, sizeof(float) * (size_t)n / 2);
    } else if (set->d[who] != d) {
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "divergence: accumulators differ from those of the other threads");
    }
    m->a[who] = a;
    if (++m->posted == WARPGROUP) all_posted(t, p, m);
}

void soft_wgmma_fence(void)
{
    self_thread()->wgmma_fenced = true;
}

void soft_wgmma_commit(soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "wgmma.commit_group", site);
    struct products *p = t->block->slot->products[t->id / WARPGROUP];
    if (!p) return;
    uint32_t group = p->commits[t->id % WARPGROUP]++;
    if (group == p->groups) {
        p->group_end[p->groups++ % PRODUCTS_MAX] = t->wgmma_posted;
    } else if (p->group_end[group % PRODUCTS_MAX] != t->wgmma_posted) {
        fault(t, CUDA_ERROR_LAUNCH_FAILED,
              "divergence: groups of other threads of the warpgroup hold other wgmma");
    }
}

/* All threads are at the wait: what is older than the newest groups is computed, its operands are free, and accumulators that no
 * product uses any more go back into the registers. */
static void retire(struct block *b, int group, void **arguments)
{
    struct products *p = b->slot->products[group];
    uint32_t newest = *(uint32_t *)arguments[0];
    if (!p || p->groups <= newest) return;
    uint32_t end = p->group_end[(p->groups - newest - 1) % PRODUCTS_MAX];
    for (; (int32_t)(end - p->first) > 0; p->first++) {
        struct product *m = &p->ring[p->first % PRODUCTS_MAX];
        if (!m->computed) compute(b, p, m);
        b->reads_pending--;
        if (soft_config.check_races) {
            race_bulk_read_done(b, group * 4, 4, m->b_from, m->b_to - m->b_from);
            if (!m->a[0]) race_bulk_read_done(b, group * 4, 4, m->a_from, m->a_to - m->a_from);
        }
        if (--p->sets[m->set].pending == 0) give_back(&p->sets[m->set]);
    }
}

void soft_wgmma_wait(int newest, soft_site site)
{
    struct thread *t = self_thread();
    enter(t, "wgmma.wait_group", site);
    uint32_t argument = (uint32_t)newest;
    meet_group(t, &argument, retire);
    t->wgmma_fenced = false;
}

bool products_reading(struct block *b, uint32_t from, uint32_t to, int *group, soft_site *site)
{
    for (int g = 0; g < b->threads / WARPGROUP; g++) {
        const struct products *p = b->slot->products[g];
        for (uint32_t i = p ? p->first : 0; p && i != p->end; i++) {
            const struct product *m = &p->ring[i % PRODUCTS_MAX];
            if (m->posted < WARPGROUP ||
                ((m->b_from >= to || m->b_to <= from) && (m->a_from >= to || m->a_to <= from)))
                continue;
            *group = g;
            *site = m->site;
            return true;
        }
    }
    return false;
}

void products_check_exit(struct block *b, struct thread *t)
{
    const struct products *p = b->threads >= WARPGROUP ? b->slot->products[t->id / WARPGROUP] : NULL;
    if (p && p->first != p->end && t->wgmma_posted)
        fault(t, CUDA_ERROR_LAUNCH_FAILED, "ends with a wgmma (line %d) that was never waited for",
              p->ring[p->first % PRODUCTS_MAX].site.line);
}
