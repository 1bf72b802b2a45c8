#include "amx.h"
#include "product.h"

#include "../dnn.h"

#include <omp.h>

/* softmax(q k^T) v by blocks of queries and keys with the running maximum and sum of each query: scores exist for one block
 * only. A job is one block of queries of one head. Measured: oneDNN reaches 96 % of the peak with 512 queries, 92 % with 256,
 * 86 % with 128 (it rearranges the keys for each block of queries). */
enum { BLOCK_Q = 512, SMALLEST_Q = 128, BLOCK_K = 256, ENOUGH_JOBS = 64 };

/* Queries of a job: many, but so that there are jobs for many threads. A function of the shape only. */
static int block_of(const struct attention_args *a)
{
    int n = a->head_dim > 256 ? BLOCK_Q / 2 : BLOCK_Q; /* the output's rows stay in the second cache, too */
    while (n > SMALLEST_Q && ceil_div(a->q.rows, n) * a->heads < ENOUGH_JOBS) n /= 2;
    return n;
}

struct block {
    float score[BLOCK_Q * BLOCK_K]; /* then, row over row, the probabilities as multiplied: BF16 or F32 */
    float largest[BLOCK_Q], sum[BLOCK_Q];
    const float *row[BLOCK_Q]; /* F32: of the queries, then of the probabilities */
    float o[];                 /* [BLOCK_Q, hd] */
};

/* What the threads share. But for oneDNN, keys and values are packed beforehand, block after block of BLOCK_K keys, head after head: as F32 for
 * product.h, as BF16 for amx.h; for that the queries, too. */
struct job {
    struct cpu_device *cpu;
    struct attention_args a;
    enum products products;
    int keys, hd; /* hd: of a row of output; rounded up for AMX */
    char *packed_q, *packed_k, *packed_v;
    size_t block, head, query; /* bytes of a block of keys, of a head of keys and of queries */
};

static int amx(const struct job *t)
{
    return t->products == PRODUCTS_AMX;
}

/* Bytes of packed keys or values, and of queries. */
static size_t packed_bytes(struct job *t, size_t *queries)
{
    size_t as_rows = packed_floats(t->hd, BLOCK_K), as_columns = packed_floats(BLOCK_K, t->hd);
    t->block = (as_rows > as_columns ? as_rows : as_columns) * sizeof(float);
    if (amx(t)) t->block = (size_t)t->hd * BLOCK_K * sizeof(bf16);
    t->head = t->block * (size_t)ceil_div(t->keys, BLOCK_K);
    t->query = (size_t)round_up(t->a.q.rows, AMX_M) * (size_t)t->hd * sizeof(bf16);
    *queries = amx(t) ? aligned(t->query * (size_t)t->a.heads) : 0;
    return t->products == PRODUCTS_BF16 ? 0 : aligned(t->head * (size_t)t->a.kv_heads);
}

static void pack(const struct job *t)
{
    int blocks = ceil_div(t->keys, BLOCK_K), hd = t->a.head_dim;
#pragma omp parallel for num_threads(t->cpu->base.threads)
    for (int i = 0; i < t->a.kv_heads * blocks; i++) {
        int h = i / blocks, b = i % blocks, n = min_int(BLOCK_K, t->keys - b * BLOCK_K);
        char *k = t->packed_k + (size_t)h * t->head + (size_t)b * t->block,
             *v = t->packed_v + (k - t->packed_k);
        struct tensor keys = tensor_rows(t->a.k, b * BLOCK_K, n),
                      values = tensor_rows(t->a.v, b * BLOCK_K, n);
        if (!amx(t)) {
            ISA(pack_rows)((float *)k, keys, h * hd, hd);
            ISA(pack_columns)((float *)v, values, h * hd, hd);
            continue;
        }
        for (int i = 0; i < n; i += AMX_N, k += (size_t)t->hd * AMX_N * sizeof(bf16))
            ISA(amx_transposed)((bf16 *)k, tensor_rows(keys, i, min_int(AMX_N, n - i)), h * hd, hd);
        ISA(amx_right)((bf16 *)v, values, h * hd, hd);
    }
    if (!amx(t)) return;
    int tiles = ceil_div(t->a.q.rows, AMX_M);
#pragma omp parallel for num_threads(t->cpu->base.threads)
    for (int i = 0; i < t->a.heads * tiles; i++) {
        int h = i / tiles, row = i % tiles * AMX_M;
        char *q = t->packed_q + (size_t)h * t->query + (size_t)row * (size_t)t->hd * sizeof(bf16);
        ISA(amx_left)((bf16 *)q, tensor_rows(t->a.q, row, min_int(AMX_M, t->a.q.rows - row)), h * hd, hd);
    }
}

/* p for n rows and `wide` columns of the result. Row tiles of the left operand, whose first is `left`, lie `tile` bytes apart; each AMX_N columns of the
 * right one begin `columns` bytes after those before. */
