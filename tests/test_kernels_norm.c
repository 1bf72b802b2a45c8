/* The kernels of norm/ and pointwise/ on the soft GPU: every case against ref by the rule of op_cases.h, on several claimed chips, in
 * several orders of threads; the same bytes in every order; special values; what they move, by the soft GPU's counters. */
#include "support/accesses.h"
#include "support/gpu_device.h"
#include "support/op_cases.h"
#include "support/support.h"

#include "../kernels/norm/norm.h"
#include "../kernels/pointwise/pointwise.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct klein_error err;

/* ---- the kernels as a device -------------------------------------------------------------------------------------------- */

#define RUN(prefix, op, args)                                                                                \
    static enum klein_status run_##op(struct device *dev, const struct args *a, struct klein_error *e)       \
    {                                                                                                        \
        return prefix##_##op(((struct gpu_device *)dev)->gpu, a, e);                                         \
    }
RUN(norm, adaln, adaln_args)
RUN(norm, rmsnorm, rmsnorm_args)
RUN(norm, gn_apply, gn_apply_args)
RUN(pointwise, embed, embed_args)
RUN(pointwise, timestep, timestep_args)
RUN(pointwise, patchify, patch_args)
RUN(pointwise, unpatchify, patch_args)
RUN(pointwise, euler, euler_args)
RUN(pointwise, cfg, cfg_args)
RUN(pointwise, copy, copy_args)
RUN(pointwise, to_u8, to_u8_args)
RUN(pointwise, from_u8, from_u8_args)

static enum klein_status run_gn_stats(struct device *dev, const struct gn_stats_args *a,
                                      struct klein_error *e)
{
    struct gpu *g = ((struct gpu_device *)dev)->gpu;
    void *scratch;
    TRY(gpu_alloc(g, norm_gn_stats_scratch(a), &scratch, e)); /* exact: the soft GPU guards its end */
    enum klein_status status = norm_gn_stats(g, a, scratch, e);
    if (status == KLEIN_OK) status = gpu_sync(g, e);
    gpu_free(g, scratch);
    return status;
}

#define OPS(X)                                                                                               \
    X(adaln)                                                                                                 \
    X(rmsnorm)                                                                                               \
    X(gn_stats)                                                                                              \
    X(gn_apply)                                                                                              \
    X(embed)                                                                                                 \
    X(timestep)                                                                                              \
    X(patchify)                                                                                              \
    X(unpatchify)                                                                                            \
    X(euler)                                                                                                 \
    X(cfg)                                                                                                   \
    X(copy)                                                                                                  \
    X(to_u8)                                                                                                 \
    X(from_u8)

static const struct op_table ops = {
#define X(op) .op = run_##op,
    OPS(X)
#undef X
};

struct chip {
    const char *arch;
    uint64_t seed;
    enum softgpu_async async;
};
static const struct chip chips[] = {{"sm_80", 0, SOFTGPU_LATE},
                                    {"sm_80", 7, SOFTGPU_RANDOM},
                                    {"sm_80", 23, SOFTGPU_NOW},
                                    {"sm_89", 3, SOFTGPU_LATE},
                                    {"sm_90a", 5, SOFTGPU_RANDOM}};
enum { CHIPS = sizeof chips / sizeof chips[0] };

static struct gpu_device *open_chip(const struct chip *chip, int count)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", chip->arch);
    c.seed = chip->seed;
    c.async = chip->async;
    c.count_accesses = count;
    cr_assert(softgpu_configure(&c));
    return gpu_device_open(&ops);
}

/* ---- every case; the same bytes on every chip --------------------------------------------------------------------------- */

static uint64_t result_of(const struct op_case *c, enum dtype act, struct gpu_device *d)
{
    struct op_call call;
    op_call_make(&call, c, act, act, &d->base);
    OK(op_call_run(&call, &err));
    struct tensor y = op_call_output(&call, 0);
    uint64_t hash = fnv1a(y.ptr, (size_t)y.rows * (size_t)y.cols * sizeof(float));
    free(y.ptr);
    op_call_free(&call);
    return hash;
}

