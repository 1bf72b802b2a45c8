/* counters.cpp: what an access pattern would cost on the chip. A warp instruction's 32 accesses reach us one by one; each lane keeps
 * a log, and when the warp meets, entries of the same source line at the head of the logs are taken as one instruction. */
#include "soft.h"

#include <sys/mman.h>

struct access {
    uint64_t address;
    int line;
    int16_t bytes;
    bool global;
};

static struct softgpu_counters totals;
static pthread_mutex_t totals_lock = PTHREAD_MUTEX_INITIALIZER;

void count_access(struct thread *t, uint64_t address, int bytes, bool global)
{
    if (t->log_end == t->log_size) {
        uint32_t larger = t->log_size ? 2 * t->log_size : 256;
        void *log =
            t->log ? mremap(t->log, sizeof *t->log * t->log_size, sizeof *t->log * larger, MREMAP_MAYMOVE)
                   : mmap(NULL, sizeof *t->log * larger, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                          -1, 0);
        if (log == MAP_FAILED) fault(t, CUDA_ERROR_OUT_OF_MEMORY, "no host memory to count accesses");
        t->log = (struct access *)log;
        t->log_size = larger;
    }
    t->log[t->log_end++] = {address, t->site.line, (int16_t)bytes, global};
}

/* A request for shared memory goes in phases of 128 bytes (8 lanes of 16, 16 of 8, 32 of 4); in a phase each of the 32 banks of
 * 4 bytes gives one word (to all who want it), further words take further wavefronts. */
void count_phases(struct block *b, const uint32_t *addresses, int lanes, int bytes)
{
    int per_phase = bytes >= 4 ? 128 / bytes : 32;
    for (int from = 0; from < lanes; from += per_phase) {
        if (bytes == 16 && from + 8 <= lanes) { /* the usual case: 8 rows in 8 different groups of banks */
            uint32_t groups = 0;
            for (int i = from; i < from + 8; i++) groups |= 1u << (addresses[i] >> 4 & 7);
            if (groups == 0xff) {
                b->counters.shared_wavefronts++;
                continue;
            }
        }
        uint32_t words[32][32];
        int used[32] = {}, worst = 1;
        for (int i = from; i < lanes && i < from + per_phase; i++)
            for (uint32_t word = addresses[i] / 4; word * 4 < addresses[i] + (uint32_t)bytes; word++) {
                int bank = (int)(word % 32), j = 0;
                while (j < used[bank] && words[bank][j] != word) j++;
                if (j == used[bank]) words[bank][used[bank]++] = word;
                if (used[bank] > worst) worst = used[bank];
            }
        b->counters.shared_wavefronts += (uint64_t)worst;
        b->counters.bank_conflicts += (uint64_t)(worst - 1);
    }
}

static void count_sectors(struct block *b, const uint64_t *addresses, int lanes, int bytes)
{
    uint64_t sectors[64];
    int used = 0;
    for (int i = 0; i < lanes; i++)
        for (uint64_t s = addresses[i] / 32; s * 32 < addresses[i] + (uint64_t)bytes; s++) {
            int j = 0;
            while (j < used && sectors[j] != s) j++;
            if (j == used && used < 64) sectors[used++] = s;
        }
    int width = 0; /* 2 to the power of it: bytes */
    while (1 << width < bytes) width++;
    if (width < SOFTGPU_WIDTHS) b->counters.global_requests[width]++;
    b->counters.global_sectors += (uint64_t)used;
    b->counters.global_sectors_ideal += (uint64_t)((lanes * bytes + 31) / 32);
}

void count_flush(struct block *b, struct warp *w)
{
    uint32_t next[LANES] = {};
    for (;;) {
        const struct access *head = NULL;
        uint32_t shared[LANES];
        uint64_t global[LANES];
        int lanes = 0;
        for (int lane = 0; lane < LANES; lane++) {
            struct thread *t = &b->thread[w->id * LANES + lane];
            if (next[lane] == t->log_end) continue;
            const struct access *a = &t->log[next[lane]];
            if (!head) head = a;
            if (a->line != head->line || a->global != head->global || a->bytes != head->bytes) continue;
            shared[lanes] = (uint32_t)a->address;
            global[lanes++] = a->address;
            next[lane]++;
        }
        if (!head) break;
        if (head->global)
            count_sectors(b, global, lanes, head->bytes);
        else
            count_phases(b, shared, lanes, head->bytes);
    }
    for (int lane = 0; lane < LANES; lane++) b->thread[w->id * LANES + lane].log_end = 0;
}

void counters_add(const struct softgpu_counters *c)
{
    pthread_mutex_lock(&totals_lock);
    uint64_t *to = (uint64_t *)&totals;
    for (size_t i = 0; i < sizeof totals / sizeof *to; i++) to[i] += ((const uint64_t *)c)[i];
    pthread_mutex_unlock(&totals_lock);
}

static struct softgpu_counters at_graph; /* totals when the last graph was launched */
static uint64_t pinned;

static void count(uint64_t *counter)
{
    pthread_mutex_lock(&totals_lock);
    ++*counter;
    pthread_mutex_unlock(&totals_lock);
}

void count_call(void)
{
    count(&totals.calls);
}

void count_stop(void)
{
    count(&totals.stops);
}

void count_wait(void)
{
    count(&totals.waits);
}

void count_graph(void)
{
    pthread_mutex_lock(&totals_lock);
    if (totals.graphs++) {
        totals.stops_between_graphs += totals.stops - at_graph.stops;
        totals.waits_between_graphs += totals.waits - at_graph.waits;
        totals.calls_between_graphs += totals.calls - at_graph.calls;
    }
    at_graph = totals;
    pthread_mutex_unlock(&totals_lock);
}

void count_pinned(size_t taken, size_t given_back)
{
    pthread_mutex_lock(&totals_lock);
    pinned += taken - given_back;
    if (pinned > totals.pinned_peak) totals.pinned_peak = pinned;
    pthread_mutex_unlock(&totals_lock);
}

void softgpu_read_counters(struct softgpu_counters *counters)
{
    pthread_mutex_lock(&totals_lock);
    *counters = totals;
    pthread_mutex_unlock(&totals_lock);
}

void softgpu_reset_counters(void)
{
    pthread_mutex_lock(&totals_lock);
    memset(&totals, 0, sizeof totals);
    totals.pinned_peak = pinned;
    pthread_mutex_unlock(&totals_lock);
}
