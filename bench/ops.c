/* The larger op cases of kernels/check/op_cases.c on the cpu device: what each op reaches of this processor's peak.
 *
 *   cmake --build build --target bench_ops && build/tests/bench_ops bf16 [threads [part of a name]]
 *   build/tests/bench_ops amx:bf16 [...]      two ways of KLEIN_PRODUCTS in turns; the ratio of their times
 *
 * Caches are flushed before each run, as weights come from memory in real use. "of peak" divides by the processor time that
 * was spent, so that other programs on the machine do not count, and by a peak that is probed between the runs; of the median run and
 * of the best: a virtual machine shares its cores with neighbours that it does not see. */
#include "../kernels/cpu/cpu.h"
#include "../tests/support/op_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LEAST_RUNS = 3, MOST_RUNS = 50, FLUSH = 96 << 20 };

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The devices, one or two, in turns. */
static void measure(const struct op_case *c, enum dtype act, struct device *const *dev, int devices,
                    char *flush)
{
    struct klein_error err = {0};
    struct op_call call[2];
    struct op_cost cost = {0};
    double wall[2][MOST_RUNS], busy[2][MOST_RUNS], peak = 0, begin = seconds(CLOCK_MONOTONIC);
    for (int d = 0; d < devices; d++) {
        op_call_make(&call[d], c, act, act, dev[d]);
        op_call_run(&call[d], &err); /* warm */
    }
    op_call_cost(&call[0], &cost, &err);
    int runs = 0;
    while (runs < LEAST_RUNS || (runs < MOST_RUNS && seconds(CLOCK_MONOTONIC) - begin < 4 * devices)) {
        double probe = cpu_peak_flops(dev[0], act) / dev[0]->threads;
        peak = probe > peak ? probe : peak;
        for (int d = 0; d < devices; d++) {
            for (size_t i = 0; i < FLUSH; i += 64) flush[i]++;
            wall[d][runs] = -seconds(CLOCK_MONOTONIC);
            busy[d][runs] = -seconds(CLOCK_PROCESS_CPUTIME_ID);
            if (op_call_run(&call[d], &err) != KLEIN_OK) {
                fprintf(stderr, "%s %s: %s\n", op_name(c->op), c->name, err.message);
                exit(4);
            }
            wall[d][runs] += seconds(CLOCK_MONOTONIC);
            busy[d][runs] += seconds(CLOCK_PROCESS_CPUTIME_ID);
        }
        runs++;
    }
    for (int d = 0; d < devices; d++) {
        qsort(wall[d], (size_t)runs, sizeof wall[d][0], by_size);
        qsort(busy[d], (size_t)runs, sizeof busy[d][0], by_size);
        printf("%-10s %-24s %-36s %9.3f ms %7.1f GFLOP/s %6.1f %% of peak, best %5.1f %% %6.1f GB/s",
               op_name(c->op), c->name, cost.shape, 1e3 * wall[d][runs / 2],
               cost.flops / wall[d][runs / 2] / 1e9, 100 * cost.flops / busy[d][runs / 2] / peak,
               100 * cost.flops / busy[d][0] / peak, cost.bytes / wall[d][runs / 2] / 1e9);
        if (d)
            printf("  first / second: median %.2f, best %.2f", wall[0][runs / 2] / wall[1][runs / 2],
                   wall[0][0] / wall[1][0]);
        printf("\n");
        op_call_free(&call[d]);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const char *second = argc > 1 ? strchr(argv[1], ':') : NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: %s bf16|f32|WAY:WAY [threads [part of a name]]; a WAY is amx, bf16 or f32\n",
                argv[0]);
        return 2;
    }
    struct klein_error err = {0};
    struct device *dev[2];
    int devices = second ? 2 : 1;
    char *flush = calloc(1, FLUSH), first[8] = "";
    if (second) snprintf(first, sizeof first, "%.*s", (int)(second - argv[1]), argv[1]);
    enum dtype act = strcmp(argv[1], "f32") ? DT_BF16 : DT_F32;
    for (int d = 0; d < devices; d++) {
        if (second) setenv("KLEIN_PRODUCTS", d ? second + 1 : first, 1);
        if (!flush || device_open("cpu", &(struct device_options){argc > 2 ? atoi(argv[2]) : 0}, &dev[d],
                                  &err) != KLEIN_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 4;
        }
        printf("%s, %s, peak %.1f GFLOP/s\n", dev[d]->description, dtype_name(act),
               cpu_peak_flops(dev[d], act) / 1e9);
    }
    for (int i = 0; i < op_case_count; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s %s", op_name(op_cases[i].op), op_cases[i].name);
        if (op_cases[i].bench && strstr(name, argc > 3 ? argv[3] : ""))
            measure(&op_cases[i], act, dev, devices, flush);
    }
    for (int d = 0; d < devices; d++) device_close(dev[d]);
    free(flush);
    return 0;
}
