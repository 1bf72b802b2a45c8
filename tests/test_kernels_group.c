/* Kernels that store rows into the memory of other devices (ops.h: exchange_to), on two soft GPUs: every kernel that can be picked gives each
 * device the bytes that it stores in one's own memory without that. Rows of three spans, uneven, so that a tile has rows of several; whole
 * requests: test_group.c. */
#include "support/support.h"

#include "../kernels/device.h"
#include "../kernels/soft/softgpu.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct klein_error err;

enum { DEVICES = 2, PARTS = 3, MOST = 1200, K = 64, MLP = 128, ARENA = 64 << 20 };
/* Rows of device i: of text, of the target but for a number that the test says, and of references. */
static const int few[DEVICES][PARTS] = {{20, 41, 9}, {21, 42, 12}};

struct peer {
    struct device *dev;
    char *arena;
    size_t used;
    int rank, rows, text; /* own ones, and those of the first span */
    struct tensor to_all, to_owners;
};
struct pair {
    struct peer p[DEVICES];
    int all, room;                                   /* rows; the most that a device has */
    int device[DEVICES * MOST], row[DEVICES * MOST]; /* of each row of all: who has it, and where */
    size_t kept;                                     /* of an arena, by tables */
    uint64_t seed;
};

static float draw(struct pair *w)
{
    w->seed = w->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(w->seed >> 40) * 0x1p-23f - 1;
}

/* At the same place of both arenas; NaN. */
static struct tensor take(struct peer *p, enum dtype type, int rows, int cols)
{
    const size_t bytes = (size_t)rows * (size_t)cols * dtype_size(type);
    struct tensor t = tensor_of(p->arena + p->used, type, rows, cols);
    char *nan = memset(malloc(bytes), 0xff, bytes);
    p->used += (bytes + 511) / 256 * 256;
    cr_assert(nan && p->used <= ARENA);
    OK(p->dev->upload(p->dev, t.ptr, nan, bytes, &err));
    free(nan);
    return t;
}

static struct tensor filled(struct peer *p, enum dtype type, int rows, int cols, const void *host)
{
    struct tensor t = take(p, type, rows, cols);
    OK(p->dev->upload(p->dev, t.ptr, host, (size_t)rows * (size_t)cols * dtype_size(type), &err));
    return t;
}

static struct tensor host_numbers(struct pair *w, enum dtype type, int rows, int cols, float about)
{
    struct tensor t = tensor_of(malloc((size_t)rows * (size_t)cols * 4), type, rows, cols);
    cr_assert(t.ptr);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) tensor_set(t, r, c, about + draw(w));
    return t;
}

static struct tensor numbers(struct pair *w, struct peer *p, enum dtype type, int rows, int cols)
{
    struct tensor host = host_numbers(w, type, rows, cols, 0), t = filled(p, type, rows, cols, host.ptr);
    free(host.ptr);
    return t;
}

static struct tensor weight(struct pair *w, struct peer *p, enum weight_kind kind, enum dtype act, int rows,
                            int cols)
{
    struct tensor t = host_numbers(w, act, rows, cols, kind == WEIGHT_VECTOR);
    void *host = t.ptr;
    OK(p->dev->place(p->dev, kind, act, &t, &err));
    OK(p->dev->wait(p->dev, &err));
    free(host);
    return t;
}

static char *bytes_of(struct peer *p, struct tensor t)
{
    const size_t bytes = (size_t)t.rows * (size_t)t.ld * dtype_size(t.dtype);
    char *host = malloc(bytes);
    cr_assert(host);
    OK(device_bind(p->dev, &err));
    OK(p->dev->download(p->dev, host, t.ptr, bytes, &err));
    return host;
}

struct order {
    uint64_t seed;
    enum softgpu_async async;
    int multiprocessors; /* 0: the chip's */
};

