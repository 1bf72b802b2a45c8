#include "run.h"

#include "../base/clock.h"

#include <stdarg.h>
#include <stdio.h>

static int run_may_continue(struct run *r)
{
    if (r->skip || !run_ok(r)) return 0;
    if (r->poll && r->poll(r)) {
        fail(&r->err, KLEIN_E_CANCELLED, "cancelled");
        return 0;
    }
    return 1;
}

void run_observe_issued(struct run *r)
{
    if (r->n_issued && run_ok(r)) r->dev->wait(r->dev, &r->err);
    for (int i = 0; i < r->n_issued && run_ok(r); i++)
        r->observe(r, r->issued[i].op, &r->issued[i].cost,
                   r->dev->between(r->dev, RUN_MARKS + 2 * i, RUN_MARKS + 2 * i + 1));
    r->n_issued = 0;
}

/* What run_op_done wants to know. */
static double run_op_begins(struct run *r)
{
    if (!r->observe) return 0;
    if (!r->issued) return clock_seconds();
    if (r->n_issued == RUN_ISSUED) run_observe_issued(r);
    r->dev->mark(r->dev, RUN_MARKS + 2 * r->n_issued, &r->err);
    return 0;
}

static void run_op_done(struct run *r, enum op_id op, const struct op_cost *cost, double begin,
                        const struct klein_error *e)
{
    if (e->status != KLEIN_OK)
        fail(&r->err, e->status, "%s %s on %s: %s", op_name(op), cost->shape, r->dev->name, e->message);
    r->flops += cost->flops;
    if (!r->observe) return;
    if (!r->issued) {
        r->observe(r, op, cost, clock_seconds() - begin);
    } else if (run_ok(r)) {
        r->dev->mark(r->dev, RUN_MARKS + 2 * r->n_issued + 1, &r->err);
        r->issued[r->n_issued++] = (struct issued_op){op, *cost};
    }
}

#define X(op, args)                                                                                          \
    void run_##op(struct run *r, const struct args *a)                                                       \
    {                                                                                                        \
        if (!run_may_continue(r)) return;                                                                    \
        struct op_cost cost;                                                                                 \
        if (ops_check_##op(a, &cost, &r->err) != KLEIN_OK) return;                                           \
        struct klein_error e = {0};                                                                          \
        double begin = run_op_begins(r);                                                                     \
        r->dev->ops->op(r->dev, a, &e);                                                                      \
        run_op_done(r, OP_##op, &cost, begin, &e);                                                           \
    }
KLEIN_OPS(X)
#undef X

void run_exchange(struct run *r, const struct exchange_args *a)
{
    if (!run_may_continue(r)) return;
    struct op_cost cost;
    if (ops_check_exchange(a, &cost, &r->err) != KLEIN_OK) return;
    struct klein_error e = {0};
    double begin = run_op_begins(r);
    if (r->dev->computes) r->dev->exchange->rows(r->dev, a, &e);
    run_op_done(r, OP_exchange, &cost, begin, &e);
}

struct tensor run_tensor(struct run *r, enum dtype dtype, int rows, int cols)
{
    size_t bytes = (size_t)rows * (size_t)cols * dtype_size(dtype);
    void *p = run_ok(r) ? arena_take(r->arena, r->end, bytes) : NULL;
    if (!p)
        fail(&r->err, KLEIN_E_INTERNAL, "arena of %zu bytes is too small for %dx%d %s", r->arena->size, rows,
             cols, dtype_name(dtype));
    return tensor_of(p, dtype, rows, cols);
}

struct tensor run_upload(struct run *r, enum dtype dtype, int rows, int cols, const void *host)
{
    struct tensor t = run_tensor(r, dtype, rows, cols);
    run_fill(r, t, host);
    return t;
}

static size_t bytes_of(struct tensor t)
{
    CHECK(t.ld == t.cols || t.rows == 1);
    return (size_t)t.rows * (size_t)t.cols * dtype_size(t.dtype);
}

void run_fill(struct run *r, struct tensor t, const void *host)
{
    if (!r->skip && run_ok(r) && r->dev->computes) r->dev->upload(r->dev, t.ptr, host, bytes_of(t), &r->err);
}

void run_download(struct run *r, void *host, struct tensor t)
{
    if (run_ok(r) && r->dev->computes) r->dev->download(r->dev, host, t.ptr, bytes_of(t), &r->err);
}

void run_assign(struct run *r, struct tensor to, struct tensor from)
{
    CHECK(bytes_of(to) == bytes_of(from));
    if (!r->skip && run_ok(r) && r->dev->computes)
        r->dev->copy(r->dev, to.ptr, from.ptr, bytes_of(from), &r->err);
}

void run_tap(struct run *r, struct tensor t, const char *format, ...)
{
    if (!r->tap || r->skip || !run_ok(r)) return;
    char name[64];
    va_list ap;
    va_start(ap, format);
    vsnprintf(name, sizeof name, format, ap);
    va_end(ap);
    r->tap(r, name, t);
}
