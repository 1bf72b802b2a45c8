/* products.h: products of op linear as the matrix kernels take them (linear_kernel_args): operands between guard zones, and what the result
 * is in f64 and by a naive evaluation in f32, with naive indexing and nothing of the kernels' code. */
#ifndef KLEIN_TESTS_SOFT_PRODUCTS_H
#define KLEIN_TESTS_SOFT_PRODUCTS_H

#include "fixture.h"

/* ---- products ----------------------------------------------------------------------------------------------------------- */

enum { BIAS = 1, GATE = 2, IN_PLACE = 4, F32 = 8, HALF = 16, E4M3 = 32, SCALE_GROUPS = 64 | E4M3 };
/* Each row of x has a single 1, at the k of hot_k; element [n, k] of the weights is a digit of `code`, so that the digits of an element of y
 * say from which n and k it came. Scales are powers of two, so that all is exact in bf16 and e4m3. */
enum { CODED = 128, DIGITS = 4, DIGIT_SHIFT = 8 }; /* fewer than 16^4 weights */
#define CODED_DIGIT(i) (CODED | (i) << DIGIT_SHIFT)
enum {
    PLAIN = LINEAR_SEGMENT_PLAIN,
    SILU = LINEAR_SEGMENT_SILU,
    RESIDUAL = LINEAR_SEGMENT_RESIDUAL,
    SWIGLU = LINEAR_SEGMENT_SWIGLU,
    HEADS = LINEAR_SEGMENT_NORM_ROPE
};
enum {
    HEAD = 128,
    SEGMENTS = LINEAR_SEGMENTS,
    GROUPS = LINEAR_GROUPS,
    PAD = 8 /* columns between segments */
};

struct shape {
    const char *name;
    int m, k, split;
    int kind[SEGMENTS], cols[SEGMENTS]; /* cols 0: no more segments */
    int options, gap;
};

/* A matrix, on the host and on the device, between guard zones; its rows are 16-byte aligned, gaps between them are NaN. */
enum { GUARD = 256 };
struct operand {
    enum dtype type;
    int rows, cols, ld;
    float *values; /* NULL: output */
    char *image, *memory;
    size_t bytes;
};

enum vector { W_SCALE, UP_SCALE, BIASES, GATES, NORM, VECTORS };
struct product {
    const struct shape *s;
    int segments, from[SEGMENTS], cols; /* first column of each segment in y; columns of y, with pads */
    struct operand x, y, residual, x_scale, cos, sin;
    struct operand w[SEGMENTS][GROUPS], up[SEGMENTS][GROUPS], vector[SEGMENTS][GROUPS][VECTORS];
    double *truth, *naive;
    uint64_t numbers; /* drawn so far */
};

typedef float draw_fn(uint64_t i, const struct shape *s);

static inline float draw_one(uint64_t i, const struct shape *s)
{
    return number(i);
}

static inline float draw_weight(uint64_t i, const struct shape *s)
{
    return number(i) * 3 / sqrtf((float)s->k);
}

static inline float draw_near_one(uint64_t i, const struct shape *s)
{
    return 1 + 0.3f * number(i);
}

static inline float draw_cos(uint64_t i, const struct shape *s)
{
    return cosf(3 * number(i / 2 * 2));
}

static inline float draw_byte(uint64_t i, const struct shape *s) /* e4m3 of a quarter to four */
{
    const float f = number(i);
    return f32_from_f8e4m3((uint8_t)((f < 0 ? 0x80 : 0) | (0x28 + (int)(fabsf(f) * 31.9f))));
}

/* Of each row another one, so that it names the row: k is no less than m and not a multiple of 17. */
static inline int hot_k(const struct shape *s, int row)
{
    return (int)((17 * (int64_t)row + 5) % s->k);
}

/* x is the first that is drawn, so i counts its elements. */
static inline float draw_hot(uint64_t i, const struct shape *s)
{
    return (int)(i % (uint64_t)s->k) == hot_k(s, (int)(i / (uint64_t)s->k));
}

