#include "exchange_launch.h"
#include "nccl_exchange.h"

#include <stdlib.h>
#include <string.h>

_Static_assert((int)GROUP_MAX == EXCHANGE_DEVICES && (int)EXCHANGE_OPERANDS == EXCHANGE_TENSORS &&
                   (int)EXCHANGE_PARTS == EXCHANGE_SPANS && GROUP_MAX <= 1 << (31 - EXCHANGE_ROW_BITS),
               "ops.h and args.h say the same");

static struct cuda_device *cuda_of(struct device *dev)
{
    return (struct cuda_device *)dev;
}

/* KLEIN_E_UNSUPPORTED: they do not reach each other's memory, or are to be taken for such. */
static enum klein_status reach_each_other(struct device *const *devices, int n, struct klein_error *err)
{
    const char *how = getenv("KLEIN_EXCHANGE");
    if (how && !strcmp(how, "nccl")) return fail(err, KLEIN_E_UNSUPPORTED, "KLEIN_EXCHANGE is nccl");
    if (how && *how)
        return fail(err, KLEIN_E_USAGE, "KLEIN_EXCHANGE is \"%s\": it can be nccl, or left out", how);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (i != j) TRY(gpu_enable_peer(cuda_of(devices[i])->gpu, cuda_of(devices[j])->gpu, err));
    return KLEIN_OK;
}

static enum klein_status join(struct device *const *devices, int n, struct klein_error *err)
{
    uint32_t *stop = NULL;
    struct klein_error why = {0};
    CHECK(n <= GROUP_MAX);
    if (reach_each_other(devices, n, &why) == KLEIN_E_UNSUPPORTED)
        return nccl_join(devices, n, why.message, err);
    if (why.status != KLEIN_OK) return fail(err, why.status, "%s", why.message);
    for (int i = 0; i < n; i++) {
        struct cuda_device *cuda = cuda_of(devices[i]);
        TRY(gpu_bind(cuda->gpu, err));
        TRY(gpu_alloc(cuda->gpu, sizeof(struct exchange_state), (void **)&cuda->group.state[i], err));
        cuda->gpu->exchange = cuda->group.state[i];
        if (i == 0) { /* all reach pinned memory, whoever took it */
            TRY(gpu_alloc_pinned(cuda->gpu, sizeof *stop, (void **)&stop, err));
            cuda->group.owns_stop = 1;
        }
        cuda->group.stop = stop;
        cuda->group.size = n;
        cuda->group.rank = i;
        __atomic_store_n(stop, 0, __ATOMIC_SEQ_CST);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) cuda_of(devices[i])->group.state[j] = cuda_of(devices[j])->group.state[j];
    return KLEIN_OK;
}

void exchange_leave(struct cuda_device *cuda)
{
    if (!cuda->group.size) return;
    if (cuda->group.nccl) {
        nccl_leave(cuda);
        return;
    }
    gpu_free(cuda->gpu, cuda->group.state[cuda->group.rank]);
    if (cuda->group.owns_stop) gpu_free_pinned(cuda->gpu, cuda->group.stop);
}

static enum klein_status begin(struct device *dev, void *const *arenas, struct klein_error *err)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct exchange_state s = {.stop = cuda->group.stop, .rank = cuda->group.rank};
    for (int i = 0; i < cuda->group.size; i++) {
        s.arena[i] = arenas[i];
        s.state[i] = cuda->group.state[i];
    }
    __atomic_store_n(cuda->group.stop, 0, __ATOMIC_SEQ_CST);
    TRY(gpu_upload(cuda->gpu, cuda->group.state[cuda->group.rank], &s, sizeof s, err));
    return gpu_sync(cuda->gpu, err);
}

static void stop(struct device *dev)
{
    __atomic_store_n(cuda_of(dev)->group.stop, 1, __ATOMIC_SEQ_CST);
}

/* Enough blocks to have a few vectors per thread on their way, few enough to leave room. */
static unsigned blocks_for(const struct exchange_kernel_args *k)
{
    int64_t most = 0;
    for (int i = 0; i < k->size; i++) {
        int64_t vectors = 0;
        for (int s = 0; s < EXCHANGE_SPANS; s++)
            vectors += (int64_t)k->way[i].span[s].rows * k->way[i].bytes / 16;
        most = vectors > most ? vectors : most;
    }
    int64_t blocks = (most + 4 * EXCHANGE_THREADS - 1) / (4 * EXCHANGE_THREADS);
    return blocks < 1 ? 1 : blocks > 32 ? 32 : (unsigned)blocks;
}

static enum klein_status rows(struct device *dev, const struct exchange_args *a, struct klein_error *err)
{
    struct cuda_device *cuda = cuda_of(dev);
    CHECK(a->size == cuda->group.size && a->rank == cuda->group.rank);
    struct exchange_kernel_args k = {.state = cuda->group.state[a->rank],
                                     .size = a->size,
                                     .rank = a->rank,
                                     .tensors = a->tensors,
                                     .ready = a->ready};
    gpu_op(cuda->gpu, "exchange", "");
    if (!a->tensors)
        return gpu_launch(
            cuda->gpu,
            &(struct launch){
                .kernel = "exchange_meet", .threads = EXCHANGE_MEET_THREADS, .args = &k, .dependent = 1},
            err);
    const int element = (int)dtype_size(a->from[0].dtype);
    for (int t = 0; t < a->tensors; t++) {
        k.tensor[t].from = a->from[t].ptr;
        k.tensor[t].to = a->to[t].ptr;
        k.tensor[t].ldfrom = a->from[t].ld * element;
        k.tensor[t].ldto = a->to[t].ld * element;
    }
    for (int i = 0; i < a->size; i++) {
        k.way[i].from_byte = a->way[i].from_col * element;
        k.way[i].to_byte = a->way[i].to_col * element;
        k.way[i].bytes = a->way[i].cols * element;
        for (int s = 0; s < EXCHANGE_SPANS; s++) {
            k.way[i].span[s].from = a->way[i].span[s].from;
            k.way[i].span[s].to = a->way[i].span[s].to;
            k.way[i].span[s].rows = a->way[i].span[s].rows;
        }
    }
    return gpu_launch(cuda->gpu,
                      &(struct launch){.kernel = "exchange_rows",
                                       .grid = {blocks_for(&k), (unsigned)(a->size * a->tensors)},
                                       .threads = EXCHANGE_THREADS,
                                       .args = &k,
                                       .dependent = 1},
                      err);
}

struct exchange_route exchange_route_of(const struct gpu *g, const struct exchange_to *to, int cols)
{
    if (!to->size) return (struct exchange_route){0};
    CHECK(g->exchange || g->dry);
    return (struct exchange_route){.state = g->exchange, .place = to->place.ptr, .cols = cols};
}

const struct device_exchange cuda_exchange = {
    .direct = 1, .join = join, .begin = begin, .rows = rows, .stop = stop};
