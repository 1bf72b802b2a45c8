#include "tune.h"
#include "signals.h"

#include "../kernels/names.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Two right results differ by their roundings: each BF16 number is within 2^-9 of the truth, and so are probabilities and quantised
 * factors that went into it, in other orders of sums. A wrong one differs by whole tiles (relative L2) or elements (maximum). */
static const double most_l2 = 0x1p-6, most_difference = 0x1p-5;

enum { OUTPUTS = 4, DEADLINE = 120, FLUSH = 256 << 20 };

struct results {
    struct tensor y[OUTPUTS];
    int n;
};

/* One shape being measured: a table of one row makes the launches take the candidate. */
struct measuring {
    struct device *dev;
    struct tune_shape *s;
    struct op_call call;
    struct tuned_row row;
    struct tuned table;
    int used; /* the candidate was launched */
};

static void on_pick(void *user, enum op_id op, const char *key, const void *shape, const char *kernel)
{
    struct measuring *m = user;
    m->used |= !strcmp(key, m->s->key) && !strcmp(kernel, m->row.kernel);
}

static void free_results(struct results *r)
{
    for (int i = 0; i < r->n; i++) free(r->y[i].ptr);
    r->n = 0;
}

static enum klein_status read_results(struct measuring *m, struct results *r, struct klein_error *err)
{
    for (r->n = 0; r->n < OUTPUTS; r->n++) {
        TRY(op_call_read(&m->call, r->n, &r->y[r->n], err));
        if (!r->y[r->n].ptr) break;
    }
    return KLEIN_OK;
}

/* Runs the op once with that kernel; the outputs are those of this run. */
static enum klein_status run_with(struct measuring *m, const char *kernel, struct results *r,
                                  struct klein_error *err)
{
    m->row.kernel = kernel;
    m->used = 0;
    TRY(op_call_clear(&m->call, err));
    TRY(op_call_run(&m->call, err));
    TRY(m->dev->wait(m->dev, err));
    return read_results(m, r, err);
}

static double largest(struct tensor t)
{
    double most = 0;
    for (int r = 0; r < t.rows; r++)
        for (int c = 0; c < t.cols; c++) most = fmax(most, fabs((double)tensor_get(t, r, c)));
    return most;
}