/* Element k of the n-th row of all weights, which are drawn one after the other from 0 on. */
static inline uint64_t code(uint64_t n, int k, const struct shape *s)
{
    return n * (uint64_t)s->k + (uint64_t)k;
}

static inline float draw_digit(uint64_t i, const struct shape *s)
{
    return (float)(i >> 4 * (s->options >> DIGIT_SHIFT) & 15);
}

/* The gate of SwiGLU, whose silu it is too. */
enum { CODED_GATE = 32 };
static inline float draw_gate(uint64_t i, const struct shape *s)
{
    return CODED_GATE;
}

static inline float draw_power(uint64_t i, const struct shape *s)
{
    return ldexpf(1, (int)(i % 3));
}

static inline void store_value(char *p, enum dtype type, float f)
{
    if (type != DT_F8E4M3) {
        f32_store(p, type, 0, f);
        return;
    }
    int b = 0;
    while (f32_from_f8e4m3((uint8_t)b) != f) b++;
    *p = (char)b;
}

static inline struct operand make(struct product *p, enum dtype type, int rows, int cols, draw_fn *draw)
{
    const int size = (int)dtype_size(type), vector = 16 / size;
    struct operand o = {.type = type, .rows = rows, .cols = cols, .ld = cols};
    if (rows > 1) o.ld = (cols + vector - 1) / vector * vector + p->s->gap * vector;
    o.bytes = 2 * GUARD + (size_t)rows * (size_t)o.ld * (size_t)size;
    o.image = malloc(o.bytes);
    cr_assert(o.image);
    memset(o.image, 0xff, o.bytes);
    if (!draw) return o;
    o.values = malloc((size_t)rows * (size_t)cols * sizeof *o.values);
    cr_assert(o.values);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            char *at = o.image + GUARD + ((size_t)r * (size_t)o.ld + (size_t)c) * (size_t)size;
            store_value(at, type, draw(p->numbers++, p->s));
            o.values[(size_t)r * (size_t)cols + (size_t)c] =
                type == DT_F8E4M3 ? f32_from_f8e4m3((uint8_t)*at) : f32_load(at, type, 0);
        }
    return o;
}

static inline void make_weights(struct product *p, int i, int g, enum dtype type, draw_fn *draw)
{
    const int kind = p->s->kind[i], cols = p->s->cols[i], options = p->s->options, k = p->s->k;
    struct operand *v = p->vector[i][g];
    draw_fn *draw_scale = options & CODED ? draw_power : draw_near_one;
    /* coded: column c of y has row g * cols + from + c of all weights */
    const uint64_t first = code((uint64_t)(g * p->cols + p->from[i]), 0, p->s);
    if (options & CODED) p->numbers = first;
    p->w[i][g] = make(p, type, cols, k, kind == SWIGLU && options & CODED ? draw_gate : draw);
    if (options & CODED) p->numbers = first;
    if (kind == SWIGLU) p->up[i][g] = make(p, type, cols, k, draw);
    if (options & E4M3) v[W_SCALE] = make(p, DT_F32, 1, cols, draw_scale);
    if (options & E4M3 && kind == SWIGLU) v[UP_SCALE] = make(p, DT_F32, 1, cols, draw_scale);
    if (options & BIAS) v[BIASES] = make(p, DT_F32, 1, cols, draw_one);
    if (options & GATE && kind == RESIDUAL) v[GATES] = make(p, DT_F32, 1, cols, draw_one);
    if (kind == HEADS) v[NORM] = make(p, DT_F32, 1, HEAD, draw_near_one);
}

static inline void fill_truth(const struct product *p, int single, double *out);

/* e4m3: rows of x_scale; one per 128 columns of x, or one for all. */
static inline int scale_rows(const struct shape *s)
{
    return (s->options & SCALE_GROUPS) == SCALE_GROUPS ? (s->k + 127) / 128 : 1;
}

