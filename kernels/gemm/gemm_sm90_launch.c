#include "gemm_sm90_launch.h"

#include <limits.h>

enum { HEAD = 128, WARP_ROWS = 16 };

static int e4m3(const struct gemm_variant *v)
{
    return v->type == DT_F8E4M3;
}

/* ---- what a variant takes ------------------------------------------------------------------------------------------- */

/* A matrix that is there, whose rows begin at multiples of `bytes`. */
static int aligned(const void *ptr, int64_t ld, int64_t size, int64_t bytes)
{
    return ptr && (uintptr_t)ptr % (uintptr_t)bytes == 0 && ld * size % bytes == 0;
}

/* A vector that is absent or can be read in pairs. */
static int pairs(const float *vector)
{
    return (uintptr_t)vector % sizeof(float[2]) == 0;
}

static int weights_fit(const struct gemm_variant *v, const struct linear_segment *s,
                       const struct linear_segment_weights *w)
{
    const int swiglu = s->kind == LINEAR_SEGMENT_SWIGLU, size = e4m3(v) ? 1 : 2;
    if (!aligned(w->w, w->ldw, size, 16) || (swiglu && !aligned(w->up, w->ldup, size, 16))) return 0;
    if (e4m3(v) && (!w->w_scale || (swiglu && !w->up_scale))) return 0;
    if (s->kind == LINEAR_SEGMENT_NORM_ROPE && !w->norm) return 0;
    if (v->kinds != GEMM_LINEAR && w->bias) return 0;
    return pairs(w->w_scale) && pairs(w->up_scale) && pairs(w->bias) && pairs(w->gate) && pairs(w->norm);
}

static int segment_fits(const struct gemm_variant *v, const struct linear_kernel_args *a,
                        const struct linear_segment *s)
{
    const int f32 = s->y_type == ELEMENT_F32, quantised = s->y_type == ELEMENT_E4M3,
              size = f32 ? 4 : 2 /* of the residual too */, bytes = f32 ? 8 : 16;
    if (s->kind < 0 || s->kind > LINEAR_SEGMENT_NORM_ROPE || !(v->kinds >> s->kind & 1) || s->cols <= 0 ||
        s->cols % 8)
        return 0;
    if (quantised) {
        const int routed = a->route.state && s->kind != LINEAR_SEGMENT_SWIGLU;
        if (!(v->e4m3_y >> s->kind & 1) || routed || !a->y_scale[s - a->segment] || a->ldy_scale < a->m)
            return 0;
    } else if (gemm_to_e4m3(v) && v->kinds == GEMM_LINEAR) {
        return 0;
    }
    if (s->y_type != ELEMENT_BF16 && !quantised && !(f32 && v->kinds == GEMM_LINEAR)) return 0;
    if (!aligned(s->y, s->ldy, quantised ? 1 : size, bytes)) return 0;
    if (s->kind == LINEAR_SEGMENT_RESIDUAL && !aligned(s->residual, s->ldr, size, bytes)) return 0;
    if (s->kind == LINEAR_SEGMENT_NORM_ROPE &&
        (s->cols % HEAD || !a->cos || !a->sin || !pairs(a->cos) || !pairs(a->sin)))
        return 0;
    const int both = a->split && a->split < a->m;
    return weights_fit(v, s, &s->group[0]) && (!both || weights_fit(v, s, &s->group[1]));
}

