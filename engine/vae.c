#include "vae.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#define GROUP_NORM_EPS 1e-6f

/* --- weights ------------------------------------------------------------------------------------------- */

/* Binding state: names are "<prefix><name>.weight". */
struct binder {
    struct checkpoint *c;
    struct klein_error *err;
    char prefix[96];
};

static struct tensor get(struct binder *b, int ndim, const int64_t *shape, const char *name)
{
    struct tensor t = {0};
    char full[256];
    snprintf(full, sizeof full, "%s%s", b->prefix, name);
    checkpoint_tensor(b->c, PART_VAE, full, ndim, shape, &t, b->err); /* sticky in err */
    return t;
}

static struct tensor get_vector(struct binder *b, int n, const char *name)
{
    return get(b, 1, (int64_t[]){n}, name);
}

#define NAME(name, suffix) (snprintf(full, sizeof full, "%s%s", name, suffix), full)

static struct vae_norm get_norm(struct binder *b, int c, const char *name)
{
    char full[128];
    return (struct vae_norm){get_vector(b, c, NAME(name, ".weight")), get_vector(b, c, NAME(name, ".bias"))};
}

static struct vae_conv get_conv(struct binder *b, int from, int to, int ksize, const char *name)
{
    char full[128];
    struct vae_conv k = {.ksize = ksize};
    k.w = get(b, 4, (int64_t[]){to, from, ksize, ksize}, NAME(name, ".weight"));
    k.bias = get_vector(b, to, NAME(name, ".bias"));
    return k;
}

__attribute__((format(printf, 4, 5))) static struct vae_block get_block(struct binder *b, int from, int to,
                                                                        const char *format, ...)
{
    char outer[sizeof b->prefix], inner[64];
    va_list ap;
    va_start(ap, format);
    vsnprintf(inner, sizeof inner, format, ap);
    va_end(ap);
    snprintf(outer, sizeof outer, "%s", b->prefix);
    snprintf(b->prefix, sizeof b->prefix, "%.30s%.60s.", outer, inner);
    struct vae_block k = {.norm1 = get_norm(b, from, "norm1"),
                          .norm2 = get_norm(b, to, "norm2"),
                          .conv1 = get_conv(b, from, to, 3, "conv1"),
                          .conv2 = get_conv(b, to, to, 3, "conv2")};
    if (from != to) k.shortcut = get_conv(b, from, to, 1, "conv_shortcut");
    snprintf(b->prefix, sizeof b->prefix, "%s", outer);
    return k;
}

/* `channels` of the levels in the order they run. */
static void bind_half(struct binder *b, struct vae_half *half, const int *channels, int blocks, int ends[2],
                      int decoder)
{
    static const char *const attention_names[4] = {"to_q", "to_k", "to_v", "to_out.0"};
    const char *direction = decoder ? "up" : "down";
    int mid = decoder ? channels[0] : channels[VAE_LEVELS - 1];
    char name[96], full[128];

    snprintf(b->prefix, sizeof b->prefix, "%s", decoder ? "decoder." : "encoder.");
    half->blocks = blocks;
    half->conv_in = get_conv(b, ends[0], channels[0], 3, "conv_in");
    for (int l = 0, c = channels[0]; l < VAE_LEVELS; c = channels[l++]) {
        for (int i = 0; i < blocks; i++)
            half->level[l][i] =
                get_block(b, i ? channels[l] : c, channels[l], "%s_blocks.%d.resnets.%d", direction, l, i);
        snprintf(name, sizeof name, "%s_blocks.%d.%ssamplers.0.conv", direction, l, direction);
        if (l < VAE_LEVELS - 1) half->resample[l] = get_conv(b, channels[l], channels[l], 3, name);
    }
    for (int i = 0; i < 2; i++) half->mid[i] = get_block(b, mid, mid, "mid_block.resnets.%d", i);
    half->attention.norm = get_norm(b, mid, "mid_block.attentions.0.group_norm");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "mid_block.attentions.0.%s", attention_names[i]);
        half->attention.w[i] = get(b, 2, (int64_t[]){mid, mid}, NAME(name, ".weight"));
        half->attention.bias[i] = get_vector(b, mid, NAME(name, ".bias"));
    }
    half->norm_out = get_norm(b, channels[VAE_LEVELS - 1], "conv_norm_out");
    half->conv_out = get_conv(b, channels[VAE_LEVELS - 1], ends[1], 3, "conv_out");
}

