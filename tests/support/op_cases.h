/* op_cases.h: one list of cases for every op: operands with all shapes, dtypes, strides and aliases that
 * matter. The tests of every backend and the benches run this list; a new kernel adds its edges here.
 *
 * The rule that a backend has to meet (op_case_check), after the values of all operands are fixed:
 *   truth  the op in f64 on exactly these values, nothing rounded (backend "ref" on F32 operands)
 *   naive  the same source evaluated in f32 with sums in plain order, operands of products rounded to act,
 * results rounded once: what anybody's first program does pass   |result - truth| <= 2 |naive - truth|, in
 * relative L2 and in the maximum, for every output. A result that is the correctly rounded truth passes too
 * (in a tiny case naive may be exact by luck). NaN and Inf never pass. Outputs start as NaN. Every operand
 * lies between guard zones and its rows are separated by gaps, all filled with NaN: they must be unchanged
 * afterwards, and reading them shows in the result. */
#ifndef KLEIN_OP_CASES_H
#define KLEIN_OP_CASES_H

#include "../../kernels/device.h"

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
    OFFSET = 2048 /* x has a mean that is large against its spread */
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
        int output, same_as; /* same_as: index of the operand whose memory it shares, or -1 */
        float *values;       /* [rows, cols], exact in the operand's dtype; NULL for pure outputs */
        char *memory;        /* with guard zones */
        size_t bytes;
    } operand[OPERANDS];
    int operands;
};

/* Builds case c with activations act on dev. Values depend only on the case and on `values`, the act that
 * they are rounded to: (F32, BF16) makes F32 operands that hold BF16 values. Fails the test on any error. */
void op_call_make(struct op_call *call, const struct op_case *c, enum dtype act, enum dtype values,
                  struct device *dev);
/* Runs it (ops_check first). Callable repeatedly except for IN_PLACE cases. */
enum klein_status op_call_run(struct op_call *call, struct klein_error *err);
/* Output i (0, 1, ...) as F32 in a contiguous host tensor that the caller frees; ptr NULL past the last.
 * Fails the test if a guard zone or gap of any operand has changed. */
struct tensor op_call_output(struct op_call *call, int i);
void op_call_free(struct op_call *call);

/* The largest error of the case's outputs as a multiple of its limit, and a line that says which. */
enum { OP_CASE_TEXT = 256 };
double op_case_excess(const struct op_case *c, enum dtype act, struct device *dev, char text[OP_CASE_TEXT]);
/* The whole rule above for one case on one device: fails the test if that is more than 1. */
void op_case_check(const struct op_case *c, enum dtype act, struct device *dev);

/* The naive evaluation as a device; device_close as usual. */
struct device *naive_open(void);

#endif