static void pair_open(struct pair *w, const char *claim, struct order o, int more)
{
    struct softgpu_config c;
    struct device *dev[DEVICES];
    void *arena[DEVICES];
    *w = (struct pair){.seed = o.seed + 1};
    setenv("KLEIN_SOFT", claim, 1);
    cr_assert(softgpu_config_from_env(&c));
    c.seed = o.seed, c.async = o.async, c.multiprocessors = o.multiprocessors, c.check_races = 1;
    cr_assert(softgpu_configure(&c));
    for (int i = 0; i < DEVICES; i++) {
        OK(device_open(i ? "soft:1" : "soft:0", &(struct device_options){0}, &dev[i], &err));
        OK(device_bind(dev[i], &err));
        arena[i] = dev[i]->alloc(dev[i], ARENA);
        w->p[i] = (struct peer){.dev = dev[i], .arena = arena[i], .rank = i};
    }
    cr_assert(dev[0]->exchange->direct);
    OK(dev[0]->exchange->join(dev, DEVICES, &err));
    for (int part = 0; part < PARTS; part++)
        for (int i = 0; i < DEVICES; i++)
            for (int r = 0; r < few[i][part] + (part == 1) * more; r++, w->all++)
                w->device[w->all] = i, w->row[w->all] = w->p[i].rows++;
    for (int i = 0; i < DEVICES; i++) w->room = w->p[i].rows > w->room ? w->p[i].rows : w->room;
    cr_assert(w->room <= MOST);
    for (int i = 0; i < DEVICES; i++) {
        struct peer *p = &w->p[i];
        int32_t to_all[MOST], to_owners[DEVICES * MOST];
        OK(device_bind(p->dev, &err));
        OK(p->dev->exchange->begin(p->dev, arena, &err));
        p->text = few[i][0];
        for (int r = 0; r < w->all; r++) {
            to_owners[r] = w->device[r] << EXCHANGE_ROW_BITS | w->row[r];
            if (w->device[r] == i) to_all[w->row[r]] = r;
        }
        p->to_all = tensor_cols(filled(p, DT_I32, 1, w->room, to_all), 0, p->rows);
        p->to_owners = filled(p, DT_I32, 1, w->all, to_owners);
        w->kept = p->used;
    }
}

static void pair_close(struct pair *w)
{
    for (int i = 0; i < DEVICES; i++) {
        w->p[i].dev->free(w->p[i].dev, w->p[i].arena, ARENA);
        device_close(w->p[i].dev);
    }
}

/* Until both arenas hold what was put there: from now on the other device may store into them. */
static void settle(struct pair *w)
{
    for (int i = 0; i < DEVICES; i++) {
        OK(device_bind(w->p[i].dev, &err));
        OK(w->p[i].dev->wait(w->p[i].dev, &err));
    }
}

/* By a host thread each: the soft GPU works while somebody waits for it. */
static void *meet_one(void *user)
{
    struct peer *p = user;
    struct klein_error e = {0};
    const struct exchange_args a = {.size = DEVICES, .rank = p->rank};
    if (device_bind(p->dev, &e) || p->dev->exchange->rows(p->dev, &a, &e) || p->dev->wait(p->dev, &e))
        fprintf(stderr, "%s\n", e.message);
    return e.status == KLEIN_OK ? p : NULL;
}

static void meet(struct pair *w)
{
    pthread_t thread[DEVICES];
    void *met[DEVICES];
    for (int i = 0; i < DEVICES; i++) cr_assert(!pthread_create(&thread[i], NULL, meet_one, &w->p[i]));
    for (int i = 0; i < DEVICES; i++) pthread_join(thread[i], &met[i]);
    cr_assert(met[0] && met[1]);
}

static void same(const char *what, const char *there, struct tensor t, int row_there, int col_there,
                 const char *here, struct tensor h, int row, int col, int width)
{
    const size_t size = dtype_size(t.dtype);
    cr_assert(!memcmp(there + (size_t)(row_there * t.ld + col_there) * size,
                      here + (size_t)(row * h.ld + col) * size, (size_t)width * size),
              "%s: row %d, column %d there is not row %d, column %d here", what, row_there, col_there, row,
              col);
}

static void force(const char *variable, const char *kernel)
{
    kernel ? setenv(variable, kernel, 1) : unsetenv(variable);
}

/* ---- q, k, v: a head's rows to the device that has the head ---------------------------------------------------------------- */

struct product {
    const char *kernel; /* NULL: what is picked */
    enum weight_kind kind;
    enum dtype act;
    int head_dim, cut; /* cut: the matrix is two, the first of which ends within k */
    int keys_only;     /* no q */
};