int gemm_sm90_takes(const struct gemm_variant *v, const struct linear_kernel_args *a)
{
    if (v->arch != 90 || !v->arch_exact) return 0;
    if (a->m <= 0 || a->k <= 0 || a->split < 0 || a->split > a->m) return 0;
    if (a->segments < 1 || a->segments > LINEAR_SEGMENTS || e4m3(v) != (a->x_scale != NULL)) return 0;
    if (v->groups != (a->ldscale != 0) || (v->groups && a->ldscale < a->m)) return 0;
    if (!aligned(a->x, a->ldx, e4m3(v) ? 1 : 2, 16)) return 0;
    for (int i = 0; i < a->segments; i++)
        if (!segment_fits(v, a, &a->segment[i])) return 0;
    return gemm_sm90_tiles(v, a) <= INT_MAX;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

int64_t gemm_sm90_tiles(const struct gemm_variant *v, const struct linear_kernel_args *a)
{
    const int split = a->split ? a->split : a->m;
    int64_t across = 0;
    for (int i = 0; i < a->segments; i++)
        across +=
            ceil_div(a->segment[i].cols, a->segment[i].kind == LINEAR_SEGMENT_SWIGLU ? v->bn / 2 : v->bn);
    return across * (ceil_div(split, v->bm) + ceil_div(a->m - split, v->bm));
}

/* ---- launch --------------------------------------------------------------------------------------------------------- */

/* Boxes of 128 bytes by box_rows rows. */
static enum klein_status map(struct gpu *g, const void *ptr, int64_t rows, int64_t cols, int64_t ld,
                             enum dtype type, int box_rows, struct tensor_map *out, struct klein_error *err)
{
    const uint64_t size = dtype_size(type);
    const struct tensor_box box = {.ptr = (void *)(uintptr_t)ptr,
                                   .dtype = type,
                                   .rank = 2,
                                   .dims = {(uint64_t)cols, (uint64_t)rows},
                                   .strides = {(uint64_t)ld * size},
                                   .box = {(uint32_t)(128 / size), (uint32_t)box_rows},
                                   .swizzle = 128};
    return gpu_tensor_map(g, &box, out, err);
}

/* The maps of segment s for the rows of a group, which end at row `end`. */
static enum klein_status make_maps(struct gpu *g, const struct gemm_variant *v,
                                   const struct linear_kernel_args *a, const struct linear_segment *s,
                                   int group, int end, struct gemm_sm90_maps *out, struct klein_error *err)
{
    const struct linear_segment_weights *w = &s->group[group];
    const int swiglu = s->kind == LINEAR_SEGMENT_SWIGLU, rows = swiglu ? v->bn / 2 : v->bn;
    TRY(map(g, w->w, s->cols, a->k, w->ldw, v->type, rows, &out->w, err));
    if (swiglu) TRY(map(g, w->up, s->cols, a->k, w->ldup, v->type, rows, &out->other, err));
    const int routed = a->route.state && !swiglu;
    if (s->y_type == ELEMENT_F32 || routed) return KLEIN_OK; /* by plain loads and stores */
    if (s->kind == LINEAR_SEGMENT_RESIDUAL)
        TRY(map(g, s->residual, end, s->cols, s->ldr, DT_BF16, WARP_ROWS, &out->other, err));
    return map(g, s->y, end, s->cols, s->ldy, s->y_type == ELEMENT_E4M3 ? DT_F8E4M3 : DT_BF16, WARP_ROWS,
               &out->y, err);
}

static enum klein_status make_args(struct gpu *g, const struct gemm_variant *v,
                                   const struct linear_kernel_args *a, struct gemm_sm90_args *out,
                                   struct klein_error *err)
{
    out->linear = *a;
    if (!a->split) out->linear.split = a->m;
    TRY(map(g, a->x, a->m, a->k, a->ldx, v->type, v->bm, &out->x, err));
    for (int s = 0; s < LINEAR_SEGMENTS; s++)
        for (int group = 0; group < LINEAR_GROUPS; group++) {
            struct gemm_sm90_maps *maps = &out->maps[s][group];
            *maps = (struct gemm_sm90_maps){out->x, out->x, out->x};
            if (s < a->segments && (group == 0 || out->linear.split < a->m))
                TRY(make_maps(g, v, a, &a->segment[s], group, group ? a->m : out->linear.split, maps, err));
        }
    return KLEIN_OK;
}

enum klein_status gemm_sm90_launch(struct gpu *g, const struct gemm_variant *v,
                                   const struct linear_kernel_args *a, struct klein_error *err)
{
    if (!gemm_sm90_takes(v, a))
        return fail(err, KLEIN_E_UNSUPPORTED, "linear: %s does not take these operands", v->name);
    struct gemm_sm90_args args;
    TRY(make_args(g, v, a, &args, err));
    const int64_t tiles = gemm_sm90_tiles(v, a);
    const unsigned blocks = (unsigned)(tiles < g->multiprocessors ? tiles : g->multiprocessors);
    return gpu_launch(g,
                      &(struct launch){.kernel = v->name,
                                       .grid = {blocks},
                                       .threads = v->threads,
                                       .shared = v->shared,
                                       .args = &args,
                                       .dependent = 1},
                      err);
}
