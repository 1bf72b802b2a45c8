/* The op table of the GPU backend as models use it, weights placed, on the soft GPU: the whole list of op cases by its rule. The kernels
 * one by one, in many orders: test_kernels_*.c. */
#include "support/op_cases.h"
#include "support/support.h"

/* options: only cases with one of these; 0: all. */
static void check(const char *chip, enum dtype act, int options)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(test_device(chip), &(struct device_options){0}, &dev, &err));
    for (int i = 0; i < op_case_count; i++)
        if (!op_cases[i].bench && (!options || op_cases[i].options & options))
            op_case_check(&op_cases[i], act, dev);
    device_close(dev);
}

Test(cuda_ops, sm_80)
{
    check("soft sm_80", DT_BF16, 0);
}

Test(cuda_ops, sm_89_e4m3)
{
    check("soft sm_89", DT_BF16, X_E4M3 | Y_E4M3);
}

Test(cuda_ops, sm_90a)
{
    check("soft sm_90a", DT_BF16, 0);
}

Test(cuda_ops, sm_90a_f32)
{
    check("soft sm_90a", DT_F32, 0);
}

/* A table that is wrong in one op is noticed: without this the two above could pass by not looking at the device. */
static const struct op_table *right;

static enum klein_status add_bias_twice(struct device *dev, const struct conv_args *a,
                                        struct klein_error *err)
{
    struct conv_args b = *a;
    TRY(right->conv(dev, &b, err));
    b.residual = b.y;
    return right->conv(dev, &b, err);
}

static enum klein_status without_q_norm(struct device *dev, const struct linear_args *a,
                                        struct klein_error *err)
{
    struct linear_args b = *a;
    if (b.epilogue == LINEAR_QKV) b.group[0].q_norm = b.group[0].k_norm;
    return right->linear(dev, &b, err);
}

static double worst_of(struct device *dev, enum op_id op, const char *name)
{
    char text[OP_CASE_TEXT];
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == op && !strcmp(op_cases[i].name, name))
            return op_case_excess(&op_cases[i], DT_BF16, dev, text);
    cr_assert(0, "no case %s", name);
    return 0;
}

Test(cuda_ops, mistakes_are_found)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(test_device("soft sm_80"), &(struct device_options){0}, &dev, &err));
    right = dev->ops;
    struct op_table wrong = *right;
    wrong.conv = add_bias_twice;
    wrong.linear = without_q_norm;
    cr_assert(worst_of(dev, OP_conv, "1x1") <= 1 && worst_of(dev, OP_linear, "qkv interleaved") <= 1);
    dev->ops = &wrong;
    cr_assert(worst_of(dev, OP_conv, "1x1") > 10);
    cr_assert(worst_of(dev, OP_linear, "qkv interleaved") > 10);
    dev->ops = right;
    device_close(dev);
}

/* What klein selftest does after a fault: the device, opened anew, computes right. */
Test(cuda_ops, usable_after_a_fault)
{
    struct klein_error err;
    struct device *dev;
    OK(device_open(test_device("soft sm_90a"), &(struct device_options){0}, &dev, &err));
    struct tensor nowhere = tensor_of((void *)4096, DT_F32, 4, 128);
    struct euler_args a = {
        .y = nowhere, .x = nowhere, .v = nowhere, .dt = tensor_of((void *)4096, DT_F32, 1, 1)};
    err = (struct klein_error){0};
    if (dev->ops->euler(dev, &a, &err) == KLEIN_OK) dev->wait(dev, &err);
    cr_assert(err.status != KLEIN_OK && strstr(err.message, "euler"), "%s", err.message);
    device_close(dev);
    OK(device_open("soft", &(struct device_options){0}, &dev, &err));
    cr_assert(worst_of(dev, OP_linear, "qkv interleaved") <= 1 && worst_of(dev, OP_euler, "odd") <= 1);
    device_close(dev);
}
