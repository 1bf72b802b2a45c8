/* bench/ladder/gemm: every step computes the same products, with edges, in every order with the same bytes; and what its first comment
 * says of its cost is so. */
#include "soft/products.h"

static const struct kernel_module modules[] = {
    {"ladder_gemm", "sm_80", "klein soft image: sm_80 compute_80"},
    {"ladder_gemm_sm90", "sm_90a", "klein soft image: sm_90a"},
    {0},
};

/* The counted product: 2 x 2 tiles of 128 x 128, two k blocks of 64. */
enum { M = 256, N = 256, K = 128 };
#define FLOPS (2ull * M * N * K)
/* Bytes of operands that `blocks` tiles of rows + columns copy. */
#define COPIED(blocks, sides) (2ull * (blocks) * (sides)*K)
/* Results that leave in pieces of 16 bytes touch a sector per piece. */
#define HALF_SECTORS (M * N / 16)
/* Naive: per pair of k a warp reads 2 rows of x and 16 of W. */
#define SCATTERED ((18 - 8) * (M * N / 32ull) * (K / 2))

static const struct step {
    const char *kernel;
    const char *arch;
    unsigned bm, bn, threads, shared;
    uint64_t tensor_flops, cp_async_bytes, tma_bytes;
    uint64_t sectors, barriers; /* sectors beyond the ideal */
} steps[] = {
    {"ladder_gemm_naive", "sm_80", 16, 16, 256, 0, 0, 0, 0, SCATTERED, 0},
    {"ladder_gemm_tiles", "sm_80", 32, 32, 1024, 8448, 0, 0, 0, 0, 64 * 4},
    {"ladder_gemm_registers", "sm_80", 128, 128, 256, 16384, 0, 0, 0, 0, 4 * 8},
    {"ladder_gemm_tensor_cores", "sm_80", 128, 128, 128, 32768, FLOPS, 0, 0, HALF_SECTORS, 4 * 4},
    {"ladder_gemm_async", "sm_80", 128, 128, 128, 98304, FLOPS, COPIED(4, 256), 0, HALF_SECTORS, 4 * 2},
    {"ladder_gemm_sm90_wgmma", "sm_90a", 128, 128, 256, 132096, FLOPS, 0, COPIED(4, 256), HALF_SECTORS,
     4 * 3},
    {"ladder_gemm_sm90_roles", "sm_90a", 128, 256, 384, 197632, FLOPS, 0, COPIED(2, 384), HALF_SECTORS, 2},
    {"ladder_gemm_sm90_persistent", "sm_90a", 128, 256, 384, 230400, FLOPS, 0, COPIED(2, 384) + 2ull * M *N,
     0, 2},
};
enum { STEPS = sizeof steps / sizeof *steps, PERSISTENT = STEPS - 1 };

static struct gpu *open_step(int i, uint64_t seed, enum softgpu_async async, int multiprocessors, int count)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    snprintf(c.arch, sizeof c.arch, "%s", steps[i].arch);
    c.seed = seed;
    c.async = async;
    c.multiprocessors = multiprocessors;
    c.count_accesses = count;
    cr_assert(softgpu_configure(&c));
    struct gpu *g;
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    OK(gpu_add_modules(g, modules, &err));
    return g;
}

/* 64 columns by box_rows of a matrix of bf16. */
static struct tensor_map map(struct gpu *g, const void *ptr, int rows, int cols, int64_t ld,
                             unsigned box_rows)
{
    const struct tensor_box box = {.ptr = (void *)(uintptr_t)ptr,
                                   .dtype = DT_BF16,
                                   .rank = 2,
                                   .dims = {(uint64_t)cols, (uint64_t)rows},
                                   .strides = {(uint64_t)ld * sizeof(bf16)},
                                   .box = {64, box_rows},
                                   .swizzle = 128};
    struct tensor_map out;
    OK(gpu_tensor_map(g, &box, &out, &err));
    return out;
}

