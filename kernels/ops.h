/* ops.h: the op interface, THE seam between the model and the machine.
 *
 * The model (engine/) is written once against this list; a backend is one table of these functions. What
 * an op means is kernels/ref/: plain C with f64 sums, the specification that every backend is compared
 * with.
 *
 * Rules for all ops
 *  - Arguments are one struct per op, by pointer, valid during the call. Tensors are views in the
 *    device's memory.
 *  - "act" is F32 or BF16: the dtype of activations; all act tensors of one call have the same. Weights
 *    may be F32, BF16 or F16, whatever the file holds; norm weights and biases likewise. f32 means
 *    exactly F32.
 *  - Arithmetic: products are of the act-rounded operands (a BF16 run rounds weights to BF16), sums and
 *    everything between load and store are f32 or better; ONE rounding to act at the store, unless the
 *    entry says otherwise.
 *  - Outputs never overlap inputs unless the entry allows it.
 *  - Sizes are checked once for all backends in ops.c (ops_check_*), which also states each op's cost; a
 *    backend may assume them.
 *  - Return KLEIN_OK, or KLEIN_E_UNSUPPORTED / KLEIN_E_NO_MEMORY / ... with a message in err.
 *  - Deterministic: the same operands give the same bytes, whatever the number of threads.
 * Sources: "model N" is section N of the model description (ARCHITECTURE.md says where the facts come
 * from). Lines here stay under 105 columns, so that the formatter leaves the layout alone. */
#ifndef KLEIN_OPS_H
#define KLEIN_OPS_H

#include "../base/error.h"
#include "../base/tensor.h"

struct device;

/* Where the rows of a result go that a device makes for the others of a group too: as they are made they are stored into the memory of
 * the device that has them, at the place of the result in its arena; arenas are laid out alike (device.h: exchange->direct). They are
 * there once all have met in an exchange. place [1, rows made] I32: row i goes to row place[i] & (2^EXCHANGE_ROW_BITS - 1) of device
 * place[i] >> EXCHANGE_ROW_BITS. size 0: none of this, the result stays here. */
enum { GROUP_MAX = 8, EXCHANGE_ROW_BITS = 28 };
struct exchange_to {
    int size, rank; /* of the group; this device's number */
    struct tensor place;
};

/* y[i, :] = table[ids[i], :].                                                  source: Qwen3 embedding
 * table [vocab, d] weight dtype; ids [1, n] I32, 0 <= id < vocab (checked where ids are made);
 * y [n, d] act. */
struct embed_args {
    struct tensor y, table, ids;
};

/* y = x / sqrt(mean(x^2) + eps) * w, per row.                                   source: Qwen3 RMSNorm
 * x, y [n, d] act; w [1, d]. y may be x. */
struct rmsnorm_args {
    struct tensor y, x, w;
    float eps;
};

/* y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift, per row, no affine weights. source: model 3.4
 * x, y [n, d] act; shift, scale [1, d] f32. Rows < split use [0], the others [1]; split = 0: all rows use
 * [0]. y may be x. y may also be F8_E4M3 with scales (x BF16, on devices with `e4m3`): the result quantised,
 * from f32 or better, for a linear of such weights; y is not x then. */
struct adaln_args {
    struct tensor y, x;
    struct tensor shift[2], scale[2];
    int split;
    float eps;
};

