/* The wgmma kernels of op linear on the soft GPU, each variant with every product that it takes: against the same product and epilogue in
 * f64 (soft/products.h), by the rule of op_cases.h; in several orders of threads and landings and on few and many multiprocessors,
 * with the same bytes each time; what they cost by the soft GPU's counters. */
#include "support/accesses.h"
#include "soft/products.h"

#include "../kernels/gemm/gemm_sm90_launch.h"

static const struct gemm_variant *named(const char *kernel)
{
    const struct gemm_variant *v;
    for (int i = 0; (v = gemm_variant(i)); i++)
        if (!strcmp(v->name, kernel)) return v;
    cr_assert(0, "no %s", kernel);
    return NULL;
}

/* Runs v; the caller frees the image of y, of which only what belongs to segments may have changed. */
static char *run(struct gpu *g, const struct gemm_variant *v, struct product *p)
{
    const struct operand *y = output(p);
    OK(gpu_upload(g, y->memory, y->image, y->bytes, &err));
    const struct linear_kernel_args a = args_of(p);
    OK(gemm_sm90_launch(g, v, &a, &err));
    char *now = malloc(y->bytes);
    cr_assert(now);
    OK(gpu_download(g, now, y->memory, y->bytes, &err));
    check_untouched(p, now, v->name);
    return now;
}

static struct gpu *open_with(uint64_t seed, enum softgpu_async async, int multiprocessors, int count,
                             int truncate)
{
    struct softgpu_config c;
    cr_assert(softgpu_config_from_env(&c));
    c.multiprocessors = multiprocessors;
    c.count_accesses = count;
    c.truncate_fp8 = truncate;
    c.seed = seed;
    c.async = async;
    snprintf(c.arch, sizeof c.arch, "sm_90a");
    cr_assert(softgpu_configure(&c));
    struct gpu *g;
    OK(driver_open(1, &cu, &err));
    OK(gpu_open(&cu, 0, &g, &err));
    return g;
}

static const struct {
    uint64_t seed;
    enum softgpu_async async;
    int multiprocessors;
} orders[] = {{0, SOFTGPU_LATE, 2}, {11, SOFTGPU_RANDOM, 1}, {5, SOFTGPU_NOW, 0}, {23, SOFTGPU_RANDOM, 3}};
enum { ORDERS = sizeof orders / sizeof *orders, VARIANTS_MAX = 32 };

/* Every variant that takes s, in every order. Returns how many there are. */
static int check(const struct shape *s)
{
    struct product *p = make_product(s);
    uint64_t hashes[VARIANTS_MAX];
    int taken = 0;
    for (int o = 0; o < (SANITIZED ? 1 : ORDERS); o++) { /* slow */
        struct gpu *g = open_with(orders[o].seed, orders[o].async, orders[o].multiprocessors, 0, 0);
        const struct gemm_variant *v;
        upload(g, p);
        const struct linear_kernel_args a = args_of(p);
        taken = 0;
        for (int i = 0; (v = gemm_variant(i)); i++) {
            if (!gemm_sm90_takes(v, &a)) continue;
            char *y = run(g, v, p);
            const uint64_t hash = fnv1a(y, output(p)->bytes);
            if (o == 0) check_rule(p, y, v->name);
            if (o == 0) hashes[taken] = hash;
            cr_assert(hash == hashes[taken], "%s, %s: other bytes in order %d", v->name, s->name, o);
            free(y);
            taken++;
        }
        release(g, p);
        close_gpu(g);
    }
    free_product(p);
    return taken;
}

static void check_all(const struct shape *shapes, int variants, int e4m3_variants)
{
    for (int i = 0; shapes[i].name; i++) {
        cr_assert(check(&shapes[i]) == variants, "%s", shapes[i].name);
        struct shape e4m3 = shapes[i];
        e4m3.options |= E4M3;
        cr_assert(check(&e4m3) == e4m3_variants, "%s", shapes[i].name);
    }
}

