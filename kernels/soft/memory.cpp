/* memory.cpp: device memory. Each allocation is a mapping of its own that ends at an inaccessible page, so that even a plain access
 * beyond it faults; it starts as NaN, and the bytes between its size and the page are checked when it is freed. Device addresses are
 * host addresses. Changed only under the driver's lock, and never while a kernel runs. */
#include "soft.h"
#include "driver.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE = 4096, ALIGN = 256, GUARD = 1 << 20 /* inaccessible, on both sides */ };

static struct allocation *table; /* sorted by address */
static int count, capacity;
static uint64_t numbers;

/* Index of the first allocation that starts beyond p. */
static int upper(const void *p)
{
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (table[middle].base <= (const char *)p)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct allocation *memory_find(const void *p)
{
    static thread_local int last;
    if (last < count && (const char *)p >= table[last].base &&
        (const char *)p < table[last].base + table[last].size)
        return &table[last];
    int i = upper(p) - 1;
    if (i < 0 || (const char *)p >= table[i].base + table[i].size) return NULL;
    last = i;
    return &table[i];
}

static const char *place(const struct allocation *a, char *out, size_t size)
{
    if (a->device < 0)
        snprintf(out, size, "pinned host allocation %llu of %zu bytes", (unsigned long long)a->number,
                 a->size);
    else
        snprintf(out, size, "allocation %llu of %zu bytes on device %d", (unsigned long long)a->number,
                 a->size, a->device);
    return out;
}

void memory_describe(const void *p, char *out, size_t size)
{
    const char *at = (const char *)p;
    char name[128];
    int i = upper(p);
    const struct allocation *before = i > 0 ? &table[i - 1] : NULL, *after = i < count ? &table[i] : NULL;
    if (before && at < before->base + before->size)
        snprintf(out, size, "%p is %zu bytes into %s", p, (size_t)(at - before->base),
                 place(before, name, sizeof name));
    else if (before && at < before->base + before->size + (1 << 20))
        snprintf(out, size, "%p is %zu bytes past the end of %s", p,
                 (size_t)(at - before->base) - before->size, place(before, name, sizeof name));
    else if (after && after->base - at < 1 << 20)
        snprintf(out, size, "%p is %zu bytes before %s", p, (size_t)(after->base - at),
                 place(after, name, sizeof name));
    else
        snprintf(out, size, "%p is not device memory", p);
}

CUresult memory_new(size_t size, int device, void **out)
{
    size_t rounded = (size + ALIGN - 1) / ALIGN * ALIGN, pages = (rounded + PAGE - 1) / PAGE * PAGE;
    if (rounded < size || pages < rounded) return CUDA_ERROR_OUT_OF_MEMORY;
    if (count == capacity) {
        int larger = capacity ? 2 * capacity : 64;
        struct allocation *t = (struct allocation *)realloc(table, sizeof *t * (size_t)larger);
        if (!t) return CUDA_ERROR_OUT_OF_MEMORY;
        table = t;
        capacity = larger;
    }
    char *map =
        (char *)mmap(NULL, pages + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    if (mprotect(map + GUARD, pages, PROT_READ | PROT_WRITE)) {
        munmap(map, pages + 2 * GUARD);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memset(map + GUARD, 0xff, pages);
    char *base = map + GUARD + pages - rounded;
    int i = upper(base);
    memmove(&table[i + 1], &table[i], sizeof *table * (size_t)(count - i));
    table[i] = {base, size, map, pages + 2 * GUARD, device, ++numbers};
    count++;
    *out = base;
    return CUDA_SUCCESS;
}

/* Were the bytes around the allocation written? Describes it if so. */
static bool damaged(const struct allocation *a, char *out, size_t size)
{
    const char *end = a->map + a->map_size - GUARD;
    char name[128];
    for (const char *p = a->base + a->size; p < end; p++)
        if ((unsigned char)*p != 0xff) {
            snprintf(out, size, "%zu bytes past the end of %s something was written",
                     (size_t)(p - a->base) - a->size, place(a, name, sizeof name));
            return true;
        }
    for (const char *p = a->map + GUARD; p < a->base; p++)
        if ((unsigned char)*p != 0xff) {
            snprintf(out, size, "%zu bytes before %s something was written", (size_t)(a->base - p),
                     place(a, name, sizeof name));
            return true;
        }
    return false;
}

bool memory_check(char *out, size_t size)
{
    for (int i = 0; i < count; i++)
        if (damaged(&table[i], out, size)) return false;
    return true;
}

CUresult memory_free(void *base, int device, char *report, size_t report_size)
{
    int i = upper(base) - 1;
    if (i < 0 || table[i].base != base || (table[i].device < 0) != (device < 0))
        return CUDA_ERROR_INVALID_VALUE;
    bool bad = damaged(&table[i], report, report_size);
    munmap(table[i].map, table[i].map_size);
    memmove(&table[i], &table[i + 1], sizeof *table * (size_t)(--count - i));
    return bad ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS;
}

void memory_free_all(int device)
{
    char report[512];
    for (int i = count - 1; i >= 0; i--)
        if (table[i].device == device) memory_free(table[i].base, device, report, sizeof report);
}

uint64_t memory_used(int device)
{
    uint64_t used = 0;
    for (int i = 0; i < count; i++)
        if (table[i].device == device) used += table[i].size;
    return used;
}
