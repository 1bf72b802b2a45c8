/* What the cycle model (kernels/predict.h) says of the kernels that klein picks for the products, attentions and convolutions of klein 4B:
 * registers, shared memory, blocks per multiprocessor, occupancy, tiles, how well the last wave fills the chip, cycles of a tile, TFLOP/s.
 * Predictions, not measurements. tools/kernel_report --predict builds and runs it.
 *
 *   kernel_forecast tests/kernel_budgets.txt [GPU [SIDE]]
 *   kernel_forecast tests/kernel_budgets.txt --occupancy    tests/kernel_occupancy.txt: what follows from registers and shared memory */
#include "forecast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static int blocks_of(const char *budgets, const struct forecast_card *c, const char *kernel, int threads,
                     int shared, const struct gpu_spec *g)
{
    const int registers = registers_of(budgets, kernel, c->code);
    return registers ? resident_blocks(g, registers, threads, shared) : -1;
}

static enum klein_status occupancy(const char *budgets, struct klein_error *err)
{
    const struct forecast_card *c;
    struct forecast_launch l;
    printf("# Of kernels with shared memory (all dynamic): threads, bytes of a block, blocks that a "
           "multiprocessor has at a time on each "
           "card, by\n# registers (kernel_budgets.txt), threads and shared memory; 0: a block does not fit. "
           "The limits of "
           "tools/kernel_report --check, by --update.\n%-36s %7s %6s",
           "# kernel", "threads", "shared");
    for (int i = 0; (c = forecast_card(i)); i++) printf(" %4s", c->name);
    printf("\n");
    for (int k = 0; forecast_launch_of(k, &l); k++) {
        printf("%-36s %7u %6u", l.kernel, l.threads, l.shared);
        for (int i = 0; (c = forecast_card(i)); i++) {
            const struct gpu_spec *g;
            TRY(gpu_spec_named(c->name, &g, err));
            const int blocks = blocks_of(budgets, c, l.kernel, (int)l.threads, (int)l.shared, g);
            if (blocks < 0)
                printf(" %4s", "-");
            else
                printf(" %4d", blocks);
        }
        printf("\n");
    }
    return KLEIN_OK;
}

/* One line, or none for ops without a matrix kernel. */
static enum klein_status line(const char *budgets, const struct forecast_card *c, const struct gpu_spec *g,
                              const struct plan_op *o, int e4m3, struct forecast_sum *sums,
                              struct klein_error *err)
{
    struct forecast f;
    TRY(forecast_op(c, o, e4m3, &f, err));
    if (!f.kernel) return KLEIN_OK;
    const int registers = registers_of(budgets, f.kernel, c->code), warps = f.threads / 32;
    const int blocks = registers ? resident_blocks(g, registers, f.threads, f.shared) : 0;
    const double rounds = ceil(f.tiling.tiles / g->multiprocessors);
    printf("%-5s %-6s %-8s %-42s %-36s %4d %6d %6d %5.0f %7.0f %6.0f %9.0f %7.0f\n", c->name,
           e4m3 ? "e4m3" : "bf16", klein_stage_name(o->stage), o->cost.shape, f.kernel, registers, f.shared,
           blocks, 100.0 * blocks * warps / gpu_warps(g), f.tiling.tiles,
           100 * f.tiling.tiles / (rounds * g->multiprocessors), f.tiling.cycles,
           o->cost.flops / f.seconds / 1e12);
    forecast_add(sums, o, e4m3, &f);
    return KLEIN_OK;
}

static enum klein_status forecast(const char *budgets, const char *gpu, int side, struct klein_error *err)
{
    struct model_config config;
    struct plan plan;
    TRY(config_named("klein-4b", &config, err));
    TRY(plan_make(&config, DT_BF16, &(struct klein_request){.width = side, .height = side, .steps = 4}, &plan,
                  err));
    printf("\n%dx%d, predicted, not measured\n%-5s %-6s %-8s %-42s %-36s %4s %6s %6s %5s %7s %6s %9s %7s\n",
           side, side, "GPU", "type", "stage", "shape", "kernel", "regs", "shared", "blocks", "occ%", "tiles",
           "waves%", "cyc/tile", "TFLOP/s");
    enum klein_status status = KLEIN_OK;
    const struct forecast_card *c;
    for (int i = 0; (c = forecast_card(i)) && !status; i++) {
        const struct gpu_spec *g;
        if (*gpu && strcmp(gpu, c->name)) continue;
        status = gpu_spec_named(c->name, &g, err);
        struct forecast_sum sums[FORECAST_KINDS] = {{0, 0}};
        for (int j = 0; j < plan.n_ops && !status; j++) {
            const struct plan_op *o = &plan.ops[j];
            status = line(budgets, c, g, o, 0, sums, err);
            if (!status && forecast_has_e4m3(g, o)) status = line(budgets, c, g, o, 1, sums, err);
        }
        static const char *const kinds[] = {"products in BF16", "attention", "products in e4m3"};
        for (int k = 0; k < FORECAST_KINDS && !status; k++)
            if (sums[k].flops > 0)
                printf("%-5s a step's %s together: %.0f TFLOP/s\n", c->name, kinds[k],
                       sums[k].flops / sums[k].seconds / 1e12);
    }
    plan_free(&plan);
    return status;
}

int main(int argc, char **argv)
{
    struct klein_error err = {0};
    const int sides[] = {512, 1024}, only = argc > 3 ? atoi(argv[3]) : 0;
    if (argc < 2) {
        fprintf(stderr, "usage: %s tests/kernel_budgets.txt [GPU [SIDE] | --occupancy]\n", argv[0]);
        return 2;
    }
    if (argc > 2 && !strcmp(argv[2], "--occupancy")) {
        if (occupancy(argv[1], &err) == KLEIN_OK) return 0;
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("The model's error against %d published figures of other kernels (tests/test_predict.c): median "
           "%.1f %%, at most %.1f %% where klein "
           "has\nsuch kernels, %.0f %% where it has not.\n",
           predict_error.figures, predict_error.median, predict_error.worst, predict_error.worst_of_all);
    for (int i = 0; i < 2; i++)
        if ((!only || only == sides[i]) &&
            forecast(argv[1], argc > 2 ? argv[2] : "", sides[i], &err) != KLEIN_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
    return 0;
}