Test(kernels_gemm_sm90, linear)
{
    static const struct shape shapes[] = {
        {"one row", 1, 96, 0, {PLAIN}, {136}, BIAS, 0},
        {"k in one piece", 9, 8, 0, {PLAIN}, {8}, BIAS, 0},
        {"edges, three parts", 130, 200, 0, {PLAIN, SILU, PLAIN}, {264, 8, 200}, BIAS, 1},
        {"odd k", 67, 113, 0, {SILU}, {72}, 0, 0},
        {"residual, gate, split at an odd row", 201, 72, 67, {RESIDUAL}, {328}, GATE, 1},
        {"residual in place, bias, split", 150, 136, 37, {RESIDUAL, RESIDUAL}, {200, 72}, IN_PLACE | BIAS, 0},
        {"split at the end", 70, 64, 70, {RESIDUAL}, {64}, GATE | IN_PLACE, 0},
        {"f32 y", 35, 136, 11, {RESIDUAL, PLAIN, SILU}, {40, 136, 72}, F32 | GATE | BIAS, 1},
        {"f32 y in place", 20, 64, 0, {RESIDUAL}, {264}, F32 | IN_PLACE, 0},
        {"whole tiles", 384, 192, 192, {RESIDUAL}, {768}, GATE | IN_PLACE, 0},
        {"long k", 5, 12288, 2, {PLAIN}, {24}, BIAS, 0},
        {0},
    };
    check_all(shapes, 6, 2);
    for (int i = 0; shapes[i].name; i++) {
        struct shape groups = shapes[i];
        groups.options |= SCALE_GROUPS;
        cr_assert(groups.k <= 128 || check(&groups) == 3, "%s", groups.name);
    }
}

Test(kernels_gemm_sm90, swiglu)
{
    static const struct shape shapes[] = {
        {"one row", 1, 96, 0, {SWIGLU}, {8}, 0, 0},
        {"edges, two parts", 131, 200, 0, {SWIGLU, SWIGLU}, {264, 72}, 0, 1},
        {"split at an odd row", 201, 72, 67, {SWIGLU}, {192}, 0, 0},
        {"whole tiles", 256, 192, 128, {SWIGLU}, {256}, 0, 0},
        {0},
    };
    check_all(shapes, 2, 3);
}

Test(kernels_gemm_sm90, qkv)
{
    static const struct shape shapes[] = {
        {"one row", 1, 64, 0, {HEADS, HEADS, PLAIN}, {128, 128, 128}, 0, 0},
        {"gqa, half, odd heads", 130, 136, 0, {HEADS, HEADS, PLAIN}, {640, 128, 128}, HALF, 1},
        {"mlp, split at an odd row", 201, 72, 67, {HEADS, HEADS, PLAIN, SWIGLU}, {256, 384, 136, 264}, 0, 0},
        {"whole tiles", 256, 192, 128, {HEADS, HEADS, PLAIN, SWIGLU}, {256, 256, 256, 384}, 0, 0},
        {0},
    };
    check_all(shapes, 2, 3);
}

/* The first linear of a single-stream block. */
Test(kernels_gemm_sm90, real_width)
{
    static const struct shape s = {"3x27648x3072",           3, 3072, 0, {HEADS, HEADS, PLAIN, SWIGLU},
                                   {3072, 3072, 3072, 9216}, 0, 0};
    struct product *p = make_product(&s);
    struct gpu *g = open_with(3, SOFTGPU_RANDOM, 0, 0, 0);
    upload(g, p);
    char *y = run(g, named("gemm_qkv_sm90_128x256"), p);
    check_rule(p, y, "gemm_qkv_sm90_128x256");
    free(y);
    release(g, p);
    close_gpu(g);
    free_product(p);
}

/* ---- FP8 that is summed as Hopper does ------------------------------------------------------------------------------------ */

/* What truncation to 13 fraction bits may cost: each instruction adds 32 products to the tensor core's sum and cuts all 33 at 2^-13 of
 * the largest; with scales per 128 columns a new sum begins there. Then one rounding to bf16. */
static double truncation_bound(const struct product *p, int row, int col)
{
    const int length = scale_rows(p->s) > 1 ? 128 : p->s->k;
    const float *x = p->x.values + (size_t)row * (size_t)p->s->k,
                *w = p->w[0][0].values + (size_t)col * (size_t)p->s->k;
    double total = 0, cut = 0, sum = 0, bound = 0;
    for (int k = 0; k < p->s->k; k += 32) {
        if (k % length == 0) sum = bound = 0;
        double largest = fabs(sum) + bound;
        for (int i = k; i < k + 32; i++) {
            largest = fmax(largest, fabs((double)x[i] * w[i]));
            sum += (double)x[i] * w[i];
        }
        bound += 33 * 0x1p-13 * largest;
        if ((k + 32) % length) continue;
        total += sum * at(&p->x_scale, k / length, row);
        cut += bound * fabs(at(&p->x_scale, k / length, row));
    }
    return fabs(at(&p->vector[0][0][W_SCALE], 0, col)) * (cut + 0x1p-8 * (fabs(total) + cut));
}