static inline struct product *make_product(const struct shape *s)
{
    struct product *p = calloc(1, sizeof *p);
    cr_assert(p);
    p->s = s;
    for (; p->segments < SEGMENTS && s->cols[p->segments]; p->segments++) {
        p->from[p->segments] = p->cols;
        p->cols += s->cols[p->segments] + PAD;
    }
    const enum dtype type = s->options & E4M3 ? DT_F8E4M3 : DT_BF16, y = s->options & F32 ? DT_F32 : DT_BF16;
    const int coded = s->options & CODED;
    p->x = make(p, type, s->m, s->k, coded ? draw_hot : s->options & E4M3 ? draw_byte : draw_one);
    if (s->options & E4M3)
        p->x_scale = make(p, DT_F32, scale_rows(s), s->m, coded ? draw_power : draw_weight);
    p->y = make(p, y, s->m, p->cols, NULL);
    p->residual = make(p, y, s->m, p->cols, draw_one);
    p->cos = make(p, DT_F32, 1, s->m * HEAD / 2, draw_cos);
    p->sin = make(p, DT_F32, 1, s->m * HEAD / 2, draw_cos);
    for (int i = 0; i < p->segments; i++)
        for (int g = 0; g < (s->split ? GROUPS : 1); g++)
            make_weights(p, i, g, type, coded ? draw_digit : s->options & E4M3 ? draw_byte : draw_weight);
    const size_t count = (size_t)s->m * (size_t)p->cols;
    p->truth = calloc(count, sizeof(double));
    p->naive = calloc(count, sizeof(double));
    cr_assert(p->truth && p->naive);
    fill_truth(p, 0, p->truth);
    fill_truth(p, 1, p->naive);
    return p;
}

/* All operands of p, one after the other; NULL past the last. */
static inline struct operand *operand(struct product *p, int i)
{
    struct operand *const single[] = {&p->x, &p->y, &p->residual, &p->x_scale, &p->cos, &p->sin};
    enum { SINGLE = 6, PAIRS = SEGMENTS * GROUPS };
    if (i < SINGLE) return single[i];
    i -= SINGLE;
    if (i < PAIRS) return &p->w[0][0] + i;
    i -= PAIRS;
    if (i < PAIRS) return &p->up[0][0] + i;
    i -= PAIRS;
    return i < PAIRS * VECTORS ? &p->vector[0][0][0] + i : NULL;
}

static inline void free_product(struct product *p)
{
    struct operand *o;
    for (int i = 0; (o = operand(p, i)); i++) free(o->image), free(o->values);
    free(p->truth), free(p->naive);
    free(p);
}

/* ---- what they are ------------------------------------------------------------------------------------------------------- */

/* Every step of the naive evaluation is rounded to f32. */
static inline double step(double v, int single)
{
    return single ? (double)(float)v : v;
}

static inline double dot(const float *a, const float *b, int k, int single)
{
    double sum = 0;
    float simple = 0;
    if (single)
        for (int i = 0; i < k; i++) simple += a[i] * b[i];
    else
        for (int i = 0; i < k; i++) sum += (double)a[i] * b[i];
    return single ? simple : sum;
}

static inline double at(const struct operand *o, int row, int col)
{
    return o->values[(size_t)row * (size_t)o->cols + (size_t)col];
}

/* Row `row` of x times row `col` of w, with scales. */
static inline double product_of(const struct product *p, int row, const struct operand *w,
                                const struct operand *scale, int col, int single)
{
    const int k = p->s->k, groups = p->s->options & E4M3 ? scale_rows(p->s) : 0;
    const float *x = p->x.values + (size_t)row * (size_t)k, *y = w->values + (size_t)col * (size_t)k;
    if (!groups) return dot(x, y, k, single);
    double sum = 0;
    for (int g = 0; g < groups; g++) {
        const int from = g * 128, n = groups == 1 ? k : k - from < 128 ? k - from : 128;
        sum = step(sum + step(dot(x + from, y + from, n, single) * at(&p->x_scale, g, row), single), single);
    }
    return step(sum * at(scale, 0, col), single);
}

static inline double silu(double z, int single)
{
    return step(z / step(1 + step(exp(-z), single), single), single);
}

