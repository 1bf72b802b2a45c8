#include "attention_launch.h"
#include "attention_pick.h"
#include "../group/exchange_launch.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

enum { GRID_Y_MAX = 65535 };

static int aligned(struct tensor t)
{
    return ((uintptr_t)t.ptr | (size_t)t.ld * dtype_size(t.dtype)) % 16 == 0;
}

/* What the kernels cannot represent. */
static enum klein_status check(const struct attention_args *a, struct klein_error *err)
{
    const struct tensor operands[] = {a->q, a->k, a->v, a->o};
    if (!(a->scale > 0) || !isfinite(a->scale))
        return fail(err, KLEIN_E_UNSUPPORTED, "attention: scale %g: it must be positive and finite",
                    (double)a->scale);
    if (a->heads > GRID_Y_MAX)
        return fail(err, KLEIN_E_UNSUPPORTED, "attention: %d heads: at most %d", a->heads, GRID_Y_MAX);
    for (int i = 0; i < 4; i++) {
        if (!operands[i].ptr)
            return fail(err, KLEIN_E_INTERNAL, "attention: operand %c is absent", "qkvo"[i]);
        if (operands[i].ld > INT_MAX)
            return fail(err, KLEIN_E_UNSUPPORTED, "attention: rows of %c are %lld elements apart: at most %d",
                        "qkvo"[i], (long long)operands[i].ld, INT_MAX);
    }
    return KLEIN_OK;
}

static enum klein_status launch(struct gpu *g, const struct attention_variant *v,
                                const struct attention_shape *s, const void *args, struct klein_error *err)
{
    const struct attention_cut cut = attention_cut(v, s);
    const unsigned blocks = v->halves ? (unsigned)(cut.whole + cut.halves) : (unsigned)attention_blocks(v, s);
    return gpu_launch(g,
                      &(struct launch){.kernel = v->name,
                                       .grid = {blocks, v->halves ? 1 : (unsigned)s->heads},
                                       .threads = v->threads,
                                       .shared = v->shared,
                                       .args = args,
                                       .dependent = 1},
                      err);
}

/* In boxes of 128 bytes by `box` rows. */
static enum klein_status map_rows(struct gpu *g, struct tensor t, uint32_t box, struct tensor_map *out,
                                  struct klein_error *err)
{
    return gpu_tensor_map(g,
                          &(struct tensor_box){.ptr = t.ptr,
                                               .dtype = t.dtype,
                                               .rank = 2,
                                               .dims = {(uint64_t)t.cols, (uint64_t)t.rows},
                                               .strides = {(uint64_t)t.ld * dtype_size(t.dtype)},
                                               .box = {128 / (uint32_t)dtype_size(t.dtype), box},
                                               .swizzle = 128},
                          out, err);
}

/* What is made here of o: all of it, or the columns of this device's heads. */
static struct tensor made_of(const struct attention_args *a)
{
    return a->to.size ? tensor_cols(a->o, a->to.rank * a->q.cols, a->q.cols) : a->o;
}

static enum klein_status launch_with_maps(struct gpu *g, const struct attention_variant *v,
                                          const struct attention_shape *s, const struct attention_args *a,
                                          struct klein_error *err)
{
    const struct tensor o = made_of(a);
    struct attention_sm90_args args = {.o_scale = o.scale,
                                       .ldo_scale = o.ldscale,
                                       .queries = s->queries,
                                       .keys = s->keys,
                                       .group = a->heads / a->kv_heads,
                                       .causal = a->causal,
                                       .whole = (int)attention_cut(v, s).whole,
                                       .key_count = a->keys.ptr,
                                       .scale_log2 = (float)(a->scale * M_LOG2E),
                                       .route = exchange_route_of(g, &a->to, o.cols),
                                       .to = o.ptr,
                                       .ldto = o.ld * (int64_t)dtype_size(o.dtype)};
    TRY(map_rows(g, a->q, ATTENTION_SM90_ROWS_BOX, &args.q, err));
    TRY(map_rows(g, a->k, ATTENTION_SM90_KEYS_BOX, &args.k, err));
    TRY(map_rows(g, a->v, ATTENTION_SM90_KEYS_BOX, &args.v, err));
    TRY(map_rows(g, o, ATTENTION_SM90_ROWS_BOX, &args.o, err));
    return launch(g, v, s, &args, err);
}

/* By KLEIN_ATTENTION, else by the tuned table, else by the rules. */
static enum klein_status choose(struct gpu *g, const struct attention_shape *s,
                                const struct attention_variant **v, struct klein_error *err)
{
    const char *forced = getenv("KLEIN_ATTENTION");
    char key[TUNED_KEY] = "";
    if (g->tuned || g->picked) attention_key(s, key);
    *v = forced && *forced ? NULL : attention_named(s, tuned_kernel(g->tuned, key));
    if (!*v) TRY(attention_pick(s, forced, v, err));
    if (g->picked) g->picked(g->picked_user, OP_attention, key, s, (*v)->name);
    return KLEIN_OK;
}

enum klein_status attention_launch(struct gpu *g, const struct attention_args *a, struct klein_error *err)
{
    TRY(check(a, err));
    const struct attention_shape shape = {
        .arch = g->arch,
        .multiprocessors = g->multiprocessors,
        .act = a->q.dtype,
        .heads = a->heads,
        .queries = a->q.rows,
        .keys = a->k.rows,
        .head_dim = a->head_dim,
        .e4m3 = a->o.dtype == DT_F8E4M3,
        .aligned = aligned(a->q) && aligned(a->k) && aligned(a->v) && aligned(made_of(a)),
    };
    const struct attention_variant *v;
    TRY(choose(g, &shape, &v, err));
    if (v->maps) return launch_with_maps(g, v, &shape, a, err);
    const struct flash_args args = {
        .o = made_of(a).ptr,
        .o_scale = made_of(a).scale,
        .ldo_scale = a->o.ldscale,
        .q = a->q.ptr,
        .k = a->k.ptr,
        .v = a->v.ptr,
        .ldo = (int)a->o.ld,
        .ldq = (int)a->q.ld,
        .ldk = (int)a->k.ld,
        .ldv = (int)a->v.ld,
        .queries = shape.queries,
        .keys = shape.keys,
        .key_count = a->keys.ptr,
        .head_dim = a->head_dim,
        .group = a->heads / a->kv_heads,
        .causal = a->causal,
        .scale_log2 = (float)(a->scale * M_LOG2E),
        .route = exchange_route_of(g, &a->to, a->q.cols),
    };
    return launch(g, v, &shape, &args, err);
}
