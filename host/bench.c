#include "bench.h"
#include "table.h"

#include "../engine/group.h"
#include "../kernels/cpu/cpu.h"
#include "../kernels/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- peaks ----------------------------------------------------------------------------------------------- */

enum klein_status peak_find(struct klein *k, struct peak *out, struct klein_error *err)
{
    struct cuda_facts gpu;
    struct device *cpu;
    *out = (struct peak){.cards = k->group ? k->group->size : 1};
    if (cuda_facts(k->device, &gpu)) {
        out->soft = gpu.soft;
        out->gpu = gpu.soft ? NULL : gpu_spec_of(gpu.name, gpu.multiprocessors);
        if (!out->gpu) return KLEIN_OK;
        out->bytes = out->gpu->memory;
        const double cycles = out->gpu->multiprocessors * out->gpu->clock;
        if (k->act == DT_BF16) out->flops = out->gpu->bf16 * cycles;
        if (k->fp8) out->fp8 = out->gpu->e4m3 * cycles;
        return KLEIN_OK;
    }
    TRY(device_open("cpu", &(struct device_options){.threads = k->device->threads}, &cpu, err));
    out->flops = cpu_peak_flops(cpu, k->act);
    device_close(cpu);
    return KLEIN_OK;
}

void peak_print(const struct peak *p)
{
    if (p->soft)
        puts("soft GPU: executed on the host, times mean nothing");
    else if (p->gpu) {
        printf("peaks of %s by its data sheet: %.1f TFLOP/s in BF16, ", p->gpu->title,
               p->gpu->bf16 * p->gpu->multiprocessors * p->gpu->clock / 1e12);
        if (p->fp8 > 0) printf("%.1f in FP8 (the products of the denoiser's blocks), ", p->fp8 / 1e12);
        printf("%.2f TB/s%s\n", p->gpu->memory / 1e12,
               p->cards > 1 ? ", of each card; stages against all cards'" : "");
    } else if (p->flops > 0)
        printf("peak of this processor, just measured: %.4f TFLOP/s\n", p->flops / 1e12);
    else
        puts("klein has no figures of this GPU: no shares of its peaks");
}

double peak_seconds(const struct peak *p, enum klein_stage stage, enum op_id op, const struct op_cost *cost)
{
    const int fp8 = p->fp8 > 0 && stage == KLEIN_STAGE_DENOISE && product_of_blocks(op, cost);
    const double flops = fp8 ? p->fp8 : p->flops;
    return flops > 0 ? cost->flops / flops : NAN;
}

/* The time that the peaks allow for an op over its own. */
static double share_of(const struct op_row *o, const struct peak *p, double seconds)
{
    const double least = peak_seconds(p, o->stage, o->op, &o->cost);
    if (!isfinite(least) || !(seconds > 0)) return NAN;
    return fmax(least, p->bytes > 0 ? o->cost.bytes / p->bytes : 0) / seconds;
}

/* --- operations ------------------------------------------------------------------------------------------ */

/* Room for one more of `size` bytes. */
static void *grown(void *list, int n, int *capacity, size_t size)
{
    if (n < *capacity) return list;
    int more = *capacity ? 2 * *capacity : 64;
    void *p = realloc(list, (size_t)more * size);
    if (p) *capacity = more;
    return p;
}

void op_rows_add(struct op_rows *rows, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                 double seconds)
{
    int i = 0;
    while (i < rows->n && !(rows->row[i].stage == stage && rows->row[i].op == op &&
                            !strcmp(rows->row[i].cost.shape, cost->shape)))
        i++;
    if (i == rows->n) {
        struct op_row *list = grown(rows->row, rows->n, &rows->capacity, sizeof *list);
        if (!list) {
            rows->failed = 1;
            return;
        }
        rows->row = list;
        rows->row[rows->n++] = (struct op_row){.stage = stage, .op = op, .cost = *cost};
    }
    struct op_row *o = &rows->row[i];
    double *times = grown(o->seconds, o->calls, &o->capacity, sizeof *times);
    if (!times) {
        rows->failed = 1;
        return;
    }
    o->seconds = times;
    o->seconds[o->calls++] = seconds;
    o->total += seconds;
}

