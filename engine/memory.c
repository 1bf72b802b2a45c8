#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

size_t memory_weights(const struct memory_need *n)
{
    return n->weights[PART_TRANSFORMER] + n->weights[PART_TEXT] + n->weights[PART_VAE];
}

size_t memory_whole(const struct memory_need *n)
{
    return memory_weights(n) + n->arena;
}

size_t memory_in_turns(const struct memory_need *n)
{
    size_t text = n->weights[PART_TEXT], others = n->weights[PART_TRANSFORMER] + n->weights[PART_VAE];
    return (text > others ? text : others) + n->arena;
}

void memory_of_weights(const struct checkpoint *c, enum dtype act, int fp8, struct memory_need *out)
{
    struct checkpoint_entry e;
    *out = (struct memory_need){0};
    for (int i = 0; checkpoint_entries(c, i, &e); i++) {
        int cols = 1;
        for (int d = e.ndim == 1 ? 0 : 1; d < e.ndim; d++) cols *= (int)e.shape[d];
        out->weights[e.part] +=
            gpu_weight_bytes(model_weight_kind(e.part, e.name, e.ndim, e.shape, fp8), act,
                             tensor_of(NULL, e.dtype, e.ndim == 1 ? 1 : (int)e.shape[0], cols));
    }
}

static struct memory_need need_of(const struct klein *k, int fp8, size_t arena)
{
    struct memory_need n;
    memory_of_weights(k->checkpoint, k->act, fp8, &n);
    n.arena = arena;
    return n;
}

/* "3.25 GiB" */
static struct size_text {
    char text[24];
} size_text(size_t bytes)
{
    struct size_text s;
    int gib = bytes >= (size_t)1 << 30;
    snprintf(s.text, sizeof s.text, "%.2f %s", (double)bytes / (gib ? 0x1p30 : 0x1p20), gib ? "GiB" : "MiB");
    return s;
}

/* What is taken, by part; when the model is opened nothing is known of working memory yet. */
static struct need_text {
    char text[160];
} need_text(const struct memory_need *n)
{
    struct need_text s;
    int used = snprintf(s.text, sizeof s.text, "text encoder %s, transformer %s, VAE %s",
                        size_text(n->weights[PART_TEXT]).text, size_text(n->weights[PART_TRANSFORMER]).text,
                        size_text(n->weights[PART_VAE]).text);
    if (n->arena)
        snprintf(s.text + used, sizeof s.text - (size_t)used, ", working memory %s",
                 size_text(n->arena).text);
    return s;
}

/* ---- what would fit --------------------------------------------------------------------------------------- */

struct offers {
    char text[512];
    size_t room;
};

__attribute__((format(printf, 3, 4))) static void offer(struct offers *o, size_t bytes, const char *format,
                                                        ...)
{
    size_t used = strlen(o->text);
    char what[128];
    va_list ap;
    if (bytes > o->room) return;
    va_start(ap, format);
    vsnprintf(what, sizeof what, format, ap);
    va_end(ap);
    snprintf(o->text + used, sizeof o->text - used, "%s%s (%s)", used ? ", " : "", what,
             size_text(bytes).text);
}

static size_t arena_of(const struct klein *k, const struct klein_request *request)
{
    struct plan plan;
    struct klein_error none = {0};
    if (plan_make(k->model->cfg, k->act, request, &plan, &none) != KLEIN_OK) return SIZE_MAX / 2;
    size_t bytes = plan.arena_bytes;
    plan_free(&plan);
    return bytes;
}

/* The least that a request of that arena takes; a request that is one graph cannot exchange weights. */
static size_t least(const struct klein *k, int fp8, size_t arena, int whole)
{
    const struct memory_need n = need_of(k, fp8, arena);
    return whole ? memory_whole(&n) : memory_in_turns(&n);
}

/* The largest size of about these proportions that fits, in sixteenths of the sides. */
static void offer_smaller(const struct klein *k, struct offers *o, const struct klein_request *request,
                          const struct shape *shape)
{
    struct klein_request q = *request;
    for (int i = 15; i; i--) {
        q.width = shape->width * i / 16 / VAE_SCALE * VAE_SCALE;
        q.height = shape->height * i / 16 / VAE_SCALE * VAE_SCALE;
        if (!q.width || !q.height) return;
        size_t bytes = least(k, k->fp8, arena_of(k, &q), shape->whole);
        if (bytes > o->room) continue;
        offer(o, bytes, "%dx%d", q.width, q.height);
        return;
    }
}

