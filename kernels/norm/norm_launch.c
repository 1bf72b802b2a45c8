#include "norm.h"
#include "../pointwise/launch_rows.h"

enum { E4M3_ARCH = 89 };

_Static_assert((int)GROUP_MAX == GROUPNORM_BANDS, "ops.h and args.h say the same");

/* Kernels for rows of up to `width`, ascending. */
struct row_kernel {
    int width;
    const char *bf16, *f32, *e4m3;
};

/* The narrowest that holds the row; NULL if it is too wide. */
static const struct row_kernel *row_kernel(const struct row_kernel *table, int cols)
{
    while (table->width && table->width < cols) table++;
    return table->width ? table : NULL;
}

/* ---- adaln -------------------------------------------------------------------------------------------------------- */

static const struct row_kernel adaln_kernels[] = {
    {256, "adaln_bf16_256", "adaln_f32_256", "adaln_e4m3_sm89_bf16_256"},
    {1024, "adaln_bf16_1024", "adaln_f32_1024", "adaln_e4m3_sm89_bf16_1024"},
    {3072, "adaln_bf16_3072", "adaln_f32_3072", "adaln_e4m3_sm89_bf16_3072"},
    {4096, "adaln_bf16_4096", "adaln_f32_4096", "adaln_e4m3_sm89_bf16_4096"},
    {0},
};

static struct adaln_kernel_args adaln_kernel_args(const struct adaln_args *a)
{
    struct adaln_kernel_args k = {.y = matrix_of(a->y),
                                  .x = matrix_of(a->x),
                                  .rows = a->x.rows,
                                  .cols = a->x.cols,
                                  .split = a->split ? a->split : a->x.rows,
                                  .eps = a->eps};
    for (int i = 0; i < 2; i++) k.shift[i] = a->shift[i].ptr, k.scale[i] = a->scale[i].ptr;
    return k;
}

/* Blocks of a kernel whose blocks have rows of one group only. */
static int64_t adaln_blocks(const struct adaln_kernel_args *k)
{
    return ((int64_t)k->split + ADALN_ROWS - 1) / ADALN_ROWS +
           ((int64_t)k->rows - k->split + ADALN_ROWS - 1) / ADALN_ROWS;
}

static int modulation_fits(const struct adaln_args *a)
{
    for (int i = 0; i < (a->split ? 2 : 1); i++)
        if (!vectors_fit(a->shift[i], 4) || !vectors_fit(a->scale[i], 4)) return 0;
    return 1;
}

static enum klein_status adaln_e4m3(struct gpu *g, const struct adaln_args *a, struct klein_error *err)
{
    struct adaln_kernel_args k = adaln_kernel_args(a);
    const struct row_kernel *kernel = row_kernel(adaln_kernels, k.cols);
    if (g->arch < E4M3_ARCH)
        return fail(err, KLEIN_E_UNSUPPORTED, "adaln: F8_E4M3 needs sm_89 (Ada) or later; %s is sm_%d",
                    g->name, g->arch);
    if (!kernel || a->x.dtype != DT_BF16 || !vectors_fit(a->x, 8) || !vectors_fit(a->y, 16) ||
        !modulation_fits(a))
        return fail(err, KLEIN_E_UNSUPPORTED,
                    "adaln to F8_E4M3: x is %s, rows of %d; needs BF16, a multiple of 16 up to 4096, and "
                    "aligned operands",
                    dtype_name(a->x.dtype), k.cols);
    k.row_scale = a->y.scale;
    return launch_rows(g, kernel->e4m3, adaln_blocks(&k), ADALN_THREADS,
                       ADALN_SHARED((unsigned)kernel->width), &k, err);
}

enum klein_status norm_adaln(struct gpu *g, const struct adaln_args *a, struct klein_error *err)
{
    if (a->y.dtype == DT_F8E4M3) return adaln_e4m3(g, a, err);
    struct adaln_kernel_args k = adaln_kernel_args(a);
    int n = a->x.dtype == DT_BF16 ? 8 : 4;
    const struct row_kernel *kernel = row_kernel(adaln_kernels, k.cols);
    if (!kernel || !vectors_fit(a->x, n) || !vectors_fit(a->y, n) || !modulation_fits(a))
        return launch_rows(g, "adaln_any", ((int64_t)k.rows + ADALN_ROWS - 1) / ADALN_ROWS, ADALN_THREADS, 0,
                           &k, err);
    return launch_rows(g, n == 8 ? kernel->bf16 : kernel->f32, adaln_blocks(&k), ADALN_THREADS,
                       ADALN_SHARED((unsigned)kernel->width), &k, err);
}

/* ---- rmsnorm ------------------------------------------------------------------------------------------------------ */