static int smaller_first(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int slower_first(const void *a, const void *b)
{
    double x = ((const struct op_row *)a)->total, y = ((const struct op_row *)b)->total;
    return (x < y) - (x > y);
}

void op_rows_sort(struct op_rows *rows)
{
    for (int i = 0; i < rows->n; i++)
        qsort(rows->row[i].seconds, (size_t)rows->row[i].calls, sizeof(double), smaller_first);
    if (rows->n) qsort(rows->row, (size_t)rows->n, sizeof *rows->row, slower_first);
}

void op_rows_free(struct op_rows *rows)
{
    for (int i = 0; i < rows->n; i++) free(rows->row[i].seconds);
    free(rows->row);
    *rows = (struct op_rows){0};
}

double op_rows_total(const struct op_rows *rows, enum klein_stage stage)
{
    double sum = 0;
    for (int i = 0; i < rows->n; i++)
        if (rows->row[i].stage == stage) sum += rows->row[i].total;
    return sum;
}

/* The smallest time that a share q of the calls does not exceed. */
static double quantile(const struct op_row *o, double q)
{
    int i = (int)ceil(q * o->calls) - 1;
    return o->seconds[i < 0 ? 0 : i];
}

static void op_cells(struct table *t, const struct op_row *o, const struct peak *p, int runs)
{
    double median = quantile(o, 0.5), share = share_of(o, p, median);
    table_cell(t, "%s", klein_stage_name(o->stage));
    table_cell(t, "%s", op_name(o->op));
    table_cell(t, "%d", o->calls / runs);
    table_cell(t, "%.3f", 1e3 * o->total / runs);
    table_cell(t, "%.1f", 1e6 * median);
    table_cell(t, "%.1f", 1e6 * quantile(o, 0.95));
    table_cell(t, "%.1f", 1e6 * quantile(o, 0.99));
    if (!p->soft) {
        table_cell(t, "%.4f", o->cost.flops / median / 1e12);
        table_cell(t, "%.2f", o->cost.bytes / median / 1e9);
        if (isfinite(share))
            table_cell(t, "%.1f %%", 100 * share);
        else
            table_cell(t, "-");
    }
    table_cell(t, "%s", o->cost.shape);
}

int op_rows_print(const struct op_rows *rows, const struct peak *p, int runs)
{
    static const char *const heading[] = {"STAGE", "OP",      "CALLS", "MS",      "US EACH", "P95",
                                          "P99",   "TFLOP/S", "GB/S",  "OF PEAK", "SHAPE"};
    struct table t;
    table_begin(&t, p->soft ? "llrrrrrl" : "llrrrrrrrrl");
    for (int i = 0; i < 11; i++)
        if (!p->soft || i < 7 || i == 10) table_cell(&t, "%s", heading[i]);
    for (int i = 0; i < rows->n; i++) op_cells(&t, &rows->row[i], p, runs);
    putchar('\n');
    return table_print(&t, stdout);
}

json_t *op_rows_json(const struct op_rows *rows, const struct peak *p, int runs)
{
    json_t *list = json_array();
    for (int i = 0; i < rows->n; i++) {
        const struct op_row *o = &rows->row[i];
        double share = share_of(o, p, quantile(o, 0.5));
        json_t *row = json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "stage",
                                klein_stage_name(o->stage), "op", op_name(o->op), "shape", o->cost.shape,
                                "calls", o->calls / runs, "seconds", o->total / runs, "median",
                                quantile(o, 0.5), "p95", quantile(o, 0.95), "p99", quantile(o, 0.99), "flop",
                                o->cost.flops, "bytes", o->cost.bytes);
        if (row && isfinite(share)) json_object_set_new(row, "of_peak", json_real(share));
        json_array_append_new(list, row);
    }
    return list;
}
