#include "pointwise.h"
#include "launch_rows.h"

/* ---- y = f(x) ------------------------------------------------------------------------------------------------------ */

/* Elements of a vector: 16 bytes of the wider type. */
static int vector_of(struct tensor y, struct tensor x)
{
    size_t y_size = dtype_size(y.dtype), x_size = dtype_size(x.dtype);
    return (int)(16 / (y_size > x_size ? y_size : x_size));
}

/* `fast` if the operands are aligned, else `any`. */
static enum klein_status map(struct gpu *g, const char *fast, const char *any, struct tensor y,
                             struct tensor x, const int32_t *ids, struct klein_error *err)
{
    if (!ids && rows_touch(y) && rows_touch(x)) y = one_row(y), x = one_row(x);
    int n = vector_of(y, x), fits = fast && vectors_fit(y, n) && vectors_fit(x, n);
    struct copy_kernel_args k = {matrix_of(y), matrix_of(x), spread_of(y.rows, y.cols, fits ? n : 1, 4), ids};
    return launch_spread(g, fits ? fast : any, &k.spread, 0, &k, err);
}

static const char *copy_kernel(enum dtype y, enum dtype x)
{
    switch (x) {
    case DT_BF16:
        return y == DT_BF16 ? "copy_bf16_bf16" : "copy_bf16_f32";
    case DT_F16:
        return y == DT_BF16 ? "copy_f16_bf16" : "copy_f16_f32";
    default:
        return y == DT_BF16 ? "copy_f32_bf16" : "copy_f32_f32";
    }
}

enum klein_status pointwise_embed(struct gpu *g, const struct embed_args *a, struct klein_error *err)
{
    return map(g, copy_kernel(a->y.dtype, a->table.dtype), "copy_any", a->y, a->table, a->ids.ptr, err);
}

enum klein_status pointwise_copy(struct gpu *g, const struct copy_args *a, struct klein_error *err)
{
    return map(g, copy_kernel(a->y.dtype, a->x.dtype), "copy_any", a->y, a->x, NULL, err);
}

enum klein_status pointwise_to_u8(struct gpu *g, const struct to_u8_args *a, struct klein_error *err)
{
    return map(g, a->x.dtype == DT_BF16 ? "u8_from_bf16" : "u8_from_f32", "u8_from_any", a->y, a->x, NULL,
               err);
}

enum klein_status pointwise_from_u8(struct gpu *g, const struct from_u8_args *a, struct klein_error *err)
{
    return map(g, a->y.dtype == DT_BF16 ? "u8_to_bf16" : "u8_to_f32", "u8_to_any", a->y, a->x, NULL, err);
}

/* ---- the sampler's step ---------------------------------------------------------------------------------------------- */

static enum klein_status step(struct gpu *g, const char *fast, const char *any, struct step_args k,
                              struct tensor y, struct tensor a, struct tensor b, struct klein_error *err)
{
    if (rows_touch(y) && rows_touch(a) && rows_touch(b)) y = one_row(y), a = one_row(a), b = one_row(b);
    int fits = vectors_fit(y, 4) && vectors_fit(a, 4) && vectors_fit(b, 4);
    k.y = matrix_of(y);
    k.a = matrix_of(a);
    k.b = matrix_of(b);
    k.spread = spread_of(y.rows, y.cols, fits ? 4 : 1, 4);
    return launch_spread(g, fits ? fast : any, &k.spread, 0, &k, err);
}

enum klein_status pointwise_euler(struct gpu *g, const struct euler_args *a, struct klein_error *err)
{
    struct step_args k = {.dt = a->dt.ptr};
    return step(g, "step_euler_f32", "step_euler_any", k, a->y, a->x, a->v, err);
}

enum klein_status pointwise_cfg(struct gpu *g, const struct cfg_args *a, struct klein_error *err)
{
    struct step_args k = {.guidance = a->guidance};
    return step(g, "step_cfg_f32", "step_cfg_any", k, a->y, a->uncond, a->cond, err);
}

/* ---- patches ---------------------------------------------------------------------------------------------------------- */

static enum klein_status patch(struct gpu *g, const char *kernel, const struct patch_args *a,
                               struct tensor image, struct tensor tokens, struct klein_error *err)
{
    struct patch_kernel_args k = {.image = matrix_of(image),
                                  .tokens = matrix_of(tokens),
                                  .mean = matrix_of(a->mean),
                                  .var = matrix_of(a->var),
                                  .threads = (int64_t)tokens.rows * image.cols,
                                  .w = a->w,
                                  .channels = image.cols,
                                  .aligned = vectors_fit(tokens, 4) && vectors_fit(a->mean, 4) &&
                                             vectors_fit(a->var, 4),
                                  .eps = a->eps};
    return launch_rows(g, kernel, (k.threads + PATCH_THREADS - 1) / PATCH_THREADS, PATCH_THREADS, 0, &k, err);
}

enum klein_status pointwise_patchify(struct gpu *g, const struct patch_args *a, struct klein_error *err)
{
    return patch(g, "patch_pack", a, a->x, a->y, err);
}

enum klein_status pointwise_unpatchify(struct gpu *g, const struct patch_args *a, struct klein_error *err)
{
    return patch(g, "patch_unpack", a, a->y, a->x, err);
}

/* ---- timestep --------------------------------------------------------------------------------------------------------- */

enum klein_status pointwise_timestep(struct gpu *g, const struct timestep_args *a, struct klein_error *err)
{
    struct timestep_kernel_args k = {matrix_of(a->y), a->t.ptr, a->y.rows, a->y.cols / 2};
    if ((int64_t)k.steps * k.half > INT32_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "timestep: %d steps of %d numbers are too many", k.steps,
                    2 * k.half);
    return launch_rows(g, "timestep_f32",
                       ((int64_t)k.steps * k.half + TIMESTEP_THREADS - 1) / TIMESTEP_THREADS,
                       TIMESTEP_THREADS, 0, &k, err);
}
