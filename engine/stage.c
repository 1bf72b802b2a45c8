#include "stage.h"

/* Taps and observers look at each op, so with them the ops run as they come. */
static int has_graph(const struct run *r, const struct stage *stage)
{
    return stage && r->dev->graphs && !r->tap && !r->observe;
}

void stage_begin(struct run *r, struct stage *stage)
{
    if (!has_graph(r, stage) || r->walked++ || !run_ok(r)) return;
    if (r->poll && r->poll(r)) {
        fail(&r->err, KLEIN_E_CANCELLED, "cancelled");
        return;
    }
    if (stage->graph) {
        r->skip = 1;
    } else if (stage->ran++) {
        stage->flops = r->flops;
        r->capturing = r->dev->graphs->begin(r->dev, &r->err) == KLEIN_OK;
    }
}

void stage_end(struct run *r, struct stage *stage)
{
    if (!has_graph(r, stage) || --r->walked) return;
    r->skip = 0;
    if (r->capturing) {
        struct klein_error e = {0};
        double before = stage->flops;
        r->capturing = 0;
        stage->flops = r->flops - before; /* what was captured is counted when it is launched */
        r->flops = before;
        if (r->dev->graphs->end(r->dev, &stage->graph, &e) != KLEIN_OK && run_ok(r)) r->err = e;
        if (!run_ok(r)) stage_free(r->dev, stage);
    }
    if (!run_ok(r) || !stage->graph) return;
    r->dev->graphs->launch(r->dev, stage->graph, &r->err);
    r->flops += stage->flops;
}

void stage_free(struct device *dev, struct stage *stage)
{
    if (stage->graph) dev->graphs->free(dev, stage->graph);
    *stage = (struct stage){0};
}
