#include "attention_pick.h"

#include "../device/args.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

enum {
    SM90_128X128,
    SM90_64X128,
    SM80_128X48,
    SM80_64X64,
    E4M3_SM89_128X48,
    E4M3_SM89_64X64,
    WIDE_SM80,
    SIMPLE_BF16,
    SIMPLE_F32,
    VARIANTS
};

static const struct attention_variant variants[VARIANTS] = {
    {"attention_sm90_128x128", 128, ATTENTION_SM90_128X128_THREADS, ATTENTION_SM90_128X128_SHARED, 1, 1},
    {"attention_sm90_64x128", 64, ATTENTION_SM90_64X128_THREADS, ATTENTION_SM90_64X128_SHARED, 1, 0},
    {"attention_sm80_128x48", 128, ATTENTION_SM80_THREADS, ATTENTION_SM80_128X48_SHARED, 0, 0},
    {"attention_sm80_64x64", 64, ATTENTION_SM80_THREADS, ATTENTION_SM80_64X64_SHARED, 0, 0},
    {"attention_e4m3_sm89_128x48", 128, ATTENTION_SM80_THREADS, ATTENTION_SM80_128X48_SHARED, 0, 0},
    {"attention_e4m3_sm89_64x64", 64, ATTENTION_SM80_THREADS, ATTENTION_SM80_64X64_SHARED, 0, 0},
    {"attention_wide_sm80", 64, ATTENTION_WIDE_SM80_THREADS, ATTENTION_WIDE_SM80_SHARED, 0, 0},
    {"attention_simple_bf16", ATTENTION_SIMPLE_THREADS / 32, ATTENTION_SIMPLE_THREADS,
     ATTENTION_SIMPLE_SHARED, 0, 0},
    {"attention_simple_f32", ATTENTION_SIMPLE_THREADS / 32, ATTENTION_SIMPLE_THREADS, ATTENTION_SIMPLE_SHARED,
     0, 0},
};

const struct attention_variant *attention_variant(int i)
{
    return i >= 0 && i < VARIANTS ? &variants[i] : NULL;
}

int attention_blocks(const struct attention_variant *v, const struct attention_shape *s)
{
    return s->queries / v->rows + (s->queries % v->rows != 0);
}

struct attention_cut attention_cut(const struct attention_variant *v, const struct attention_shape *s)
{
    const int64_t all = (int64_t)attention_blocks(v, s) * s->heads, rest = all % s->multiprocessors;
    if (!v->halves || 2 * rest > s->multiprocessors) return (struct attention_cut){all, 0};
    return (struct attention_cut){all - rest, 2 * rest};
}

int attention_takes(const struct attention_variant *v, const struct attention_shape *s)
{
    const int bf16 = s->act == DT_BF16, matrix = bf16 && s->aligned && s->arch >= 80,
              to_e4m3 = v == &variants[E4M3_SM89_128X48] || v == &variants[E4M3_SM89_64X64];
    if (s->e4m3 != to_e4m3 && !v->maps) return 0; /* those of sm_90 write both */
    switch (v - variants) {
    case SM90_128X128:
    case SM90_64X128:
        return matrix && s->head_dim == 128 && s->arch == 90 && /* sm_90a code runs on nothing else */
               (int64_t)attention_blocks(v, s) * s->heads < INT_MAX / 2;
    case SM80_128X48:
    case SM80_64X64:
        return matrix && s->head_dim == 128;
    case E4M3_SM89_128X48:
    case E4M3_SM89_64X64:
        return matrix && s->head_dim == 128 && s->arch >= 89;
    case WIDE_SM80:
        return matrix && s->head_dim % 64 == 0 && s->head_dim <= ATTENTION_WIDTH_MAX;
    case SIMPLE_BF16:
        return bf16 && s->head_dim <= ATTENTION_WIDTH_MAX;
    default:
        return s->act == DT_F32 && s->head_dim <= ATTENTION_WIDTH_MAX;
    }
}

static int64_t all_blocks(int variant, const struct attention_shape *s)
{
    return (int64_t)attention_blocks(&variants[variant], s) * s->heads;
}

/* 16 rows per warp read K and V from shared memory as fast as the tensor cores of sm_80, sm_90 and sm_100 can use them; 32 rows need
 * half of that. The GeForce and L40 chips have a half to a quarter of the tensor cores' rate and less shared memory: small tiles, of
 * which more fit. Large tiles need enough of them: two per multiprocessor run at a time. (Shared memory 128 bytes a cycle; bf16 FLOP
 * per cycle and multiprocessor: 2048 sm_80, 4096 sm_90, 8192 sm_100, 1024 or 512 the others.) */
static int prefers_large_tiles(const struct attention_shape *s)
{
    const int fast = s->arch == 80 || s->arch / 10 == 9 || s->arch / 10 == 10;
    return fast && all_blocks(SM80_128X48, s) >= 2 * (int64_t)s->multiprocessors;
}

