#include "dit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- weights ------------------------------------------------------------------------------------------- */

static int is_e4m3(struct tensor w)
{
    return w.dtype == DT_F8E4M3;
}

static enum klein_status bind_stream(struct dit_stream *s, struct checkpoint *c, const struct dit_config *d,
                                     int i, int text, struct klein_error *err)
{
    static const struct {
        const char *qkv[3], *q_norm, *k_norm, *proj, *ff;
    } names[2] = {{{"add_q_proj", "add_k_proj", "add_v_proj"},
                   "norm_added_q",
                   "norm_added_k",
                   "to_add_out",
                   "ff_context"},
                  {{"to_q", "to_k", "to_v"}, "norm_q", "norm_k", "to_out.0", "ff"}};
    int which = text ? 0 : 1, D = d->width;
    char name[128];
#define TENSOR(to, ndim, shape, ...)                                                                         \
    (snprintf(name, sizeof name, __VA_ARGS__),                                                               \
     checkpoint_tensor(c, PART_TRANSFORMER, name, ndim, shape, to, err))
#define SHAPE(...) ((int64_t[]){__VA_ARGS__})
    s->qkv.parts = 3;
    for (int k = 0; k < 3; k++) {
        TRY(TENSOR(&s->qkv.part[k], 2, SHAPE(D, D), "transformer_blocks.%d.attn.%s.weight", i,
                   names[which].qkv[k]));
        if (is_e4m3(s->qkv.part[k]) != is_e4m3(s->qkv.part[0])) /* they are one product */
            return fail(err, KLEIN_E_UNSUPPORTED,
                        "tensor %s is %s and that of %s is %s: both or neither must be in FP8", name,
                        dtype_name(s->qkv.part[k].dtype), names[which].qkv[0],
                        dtype_name(s->qkv.part[0].dtype));
    }
    TRY(TENSOR(&s->q_norm, 1, SHAPE(d->head_dim), "transformer_blocks.%d.attn.%s.weight", i,
               names[which].q_norm));
    TRY(TENSOR(&s->k_norm, 1, SHAPE(d->head_dim), "transformer_blocks.%d.attn.%s.weight", i,
               names[which].k_norm));
    TRY(TENSOR(&s->proj, 2, SHAPE(D, D), "transformer_blocks.%d.attn.%s.weight", i, names[which].proj));
    TRY(TENSOR(&s->mlp_in, 2, SHAPE(2 * d->mlp_width, D), "transformer_blocks.%d.%s.linear_in.weight", i,
               names[which].ff));
    TRY(TENSOR(&s->mlp_out, 2, SHAPE(D, d->mlp_width), "transformer_blocks.%d.%s.linear_out.weight", i,
               names[which].ff));
    return KLEIN_OK;
}