static void launch_step(struct gpu *g, const struct step *step, const struct linear_kernel_args *a)
{
    const struct linear_segment *s = &a->segment[0];
    const unsigned down = ((unsigned)a->m + step->bm - 1) / step->bm,
                   across = ((unsigned)s->cols + step->bn - 1) / step->bn, tiles = down * across,
                   sms = (unsigned)g->multiprocessors;
    struct launch launch = {.kernel = step->kernel,
                            .grid = {down, across},
                            .threads = step->threads,
                            .shared = step->shared,
                            .args = a};
    struct gemm_sm90_args args = {.linear = *a};
    if (strstr(step->kernel, "sm90")) {
        args.x = map(g, a->x, a->m, a->k, a->ldx, step->bm);
        args.maps[0][0].w = map(g, s->group[0].w, s->cols, a->k, s->group[0].ldw, step->bn);
        args.maps[0][0].y = map(g, s->y, a->m, s->cols, s->ldy, 16);
        launch.args = &args;
    }
    if (step == &steps[PERSISTENT]) {
        launch.grid[0] = tiles < sms ? tiles : sms;
        launch.grid[1] = 1;
    }
    OK(gpu_launch(g, &launch, &err));
}

/* Uploads p and runs a step; the caller frees the image of y, of which only what belongs to the segment may have changed. */
static char *run(struct gpu *g, const struct step *step, struct product *p)
{
    upload(g, p);
    const struct linear_kernel_args a = args_of(p);
    launch_step(g, step, &a);
    char *now = malloc(p->y.bytes);
    cr_assert(now);
    OK(gpu_download(g, now, p->y.memory, p->y.bytes, &err));
    check_untouched(p, now, step->kernel);
    release(g, p);
    return now;
}

static const struct {
    uint64_t seed;
    enum softgpu_async async;
    int multiprocessors;
} orders[] = {{0, SOFTGPU_LATE, 2}, {11, SOFTGPU_RANDOM, 1}, {5, SOFTGPU_NOW, 0}, {23, SOFTGPU_RANDOM, 3}};
enum { ORDERS = sizeof orders / sizeof *orders };

static void check(int i, struct product *p)
{
    uint64_t first = 0;
    for (int o = 0; o < ORDERS; o++) {
        struct gpu *g = open_step(i, orders[o].seed, orders[o].async, orders[o].multiprocessors, 0);
        char *y = run(g, &steps[i], p);
        const uint64_t hash = fnv1a(y, p->y.bytes);
        if (o == 0) check_rule(p, y, steps[i].kernel);
        if (o == 0) first = hash;
        cr_assert(hash == first, "%s, %s: other bytes in order %d", steps[i].kernel, p->s->name, o);
        free(y);
        close_gpu(g);
    }
}

Test(kernels_gemm_ladder, every_step_and_edges)
{
    static const struct shape shapes[] = {
        {"one row, short k", 1, 8, 0, {PLAIN}, {8}, 0, 0},
        {"one tile and a bit", 150, 72, 0, {PLAIN}, {264}, 0, 1},
        {"many k blocks", 40, 616, 0, {PLAIN}, {136}, 0, 0},
        {"several tiles", 330, 136, 0, {PLAIN}, {520}, 0, 3},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct product *p = make_product(&shapes[s]);
        for (int i = 0; i < STEPS; i++) check(i, p);
        free_product(p);
    }
}

Test(kernels_gemm_ladder, counters)
{
    static const struct shape shape = {"counted", M, K, 0, {PLAIN}, {N}, 0, 0};
    struct product *p = make_product(&shape);
    free(p->y.image);
    p->y = make(p, DT_BF16, M, N, NULL); /* without pad: rows begin with a sector */
    for (int i = 0; i < STEPS; i++) {
        const struct step *step = &steps[i];
        struct softgpu_counters n;
        struct gpu *g = open_step(i, 0, SOFTGPU_LATE, 2, 1);
        softgpu_reset_counters();
        free(run(g, step, p));
        softgpu_read_counters(&n);
        cr_assert(n.kernels == 1 && n.blocks == M / step->bm * (N / step->bn), "%s", step->kernel);
#define SAME(have, want)                                                                                     \
    cr_assert((have) == (want), "%s: " #have " %llu, not %llu", step->kernel, (unsigned long long)(have),    \
              (unsigned long long)(want))
        SAME(n.tensor_flops, step->tensor_flops);
        SAME(n.bank_conflicts, 0);
        SAME(n.cp_async_bytes, step->cp_async_bytes);
        SAME(n.tma_bytes, step->tma_bytes);
        SAME(n.global_sectors - n.global_sectors_ideal, step->sectors);
        SAME(n.barriers, step->barriers);
        close_gpu(g);
    }
    free_product(p);
}