static enum klein_status refuse(const struct klein *k, size_t room, const struct klein_request *request,
                                const struct cached_plan *plan, struct klein_error *err)
{
    const struct shape *shape = &plan->shape;
    const struct memory_need n = need_of(k, k->fp8, plan->bytes);
    const size_t takes = least(k, k->fp8, plan->bytes, shape->whole);
    struct offers o = {.room = room};
    struct klein_request q = *request;
    q.width = shape->width;
    q.height = shape->height;
    q.n_references = 0;
    if (shape->whole)
        offer(&o, memory_in_turns(&n), "--graph stages, which frees the text encoder after use");
    if (!k->fp8 && k->device->e4m3 && k->act == DT_BF16)
        offer(&o, least(k, 1, plan->bytes, shape->whole), "--precision fp8");
    if (request->n_references) offer(&o, least(k, k->fp8, arena_of(k, &q), shape->whole), "no references");
    offer_smaller(k, &o, request, shape);
    return fail(err, KLEIN_E_NO_MEMORY,
                "%dx%d needs %s of the memory of %s, which has %s for it (%s%s); %s%s", shape->width,
                shape->height, size_text(takes).text, k->device->name, size_text(room).text,
                need_text(&n).text, shape->whole ? "" : "; the text encoder freed after use",
                *o.text ? "what would fit: " : "use --device cpu", o.text);
}

/* ---- what is there ------------------------------------------------------------------------------------------ */

enum klein_status memory_hold(struct klein *k, unsigned parts, struct klein_error *err)
{
    struct device *dev = k->device;
    unsigned leaving = k->placed & ~parts, coming = parts & ~k->placed;
    if (!dev->unplace || !(leaving | coming)) return KLEIN_OK;
    cache_forget_graphs(&k->plans, dev); /* they have the addresses of weights */
    for (int part = 0; part < PART_COUNT; part++)
        if (leaving >> part & 1) dev->unplace(dev, part);
    k->placed &= parts;
    for (int part = 0; part < PART_COUNT; part++) {
        if (!(coming >> part & 1)) continue;
        enum klein_status status =
            model_place_part(k->model, (enum checkpoint_part)part, dev, k->act, k->fp8, err);
        if (status != KLEIN_OK) {
            dev->unplace(dev, part);
            return status;
        }
        k->placed |= 1u << part;
    }
    return KLEIN_OK;
}

enum klein_status memory_open(struct klein *k, struct klein_error *err)
{
    struct device *dev = k->device;
    if (!dev->place)
        return k->fp8 ? model_place_part(k->model, PART_TRANSFORMER, dev, k->act, 1, err) : KLEIN_OK;
    const struct memory_need n = need_of(k, k->fp8, 0), fp8 = need_of(k, 1, 0);
    const size_t room = dev->available(dev);
    struct offers o = {.room = room};
    if (memory_whole(&n) <= room) return memory_hold(k, MEMORY_TEXT | MEMORY_OTHERS, err);
    if (memory_in_turns(&n) <= room) return KLEIN_OK;
    if (!k->fp8 && dev->e4m3 && k->act == DT_BF16) offer(&o, memory_in_turns(&fp8), "--precision fp8");
    return fail(
        err, KLEIN_E_NO_MEMORY,
        "the weights need %s of the memory of %s, of which %s are free (%s; the text encoder freed after "
        "use); %s%s",
        size_text(memory_in_turns(&n)).text, dev->name, size_text(room).text, need_text(&n).text,
        *o.text ? "what would fit: " : "use --device cpu", o.text);
}

enum klein_status memory_prepare(struct klein *k, const struct klein_request *request,
                                 struct cached_plan *plan, int *turns, struct klein_error *err)
{
    struct device *dev = k->device;
    const unsigned all = MEMORY_TEXT | MEMORY_OTHERS;
    *turns = 0;
    if (!dev->available || (k->placed == all && plan->memory)) return KLEIN_OK;
    const struct memory_need n = need_of(k, k->fp8, plan->bytes);
    size_t room = dev->available(dev) + cache_bytes(&k->plans);
    for (int part = 0; part < PART_COUNT; part++)
        if (k->placed >> part & 1) room += n.weights[part];
    if (memory_whole(&n) > room) {
        if (plan->shape.whole || memory_in_turns(&n) > room) return refuse(k, room, request, plan, err);
        *turns = 1;
    }
    if (k->placed == all && !*turns) return KLEIN_OK; /* cache_take_memory finds the arena its room */
    cache_release(&k->plans, dev, plan);
    return memory_hold(k, *turns ? k->placed & MEMORY_TEXT : all, err);
}
