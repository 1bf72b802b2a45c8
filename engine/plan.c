#include "context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct planner {
    struct plan *plan;
    enum klein_stage stage;
    int capacity;
};

static void on_event(void *user, enum klein_stage stage, int image, int step, int finished)
{
    ((struct planner *)user)->stage = stage;
}

static void on_op(struct run *r, enum op_id op, const struct op_cost *cost, double seconds)
{
    struct planner *p = r->hook_user;
    struct plan *plan = p->plan;
    struct plan_stage *stage = &plan->stage[p->stage];
    stage->flops += cost->flops;
    stage->bytes += cost->bytes;
    stage->ops++;
    for (int i = 0; i < plan->n_ops; i++) {
        struct plan_op *o = &plan->ops[i];
        if (o->stage == p->stage && o->op == op && !strcmp(o->cost.shape, cost->shape)) {
            o->count++;
            return;
        }
    }
    if (plan->n_ops == p->capacity) {
        int capacity = p->capacity ? 2 * p->capacity : 64;
        struct plan_op *ops = realloc(plan->ops, (size_t)capacity * sizeof *ops);
        if (!ops) {
            fail(&r->err, KLEIN_E_NO_MEMORY, "no memory for a plan of %d ops", capacity);
            return;
        }
        plan->ops = ops;
        p->capacity = capacity;
    }
    plan->ops[plan->n_ops++] = (struct plan_op){p->stage, op, *cost, 1};
}

/* Runs the job of `s` on the null device over `m`. */
static enum klein_status plan_run(const struct model *m, enum dtype act, const struct settled *s,
                                  struct share tokens, struct share passes, struct plan *out,
                                  struct klein_error *err)
{
    struct device *null;
    TRY(device_open("null", &(struct device_options){0}, &null, err));
    struct planner planner = {.plan = out};
    struct arena arena;
    arena_measure(&arena);
    struct run r = {.dev = null,
                    .arena = &arena,
                    .act = act,
                    .tokens = tokens,
                    .passes = passes,
                    .hook_user = &planner,
                    .observe = on_op};
    struct job job = settled_job(s);
    job.event = on_event;
    job.event_user = &planner;
    pipeline_run(&r, m, &job, NULL);
    device_close(null);
    out->arena_bytes = arena.peak;
    if (!run_ok(&r)) return fail(err, r.err.status, "%s", r.err.message);
    return KLEIN_OK;
}

static enum klein_status plan_model(const struct model_config *config, enum dtype act,
                                    const struct settled *s, struct share tokens, struct share passes,
                                    struct plan *out, struct klein_error *err)
{
    struct checkpoint *shapes = NULL;
    struct model *m = malloc(sizeof *m);
    enum klein_status status =
        m ? checkpoint_shapes(config, &shapes, err) : fail(err, KLEIN_E_NO_MEMORY, "no memory for a plan");
    if (status == KLEIN_OK) status = model_bind(m, shapes, err);
    if (status == KLEIN_OK) status = plan_run(m, act, s, tokens, passes, out, err);
    checkpoint_close(shapes);
    free(m);
    return status;
}

/* "1, 2, 3, 4, 6 or 8": how many devices can share so many heads. */
static struct divisors_text {
    char text[64];
} divisors_text(int heads)
{
    struct divisors_text s = {""};
    int last = GROUP_MAX, used = 0;
    while (heads % last) last--;
    for (int i = 1; i <= last; i++)
        if (heads % i == 0)
            used += snprintf(s.text + used, sizeof s.text - (size_t)used, "%s%d",
                             i == 1      ? ""
                             : i == last ? " or "
                                         : ", ",
                             i);
    return s;
}

enum klein_status share_check(const struct model_config *config, const struct settled *s, struct share tokens,
                              struct share passes, struct klein_error *err)
{
    int heads = config->dit.heads, n = share_size(tokens),
        target = s->width / VAE_SCALE * (s->height / VAE_SCALE);
    if (heads % n)
        return fail(err, KLEIN_E_USAGE,
                    "%s has %d attention heads, which %d devices cannot share evenly: ulysses takes %s",
                    config->name, heads, n, divisors_text(heads).text);
    if (target < n || config->text_length < n)
        return fail(err, KLEIN_E_USAGE, "%dx%d has %d tokens, too few for %d devices: take fewer, or replica",
                    s->width, s->height, target, n);
    if (share_size(passes) > 1 && !s->guided)
        return fail(
            err, KLEIN_E_USAGE,
            "cfg shares the two passes of guidance, and this request has one: a base model with guidance "
            "other than 1 has two; else take ulysses or replica");
    return KLEIN_OK;
}

enum klein_status plan_make(const struct model_config *config, enum dtype act,
                            const struct klein_request *request, struct plan *out, struct klein_error *err)
{
    return plan_make_share(config, act, request, (struct share){0}, (struct share){0}, out, err);
}

enum klein_status plan_make_share(const struct model_config *config, enum dtype act,
                                  const struct klein_request *request, struct share tokens,
                                  struct share passes, struct plan *out, struct klein_error *err)
{
    *out = (struct plan){0};
    struct settled s;
    TRY(settle(config, request, &s, err));
    enum klein_status status = share_check(config, &s, tokens, passes, err);
    if (status == KLEIN_OK) status = plan_model(config, act, &s, tokens, passes, out, err);
    out->width = s.width;
    out->height = s.height;
    out->steps = s.steps;
    out->images = s.images;
    settled_free(&s);
    if (status != KLEIN_OK) plan_free(out);
    return status;
}

static enum klein_status walk(const struct model *m, enum dtype act, const struct settled *s,
                              struct share tokens, struct device *dev, struct klein_error *err)
{
    struct arena arena;
    arena_measure(&arena);
    struct run r = {.dev = dev, .arena = &arena, .act = act, .tokens = tokens};
    const struct job job = settled_job(s);
    pipeline_run(&r, m, &job, NULL);
    return run_ok(&r) ? KLEIN_OK : fail(err, r.err.status, "%s", r.err.message);
}

enum klein_status plan_walk(const struct model_config *config, enum dtype act, int fp8,
                            const struct klein_request *request, struct share tokens, struct device *dev,
                            struct klein_error *err)
{
    struct checkpoint *shapes = NULL;
    struct settled s;
    TRY(settle(config, request, &s, err));
    struct model *m = malloc(sizeof *m);
    enum klein_status status = m ? share_check(config, &s, tokens, (struct share){0}, err)
                                 : fail(err, KLEIN_E_NO_MEMORY, "no memory for a plan");
    if (status == KLEIN_OK) status = checkpoint_shapes(config, &shapes, err);
    if (status == KLEIN_OK) status = model_place(m, shapes, dev, act, fp8, err);
    if (status == KLEIN_OK) status = walk(m, act, &s, tokens, dev, err);
    checkpoint_close(shapes);
    free(m);
    settled_free(&s);
    return status;
}

double plan_op_seconds(const struct plan_op *o, const struct gpu_spec *g, int e4m3)
{
    return predict_op(g, o->op, &o->cost, e4m3 && o->stage == KLEIN_STAGE_DENOISE);
}

void plan_free(struct plan *p)
{
    free(p->ops);
    *p = (struct plan){0};
}
