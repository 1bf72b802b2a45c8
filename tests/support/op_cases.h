/* op_cases.h: the list of op cases and its rule (kernels/check/op_cases.h) for tests: what fails there fails the test here. */
#ifndef KLEIN_TESTS_OP_CASES_H
#define KLEIN_TESTS_OP_CASES_H

#include "../../kernels/check/op_cases.h"

/* op_call_open and op_call_read; anything but success fails the test. */
void op_call_make(struct op_call *call, const struct op_case *c, enum dtype act, enum dtype values,
                  struct device *dev);
struct tensor op_call_output(struct op_call *call, int i);

/* op_case_judge: the largest error as a multiple of its limit, and a line that says which. */
double op_case_excess(const struct op_case *c, enum dtype act, struct device *dev, char text[OP_CASE_TEXT]);
/* Fails the test if that is more than 1. */
void op_case_check(const struct op_case *c, enum dtype act, struct device *dev);

#endif