/* y = epilogue(x W^T + bias): every matrix product of the model.
 *
 * x [m, k] act or f32 (an f32 x in a BF16 run is rounded first; the call's act is BF16 if x or an output
 * is, else F32). Rows < split use group [0], the others group [1] (text and image streams of a double
 * block); split = 0: all rows use group [0].
 *   LINEAR_PLAIN     y [m, n] act or f32
 *   LINEAR_SILU      y = silu(.)
 *   LINEAR_RESIDUAL  y = residual + gate * (.); gate [1, n] f32 or absent (= 1). y may be residual.
 *   LINEAR_SWIGLU    W is [2f, k] = gate rows then up rows; y [m, f] = silu(gate) * up
 *   LINEAR_QKV       W is [(heads + 2 kv_heads) * head_dim (+ 2f), k]: rows q | k | v (| gate | up).
 *                    q and k: y = RMS over head_dim (eps) * q_norm / k_norm, then RoPE; v as is.
 *                    q [m, heads * hd], k, v [m, kv_heads * hd] act. heads = 0: W has no rows of q, and
 *                    none is made. If mlp.ptr: mlp [m, f] = SwiGLU of the last 2f rows (the single-stream
 *                    block's fused first linear, model 3.5).
 *                    to.size: q, k, v are [rows of all, kv_heads / size * hd], heads = kv_heads or 0: head
 *                    h goes to device h / (kv_heads / size), whatever device place names. mlp stays.
 *   RoPE pairs       ROPE_INTERLEAVED (2j, 2j+1) or ROPE_HALF (j, j + hd/2); angle tables cos, sin
 *                    [m, hd/2] f32.
 * Rounding: f32 from the accumulator to the stored value.
 *
 * All weights of a call may be F8_E4M3 with scales (struct tensor); not with SILU. A device that multiplies
 * e4m3 takes BF16 x then and quantises it in the same way, each row by itself (scale = largest magnitude /
 * 448), and y is of the products of what these two stand for; the others multiply x by what the weights
 * stand for, rounded to act as ever. On a device with `e4m3` x may come quantised already (F8_E4M3 with scales;
 * adaln writes that): act is BF16 then, and products are exactly of what x and the weights stand for. x may have its
 * scales per TENSOR_GROUP columns too, and with such weights every result but that of SILU may be quantised so, from f32: y, qkv.q, k, v, mlp (one ldscale); others are BF16 beside it. The residual is then BF16
 * and not y; q, k, v have heads of TENSOR_GROUP and stay on this device. */
enum linear_epilogue { LINEAR_PLAIN, LINEAR_SILU, LINEAR_RESIDUAL, LINEAR_SWIGLU, LINEAR_QKV };
enum rope_pairs { ROPE_INTERLEAVED, ROPE_HALF };
struct linear_group {
    struct weight w;
    struct tensor bias;           /* [1, n] or absent; not with QKV or SWIGLU */
    struct tensor gate;           /* RESIDUAL */
    struct tensor q_norm, k_norm; /* QKV: [1, head_dim] */
};
struct linear_args {
    struct tensor y, x;
    struct linear_group group[2];
    int split;
    enum linear_epilogue epilogue;
    struct tensor residual;
    struct {
        struct tensor q, k, v, mlp, cos, sin;
        struct exchange_to to;
        int heads, kv_heads, head_dim;
        enum rope_pairs pairs;
        float eps;
    } qkv;
};

/* o = softmax(scale * q k^T + mask) v per head; head h reads kv head h / (heads / kv_heads).
 * q, o [nq, heads * hd], k, v [nk, kv_heads * hd] act; scale > 0.             source: model 3.4, 4.3, 5
 * keys: [1, 1] I32, only that many keys exist (1 .. nk; checked where it is made; absent: all nk).
 * causal: query i sees keys <= i (then nq == nk); with keys a query i >= keys sees keys < keys. Scores and
 * softmax are f32 and are never stored whole (memory is O(nq * hd), not O(nq * nk)); probabilities may be
 * rounded to act before the second product. o may not overlap. o may also be F8_E4M3 with scales per
 * TENSOR_GROUP columns (the rest BF16, head_dim TENSOR_GROUP, on devices with `e4m3`).
 * to.size: o is act [own rows, size * heads * hd], and what is made here goes to the columns from
 * rank * heads * hd. Queries may be fewer than all devices' rows: place names their rows of o. */
struct attention_args {
    struct tensor o, q, k, v, keys;
    int heads, kv_heads, head_dim;
    int causal;
    float scale;
    struct exchange_to to;
};

/* y[s, :] = [cos(a_0..a_half-1), sin(a_0..)], a_k = t_s * 1000 * exp(-ln(10000) k / half).
 * t [1, steps] f32, y [steps, 2 half] f32.                                          source: model 3.1 */
struct timestep_args {
    struct tensor y, t;
};