static void check_product(struct pair *w, struct product s)
{
    enum { HEADS = 4, RESULTS = 4 }; /* q, k, v, and mlp unless the matrix is cut */
    const int hd = s.head_dim, D = HEADS * hd, own = D / DEVICES, q = s.keys_only ? 0 : D,
              first = s.cut ? q + hd : q + 2 * D + 2 * MLP;
    struct tensor want[DEVICES][RESULTS], got[DEVICES][RESULTS];
    struct linear_args args[DEVICES];
    force("KLEIN_GEMM", s.kernel);
    for (int i = 0; i < DEVICES; i++) {
        struct peer *p = &w->p[i];
        OK(device_bind(p->dev, &err));
        struct linear_args a = {
            .x = tensor_rows(numbers(w, p, s.act, w->room, K), 0, p->rows),
            .split = p->text,
            .epilogue = LINEAR_QKV,
            .qkv = {.cos = tensor_rows(numbers(w, p, DT_F32, w->room, hd / 2), 0, p->rows),
                    .sin = tensor_rows(numbers(w, p, DT_F32, w->room, hd / 2), 0, p->rows),
                    .heads = s.keys_only ? 0 : HEADS,
                    .kv_heads = HEADS,
                    .head_dim = hd,
                    .eps = 1e-6f}};
        for (int g = 0; g < 2; g++) {
            a.group[g].w.parts = s.cut ? 2 : 1;
            a.group[g].w.part[0] = weight(w, p, s.kind, s.act, first, K);
            if (s.cut) a.group[g].w.part[1] = weight(w, p, s.kind, s.act, q + 2 * D - first, K);
            a.group[g].q_norm = weight(w, p, WEIGHT_VECTOR, s.act, 1, hd);
            a.group[g].k_norm = weight(w, p, WEIGHT_VECTOR, s.act, 1, hd);
        }
        for (int t = s.keys_only; t < (s.cut ? 3 : RESULTS); t++) {
            want[i][t] = tensor_rows(take(p, s.act, w->room, t < 3 ? D : MLP), 0, p->rows);
            got[i][t] =
                t < 3 ? take(p, s.act, w->all, own) : tensor_rows(take(p, s.act, w->room, MLP), 0, p->rows);
        }
        args[i] = a;
    }
    settle(w);
    for (int i = 0; i < DEVICES; i++) {
        struct peer *p = &w->p[i];
        struct linear_args *a = &args[i];
        struct tensor *const result[RESULTS] = {&a->qkv.q, &a->qkv.k, &a->qkv.v, &a->qkv.mlp};
        struct op_cost cost;
        OK(device_bind(p->dev, &err));
        for (int routed = 0; routed < 2; routed++) {
            for (int t = s.keys_only; t < (s.cut ? 3 : RESULTS); t++)
                *result[t] = routed ? got[i][t] : want[i][t];
            if (routed) a->qkv.to = (struct exchange_to){DEVICES, i, p->to_all};
            OK(ops_check_linear(a, &cost, &err));
            cr_assert(cost.sent ==
                      (routed ? (3.0 - s.keys_only) * p->rows * own * (double)dtype_size(s.act) : 0));
            OK(p->dev->ops->linear(p->dev, a, &err));
        }
    }
    meet(w);
    for (int i = 0; i < DEVICES; i++)
        for (int t = s.keys_only; t < (s.cut ? 3 : RESULTS); t++) {
            char *here = bytes_of(&w->p[i], want[i][t]);
            for (int d = 0; d < DEVICES; d++) {
                if (t == 3 && d != i) continue;
                char *there = bytes_of(&w->p[d], got[d][t]);
                for (int r = 0; r < w->all; r++) {
                    if (w->device[r] != i) continue;
                    const int row = t < 3 ? r : w->row[r], col = t < 3 ? d * own : 0;
                    same(s.kernel ? s.kernel : "linear", there, got[d][t], row, 0, here, want[i][t],
                         w->row[r], col, got[d][t].cols);
                }
                free(there);
            }
            free(here);
        }
    for (int i = 0; i < DEVICES; i++) w->p[i].used = w->kept;
}

/* ---- attention: a token's row to the device that has the token ------------------------------------------------------------ */

/* e4m3: with a scale per head and row. */
static struct tensor scaled(struct peer *p, struct tensor t)
{
    if (t.dtype != DT_F8E4M3) return t;
    t.ldscale = t.rows;
    t.scale = take(p, DT_F32, t.cols / TENSOR_GROUP, t.rows).ptr;
    return t;
}

static void same_scales(const char *what, struct peer *there, struct tensor t, int row_there, int group_there,
                        struct peer *here, struct tensor h, int row, int groups)
{
    char *a = bytes_of(there, tensor_of(t.scale, DT_F32, t.cols / TENSOR_GROUP, t.ldscale)),
         *b = bytes_of(here, tensor_of(h.scale, DT_F32, h.cols / TENSOR_GROUP, h.ldscale));
    for (int g = 0; g < groups; g++)
        cr_assert(
            !memcmp(a + 4 * ((group_there + g) * t.ldscale + row_there), b + 4 * (g * h.ldscale + row), 4),
            "%s: scale of row %d, head %d", what, row, g);
    free(a), free(b);
}