enum klein_status vae_bind(struct vae *v, struct checkpoint *c, struct klein_error *err)
{
    const struct vae_config *cfg = v->cfg = &checkpoint_config(c)->vae;
    struct binder b = {.c = c, .err = err};
    int latent = cfg->latent_channels, reversed[VAE_LEVELS];
    CHECK(cfg->layers_per_block + 1 <= VAE_MAX_BLOCKS);
    for (int l = 0; l < VAE_LEVELS; l++) reversed[l] = cfg->decoder_channels[VAE_LEVELS - 1 - l];
    bind_half(&b, &v->encoder, cfg->encoder_channels, cfg->layers_per_block, (int[]){3, 2 * latent}, 0);
    bind_half(&b, &v->decoder, reversed, cfg->layers_per_block + 1, (int[]){latent, 3}, 1);
    b.prefix[0] = 0;
    if (cfg->quant_conv) v->quant_conv = get_conv(&b, 2 * latent, 2 * latent, 1, "quant_conv");
    if (cfg->post_quant_conv) v->post_quant_conv = get_conv(&b, latent, latent, 1, "post_quant_conv");
    v->bn_mean = get_vector(&b, 4 * latent, "bn.running_mean");
    v->bn_var = get_vector(&b, 4 * latent, "bn.running_var");
    return err->status;
}

/* --- the walk ------------------------------------------------------------------------------------------- */

/* The image being transformed. At full resolution one such tensor is half a gigabyte, so memory is what
 * matters: x is the only thing above base[end] at arena end `end`; a new x is made at the other end and the
 * old one released, or in its place. Peak: an x and the next one, or one intermediate. */
struct walk {
    struct run *r;
    struct tensor x;
    int h, w;
    size_t before, base[2];
    /* [bands * groups, 2]: of x; of what comes next. The convolution that makes an image makes its stats. */
    struct tensor stats, spare;
    /* Of several devices each makes a band of the rows of every image, that of whole rows of the latents. Of the others' rows it has those
     * next to its own, which convolutions read. */
    struct share bands;
    int latent_rows, exchanges;
};

static struct tensor opposite(struct walk *k, int rows, int cols)
{
    k->r->end = !k->r->end;
    struct tensor t = run_tensor(k->r, k->r->act, rows, cols);
    k->r->end = !k->r->end;
    return t;
}

static void release_opposite(struct walk *k)
{
    arena_release(k->r->arena, !k->r->end, k->base[!k->r->end]);
}

/* y, taken at the opposite end, becomes the image. */
static void walk_to(struct walk *k, struct tensor y, int h, int w)
{
    arena_release(k->r->arena, k->r->end, k->base[k->r->end]);
    k->r->end = !k->r->end;
    k->x = y;
    k->h = h;
    k->w = w;
}

/* --- bands --- */

/* Where device `rank`'s rows begin in an image of h rows. */
static int first_row(const struct walk *k, int rank, int h)
{
    return share_first(k->bands, rank, k->latent_rows) * (h / k->latent_rows);
}

/* This device's rows of an image as large as x. */
static struct tensor own(const struct walk *k, struct tensor t)
{
    int first = first_row(k, k->bands.rank, k->h), end = first_row(k, k->bands.rank + 1, k->h);
    return tensor_rows(t, first * k->w, (end - first) * k->w);
}

static struct tensor own_stats(const struct walk *k, struct tensor stats)
{
    int groups = stats.rows / share_size(k->bands);
    return tensor_rows(stats, k->bands.rank * groups, groups);
}

static struct group_norm norm_of(const struct walk *k, struct tensor stats, const struct vae_norm *n)
{
    struct group_norm norm = {
        .stats = stats, .gamma = n->gamma, .beta = n->beta, .bands = share_size(k->bands)};
    for (int i = 0; i < norm.bands; i++)
        norm.weight[i] = first_row(k, i + 1, k->latent_rows) - first_row(k, i, k->latent_rows);
    return norm;
}

/* An exchange in place of contiguous tensors taken as `rows` rows, of which none goes anywhere yet. Others may be busy with something else
 * before the first one: a reference, a step. */
static struct exchange_args exchange(struct walk *k, const struct tensor *t, int tensors, int rows)
{
    struct exchange_args a = {.size = share_size(k->bands),
                              .rank = k->bands.rank,
                              .tensors = tensors,
                              .ready = k->exchanges++ == 0};
    for (int i = 0; i < tensors; i++)
        a.from[i] = a.to[i] = tensor_of(t[i].ptr, t[i].dtype, rows, t[i].rows / rows * t[i].cols);
    for (int i = 0; i < a.size; i++) a.way[i].cols = a.from[0].cols;
    return a;
}