void tune_compare(const struct tensor *mine, const struct tensor *truth, int n, const char *by,
                  char out[TUNE_TEXT])
{
    for (int i = 0; i < n; i++) {
        const double l2 = tensor_relative_l2(mine[i], truth[i]),
                     difference = tensor_max_difference(mine[i], truth[i]) / largest(truth[i]);
        if (l2 <= most_l2 && difference <= most_difference) continue;
        snprintf(out, TUNE_TEXT,
                 "WRONG: output %d is off %s's by %.2g (relative L2), %.2g of the largest element", i, by, l2,
                 difference);
        return;
    }
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static enum klein_status time_runs(struct device *dev, enum klein_status (*run)(void *, struct klein_error *),
                                   void *user, int repeat, void *flush, double *seconds,
                                   struct klein_error *err)
{
    for (int i = 0; i < repeat; i++) {
        if (flush) TRY(gpu_fill(gpu_of(dev), flush, (unsigned char)i, FLUSH, err));
        TRY(dev->mark(dev, 0, err));
        TRY(run(user, err));
        TRY(dev->mark(dev, 1, err));
        TRY(dev->wait(dev, err));
        seconds[i] = dev->between(dev, 0, 1);
    }
    return KLEIN_OK;
}

/* Filling the L2 also gives the host time to issue the run before the device gets to it. */
enum klein_status tune_time(struct device *dev, enum klein_status (*run)(void *, struct klein_error *),
                            void *user, int repeat, double *out, struct klein_error *err)
{
    struct klein_error none = {0};
    double seconds[100];
    void *flush = NULL;
    if (repeat > 100) repeat = 100;
    if (!gpu_of(dev)->cu->soft && gpu_alloc(gpu_of(dev), FLUSH, &flush, &none) != KLEIN_OK) flush = NULL;
    time_runs(dev, run, user, repeat, flush, seconds, err);
    gpu_free(gpu_of(dev), flush);
    if (err->status) return err->status;
    qsort(seconds, (size_t)repeat, sizeof *seconds, by_size);
    *out = (seconds[(repeat - 1) / 2] + seconds[repeat / 2]) / 2;
    return KLEIN_OK;
}

static enum klein_status run_call(void *call, struct klein_error *err)
{
    return op_call_run(call, err);
}

/* Whether the device may go on after such a failure of one kernel. */
static int goes_on(enum klein_status status)
{
    return status == KLEIN_E_UNSUPPORTED || status == KLEIN_E_NO_MEMORY;
}

/* truth is filled by the first, which is the rules' kernel. */
static enum klein_status measure_one(struct measuring *m, struct tune_candidate *c, int repeat,
                                     struct results *truth, struct klein_error *err)
{
    struct klein_error e = {0};
    struct results mine = {.n = 0}, *r = truth->n ? &mine : truth;
    run_with(m, c->kernel, r, &e);
    if (!e.status && !m->used)
        snprintf(c->excluded, TUNE_TEXT, "does not take the operands");
    else if (!e.status)
        tune_compare(r->y, truth->y, truth->n, m->s->built_in, c->excluded);
    free_results(&mine);
    if (!e.status && !c->excluded[0]) tune_time(m->dev, run_call, &m->call, repeat, &c->seconds, &e);
    if (!e.status) return KLEIN_OK;
    snprintf(c->excluded, TUNE_TEXT, "%.*s", TUNE_TEXT - 1, e.message);
    if (goes_on(e.status)) return KLEIN_OK;
    return fail(err, e.status, "%s: %s; klein tune --without %s goes on without it", m->s->key, e.message,
                c->kernel);
}

static const char *taker(const struct tune_shape *s, int i, int *takes)
{
    const char *name = NULL;
    *takes = 0;
    if (s->op == OP_linear && gemm_variant(i)) {
        name = gemm_variant(i)->name;
        *takes = gemm_takes(gemm_variant(i), &s->shape.gemm);
    } else if (s->op == OP_attention && attention_variant(i)) {
        name = attention_variant(i)->name;
        *takes = attention_takes(attention_variant(i), &s->shape.attention);
    } else if (s->op == OP_conv && conv_variant(i)) {
        name = conv_variant(i)->name;
        *takes = conv_takes(conv_variant(i), &s->shape.conv);
    }
    return name;
}

/* The rules' kernel first. */
static void list_candidates(struct tune_shape *s, const char *without)
{
    const char *name;
    int takes;
    s->candidate[0] = (struct tune_candidate){.kernel = s->built_in};
    s->candidates = 1;
    for (int i = 0; (name = taker(s, i, &takes)) && s->candidates < TUNE_CANDIDATES; i++)
        if (takes && strcmp(name, s->built_in) && !(without && names_have(without, name)))
            s->candidate[s->candidates++] = (struct tune_candidate){.kernel = name};
}

static enum klein_status measure_all(struct measuring *m, int repeat, struct klein_error *err)
{
    struct results truth = {.n = 0};
    for (int i = 0; i < m->s->candidates && !err->status; i++) {
        struct tune_candidate *c = &m->s->candidate[i];
        char what[TUNED_KEY + 80];
        snprintf(what, sizeof what, "%s, %s", m->s->key, c->kernel);
        if (signals_received()) fail(err, KLEIN_E_CANCELLED, "cancelled");
        if (!gpu_of(m->dev)->cu->soft) signals_deadline(DEADLINE, what);
        if (!err->status) measure_one(m, c, repeat, &truth, err);
        signals_deadline(0, "");
        if (i == 0 && c->excluded[0]) break; /* nothing to compare the others with */
    }
    free_results(&truth);
    return err->status;
}

enum klein_status tune_measure(struct device *dev, struct tune_shape *s, int repeat, const char *without,
                               struct klein_error *err)
{
    struct gpu *g = gpu_of(dev);
    struct measuring m = {.dev = dev, .s = s, .row = {.key = s->key}, .table = {.row = &m.row, .n = 1}};
    struct klein_error e = {0};
    list_candidates(s, without);
    if (op_call_open(&m.call, &s->c, DT_BF16, DT_BF16, dev, &e) != KLEIN_OK) {
        if (!goes_on(e.status)) return fail(err, e.status, "%s", e.message);
        snprintf(s->candidate[0].excluded, TUNE_TEXT, "%.*s", TUNE_TEXT - 1, e.message);
        return KLEIN_OK;
    }
    const struct tuned *before = g->tuned;
    g->tuned = &m.table;
    g->picked = on_pick;
    g->picked_user = &m;
    measure_all(&m, repeat, err);
    g->tuned = before;
    g->picked = NULL;
    op_call_free(&m.call);
    cuda_unplace((struct cuda_device *)dev);
    return err->status;
}

const struct tune_candidate *tune_best(const struct tune_shape *s)
{
    const struct tune_candidate *best = NULL;
    const double gain = 0.98; /* what the rules pick stays for less */
    for (int i = 0; i < s->candidates; i++) {
        const struct tune_candidate *c = &s->candidate[i];
        if (c->excluded[0] || !(c->seconds >= 0)) continue;
        if (!best || c->seconds < best->seconds * (best == s->candidate ? gain : 1)) best = c;
    }
    return best;
}