enum klein_status norm_rmsnorm(struct gpu *g, const struct rmsnorm_args *a, struct klein_error *err)
{
    static const struct row_kernel kernels[] = {
        {256, "rmsnorm_bf16_256", "rmsnorm_f32_256", NULL},
        {1024, "rmsnorm_bf16_1024", "rmsnorm_f32_1024", NULL},
        {2560, "rmsnorm_bf16_2560", "rmsnorm_f32_2560", NULL},
        {4096, "rmsnorm_bf16_4096", "rmsnorm_f32_4096", NULL},
        {0},
    };
    struct rmsnorm_kernel_args k = {matrix_of(a->y), matrix_of(a->x), matrix_of(a->w),
                                    a->x.rows,       a->x.cols,       a->eps};
    int n = a->x.dtype == DT_BF16 ? 8 : 4;
    const struct row_kernel *kernel = row_kernel(kernels, k.cols);
    int fits = kernel && vectors_fit(a->x, n) && vectors_fit(a->y, n) && a->w.dtype == DT_BF16 &&
               vectors_fit(a->w, n);
    return launch_rows(g,
                       !fits    ? "rmsnorm_any"
                       : n == 8 ? kernel->bf16
                                : kernel->f32,
                       ((int64_t)k.rows + RMSNORM_ROWS - 1) / RMSNORM_ROWS, RMSNORM_THREADS, 0, &k, err);
}

/* ---- group norm --------------------------------------------------------------------------------------------------- */

/* Elements of a vector of the kernel for x (and y, which may be x); 1: the kernel for any operands. */
static int vector_of(struct tensor x, struct tensor y)
{
    int n = x.dtype == DT_BF16 ? 8 : 4;
    return vectors_fit(x, n) && vectors_fit(y, n) ? n : 1;
}

static const char *by_vector(int n, const char *bf16, const char *f32, const char *any)
{
    return n == 8 ? bf16 : n == 4 ? f32 : any;
}

/* At most 512 ranges of pixels, which fill the largest chips, so that the second level stays small. */
static struct spread stats_spread(const struct gn_stats_args *a)
{
    struct spread s = spread_of(a->x.rows, a->x.cols, vector_of(a->x, a->x), 16);
    int least = (a->x.rows + 511) / 512;
    if (s.rows_per_block < least) s.rows_per_block = (least + s.down - 1) / s.down * s.down;
    return s;
}

size_t norm_gn_stats_scratch(const struct gn_stats_args *a)
{
    struct spread s = stats_spread(a);
    return (size_t)spread_chunks(&s) * (2 * (size_t)a->x.cols + 1) * sizeof(float);
}

enum klein_status norm_gn_combine(struct gpu *g, struct tensor stats, const float *partial,
                                  const float *counts, int cols, int chunks, float eps,
                                  struct klein_error *err)
{
    const struct groupnorm_combine_args k = {matrix_of(stats), partial,           counts, cols,
                                             chunks,           cols / stats.rows, eps};
    return launch_rows(g, "groupnorm_combine", stats.rows, GROUPNORM_COMBINE_THREADS,
                       GROUPNORM_COMBINE_SHARED, &k, err);
}

enum klein_status norm_gn_stats(struct gpu *g, const struct gn_stats_args *a, void *scratch,
                                struct klein_error *err)
{
    int n = vector_of(a->x, a->x);
    if (!scratch || (uintptr_t)scratch % 16)
        return fail(err, KLEIN_E_INTERNAL, "gn_stats: no scratch memory, or not 16-byte aligned");
    struct groupnorm_stats_args k = {matrix_of(a->x), stats_spread(a), scratch, NULL, a->x.cols};
    k.counts = k.partial + 2 * (int64_t)spread_chunks(&k.spread) * k.cols;
    TRY(launch_spread(g, by_vector(n, "groupnorm_stats_bf16", "groupnorm_stats_f32", "groupnorm_stats_any"),
                      &k.spread, GROUPNORM_SHARED(2, (unsigned)n), &k, err));
    return norm_gn_combine(g, a->stats, k.partial, k.counts, k.cols, spread_chunks(&k.spread), a->eps, err);
}

enum klein_status norm_gn_apply(struct gpu *g, const struct gn_apply_args *a, struct klein_error *err)
{
    int n = vector_of(a->x, a->y);
    struct groupnorm_apply_args k = {.y = matrix_of(a->y),
                                     .x = matrix_of(a->x),
                                     .stats = matrix_of(a->norm.stats),
                                     .gamma = matrix_of(a->norm.gamma),
                                     .beta = matrix_of(a->norm.beta),
                                     .spread = spread_of(a->x.rows, a->x.cols, n, 16),
                                     .cols = a->x.cols,
                                     .group_size = a->x.cols / norm_groups(&a->norm),
                                     .silu = a->silu,
                                     .bands = norm_bands(&a->norm)};
    int all = 0;
    for (int i = 0; i < k.bands; i++) all += a->norm.weight[i];
    for (int i = 0; i < k.bands && all; i++) k.share[i] = (float)a->norm.weight[i] / (float)all;
    return launch_spread(g,
                         by_vector(n, "groupnorm_apply_bf16", "groupnorm_apply_f32", "groupnorm_apply_any"),
                         &k.spread, GROUPNORM_SHARED(3, (unsigned)n), &k, err);
}