/* Two-dimensional convolution, NHWC, with what surrounds it in the VAE.               source: model 5
 * x [h * w, cin] act; w [cout, cin * ksize * ksize] (OIHW as in the files); bias [1, cout];
 * y [oh * ow, cout] act.
 *   ksize 1 or 3; ksize 3 pads by zeros. stride 1: 1 on every side, oh = h.
 *   stride 2: right and bottom only, oh = h / 2.
 *   upsample: x is first enlarged 2x by nearest neighbour (h, w are those of x; oh = 2 h). Stride 1 then.
 *   norm.stats present: x is replaced by silu(groupnorm(x)) on the way in (zeros of the padding stay
 *   zero); stats from gn_stats.
 *   residual present: y = conv + bias + residual; residual [oh * ow, cout] act, may be y.
 *   stats present: becomes what gn_stats makes of y with this eps; it is not norm.stats.
 *   rows > 0: only rows [row0, row0 + rows) of y are made (upsample: both even), and stats are of these.
 *   Only the rows of x that they need are read, of residual only these.
 * Memory beyond the operands is bounded (tiles), whatever the image size.
 *
 * Statistics of an image whose rows were made in bands (by several devices) are those of the bands, one
 * after the other; band i has weight[i] of the rows. The norm is by those of the whole:
 *   mean = sum w mean_i, var + eps = sum w ((var_i + eps) + (mean_i - mean)^2),  w = weight[i] / sum weight */
struct group_norm {
    struct tensor stats;       /* [bands * groups, 2] f32: mean, 1 / sqrt(var + eps) */
    struct tensor gamma, beta; /* [1, c] */
    int bands;                 /* 0: one, the whole image */
    int weight[GROUP_MAX];     /* of two or more: > 0 */
};
static inline int norm_bands(const struct group_norm *n)
{
    return n->bands ? n->bands : 1;
}
static inline int norm_groups(const struct group_norm *n)
{
    return n->stats.rows / norm_bands(n);
}
struct conv_args {
    struct tensor y, x, w, bias, residual;
    int h, w_px; /* of x, in pixels */
    int ksize, stride, upsample;
    int row0, rows; /* of y; 0, 0: all */
    struct group_norm norm;
    struct tensor stats; /* [groups, 2] f32 */
    float eps;
};
/* Rows of y in all; rows [*first, *first + return value) of x are what rows [row0, row0 + rows) of y need. */
int conv_rows_of_y(const struct conv_args *a);
int conv_rows_of_x(const struct conv_args *a, int row0, int rows, int *first);

/* stats[g] = {mean, 1 / sqrt(var + eps)} of channels [g * c / groups, ...) over all pixels; biased variance,
 * computed without cancellation (f64 or shifted sums).    x [pixels, c] act; stats [groups, 2] f32. */
struct gn_stats_args {
    struct tensor stats, x;
    float eps;
};

/* y = groupnorm(x), then SiLU if `silu`. x, y [pixels, c] act. y may be x. */
struct gn_apply_args {
    struct tensor y, x;
    struct group_norm norm;
    int silu;
};

/* Latent image to tokens and back (2 x 2 pixels of c channels <-> one token of 4 c; token channel =
 * c * 4 + dy * 2 + dx).                                                           source: model 5, 7.1
 *   patchify:   y[token, :] = (P(x) - mean) / sqrt(var + eps)
 *               x [h * w, c] act, y [(h/2) * (w/2), 4 c] f32
 *   unpatchify: y = P^-1(x * sqrt(var + eps) + mean)
 *               x [(h/2) * (w/2), 4 c] f32, y [h * w, c] act
 * mean, var [1, 4 c]; h, w of the pixel side, even. */
struct patch_args {
    struct tensor y, x, mean, var;
    int h, w;
    float eps;
};

/* y = x + dt * v, all f32 [n, c], dt [1, 1]; y may be x.                             source: model 6 */
struct euler_args {
    struct tensor y, x, v, dt;
};

/* y = u + guidance * (c - u), all f32 [n, c]; y may be u or c.                     source: model 6.2 */
struct cfg_args {
    struct tensor y, cond, uncond;
    float guidance;
};

/* y = x converted: any of F32, BF16, F16 to F32 or BF16, [n, c], strides free. */
struct copy_args {
    struct tensor y, x;
};

/* y u8 [pixels, 3] = round_half_even(255 * clamp(x / 2 + 1/2, 0, 1)); x act or f32. NaN gives 0.
 *                                                                                  source: model 6.4 */
