#include "support/op_cases.h"
#include "support/support.h"

#include <math.h>

static void check_all(const char *device, enum dtype act, enum op_id op)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(device, NULL, &dev, &err));
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == op && !op_cases[i].bench) op_case_check(&op_cases[i], act, dev);
    device_close(dev);
}

#define X(op, args)                                                                                          \
    Test(ops, op##_ref)                                                                                      \
    {                                                                                                        \
        check_all("ref", DT_BF16, OP_##op);                                                                  \
    }                                                                                                        \
    Test(ops, op##_cpu_f32)                                                                                  \
    {                                                                                                        \
        check_all("cpu", DT_F32, OP_##op);                                                                   \
    }                                                                                                        \
    Test(ops, op##_cpu_bf16)                                                                                 \
    {                                                                                                        \
        check_all("cpu", DT_BF16, OP_##op);                                                                  \
    }
KLEIN_OPS(X)
#undef X
