/* The rule of op_cases.h, applied. */
#include "op_cases.h"

#include "../../base/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

double tensor_relative_l2(struct tensor a, struct tensor b)
{
    double difference = 0, norm = 0;
    for (int r = 0; r < a.rows; r++)
        for (int c = 0; c < a.cols; c++) {
            double x = tensor_get(a, r, c), y = tensor_get(b, r, c);
            if (!isfinite(x)) return INFINITY;
            difference += (x - y) * (x - y);
            norm += y * y;
        }
    return norm > 0 ? sqrt(difference / norm) : difference > 0 ? INFINITY : 0;
}

double tensor_max_difference(struct tensor a, struct tensor b)
{
    double worst = 0;
    for (int r = 0; r < a.rows; r++)
        for (int c = 0; c < a.cols; c++) {
            double d = fabs((double)tensor_get(a, r, c) - tensor_get(b, r, c));
            if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
        }
    return worst;
}

static double largest(struct tensor t)
{
    double most = 0;
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) most = fmax(most, fabs((double)tensor_get(t, r, c)));
    return most;
}

double op_case_work(const struct op_case *c)
{
    double m = c->m, k = c->k, up = c->options & UPSAMPLE ? 4 : 1, stride = c->stride ? c->stride : 1;
    switch (c->op) {
    case OP_linear: {
        double n = c->epilogue == LINEAR_SWIGLU ? 2.0 * c->n : c->n;
        if (c->epilogue == LINEAR_QKV)
            n = (c->heads + 2.0 * c->kv_heads) * c->hd + (c->options & WITH_MLP ? 2.0 * c->n : 0);
        return m * n * k;
    }
    case OP_attention:
        return 2 * m * c->n * c->heads * c->hd;
    case OP_conv:
        return c->h * up * c->w / (stride * stride) * c->n * k * c->ksize * c->ksize;
    case OP_patchify:
    case OP_unpatchify:
        return (double)c->h * c->w * k;
    default:
        return m * fmax(k, fmax(c->n, 1));
    }
}

/* The outputs of one evaluation. */
enum { OUTPUTS = 4 };
struct results {
    struct tensor y[OUTPUTS];
    enum dtype type[OUTPUTS];
    int n;
    double seconds;
};

static void free_results(struct results *r)
{
    for (int i = 0; i < OUTPUTS; i++) free(r->y[i].ptr);
}

static enum klein_status run_timed(struct op_call *call, double *seconds, struct klein_error *err)
{
    struct device *dev = call->dev;
    double begin = clock_seconds();
    if (dev->mark) TRY(dev->mark(dev, 0, err));
    TRY(op_call_run(call, err));
    if (!dev->mark) {
        *seconds = clock_seconds() - begin;
        return KLEIN_OK;
    }
    TRY(dev->mark(dev, 1, err));
    TRY(dev->wait(dev, err));
    *seconds = dev->between(dev, 0, 1);
    return KLEIN_OK;
}

static enum klein_status evaluate(const struct op_case *c, enum dtype act, enum dtype values,
                                  struct device *dev, struct results *out, struct klein_error *err)
{
    struct op_call call;
    *out = (struct results){0};
    TRY(op_call_open(&call, c, act, values, dev, err));
    run_timed(&call, &out->seconds, err);
    for (int i = 0; i < call.operands && !err->status; i++)
        if (call.operand[i].output) {
            CHECK(out->n < OUTPUTS);
            out->type[out->n] = call.operand[i].slot->dtype;
            op_call_read(&call, out->n, &out->y[out->n], err);
            out->n++;
        }
    op_call_free(&call);
    return err->status;
}

/* error against limit; 1 is the limit. Exact results may have the limit 0. */
static double excess(double error, double limit)
{
    return error <= 0 ? 0 : limit > 0 ? error / limit : INFINITY;
}

static void judge(const char *who, const struct results *truth, const struct results *simple,
                  const struct results *y, struct op_verdict *v)
{
    snprintf(v->text, sizeof v->text, "%s: exact", who);
    for (int i = 0; i < y->n; i++) {
        struct tensor t = truth->y[i], s = simple->y[i], r = y->y[i];
        double rounding = y->type[i] == DT_BF16  ? 0x1p-9
                          : y->type[i] == DT_F32 ? 0x1p-24
                                                 : 0; /* of a stored value */
        struct {
            const char *name;
            double error, limit;
        } measure[] = {
            {"relative L2", tensor_relative_l2(r, t), fmax(2 * tensor_relative_l2(s, t), rounding)},
            {"maximum error", tensor_max_difference(r, t),
             fmax(2 * tensor_max_difference(s, t), rounding * largest(t))}};
        for (int m = 0; m < 2; m++) {
            double e = excess(measure[m].error, measure[m].limit);
            if (e <= v->excess) continue;
            v->excess = e;
            snprintf(v->text, sizeof v->text, "%s, output %d: %s %.3g, limit %.3g", who, i, measure[m].name,
                     measure[m].error, measure[m].limit);
        }
    }
}

static enum klein_status run_all(const struct op_case *c, enum dtype act, struct device *dev,
                                 struct results r[3], struct klein_error *err)
{
    struct device *ref = NULL, *naive = NULL;
    enum klein_status status = device_open("ref", &(struct device_options){0}, &ref, err);
    if (!status) status = naive_device_open(&naive, err);
    if (!status) status = evaluate(c, DT_F32, act, ref, &r[0], err);
    if (!status) status = evaluate(c, act, act, naive, &r[1], err);
    if (!status) status = evaluate(c, act, act, dev, &r[2], err);
    device_close(ref);
    device_close(naive);
    return status;
}

enum klein_status op_case_judge(const struct op_case *c, enum dtype act, struct device *dev,
                                struct op_verdict *v, struct klein_error *err)
{
    struct results r[3] = {0}; /* truth, naive, the device's */
    char who[OP_CASE_TEXT / 2];
    *v = (struct op_verdict){0};
    snprintf(who, sizeof who, "%s on %s, %s %s", dev->name, dtype_name(act), op_name(c->op), c->name);
    enum klein_status status = run_all(c, act, dev, r, err);
    v->seconds = r[2].seconds;
    if (status == KLEIN_OK) judge(who, &r[0], &r[1], &r[2], v);
    for (int i = 0; i < 3; i++) free_results(&r[i]);
    return status;
}
