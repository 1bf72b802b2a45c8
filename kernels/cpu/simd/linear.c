#include "amx.h"
#include "product.h"

#include "../dnn.h"

#include <omp.h>

/* A tile is at most TILE_M rows by TILE_N columns of the product (QKV: whole heads, about TILE_HEAD): its f32
 * accumulators stay in the second cache until the epilogue has read them. oneDNN reads the weights where they
 * are mapped and rearranges them itself, which costs it 3 % with 512 rows and more with fewer. */
enum { TILE_M = 512, TILE_N = 64, TILE_HEAD = 128, CHUNK = 4 * TILE_M, AHEAD = 8 };

/* In F32 and on AMX the products are ours (product.h, amx.h): weights are packed for each tile on the way from their dtype. AMX is so fast that tiles
 * must be wide, or the rows would not arrive in time. */
enum { TILE_AMX = 256 };

/* A run of weight rows that go to one output, in tiles of `step` columns; `pair`: rows from a SwiGLU's gate to
 * its up, or 0. */
struct segment {
    enum { TO_Y, TO_SWIGLU, TO_ROTATED, TO_PLAIN } kind;
    int first, count, step, pair;
    struct tensor y;
    int is_key;
};

struct plan {
    const struct linear_args *a;
    enum dtype act, type; /* type: of the operands as multiplied; BF16 or F32 */
    int amx;              /* on tiles of amx.h; x is packed then */
    struct segment segment[4];
    int segments, jobs; /* jobs: tiles in a row of tiles */
    int widest;         /* columns of the widest tile, gate and up counted both */
};

/* Floats from one row of a tile's accumulators to the next. Dense, because oneDNN is a fifth slower on spaced rows; products on AMX write whole pairs of
 * tiles from wherever a part of the weights begins, and rows a power of two apart would share a few sets of the cache. */
static int width(const struct plan *p, int n)
{
    return p->amx ? round_up(n, AMX_N) + AMX_N : round_up(n, VL);
}

static void add_segment(struct plan *p, struct segment s)
{
    p->segment[p->segments++] = s;
    p->jobs += ceil_div(s.count, s.step);
    int columns = width(p, s.step) * (s.pair ? 2 : 1);
    if (columns > p->widest) p->widest = columns;
}

static void make_plan(struct plan *p, const struct cpu_device *cpu, const struct linear_args *a)
{
    *p = (struct plan){.a = a, .act = linear_act(a)};
    p->type = p->act == DT_BF16 && cpu->products != PRODUCTS_F32 ? DT_BF16 : DT_F32;
    p->amx = p->type == DT_BF16 && cpu->products == PRODUCTS_AMX;
    int wide = p->amx ? TILE_AMX : TILE_N, least = p->amx ? TILE_AMX : TILE_HEAD;
    int half = p->amx ? TILE_AMX / 2 : TILE_N; /* of gate, and of up */
    int n = weight_rows(&a->group[0].w);
    if (a->epilogue == LINEAR_SWIGLU) {
        add_segment(p, (struct segment){TO_SWIGLU, 0, n / 2, half, n / 2, a->y, 0});
    } else if (a->epilogue == LINEAR_QKV) {
        int hd = a->qkv.head_dim, step = hd < least ? least / hd * hd : hd;
        int q = a->qkv.heads * hd, kv = a->qkv.kv_heads * hd, rest = n - q - 2 * kv;
        add_segment(p, (struct segment){TO_ROTATED, 0, q, step, 0, a->qkv.q, 0});
        add_segment(p, (struct segment){TO_ROTATED, q, kv, step, 0, a->qkv.k, 1});
        add_segment(p, (struct segment){TO_PLAIN, q + kv, kv, wide, 0, a->qkv.v, 0});
        if (rest)
            add_segment(p, (struct segment){TO_SWIGLU, q + 2 * kv, rest / 2, half, rest / 2, a->qkv.mlp, 0});
    } else {
        add_segment(p, (struct segment){TO_Y, 0, n, wide, 0, a->y, 0});
    }
}