/* Rows from `first` on go to device i, if there is one, and it is another. */
static void send(struct exchange_args *a, int i, int first, int rows)
{
    if (i >= 0 && i < a->size && i != a->rank) a->way[i].span[0] = (struct exchange_span){first, first, rows};
}

/* The neighbours get the rows next to theirs of y, an image of h rows; all get the statistics, if there are any. */
static void share_band(struct walk *k, struct tensor y, int h, struct tensor stats)
{
    int rank = k->bands.rank, size = share_size(k->bands);
    if (size == 1) return;
    struct exchange_args a = exchange(k, &y, 1, h);
    send(&a, rank - 1, first_row(k, rank, h), 1);
    send(&a, rank + 1, first_row(k, rank + 1, h) - 1, 1);
    run_exchange(k->r, &a);
    if (!stats.ptr) return;
    a = exchange(k, &stats, 1, size);
    for (int i = 0; i < size; i++) send(&a, i, rank, 1);
    run_exchange(k->r, &a);
}

/* Own rows of images of h rows go to devices 0 .. to - 1. */
static void share_rows(struct walk *k, const struct tensor *t, int tensors, int h, int to)
{
    if (share_size(k->bands) == 1) return;
    struct exchange_args a = exchange(k, t, tensors, h);
    int first = first_row(k, a.rank, h), rows = first_row(k, a.rank + 1, h) - first;
    for (int i = 0; i < to; i++) send(&a, i, first, rows);
    run_exchange(k->r, &a);
}

/* The convolution, of which this device makes its rows of y's h and their statistics. */
static void conv_rows(struct walk *k, struct conv_args a, int h)
{
    if (share_size(k->bands) > 1) {
        a.row0 = first_row(k, k->bands.rank, h);
        a.rows = first_row(k, k->bands.rank + 1, h) - a.row0;
    }
    if (a.stats.ptr) a.stats = own_stats(k, a.stats);
    run_conv(k->r, &a);
}

/* --- steps --- */

enum resample { SAME, DOWN, UP };

/* stats: y is going to be normalised. */
static void walk_conv(struct walk *k, const struct vae_conv *c, const struct vae_norm *n, enum resample how,
                      int stats)
{
    int h = how == DOWN ? k->h / 2
            : how == UP ? k->h * 2
                        : k->h,
        w = how == DOWN ? k->w / 2
            : how == UP ? k->w * 2
                        : k->w;
    struct tensor y = opposite(k, h * w, c->w.rows);
    struct conv_args a = {.y = y,
                          .x = k->x,
                          .w = c->w,
                          .bias = c->bias,
                          .h = k->h,
                          .w_px = k->w,
                          .ksize = c->ksize,
                          .stride = how == DOWN ? 2 : 1,
                          .upsample = how == UP,
                          .eps = GROUP_NORM_EPS};
    struct tensor of_y = k->spare;
    if (n) a.norm = norm_of(k, k->stats, n);
    if (stats) a.stats = of_y;
    conv_rows(k, a, h);
    share_band(k, y, h, a.stats);
    k->spare = k->stats;
    k->stats = of_y;
    walk_to(k, y, h, w);
}

/* Rows of pixels of an image as wide as x go through a 1x1 convolution. */
static void convolve_pixels(struct walk *k, const struct vae_conv *c, struct tensor y, struct tensor x)
{
    run_conv(k->r, &(struct conv_args){.y = y,
                                       .x = x,
                                       .w = c->w,
                                       .bias = c->bias,
                                       .h = x.rows / k->w,
                                       .w_px = k->w,
                                       .ksize = 1,
                                       .stride = 1});
}

/* The image of fewer channels that takes x's place in memory: its rows end before those of x that are still to be read, if
 * they are made in bands, each at most as long as leaves it so. Where that is next to nothing, at the top, a band goes by way of
 * other memory, which all devices take: their arenas are laid out alike. At full resolution x, this image and what lies between
 * would be the most that a picture needs. */
