#include "forecast.h"

#include "../kernels/attention/attention_pick.h"
#include "../kernels/conv/conv_pick.h"
#include "../kernels/device/args.h"
#include "../kernels/gemm/gemm_pick.h"

#include <stdio.h>
#include <string.h>

static const struct forecast_card cards[] = {
    {"a100", 80, "sm_80"},  {"l40s", 89, "sm_89"},   {"4090", 89, "sm_89"},  {"h100", 90, "sm_90a"},
    {"h200", 90, "sm_90a"}, {"b200", 100, "sm_100"}, {"5090", 120, "sm_120"}};
enum { CARDS = sizeof cards / sizeof *cards };

const struct forecast_card *forecast_card(int i)
{
    return i >= 0 && i < CARDS ? &cards[i] : NULL;
}

/* Where there is no e4m3 mma.sync, nvcc makes two f16 ones of it, and their operands by cvt.rn.f16x2.e4m3x2: for 32 of them 48 in
 * gemm_sm89_linear, 72 in gemm_sm89_qkv, whose warps have flatter tiles (SASS of sm_100, nvcc 13.0: HMMA, F2FP.F16.E4M3.UNPACK_B); by the same
 * count 64 in gemm_sm89_linear_groups, which load x twice. None of these is taken to be hidden. source: CUDA C++ Programming Guide, throughput of native arithmetic instructions: 64 conversions per cycle */
static double converted_e4m3(double mma_sync, const char *kernel)
{
    const double flops = 32 * 2 * 16 * 8 * 16, conversions = strstr(kernel, "qkv")      ? 72
                                                             : strstr(kernel, "groups") ? 64
                                                                                        : 48;
    return flops / (flops / mma_sync + conversions * 32 / 64);
}

struct gpu_spec forecast_rates(const struct gpu_spec *g, int arch, const char *kernel)
{
    struct gpu_spec s = *g;
    if (strstr(kernel, "sm90") || g->products == GPU_MMA_SYNC) return s;
    s.products = GPU_MMA_SYNC;
    s.bf16 = g->mma_sync;
    s.e4m3 = gemm_e4m3_by_f16(arch) ? converted_e4m3(g->mma_sync, kernel) : 2 * g->mma_sync;
    return s;
}

/* Kernels with shared memory that no rule picks among; those with none are bound by threads and registers alone. */
static const struct forecast_launch launches[] = {
    {"adaln_bf16_256", ADALN_THREADS, ADALN_SHARED(256)},
    {"adaln_bf16_1024", ADALN_THREADS, ADALN_SHARED(1024)},
    {"adaln_bf16_3072", ADALN_THREADS, ADALN_SHARED(3072)},
    {"adaln_bf16_4096", ADALN_THREADS, ADALN_SHARED(4096)},
    {"adaln_f32_256", ADALN_THREADS, ADALN_SHARED(256)},
    {"adaln_f32_1024", ADALN_THREADS, ADALN_SHARED(1024)},
    {"adaln_f32_3072", ADALN_THREADS, ADALN_SHARED(3072)},
    {"adaln_f32_4096", ADALN_THREADS, ADALN_SHARED(4096)},
    {"adaln_e4m3_sm89_bf16_256", ADALN_THREADS, ADALN_SHARED(256)},
    {"adaln_e4m3_sm89_bf16_1024", ADALN_THREADS, ADALN_SHARED(1024)},
    {"adaln_e4m3_sm89_bf16_3072", ADALN_THREADS, ADALN_SHARED(3072)},
    {"adaln_e4m3_sm89_bf16_4096", ADALN_THREADS, ADALN_SHARED(4096)},
    {"groupnorm_stats_bf16", SPREAD_THREADS, GROUPNORM_SHARED(2, 8)},
    {"groupnorm_stats_f32", SPREAD_THREADS, GROUPNORM_SHARED(2, 4)},
    {"groupnorm_stats_any", SPREAD_THREADS, GROUPNORM_SHARED(2, 1)},
    {"groupnorm_combine", GROUPNORM_COMBINE_THREADS, GROUPNORM_COMBINE_SHARED},
    {"groupnorm_apply_bf16", SPREAD_THREADS, GROUPNORM_SHARED(3, 8)},
    {"groupnorm_apply_f32", SPREAD_THREADS, GROUPNORM_SHARED(3, 4)},
    {"groupnorm_apply_any", SPREAD_THREADS, GROUPNORM_SHARED(3, 1)},
    {"quantise_sm89_bf16", QUANTISE_THREADS, QUANTISE_SHARED},
    {"linear_simple_product", LINEAR_SIMPLE_THREADS, LINEAR_SIMPLE_SHARED},
};

int forecast_launch_of(int i, struct forecast_launch *l)
{
    const struct gemm_variant *gemm;
    const struct attention_variant *attention;
    const struct conv_variant *conv;
    int at = i;
    for (int j = 0; (gemm = gemm_variant(j)); j++)
        if (!at--) return *l = (struct forecast_launch){gemm->name, gemm->threads, gemm->shared}, 1;
    for (int j = 0; (attention = attention_variant(j)); j++)
        if (!at--)
            return *l = (struct forecast_launch){attention->name, attention->threads, attention->shared}, 1;
    for (int j = 0; (conv = conv_variant(j)); j++)
        if (!at--) return *l = (struct forecast_launch){conv->name, conv->threads, conv->shared}, 1;
    if (at < 0 || at >= (int)(sizeof launches / sizeof *launches)) return 0;
    *l = launches[at];
    return 1;
}