/* Columns c.. of row i of y from accumulators: bias, SiLU or gated residual. */
static void store_y(const struct plan *p, int i, int c, int n, const float *acc)
{
    const struct linear_args *a = p->a;
    const struct linear_group *g = &a->group[split_group(a->split, i)];
    for (int j = 0; j < n; j += VL) {
        vf z = vload_f32(acc + j);
        if (g->bias.ptr) z += vget(g->bias.ptr, g->bias.dtype, c + j, c + n);
        if (a->epilogue == LINEAR_SILU) z = vsilu(z);
        if (a->epilogue == LINEAR_RESIDUAL) {
            if (g->gate.ptr) z *= vget(g->gate.ptr, DT_F32, c + j, c + n);
            z += vget(row_of(a->residual, i), a->residual.dtype, c + j, c + n);
        }
        vput(row_of(a->y, i), a->y.dtype, c + j, c + n, z);
    }
}

#if defined(__AVX512F__)
#define SWAP_PAIRS 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define TWICE      0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7
#elif defined(__AVX2__)
#define SWAP_PAIRS 1, 0, 3, 2, 5, 4, 7, 6
#define TWICE      0, 0, 1, 1, 2, 2, 3, 3
#else
#define SWAP_PAIRS 1, 0, 3, 2
#define TWICE      0, 0, 1, 1
#endif

/* VL / 2 table entries from j on, each twice. */
static inline vf twice(const float *table, int j, int n)
{
    vf v = vget(table, DT_F32, j, n);
    return __builtin_shufflevector(v, v, TWICE);
}

/* One head of row i: RMS norm, rotation. y is its place, acc its hd accumulators. */
static void store_head(const struct plan *p, int i, struct tensor norm, char *y, const float *acc)
{
    const struct linear_args *a = p->a;
    int hd = a->qkv.head_dim, half = hd / 2;
    const float *cosine = row_of(a->qkv.cos, i), *sine = row_of(a->qkv.sin, i);
    vf squares = {0};
    for (int d = 0; d < hd; d += VL) {
        vf z = vget(acc, DT_F32, d, hd);
        squares += z * z;
    }
    float scale = 1 / sqrtf(vsum(squares) / (float)hd + a->qkv.eps);
    if (a->qkv.pairs == ROPE_HALF) {
        for (int j = 0; j < half; j += VL) {
            vf x = vget(acc, DT_F32, j, half) * scale * vget(norm.ptr, norm.dtype, j, half);
            vf z = vget(acc + half, DT_F32, j, half) * scale *
                   vget((char *)norm.ptr + (size_t)half * dtype_size(norm.dtype), norm.dtype, j, half);
            vf c = vget(cosine, DT_F32, j, half), s = vget(sine, DT_F32, j, half);
            vput(y, p->act, j, half, x * c - z * s);
            vput(y + (size_t)half * dtype_size(p->act), p->act, j, half, z * c + x * s);
        }
        return;
    }
    static const float signs[] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    vf sign = vload_f32(signs);
    for (int d = 0; d < hd; d += VL) {
        vf x = vget(acc, DT_F32, d, hd) * scale * vget(norm.ptr, norm.dtype, d, hd);
        vf other = __builtin_shufflevector(x, x, SWAP_PAIRS) * sign;
        vput(y, p->act, d, hd, x * twice(cosine, d / 2, half) + other * twice(sine, d / 2, half));
    }
}

/* Row i of a tile: columns c .. c + n of the segment. `up`: the other half of a SwiGLU. */
static void store_row(const struct plan *p, const struct segment *s, int i, int c, int n, const float *acc,
                      const float *up)
{
    const struct linear_group *g = &p->a->group[split_group(p->a->split, i)];
    int hd = p->a->qkv.head_dim;
    switch (s->kind) {
    case TO_Y:
        store_y(p, i, c, n, acc);
        break;
    case TO_SWIGLU:
        for (int j = 0; j < n; j += VL)
            vput(row_of(s->y, i), s->y.dtype, c + j, c + n, vsilu(vload_f32(acc + j)) * vload_f32(up + j));
        break;
    case TO_ROTATED:
        for (int h = 0; h < n; h += hd)
            store_head(p, i, s->is_key ? g->k_norm : g->q_norm, tensor_at(s->y, i, c + h), acc + h);
        break;
    case TO_PLAIN:
        for (int j = 0; j < n; j += VL) vput(row_of(s->y, i), s->y.dtype, c + j, c + n, vload_f32(acc + j));
        break;
    }
}