/* One head at z: norm and rotation. */
static inline void rotate(const struct product *p, int row, const struct operand *norm, int single, double *z)
{
    double squares = 0;
    for (int j = 0; j < HEAD; j++) squares = step(squares + step(z[j] * z[j], single), single);
    const double scale = step(1 / sqrt(squares / HEAD + (double)1e-6f), single);
    for (int j = 0; j < HEAD; j++) z[j] = step(step(z[j] * scale, single) * at(norm, 0, j), single);
    const int half = p->s->options & HALF;
    for (int j = 0; j < HEAD / 2; j++) {
        double *a = z + (half ? j : 2 * j), *b = z + (half ? j + HEAD / 2 : 2 * j + 1), first = *a;
        const double c = at(&p->cos, 0, row * HEAD / 2 + j), s = at(&p->sin, 0, row * HEAD / 2 + j);
        *a = step(step(first * c, single) - step(*b * s, single), single);
        *b = step(step(*b * c, single) + step(first * s, single), single);
    }
}

static inline double finish(const struct product *p, int row, int i, int g, int col, double z, int single)
{
    const struct operand *v = p->vector[i][g];
    if (v[BIASES].values) z = step(z + at(&v[BIASES], 0, col), single);
    if (p->s->kind[i] == SILU) z = silu(z, single);
    if (p->s->kind[i] == SWIGLU)
        z = step(silu(z, single) * product_of(p, row, &p->up[i][g], &v[UP_SCALE], col, single), single);
    if (p->s->kind[i] == RESIDUAL)
        z = step(at(&p->residual, row, p->from[i] + col) +
                     step(z * (v[GATES].values ? at(&v[GATES], 0, col) : 1), single),
                 single);
    return z;
}

static inline void fill_truth(const struct product *p, int single, double *out)
{
    for (int row = 0; row < p->s->m; row++)
        for (int i = 0; i < p->segments; i++) {
            const int g = p->s->split && row >= p->s->split, cols = p->s->cols[i];
            double *z = out + (size_t)row * (size_t)p->cols + p->from[i];
            for (int c = 0; c < cols; c++)
                z[c] = product_of(p, row, &p->w[i][g], &p->vector[i][g][W_SCALE], c, single);
            for (int c = 0; c < cols; c += HEAD)
                if (p->s->kind[i] == HEADS) rotate(p, row, &p->vector[i][g][NORM], single, z + c);
            for (int c = 0; c < cols; c++) {
                z[c] = finish(p, row, i, g, c, z[c], single);
                if (single && p->y.type == DT_BF16) z[c] = f32_from_bf16(bf16_from_f32((float)z[c]));
            }
        }
}

/* ---- running them -------------------------------------------------------------------------------------------------------- */

static inline void *device_of(const struct operand *o)
{
    return o->memory ? o->memory + GUARD : NULL;
}

static inline void upload(struct gpu *g, struct product *p)
{
    struct operand *o;
    for (int i = 0; (o = operand(p, i)); i++)
        if (o->image) o->memory = to_device(g, o->image, o->bytes);
}

static inline void release(struct gpu *g, struct product *p)
{
    struct operand *o;
    for (int i = 0; (o = operand(p, i)); i++) {
        if (o->memory) gpu_free(g, o->memory);
        o->memory = NULL;
    }
}

static inline const struct operand *output(const struct product *p)
{
    return p->s->options & IN_PLACE ? &p->residual : &p->y;
}