struct to_u8_args {
    struct tensor y, x;
};

/* y act [pixels, 3] = x / 255 * 2 - 1 (f32, then one rounding); x u8. */
struct from_u8_args {
    struct tensor y, x;
};

/* Every op once: X(name of the function and of its args struct, without "_args"). patchify and unpatchify
 * share patch_args. */
#define KLEIN_OPS(X)                                                                                         \
    X(embed, embed_args)                                                                                     \
    X(rmsnorm, rmsnorm_args)                                                                                 \
    X(adaln, adaln_args)                                                                                     \
    X(linear, linear_args)                                                                                   \
    X(attention, attention_args)                                                                             \
    X(timestep, timestep_args)                                                                               \
    X(conv, conv_args)                                                                                       \
    X(gn_stats, gn_stats_args)                                                                               \
    X(gn_apply, gn_apply_args)                                                                               \
    X(patchify, patch_args)                                                                                  \
    X(unpatchify, patch_args)                                                                                \
    X(euler, euler_args)                                                                                     \
    X(cfg, cfg_args)                                                                                         \
    X(copy, copy_args)                                                                                       \
    X(to_u8, to_u8_args)                                                                                     \
    X(from_u8, from_u8_args)

enum op_id {
#define X(op, args) OP_##op,
    KLEIN_OPS(X)
#undef X
        OP_COUNT,
    OP_exchange /* not in the table: struct device_exchange of device.h */
};
const char *op_name(enum op_id op); /* "linear" */

struct op_table {
#define X(op, args)                                                                                          \
    enum klein_status (*op)(struct device * dev, const struct args *a, struct klein_error *err);
    KLEIN_OPS(X)
#undef X
};

/* Rows to the devices of a group, and theirs here. For each device i of the group, columns [from_col, from_col + cols) of the rows of each
 * span go from every from[t] to columns to_col.. and the span's rows of what device i has at the place of to[t] in its own arena, so arenas
 * are laid out alike. When the op is done, what the others sent is here too. Then may be written what was read before the exchange
 * *before* this one; with `ready` what was read before this one, at the price of waiting twice.
 * All tensors of a dtype; rows, columns and places are multiples of 16 bytes. tensors 0: the devices only meet, and what each stored
 * before for the others (exchange_to) is there. */
enum { EXCHANGE_OPERANDS = 3, EXCHANGE_PARTS = 3 };
struct exchange_args {
    int size, rank; /* of the group; this device's number */
    int tensors, ready;
    struct tensor to[EXCHANGE_OPERANDS], from[EXCHANGE_OPERANDS];
    struct exchange_way {
        int from_col, to_col, cols;
        struct exchange_span {
            int from, to, rows; /* rows 0: nothing */
        } span[EXCHANGE_PARTS];
    } way[GROUP_MAX];
};
struct op_cost;
enum klein_status ops_check_exchange(const struct exchange_args *a, struct op_cost *cost,
                                     struct klein_error *err);

/* What one call costs: 2 FLOP per multiply-add of matrix products, convolutions and attention (the full
 * square, whatever causal and keys leave out), elementwise work ignored; bytes = operands read once +
 * results written once. Also the shape as text ("768x3072 @ 9216 qkv") for tables and messages, and for
 * predictions (predict.h) the product itself. */
struct op_cost {
    double flops, bytes;
    double m, n, k; /* linear, conv: [m, k] x [k, n]; attention: queries, keys, head_dim; adaln: m, n */
    int split;      /* linear */
    enum linear_epilogue epilogue;
    int swiglu; /* linear: it makes such columns, alone or beside q, k, v */
    int heads, causal;
    double sent;       /* bytes that go to other devices of a group, if all have as many rows */
    double norm_bytes; /* conv: normalising x in a pass of its own */
    int stats;         /* conv: makes those of y */
    char shape[96];
};

/* Checks operands (dtypes, sizes, presence); KLEIN_E_INTERNAL naming op and operand if they do not fit. Fills
 * cost if not NULL. */
#define X(op, args)                                                                                          \
    enum klein_status ops_check_##op(const struct args *a, struct op_cost *cost, struct klein_error *err);
KLEIN_OPS(X)
#undef X

#endif