static struct tensor shortcut_in_place(struct walk *k, const struct vae_conv *c)
{
    const struct tensor x = k->x, y = tensor_of(x.ptr, x.dtype, x.rows, c->w.rows);
    const int first = first_row(k, k->bands.rank, k->h), end = first_row(k, k->bands.rank + 1, k->h),
              least = (k->h + 15) / 16;
    const size_t mark = arena_mark(k->r->arena, !k->r->end);
    const struct tensor aside = opposite(k, least * k->w, y.cols);
    for (int row = first, n; row < end; row += n) {
        const int room = (int)((int64_t)row * x.cols / y.cols) - row;
        n = room < least ? least : room;
        if (n > end - row) n = end - row;
        const struct tensor band = tensor_rows(y, row * k->w, n * k->w),
                            by_way = tensor_rows(aside, 0, n * k->w);
        convolve_pixels(k, c, n > room ? by_way : band, tensor_rows(x, row * k->w, n * k->w));
        if (n > room) run_copy(k->r, &(struct copy_args){.y = band, .x = by_way});
    }
    arena_release(k->r->arena, !k->r->end, mark);
    return y;
}

/* x + conv2(silu(norm2(conv1(silu(norm1(x)))))), in place unless the number of channels grows. */
static void walk_block(struct walk *k, const struct vae_block *b)
{
    const int rows = k->h * k->w, channels = b->conv2.w.rows, grows = channels > k->x.cols;
    struct tensor y = grows ? opposite(k, rows, channels) : k->x;
    const size_t after_y = arena_mark(k->r->arena, !k->r->end);
    struct tensor t = opposite(k, rows, channels);
    conv_rows(k,
              (struct conv_args){.y = t,
                                 .x = k->x,
                                 .w = b->conv1.w,
                                 .bias = b->conv1.bias,
                                 .h = k->h,
                                 .w_px = k->w,
                                 .ksize = 3,
                                 .stride = 1,
                                 .norm = norm_of(k, k->stats, &b->norm1),
                                 .stats = k->spare,
                                 .eps = GROUP_NORM_EPS},
              k->h);
    if (grows)
        convolve_pixels(k, &b->shortcut, own(k, y), own(k, k->x));
    else if (b->shortcut.w.ptr)
        y = shortcut_in_place(k, &b->shortcut);
    share_band(k, t, k->h, k->spare); /* after which the neighbours may store into y */
    conv_rows(k,
              (struct conv_args){.y = y,
                                 .x = t,
                                 .w = b->conv2.w,
                                 .bias = b->conv2.bias,
                                 .h = k->h,
                                 .w_px = k->w,
                                 .ksize = 3,
                                 .stride = 1,
                                 .residual = y,
                                 .norm = norm_of(k, k->spare, &b->norm2),
                                 .stats = k->stats,
                                 .eps = GROUP_NORM_EPS},
              k->h);
    share_band(k, y, k->h, k->stats);
    arena_release(k->r->arena, !k->r->end, after_y);
    if (grows)
        walk_to(k, y, k->h, k->w);
    else
        k->x = y;
}

/* x + out(attention(norm(x))): one head as wide as the image has channels, over all pixels. */
static void walk_attention(struct walk *k, const struct vae_attention *a)
{
    int rows = k->h * k->w, c = k->x.cols;
    struct tensor y = own(k, opposite(k, rows, c)), o = own(k, opposite(k, rows, c)), x = own(k, k->x),
                  qkv[3];
    run_gn_apply(k->r, &(struct gn_apply_args){.y = y, .x = x, .norm = norm_of(k, k->stats, &a->norm)});
    for (int i = 0; i < 3; i++) {
        qkv[i] = opposite(k, rows, c);
        run_linear(k->r, &(struct linear_args){.y = own(k, qkv[i]),
                                               .x = y,
                                               .group[0] = {.w = weight_of(a->w[i]), .bias = a->bias[i]}});
    }
    share_rows(k, qkv + 1, 2, k->h, share_size(k->bands));
    run_attention(k->r, &(struct attention_args){.o = o,
                                                 .q = own(k, qkv[0]),
                                                 .k = qkv[1],
                                                 .v = qkv[2],
                                                 .heads = 1,
                                                 .kv_heads = 1,
                                                 .head_dim = c,
                                                 .scale = 1 / sqrtf((float)c)});
    run_linear(k->r, &(struct linear_args){.y = x,
                                           .x = o,
                                           .residual = x,
                                           .epilogue = LINEAR_RESIDUAL,
                                           .group[0] = {.w = weight_of(a->w[3]), .bias = a->bias[3]}});
    run_gn_stats(k->r,
                 &(struct gn_stats_args){.stats = own_stats(k, k->stats), .x = x, .eps = GROUP_NORM_EPS});
    share_band(k, k->x, k->h, k->stats);
    release_opposite(k);
}