/* The largest error as a multiple of its bound, and how many results are not the nearest bf16 or its neighbour. */
static double truncated_excess(const struct product *p, const char *y, int *far)
{
    double worst = 0;
    for (int row = 0; row < p->s->m; row++)
        for (int c = 0; c < p->s->cols[0]; c++) {
            const double t = p->truth[row * p->cols + c], d = fabs(value(p, y, row, c) - t);
            const double e = d / truncation_bound(p, row, c);
            if (!(e <= worst)) worst = e; /* NaN too */
            *far += d > 0x1p-8 * fabs(t);
        }
    return worst;
}

/* Runs all variants that take s; returns how many. */
static int check_truncated(const struct shape *s, int *far)
{
    struct product *p = make_product(s);
    struct gpu *g = open_with(1, SOFTGPU_LATE, 0, 0, 1);
    const struct gemm_variant *v;
    int taken = 0;
    upload(g, p);
    const struct linear_kernel_args a = args_of(p);
    for (int i = 0; (v = gemm_variant(i)); i++) {
        if (!gemm_sm90_takes(v, &a)) continue;
        char *y = run(g, v, p);
        *far = 0;
        const double excess = truncated_excess(p, y, far);
        cr_assert(excess <= 1, "%s: an error of %g bounds", v->name, excess);
        free(y);
        taken++;
    }
    release(g, p);
    close_gpu(g);
    free_product(p);
    return taken;
}

Test(kernels_gemm_sm90, truncated_fp8)
{
    static const struct shape rows = {"scales per row", 40, 1024, 0, {PLAIN}, {264}, E4M3, 0},
                              groups = {"scales per 128", 40, 1024, 0, {PLAIN}, {264}, SCALE_GROUPS, 0};
    int far_rows, far_groups;
    cr_assert(check_truncated(&rows, &far_rows) == 5); /* linear and qkv */
    cr_assert(check_truncated(&groups, &far_groups) == 3);
    cr_assert(far_rows > 0, "nothing was truncated");
    cr_assert(far_groups < far_rows, "%d, %d", far_groups, far_rows);
}

/* ---- chains -------------------------------------------------------------------------------------------------------------- */

/* A product of a product, the second launched before the first has ended: it may read its weights early, nothing else. */
Test(kernels_gemm_sm90, dependent_launches)
{
    static const struct shape first = {"first", 150, 136, 37, {RESIDUAL}, {192}, GATE | IN_PLACE, 0},
                              second = {"second", 150, 192, 37, {SWIGLU}, {136}, 0, 0};
    static const char *const tiles[] = {"gemm_linear_sm90_192x192", "gemm_linear_sm90_64x192",
                                        "gemm_linear_sm90_128x256"};
    struct product *p = make_product(&first), *q = make_product(&second);
    uint64_t expected = 0;
    for (int o = 0; o < ORDERS; o++) {
        struct gpu *g = open_with(orders[o].seed, orders[o].async, orders[o].multiprocessors, 0, 0);
        upload(g, p);
        upload(g, q);
        struct linear_kernel_args a = args_of(p), b = args_of(q);
        b.x = a.segment[0].y, b.ldx = a.segment[0].ldy;
        char *y = malloc(q->y.bytes);
        cr_assert(y);
        for (int synchronous = 1; synchronous >= 0; synchronous--) {
            OK(gpu_upload(g, p->residual.memory, p->residual.image, p->residual.bytes, &err));
            OK(gpu_fill(g, q->y.memory, 0xff, q->y.bytes, &err));
            OK(gpu_sync(g, &err));
            for (int i = 0; i < 3; i++) { /* the residual grows each time */
                OK(gemm_sm90_launch(g, named(tiles[i]), &a, &err));
                if (synchronous) OK(gpu_sync(g, &err));
                OK(gemm_sm90_launch(g, named(i % 2 ? "gemm_qkv_sm90_128x256" : "gemm_qkv_sm90_128x128"), &b,
                                    &err));
                if (synchronous) OK(gpu_sync(g, &err));
            }
            OK(gpu_download(g, y, q->y.memory, q->y.bytes, &err));
            const uint64_t hash = fnv1a(y, q->y.bytes);
            if (!expected) expected = hash;
            cr_assert(hash == expected, "order %d, %ssynchronous", o, synchronous ? "" : "not ");
        }
        free(y);
        release(g, p);
        release(g, q);
        close_gpu(g);
    }
    free_product(p);
    free_product(q);
}