enum klein_status dit_bind(struct dit *m, struct checkpoint *c, struct klein_error *err)
{
    const struct dit_config *d = m->cfg = &checkpoint_config(c)->dit;
    int D = d->width;
    char name[128];
    CHECK(d->double_blocks <= DIT_MAX_BLOCKS && d->single_blocks <= DIT_MAX_BLOCKS);
    TRY(TENSOR(&m->x_embedder, 2, SHAPE(D, d->in_channels), "x_embedder.weight"));
    TRY(TENSOR(&m->context_embedder, 2, SHAPE(D, d->text_width), "context_embedder.weight"));
    TRY(TENSOR(&m->time_in, 2, SHAPE(D, d->timestep_channels),
               "time_guidance_embed.timestep_embedder.linear_1.weight"));
    TRY(TENSOR(&m->time_out, 2, SHAPE(D, D), "time_guidance_embed.timestep_embedder.linear_2.weight"));
    TRY(TENSOR(&m->modulation[DIT_IMAGE], 2, SHAPE(6 * D, D), "double_stream_modulation_img.linear.weight"));
    TRY(TENSOR(&m->modulation[DIT_TEXT], 2, SHAPE(6 * D, D), "double_stream_modulation_txt.linear.weight"));
    TRY(TENSOR(&m->modulation_single, 2, SHAPE(3 * D, D), "single_stream_modulation.linear.weight"));
    TRY(TENSOR(&m->final_scale, 2, SHAPE(D, D), "norm_out.linear.scale"));
    TRY(TENSOR(&m->final_shift, 2, SHAPE(D, D), "norm_out.linear.shift"));
    TRY(TENSOR(&m->proj_out, 2, SHAPE(d->in_channels, D), "proj_out.weight"));
    for (int i = 0; i < d->double_blocks; i++)
        for (int text = 0; text < 2; text++)
            TRY(bind_stream(&m->doubles[i].stream[text ? DIT_TEXT : DIT_IMAGE], c, d, i, text, err));
    for (int i = 0; i < d->single_blocks; i++) {
        struct dit_single *s = &m->singles[i];
        TRY(TENSOR(&s->in, 2, SHAPE(3 * D + 2 * d->mlp_width, D),
                   "single_transformer_blocks.%d.attn.to_qkv_mlp_proj.weight", i));
        TRY(TENSOR(&s->q_norm, 1, SHAPE(d->head_dim), "single_transformer_blocks.%d.attn.norm_q.weight", i));
        TRY(TENSOR(&s->k_norm, 1, SHAPE(d->head_dim), "single_transformer_blocks.%d.attn.norm_k.weight", i));
        TRY(TENSOR(&s->out, 2, SHAPE(D, D + d->mlp_width), "single_transformer_blocks.%d.attn.to_out.weight",
                   i));
    }
#undef TENSOR
#undef SHAPE
    return KLEIN_OK;
}

/* --- once per request ---------------------------------------------------------------------------------- */

static void linear(struct run *r, struct tensor y, struct tensor x, struct tensor w,
                   enum linear_epilogue epilogue)
{
    run_linear(r, &(struct linear_args){.y = y, .x = x, .epilogue = epilogue, .group[0].w = weight_of(w)});
}

/* Vectors [from, from + n) of D of the modulation row(s). */
static struct tensor vectors(struct tensor modulation, int from, int n)
{
    int D = modulation.cols / DIT_MOD;
    return tensor_cols(modulation, from * D, n * D);
}

/* The modulation vectors depend on the timestep alone, so those of all steps are made at once: small products
 * in f32. */
static void prepare_modulation(struct run *r, const struct dit *m, struct dit_request *q,
                               struct tensor sigmas)
{
    int D = m->cfg->width, steps = sigmas.cols;
    struct tensor all = q->modulation = run_tensor(r, DT_F32, steps, DIT_MOD * D);
    q->now = run_tensor(r, DT_F32, 1, DIT_MOD * D);

    size_t mark = arena_mark(r->arena, r->end);
    struct tensor e = run_tensor(r, DT_F32, steps, m->cfg->timestep_channels);
    struct tensor a = run_tensor(r, DT_F32, steps, D), vec = run_tensor(r, DT_F32, steps, D);
    run_timestep(r, &(struct timestep_args){.y = e, .t = sigmas});
    linear(r, a, e, m->time_in, LINEAR_SILU);
    linear(r, vec, a, m->time_out, LINEAR_SILU); /* SiLU here: all that follows reads silu(vec) */
    linear(r, vectors(all, DIT_MOD_TEXT, 6), vec, m->modulation[DIT_TEXT], LINEAR_PLAIN);
    linear(r, vectors(all, DIT_MOD_IMAGE, 6), vec, m->modulation[DIT_IMAGE], LINEAR_PLAIN);
    linear(r, vectors(all, DIT_MOD_SINGLE, 3), vec, m->modulation_single, LINEAR_PLAIN);
    linear(r, vectors(all, DIT_MOD_SCALE, 1), vec, m->final_scale, LINEAR_PLAIN);
    linear(r, vectors(all, DIT_MOD_SHIFT, 1), vec, m->final_shift, LINEAR_PLAIN);
    arena_release(r->arena, r->end, mark);
}

