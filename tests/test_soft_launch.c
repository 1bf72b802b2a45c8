/* Launches that no GPU would take: the soft GPU refuses them with what would have been allowed. By the driver API itself, as the backend
 * does not make them. */
#include "soft/fixture.h"

#include <elf.h>

struct launch_of {
    const char *kernel;
    unsigned grid[3];
    CUlaunchAttribute *attributes;
    unsigned count;
};

static CUresult launch_in(struct gpu *g, CUmodule module, struct launch_of l)
{
    static struct unit_large_args args;
    void *arguments[] = {&args};
    CUfunction f;
    int threads;
    cr_assert(cu.ModuleGetFunction(&f, module, l.kernel) == CUDA_SUCCESS);
    cr_assert(cu.FuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f) == CUDA_SUCCESS);
    const CUlaunchConfig config = {.gridDimX = l.grid[0],
                                   .gridDimY = l.grid[1],
                                   .gridDimZ = l.grid[2],
                                   .blockDimX = (unsigned)threads,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .hStream = g->stream,
                                   .attrs = l.attributes,
                                   .numAttrs = l.count};
    return cu.LaunchKernelEx(&config, f, arguments, NULL);
}

static char report[4096]; /* of the last launch */

/* From a module that is `image`. The result of a launch that was not refused is that of waiting for it. */
static CUresult launch(const char *arch, const void *image, struct launch_of l)
{
    struct gpu *g = open_gpu(arch, 0, SOFTGPU_LATE);
    CUmodule module;
    cr_assert(cu.ModuleLoadData(&module, image) == CUDA_SUCCESS);
    CUresult r = launch_in(g, module, l);
    if (r == CUDA_SUCCESS) r = cu.StreamSynchronize(g->stream);
    snprintf(report, sizeof report, "%s", softgpu_report());
    cu.ModuleUnload(module);
    close_gpu(g);
    return r;
}

static const char image[] = "klein soft image: sm_80 compute_80";

static void refused(const char *arch, const void *of, struct launch_of l, CUresult result, const char *text)
{
    const CUresult r = launch(arch, of, l);
    cr_assert(r == result && strstr(report, text), "%d: \"%s\", expected %d: \"%s\"", (int)r, report,
              (int)result, text);
}

Test(soft_launch, grids)
{
    static const unsigned grids[][3] = {{1, 65536, 1}, {1, 1, 65536}, {0x80000000u, 1, 1},
                                        {0, 1, 1},     {1, 0, 1},     {1, 1, 0}};
    for (int i = 0; i < 6; i++)
        refused(
            "sm_80", image,
            (struct launch_of){.kernel = "units_sm80_wide", .grid = {grids[i][0], grids[i][1], grids[i][2]}},
            CUDA_ERROR_INVALID_VALUE, "1.. 2^31-1, 65535, 65535");
    cr_assert(launch("sm_80", image, (struct launch_of){.kernel = "units_sm80_wide", .grid = {3, 2, 2}}) ==
              CUDA_SUCCESS);
}

Test(soft_launch, arguments)
{
    refused("sm_90a", image, (struct launch_of){.kernel = "units_sm80_large", .grid = {1, 1, 1}},
            CUDA_ERROR_INVALID_VALUE, "launch of units_sm80_large: 4100 bytes of arguments, 4096 at most");
}

Test(soft_launch, attributes)
{
    CUlaunchAttribute dependent = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                   .value.programmaticStreamSerializationAllowed = 1},
                      unknown = {.id = (CUlaunchAttributeID)4 /* cluster dimensions */,
                                 .value.clusterDim = {1, 1, 1}};
    struct launch_of l = {.kernel = "units_sm80_wide", .grid = {1, 1, 1}, .attributes = &unknown, .count = 1};
    refused("sm_90a", image, l, CUDA_ERROR_NOT_SUPPORTED, "the soft GPU does not do launch attribute 4");
    l.attributes = &dependent;
    refused("sm_89", image, l, CUDA_ERROR_NOT_SUPPORTED,
            "programmatic dependent launch needs sm_90, this is sm_89");
    dependent.value.programmaticStreamSerializationAllowed = 0;
    cr_assert(launch("sm_89", image, l) == CUDA_SUCCESS);
    dependent.id = CU_LAUNCH_ATTRIBUTE_IGNORE;
    cr_assert(launch("sm_89", image, l) == CUDA_SUCCESS);
}

/* A fatbin with one cubin for sm_80, of which there is what says how many registers a kernel has. */
struct fatbin {
    uint32_t magic;
    uint16_t version, header;
    uint64_t size;
    struct {
        uint16_t kind, version;
        uint32_t header;
        uint64_t size;
        uint32_t unused[3], arch;
        uint64_t unused2, flags;
    } entry;
    struct cubin {
        Elf64_Ehdr elf;
        Elf64_Shdr section[4];
        Elf64_Sym symbol[2];
        char names[64];
        struct {
            uint8_t format, attribute;
            uint16_t size;
            uint32_t symbol, registers;
        } info;
    } cubin;
};

static struct fatbin fatbin_of(const char *kernel, uint32_t registers)
{
    static const char names[] = "\0.nv.info";
    struct fatbin f = {
        .magic = 0xba55ed50u,
        .version = 1,
        .header = offsetof(struct fatbin, entry),
        .size = sizeof f - offsetof(struct fatbin, entry),
        .entry = {.kind = 2, .header = sizeof f.entry, .size = sizeof f.cubin, .arch = 80},
        .cubin = {.elf = {.e_shoff = offsetof(struct cubin, section),
                          .e_shentsize = sizeof(Elf64_Shdr),
                          .e_shnum = 4,
                          .e_shstrndx = 2},
                  .section = {[1] = {.sh_type = SHT_SYMTAB,
                                     .sh_offset = offsetof(struct cubin, symbol),
                                     .sh_link = 2},
                              [2] = {.sh_type = SHT_STRTAB, .sh_offset = offsetof(struct cubin, names)},
                              [3] = {.sh_name = 1,
                                     .sh_type = SHT_PROGBITS,
                                     .sh_offset = offsetof(struct cubin, info),
                                     .sh_size = sizeof f.cubin.info}},
                  .symbol = {[1] = {.st_name = sizeof names}},
                  .info = {4, 0x2f, 8, 1, registers}}};
    memcpy(f.cubin.names, names, sizeof names);
    snprintf(f.cubin.names + sizeof names, sizeof f.cubin.names - sizeof names, "%s", kernel);
    return f;
}

/* 512 threads may have 128 registers each, as many as ptxas says that they have. */
Test(soft_launch, registers)
{
    const struct launch_of l = {.kernel = "units_sm80_wide", .grid = {1, 1, 1}};
    struct fatbin f = fatbin_of(l.kernel, 136);
    refused("sm_80", &f, l, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            "512 threads of 136 registers, a multiprocessor has 65536");
    f = fatbin_of(l.kernel, 128);
    cr_assert(launch("sm_80", &f, l) == CUDA_SUCCESS);
}
