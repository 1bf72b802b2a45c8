/* The specification's own source in single precision: the naive evaluation of op_cases.h. */
#define REF_REAL  float
#define REF(name) naive_##name
#define REF_SUM   /* sums in plain order */
#include "../ref/attention.c"
#include "../ref/conv.c"
#include "../ref/linear.c"
#include "../ref/rows.c"

#include "op_cases.h"

static const struct op_table naive_ops = {
#define X(op, args) .op = naive_##op,
    KLEIN_OPS(X)
#undef X
};

enum klein_status naive_device_open(struct device **out, struct klein_error *err)
{
    TRY(device_open("ref", &(struct device_options){0}, out, err));
    (*out)->ops = &naive_ops;
    (*out)->name = "naive";
    return KLEIN_OK;
}