struct dit_rows dit_rows_of(struct share tokens, int rank, int n_text, int n_target, int n_references)
{
    const int all[DIT_PARTS] = {n_text, n_target, n_references};
    struct dit_rows rows;
    for (int i = 0; i < DIT_PARTS; i++) {
        rows.first[i] = share_first(tokens, rank, all[i]);
        rows.n[i] = share_first(tokens, rank + 1, all[i]) - rows.first[i];
    }
    return rows;
}

static struct dit_rows rows_of(const struct run *r, const struct dit_request *q, int rank)
{
    return dit_rows_of(r->tokens, rank, q->n_text, q->n_target, q->n_tokens - q->n_text - q->n_target);
}

static int rows_in_all(struct dit_rows rows)
{
    return rows.n[DIT_TEXT] + rows.n[DIT_TARGET] + rows.n[DIT_REFERENCES];
}

/* How many rows a device needs room for: so many that all have the same. */
static int rows_room(struct share tokens, int n_text, int n_target, int n_references)
{
    return share_most(tokens, n_text) + share_most(tokens, n_target) + share_most(tokens, n_references);
}

/* The part of a span of tokens that is in [first, first + n), counted from the span's first token. */
static struct rope_span part_of_span(struct rope_span span, int first, int n)
{
    int all = span.rows * span.cols, end = first + n;
    span.first = first < 0 ? 0 : first > all ? all : first;
    end = end < span.first ? span.first : end > all ? all : end;
    span.n = end - span.first;
    return span;
}

static struct rope make_rope(struct run *r, const struct dit *m, int n_text, struct dit_image target,
                             const struct dit_image *references, int n_references)
{
    struct rope_span spans[DIT_MAX_SPANS] = {{.rows = 1, .cols = n_text, .text = 1},
                                             {.rows = target.rows, .cols = target.cols}};
    int n_target = target.rows * target.cols, tokens = 0;
    CHECK(n_references + 2 <= DIT_MAX_SPANS);
    for (int k = 0; k < n_references; k++) tokens += references[k].rows * references[k].cols;
    struct dit_rows own = dit_rows_of(r->tokens, r->tokens.rank, n_text, n_target, tokens);
    for (int i = DIT_TEXT; i <= DIT_TARGET; i++) spans[i] = part_of_span(spans[i], own.first[i], own.n[i]);
    for (int k = 0, first = own.first[DIT_REFERENCES]; k < n_references; k++) {
        struct rope_span all = {.t = 10 + 10 * k, .rows = references[k].rows, .cols = references[k].cols};
        spans[2 + k] = part_of_span(all, first, own.n[DIT_REFERENCES]);
        first -= all.rows * all.cols;
    }
    return rope_4d(r, spans, 2 + n_references, rows_room(r->tokens, n_text, n_target, tokens),
                   m->cfg->rope_axes, m->cfg->rope_theta);
}

/* Whether devices store rows into each other's memory, or have them copied. */
static int stores(const struct run *r)
{
    return share_size(r->tokens) > 1 && !r->tokens.copies;
}

static int copies(const struct run *r)
{
    return share_size(r->tokens) > 1 && r->tokens.copies;
}

/* Whose each row is, and which rows are one's own. */
static void make_places(struct run *r, struct dit_tables *t, const int n[DIT_PARTS])
{
    struct dit_rows own = dit_rows_of(r->tokens, r->tokens.rank, n[0], n[1], n[2]);
    int all = n[0] + n[1] + n[2];
    t->to_all =
        tensor_cols(run_tensor(r, DT_I32, 1, rows_room(r->tokens, n[0], n[1], n[2])), 0, rows_in_all(own));
    t->to_owners = run_tensor(r, DT_I32, 1, all);
    if (!r->dev->computes || r->skip || !run_ok(r)) return;
    int32_t *owners = calloc(2 * (size_t)all, sizeof *owners);
    if (!owners) {
        fail(&r->err, KLEIN_E_NO_MEMORY, "no memory for tables of %d tokens", all);
        return;
    }
    int32_t *among_all = owners + all;
    for (int rank = 0; rank < r->tokens.size; rank++) {
        const struct dit_rows rows = dit_rows_of(r->tokens, rank, n[0], n[1], n[2]);
        for (int part = 0, here = 0, begin = 0; part < DIT_PARTS; begin += n[part++])
            for (int i = 0; i < rows.n[part]; i++, here++) {
                const int row = begin + rows.first[part] + i;
                owners[row] = rank << EXCHANGE_ROW_BITS | here;
                if (rank == r->tokens.rank) among_all[here] = row;
            }
    }
    run_fill(r, t->to_owners, owners);
    run_fill(r, t->to_all, among_all);
    free(owners);
}