static void multiply_amx(struct amx_product p, int n, int wide, const char *left, size_t tile, size_t columns)
{
    const char *tiles[BLOCK_Q / AMX_M];
    p.parts = 1;
    p.tiles = ceil_div(n, AMX_M);
    p.left = tiles;
    for (int i = 0; i < p.tiles; i++) tiles[i] = left + (size_t)i * tile;
    for (int j = 0; j < wide; j += AMX_N, p.c += AMX_N, p.right += columns / sizeof(bf16))
        ISA(amx_product)(&p);
}

/* Scores of queries [from, from + n) of head h and keys [j, j + width); ld: from one query's to the next's. */
static enum klein_status scores(const struct job *t, int h, int from, int n, int j, int width, int ld,
                                struct block *b)
{
    const struct attention_args *a = &t->a;
    int hd = a->head_dim, kv = h / (a->heads / a->kv_heads);
    if (t->products == PRODUCTS_BF16)
        return dnn_matmul(t->cpu->dnn, omp_get_thread_num(),
                          &(struct dnn_matmul){n, width, hd, a->q.ld, a->k.ld, ld, DT_BF16, .transposed = 1},
                          tensor_at(a->q, from, h * hd), tensor_at(a->k, j, kv * hd), b->score);
    const char *keys = t->packed_k + (size_t)kv * t->head + (size_t)(j / BLOCK_K) * t->block;
    if (amx(t)) {
        size_t row = (size_t)t->hd * sizeof(bf16);
        multiply_amx((struct amx_product){.steps = ceil_div(hd, AMX_K),
                                          .row = AMX_ROW,
                                          .step = AMX_TILE,
                                          .right = (const bf16 *)(const void *)keys,
                                          .c = b->score,
                                          .ldc = ld},
                     n, width, t->packed_q + (size_t)h * t->query + (size_t)from * row, AMX_M * row,
                     AMX_N * row);
        return KLEIN_OK;
    }
    for (int i = 0; i < n; i++) b->row[i] = (const float *)tensor_at(a->q, from + i, h * hd);
    ISA(product)
    (&(struct product){n, width, hd, b->row, 0, (const float *)(const void *)keys, (size_t)hd * PRODUCT_N,
                       b->score, ld, 0});
    return KLEIN_OK;
}

/* Output of n queries += probabilities times values [j, j + width). */
static enum klein_status add_values(const struct job *t, int h, int n, int j, int width, int ld,
                                    struct block *b)
{
    const struct attention_args *a = &t->a;
    int hd = a->head_dim, kv = h / (a->heads / a->kv_heads);
    if (t->products == PRODUCTS_BF16) /* BF16 probabilities lie where the scores were */
        return dnn_matmul(t->cpu->dnn, omp_get_thread_num(),
                          &(struct dnn_matmul){n, hd, width, 2 * ld, a->v.ld, hd, DT_BF16, .accumulate = 1},
                          b->score, tensor_at(a->v, j, kv * hd), b->o);
    const char *values = t->packed_v + (size_t)kv * t->head + (size_t)(j / BLOCK_K) * t->block;
    int packed = min_int(BLOCK_K, t->keys - j); /* causal blocks may be narrower */
    if (amx(t)) {
        size_t row = (size_t)ld * sizeof(float);
        multiply_amx((struct amx_product){.steps = ceil_div(width, AMX_K),
                                          .row = row,
                                          .step = AMX_ROW,
                                          .right = (const bf16 *)(const void *)values,
                                          .c = b->o,
                                          .ldc = t->hd,
                                          .accumulate = 1},
                     n, hd, (const char *)b->score, AMX_M * row,
                     (size_t)round_up(packed, AMX_K) * AMX_N * sizeof(bf16));
        return KLEIN_OK;
    }
    size_t sliver = (size_t)packed * PRODUCT_N;
    for (int i = 0; i < n; i++) b->row[i] = b->score + (size_t)i * (size_t)ld;
    ISA(product)
    (&(struct product){n, hd, width, b->row, 0, (const float *)(const void *)values, sliver, b->o, hd, 1});
    return KLEIN_OK;
}

/* Elements [j, j + VL) of a row of which only `seen` exist; the others are `rest`. */
static inline vf existing(vf v, int j, int seen, float rest)
{
    for (int i = seen - j; i < VL; i++) v[i] = rest;
    return v;
}

/* Row of scores -> probabilities against the new maximum; *largest, *sum and the output row so far are brought to it.
 * Columns [seen, width) do not exist for this query: probability 0. width: a multiple of VL. */
static void softmax_row(float *score, enum dtype type, int seen, int width, float scale, float *largest,
                        float *sum, float *o, int hd)
{
    vf top = vset(-INFINITY), total = {0};
    int whole = seen / VL * VL;
    for (int j = 0; j < whole; j += VL) top = vmax(vload_f32(score + j), top);
    if (whole < seen) top = vmax(existing(vload_f32(score + whole), whole, seen, -INFINITY), top);
    float new_top = fmaxf(*largest, vlargest(top) * scale);
    for (int j = 0; j < width; j += VL) {
        vf e = {0};
        if (j < seen)
            e = vexp(vrounded(vload_f32(score + j) * scale) - new_top); /* the largest gives exactly 1 */
        if (j + VL > seen) e = existing(e, j, seen < j ? j : seen, 0);
        total += e;
        vput(score, type, j, j + VL, e); /* behind what is still to be read */
    }
    if (new_top > *largest) {
        float shrink = *sum > 0 ? expf(*largest - new_top) : 0;
        *sum *= shrink;
        for (int d = 0; d < hd; d += VL) vput(o, DT_F32, d, hd, vget(o, DT_F32, d, hd) * shrink);
        *largest = new_top;
    }
    *sum += vsum(total);
}