/* result: act, or F8_E4M3. Queries are the rows from `first` on. */
static void check_attention(struct pair *w, const char *kernel, enum dtype act, enum dtype result,
                            int head_dim, int first)
{
    enum { HEADS = 2 }; /* of a device */
    const int own = HEADS * head_dim, queries = w->all - first;
    struct tensor want[DEVICES], got[DEVICES];
    struct attention_args args[DEVICES];
    force("KLEIN_ATTENTION", kernel);
    for (int i = 0; i < DEVICES; i++) {
        struct peer *p = &w->p[i];
        OK(device_bind(p->dev, &err));
        args[i] = (struct attention_args){.q = tensor_rows(numbers(w, p, act, w->all, own), first, queries),
                                          .k = numbers(w, p, act, w->all, own),
                                          .v = numbers(w, p, act, w->all, own),
                                          .heads = HEADS,
                                          .kv_heads = HEADS,
                                          .head_dim = head_dim,
                                          .scale = 1 / sqrtf((float)head_dim)};
        want[i] = scaled(p, take(p, result, queries, own));
        /* As beside the MLP: a part of the columns. */
        got[i] = scaled(p, take(p, result, w->room, DEVICES * own + MLP));
        got[i] = tensor_cols(tensor_rows(got[i], 0, p->rows), 0, DEVICES * own);
    }
    settle(w);
    for (int i = 0; i < DEVICES; i++) {
        struct peer *p = &w->p[i];
        struct op_cost cost;
        OK(device_bind(p->dev, &err));
        for (int routed = 0; routed < 2; routed++) {
            args[i].o = routed ? got[i] : want[i];
            if (routed)
                args[i].to = (struct exchange_to){DEVICES, i, tensor_cols(p->to_owners, first, queries)};
            OK(ops_check_attention(&args[i], &cost, &err));
            cr_assert(cost.sent ==
                      (routed ? (double)queries / DEVICES * own * (double)dtype_size(result) : 0));
            OK(p->dev->ops->attention(p->dev, &args[i], &err));
        }
    }
    meet(w);
    for (int i = 0; i < DEVICES; i++) {
        char *here = bytes_of(&w->p[i], want[i]);
        for (int d = 0; d < DEVICES; d++) {
            char *there = bytes_of(&w->p[d], got[d]);
            for (int r = first; r < w->all; r++)
                if (w->device[r] == d) {
                    same(kernel ? kernel : "attention", there, got[d], w->row[r], i * own, here, want[i],
                         r - first, 0, own);
                    if (got[d].scale && r % 7 == 0)
                        same_scales(kernel, &w->p[d], got[d], w->row[r], i * HEADS, &w->p[i], want[i],
                                    r - first, HEADS);
                }
            for (int row = 0; row < w->p[d].rows; row++) /* and nothing beside it */
                for (int c = 0; c < MLP; c++)
                    cr_assert(there[((size_t)row * (size_t)got[d].ld + (size_t)(DEVICES * own + c)) *
                                    dtype_size(result)] == (char)0xff);
            free(there);
        }
        free(here);
    }
    for (int i = 0; i < DEVICES; i++) w->p[i].used = w->kept;
}

/* ---- tests -------------------------------------------------------------------------------------------------------------- */

enum { LISTED = 8, FEWER = 90 /* of 145 rows: the queries after them are fewer than a device has rows */ };

static void check(const char *claim, const struct product *products, const char *const *attentions)
{
    static const struct order orders[] = {{3, SOFTGPU_LATE, 0}, {11, SOFTGPU_RANDOM, 1}};
    for (size_t o = 0; o < (SANITIZED ? 1 : sizeof orders / sizeof *orders); o++) { /* slow */
        struct pair w;
        pair_open(&w, claim, orders[o], 0);
        for (int i = 0; i < LISTED && products[i].head_dim; i++) check_product(&w, products[i]);
        for (int i = 0; i < LISTED && attentions[i]; i++) {
            const int only_e4m3 = strstr(attentions[i], "e4m3") != NULL;
            for (int fewer = 0; fewer < 2 && !only_e4m3; fewer++)
                check_attention(&w, attentions[i], DT_BF16, DT_BF16, 128, fewer ? FEWER : 0);
            for (int fewer = 0; fewer < 2 && w.p[0].dev->e4m3; fewer++)
                check_attention(&w, attentions[i], DT_BF16, DT_F8E4M3, 128, fewer ? FEWER : 0);
        }
        if (o == 0) check_attention(&w, "attention_simple_f32", DT_F32, DT_F32, 40, 0);
        pair_close(&w);
    }
}

