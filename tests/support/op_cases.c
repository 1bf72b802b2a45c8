#include "op_cases.h"
#include "support.h"

void op_call_make(struct op_call *call, const struct op_case *c, enum dtype act, enum dtype values,
                  struct device *dev)
{
    struct klein_error err;
    OK(op_call_open(call, c, act, values, dev, &err));
}

struct tensor op_call_output(struct op_call *call, int i)
{
    struct klein_error err;
    struct tensor y;
    OK(op_call_read(call, i, &y, &err));
    return y;
}

double op_case_excess(const struct op_case *c, enum dtype act, struct device *dev, char text[OP_CASE_TEXT])
{
    struct klein_error err;
    struct op_verdict v;
    OK(op_case_judge(c, act, dev, &v, &err));
    memcpy(text, v.text, sizeof v.text);
    return v.excess;
}

void op_case_check(const struct op_case *c, enum dtype act, struct device *dev)
{
    char text[OP_CASE_TEXT];
    double worst = op_case_excess(c, act, dev, text);
    cr_expect(worst <= 1, "%s", text);
}