struct dit_tables dit_tables(struct run *r, const struct dit *m, int n_text, struct dit_image target,
                             const struct dit_image *references, int n_references)
{
    struct dit_tables t = {.rope = make_rope(r, m, n_text, target, references, n_references)};
    int n[DIT_PARTS] = {n_text, target.rows * target.cols};
    for (int k = 0; k < n_references; k++) n[DIT_REFERENCES] += references[k].rows * references[k].cols;
    if (stores(r)) make_places(r, &t, n);
    return t;
}

void dit_prepare(struct run *r, const struct dit *m, struct dit_request *q, struct tensor ctx,
                 struct dit_tables tables, struct dit_image target, const struct dit_image *references,
                 int n_references, struct tensor sigmas)
{
    *q = (struct dit_request){.n_text = ctx.rows, .n_target = target.rows * target.cols, .tables = tables};
    q->n_tokens = q->n_text + q->n_target;
    for (int k = 0; k < n_references; k++) q->n_tokens += references[k].rows * references[k].cols;
    prepare_modulation(r, m, q, sigmas);

    q->references = run_tensor(r, r->act, q->n_tokens - q->n_text - q->n_target, m->cfg->width);
    for (int k = 0, row = 0; k < n_references; row += references[k].latents.rows, k++)
        linear(r, tensor_rows(q->references, row, references[k].latents.rows), references[k].latents,
               m->x_embedder, LINEAR_PLAIN);
    *q = dit_with_text(r, m, q, ctx);
}

void dit_select(struct run *r, const struct dit_request *q, struct tensor step)
{
    run_embed(r, &(struct embed_args){.y = q->now, .table = q->modulation, .ids = step});
}

struct dit_request dit_with_text(struct run *r, const struct dit *m, const struct dit_request *q,
                                 struct tensor ctx)
{
    struct dit_request other = *q;
    other.text = run_tensor(r, r->act, q->n_text, m->cfg->width);
    linear(r, other.text, ctx, m->context_embedder, LINEAR_PLAIN);
    return other;
}

/* --- one step ------------------------------------------------------------------------------------------ */

/* Buffers of a forward pass, [own tokens, ...] act. */
struct state {
    struct tensor z, h; /* residual stream, normalised input: D */
    struct tensor om;   /* D + mlp: what the attention (first D columns) and the MLP (the others) computed */
    struct tensor all_qkv[3]; /* q, k, v of all tokens and the own heads; with one device that is qkv */
    struct tensor qkv[3],
        all_o; /* copies: what is made here, of own tokens and all heads, and of all tokens and own heads */
    struct dit_rows own;
    /* What goes on after the block, of the own rows and of all tokens: all of them, but for the last block. */
    struct rows {
        int first, n;
    } rows, queries;
    int room; /* rows: the most that a device has */
    int exchanges;
};

/* The rows that device `rank` has, as they lie in its buffers and among all tokens: text, target, references. */
static void spans_of(struct run *r, const struct dit_request *q, int rank, int to_all,
                     struct exchange_way *way)
{
    const struct dit_rows rows = rows_of(r, q, rank);
    const int begin[DIT_PARTS] = {0, q->n_text, q->n_text + q->n_target};
    for (int i = 0, here = 0; i < DIT_PARTS; here += rows.n[i], i++) {
        int among_all = begin[i] + rows.first[i];
        way->span[i] = (struct exchange_span){
            .from = to_all ? here : among_all, .to = to_all ? among_all : here, .rows = rows.n[i]};
    }
}

