/* The soft GPU: it computes what the hardware is documented to compute, in every order, and it reports what is wrong. */
#include "soft/fixture.h"

#include "../kernels/gemm/linear_launch.h"

#include <sys/wait.h>
#include <unistd.h>

/* Runs a product [m, n] = a b^T of device matrices. */
typedef void gemm_fn(struct gpu *g, void *c, void *a, void *b, int m, int n, int k);

static void run_gemm(struct gpu *g, void *c, void *a, void *b, int m, int n, int k, const char *kernel)
{
    struct linear_kernel_args args = {.x = a, .ldx = k, .m = m, .k = k, .segments = 1};
    args.segment[0] = (struct linear_segment){
        .cols = n, .y_type = ELEMENT_BF16, .ldy = n, .y = c, .group[0] = {.w = b, .ldw = k}};
    setenv("KLEIN_GEMM", kernel, 1);
    OK(gemm_launch(g, DT_BF16, &args, &err));
}

static void gemm_sm80_s2(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_gemm(g, c, a, b, m, n, k, "gemm_sm80_linear_128x128_s2");
}

static void gemm_sm80_s3(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_gemm(g, c, a, b, m, n, k, "gemm_sm80_linear_128x128_s3");
}

static void gemm_sm90_256(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_gemm(g, c, a, b, m, n, k, "gemm_linear_sm90_128x256");
}

static void gemm_sm90_128(struct gpu *g, void *c, void *a, void *b, int m, int n, int k)
{
    run_gemm(g, c, a, b, m, n, k, "gemm_linear_sm90_128x128");
}

/* Against the product in f64 of the same bf16 operands: c may err by a bf16 rounding and by f32 sums. */
static void check_gemm(struct gpu *g, gemm_fn *gemm, int m, int n, int k)
{
    size_t sizes[] = {sizeof(bf16) * (size_t)(m * k), sizeof(bf16) * (size_t)(n * k),
                      sizeof(bf16) * (size_t)(m * n)};
    bf16 *a = malloc(sizes[0]), *b = malloc(sizes[1]), *c = malloc(sizes[2]);
    for (int i = 0; i < m * k; i++) a[i] = bf16_from_f32(number((uint64_t)i));
    for (int i = 0; i < n * k; i++) b[i] = bf16_from_f32(number((uint64_t)i + 1000000007));
    void *da = to_device(g, a, sizes[0]), *db = to_device(g, b, sizes[1]), *dc;
    OK(gpu_alloc(g, sizes[2], &dc, &err));
    gemm(g, dc, da, db, m, n, k);
    OK(gpu_download(g, c, dc, sizes[2], &err));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int x = 0; x < k; x++) {
                double product = (double)f32_from_bf16(a[i * k + x]) * f32_from_bf16(b[j * k + x]);
                sum += product;
                size += fabs(product);
            }
            double d = fabs(f32_from_bf16(c[i * n + j]) - sum);
            cr_assert(d <= fabs(sum) * 0x1p-8 + size * k * 0x1p-24, "%dx%dx%d: c[%d, %d] = %g, not %g", m, n,
                      k, i, j, (double)f32_from_bf16(c[i * n + j]), sum);
        }
    gpu_free(g, da);
    gpu_free(g, db);
    gpu_free(g, dc);
    free(a);
    free(b);
    free(c);
}

Test(soft, gemm_sm80)
{
    static const int shapes[][3] = {{128, 128, 64}, {1, 8, 8}, {130, 264, 200}, {257, 136, 72}};
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct gpu *g = open_gpu("sm_80", seed, (enum softgpu_async)(seed % 3));
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            check_gemm(g, gemm_sm80_s2, shapes[i][0], shapes[i][1], shapes[i][2]);
            check_gemm(g, gemm_sm80_s3, shapes[i][0], shapes[i][1], shapes[i][2]);
        }
        close_gpu(g);
    }
}

Test(soft, gemm_sm90)
{
    static const int shapes[][3] = {{128, 256, 64}, {1, 8, 8}, {130, 264, 200}, {257, 520, 584}};
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct gpu *g = open_gpu("sm_90a", seed, (enum softgpu_async)(seed % 3));
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            check_gemm(g, gemm_sm90_256, shapes[i][0], shapes[i][1], shapes[i][2]);
            check_gemm(g, gemm_sm90_128, shapes[i][0], shapes[i][1], shapes[i][2]);
        }
        close_gpu(g);
    }
}

