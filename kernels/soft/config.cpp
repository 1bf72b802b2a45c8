/* config.cpp: settings, the chips that can be claimed, the report. */
#include "driver.h"

#include <stdlib.h>

/* Limits per compute capability: CUDA programming guide, "Technical specifications per compute capability"; the rest are figures of
 * the named card. Shared memory: a block may ask for 1 KiB less than a multiprocessor has. */
static const struct chip chips[] = {
    {"sm_75", 7, 5, 72, 65536, 65536, 1024, 6 << 20, 1770000, 24ull << 30, "TITAN RTX"}, /* to be refused */
    {"sm_80", 8, 0, 108, 166912, 167936, 2048, 40 << 20, 1410000, 80ull << 30, "A100 SXM"},
    {"sm_86", 8, 6, 84, 101376, 102400, 1536, 6 << 20, 1860000, 24ull << 30, "RTX 3090"},
    {"sm_89", 8, 9, 128, 101376, 102400, 1536, 72 << 20, 2520000, 24ull << 30, "RTX 4090"},
    {"sm_90a", 9, 0, 132, 232448, 233472, 2048, 50 << 20, 1830000, 80ull << 30, "H100 SXM"},
    {"sm_100a", 10, 0, 148, 232448, 233472, 2048, 126 << 20, 1860000, 180ull << 30, "B200"},
    {"sm_120a", 12, 0, 170, 101376, 102400, 1536, 96 << 20, 2410000, 32ull << 30, "RTX 5090"},
};

struct softgpu_config soft_config;
static bool configured;
static char report[4096]; /* of threads without a context */

const struct chip *chip_find(const char *arch)
{
    for (const struct chip &c : chips)
        if (!strcmp(c.arch, arch)) return &c;
    return NULL;
}

const struct chip *chip_of(void)
{
    return chip_find(soft_config.arch);
}

static long number(const char *name, long otherwise)
{
    const char *v = getenv(name);
    return v && *v ? strtol(v, NULL, 0) : otherwise;
}

/* "1024", or of single devices too: "32,1024". */
static void read_memory(struct softgpu_config *c)
{
    const char *at = getenv("KLEIN_SOFT_MEMORY");
    c->memory = (uint64_t)number("KLEIN_SOFT_MEMORY", 0) << 20;
    for (int i = 1; i < DEVICES_MAX && at && (at = strchr(at, ',')); i++)
        c->memory_of[i] = (uint64_t)strtol(++at, NULL, 0) << 20;
}

int softgpu_config_from_env(struct softgpu_config *c)
{
    memset(c, 0, sizeof *c);
    const char *claim = getenv("KLEIN_SOFT"), *async = getenv("KLEIN_SOFT_ASYNC"),
               *fp8 = getenv("KLEIN_SOFT_FP8"), *failing = getenv("KLEIN_SOFT_FAIL");
    unsigned long long fail_launch = 0;
    const char *colon = claim ? strchr(claim, ':') : NULL;
    if (!claim || !*claim) claim = "sm_90a";
    snprintf(c->arch, sizeof c->arch, "%.*s", colon ? (int)(colon - claim) : 15, claim);
    c->devices = colon ? atoi(colon + 1) : 1;
    c->multiprocessors = (int)number("KLEIN_SOFT_SMS", 0);
    c->seed = (uint64_t)number("KLEIN_SOFT_SEED", 0);
    c->threads = (int)number("KLEIN_SOFT_THREADS", 0);
    read_memory(c);
    c->check_races = (int)number("KLEIN_SOFT_RACES", 1);
    c->count_accesses = (int)number("KLEIN_SOFT_COUNT", 0);
    if (failing && *failing && sscanf(failing, "%d:%llu", &c->fail_device, &fail_launch) != 2) {
        fprintf(stderr, "soft GPU: KLEIN_SOFT_FAIL=%s: device:launch, as in 1:40\n", failing);
        return 0;
    }
    c->fail_launch = fail_launch;
    c->patience = (int)number("KLEIN_SOFT_PATIENCE", 0);
    c->no_peers = !number("KLEIN_SOFT_PEERS", 1);
    c->truncate_fp8 = fp8 && !strcmp(fp8, "truncate");
    if (!async || !strcmp(async, "late"))
        c->async = SOFTGPU_LATE;
    else if (!strcmp(async, "random"))
        c->async = SOFTGPU_RANDOM;
    else if (!strcmp(async, "now"))
        c->async = SOFTGPU_NOW;
    else {
        fprintf(stderr, "soft GPU: KLEIN_SOFT_ASYNC=%s: late, random or now\n", async);
        return 0;
    }
    if (chip_find(c->arch) && c->devices >= 1 && c->devices <= DEVICES_MAX) return 1;
    fprintf(stderr,
            "soft GPU: KLEIN_SOFT=%s: a chip and a number of devices up to %d, as in sm_90a:2; chips:", claim,
            DEVICES_MAX);
    for (const struct chip &k : chips) fprintf(stderr, " %s", k.arch);
    fprintf(stderr, "\n");
    return 0;
}

int softgpu_configure(const struct softgpu_config *c)
{
    int ok = 0;
    pthread_mutex_lock(&soft_lock);
    bool other_machine = strcmp(c->arch, soft_config.arch) || c->devices != soft_config.devices ||
                         c->multiprocessors != soft_config.multiprocessors ||
                         c->memory != soft_config.memory ||
                         memcmp(c->memory_of, soft_config.memory_of, sizeof c->memory_of);
    bool retained = false;
    for (const struct CUctx_st &x : soft_contexts) retained = retained || x.retained;
    if (chip_find(c->arch) && c->devices >= 1 && c->devices <= DEVICES_MAX && !(other_machine && retained)) {
        soft_config = *c;
        configured = true;
        for (struct CUctx_st &x : soft_contexts) x.kernels = 0;
        ok = 1;
    }
    pthread_mutex_unlock(&soft_lock);
    return ok;
}

static CUresult init(void)
{
    if (configured) return CUDA_SUCCESS;
    struct softgpu_config c;
    if (!softgpu_config_from_env(&c)) return CUDA_ERROR_INVALID_VALUE;
    soft_config = c;
    configured = true;
    return CUDA_SUCCESS;
}

extern "C" SOFT_API CUresult cuInit(unsigned flags)
{
    pthread_mutex_lock(&soft_lock);
    CUresult r = flags ? CUDA_ERROR_INVALID_VALUE : init();
    pthread_mutex_unlock(&soft_lock);
    return r;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

static char *report_here(void)
{
    struct CUctx_st *c = calling_context();
    return c ? c->report : report;
}

void set_report(int device, const char *text)
{
    snprintf(soft_contexts[device].report, sizeof report, "%s", text);
}

CUresult refuse(CUresult code, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(report_here(), sizeof report, format, ap);
    va_end(ap);
    return code;
}

const char *softgpu_report(void)
{
    return report_here();
}