/* ---- what they cost ------------------------------------------------------------------------------------------------------ */

/* No bank conflict; products of whole tiles; each tile loads its stages, and the residual and y pass through in full boxes. */
Test(kernels_gemm_sm90, counters)
{
    static const struct shape shapes[] = {
        {"linear", 384, 192, 192, {RESIDUAL}, {768}, GATE | IN_PLACE, 0},
        {"swiglu", 384, 192, 0, {SWIGLU}, {256}, 0, 0},
        {"qkv", 384, 192, 128, {HEADS, HEADS, PLAIN, SWIGLU}, {256, 256, 256, 384}, 0, 0},
        {"linear e4m3", 384, 192, 192, {RESIDUAL}, {768}, E4M3 | GATE | IN_PLACE, 0},
        {"linear by 128", 384, 256, 192, {RESIDUAL}, {768}, SCALE_GROUPS | GATE | IN_PLACE, 0},
    };
    const int expected[] = {6, 2, 2, 2, 3};
    /* Beside copies of tiles: what a lane fetches for its pairs of columns and its rows (gates, norms, scales, tables); by 16
     * the residual's and y's last 16 of 144 columns. */
    static const char *const accesses[5][6] = {
        {"8: 3072", "8: 2304", "8: 3072", "8: 3072, 16: 240", "8: 3072", "8: 2304"},
        {"", ""},
        {"4: 6144, 8: 1536", "4: 6144, 8: 1536"},
        {"4: 768, 8: 6144", "4: 768, 8: 6144"},
        {"4: 768, 8: 6144", "4: 1152, 8: 6144, 16: 240", "4: 1152, 8: 6144"}};
    for (int x = 0; x < 5; x++) {
        const struct shape *s = &shapes[x];
        struct product *p = make_product(s);
        struct gpu *g = open_with(2, SOFTGPU_RANDOM, 5, 1, 0);
        const struct gemm_variant *v;
        int taken = 0;
        upload(g, p);
        const struct linear_kernel_args a = args_of(p);
        for (int i = 0; (v = gemm_variant(i)); i++) {
            if (!gemm_sm90_takes(v, &a)) continue;
            struct softgpu_counters c;
            softgpu_reset_counters();
            free(run(g, v, p));
            softgpu_read_counters(&c);
            const uint64_t tiles = (uint64_t)gemm_sm90_tiles(v, &a), bk = v->type == DT_F8E4M3 ? 128 : 64,
                           blocks = ((uint64_t)s->k + bk - 1) / bk, bm = (uint64_t)v->bm,
                           bn = (uint64_t)v->bn;
            uint64_t out = 0; /* columns of boxes of y, and of the residual */
            for (int j = 0; j < p->segments; j++) {
                const uint64_t width = s->kind[j] == SWIGLU ? bn / 2 : bn;
                out += ((uint64_t)s->cols[j] + width - 1) / width * (width / 64 * 64) *
                       (s->kind[j] == RESIDUAL ? 2 : 1);
            }
            uint64_t rows = 0;
            for (int from = 0; from < s->m;) {
                const int end = from < s->split ? s->split : s->m;
                rows += ((uint64_t)(end - from) + bm - 1) / bm * bm, from = end;
            }
            cr_assert(c.bank_conflicts == 0 && c.shared_wavefronts, "%s: %d conflicts", v->name,
                      (int)c.bank_conflicts);
            cr_assert(c.tensor_flops == tiles * blocks * 2 * bm * bn * bk, "%s", v->name);
            cr_assert(c.tma_bytes == tiles * blocks * 128 * (bm + bn) + 2 * rows * out, "%s: %llu", v->name,
                      (unsigned long long)c.tma_bytes);
            cr_assert(c.blocks == (tiles < 5 ? tiles : 5), "%s", v->name);
            expect_accesses(&c, v->name, accesses[x][taken]);
            taken++;
        }
        cr_assert(taken == expected[x], "%s: %d", s->name, taken);
        release(g, p);
        close_gpu(g);
        free_product(p);
    }
}