Test(soft, block_sum_in_any_order)
{
    for (uint64_t seed = 0; seed < 5; seed++) {
        struct gpu *g = open_gpu("sm_80", seed, (enum softgpu_async)(seed % 3));
        enum { N = 256 * 20 };
        static float x[N], y[N];
        for (int i = 0; i < N; i++) x[i] = (float)(i % 61);
        void *dx = to_device(g, x, sizeof x), *dy;
        OK(gpu_alloc(g, sizeof y, &dy, &err));
        struct unit_args args = {.y = dy, .x = dx};
        OK(gpu_launch(
            g,
            &(struct launch){
                .kernel = "units_sm80_sum", .grid = {20}, .threads = 256, .shared = 32, .args = &args},
            &err));
        OK(gpu_download(g, y, dy, sizeof y, &err));
        for (int b = 0; b < 20; b++) {
            float sum = 0;
            for (int i = 0; i < 256; i++) sum += x[256 * b + i];
            for (int i = 0; i < 256; i++)
                cr_assert(y[256 * b + i] == sum, "seed %d: y[%d] = %g", (int)seed, 256 * b + i,
                          y[256 * b + i]);
        }
        gpu_free(g, dx);
        gpu_free(g, dy);
        close_gpu(g);
    }
}

/* Launches one of units_sm80's kernels and brings y back. */
static void run_unit(struct gpu *g, const char *kernel, unsigned blocks, unsigned threads, unsigned shared,
                     struct unit_args args, void *y, size_t bytes)
{
    void *dy;
    OK(gpu_alloc(g, bytes, &dy, &err));
    args.y = dy;
    OK(gpu_launch(
        g,
        &(struct launch){
            .kernel = kernel, .grid = {blocks}, .threads = threads, .shared = shared, .args = &args},
        &err));
    OK(gpu_download(g, y, dy, bytes, &err));
    gpu_free(g, dy);
}

Test(soft, lanes)
{
    uint32_t y[64];
    struct gpu *g = open_gpu("sm_80", 1, SOFTGPU_LATE);
    run_unit(g, "units_sm80_lanes", 1, 32, 0, (struct unit_args){0}, y, sizeof y);
    for (int lane = 0; lane < 32; lane++)
        cr_assert(y[lane] == 50 && y[32 + lane] == (uint32_t)(lane ^ 3) * 10, "lane %d", lane);
    close_gpu(g);
}

Test(soft, ldmatrix_as_the_isa_says)
{
    uint16_t rows[32][8];
    uint32_t y[256];
    for (int i = 0; i < 256; i++) rows[i / 8][i % 8] = (uint16_t)(1000 + i);
    struct gpu *g = open_gpu("sm_80", 2, SOFTGPU_LATE);
    void *a = to_device(g, rows, sizeof rows);
    run_unit(g, "units_sm80_ldmatrix", 1, 32, 512, (struct unit_args){.a = a}, y, sizeof y);
    for (int j = 0; j < 4; j++)
        for (int l = 0; l < 32; l++) {
            uint32_t r = rows[8 * j + l / 4][2 * (l % 4)] | (uint32_t)rows[8 * j + l / 4][2 * (l % 4) + 1]
                                                                << 16;
            uint32_t t = rows[8 * j + 2 * (l % 4)][l / 4] | (uint32_t)rows[8 * j + 2 * (l % 4) + 1][l / 4]
                                                                << 16;
            cr_assert(y[32 * j + l] == r && y[128 + 32 * j + l] == t, "matrix %d, lane %d", j, l);
        }
    close_gpu(g);
}

static float element(const void *p, int i, enum unit_kind kind)
{
    return kind == UNIT_E4M3 ? f32_from_f8e4m3(((const uint8_t *)p)[i]) : f32_from_bf16(((const bf16 *)p)[i]);
}

/* Small integers, so that every order of summation gives the same. */
static void fill_integers(void *p, int count, enum unit_kind kind, uint64_t seed)
{
    static const uint8_t e4m3[] = {0x00, 0x38, 0x40, 0x44, 0x48, 0xb8, 0xc0, 0xc4}; /* 0 1 2 3 4 -1 -2 -3 */
    for (int i = 0; i < count; i++) {
        unsigned v = (unsigned)(8 * fabsf(number((uint64_t)i + seed))) % 8;
        if (kind == UNIT_E4M3)
            ((uint8_t *)p)[i] = e4m3[v];
        else
            ((bf16 *)p)[i] = bf16_from_f32(f32_from_f8e4m3(e4m3[v]));
    }
}