static inline struct linear_kernel_args args_of(const struct product *p)
{
    struct linear_kernel_args a = {.x = device_of(&p->x),
                                   .x_scale = device_of(&p->x_scale),
                                   .ldx = p->x.ld,
                                   .ldscale = scale_rows(p->s) > 1 ? p->x_scale.ld : 0,
                                   .m = p->s->m,
                                   .k = p->s->k,
                                   .split = p->s->split,
                                   .segments = p->segments,
                                   .cos = device_of(&p->cos),
                                   .sin = device_of(&p->sin),
                                   .half = (p->s->options & HALF) != 0,
                                   .eps = 1e-6f};
    for (int i = 0; i < p->segments; i++) {
        struct linear_segment *s = &a.segment[i];
        const size_t from = (size_t)p->from[i] * dtype_size(p->y.type);
        *s = (struct linear_segment){.kind = p->s->kind[i],
                                     .cols = p->s->cols[i],
                                     .y_type = p->s->options & F32 ? ELEMENT_F32 : ELEMENT_BF16,
                                     .ldy = output(p)->ld,
                                     .ldr = p->residual.ld,
                                     .y = (char *)device_of(output(p)) + from,
                                     .residual = (char *)device_of(&p->residual) + from};
        for (int g = 0; g < GROUPS; g++)
            s->group[g] = (struct linear_segment_weights){.w = device_of(&p->w[i][g]),
                                                          .up = device_of(&p->up[i][g]),
                                                          .w_scale = device_of(&p->vector[i][g][W_SCALE]),
                                                          .up_scale = device_of(&p->vector[i][g][UP_SCALE]),
                                                          .bias = device_of(&p->vector[i][g][BIASES]),
                                                          .gate = device_of(&p->vector[i][g][GATES]),
                                                          .norm = device_of(&p->vector[i][g][NORM]),
                                                          .ldw = p->w[i][g].ld,
                                                          .ldup = p->up[i][g].ld};
    }
    return a;
}

/* ---- judging what they made: images of y ---------------------------------------------------------------------------------- */

/* Whether column c of y belongs to a segment. */
static inline int inside(const struct product *p, int c)
{
    for (int i = 0; i < p->segments; i++)
        if (c >= p->from[i] && c < p->from[i] + p->s->cols[i]) return 1;
    return 0;
}

/* What does not belong to segments is as it was uploaded. */
static inline void check_untouched(const struct product *p, const char *now, const char *kernel)
{
    const struct operand *y = output(p);
    const size_t size = dtype_size(y->type);
    for (size_t b = 0; b < y->bytes; b++) {
        const size_t element = (b - GUARD) / size, row = element / (size_t)y->ld, c = element % (size_t)y->ld;
        if (b < GUARD || row >= (size_t)y->rows || !inside(p, (int)c))
            cr_assert(now[b] == y->image[b], "%s, %s: byte %zu of y has changed", kernel, p->s->name, b);
    }
}

static inline double value(const struct product *p, const char *y, int row, int col)
{
    return f32_load(y + GUARD, p->y.type, (size_t)row * (size_t)output(p)->ld + (size_t)col);
}

/* The rule of op_cases.h, for each segment. */
static inline void check_rule(const struct product *p, const char *y, const char *kernel)
{
    const double rounding = p->y.type == DT_BF16 ? 0x1p-9 : 0x1p-24;
    for (int i = 0; i < p->segments; i++) {
        double sum = 0, error = 0, naive = 0, most = 0, worst = 0, naive_worst = 0;
        for (int row = 0; row < p->s->m; row++)
            for (int c = p->from[i]; c < p->from[i] + p->s->cols[i]; c++) {
                const double t = p->truth[(size_t)row * (size_t)p->cols + (size_t)c],
                             n = fabs(p->naive[(size_t)row * (size_t)p->cols + (size_t)c] - t),
                             d = fabs(value(p, y, row, c) - t);
                cr_assert(isfinite(d), "%s, %s: y[%d, %d] is not a number", kernel, p->s->name, row, c);
                sum += t * t, error += d * d, naive += n * n;
                most = fmax(most, fabs(t)), worst = fmax(worst, d), naive_worst = fmax(naive_worst, n);
            }
        const double limit = fmax(2 * sqrt(naive), rounding * sqrt(sum)),
                     limit_worst = fmax(2 * naive_worst, rounding * most);
        cr_assert(sqrt(error) <= limit, "%s, %s, segment %d: relative L2 %.3g, limit %.3g", kernel,
                  p->s->name, i, sqrt(error / sum), limit / sqrt(sum));
        cr_assert(worst <= limit_worst, "%s, %s, segment %d: maximum error %.3g, limit %.3g", kernel,
                  p->s->name, i, worst, limit_worst);
    }
}

#endif