static void dequantise(void *to, enum dtype type, const uint8_t *from, float scale, int n)
{
    for (int i = 0; i < n; i++) f32_store(to, type, (size_t)i, f32_from_f8e4m3(from[i]) * scale);
}

/* --- products --- */

/* Rows of x as amx.h packs them: a tile's rows are one left operand after another, each of AMX_BLOCK elements. Row i of the tile, a multiple of AMX_M. */
static void pack_x(bf16 *tile, struct tensor x, int i)
{
    int rows = round_up(x.rows, AMX_M);
    for (int from = 0; from < x.cols; from += AMX_BLOCK) {
        int k = min_int(AMX_BLOCK, x.cols - from);
        bf16 *block = tile + (size_t)rows * (size_t)from;
        ISA(amx_left)
        (block + (size_t)i * (size_t)round_up(k, AMX_K), tensor_rows(x, i, min_int(AMX_M, x.rows - i)), from,
         k);
    }
}

static void multiply_amx(struct tensor x, struct tensor b, float *acc, int ldc, bf16 *panel)
{
    int tiles = ceil_div(x.rows, AMX_M), slivers = ceil_div(b.rows, AMX_N);
    size_t line = (size_t)(tiles * AMX_M) * sizeof(bf16); /* bytes of x per element of k */
    for (int from = 0; from < b.cols; from += AMX_BLOCK) {
        int k = min_int(AMX_BLOCK, b.cols - from), steps = ceil_div(k, AMX_K), next = from + k;
        const char *block = (const char *)x.ptr + line * (size_t)from, *left[TILE_M / AMX_M];
        for (int i = 0; i < tiles; i++) left[i] = block + (size_t)(i * steps) * AMX_TILE;
        for (int s = 0; s < slivers; s++) {
            struct tensor here = tensor_rows(b, s * AMX_N, min_int(AMX_N, b.rows - s * AMX_N));
            struct amx_product p = {.tiles = tiles,
                                    .parts = 1,
                                    .steps = steps,
                                    .left = left,
                                    .row = AMX_ROW,
                                    .step = AMX_TILE,
                                    .right = panel,
                                    .c = acc + s * AMX_N,
                                    .ldc = ldc,
                                    .accumulate = from > 0};
            if (s + 1 < slivers) /* the weights that are packed next */
                p.ahead[0] = (struct amx_ahead){
                    tensor_at(b, (s + 1) * AMX_N, from), (size_t)b.ld * dtype_size(b.dtype),
                    min_int(AMX_N, b.rows - (s + 1) * AMX_N), k * (int)dtype_size(b.dtype)};
            else if (next < b.cols)
                p.ahead[0] = (struct amx_ahead){tensor_at(b, 0, next), (size_t)b.ld * dtype_size(b.dtype),
                                                min_int(AMX_N, b.rows),
                                                min_int(AMX_BLOCK, b.cols - next) * (int)dtype_size(b.dtype)};
            if (next < b.cols) { /* and a piece of x's next elements */
                size_t bytes =
                    line * (size_t)round_up(min_int(AMX_BLOCK, b.cols - next), AMX_K) / (size_t)slivers;
                p.ahead[1] =
                    (struct amx_ahead){block + line * (size_t)k + bytes * (size_t)s, 0, 1, (int)bytes};
            }
            ISA(amx_transposed)(panel, here, from, k);
            ISA(amx_product)(&p);
        }
    }
}