/* Own rows of all heads to all rows of own heads. Before the first time the others may still use this part of their arenas otherwise: for
 * references, or for decoding the picture before. */
static void rows_to_heads(struct run *r, const struct dit_request *q, struct state *s)
{
    int size = r->tokens.size, w = s->all_o.cols;
    struct exchange_args a = {
        .size = size, .rank = r->tokens.rank, .tensors = 3, .ready = s->exchanges++ == 0};
    memcpy(a.from, s->qkv, sizeof a.from);
    memcpy(a.to, s->all_qkv, sizeof a.to);
    for (int i = 0; i < size; i++) {
        a.way[i] = (struct exchange_way){.from_col = i * w, .cols = w};
        spans_of(r, q, a.rank, 1, &a.way[i]);
    }
    run_exchange(r, &a);
}

/* And what attention made of them back: o [own tokens, D]. */
static void heads_to_rows(struct run *r, const struct dit_request *q, struct state *s, struct tensor o)
{
    int size = r->tokens.size, w = s->all_o.cols;
    struct exchange_args a = {
        .size = size, .rank = r->tokens.rank, .tensors = 1, .from[0] = s->all_o, .to[0] = o};
    for (int i = 0; i < size; i++) {
        a.way[i] = (struct exchange_way){.to_col = a.rank * w, .cols = w};
        spans_of(r, q, i, 0, &a.way[i]);
    }
    run_exchange(r, &a);
}

static struct exchange_to stored_to(const struct run *r, struct tensor place)
{
    if (!stores(r)) return (struct exchange_to){0};
    return (struct exchange_to){.size = r->tokens.size, .rank = r->tokens.rank, .place = place};
}

/* What all have stored for each other is there (dit.h). */
static void meet(struct run *r)
{
    if (stores(r)) run_exchange(r, &(struct exchange_args){.size = r->tokens.size, .rank = r->tokens.rank});
}

static void attention(struct run *r, const struct dit_config *d, const struct dit_request *q, struct state *s,
                      struct tensor o)
{
    const int heads = d->heads / share_size(r->tokens), first = s->queries.first, n = s->queries.n;
    if (copies(r)) rows_to_heads(r, q, s);
    meet(r);
    run_attention(
        r, &(struct attention_args){.o = stores(r) ? o : tensor_rows(copies(r) ? s->all_o : o, first, n),
                                    .to = stored_to(r, tensor_cols(q->tables.to_owners, first, n)),
                                    .q = tensor_rows(s->all_qkv[0], first, n),
                                    .k = s->all_qkv[1],
                                    .v = s->all_qkv[2],
                                    .heads = heads,
                                    .kv_heads = heads,
                                    .head_dim = d->head_dim,
                                    .scale = 1 / sqrtf((float)d->head_dim)});
    meet(r);
    if (copies(r)) heads_to_rows(r, q, s, o);
}

/* x of products with weights in e4m3, as what makes it writes it: quantised where the device multiplies these as they are. The memory is x's,
 * elements of as many rows as all devices have room for, so that all have the scales at the same place, then these. adaln has a row's scale;
 * attention and SwiGLU have only the columns of a tile at a time. */
static struct tensor operand_of(const struct run *r, const struct state *s, struct tensor x, int e4m3,
                                int groups)
{
    if (!r->dev->e4m3 || r->act != DT_BF16 || !e4m3) return x;
    x.dtype = DT_F8E4M3;
    x.scale = tensor_at(x, s->room, 0);
    x.ldscale = groups ? s->room : 0;
    return x;
}

/* The same for what attention makes, alone or beside the MLP: devices that have it copied exchange it as it is. */
static struct tensor attended_of(const struct run *r, const struct state *s, struct tensor x, int e4m3)
{
    return copies(r) ? x : operand_of(r, s, x, e4m3, 1);
}