Test(soft, mma_as_the_isa_says)
{
    for (enum unit_kind kind = UNIT_BF16; kind <= UNIT_E4M3; kind++) {
        uint8_t a[1024], b[1024];
        float y[2][32][32];
        int k = kind == UNIT_E4M3 ? 32 : 16;
        fill_integers(a, 32 * k, kind, 1);
        fill_integers(b, 32 * k, kind, 5000);
        struct gpu *g = open_gpu("sm_89", 3, SOFTGPU_LATE);
        void *da = to_device(g, a, sizeof a), *db = to_device(g, b, sizeof b);
        run_unit(g, "units_sm80_mma", 1, 32, 0, (struct unit_args){.a = da, .b = db, .kind = (int)kind}, y,
                 sizeof y);
        for (int i = 0; i < 32; i++)
            for (int j = 0; j < 32; j++) {
                float sum = 0;
                for (int x = 0; x < k; x++) sum += element(a, i * k + x, kind) * element(b, j * k + x, kind);
                cr_assert(y[0][i][j] == sum && y[1][i][j] == sum, "kind %d [%d, %d]: %g and %g, not %g", kind,
                          i, j, y[0][i][j], y[1][i][j], sum);
            }
        close_gpu(g);
    }
}

Test(soft, fp8_sums_can_be_cut_as_on_hopper)
{
    struct softgpu_config c;
    uint8_t a[1024] = {0}, b[1024] = {0};
    float y[2][32][32];
    struct gpu *g = open_gpu("sm_89", 0, SOFTGPU_LATE);
    a[0] = 0x78, b[0] = 0x78; /* 256 * 256 = 2^16 */
    a[1] = 0x38, b[1] = 0x40; /* 1 * 2: 2^-15 of it, beyond 13 bits */
    a[2] = 0x48, b[2] = 0x40; /* 4 * 2 = 2^-13 of it: the last bit that counts */
    void *da = to_device(g, a, sizeof a), *db = to_device(g, b, sizeof b);
    struct unit_args args = {.a = da, .b = db, .kind = UNIT_E4M3};
    run_unit(g, "units_sm80_mma", 1, 32, 0, args, y, sizeof y);
    cr_assert(y[0][0][0] == 65536 + 2 + 8, "%g", y[0][0][0]);
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "sm_89");
    c.truncate_fp8 = 1;
    cr_assert(softgpu_configure(&c));
    run_unit(g, "units_sm80_mma", 1, 32, 0, args, y, sizeof y);
    cr_assert(y[0][0][0] == 65536 + 8, "%g", y[0][0][0]);
    close_gpu(g);
}