/* acc = x times rows of one part of the weights. */
static enum klein_status multiply_part(const struct plan *p, struct cpu_device *cpu, struct tensor x,
                                       struct tensor b, float *acc, int ldc, char *panel)
{
    if (p->amx) {
        multiply_amx(x, b, acc, ldc, (bf16 *)panel);
        return KLEIN_OK;
    }
    if (p->type == DT_F32) {
        const float *row[TILE_M];
        for (int i = 0; i < x.rows; i++) row[i] = row_of(x, i);
        for (int from = 0; from < x.cols; from += PRODUCT_K) {
            int k = min_int(PRODUCT_K, x.cols - from);
            ISA(pack_rows)((float *)panel, b, from, k);
            ISA(product)
            (&(struct product){x.rows, b.rows, k, row, (size_t)from, (float *)panel, (size_t)k * PRODUCT_N,
                               acc, ldc, from > 0});
        }
        return KLEIN_OK;
    }
    if (b.dtype != p->type) {
        struct tensor converted = tensor_of(panel, p->type, b.rows, x.cols);
        for (int r = 0; r < b.rows; r++)
            if (b.scale)
                dequantise(row_of(converted, r), p->type, row_of(b, r), b.scale[r], x.cols);
            else
                ISA(convert)(row_of(converted, r), p->type, row_of(b, r), b.dtype, x.cols);
        b = converted;
    }
    return dnn_matmul(cpu->dnn, omp_get_thread_num(),
                      &(struct dnn_matmul){x.rows, b.rows, x.cols, x.ld, b.ld, ldc, p->type, .transposed = 1},
                      x.ptr, b.ptr, acc);
}

/* acc = x times weight rows [first, first + n), piece by piece where they lie in several parts. */
static enum klein_status multiply(const struct plan *p, struct cpu_device *cpu, struct tensor x,
                                  const struct weight *w, int first, int n, float *acc, char *panel)
{
    int ldc = width(p, n);
    for (int i = 0, base = 0; n > 0; base += w->part[i++].rows) {
        struct tensor part = w->part[i];
        int skip = first - base, here = min_int(part.rows - skip, n);
        if (here <= 0) continue;
        TRY(multiply_part(p, cpu, x, tensor_rows(part, skip, here), acc, ldc, panel));
        acc += here;
        first += here;
        n -= here;
    }
    return KLEIN_OK;
}

/* Asks for columns c .. c + n of a row that is going to be read or written: the tile's rows lie in different
 * pages, which the processor does not foresee. */
static inline void prefetch(struct tensor t, int row, int c, int n)
{
    const char *p = tensor_at(t, row, c), *end = p + (size_t)n * dtype_size(t.dtype);
    for (; p < end; p += 64) __builtin_prefetch(p, 1);
}

/* Tile `job` of rows [from, from + x.rows); x is those rows as multiplied. */
static enum klein_status tile(const struct plan *p, struct cpu_device *cpu, struct tensor x, int from,
                              int job, float *acc, char *panel)
{
    const struct segment *s = p->segment;
    while (job >= ceil_div(s->count, s->step)) job -= ceil_div(s->count, s->step), s++;
    int c = job * s->step, n = min_int(s->step, s->count - c);
    const struct weight *w = &p->a->group[split_group(p->a->split, from)].w;
    size_t ld = (size_t)width(p, n);
    float *up = acc + (size_t)round_up(x.rows, AMX_M) * ld;
    TRY(multiply(p, cpu, x, w, s->first + c, n, acc, panel));
    if (s->pair) TRY(multiply(p, cpu, x, w, s->first + s->pair + c, n, up, panel));
    for (int i = 0; i < x.rows; i++) {
        if (i + AHEAD < x.rows) {
            prefetch(s->y, from + i + AHEAD, c, n);
            if (p->a->epilogue == LINEAR_RESIDUAL) prefetch(p->a->residual, from + i + AHEAD, c, n);
        }
        store_row(p, s, from + i, c, n, acc + (size_t)i * ld, up + (size_t)i * ld);
    }
    return KLEIN_OK;
}