/* A chip that has e4m3 writes other bytes where a case asks for them. */
static void check_op(enum op_id op)
{
    enum { BF16, F32, E4M3, FORMS };
    static uint64_t first[FORMS][1024];
    cr_assert(op_case_count <= 1024);
    for (int i = 0; i < CHIPS; i++) {
        struct gpu_device *d = open_chip(&chips[i], 0);
        for (int j = 0; j < op_case_count; j++)
            for (int f32 = 0; f32 < 2; f32++) {
                const struct op_case *c = &op_cases[j];
                enum dtype act = f32 ? DT_F32 : DT_BF16;
                if (c->op != op || c->bench) continue;
                const int form = f32 ? F32 : c->options & Y_E4M3 && d->base.e4m3 ? E4M3 : BF16;
                uint64_t hash = result_of(c, act, d);
                if (!first[form][j]) {
                    op_case_check(c, act, &d->base);
                    first[form][j] = hash;
                }
                cr_assert(hash == first[form][j], "%s %s on %s: %s, seed %d differs", op_name(op), c->name,
                          dtype_name(act), chips[i].arch, (int)chips[i].seed);
            }
        device_close(&d->base);
    }
}

#define X(op)                                                                                                \
    Test(kernels_norm, op)                                                                                   \
    {                                                                                                        \
        check_op(OP_##op);                                                                                   \
    }
OPS(X)
#undef X

/* ---- operands made by hand ------------------------------------------------------------------------------------------------ */

static struct tensor on_gpu(struct gpu_device *d, enum dtype t, int rows, int cols, const void *values)
{
    size_t bytes = (size_t)rows * (size_t)cols * dtype_size(t);
    struct tensor x = tensor_of(d->base.alloc(&d->base, bytes), t, rows, cols);
    cr_assert(x.ptr);
    if (values)
        OK(d->base.upload(&d->base, x.ptr, values, bytes, &err));
    else
        OK(gpu_fill(d->gpu, x.ptr, 0x3c, bytes, &err)); /* about 0.01 in bf16 and f32 */
    return x;
}

static void *from_gpu(struct gpu_device *d, struct tensor t)
{
    size_t bytes = (size_t)t.rows * (size_t)t.cols * dtype_size(t.dtype);
    void *host = malloc(bytes);
    cr_assert(host);
    OK(d->base.download(&d->base, host, t.ptr, bytes, &err));
    return host;
}

/* ---- adaln to e4m3 ---------------------------------------------------------------------------------------------------------- */

/* Distance of v from e4m3 number b, in f64. */
static double distance(double v, int b)
{
    return fabs(v - (double)f32_from_f8e4m3((uint8_t)b));
}

static void check_e4m3(const char *arch, int rows, int cols, int split)
{
    struct gpu_device *d = open_chip(&(struct chip){arch, 4, SOFTGPU_RANDOM}, 0);
    bf16 *x = malloc((size_t)rows * (size_t)cols * sizeof *x);
    float *modulation[4];
    cr_assert(x);
    for (int i = 0; i < rows * cols; i++) {
        double v = sin(i * 0.37) + 0.3 * cos(i * 1.71) + (i % 61 == 7 ? 30 * sin(i * 0.05) : 0);
        x[i] = bf16_from_f32((float)(i / cols == 2 ? 0.5 : v)); /* row 2 is constant */
    }
    struct adaln_args a = {.split = split, .eps = 1e-6f};
    for (int i = 0; i < 4; i++) {
        modulation[i] = malloc((size_t)cols * sizeof(float));
        cr_assert(modulation[i]);
        for (int c = 0; c < cols; c++) /* group 0 shifts nothing, so that row 2 is zero */
            modulation[i][c] = i == 0 ? 0 : (float)(0.7 * sin(c * (0.11 + i)));
        struct tensor t = on_gpu(d, DT_F32, 1, cols, modulation[i]);
        *(i < 2 ? &a.shift[i] : &a.scale[i - 2]) = t;
    }
    a.x = on_gpu(d, DT_BF16, rows, cols, x);
    a.y = on_gpu(d, DT_F8E4M3, rows, cols, NULL);
    struct tensor row_scale = on_gpu(d, DT_F32, 1, rows, NULL);
    a.y.scale = row_scale.ptr;
    OK(norm_adaln(d->gpu, &a, &err));
    uint8_t *y = from_gpu(d, a.y);
    float *scale = from_gpu(d, row_scale);
    double *truth = malloc((size_t)cols * sizeof *truth);
    cr_assert(truth);
    for (int r = 0; r < rows; r++) {
        double mean = 0, squares = 0, largest = 0;
        const float *shift = modulation[split && r >= split], *gain = modulation[2 + (split && r >= split)];
        for (int c = 0; c < cols; c++) mean += (double)f32_from_bf16(x[r * cols + c]) / cols;
        for (int c = 0; c < cols; c++) squares += pow((double)f32_from_bf16(x[r * cols + c]) - mean, 2);
        for (int c = 0; c < cols; c++) {
            double z = ((double)f32_from_bf16(x[r * cols + c]) - mean) / sqrt(squares / cols + 1e-6);
            truth[c] = z * (1 + (double)gain[c]) + (double)shift[c];
            largest = fmax(largest, fabs(truth[c]));
        }
        cr_assert(isfinite(scale[r]) && scale[r] > 0, "row %d: scale %g", r, (double)scale[r]);
        if (r == 2) {
            for (int c = 0; c < cols; c++)
                cr_assert((y[r * cols + c] & 0x7f) == 0, "a row of zeros has %d", c);
            continue;
        }
        cr_assert(fabs((double)scale[r] - largest / 448) <= 1e-5 * largest / 448, "row %d: scale %g, not %g",
                  r, (double)scale[r], largest / 448);
        double most = 0;
        for (int c = 0; c < cols; c++) { /* no e4m3 number is clearly nearer */
            double v = truth[c] * 448 / largest, best = 1e9;
            for (int b = 0; b < 256; b++)
                if ((b & 0x7f) != 0x7f) best = fmin(best, distance(v, b));
            double off = distance(v, y[r * cols + c]);
            cr_assert(off <= best + 2e-5 * fabs(v) + 1e-6, "row %d column %d: %g became %#x", r, c, v,
                      y[r * cols + c]);
            most = fmax(most, fabs((double)f32_from_f8e4m3(y[r * cols + c])));
        }
        cr_assert(most == 448, "row %d: the range is not used, largest is %g", r, most);
    }
    free(x), free(y), free(scale), free(truth);
    for (int i = 0; i < 4; i++) free(modulation[i]);
    device_close(&d->base);
}

Test(kernels_norm, adaln_e4m3)
{
    check_e4m3("sm_89", 5, 96, 3);
    check_e4m3("sm_90a", 12, 768, 5);
    check_e4m3("sm_89", 9, 3072, 0);
    check_e4m3("sm_90a", 4, 4096, 4);
}

Test(kernels_norm, adaln_e4m3_refuses)
{
    struct device *cpu;
    struct gpu_device *d = open_chip(&(struct chip){"sm_80", 0, SOFTGPU_LATE}, 0);
    struct adaln_args a = {.x = on_gpu(d, DT_BF16, 4, 64, NULL), .y = on_gpu(d, DT_F8E4M3, 4, 64, NULL)};
    a.shift[0] = a.scale[0] = on_gpu(d, DT_F32, 1, 64, NULL);
    FAILS(ops_check_adaln(&a, NULL, &err), KLEIN_E_INTERNAL, "a->y.scale");
    a.y.scale = on_gpu(d, DT_F32, 1, 4, NULL).ptr;
    OK(ops_check_adaln(&a, NULL, &err));
    struct adaln_args wrong = a;
    wrong.y.ptr = wrong.x.ptr;
    FAILS(ops_check_adaln(&wrong, NULL, &err), KLEIN_E_INTERNAL, "a->y.ptr != a->x.ptr");
    FAILS(norm_adaln(d->gpu, &a, &err), KLEIN_E_UNSUPPORTED, "needs sm_89");
    device_close(&d->base);

    d = open_chip(&(struct chip){"sm_89", 0, SOFTGPU_LATE}, 0);
    wrong = a, wrong.x.dtype = DT_F32;
    FAILS(norm_adaln(d->gpu, &wrong, &err), KLEIN_E_UNSUPPORTED, "x is F32");
    wrong = a, wrong.x.cols = wrong.y.cols = 56;
    FAILS(norm_adaln(d->gpu, &wrong, &err), KLEIN_E_UNSUPPORTED, "multiple of 16 up to 4096");
    device_close(&d->base);

    OK(device_open("cpu", &(struct device_options){.threads = 1}, &cpu, &err));
    FAILS(cpu->ops->adaln(cpu, &a, &err), KLEIN_E_UNSUPPORTED, "adaln: the cpu device");
    device_close(cpu);
}

/* ---- special values ------------------------------------------------------------------------------------------------------------ */

Test(kernels_norm, bytes_at_ties_and_beyond)
{
    static const float values[] = {0, NAN, -NAN, INFINITY, -INFINITY, 1, -1, 1.5f, -2, 1e-45f, 0.9999999f};
    enum { N = 3 * 512 };
    float x[N];
    for (int i = 0; i < N; i++) /* halfway between bytes as nearly as f32 allows, and the list */
        x[i] = i < 11 ? values[i] : nextafterf((float)((i % 255 + 0.5) / 127.5 - 1), i % 2 ? 2 : -2);
    for (int contiguous = 0; contiguous < 2; contiguous++) {
        struct gpu_device *d = open_chip(&chips[1], 0);
        struct to_u8_args a = {.x = on_gpu(d, DT_F32, N / 3, 3, x), .y = on_gpu(d, DT_U8, N / 3, 3, NULL)};
        if (!contiguous) a.x.rows = a.y.rows = N / 3 - 1; /* not whole vectors */
        OK(pointwise_to_u8(d->gpu, &a, &err));
        uint8_t *y = from_gpu(d, a.y);
        for (int i = 0; i < 3 * a.x.rows; i++) {
            float z = x[i] * 0.5f + 0.5f;
            int expected = isnan(z) ? 0 : (int)rintf(fmaxf(0, fminf(1, z)) * 255);
            cr_assert(y[i] == expected, "%g became %d, not %d", (double)x[i], y[i], expected);
        }
        free(y);
        device_close(&d->base);
    }
}

/* Every 16-bit pattern, through the vector kernel and through the plain one (an odd number of columns). */
static void check_all_patterns(enum dtype t, int cols)
{
    enum { N = 65536 };
    struct gpu_device *d = open_chip(&chips[1], 0);
    static uint16_t x[N];
    for (int i = 0; i < N; i++) x[i] = (uint16_t)i;
    struct copy_args a = {.x = on_gpu(d, t, 1, N, x), .y = on_gpu(d, DT_F32, 1, N, NULL)};
    a.x.cols = a.y.cols = cols;
    OK(pointwise_copy(d->gpu, &a, &err));
    float *y = from_gpu(d, a.y);
    for (int i = 0; i < cols; i++) {
        float expected = f32_load(x, t, (size_t)i);
        cr_assert(isnan(expected) ? isnan(y[i]) : f32_bits(y[i]) == f32_bits(expected), "%s %#x became %g",
                  dtype_name(t), (unsigned)i, (double)y[i]);
    }
    free(y);
    device_close(&d->base);
}

Test(kernels_norm, every_half)
{
    check_all_patterns(DT_F16, 65536);
    check_all_patterns(DT_F16, 65535);
    check_all_patterns(DT_BF16, 65536);
    check_all_patterns(DT_BF16, 65535);
}

Test(kernels_norm, timestep_is_exact)
{
    enum { STEPS = 200, HALF = 128 };
    float t[STEPS];
    for (int i = 0; i < STEPS; i++) t[i] = (float)i / (STEPS - 1); /* angles from 0 to 1000 */
    struct gpu_device *d = open_chip(&chips[0], 0);
    struct timestep_args a = {.t = on_gpu(d, DT_F32, 1, STEPS, t),
                              .y = on_gpu(d, DT_F32, STEPS, 2 * HALF, NULL)};
    OK(pointwise_timestep(d->gpu, &a, &err));
    float *y = from_gpu(d, a.y);
    for (int s = 0; s < STEPS; s++)
        for (int k = 0; k < HALF; k++) {
            double angle = (double)t[s] * 1000 * exp(-log(10000) * k / HALF);
            double c = fabs((double)y[s * 2 * HALF + k] - cos(angle));
            double d_sin = fabs((double)y[s * 2 * HALF + HALF + k] - sin(angle));
            cr_assert(c <= 0x1p-25 && d_sin <= 0x1p-25, "angle %g: off by %g, %g", angle, c, d_sin);
        }
    free(y);
    device_close(&d->base);
}

/* ---- counters: one pass over memory, whole sectors, no bank conflicts ------------------------------------------------------- */

static void start_counting(struct gpu_device *d)
{
    OK(gpu_sync(d->gpu, &err));
    softgpu_reset_counters();
}

/* `bytes`: what the op must read and write; beside it (modulation, weights, statistics) at most a part `more`. accesses: by width. */
static void check_counters(struct gpu_device *d, const char *what, double bytes, double more,
                           const char *accesses)
{
    struct softgpu_counters n;
    OK(gpu_sync(d->gpu, &err));
    softgpu_read_counters(&n);
    double moved = 32.0 * (double)n.global_sectors;
    cr_expect(n.global_sectors <= n.global_sectors_ideal, "%s: %llu sectors, %llu would do", what,
              (unsigned long long)n.global_sectors, (unsigned long long)n.global_sectors_ideal);
    cr_expect(moved >= bytes && moved <= bytes * (1 + more), "%s: moved %.0f bytes for %.0f", what, moved,
              bytes);
    cr_expect(n.bank_conflicts == 0, "%s: %llu bank conflicts", what, (unsigned long long)n.bank_conflicts);
    expect_accesses(&n, what, accesses);
}

static void count_norms(struct gpu_device *d, enum dtype act)
{
    const int f32 = act == DT_F32;
    struct op_cost cost;
    struct adaln_args ln = {
        .x = on_gpu(d, act, 64, 3072, NULL), .y = on_gpu(d, act, 64, 3072, NULL), .split = 24};
    for (int i = 0; i < 2; i++) ln.shift[i] = ln.scale[i] = on_gpu(d, DT_F32, 1, 3072, NULL);
    OK(ops_check_adaln(&ln, &cost, &err));
    start_counting(d);
    OK(norm_adaln(d->gpu, &ln, &err));
    check_counters(d, "adaln", 2.0 * 64 * 3072 * (double)dtype_size(act), 0.26,
                   f32 ? "16: 3456" : "16: 1920"); /* 24 KiB per 8 rows */

    struct rmsnorm_args rms = {.x = on_gpu(d, act, 16, 2560, NULL),
                               .y = on_gpu(d, act, 16, 2560, NULL),
                               .w = on_gpu(d, DT_BF16, 1, 2560, NULL)};
    start_counting(d);
    OK(norm_rmsnorm(d->gpu, &rms, &err));
    check_counters(d, "rmsnorm", 2.0 * 16 * 2560 * (double)dtype_size(act), 0.5,
                   f32 ? "8: 320, 16: 640" : "16: 480"); /* w per row, from the cache */

    static const char *const stats_accesses[2][3] = {{"4: 144, 8: 128, 16: 2048", "4: 352, 8: 512, 16: 4096",
                                                      "4: 1152, 8: 2048, 16: 8192"},
                                                     {"4: 224, 8: 256, 16: 4096", "4: 640, 8: 1024, 16: 8192",
                                                      "4: 2240, 8: 4096, 16: 16384"}},
                             *const apply_accesses[2][3] = {
                                 {"2: 128, 4: 128, 16: 4096", "2: 512, 4: 512, 16: 8192",
                                  "2: 2048, 4: 2048, 16: 16384"},
                                 {"2: 256, 4: 256, 16: 8192", "2: 1024, 4: 1024, 16: 16384",
                                  "2: 4096, 4: 4096, 16: 32768"}};
    for (int i = 0; i < 3; i++) {
        const int channels = 128 << i;
        struct tensor x = on_gpu(d, act, 4096, channels, NULL), y = on_gpu(d, act, 4096, channels, NULL);
        struct tensor stats = on_gpu(d, DT_F32, 32, 2, NULL), w = on_gpu(d, DT_BF16, 1, channels, NULL);
        double bytes = 4096.0 * channels * (double)dtype_size(act);
        struct gn_stats_args gs = {.stats = stats, .x = x};
        struct tensor scratch = on_gpu(d, DT_F32, 1, (int)norm_gn_stats_scratch(&gs) / 4, NULL);
        start_counting(d);
        OK(norm_gn_stats(d->gpu, &gs, scratch.ptr, &err));
        check_counters(d, "gn_stats", bytes, 0.15, stats_accesses[f32][i]);
        struct gn_apply_args ga = {.y = y, .x = x, .norm = {stats, w, w}, .silu = 1};
        start_counting(d);
        OK(norm_gn_apply(d->gpu, &ga, &err));
        check_counters(d, "gn_apply", 2 * bytes, 0.05, apply_accesses[f32][i]);
    }
}

static void count_pointwise(struct gpu_device *d, enum dtype act)
{
    const int f32 = act == DT_F32;
    double size = (double)dtype_size(act);
    static int32_t ids[64];
    for (int i = 0; i < 64; i++) ids[i] = i * 7 % 31;
    struct tensor table = on_gpu(d, DT_BF16, 31, 2560, NULL), embedded = on_gpu(d, act, 64, 2560, NULL);
    struct tensor id = on_gpu(d, DT_I32, 1, 64, ids);
    start_counting(d);
    OK(pointwise_embed(d->gpu, &(struct embed_args){embedded, table, id}, &err));
    check_counters(d, "embed", 64 * 2560 * (2 + size), 0.1,
                   f32 ? "4: 1344, 8: 1344, 16: 1344" : "4: 640, 16: 1280");

    struct tensor f = on_gpu(d, DT_F32, 64, 512, NULL), h = on_gpu(d, act, 64, 512, NULL),
                  v = on_gpu(d, DT_F32, 64, 512, NULL);
    double n = 64 * 512;
    start_counting(d);
    OK(pointwise_copy(d->gpu, &(struct copy_args){h, f}, &err));
    check_counters(d, "copy", n * (4 + size), 0, f32 ? "16: 512" : "8: 256, 16: 256");
    start_counting(d);
    OK(pointwise_euler(d->gpu, &(struct euler_args){v, v, f, on_gpu(d, DT_F32, 1, 1, NULL)}, &err));
    check_counters(d, "euler", n * 12, 0.03,
                   f32 ? "4: 256, 16: 768" : "4: 256, 16: 768"); /* and dt, once a warp */
    start_counting(d);
    OK(pointwise_cfg(d->gpu, &(struct cfg_args){v, v, f, 4}, &err));
    check_counters(d, "cfg", n * 12, 0, f32 ? "16: 768" : "16: 768");

    struct tensor rgb = on_gpu(d, act, 4096, 3, NULL), bytes = on_gpu(d, DT_U8, 4096, 3, NULL);
    start_counting(d);
    OK(pointwise_to_u8(d->gpu, &(struct to_u8_args){bytes, rgb}, &err));
    check_counters(d, "to_u8", 3 * 4096 * (1 + size), 0, f32 ? "4: 96, 16: 96" : "8: 48, 16: 48");
    start_counting(d);
    OK(pointwise_from_u8(d->gpu, &(struct from_u8_args){rgb, bytes}, &err));
    check_counters(d, "from_u8", 3 * 4096 * (1 + size), 0, f32 ? "4: 96, 16: 96" : "8: 48, 16: 48");

    struct tensor image = on_gpu(d, act, 64 * 64, 32, NULL), tokens = on_gpu(d, DT_F32, 32 * 32, 128, NULL),
                  stats = on_gpu(d, DT_BF16, 1, 128, NULL);
    start_counting(d);
    OK(pointwise_patchify(d->gpu, &(struct patch_args){tokens, image, stats, stats, 64, 64, 1e-4f}, &err));
    check_counters(d, "patchify", 64 * 64 * 32 * (4 + size), 0.7,
                   f32 ? "4: 4096, 8: 2048, 16: 1024"
                       : "2: 4096, 8: 2048, 16: 1024"); /* mean and var from the cache */
    start_counting(d);
    OK(pointwise_unpatchify(d->gpu, &(struct patch_args){image, tokens, stats, stats, 64, 64, 1e-4f}, &err));
    check_counters(d, "unpatchify", 64 * 64 * 32 * (4 + size), 0.7,
                   f32 ? "4: 4096, 8: 2048, 16: 1024" : "2: 4096, 8: 2048, 16: 1024");
}

Test(kernels_norm, counters)
{
    for (int f32 = 0; f32 < 2; f32++) {
        struct gpu_device *d = open_chip(&chips[0], 1);
        count_norms(d, f32 ? DT_F32 : DT_BF16);
        count_pointwise(d, f32 ? DT_F32 : DT_BF16);
        device_close(&d->base);
    }
}

/* adaln's result in e4m3: a lane stores 16 bytes, and one of a row its scale. */
Test(kernels_norm, counters_of_e4m3)
{
    enum { ROWS = 64, COLS = 3072 };
    struct gpu_device *d = open_chip(&chips[3], 1);
    struct adaln_args ln = {
        .x = on_gpu(d, DT_BF16, ROWS, COLS, NULL), .y = on_gpu(d, DT_F8E4M3, ROWS, COLS, NULL), .split = 24};
    ln.y.scale = on_gpu(d, DT_F32, 1, ROWS, NULL).ptr;
    for (int i = 0; i < 2; i++) ln.shift[i] = ln.scale[i] = on_gpu(d, DT_F32, 1, COLS, NULL);
    start_counting(d);
    OK(norm_adaln(d->gpu, &ln, &err));
    check_counters(d, "adaln to e4m3", 3.0 * ROWS * COLS, 0.35, "4: 64, 16: 1536");
    device_close(&d->base);
}

/* ---- dependent launches -------------------------------------------------------------------------------------------------------- */

/* A chain of launches, each of which reads what the one before it has written; waited for one by one if `apart`. Hash of the last two
 * results. */
static uint64_t chain(const struct chip *chip, int apart, struct softgpu_counters *counters)
{
    enum { ROWS = 64, COLS = 256, N = ROWS * COLS };
    static float values[N];
    for (int i = 0; i < N; i++) values[i] = (float)((i * 7919 % 1009) - 504) / 256;
    struct gpu_device *d = open_chip(chip, 0);
    struct tensor x = on_gpu(d, DT_F32, ROWS, COLS, values), w = tensor_of(x.ptr, DT_F32, 1, COLS), f[3],
                  h[5], stats = on_gpu(d, DT_F32, 32, 2, NULL), bytes = on_gpu(d, DT_U8, ROWS, COLS, NULL);
    struct tensor scales = on_gpu(d, DT_BF16, 1, COLS, NULL);
    for (int i = 0; i < 3; i++) f[i] = on_gpu(d, DT_F32, ROWS, COLS, NULL);
    for (int i = 0; i < 5; i++) h[i] = on_gpu(d, DT_BF16, ROWS, COLS, NULL);
    struct gn_stats_args gs = {stats, h[2], 1e-6f};
    void *scratch;
    OK(gpu_alloc(d->gpu, norm_gn_stats_scratch(&gs), &scratch, &err));
    OK(gpu_sync(d->gpu, &err));
    softgpu_reset_counters();
    struct gpu *g = d->gpu;
#define THEN(call)                                                                                           \
    OK(call);                                                                                                \
    if (apart) OK(gpu_sync(g, &err))
    THEN(pointwise_euler(g, &(struct euler_args){f[0], x, x, tensor_of(x.ptr, DT_F32, 1, 1)}, &err));
    THEN(pointwise_cfg(g, &(struct cfg_args){f[1], f[0], x, 4}, &err));
    THEN(pointwise_copy(g, &(struct copy_args){h[0], f[1]}, &err));
    THEN(norm_rmsnorm(g, &(struct rmsnorm_args){h[1], h[0], scales, 1e-6f}, &err));
    THEN(norm_adaln(g, &(struct adaln_args){.y = h[2], .x = h[1], .shift = {w}, .scale = {w}, .eps = 1e-6f},
                    &err));
    THEN(norm_gn_stats(g, &gs, scratch, &err));
    THEN(norm_gn_apply(
        g, &(struct gn_apply_args){h[3], h[2], {.stats = stats, .gamma = scales, .beta = scales}, 1}, &err));
    THEN(pointwise_to_u8(g, &(struct to_u8_args){bytes, h[3]}, &err));
    THEN(pointwise_from_u8(g, &(struct from_u8_args){h[4], bytes}, &err));
    THEN(pointwise_copy(g, &(struct copy_args){f[2], h[4]}, &err));
    THEN(pointwise_euler(g, &(struct euler_args){f[0], f[2], x, tensor_of(x.ptr, DT_F32, 1, 1)},
                         &err)); /* overwrites what cfg reads */
#undef THEN
    float *y[2] = {from_gpu(d, f[0]), from_gpu(d, f[1])};
    softgpu_read_counters(counters);
    uint64_t hash = fnv1a(y[0], N * sizeof(float)) * 31 + fnv1a(y[1], N * sizeof(float));
    free(y[0]), free(y[1]);
    device_close(&d->base);
    return hash;
}

Test(kernels_norm, dependent_launches_wait)
{
    struct softgpu_counters c;
    uint64_t first = chain(&(struct chip){"sm_80", 0, SOFTGPU_NOW}, 1, &c);
    cr_assert(c.kernels == 12 && c.dependents == 0, "%d, %d", (int)c.kernels, (int)c.dependents);
    for (int seed = 0; seed < 6; seed++)
        for (int apart = 0; apart < 2; apart++) {
            struct chip chip = {"sm_90a", (uint64_t)seed, (enum softgpu_async)(seed % 3)};
            cr_assert(chain(&chip, apart, &c) == first, "seed %d, apart %d", seed, apart);
            cr_assert(c.kernels == 12 && c.dependents == 12, "%d, %d", (int)c.kernels, (int)c.dependents);
        }
}
