/* bench.h: what klein bench measures with: peaks to compare with, and times per kind of operation. */
#ifndef KLEIN_BENCH_H
#define KLEIN_BENCH_H

#include "../engine/context.h"

#include <jansson.h>
#include <stdio.h>

/* What the device could do at most, each card of several. */
struct peak {
    double flops;               /* FLOP/s in the activations' dtype; 0: not known */
    double fp8;                 /* of the products of the denoiser's blocks where they are in FP8; else 0 */
    int cards;                  /* that share the request */
    double bytes;               /* bytes/s of its memory; 0: not known */
    const struct gpu_spec *gpu; /* quoted from a data sheet; NULL: measured on this processor, or not known */
    int soft;                   /* the soft GPU: times mean nothing, nothing is compared with them */
};
/* Measures the processor for devices that compute on it; looks up figures of a GPU by its name. */
enum klein_status peak_find(struct klein *k, struct peak *out, struct klein_error *err);
void peak_print(const struct peak *p);
/* The seconds that a card's peak of FLOP/s allows for the products of an op; NAN if that is not known. */
double peak_seconds(const struct peak *p, enum klein_stage stage, enum op_id op, const struct op_cost *cost);

/* One kind of operation: the same op with the same shape in the same stage. */
struct op_row {
    enum klein_stage stage;
    enum op_id op;
    struct op_cost cost;
    double *seconds; /* of each call, over all runs; sorted by op_rows_sort */
    int calls, capacity;
    double total;
};
struct op_rows {
    struct op_row *row;
    int n, capacity, failed; /* failed: no memory, what is there is not all */
};
void op_rows_add(struct op_rows *rows, enum klein_stage stage, enum op_id op, const struct op_cost *cost,
                 double seconds);
void op_rows_sort(struct op_rows *rows); /* the kind that takes longest first */
void op_rows_free(struct op_rows *rows);
double op_rows_total(const struct op_rows *rows, enum klein_stage stage); /* seconds, over all runs */
/* 0 if there was no memory. */
int op_rows_print(const struct op_rows *rows, const struct peak *p, int runs);
json_t *op_rows_json(const struct op_rows *rows, const struct peak *p, int runs);

/* bench_compare.c: prints how the stages of `now`, a result as --json prints it, compare with the last one in the file of the same
 * request on the same device. KLEIN_E_NUMERIC if a stage is slower by more than runs differ; KLEIN_E_INPUT if there is none. */
enum klein_status bench_compare(const char *path, const json_t *now, FILE *out, struct klein_error *err);

#endif
