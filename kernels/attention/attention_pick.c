#include "attention_pick.h"

#include "../device/args.h"

#include <stdio.h>
#include <string.h>

enum { SM80_128X48, SM80_64X64, WIDE_SM80, SIMPLE_BF16, SIMPLE_F32, VARIANTS };

static const struct attention_variant variants[VARIANTS] = {
    {"attention_sm80_128x48", 128, ATTENTION_SM80_THREADS, ATTENTION_SM80_128X48_SHARED},
    {"attention_sm80_64x64", 64, ATTENTION_SM80_THREADS, ATTENTION_SM80_64X64_SHARED},
    {"attention_wide_sm80", 64, ATTENTION_WIDE_SM80_THREADS, ATTENTION_WIDE_SM80_SHARED},
    {"attention_simple_bf16", ATTENTION_SIMPLE_THREADS / 32, ATTENTION_SIMPLE_THREADS,
     ATTENTION_SIMPLE_SHARED},
    {"attention_simple_f32", ATTENTION_SIMPLE_THREADS / 32, ATTENTION_SIMPLE_THREADS,
     ATTENTION_SIMPLE_SHARED},
};

const struct attention_variant *attention_variant(int i)
{
    return i >= 0 && i < VARIANTS ? &variants[i] : NULL;
}

int attention_blocks(const struct attention_variant *v, const struct attention_shape *s)
{
    return s->queries / v->rows + (s->queries % v->rows != 0);
}

int attention_takes(const struct attention_variant *v, const struct attention_shape *s)
{
    const int bf16 = s->act == DT_BF16, matrix = bf16 && s->aligned && s->arch >= 80;
    switch (v - variants) {
    case SM80_128X48:
    case SM80_64X64:
        return matrix && s->head_dim == 128;
    case WIDE_SM80:
        return matrix && s->head_dim % 64 == 0 && s->head_dim <= ATTENTION_WIDTH_MAX;
    case SIMPLE_BF16:
        return bf16 && s->head_dim <= ATTENTION_WIDTH_MAX;
    default:
        return s->act == DT_F32 && s->head_dim <= ATTENTION_WIDTH_MAX;
    }
}

/* 16 rows per warp read K and V from shared memory as fast as the tensor cores of sm_80, sm_90 and sm_100 can use them; 32 rows need
 * half of that. The GeForce and L40 chips have a half to a quarter of the tensor cores' rate and less shared memory: small tiles, of
 * which more fit. Large tiles need enough of them: two per multiprocessor run at a time. (Shared memory 128 bytes a cycle; bf16 FLOP
 * per cycle and multiprocessor: 2048 sm_80, 4096 sm_90, 8192 sm_100, 1024 or 512 the others.) */
static int prefers_large_tiles(const struct attention_shape *s)
{
    const int fast = s->arch == 80 || s->arch / 10 == 9 || s->arch / 10 == 10;
    return fast &&
           attention_blocks(&variants[SM80_128X48], s) * (int64_t)s->heads >= 2 * (int64_t)s->multiprocessors;
}

static const struct attention_variant *by_name(const char *name)
{
    for (int i = 0; i < VARIANTS; i++)
        if (!strcmp(variants[i].name, name)) return &variants[i];
    return NULL;
}

static enum klein_status refuse(const struct attention_shape *s, const char *what, struct klein_error *err)
{
    return fail(err, KLEIN_E_UNSUPPORTED, "attention: %s does not take %s, heads of %d, %s, sm_%d", what,
                dtype_name(s->act), s->head_dim,
                s->aligned ? "16-byte aligned rows" : "rows that are not 16-byte aligned", s->arch);
}

enum klein_status attention_pick(const struct attention_shape *s, const char *forced,
                                 const struct attention_variant **out, struct klein_error *err)
{
    *out = NULL;
    if (forced && *forced) {
        const struct attention_variant *v = by_name(forced);
        if (!v)
            return fail(err, KLEIN_E_INPUT, "KLEIN_ATTENTION=%s: no such kernel; one of %s %s %s %s %s",
                        forced, variants[0].name, variants[1].name, variants[2].name, variants[3].name,
                        variants[4].name);
        if (!attention_takes(v, s)) return refuse(s, forced, err);
        *out = v;
        return KLEIN_OK;
    }
    int first = prefers_large_tiles(s) ? SM80_128X48 : SM80_64X64; /* the others in order of speed */
    for (int i = first; i < VARIANTS; i++)
        if (attention_takes(&variants[i], s)) {
            *out = &variants[i];
            return KLEIN_OK;
        }
    return refuse(s, "no kernel", err);
}