/* The product that makes q, k and v from x, but for its weights. */
static struct linear_args to_qkv(const struct run *r, const struct dit_config *d, const struct dit_request *q,
                                 const struct state *s, struct tensor x)
{
    return (struct linear_args){.x = x,
                                .epilogue = LINEAR_QKV,
                                .qkv = {.q = s->qkv[0],
                                        .k = s->qkv[1],
                                        .v = s->qkv[2],
                                        .to = stored_to(r, q->tables.to_all),
                                        .cos = q->tables.rope.cos,
                                        .sin = q->tables.rope.sin,
                                        .heads = d->heads,
                                        .kv_heads = d->heads,
                                        .head_dim = d->head_dim,
                                        .pairs = ROPE_INTERLEAVED,
                                        .eps = d->eps}};
}

static struct tensor rows_if(struct tensor t, int first, int n)
{
    return t.ptr ? tensor_rows(t, first, n) : t;
}

/* Rows [first, first + n) of a product, which are of group 0. */
static void linear_rows(struct run *r, struct linear_args a, int first, int n)
{
    struct tensor *const rows[] = {&a.x,       &a.y,     &a.residual, &a.qkv.mlp, &a.qkv.cos,
                                   &a.qkv.sin, &a.qkv.q, &a.qkv.k,    &a.qkv.v};
    const size_t all = sizeof rows / sizeof *rows, routed = a.qkv.to.size ? 3 : 0; /* q, k, v */
    if (!n) return;
    a.split = 0;
    for (size_t i = 0; i < all - routed; i++) *rows[i] = rows_if(*rows[i], first, n);
    if (routed) a.qkv.to.place = tensor_cols(a.qkv.to.place, first, n);
    run_linear(r, &a);
}

/* A product of both streams' rows: one op, or where a file has the weights of only one in e4m3, two. */
static void linear_of_streams(struct run *r, struct linear_args a)
{
    const int split = a.split, rows = a.x.rows;
    if (is_e4m3(a.group[0].w.part[0]) == is_e4m3(a.group[1].w.part[0])) {
        run_linear(r, &a);
        return;
    }
    linear_rows(r, a, 0, split);
    a.group[0] = a.group[1];
    linear_rows(r, a, split, rows - split);
}

static void double_block(struct run *r, const struct dit *m, const struct dit_double *b,
                         const struct dit_request *q, struct state *s)
{
    const struct dit_config *d = m->cfg;
    const struct dit_stream *txt = &b->stream[DIT_TEXT], *img = &b->stream[DIT_IMAGE];
    int D = d->width, split = s->own.n[DIT_TEXT];
    const int e4m3_qkv = is_e4m3(txt->qkv.part[0]) && is_e4m3(img->qkv.part[0]);
    const int e4m3_proj = is_e4m3(txt->proj) && is_e4m3(img->proj);
    const int e4m3_in = is_e4m3(txt->mlp_in) && is_e4m3(img->mlp_in);
    /* Only products of weights in e4m3 write e4m3. */
    const int e4m3_out = e4m3_in && is_e4m3(txt->mlp_out) && is_e4m3(img->mlp_out);
    struct tensor o = tensor_cols(attended_of(r, s, s->om, e4m3_proj), 0, D),
                  u = tensor_cols(operand_of(r, s, s->om, e4m3_out, 1), D, d->mlp_width);
    enum { SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 }; /* 1: attention, 2: MLP */
    struct tensor mod[2][6];
    struct tensor h_qkv = operand_of(r, s, s->h, e4m3_qkv, 0), h_mlp = operand_of(r, s, s->h, e4m3_in, 0);
    for (int g = 0; g < 2; g++)
        for (int i = 0; i < 6; i++)
            mod[g][i] = vectors(q->now, (g == DIT_TEXT ? DIT_MOD_TEXT : DIT_MOD_IMAGE) + i, 1);

    run_adaln(r, &(struct adaln_args){.y = h_qkv,
                                      .x = s->z,
                                      .split = split,
                                      .eps = d->eps,
                                      .shift = {mod[DIT_TEXT][SHIFT1], mod[DIT_IMAGE][SHIFT1]},
                                      .scale = {mod[DIT_TEXT][SCALE1], mod[DIT_IMAGE][SCALE1]}});
    struct linear_args qkv = to_qkv(r, d, q, s, h_qkv);
    qkv.split = split;
    qkv.group[DIT_TEXT] = (struct linear_group){.w = txt->qkv, .q_norm = txt->q_norm, .k_norm = txt->k_norm};
    qkv.group[DIT_IMAGE] = (struct linear_group){.w = img->qkv, .q_norm = img->q_norm, .k_norm = img->k_norm};
    linear_of_streams(r, qkv);
    attention(r, d, q, s, o);
    linear_of_streams(
        r, (struct linear_args){.y = s->z,
                                .x = o,
                                .residual = s->z,
                                .split = split,
                                .epilogue = LINEAR_RESIDUAL,
                                .group = {{.w = weight_of(txt->proj), .gate = mod[DIT_TEXT][GATE1]},
                                          {.w = weight_of(img->proj), .gate = mod[DIT_IMAGE][GATE1]}}});
    run_adaln(r, &(struct adaln_args){.y = h_mlp,
                                      .x = s->z,
                                      .split = split,
                                      .eps = d->eps,
                                      .shift = {mod[DIT_TEXT][SHIFT2], mod[DIT_IMAGE][SHIFT2]},
                                      .scale = {mod[DIT_TEXT][SCALE2], mod[DIT_IMAGE][SCALE2]}});
    linear_of_streams(
        r, (struct linear_args){.y = u,
                                .x = h_mlp,
                                .split = split,
                                .epilogue = LINEAR_SWIGLU,
                                .group = {{.w = weight_of(txt->mlp_in)}, {.w = weight_of(img->mlp_in)}}});
    linear_of_streams(
        r, (struct linear_args){.y = s->z,
                                .x = u,
                                .residual = s->z,
                                .split = split,
                                .epilogue = LINEAR_RESIDUAL,
                                .group = {{.w = weight_of(txt->mlp_out), .gate = mod[DIT_TEXT][GATE2]},
                                          {.w = weight_of(img->mlp_out), .gate = mod[DIT_IMAGE][GATE2]}}});
}