static void walk_mid(struct walk *k, const struct vae_half *half)
{
    walk_block(k, &half->mid[0]);
    walk_attention(k, &half->attention);
    walk_block(k, &half->mid[1]);
}

static void walk_levels(struct walk *k, const struct vae_half *half, enum resample how)
{
    for (int l = 0; l < VAE_LEVELS; l++) {
        for (int i = 0; i < half->blocks; i++) walk_block(k, &half->level[l][i]);
        if (half->resample[l].w.ptr) walk_conv(k, &half->resample[l], NULL, how, 1);
    }
}

/* x is of h rows, the latents of latent_rows. */
static struct walk walk_begin(struct run *r, const struct vae *v, int h, int w, int channels, int latent_rows,
                              struct share bands)
{
    struct walk k = {.r = r,
                     .h = h,
                     .w = w,
                     .before = arena_mark(r->arena, r->end),
                     .bands = bands,
                     .latent_rows = latent_rows};
    int stats = share_size(bands) * v->cfg->norm_groups;
    k.stats = run_tensor(r, DT_F32, stats, 2);
    k.spare = run_tensor(r, DT_F32, stats, 2);
    for (int end = 0; end < 2; end++) k.base[end] = arena_mark(r->arena, end);
    k.x = run_tensor(r, r->act, h * w, channels);
    return k;
}

static void walk_end(struct walk *k, int end)
{
    for (int i = 0; i < 2; i++) arena_release(k->r->arena, i, k->base[i]);
    arena_release(k->r->arena, end, k->before);
    k->r->end = end;
}

void vae_encode(struct run *r, const struct vae *v, struct tensor tokens, struct tensor rgb, int h, int w)
{
    const struct vae_half *e = &v->encoder;
    int end = r->end;
    struct walk k = walk_begin(r, v, h, w, 3, h / 8, (struct share){0});
    run_from_u8(r, &(struct from_u8_args){.y = k.x, .x = rgb});
    walk_conv(&k, &e->conv_in, NULL, SAME, 1);
    walk_levels(&k, e, DOWN);
    walk_mid(&k, e);
    walk_conv(&k, &e->conv_out, &e->norm_out, SAME, 0);
    if (v->quant_conv.w.ptr) walk_conv(&k, &v->quant_conv, NULL, SAME, 0);
    struct tensor mean =
        tensor_cols(k.x, 0, v->cfg->latent_channels); /* the mode; the log variances are not needed */
    run_patchify(r, &(struct patch_args){.y = tokens,
                                         .x = mean,
                                         .mean = v->bn_mean,
                                         .var = v->bn_var,
                                         .h = k.h,
                                         .w = k.w,
                                         .eps = v->cfg->bn_eps});
    walk_end(&k, end);
}

struct share vae_bands(const struct run *r, int h)
{
    return h / 8 < share_size(r->tokens) ? (struct share){0} : r->tokens;
}

void vae_decode(struct run *r, const struct vae *v, struct tensor image, struct tensor tokens, int h, int w)
{
    const struct vae_half *d = &v->decoder;
    int end = r->end;
    struct walk k = walk_begin(r, v, h / 8, w / 8, v->cfg->latent_channels, h / 8, vae_bands(r, h));
    run_unpatchify(r, &(struct patch_args){.y = k.x,
                                           .x = tokens,
                                           .mean = v->bn_mean,
                                           .var = v->bn_var,
                                           .h = k.h,
                                           .w = k.w,
                                           .eps = v->cfg->bn_eps});
    if (v->post_quant_conv.w.ptr) walk_conv(&k, &v->post_quant_conv, NULL, SAME, 0);
    walk_conv(&k, &d->conv_in, NULL, SAME, 1);
    walk_mid(&k, d);
    walk_levels(&k, d, UP);
    conv_rows(&k,
              (struct conv_args){.y = image,
                                 .x = k.x,
                                 .w = d->conv_out.w,
                                 .bias = d->conv_out.bias,
                                 .h = h,
                                 .w_px = w,
                                 .ksize = 3,
                                 .stride = 1,
                                 .norm = norm_of(&k, k.stats, &d->norm_out)},
              h);
    share_rows(&k, &image, 1, h, 1);
    walk_end(&k, end);
}
