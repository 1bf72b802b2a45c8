#include "bench_cold.h"
#include "image.h"
#include "table.h"

#include "../base/clock.h"
#include "../engine/context.h"
#include "../kernels/cuda/cuda.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the environment of the program that is measured: "seconds bytes cached", the clock when it was started, the bytes of the model's files
 * and how many of them were in memory then. */
static const char variable[] = "KLEIN_COLD_START";

/* ---- the page cache --------------------------------------------------------------------------------------- */

static struct pages {
    double bytes, cached;
} walked; /* nftw has no argument for it; this is the command line, not a library */

static int drop_file(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    const size_t n = (size_t)st->st_size, page = (size_t)sysconf(_SC_PAGESIZE), pages = (n + page - 1) / page;
    if (flag != FTW_F || !n) return 0;
    const int f = open(path, O_RDONLY | O_CLOEXEC);
    if (f < 0) return 0;
    posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED);
    void *map = mmap(NULL, n, PROT_READ, MAP_SHARED, f, 0);
    unsigned char *in = malloc(pages);
    size_t cached = 0;
    if (map != MAP_FAILED && in && !mincore(map, n, in))
        for (size_t i = 0; i < pages; i++) cached += in[i] & 1;
    walked.bytes += (double)n;
    walked.cached += fmin((double)(cached * page), (double)n);
    if (map != MAP_FAILED) munmap(map, n);
    free(in);
    close(f);
    return 0;
}

/* Asks for the model's files to leave memory, and counts what stays: pages that others use or have written. */
static struct pages drop_files(const struct klein_open_options *o)
{
    const char *const paths[] = {o->model, o->transformer, o->text_encoder, o->vae};
    walked = (struct pages){0};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (paths[i]) nftw(paths[i], drop_file, 16, 0);
    return walked;
}

/* ---- starting anew ---------------------------------------------------------------------------------------- */

static enum klein_status start_anew(const struct klein_open_options *o, struct klein_error *err)
{
    static char words[1 << 16];
    char *argv[1024], text[128];
    FILE *f = fopen("/proc/self/cmdline", "rb");
    const size_t n = f ? fread(words, 1, sizeof words - 1, f) : 0;
    int argc = 0;
    if (f) fclose(f);
    for (size_t at = 0; at < n && argc < 1023; at += strlen(words + at) + 1) argv[argc++] = words + at;
    argv[argc] = NULL;
    const struct pages p = drop_files(o);
    snprintf(text, sizeof text, "%.9f %.0f %.0f", clock_seconds(), p.bytes, p.cached);
    setenv(variable, text, 1);
    if (argc && n < sizeof words - 1) execv("/proc/self/exe", argv);
    return fail(err, KLEIN_E_INTERNAL, "cannot start klein anew to measure it: %s", strerror(errno));
}

/* ---- what is measured ------------------------------------------------------------------------------------- */

enum { STEPS = 24 };
struct cold {
    struct {
        const char *name, *json;
        double seconds;
    } step[STEPS];
    int n;
    double start, total;
    struct pages pages;
    size_t png;
    int width, height, soft;
    char device[256];
};

static void add(struct cold *c, const char *name, const char *json, double seconds)
{
    if (c->n == STEPS || !(seconds > 0)) return;
    c->step[c->n].name = name;
    c->step[c->n].json = json;
    c->step[c->n++].seconds = seconds;
}

/* What klein_open did, from `begin` on. */
static void add_opening(struct cold *c, const struct klein *k, double begin, double end)
{
    const struct open_times *t = &k->times;
    struct cuda_facts gpu = {0};
    cuda_facts(k->device, &gpu);
    c->soft = gpu.soft;
    const double device = t->device - gpu.driver_seconds - gpu.context_seconds - gpu.module_seconds,
                 weights = t->weights - gpu.read_seconds;
    add(c, "open and parse the files", "files", t->files);
    add(c, "driver", "driver", gpu.driver_seconds);
    add(c, "context", "context", gpu.context_seconds);
    add(c, "kernel modules", "modules", gpu.module_seconds);
    add(c, "device, the rest", "device", device);
    add(c, "weights: read", "weights_read", gpu.read_seconds);
    add(c, gpu.name ? "weights: copy, convert" : "weights: found (read when first used)", "weights", weights);
    add(c, "tokenizer", "tokenizer", t->tokenizer);
    add(c, "opening, the rest", "open_rest", end - begin - t->files - t->device - t->weights - t->tokenizer);
}

/* Seconds that a device with memory of its own takes to hand over that many bytes, the picture. */
static double seconds_of_download(const struct klein *k, size_t bytes)
{
    struct klein_error none = {0};
    struct device *dev = k->device;
    void *on_device = dev->place ? dev->alloc(dev, bytes) : NULL, *host = malloc(bytes);
    double seconds = 0;
    if (on_device && host && dev->wait(dev, &none) == KLEIN_OK) {
        seconds = -clock_seconds();
        dev->download(dev, host, on_device, bytes, &none);
        seconds += clock_seconds();
    }
    if (on_device) dev->free(dev, on_device, bytes);
    free(host);
    return seconds;
}

