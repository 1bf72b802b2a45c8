/* The specification's own source in single precision: the naive evaluation of op_cases.h. */
#define REF_REAL  float
#define REF(name) naive_##name
#define REF_SUM   /* sums in plain order */
#include "../../kernels/ref/attention.c"
#include "../../kernels/ref/conv.c"
#include "../../kernels/ref/linear.c"
#include "../../kernels/ref/rows.c"

#include "op_cases.h"
#include "support.h"

static const struct op_table naive_ops = {
#define X(op, args) .op = naive_##op,
    KLEIN_OPS(X)
#undef X
};

struct device *naive_open(void)
{
    struct klein_error err = {0};
    struct device *dev;
    OK(device_open("ref", NULL, &dev, &err));
    dev->ops = &naive_ops;
    dev->name = "naive";
    return dev;
}
