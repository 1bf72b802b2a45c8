/* forecast.h: which kernel klein picks for an op on a card, and what the cycle model (kernels/predict.h) says of that kernel. Predictions, not
 * measurements. For tools/kernel_report --predict and for tests. */
#ifndef KLEIN_FORECAST_H
#define KLEIN_FORECAST_H

#include "../engine/context.h"
#include "../kernels/predict.h"

/* The cards of which figures are wanted, and the architecture whose code they run (kernel_budgets.txt's columns). */
struct forecast_card {
    const char *name; /* gpu_spec_named */
    int arch;
    const char *code;
};
/* The i-th; NULL past the last. */
const struct forecast_card *forecast_card(int i);

/* What kernels with shared memory are launched with: bytes, all of it dynamic. */
struct forecast_launch {
    const char *kernel;
    unsigned threads, shared;
};
/* The i-th; 0 past the last. */
int forecast_launch_of(int i, struct forecast_launch *l);

struct forecast {
    const char *kernel; /* NULL: no matrix kernel computes the op */
    int threads, shared;
    struct tiling tiling;
    double seconds;
};
/* e4m3: as --precision fp8 would have it; only where forecast_has_e4m3. */
enum klein_status forecast_op(const struct forecast_card *c, const struct plan_op *o, int e4m3,
                              struct forecast *f, struct klein_error *err);
int forecast_has_e4m3(const struct gpu_spec *g, const struct plan_op *o);

/* A card with the rates of the kernel's instructions: those of mma.sync where the kernel has no other. */
struct gpu_spec forecast_rates(const struct gpu_spec *g, int arch, const char *kernel);

/* Of the denoiser's ops of a kind. */
enum { FORECAST_BF16, FORECAST_ATTENTION, FORECAST_E4M3, FORECAST_KINDS };
struct forecast_sum {
    double flops, seconds;
};
void forecast_add(struct forecast_sum sums[FORECAST_KINDS], const struct plan_op *o, int e4m3,
                  const struct forecast *f);

#endif
