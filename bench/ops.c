/* The larger op cases of kernels/check/op_cases.c on the cpu device: what each op reaches of this processor's peak.
 *
 *   cmake --build build --target bench_ops && build/tests/bench_ops bf16 [threads [part of a name]]
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

static void measure(const struct op_case *c, enum dtype act, struct device *dev, char *flush)
{
    struct klein_error err = {0};
    struct op_call call;
    op_call_make(&call, c, act, act, dev);
    struct op_cost cost = {0};
    op_call_cost(&call, &cost, &err);
    double wall[MOST_RUNS], busy[MOST_RUNS], peak = 0, begin = seconds(CLOCK_MONOTONIC);
    op_call_run(&call, &err); /* warm */
    int runs = 0;
    while (runs < LEAST_RUNS || (runs < MOST_RUNS && seconds(CLOCK_MONOTONIC) - begin < 4)) {
        double probe = cpu_peak_flops(dev, act) / dev->threads;
        peak = probe > peak ? probe : peak;
        for (size_t i = 0; i < FLUSH; i += 64) flush[i]++;
        wall[runs] = -seconds(CLOCK_MONOTONIC);
        busy[runs] = -seconds(CLOCK_PROCESS_CPUTIME_ID);
        if (op_call_run(&call, &err) != KLEIN_OK) {
            printf("%s %s: %s\n", op_name(c->op), c->name, err.message);
            break;
        }
        wall[runs] += seconds(CLOCK_MONOTONIC);
        busy[runs++] += seconds(CLOCK_PROCESS_CPUTIME_ID);
    }
    qsort(wall, (size_t)runs, sizeof wall[0], by_size);
    qsort(busy, (size_t)runs, sizeof busy[0], by_size);
    if (runs)
        printf("%-10s %-24s %-36s %9.3f ms %7.1f GFLOP/s %6.1f %% of peak, best %5.1f %% %6.1f GB/s\n",
               op_name(c->op), c->name, cost.shape, 1e3 * wall[runs / 2], cost.flops / wall[runs / 2] / 1e9,
               100 * cost.flops / busy[runs / 2] / peak, 100 * cost.flops / busy[0] / peak,
               cost.bytes / wall[runs / 2] / 1e9);
    fflush(stdout);
    op_call_free(&call);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s bf16|f32 [threads [part of a name]]\n", argv[0]);
        return 2;
    }
    struct klein_error err = {0};
    struct device *dev;
    char *flush = calloc(1, FLUSH);
    if (!flush ||
        device_open("cpu", &(struct device_options){argc > 2 ? atoi(argv[2]) : 0}, &dev, &err) != KLEIN_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 4;
    }
    enum dtype act = strcmp(argv[1], "f32") ? DT_BF16 : DT_F32;
    printf("%s, %s, peak %.1f GFLOP/s\n", dev->description, dtype_name(act), cpu_peak_flops(dev, act) / 1e9);
    for (int i = 0; i < op_case_count; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s %s", op_name(op_cases[i].op), op_cases[i].name);
        if (op_cases[i].bench && strstr(name, argc > 3 ? argv[3] : ""))
            measure(&op_cases[i], act, dev, flush);
    }
    device_close(dev);
    free(flush);
    return 0;
}