static enum klein_status of_linear(const struct forecast_card *c, const struct gpu_spec *g,
                                   const struct op_cost *o, int e4m3, struct forecast *f,
                                   struct klein_error *err)
{
    const int paired = o->epilogue == LINEAR_QKV || o->epilogue == LINEAR_SWIGLU;
    const struct gemm_shape s = {
        .arch = c->arch,
        .multiprocessors = g->multiprocessors,
        .shared_max = (g->shared - 1) * 1024,
        .type = e4m3 ? DT_F8E4M3 : DT_BF16,
        .groups = e4m3 && !paired, /* what attention and SwiGLU write */
        .e4m3_y = e4m3 && o->swiglu ? 1 << LINEAR_SEGMENT_SWIGLU : 0,
        .kinds = paired ? 1 << LINEAR_SEGMENT_SWIGLU : 1 << LINEAR_SEGMENT_RESIDUAL,
        .rows = {o->split ? o->split : (int)o->m, o->split ? (int)o->m - o->split : 0},
        .segments = 1,
        .w_rows = {(int)o->n}};
    const struct gemm_variant *v;
    TRY(gemm_pick(&s, NULL, &v, err));
    const struct gpu_spec used = forecast_rates(g, c->arch, v->name);
    const struct tiling t = product_tiling(&used, &(struct product){.m = o->m,
                                                                    .n = o->n,
                                                                    .k = o->k,
                                                                    .split = o->split,
                                                                    .element = e4m3 ? 1 : 2,
                                                                    .tile_m = v->bm,
                                                                    .tile_n = v->bn});
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared, t, tiling_seconds(g, t)};
    return KLEIN_OK;
}

static enum klein_status of_attention(const struct forecast_card *c, const struct gpu_spec *g,
                                      const struct op_cost *o, struct forecast *f, struct klein_error *err)
{
    const struct attention_shape s = {.arch = c->arch,
                                      .multiprocessors = g->multiprocessors,
                                      .act = DT_BF16,
                                      .heads = o->heads,
                                      .queries = (int)o->m,
                                      .keys = (int)o->n,
                                      .head_dim = (int)o->k,
                                      .aligned = 1};
    const struct attention_problem p = {o->heads, o->m, o->n, o->k, o->causal};
    const struct attention_variant *v;
    TRY(attention_pick(&s, NULL, &v, err));
    const struct gpu_spec used = forecast_rates(g, c->arch, v->name);
    const struct tiling t = attention_tiling(&used, &p, v->rows);
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared, t,
                           v->halves ? predict_attention(&used, &p) : tiling_seconds(g, t)};
    return KLEIN_OK;
}

static enum klein_status of_conv(const struct forecast_card *c, const struct gpu_spec *g,
                                 const struct op_cost *o, struct forecast *f, struct klein_error *err)
{
    struct conv_shape s = {.arch = c->arch,
                           .multiprocessors = g->multiprocessors,
                           .act = DT_BF16,
                           .stride = 1,
                           .upsample = strstr(o->shape, " x2") != NULL,
                           .placed = 1};
    int h, w;
    if (sscanf(o->shape, "%dx%d, %d > %d, %d", &h, &w, &s.cin, &s.cout, &s.ksize) != 5)
        return fail(err, KLEIN_E_INTERNAL, "a convolution of shape \"%s\"", o->shape);
    s.rows = h << s.upsample;
    s.ow = w << s.upsample;
    s.aligned = s.cout % 8 == 0;
    const struct conv_variant *v;
    TRY(conv_pick(&s, NULL, &v, err));
    const struct gpu_spec used = forecast_rates(g, c->arch, v->name);
    struct tiling t = product_tiling(&used, &(struct product){.m = o->m,
                                                              .n = o->n,
                                                              .k = o->k,
                                                              .element = 2,
                                                              .tile_m = v->tile_w * v->tile_h,
                                                              .tile_n = v->tile_n});
    t.tiles = (double)conv_tiles(v, &s, s.rows);
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared, t, tiling_seconds(g, t)};
    return KLEIN_OK;
}

int forecast_has_e4m3(const struct gpu_spec *g, const struct plan_op *o)
{
    return g->e4m3 > 0 && o->stage == KLEIN_STAGE_DENOISE && product_of_blocks(o->op, &o->cost);
}

enum klein_status forecast_op(const struct forecast_card *c, const struct plan_op *o, int e4m3,
                              struct forecast *f, struct klein_error *err)
{
    enum { FEW_ROWS = 8 };
    const struct gpu_spec *g;
    *f = (struct forecast){0};
    TRY(gpu_spec_named(c->name, &g, err));
    if (o->op == OP_linear && o->cost.m > FEW_ROWS) return of_linear(c, g, &o->cost, e4m3, f, err);
    if (o->op == OP_attention) return of_attention(c, g, &o->cost, f, err);
    if (o->op == OP_conv) return of_conv(c, g, &o->cost, f, err);
    return KLEIN_OK;
}

void forecast_add(struct forecast_sum sums[FORECAST_KINDS], const struct plan_op *o, int e4m3,
                  const struct forecast *f)
{
    if (o->stage != KLEIN_STAGE_DENOISE || !f->kernel) return;
    struct forecast_sum *s = &sums[o->op == OP_attention ? FORECAST_ATTENTION
                                   : e4m3                ? FORECAST_E4M3
                                                         : FORECAST_BF16];
    s->flops += o->count * o->cost.flops;
    s->seconds += o->count * f->seconds;
}