/* Which variant of sm_90, by the time until the last multiprocessor is done. In units of which a block of 128 queries, alone on its
 * multiprocessor, takes 10: two blocks of 64 queries that share one take 12, a single one 8, as does half a block: nothing runs beside its
 * softmax. These are estimates from published speeds of both designs and their cycle counts, not measured. */
static int prefers_one_warpgroup(const struct attention_shape *s)
{
    const struct attention_cut large = attention_cut(&variants[SM90_128X128], s);
    const int64_t many = s->multiprocessors, small = all_blocks(SM90_64X128, s), rest = small % (2 * many);
    const int64_t time_large = 10 * ((large.whole + many - 1) / many) + (large.halves ? 8 : 0),
                  time_small = 12 * (small / (2 * many)) + (rest == 0      ? 0
                                                            : rest <= many ? 8
                                                                           : 12);
    return time_small < time_large;
}

static const struct attention_variant *by_name(const char *name)
{
    for (int i = 0; i < VARIANTS; i++)
        if (!strcmp(variants[i].name, name)) return &variants[i];
    return NULL;
}

static enum klein_status no_such_kernel(const char *name, struct klein_error *err)
{
    char names[VARIANTS * 32] = "";
    size_t n = 0;
    for (int i = 0; i < VARIANTS; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, " %s", variants[i].name);
    return fail(err, KLEIN_E_INPUT, "KLEIN_ATTENTION=%s: no such kernel; one of%s", name, names);
}

static enum klein_status refuse(const struct attention_shape *s, const char *what, struct klein_error *err)
{
    return fail(err, KLEIN_E_UNSUPPORTED, "attention: %s does not take %s%s, heads of %d, %s, sm_%d", what,
                dtype_name(s->act), s->e4m3 ? " to F8_E4M3" : "", s->head_dim,
                s->aligned ? "16-byte aligned rows" : "rows that are not 16-byte aligned", s->arch);
}

enum klein_status attention_pick(const struct attention_shape *s, const char *forced,
                                 const struct attention_variant **out, struct klein_error *err)
{
    *out = NULL;
    if (forced && *forced) {
        const struct attention_variant *v = by_name(forced);
        if (!v) return no_such_kernel(forced, err);
        if (!attention_takes(v, s)) return refuse(s, forced, err);
        *out = v;
        return KLEIN_OK;
    }
    const int large = prefers_large_tiles(s);
    const int by_speed[] = {prefers_one_warpgroup(s) ? SM90_64X128 : SM90_128X128,
                            large ? SM80_128X48 : SM80_64X64,
                            large ? E4M3_SM89_128X48 : E4M3_SM89_64X64,
                            WIDE_SM80,
                            SIMPLE_BF16,
                            SIMPLE_F32};
    for (size_t i = 0; i < sizeof by_speed / sizeof *by_speed; i++)
        if (attention_takes(&variants[by_speed[i]], s)) {
            *out = &variants[by_speed[i]];
            return KLEIN_OK;
        }
    return refuse(s, "no kernel", err);
}

const struct attention_variant *attention_named(const struct attention_shape *s, const char *name)
{
    const struct attention_variant *v = name ? by_name(name) : NULL;
    return v && attention_takes(v, s) ? v : NULL;
}

void attention_key(const struct attention_shape *s, char out[TUNED_KEY])
{
    snprintf(out, TUNED_KEY, "attention %s %d queries, %d keys, %d heads of %d%s%s", dtype_name(s->act),
             s->queries, s->keys, s->heads, s->head_dim, s->aligned ? "" : ", unaligned",
             s->e4m3 ? ", to e4m3" : "");
}

void attention_reason(const struct attention_shape *s, const struct attention_variant *v, char *out,
                      size_t size)
{
    switch (v - variants) {
    case SM90_128X128:
    case SM90_64X128:
        snprintf(out, size,
                 "%lld blocks and %lld halves on %d multiprocessors: done sooner than the other of sm_90, "
                 "estimated",
                 (long long)attention_cut(v, s).whole, (long long)attention_cut(v, s).halves,
                 s->multiprocessors);
        break;
    case SM80_128X48:
    case E4M3_SM89_128X48:
        snprintf(out, size,
                 "the tensor cores of sm_%d outrun reads of 16 rows per warp, and the blocks suffice",
                 s->arch);
        break;
    case SM80_64X64:
    case E4M3_SM89_64X64:
        snprintf(out, size, "large tiles would not pay on sm_%d, or leave multiprocessors idle", s->arch);
        break;
    default:
        snprintf(out, size, "nothing faster takes heads of %d in %s%s", s->head_dim, dtype_name(s->act),
                 s->aligned ? "" : ", unaligned");
    }
}
