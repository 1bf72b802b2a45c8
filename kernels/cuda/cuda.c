#include "cuda.h"
#include "../backend.h"
#include "../group/exchange_launch.h"
#include "../../base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory -------------------------------------------------------------------------------------------- */

static void *cuda_alloc(struct device *dev, size_t bytes)
{
    struct klein_error err = {0};
    void *p = NULL;
    return gpu_alloc(gpu_of(dev), bytes, &p, &err) == KLEIN_OK ? p : NULL;
}

static void cuda_free(struct device *dev, void *memory, size_t bytes)
{
    gpu_free(gpu_of(dev), memory);
}

static size_t cuda_available(struct device *dev)
{
    return gpu_available(gpu_of(dev));
}

static enum klein_status cuda_upload(struct device *dev, void *to, const void *host, size_t bytes,
                                     struct klein_error *err)
{
    TRY(gpu_upload(gpu_of(dev), to, host, bytes, err));
    return gpu_sync(gpu_of(dev), err); /* `host` is the caller's again */
}

static enum klein_status cuda_download(struct device *dev, void *host, const void *from, size_t bytes,
                                       struct klein_error *err)
{
    ((struct cuda_device *)dev)->launched = 0; /* the picture: the launches of a request end here */
    return gpu_download(gpu_of(dev), host, from, bytes, err);
}

static enum klein_status cuda_copy(struct device *dev, void *to, const void *from, size_t bytes,
                                   struct klein_error *err)
{
    return gpu_copy(gpu_of(dev), to, from, bytes, err);
}

/* ---- graphs --------------------------------------------------------------------------------------------- */

static enum klein_status graph_begin(struct device *dev, struct klein_error *err)
{
    return gpu_capture_begin(gpu_of(dev), err);
}

static enum klein_status graph_end(struct device *dev, void **out, struct klein_error *err)
{
    struct gpu_graph graph, *kept;
    *out = NULL;
    TRY(gpu_capture_end(gpu_of(dev), &graph, err));
    kept = malloc(sizeof *kept);
    if (!kept) {
        gpu_graph_close(gpu_of(dev), &graph);
        return fail(err, KLEIN_E_NO_MEMORY, "no memory for a graph");
    }
    *kept = graph;
    *out = kept;
    return KLEIN_OK;
}

static enum klein_status graph_launch(struct device *dev, void *graph, struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    if (cuda->launched > 0) cuda->host_seconds += clock_seconds() - cuda->launched;
    TRY(gpu_graph_launch(cuda->gpu, graph, err));
    cuda->launched = clock_seconds();
    return KLEIN_OK;
}

static void graph_free(struct device *dev, void *graph)
{
    gpu_graph_close(gpu_of(dev), graph);
    free(graph);
}

static enum klein_status pace(struct device *dev, struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    CUevent now = cuda->pace[cuda->paces % 2], before = cuda->pace[(cuda->paces + 1) % 2];
    TRY(gpu_event_record(cuda->gpu, now, err));
    if (!cuda->paces++) return KLEIN_OK;
    const double begin = clock_seconds();
    TRY(gpu_event_sync(cuda->gpu, before, err));
    if (cuda->launched > 0) cuda->launched += clock_seconds() - begin; /* waiting is no work */
    return KLEIN_OK;
}

/* ---- time ----------------------------------------------------------------------------------------------- */

static enum klein_status cuda_wait(struct device *dev, struct klein_error *err)
{
    return gpu_sync(gpu_of(dev), err);
}

static enum klein_status cuda_mark(struct device *dev, int i, struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    CHECK(i >= 0 && i < DEVICE_MARKS);
    if (!cuda->marks[i]) TRY(gpu_event_open(cuda->gpu, 1, &cuda->marks[i], err));
    return gpu_event_record(cuda->gpu, cuda->marks[i], err);
}

static double cuda_between(struct device *dev, int from, int to)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    struct klein_error err = {0};
    float milliseconds;
    if (!cuda->marks[from] || !cuda->marks[to] ||
        gpu_event_elapsed(cuda->gpu, cuda->marks[from], cuda->marks[to], &milliseconds, &err) != KLEIN_OK)
        return -1;
    return (double)milliseconds / 1e3;
}

static enum klein_status cuda_bind(struct device *dev, struct klein_error *err)
{
    return gpu_bind(gpu_of(dev), err);
}

const struct device_graphs cuda_graphs = {
    .begin = graph_begin, .end = graph_end, .launch = graph_launch, .free = graph_free, .pace = pace};

/* ---- opening -------------------------------------------------------------------------------------------- */

static void cuda_close(struct device *dev)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    struct klein_error none = {0};
    if (cuda->gpu && cuda->gpu->context) {
        gpu_bind(cuda->gpu, &none);
        exchange_leave(cuda);
        cuda_unplace(cuda);
        gpu_free(cuda->gpu, cuda->scratch);
        for (int i = 0; i < 2; i++)
            if (cuda->pace[i]) gpu_event_close(cuda->gpu, cuda->pace[i]);
        for (int i = 0; i < DEVICE_MARKS; i++)
            if (cuda->marks[i]) gpu_event_close(cuda->gpu, cuda->marks[i]);
    }
    gpu_close(cuda->gpu);
    tuned_free(cuda->tuned);
    if (cuda->cu.library) driver_close(&cuda->cu);
    free(cuda);
}