/* ---- what they do not take ------------------------------------------------------------------------------------------------ */

/* How many variants take a. */
static int takers(const struct linear_kernel_args *a)
{
    const struct gemm_variant *v;
    int n = 0;
    for (int i = 0; (v = gemm_variant(i)); i++) n += gemm_sm90_takes(v, a);
    return n;
}

Test(kernels_gemm_sm90, refusals)
{
    static const struct shape shape = {"whole", 20, 64, 9, {HEADS, HEADS, PLAIN, SWIGLU}, {128, 128, 128, 64},
                                       0,       0};
    struct product *p = make_product(&shape);
    struct gpu *g = open_with(0, SOFTGPU_LATE, 0, 0, 0);
    upload(g, p);
    const struct linear_kernel_args whole = args_of(p);
    struct linear_kernel_args a;
    cr_assert(takers(&whole) == 2);
#define REFUSED(change)                                                                                      \
    do {                                                                                                     \
        a = whole;                                                                                           \
        change;                                                                                              \
        cr_assert(takers(&a) == 0, #change);                                                                 \
    } while (0)
    REFUSED(a.m = 0);
    REFUSED(a.k = 0);
    REFUSED(a.split = 21);
    REFUSED(a.split = -1);
    REFUSED(a.segments = 0);
    REFUSED(a.segments = 5);
    REFUSED(a.x = (const char *)a.x + 2);
    REFUSED(a.ldx += 4);
    REFUSED(a.x_scale = a.cos);
    REFUSED(a.ldscale = 20);
    REFUSED(a.cos = NULL);
    REFUSED(a.sin++);
    REFUSED(a.segment[0].cols = 64);
    REFUSED(a.segment[2].cols = 124);
    REFUSED(a.segment[2].kind = SILU);
    REFUSED(a.segment[2].kind = 99);
    REFUSED(a.segment[2].kind = -1);
    REFUSED(a.segment[2].y_type = ELEMENT_F32);
    REFUSED(a.segment[2].y_type = ELEMENT_E4M3);
    REFUSED(a.segment[3].y_type = ELEMENT_E4M3); /* of BF16 weights */
    REFUSED(a.segment[2].y = (char *)a.segment[2].y + 8);
    REFUSED(a.segment[2].y = NULL);
    REFUSED(a.segment[2].ldy += 2);
    REFUSED(a.segment[2].group[1].w = NULL);
    REFUSED(a.segment[2].group[0].ldw += 1);
    REFUSED(a.segment[2].group[0].bias = a.cos);
    REFUSED(a.segment[3].group[0].up = NULL);
    REFUSED(a.segment[3].group[1].ldup += 7);
    REFUSED(a.segment[1].group[1].norm = NULL);
    REFUSED(a.segment[1].group[0].norm++);
    FAILS(gemm_sm90_launch(g, named("gemm_linear_sm90_128x256"), &whole, &err), KLEIN_E_UNSUPPORTED,
          "gemm_linear_sm90_128x256 does not take");
    release(g, p);
    close_gpu(g);
    free_product(p);
}

/* The row of the table and the kernel's name say the same. */
Test(kernels_gemm_sm90, names)
{
    const struct gemm_variant *v;
    int found = 0;
    for (int i = 0; (v = gemm_variant(i)); i++) {
        if (v->arch != 90) continue;
        char tile[32];
        snprintf(tile, sizeof tile, "_%dx%d", v->bm, v->bn);
        cr_assert(strstr(v->name, "_sm90_") && strstr(v->name, tile), "%s", v->name);
        cr_assert(!!strstr(v->name, "_to_e4m3_") == gemm_to_e4m3(v), "%s", v->name);
        cr_assert(!!strstr(v->name, "e4m3") == (v->type == DT_F8E4M3), "%s", v->name);
        cr_assert(!!strstr(v->name, "groups") == v->groups, "%s", v->name);
        cr_assert(!!strstr(v->name, "qkv") == (v->kinds == GEMM_QKV), "%s", v->name);
        found++;
    }
    cr_assert(found == 19, "%d", found);
}
