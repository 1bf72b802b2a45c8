/* op_cases.h: one list of cases for every op: operands with all shapes, dtypes, strides and aliases that
 * matter. The tests of every backend, the benches and `klein selftest` run this list; a new kernel adds its edges here.
 *
 * The rule that a backend has to meet (op_case_judge), after the values of all operands are fixed:
 *   truth  the op in f64 on exactly these values, nothing rounded (backend "ref" on F32 operands)
 *   naive  the same source evaluated in f32 with sums in plain order, operands of products rounded to act,
 * results rounded once: what anybody's first program does pass   |result - truth| <= 2 |naive - truth|, in
 * relative L2 and in the maximum, for every output. A result that is the correctly rounded truth passes too
 * (in a tiny case naive may be exact by luck). NaN and Inf never pass. Outputs start as NaN. Every operand
 * lies between guard zones and its rows are separated by gaps, all filled with NaN: they must be unchanged
 * afterwards, and reading them shows in the result.
 *
 * On a device with `place` the operands that a model's files hold (matrices, convolutions, vectors) go through it first, as when a model
 * is opened: in dense rows, and then without guard zones. They stay in the device's memory until it is closed. */
#ifndef KLEIN_OP_CASES_H
#define KLEIN_OP_CASES_H

#include "../device.h"

enum op_option {
    WITH_BIAS = 1,
    WITH_GATE = 2,
    WITH_RESIDUAL = 4,
    WITH_MLP = 8,
    WITH_NORM = 16, /* conv: group norm and SiLU on the way in */
    WITH_SILU = 32,
    X_F32 = 64, /* this operand is F32 whatever act is */
    Y_F32 = 128,
    IN_PLACE = 256, /* the alias that ops.h allows */
    OUTLIERS = 512, /* a few channels of x are 100 times larger, as in the real model */
    UPSAMPLE = 1024,
    OFFSET = 2048, /* x has a mean that is large against its spread */
    /* in a BF16 run on a device that has it (device.h), else the numbers that they stand for, which are exact in BF16: */
    X_E4M3 = 4096, /* linear: x and weights are F8_E4M3 with scales */
    Y_E4M3 =
        8192, /* adaln, linear (QKV: mlp), attention: so is y; but for adaln with scales per TENSOR_GROUP columns */
    QKV_E4M3 = 131072, /* linear: so are q, k, v */
    X_GROUPS = 16384,  /* x has its scales per TENSOR_GROUP columns */
    QUANTISED = 32768, /* linear, on devices that place: the weights are placed as WEIGHT_MATRIX_E4M3 */
    WITH_STATS = 65536 /* conv: gn_stats of y, in `groups` */
};

struct op_case {
    const char *name; /* without the op's */
    enum op_id op;
    int m, n, k;             /* rows, columns of y, columns of x; attention: queries, keys */
    int split;               /* linear, adaln */
    int heads, kv_heads, hd; /* attention, linear QKV */
    int key_len, causal;     /* attention */
    int epilogue, pairs;     /* linear */
    int parts;               /* linear: the weight's row blocks, unequal (0: 1) */
    int h, w, ksize, stride; /* conv, patchify: pixels of x (of the image); stride 0: 1 */
    int groups;              /* norms */
    int row0, rows;          /* conv: a band of y; what of x it does not need is NaN */
    int bands;               /* norms: their statistics are of that many, of which the first weighs least */
    int gap;                 /* elements between rows of act operands and weights */
    enum dtype weights;      /* dtype of weights; DT_NONE: BF16 */
    int options;             /* enum op_option */
    int bench;               /* too large for tests: for benches only */
};

extern const struct op_case op_cases[];
extern const int op_case_count;

/* A case made ready: its args with operands in the memory of a device. */
enum { OPERANDS = 24 };
struct op_call {
    const struct op_case *c;
    struct device *dev;
    union {
#define X(op, args) struct args op;
        KLEIN_OPS(X)
#undef X
    } args;
    struct operand {
        struct tensor *slot; /* into args */
        int first, rows;     /* output: of which only these rows are written; 0: all */
        int output, same_as; /* same_as: index of the operand whose memory it shares, or -1 */
        int weight;          /* from a model's files: it may be placed, as this kind */
        enum weight_kind kind;
        float *values; /* [rows, cols], exact in the operand's dtype; NULL for pure outputs */
        char *memory;  /* with guard zones; NULL: placed */
        size_t bytes;
    } operand[OPERANDS];
    int operands;
};

/* Builds case c with activations act on dev. Values depend only on the case and on `values`, the act that
 * they are rounded to: (F32, BF16) makes F32 operands that hold BF16 values. Free with op_call_free unless it fails. */
enum klein_status op_call_open(struct op_call *call, const struct op_case *c, enum dtype act,
                               enum dtype values, struct device *dev, struct klein_error *err);
/* ops_check of its op. */
enum klein_status op_call_cost(struct op_call *call, struct op_cost *cost, struct klein_error *err);
/* Runs it (ops_check first). Callable repeatedly except for IN_PLACE cases. */
enum klein_status op_call_run(struct op_call *call, struct klein_error *err);
/* Output i (0, 1, ...) as F32 in a contiguous host tensor whose memory the caller frees; ptr NULL past the last.
 * KLEIN_E_INTERNAL if a guard zone or gap of any operand has changed, naming the operand. */
enum klein_status op_call_read(struct op_call *call, int i, struct tensor *out, struct klein_error *err);
/* The outputs are NaN again. Not for IN_PLACE cases. */
enum klein_status op_call_clear(struct op_call *call, struct klein_error *err);
void op_call_free(struct op_call *call);

/* The case's multiplications, roughly; for ops without products their elements. To leave out what takes too long somewhere. */
double op_case_work(const struct op_case *c);

enum { OP_CASE_TEXT = 256 };
struct op_verdict {
    double excess;  /* the largest error of its outputs as a multiple of its limit: more than 1 fails */
    double seconds; /* of the op on the device (between marks where it has them) */
    char text[OP_CASE_TEXT]; /* which error that is, with its limit */
};
/* The whole rule above for one case on one device. A status that is not KLEIN_OK: it could not be run, or wrote where it must not. */
enum klein_status op_case_judge(const struct op_case *c, enum dtype act, struct device *dev,
                                struct op_verdict *out, struct klein_error *err);

/* The naive evaluation as a device; device_close as usual. */
enum klein_status naive_device_open(struct device **out, struct klein_error *err);

/* ||a - b|| / ||b|| over all elements of two tensors of equal size, in f64. NaN or Inf anywhere in a gives +Inf. */
double tensor_relative_l2(struct tensor a, struct tensor b);
double tensor_max_difference(struct tensor a, struct tensor b); /* NaN gives +Inf */

#endif
