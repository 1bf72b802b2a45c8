/* args.h: arguments of the kernels in tests/soft. */
#ifndef KLEIN_TESTS_SOFT_ARGS_H
#define KLEIN_TESTS_SOFT_ARGS_H

#include "../../kernels/device/args.h"

struct basic_args {
    float *y;
    const float *x;
    int variant; /* which bug, if any */
};

#endif
