/* What the cycle model (kernels/predict.h) says of the kernels that klein picks for the products, attentions and convolutions of klein 4B:
 * registers, blocks per multiprocessor, occupancy, tiles, how well the last wave fills the chip, cycles of a tile, TFLOP/s. Predictions, not
 * measurements. tools/kernel_report --predict builds and runs it.
 *
 *   kernel_forecast tests/kernel_budgets.txt [GPU [SIDE]] */
#include "../engine/context.h"
#include "../kernels/attention/attention_pick.h"
#include "../kernels/conv/conv_pick.h"
#include "../kernels/gemm/gemm_pick.h"
#include "../kernels/predict.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The cards of which figures are wanted, and the architecture whose code they run (kernel_budgets.txt's columns). */
static const struct card {
    const char *name;
    int arch;
    const char *code;
} cards[] = {{"a100", 80, "sm_80"},  {"l40s", 89, "sm_89"},   {"4090", 89, "sm_89"},  {"h100", 90, "sm_90a"},
             {"h200", 90, "sm_90a"}, {"b200", 100, "sm_100"}, {"5090", 120, "sm_120"}};
enum { CARDS = sizeof cards / sizeof *cards };

/* Registers of a kernel in a table whose first lines begin with '#', the last of them naming the columns; 0: not there. Kernels for sm_90a only have
 * their column, all others are in sm_90's too. */
static int registers_of(const char *path, const char *kernel, const char *code)
{
    char line[512];
    int column = -1, plain = -1, found = 0;
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (!found && fgets(line, sizeof line, f)) {
        char *save = NULL, *word = strtok_r(line, " \n", &save);
        if (!word) continue;
        int header = !strcmp(word, "#"), mine = !strcmp(word, kernel), registers = 0;
        for (int i = 0; (word = strtok_r(NULL, " \n", &save)); i++) {
            if (header && !strcmp(word, code)) column = i - 1;
            if (header && !strncmp(word, code, 5) && strlen(word) == 5) plain = i - 1;
            if (mine && i == plain && !registers) registers = atoi(word);
            if (mine && i == column && strcmp(word, "-")) registers = atoi(word);
        }
        if (mine) found = registers;
    }
    fclose(f);
    return found;
}

struct forecast {
    const char *kernel;
    int threads, shared;
    struct tiling tiling;
    double seconds; /* 0: those of the tiling */
};

/* A card with the rates of the kernel's instructions: mma.sync where the kernel has no other. */
static struct gpu_spec as_used(const struct gpu_spec *g, const char *kernel)
{
    struct gpu_spec s = *g;
    if (!strstr(kernel, "sm90") && g->products != GPU_MMA_SYNC) {
        s.products = GPU_MMA_SYNC;
        s.e4m3 = 2 * g->mma_sync;
        s.bf16 = g->mma_sync;
    }
    return s;
}

static enum klein_status of_linear(const struct card *c, const struct gpu_spec *g, const struct op_cost *o,
                                   int e4m3, struct forecast *f, struct klein_error *err)
{
    const int paired = o->epilogue == LINEAR_QKV || o->epilogue == LINEAR_SWIGLU;
    const struct gemm_shape s = {
        .arch = c->arch,
        .multiprocessors = g->multiprocessors,
        .shared_max = (g->shared - 1) * 1024,
        .type = e4m3 ? DT_F8E4M3 : DT_BF16,
        .groups = e4m3 && !paired && c->arch == 90, /* what attention and SwiGLU write */
        .kinds = paired ? 1 << LINEAR_SEGMENT_SWIGLU : 1 << LINEAR_SEGMENT_RESIDUAL,
        .rows = {o->split ? o->split : (int)o->m, o->split ? (int)o->m - o->split : 0},
        .segments = 1,
        .w_rows = {(int)o->n}};
    const struct gemm_variant *v;
    TRY(gemm_pick(&s, NULL, &v, err));
    const struct gpu_spec used = as_used(g, v->name);
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared,
                           product_tiling(&used, &(struct product){.m = o->m,
                                                                   .n = o->n,
                                                                   .k = o->k,
                                                                   .split = o->split,
                                                                   .element = e4m3 ? 1 : 2,
                                                                   .tile_m = v->bm,
                                                                   .tile_n = v->bn}),
                           0};
    return KLEIN_OK;
}

static enum klein_status of_attention(const struct card *c, const struct gpu_spec *g, const struct op_cost *o,
                                      struct forecast *f, struct klein_error *err)
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
    const struct gpu_spec used = as_used(g, v->name);
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared, attention_tiling(&used, &p, v->rows),
                           v->halves ? predict_attention(&used, &p) : 0};
    return KLEIN_OK;
}

