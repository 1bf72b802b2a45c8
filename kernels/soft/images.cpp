/* images.cpp: which of a module's builds the claimed chip would take, by the driver's rule: SASS of the same major version and no
 * newer minor; "a" builds on exactly their chip; else PTX of no newer version. Reads nvcc's fatbins (as nvcc 13 writes them,
 * uncompressed) and, where there is no nvcc, a text that names the builds: "klein soft image: sm_80 compute_80". */
#include "driver.h"

#include <stdlib.h>

static const char soft_magic[] = "klein soft image: ";
enum {
    FATBIN_MAGIC = (int)0xba55ed50u,
    KIND_PTX = 1,
    KIND_ELF = 2,
    FLAG_ACCELERATED = 0x100000,
    ATTRIBUTE_REGCOUNT = 0x2f
};

struct entry {
    uint16_t kind, version;
    uint32_t header_size;
    uint64_t size;
    uint32_t unused[2], tool, arch; /* 90 */
    uint64_t unused2, flags;
};

static uint64_t get(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    memcpy(&v, p, (size_t)bytes);
    return v;
}

/* How well the chip likes a build; 0: not at all. */
static int rank_build(const struct chip *chip, bool ptx, int arch, bool accelerated)
{
    int own = chip->major * 10 + chip->minor;
    if (accelerated) return !ptx && arch == own ? 3000 : 0;
    if (ptx) return arch <= own ? 1 + arch : 0;
    return arch / 10 == chip->major && arch <= own ? 1000 + arch : 0;
}

static CUresult open_soft(const char *text, const struct chip *chip, struct image *i)
{
    i->builds = strdup(text + sizeof soft_magic - 1);
    if (!i->builds) return CUDA_ERROR_OUT_OF_MEMORY;
    int best = 0;
    for (const char *p = i->builds; *p; p += strcspn(p, " "), p += strspn(p, " ")) {
        bool ptx = !strncmp(p, "compute_", 8);
        int arch = atoi(p + (ptx ? 8 : 3));
        size_t length = strcspn(p, " ");
        int rank = rank_build(chip, ptx, arch, p[length - 1] == 'a');
        if (rank > best) best = rank;
    }
    return best ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

static CUresult open_fatbin(const uint8_t *data, const struct chip *chip, struct image *i)
{
    uint64_t header = get(data + 6, 2), size = get(data + 8, 8);
    int best = 0;
    char builds[512];
    int n = 0;
    for (uint64_t at = header; at + sizeof(struct entry) <= header + size;) {
        struct entry e;
        memcpy(&e, data + at, sizeof e);
        bool ptx = e.kind == KIND_PTX, accelerated = e.flags & FLAG_ACCELERATED;
        n += snprintf(builds + n, sizeof builds - (size_t)n, "%s%s%u%s", n ? " " : "",
                      ptx ? "compute_" : "sm_", e.arch, accelerated ? "a" : "");
        int rank = e.kind == KIND_ELF || ptx ? rank_build(chip, ptx, (int)e.arch, accelerated) : 0;
        if (rank > best) {
            best = rank;
            i->elf = ptx ? NULL : data + at + e.header_size;
        }
        at += e.header_size + e.size;
        if (n > (int)sizeof builds - 32) break;
    }
    i->builds = strdup(n ? builds : "nothing");
    if (!i->builds) return CUDA_ERROR_OUT_OF_MEMORY;
    return best ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

CUresult image_open(const void *data, const struct chip *chip, struct image **out)
{
    struct image *i = (struct image *)calloc(1, sizeof *i);
    if (!i) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r;
    if (get((const uint8_t *)data, 4) == (uint32_t)FATBIN_MAGIC)
        r = open_fatbin((const uint8_t *)data, chip, i);
    else if (!strncmp((const char *)data, soft_magic, sizeof soft_magic - 1))
        r = open_soft((const char *)data, chip, i);
    else
        r = refuse(CUDA_ERROR_INVALID_IMAGE, "the module is neither a fatbin nor a soft image");
    if (r == CUDA_ERROR_NO_BINARY_FOR_GPU)
        refuse(r, "the module is built for %s, none of which runs on %s", i->builds, chip->arch);
    if (r != CUDA_SUCCESS) {
        image_close(i);
        return r;
    }
    *out = i;
    return CUDA_SUCCESS;
}

void image_close(struct image *i)
{
    if (i) free(i->builds);
    free(i);
}

/* ptxas leaves a kernel's registers in the cubin's section .nv.info: records {format 4, attribute, size, symbol, registers}. */
int image_registers(const struct image *i, const char *kernel)
{
    const uint8_t *e = i->elf;
    if (!e) return 0;
    const uint8_t *sections = e + get(e + 40, 8);
    uint64_t step = get(e + 58, 2), count = get(e + 60, 2);
    const uint8_t *names = sections + get(e + 62, 2) * step, *symbols = NULL, *strings = NULL, *info = NULL;
    uint64_t info_size = 0;
    for (uint64_t s = 0; s < count; s++) {
        const uint8_t *h = sections + s * step;
        const char *name = (const char *)e + get(names + 24, 8) + get(h, 4);
        if (get(h + 4, 4) == 2) { /* SHT_SYMTAB */
            symbols = e + get(h + 24, 8);
            strings = e + get(sections + get(h + 40, 4) * step + 24, 8);
        }
        if (!strcmp(name, ".nv.info")) {
            info = e + get(h + 24, 8);
            info_size = get(h + 32, 8);
        }
    }
    if (!symbols || !info) return 0;
    for (uint64_t at = 0; at + 4 <= info_size;) {
        const uint8_t *r = info + at;
        bool sized = r[0] == 4;
        if (sized && r[1] == ATTRIBUTE_REGCOUNT) {
            const uint8_t *symbol = symbols + 24 * get(r + 4, 4);
            if (!strcmp((const char *)strings + get(symbol, 4), kernel)) return (int)get(r + 8, 4);
        }
        at += sized ? 4 + get(r + 2, 2) : 4;
    }
    return 0;
}