/* Rows [from, from + count) of one group, at most CHUNK. */
static enum klein_status rows(const struct plan *p, struct cpu_device *cpu, int from, int count,
                              char *converted, char *scratch, size_t per_thread)
{
    struct tensor given = tensor_rows(p->a->x, from, count), x = given;
    int tiles = ceil_div(count, TILE_M), height = ceil_div(count, tiles);
    if (p->amx) {
        height = round_up(height, AMX_M);
        x = tensor_of(converted, DT_BF16, count, round_up(given.cols, AMX_K));
    } else if (given.dtype != p->type) {
        x = tensor_of(converted, p->type, count, given.cols);
    }
    enum klein_status status = KLEIN_OK;
#pragma omp parallel num_threads(cpu->base.threads)
    {
        dnn_enter();
        float *acc = (float *)(scratch + (size_t)omp_get_thread_num() * per_thread);
        char *panel = (char *)acc + aligned((size_t)TILE_M * (size_t)p->widest * sizeof *acc);
        if (p->amx) {
            ISA(amx_begin)();
#pragma omp for
            for (int i = 0; i < ceil_div(count, AMX_M); i++) {
                int first = i * AMX_M / height * height, n = min_int(height, count - first);
                pack_x(row_of(x, first), tensor_rows(given, first, n), i * AMX_M - first);
            }
        } else if (x.ptr != given.ptr) {
#pragma omp for
            for (int i = 0; i < count; i++)
                ISA(convert)(row_of(x, i), x.dtype, row_of(given, i), given.dtype, x.cols);
        }
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < tiles * p->jobs; t++) {
            int first = t / p->jobs * height;
            struct tensor part = tensor_rows(x, first, min_int(height, count - first));
            enum klein_status s = tile(p, cpu, part, from + first, t % p->jobs, acc, panel);
            if (s != KLEIN_OK) {
#pragma omp atomic write
                status = s;
            }
        }
        if (p->amx) ISA(amx_end)();
    }
    return status;
}

enum klein_status ISA(cpu_linear)(struct device *dev, const struct linear_args *a, struct klein_error *err)
{
    CHECK(!a->qkv.to.size); /* works alone */
    const struct tensor operands[] = {a->x, a->y, a->qkv.q, a->qkv.k, a->qkv.v, a->qkv.mlp};
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++)
        if (operands[i].dtype == DT_F8E4M3) return cpu_refuses_e4m3("linear", err);
    struct cpu_device *cpu = cpu_of(dev);
    struct plan p;
    make_plan(&p, cpu, a);
    int m = a->x.rows, k = a->x.cols;
    size_t row = (size_t)k * dtype_size(p.type), panel = 0; /* panel: a tile's weights, packed or converted */
    if (p.amx) panel = aligned(AMX_N * AMX_BLOCK * sizeof(bf16));
    if (p.type == DT_F32) panel = aligned(packed_floats(PRODUCT_K, p.widest) * sizeof(float));
    for (int g = 0; g < (a->split ? 2 : 1); g++)
        if (!panel && a->group[g].w.part[0].dtype != p.type) panel = aligned((size_t)p.widest * row);
    size_t per_thread = aligned((size_t)TILE_M * (size_t)p.widest * sizeof(float)) + panel;
    size_t x_bytes = 0;
    if (p.amx)
        x_bytes =
            aligned((size_t)round_up(min_int(m, CHUNK), AMX_M) * (size_t)round_up(k, AMX_K) * sizeof(bf16));
    else if (a->x.dtype != p.type)
        x_bytes = aligned((size_t)min_int(m, CHUNK) * row);
    char *scratch;
    TRY(cpu_scratch(cpu, x_bytes + (size_t)dev->threads * per_thread, &scratch, err));
    for (int from = 0, to; from < m; from = to) {
        to = from < a->split ? min_int(a->split, from + CHUNK) : min_int(m, from + CHUNK);
        enum klein_status s = rows(&p, cpu, from, to - from, scratch, scratch + x_bytes, per_thread);
        if (s != KLEIN_OK)
            return fail(err, s, "linear: oneDNN failed on a tile of %dx%d @ %d", m, k,
                        weight_rows(&a->group[0].w));
    }
    return KLEIN_OK;
}