int cuda_facts(const struct device *dev, struct cuda_facts *out)
{
    if (dev->close != cuda_close) return 0;
    const struct cuda_device *cuda = (const struct cuda_device *)dev;
    const struct gpu *g = cuda->gpu;
    *out = (struct cuda_facts){.name = g->name,
                               .soft = cuda->cu.soft,
                               .arch = g->arch,
                               .multiprocessors = g->multiprocessors,
                               .clock_khz = g->clock_khz,
                               .cuda = cuda->cu.version,
                               .modules = g->module_count,
                               .weights = cuda_placed_bytes(cuda),
                               .scratch = CUDA_SCRATCH,
                               .driver_seconds = cuda->driver_seconds,
                               .context_seconds = g->context_seconds,
                               .module_seconds = g->module_seconds,
                               .read_seconds = cuda->read_seconds,
                               .host_seconds = cuda->host_seconds};
    for (int i = 0; i < g->module_count; i++) out->loaded += g->modules[i].handle != NULL;
    return 1;
}

struct tuned_for cuda_tuned_for(const struct device *dev, const char *version)
{
    const struct cuda_device *cuda = (const struct cuda_device *)dev;
    return (struct tuned_for){.version = version,
                              .gpu = cuda->gpu->name,
                              .arch = cuda->gpu->arch,
                              .multiprocessors = cuda->gpu->multiprocessors,
                              .driver = cuda->cu.version};
}

enum klein_status cuda_use_tuned(struct device *dev, const char *version, struct klein_error *err)
{
    struct cuda_device *cuda = (struct cuda_device *)dev;
    struct klein_error none = {0};
    const char *off = getenv("KLEIN_TUNE");
    char path[TUNED_PATH];
    if (dev->close != cuda_close || (off && !strcmp(off, "off"))) return KLEIN_OK;
    const struct tuned_for f = cuda_tuned_for(dev, version);
    if (tuned_path(&f, path, &none) != KLEIN_OK) return KLEIN_OK; /* no cache: no table */
    TRY(tuned_read(path, &f, &cuda->tuned, err));
    cuda->gpu->tuned = cuda->tuned;
    return KLEIN_OK;
}

static enum klein_status set_up(struct cuda_device *cuda, int soft, int ordinal, struct klein_error *err)
{
    const double begin = clock_seconds();
    TRY(driver_open(soft, &cuda->cu, err));
    cuda->driver_seconds = clock_seconds() - begin;
    TRY(gpu_open(&cuda->cu, ordinal, &cuda->gpu, err));
    struct gpu *g = cuda->gpu;
    if (g->arch < 80)
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "%s has compute capability %d.%d: klein needs 8.0 (Ampere) or later; use --device cpu",
                    g->name, g->arch / 10, g->arch % 10);
    TRY(gpu_check_kernels(g, err));
    cuda->base.memory = g->memory;
    cuda->base.e4m3 = g->arch >= 89;
    TRY(gpu_alloc(g, CUDA_SCRATCH, &cuda->scratch, err));
    for (int i = 0; i < 2; i++) TRY(gpu_event_open(g, 0, &cuda->pace[i], err));
    snprintf(cuda->base.description, sizeof cuda->base.description,
             "%.70s, sm_%d, %d multiprocessors, %.1f GiB", g->name, g->arch, g->multiprocessors,
             (double)g->memory / 0x1p30);
    return KLEIN_OK;
}

int cuda_count(int soft)
{
    struct driver cu;
    struct klein_error none = {0};
    int n;
    if (driver_open(soft, &cu, &none) != KLEIN_OK) return 0;
    if (cu.DeviceGetCount(&n) != CUDA_SUCCESS) n = 0;
    driver_close(&cu);
    return n;
}

enum klein_status cuda_open(const struct device_options *options, int soft, int ordinal, struct device **out,
                            struct klein_error *err)
{
    struct cuda_device *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return fail(err, KLEIN_E_NO_MEMORY, "no memory for a GPU device");
    cuda->base = (struct device){.ops = &cuda_ops,
                                 .name = soft ? "soft" : "cuda",
                                 .number = ordinal,
                                 .act = DT_BF16,
                                 .computes = 1,
                                 .threads = 1,
                                 .close = cuda_close,
                                 .alloc = cuda_alloc,
                                 .free = cuda_free,
                                 .upload = cuda_upload,
                                 .download = cuda_download,
                                 .copy = cuda_copy,
                                 .place = cuda_place,
                                 .unplace = cuda_unplace_group,
                                 .available = cuda_available,
                                 .wait = cuda_wait,
                                 .mark = cuda_mark,
                                 .between = cuda_between,
                                 .bind = cuda_bind,
                                 .exchange = &cuda_exchange,
                                 .graphs = &cuda_graphs};
    enum klein_status status = set_up(cuda, soft, ordinal, err);
    if (status != KLEIN_OK) {
        cuda_close(&cuda->base);
        return status;
    }
    if (cuda->gpu->sync_each) cuda->base.graphs = NULL; /* KLEIN_SYNC: each kernel is waited for */
    *out = &cuda->base;
    return KLEIN_OK;
}