/* Queries [from, from + n) of head h. */
static enum klein_status attend(const struct job *t, int h, int from, int n, struct block *b)
{
    const struct attention_args *a = &t->a;
    int hd = a->head_dim, keys = t->keys;
    enum dtype type = a->q.dtype;
    for (int i = 0; i < n; i++) b->largest[i] = -INFINITY, b->sum[i] = 0;
    memset(b->o, 0, (size_t)n * (size_t)t->hd * sizeof *b->o);
    int last = a->causal ? min_int(keys, from + n) : keys; /* no query of this block sees more */
    for (int j = 0; j < last; j += BLOCK_K) {
        int width = min_int(BLOCK_K, last - j), ld = round_up(width, amx(t) ? AMX_K : VL);
        TRY(scores(t, h, from, n, j, width, ld, b));
        for (int i = 0; i < n; i++) {
            int seen = a->causal ? min_int(width, from + i + 1 - j) : width;
            softmax_row(b->score + i * ld, type, seen < 0 ? 0 : seen, ld, a->scale, &b->largest[i],
                        &b->sum[i], b->o + i * t->hd, hd);
        }
        TRY(add_values(t, h, n, j, width, ld, b));
    }
    for (int i = 0; i < n; i++) {
        float *o = b->o + i * t->hd, inverse = 1 / b->sum[i];
        for (int d = 0; d < hd; d += VL)
            vput(tensor_at(a->o, from + i, h * hd), a->o.dtype, d, hd, vget(o, DT_F32, d, hd) * inverse);
    }
    return KLEIN_OK;
}

/* A copy of t as F32, in scratch. */
static struct tensor widened(struct cpu_device *cpu, struct tensor t, char **scratch)
{
    struct tensor wide = tensor_of(*scratch, DT_F32, t.rows, t.cols);
    *scratch += aligned((size_t)t.rows * (size_t)t.cols * sizeof(float));
#pragma omp parallel for num_threads(cpu->base.threads)
    for (int i = 0; i < t.rows; i++) ISA(convert)(row_of(wide, i), DT_F32, row_of(t, i), t.dtype, t.cols);
    return wide;
}

enum klein_status ISA(cpu_attention)(struct device *dev, const struct attention_args *args,
                                     struct klein_error *err)
{
    CHECK(!args->to.size); /* works alone */
    if (args->o.dtype == DT_F8E4M3) return cpu_refuses_e4m3("attention", err);
    struct job job = {.cpu = cpu_of(dev), .a = *args, .keys = attention_keys(args), .hd = args->head_dim};
    struct attention_args *a = &job.a;
    job.products = a->q.dtype == DT_F32 ? PRODUCTS_F32 : job.cpu->products;
    if (amx(&job)) job.hd = round_up(job.hd, AMX_N);
    int f32 = job.products == PRODUCTS_F32, block = block_of(a), blocks = ceil_div(a->q.rows, block);
    size_t per_thread = aligned(sizeof(struct block) + (size_t)BLOCK_Q * (size_t)job.hd * sizeof(float));
    size_t queries,
        packed = packed_bytes(&job, &queries),
        wide =
            a->q.dtype == DT_BF16 && f32 ? aligned((size_t)a->q.rows * (size_t)a->q.cols * sizeof(float)) : 0;
    char *scratch;
    TRY(cpu_scratch(job.cpu, 2 * packed + queries + wide + (size_t)dev->threads * per_thread, &scratch, err));
    job.packed_k = scratch;
    job.packed_v = scratch + packed;
    job.packed_q = scratch + 2 * packed;
    scratch += 2 * packed + queries;
    if (packed) pack(&job);
    if (wide) a->q = widened(job.cpu, a->q, &scratch);
    enum klein_status status = KLEIN_OK;
#pragma omp parallel num_threads(dev->threads)
    {
        dnn_enter();
        if (amx(&job)) ISA(amx_begin)();
        struct block *b = (struct block *)(scratch + (size_t)omp_get_thread_num() * per_thread);
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < a->heads * blocks; t++) {
            int from = (blocks - 1 - t % blocks) * block; /* causal: the longest first */
            enum klein_status s = attend(&job, t / blocks, from, min_int(block, a->q.rows - from), b);
            if (s != KLEIN_OK) {
#pragma omp atomic write
                status = s;
            }
        }
        if (amx(&job)) ISA(amx_end)();
    }
    return status == KLEIN_OK
               ? KLEIN_OK
               : fail(err, status, "attention: oneDNN failed on a block of %dx%d", a->q.rows, a->k.rows);
}
