/* cache.h: what a context keeps for each shape of request that it has seen: the work as planned, and on a device with graphs the arena's
 * memory and the captured stages. The least recently used ones go when there are too many or their memory exceeds the budget. */
#ifndef KLEIN_CACHE_H
#define KLEIN_CACHE_H

#include "pipeline.h"

#define CACHE_PLANS 16

/* Requests of equal shape issue the same ops on the same addresses. */
struct shape {
    int width, height, steps, guided, embeds, whole, n_references;
    float guidance;
    int reference[KLEIN_MAX_REFERENCES][2]; /* fitted width, height */
};

struct cached_plan {
    struct shape shape;
    size_t bytes;
    double flops; /* of what a request does once, and of each image */
    double flops_per_image;
    void *memory; /* NULL between requests on devices without graphs */
    struct stages stages;
    uint64_t used; /* when, in requests */
};

struct plan_cache {
    size_t budget; /* bytes of arenas that are kept */
    struct cached_plan *plan[CACHE_PLANS];
    int plans;
    uint64_t requests, hits;
};

/* The plan of that shape; NULL: not there, cache_add one. */
struct cached_plan *cache_find(struct plan_cache *c, const struct shape *shape);
/* The same for who only looks: no request is counted. */
const struct cached_plan *cache_peek(const struct plan_cache *c, const struct shape *shape);
/* Takes a place for a plan, whose other fields the caller fills. */
struct cached_plan *cache_add(struct plan_cache *c, struct device *dev, const struct shape *shape,
                              struct klein_error *err);
/* Memory for the plan, freeing that of others if it has to be. KLEIN_E_NO_MEMORY with the sizes. */
enum klein_status cache_take_memory(struct plan_cache *c, struct device *dev, struct cached_plan *p,
                                    struct klein_error *err);
/* After the request: what is beyond the budget goes, on devices without graphs all memory. The device is idle. */
void cache_trim(struct plan_cache *c, struct device *dev);
/* Frees the memory of all plans but `keep`. */
void cache_release(struct plan_cache *c, struct device *dev, const struct cached_plan *keep);
/* Forgets what was captured: something that it addresses has moved. */
void cache_forget_graphs(struct plan_cache *c, struct device *dev);
size_t cache_bytes(const struct plan_cache *c); /* that plans hold */
void cache_close(struct plan_cache *c, struct device *dev);

#endif
