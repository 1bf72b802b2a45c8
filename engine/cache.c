#include "cache.h"

#include <stdlib.h>
#include <string.h>

static void release_memory(struct device *dev, struct cached_plan *p)
{
    if (!p->memory) return;
    stages_free(dev, &p->stages);
    dev->free(dev, p->memory, p->bytes);
    p->memory = NULL;
}

static void drop(struct plan_cache *c, struct device *dev, int i)
{
    release_memory(dev, c->plan[i]);
    free(c->plan[i]);
    c->plan[i] = c->plan[--c->plans];
}

/* The plan that was not used for longest among those but `keep` (with memory only: that hold some); -1: none. */
static int oldest(const struct plan_cache *c, const struct cached_plan *keep, int with_memory)
{
    int found = -1;
    for (int i = 0; i < c->plans; i++)
        if (c->plan[i] != keep && (!with_memory || c->plan[i]->memory) &&
            (found < 0 || c->plan[i]->used < c->plan[found]->used))
            found = i;
    return found;
}

const struct cached_plan *cache_peek(const struct plan_cache *c, const struct shape *shape)
{
    for (int i = 0; i < c->plans; i++)
        if (!memcmp(&c->plan[i]->shape, shape, sizeof *shape)) return c->plan[i];
    return NULL;
}

struct cached_plan *cache_find(struct plan_cache *c, const struct shape *shape)
{
    c->requests++;
    for (int i = 0; i < c->plans; i++)
        if (!memcmp(&c->plan[i]->shape, shape, sizeof *shape)) {
            c->hits++;
            c->plan[i]->used = c->requests;
            return c->plan[i];
        }
    return NULL;
}

struct cached_plan *cache_add(struct plan_cache *c, struct device *dev, const struct shape *shape,
                              struct klein_error *err)
{
    struct cached_plan *p = calloc(1, sizeof *p);
    if (!p) {
        fail(err, KLEIN_E_NO_MEMORY, "no memory for a plan");
        return NULL;
    }
    if (c->plans == CACHE_PLANS) drop(c, dev, oldest(c, NULL, 0));
    p->shape = *shape;
    p->stages.whole = shape->whole;
    p->used = c->requests;
    return c->plan[c->plans++] = p;
}

enum klein_status cache_take_memory(struct plan_cache *c, struct device *dev, struct cached_plan *p,
                                    struct klein_error *err)
{
    while (!p->memory && !(p->memory = dev->alloc(dev, p->bytes))) {
        int other = oldest(c, p, 1);
        if (other < 0)
            return fail(
                err, KLEIN_E_NO_MEMORY,
                "%dx%d needs %.2f GiB of working memory, which %s does not have; try a smaller size or "
                "fewer references",
                p->shape.width, p->shape.height, (double)p->bytes / 0x1p30, dev->name);
        release_memory(dev, c->plan[other]);
    }
    return KLEIN_OK;
}

size_t cache_bytes(const struct plan_cache *c)
{
    size_t held = 0;
    for (int i = 0; i < c->plans; i++) held += c->plan[i]->memory ? c->plan[i]->bytes : 0;
    return held;
}

void cache_release(struct plan_cache *c, struct device *dev, const struct cached_plan *keep)
{
    for (int i = 0; i < c->plans; i++)
        if (c->plan[i] != keep) release_memory(dev, c->plan[i]);
}

void cache_forget_graphs(struct plan_cache *c, struct device *dev)
{
    for (int i = 0; i < c->plans; i++) stages_free(dev, &c->plan[i]->stages);
}

void cache_trim(struct plan_cache *c, struct device *dev)
{
    if (!dev->graphs) {
        for (int i = 0; i < c->plans; i++) release_memory(dev, c->plan[i]);
        return;
    }
    size_t held = cache_bytes(c);
    for (int i; held > c->budget && (i = oldest(c, NULL, 1)) >= 0;) {
        held -= c->plan[i]->bytes;
        release_memory(dev, c->plan[i]);
    }
}

void cache_close(struct plan_cache *c, struct device *dev)
{
    while (c->plans) drop(c, dev, 0);
}