static void add_request(struct cold *c, const struct klein *k, const struct klein_result *r)
{
    static const char *const names[] = {"first run: text", "first run: references", "first run: denoise",
                                        "first run: decode"};
    double rest = r->total_seconds - k->times.plan;
    add(c, "plan", "plan", k->times.plan);
    for (int i = 0; i < KLEIN_STAGE_COUNT; i++) {
        add(c, names[i], klein_stage_name((enum klein_stage)i), r->seconds[i]);
        rest -= r->seconds[i];
    }
    const double download = seconds_of_download(k, (size_t)r->width * (size_t)r->height * 3);
    add(c, "download (measured once more)", "download", download);
    add(c, "the rest: tokens, noise, memory", "request_rest", rest - download);
    c->width = r->width;
    c->height = r->height;
}

static enum klein_status measure(struct cold *c, const struct klein_open_options *o,
                                 const struct klein_request *q, struct klein_error *err)
{
    struct klein *k;
    struct klein_result r;
    uint8_t *png = NULL;
    double begin = clock_seconds();
    add(c, "start of the program", "process", begin - c->start);
    TRY(klein_open(o, &k, err));
    double opened = clock_seconds();
    add_opening(c, k, begin, opened);
    snprintf(c->device, sizeof c->device, "%s: %s", k->device->name, k->device->description);
    if (klein_generate(k, q, &r, err) == KLEIN_OK) {
        const double made = clock_seconds();
        image_encode(&r.images[0], IMAGE_PNG, 0, NULL, &png, &c->png, err);
        const double encoded = clock_seconds();
        c->total = encoded - c->start;
        add_request(c, k, &r);
        add(c, "PNG", "png", encoded - made);
        free(png);
        klein_result_free(&r);
    }
    klein_close(k);
    return err->status;
}

static enum klein_status print(const struct cold *c, int json, struct klein_error *err)
{
    struct table t;
    double at = 0;
    const double share = c->pages.bytes > 0 ? c->pages.cached / c->pages.bytes : 0;
    if (json) {
        json_t *steps = json_object();
        for (int i = 0; i < c->n; i++)
            json_object_set_new(steps, c->step[i].json, json_real(c->step[i].seconds));
        json_t *o = json_pack("{s:b, s:s, s:b, s:i, s:i, s:f, s:f, s:f, s:o}", "cold", 1, "device", c->device,
                              "soft", c->soft, "width", c->width, "height", c->height, "seconds", c->total,
                              "file_bytes", c->pages.bytes, "cached_bytes", c->pages.cached, "stages", steps);
        const int failed = !o || json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(o);
        return failed ? fail(err, KLEIN_E_NO_MEMORY, "cannot make the JSON result") : KLEIN_OK;
    }
    if (c->soft) puts("soft GPU: executed on the host, times mean nothing");
    printf("%s\nfirst picture, %dx%d, after %.4f s, as PNG of %zu bytes\n", c->device, c->width, c->height,
           c->total, c->png);
    printf("page cache: told to drop the model's %.3f GB; %.1f %% of it was in memory at the start\n\n",
           c->pages.bytes / 1e9, 100 * share);
    table_begin(&t, "lrr");
    table_cell(&t, "STAGE");
    table_cell(&t, "SECONDS");
    table_cell(&t, "UNTIL");
    for (int i = 0; i < c->n; i++) {
        table_cell(&t, "%s", c->step[i].name);
        table_cell(&t, "%.4f", c->step[i].seconds);
        table_cell(&t, "%.4f", at += c->step[i].seconds);
    }
    return table_print(&t, stdout) ? KLEIN_OK : fail(err, KLEIN_E_NO_MEMORY, "no memory for a table");
}

enum klein_status bench_cold(const struct model_settings *model, const struct device_settings *device,
                             const struct klein_request *request, int json, struct klein_error *err)
{
    struct klein_open_options options;
    struct cold c = {0};
    const char *begun = getenv(variable);
    int demo;
    TRY(model_choose(model, &options, &demo, err));
    if (!begun) return start_anew(&options, err);
    if (sscanf(begun, "%lf %lf %lf", &c.start, &c.pages.bytes, &c.pages.cached) != 3)
        return fail(err, KLEIN_E_USAGE, "%s is for klein bench --cold itself: unset it", variable);
    options.device = device->device;
    options.threads = device->threads;
    options.dtype = (enum klein_dtype)device->dtype;
    options.precision = (enum klein_precision)device->precision;
    TRY(measure(&c, &options, request, err));
    return print(&c, json, err);
}