/* A single block's first product for rows [first, first + n) of x, which may be none: all of it, or k and v alone. */
static void project(struct run *r, struct linear_args a, int first, int n, int keys_only)
{
    const int D = a.qkv.heads * a.qkv.head_dim;
    if (keys_only) {
        a.group[0].w = weight_of(tensor_rows(a.group[0].w.part[0], D, 2 * D));
        a.qkv.q = a.qkv.mlp = (struct tensor){0};
        a.qkv.heads = 0;
    }
    linear_rows(r, a, first, n);
}

/* Attention and MLP read the same normalised input and share one residual. Rows that end here are only attended to. */
static void single_block(struct run *r, const struct dit *m, const struct dit_single *b,
                         const struct dit_request *q, struct state *s)
{
    const struct dit_config *d = m->cfg;
    int D = d->width, first = s->rows.first, n = s->rows.n, end = first + n;
    struct tensor shift = vectors(q->now, DIT_MOD_SINGLE, 1), scale = vectors(q->now, DIT_MOD_SINGLE + 1, 1);
    /* "in" makes a part of om, and only products of weights in e4m3 write e4m3. */
    const int e4m3_in = is_e4m3(b->in), e4m3_out = e4m3_in && is_e4m3(b->out);
    struct tensor gate = vectors(q->now, DIT_MOD_SINGLE + 2, 1), h = operand_of(r, s, s->h, e4m3_in, 0),
                  om = attended_of(r, s, s->om, e4m3_out), z = tensor_rows(s->z, first, n);
    struct linear_args in = to_qkv(r, d, q, s, h);
    in.group[0] = (struct linear_group){.w = weight_of(b->in), .q_norm = b->q_norm, .k_norm = b->k_norm};
    in.qkv.mlp = tensor_cols(om, D, d->mlp_width);

    run_adaln(r,
              &(struct adaln_args){.y = h, .x = s->z, .eps = d->eps, .shift[0] = shift, .scale[0] = scale});
    project(r, in, 0, first, 1);
    project(r, in, first, n, 0);
    project(r, in, end, h.rows - end, 1);
    attention(r, d, q, s, tensor_cols(om, 0, D));
    run_linear(r, &(struct linear_args){.y = z,
                                        .x = tensor_rows(om, first, n),
                                        .residual = z,
                                        .epilogue = LINEAR_RESIDUAL,
                                        .group[0] = {.w = weight_of(b->out), .gate = gate}});
}