Test(kernels_group, sm_90a)
{
    static const struct product products[LISTED] = {
        {"gemm_qkv_sm90_128x256", WEIGHT_MATRIX, DT_BF16, 128, 0, 0},
        {"gemm_qkv_sm90_128x128", WEIGHT_MATRIX, DT_BF16, 128, 1, 0},
        {"gemm_qkv_sm90_128x256", WEIGHT_MATRIX, DT_BF16, 128, 0, 1},
        {"gemm_qkv_e4m3_sm90_128x256", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 0, 0},
        {"gemm_qkv_e4m3_sm90_128x128", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 0, 0},
        {"gemm_qkv_e4m3_sm90_128x128", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 1, 1},
        {"linear_simple", WEIGHT_MATRIX, DT_BF16, 40, 1, 0},
        {"linear_simple", WEIGHT_MATRIX, DT_BF16, 40, 1, 1}};
    static const char *const attentions[LISTED] = {"attention_sm90_128x128", "attention_sm90_64x128"};
    check("sm_90a:2", products, attentions);
}

Test(kernels_group, sm_80)
{
    static const struct product products[LISTED] = {
        {"gemm_sm80_qkv_128x128_s2", WEIGHT_MATRIX, DT_BF16, 128, 0, 0},
        {"gemm_sm80_qkv_128x128_s3", WEIGHT_MATRIX, DT_BF16, 128, 1, 0},
        {"gemm_sm80_qkv_64x128_s2", WEIGHT_MATRIX, DT_BF16, 128, 0, 0},
        {"gemm_sm80_qkv_64x128_s2", WEIGHT_MATRIX, DT_BF16, 128, 1, 1},
        {NULL, WEIGHT_MATRIX, DT_F32, 64, 0, 0}};
    static const char *const attentions[LISTED] = {"attention_sm80_128x48", "attention_sm80_64x64",
                                                   "attention_wide_sm80", "attention_simple_bf16"};
    check("sm_80:2", products, attentions);
}

Test(kernels_group, sm_89_e4m3)
{
    static const struct product products[LISTED] = {
        {"gemm_sm89_qkv_128x128_s3", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 1, 0},
        {"gemm_sm89_qkv_64x128_s2", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 0, 0},
        {"gemm_sm89_qkv_128x256_s2", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 0, 0},
        {"gemm_sm89_qkv_64x256_s2", WEIGHT_MATRIX_E4M3, DT_BF16, 128, 1, 1}};
    static const char *const attentions[LISTED] = {"attention_e4m3_sm89_128x48", "attention_e4m3_sm89_64x64"};
    check("sm_89:2", products, attentions);
}

/* One block per device, which has more than GROUP (gemm_sm90_tiles.h) rows of tiles: heads again after SwiGLU, from the same buffers. */
Test(kernels_group, heads_after_swiglu)
{
    static const struct product products[] = {{"gemm_qkv_sm90_128x256", WEIGHT_MATRIX, DT_BF16, 128, 0, 0},
                                              {"gemm_qkv_sm90_128x128", WEIGHT_MATRIX, DT_BF16, 128, 0, 0}};
    struct pair w;
    pair_open(&w, "sm_90a:2", (struct order){3, SOFTGPU_LATE, 1}, 1000);
    for (int i = 0; i < 2; i++) check_product(&w, products[i]);
    pair_close(&w);
}

/* What does not fit together is found before a kernel sees it. */
Test(kernels_group, refusals)
{
    struct pair w;
    pair_open(&w, "sm_90a:2", (struct order){0, SOFTGPU_LATE, 0}, 0);
    struct peer *p = &w.p[0];
    OK(device_bind(p->dev, &err));
    struct tensor rows = take(p, DT_BF16, w.all, 128), o = take(p, DT_BF16, p->rows, 256);
    struct attention_args a = {.q = rows,
                               .k = rows,
                               .v = rows,
                               .o = o,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = 128,
                               .scale = 1,
                               .to = {DEVICES, 0, p->to_owners}};
    OK(ops_check_attention(&a, NULL, &err));
    a.to.place = p->to_all;
    FAILS(ops_check_attention(&a, NULL, &err), KLEIN_E_INTERNAL, "to.place is 1x70, expected 1x145");
    a.to = (struct exchange_to){DEVICES, 2, p->to_owners};
    FAILS(ops_check_attention(&a, NULL, &err), KLEIN_E_INTERNAL, "to->rank < to->size");
    a.to.rank = 0, a.o = rows;
    FAILS(ops_check_attention(&a, NULL, &err), KLEIN_E_INTERNAL, "expected 0x256");
    pair_close(&w);
}