static enum klein_status of_conv(const struct card *c, const struct gpu_spec *g, const struct op_cost *o,
                                 struct forecast *f, struct klein_error *err)
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
    const struct gpu_spec used = as_used(g, v->name);
    struct tiling t = product_tiling(&used, &(struct product){.m = o->m,
                                                              .n = o->n,
                                                              .k = o->k,
                                                              .element = 2,
                                                              .tile_m = v->tile_w * v->tile_h,
                                                              .tile_n = v->tile_n});
    t.tiles = (double)conv_tiles(v, &s, s.rows);
    *f = (struct forecast){v->name, (int)v->threads, (int)v->shared, t, 0};
    return KLEIN_OK;
}

/* Of the denoiser's ops of a kind. */
struct sum {
    double flops, seconds;
};

/* One line, or none for ops without a matrix kernel. */
static enum klein_status line(const char *budgets, const struct card *c, const struct gpu_spec *g,
                              const struct plan_op *o, int e4m3, struct sum *sum, struct klein_error *err)
{
    enum { FEW_ROWS = 8 };
    struct forecast f = {0};
    if (o->op == OP_linear && o->cost.m > FEW_ROWS)
        TRY(of_linear(c, g, &o->cost, e4m3, &f, err));
    else if (o->op == OP_attention)
        TRY(of_attention(c, g, &o->cost, &f, err));
    else if (o->op == OP_conv)
        TRY(of_conv(c, g, &o->cost, &f, err));
    else
        return KLEIN_OK;
    const int registers = registers_of(budgets, f.kernel, c->code), warps = f.threads / 32;
    const int blocks = registers ? resident_blocks(g, registers, f.threads, f.shared) : 0;
    const double rounds = ceil(f.tiling.tiles / g->multiprocessors),
                 seconds = f.seconds > 0 ? f.seconds : tiling_seconds(g, f.tiling);
    printf("%-5s %-6s %-8s %-42s %-36s %4d %6d %5.0f %7.0f %6.0f %9.0f %7.0f\n", c->name,
           e4m3 ? "e4m3" : "bf16", klein_stage_name(o->stage), o->cost.shape, f.kernel, registers, blocks,
           100.0 * blocks * warps / gpu_warps(g), f.tiling.tiles,
           100 * f.tiling.tiles / (rounds * g->multiprocessors), f.tiling.cycles,
           o->cost.flops / seconds / 1e12);
    if (o->stage == KLEIN_STAGE_DENOISE) {
        sum->flops += o->count * o->cost.flops;
        sum->seconds += o->count * seconds;
    }
    return KLEIN_OK;
}

static enum klein_status forecast(const char *budgets, const char *gpu, int side, struct klein_error *err)
{
    struct model_config config;
    struct plan plan;
    TRY(config_named("klein-4b", &config, err));
    TRY(plan_make(&config, DT_BF16, &(struct klein_request){.width = side, .height = side, .steps = 4}, &plan,
                  err));
    printf("\n%dx%d, predicted, not measured\n%-5s %-6s %-8s %-42s %-36s %4s %6s %5s %7s %6s %9s %7s\n", side,
           side, "GPU", "type", "stage", "shape", "kernel", "regs", "blocks", "occ%", "tiles", "waves%",
           "cyc/tile", "TFLOP/s");
    enum klein_status status = KLEIN_OK;
    for (int i = 0; i < CARDS && !status; i++) {
        const struct gpu_spec *g;
        if (*gpu && strcmp(gpu, cards[i].name)) continue;
        status = gpu_spec_named(cards[i].name, &g, err);
        struct sum all[] = {{0, 0}, {0, 0}, {0, 0}};
        for (int j = 0; j < plan.n_ops && !status; j++) {
            const struct plan_op *o = &plan.ops[j];
            status = line(budgets, &cards[i], g, o, 0, &all[o->op == OP_attention], err);
            if (!status && g->e4m3 > 0 && o->op == OP_linear && o->stage == KLEIN_STAGE_DENOISE &&
                o->cost.epilogue >= LINEAR_RESIDUAL)
                status = line(budgets, &cards[i], g, o, 1, &all[2], err);
        }
        static const char *const kinds[] = {"products in BF16", "attention", "products in e4m3"};
        for (int k = 0; k < 3 && !status; k++)
            if (all[k].flops > 0)
                printf("%-5s a step's %s together: %.0f TFLOP/s\n", cards[i].name, kinds[k],
                       all[k].flops / all[k].seconds / 1e12);
    }
    plan_free(&plan);
    return status;
}

int main(int argc, char **argv)
{
    struct klein_error err = {0};
    const int sides[] = {512, 1024}, only = argc > 3 ? atoi(argv[3]) : 0;
    if (argc < 2) {
        fprintf(stderr, "usage: %s tests/kernel_budgets.txt [GPU [SIDE]]\n", argv[0]);
        return 2;
    }
    for (int i = 0; i < 2; i++)
        if ((!only || only == sides[i]) &&
            forecast(argv[1], argc > 2 ? argv[2] : "", sides[i], &err) != KLEIN_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
    return 0;
}