/* e4m3 of x by search over all values: nearest, ties to even, saturated. */
static uint8_t e4m3_nearest(float x)
{
    uint8_t best = 0;
    for (int v = 0; v <= 0x7e; v++) {
        float d = fabsf(f32_from_f8e4m3((uint8_t)v) - fabsf(x)), e = fabsf(f32_from_f8e4m3(best) - fabsf(x));
        if (d < e || (d == e && !(v & 1))) best = (uint8_t)v;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

Test(soft, conversions)
{
    enum { N = 256 * 64 };
    static float x[N];
    static uint16_t y[2][N];
    for (int i = 0; i < N; i++) x[i] = number((uint64_t)i) * exp2f((float)(i % 40 - 20));
    const float special[] = {0,        -0.0f,     448,     449,       464,      1e9f,
                             INFINITY, -INFINITY, 0x1p-6f, 0x1p-9f,   0x1p-10f, 0x1.8p-10f,
                             0x3p-10f, 17,        19,      0x1.01p0f, 0x1.03p0f};
    memcpy(x, special, sizeof special);
    struct gpu *g = open_gpu("sm_89", 0, SOFTGPU_LATE);
    void *dx = to_device(g, x, sizeof x);
    run_unit(g, "units_sm80_convert", N / 256, 256, 0, (struct unit_args){.x = dx}, y, sizeof y);
    for (int i = 0; i < N; i++) {
        cr_assert(y[0][i] == bf16_from_f32(x[i]), "bf16 of %a", x[i]);
        uint8_t e = e4m3_nearest(x[i]);
        cr_assert(y[1][i] == (e | (e ^ 0x80) << 8), "e4m3 of %a: %04x, not %02x", x[i], y[1][i], e);
    }
    close_gpu(g);
}

/* A hash of the bytes of one product; each instruction set of the host in a process of its own. */
static void check_isa(const char *isa, uint64_t *hash)
{
    enum { M = 192, WIDTH = 136, DEPTH = 200 };
    static bf16 a[M * DEPTH], b[WIDTH * DEPTH], c[M * WIDTH];
    setenv("KLEIN_SOFT_ISA", isa, 1);
    for (int i = 0; i < M * DEPTH; i++) a[i] = bf16_from_f32(number((uint64_t)i));
    for (int i = 0; i < WIDTH * DEPTH; i++) b[i] = bf16_from_f32(number((uint64_t)i + 777));
    struct gpu *g = open_gpu("sm_80", 0, SOFTGPU_LATE);
    void *dc;
    OK(gpu_alloc(g, sizeof c, &dc, &err));
    gemm_sm80_s2(g, dc, to_device(g, a, sizeof a), to_device(g, b, sizeof b), M, WIDTH, DEPTH);
    OK(gpu_download(g, c, dc, sizeof c, &err));
    *hash = fnv1a(c, sizeof c);
    close_gpu(g);
}

Test(soft, every_instruction_set_gives_the_same_bits)
{
    static const char *const sets[] = {"avx512", "avx2", "base"};
    uint64_t hashes[3];
    for (int i = 0; i < 3; i++) {
        int channel[2];
        cr_assert(!pipe(channel));
        pid_t child = fork();
        if (!child) {
            uint64_t hash = 0;
            check_isa(sets[i], &hash);
            _exit(write(channel[1], &hash, sizeof hash) != sizeof hash);
        }
        close(channel[1]);
        cr_assert(read(channel[0], &hashes[i], sizeof hashes[i]) == sizeof hashes[i], "%s", sets[i]);
        close(channel[0]);
        waitpid(child, NULL, 0);
    }
    cr_assert(hashes[0] == hashes[1] && hashes[1] == hashes[2]);
}

/* ---- counters ---------------------------------------------------------------------------------------------------------- */

static struct gpu *open_counting(const char *arch, uint64_t seed)
{
    struct softgpu_config c;
    struct gpu *g = open_gpu(arch, seed, SOFTGPU_LATE);
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", arch);
    c.seed = seed;
    c.count_accesses = 1;
    cr_assert(softgpu_configure(&c));
    return g;
}

Test(soft, counters_of_access_patterns)
{
    static const struct {
        int stride;
        uint64_t sectors, conflicts;
    } expected[] = {{1, 4, 0}, {2, 8, 1}, {3, 12, 0}, {8, 32, 7}, {32, 32, 31}}; /* words apart */
    float x[1024] = {0};
    struct gpu *g = open_counting("sm_80", 0);
    void *dx = to_device(g, x, sizeof x);
    for (int i = 0; i < 5; i++) {
        struct softgpu_counters c;
        struct unit_args args = {.x = dx, .kind = expected[i].stride};
        softgpu_reset_counters();
        OK(gpu_launch(
            g, &(struct launch){.kernel = "units_sm80_pattern", .threads = 32, .shared = 4096, .args = &args},
            &err));
        OK(gpu_sync(g, &err));
        softgpu_read_counters(&c);
        cr_assert(c.global_sectors == expected[i].sectors && c.global_sectors_ideal == 4, "stride %d: %d",
                  expected[i].stride, (int)c.global_sectors);
        cr_assert(c.bank_conflicts == expected[i].conflicts &&
                      c.shared_wavefronts == 1 + expected[i].conflicts,
                  "stride %d: %d", expected[i].stride, (int)c.bank_conflicts);
    }
    close_gpu(g);
}

/* The figures of one run of a GEMM: these are the kernel's contract, and a change of layout shows here. */
static struct softgpu_counters count_gemm(const char *arch, gemm_fn *gemm, uint64_t seed)
{
    struct softgpu_counters c;
    struct gpu *g = open_counting(arch, seed);
    softgpu_reset_counters();
    check_gemm(g, gemm, 256, 256, 192);
    softgpu_read_counters(&c);
    close_gpu(g);
    return c;
}

Test(soft, counters_of_gemm)
{
    for (uint64_t seed = 0; seed < 2; seed++) {
        struct softgpu_counters c = count_gemm("sm_80", gemm_sm80_s3, seed);
        cr_assert(c.blocks == 4 && c.tensor_flops == 2ull * 256 * 256 * 192);
        cr_assert(c.bank_conflicts == 0, "%d", (int)c.bank_conflicts);
        cr_assert(c.global_sectors == c.global_sectors_ideal, "%d of %d", (int)c.global_sectors,
                  (int)c.global_sectors_ideal);
        cr_assert(c.cp_async_bytes == 4 * 3 * 32768); /* blocks x k blocks x stage */
        cr_assert(c.barriers == 4 * (3 + 1));
        c = count_gemm("sm_90a", gemm_sm90_128, seed);
        cr_assert(c.blocks == 4 && c.tensor_flops == 2ull * 256 * 256 * 192);
        cr_assert(c.bank_conflicts == 0);
        cr_assert(c.tma_bytes == 4 * 3 * 32768 + 256 * 256 * 2); /* and c */
    }
}