static struct state buffers(struct run *r, const struct dit_config *d, const struct dit_request *q)
{
    struct state s = {.own = rows_of(r, q, r->tokens.rank)};
    int size = share_size(r->tokens), D = d->width, n = rows_in_all(s.own);
    const int room = rows_room(r->tokens, q->n_text, q->n_target, q->n_tokens - q->n_text - q->n_target);
    s.room = room;
    s.rows = (struct rows){0, n};
    s.queries = (struct rows){0, q->n_tokens};
    s.z = tensor_rows(run_tensor(r, r->act, room, D), 0, n);
    s.h = tensor_rows(run_tensor(r, r->act, room, D), 0, n);
    s.om = tensor_rows(run_tensor(r, r->act, room, D + d->mlp_width), 0, n);
    for (int i = 0; i < 3; i++) s.qkv[i] = s.all_qkv[i] = run_tensor(r, r->act, q->n_tokens, D / size);
    for (int i = 0; i < 3 && copies(r); i++) s.qkv[i] = tensor_rows(run_tensor(r, r->act, room, D), 0, n);
    if (copies(r)) s.all_o = run_tensor(r, r->act, q->n_tokens, D / size);
    return s;
}

void dit_forward(struct run *r, const struct dit *m, const struct dit_request *q, int step, struct tensor x,
                 struct tensor v)
{
    const struct dit_config *d = m->cfg;
    size_t mark = arena_mark(r->arena, r->end);
    struct state s = buffers(r, d, q);
    int n_text = s.own.n[DIT_TEXT], n_target = s.own.n[DIT_TARGET], n_references = s.own.n[DIT_REFERENCES];

    run_copy(r, &(struct copy_args){.y = tensor_rows(s.z, 0, n_text),
                                    .x = tensor_rows(q->text, s.own.first[DIT_TEXT], n_text)});
    linear(r, tensor_rows(s.z, n_text, n_target), x, m->x_embedder, LINEAR_PLAIN);
    if (n_references)
        run_copy(r, &(struct copy_args){
                        .y = tensor_rows(s.z, n_text + n_target, n_references),
                        .x = tensor_rows(q->references, s.own.first[DIT_REFERENCES], n_references)});

    meet(r); /* whatever the others did with this part of their arenas, they are done */
    for (int i = 0; i < d->double_blocks; i++) {
        double_block(r, m, &m->doubles[i], q, &s);
        if (r->tap_blocks) {
            run_tap(r, tensor_rows(s.z, 0, n_text), "step.%d.double.%d.txt", step, i);
            run_tap(r, tensor_rows(s.z, n_text, s.z.rows - n_text), "step.%d.double.%d.img", step, i);
        }
    }
    for (int i = 0; i < d->single_blocks; i++) {
        if (i == d->single_blocks - 1 && !r->tap_blocks) { /* text and references end here */
            s.rows = (struct rows){n_text, n_target};
            s.queries = (struct rows){q->n_text, q->n_target};
        }
        single_block(r, m, &m->singles[i], q, &s);
        if (r->tap_blocks) run_tap(r, s.z, "step.%d.single.%d", step, i);
    }

    /* Only the target's rows are a velocity. */
    struct tensor target = tensor_rows(s.z, n_text, n_target), h = tensor_rows(s.h, 0, n_target);
    run_adaln(r, &(struct adaln_args){.y = h,
                                      .x = target,
                                      .eps = d->eps,
                                      .shift[0] = vectors(q->now, DIT_MOD_SHIFT, 1),
                                      .scale[0] = vectors(q->now, DIT_MOD_SCALE, 1)});
    linear(r, v, h, m->proj_out, LINEAR_PLAIN);
    arena_release(r->arena, r->end, mark);
}
