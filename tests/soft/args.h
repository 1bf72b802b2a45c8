/* args.h: arguments of the kernels in tests/soft. */
#ifndef KLEIN_TESTS_SOFT_ARGS_H
#define KLEIN_TESTS_SOFT_ARGS_H

#include "../../kernels/device/args.h"

/* units_sm80.cu */
enum unit_kind { UNIT_BF16, UNIT_E4M3, UNIT_NO_WAIT, UNIT_READS_EARLY, UNIT_READS_CONSTANT_EARLY };
struct unit_args {
    float *y;
    const float *x;
    const void *a, *b;
    int kind;
};

struct unit_large_args { /* more than a launch may have */
    char bytes[4100];
};

/* units_sm90.cu */
enum unit_wgmma { UNIT_WGMMA_SS, UNIT_WGMMA_E4M3, UNIT_WGMMA_MN, UNIT_WGMMA_RS, UNIT_WGMMA_RS_MN };
struct unit_sm90_args {
    struct tensor_map a, b;
    float *y;
    int at[4];
    int rank, bytes, kind, n;
};

/* bugs_sm80.cu */
enum bug_sm80 {
    BUG80_NONE,
    BUG80_NO_BARRIER,   /* pipeline: after the wait */
    BUG80_SWAPPED,      /* barrier first, wait second */
    BUG80_EARLY_REFILL, /* no barrier before the stage is filled again */
    BUG80_WAITS_TOO_LITTLE,
    BUG80_NOT_WAITED,     /* at the end */
    BUG80_WRAPPED_BOUNDS, /* misc: ld_global_16 beyond the end */
    BUG80_PLAIN_READ,     /* a plain load beyond the end */
    BUG80_PLAIN_WRITE,    /* a plain store just beyond the end */
    BUG80_MISALIGNED,
    BUG80_DIVERGENCE,
    BUG80_BARRIER_SHORT, /* one warp never comes */
    BUG80_SHARED_BOUNDS, /* ld_shared_16 beyond the dynamic shared memory */
    BUG80_REDUCTION,     /* no barrier in a sum through shared memory */
    BUG80_TRAP,
    BUG80_STACK,
};
enum { BUG80_THREADS = 64, BUG80_BLOCKS = 6 };
struct bug_sm80_args {
    uint32_t *y;       /* [4 * threads] */
    const uint32_t *x; /* [blocks][4 * threads] */
    int bug;
};

/* bugs_sm90.cu: y[64, 64] = a[64, k] b[64, k]^T */
enum bug_sm90 {
    BUG90_NONE,
    BUG90_NO_FULL_WAIT,
    BUG90_EARLY_RELEASE, /* arrives on `empty` before the wgmma was waited for */
    BUG90_NO_WGMMA_WAIT, /* before the accumulators are read */
    BUG90_NO_WGMMA_FENCE,
    BUG90_NO_PROXY_FENCE, /* between st.shared and the tensor store */
    BUG90_EXPECT_LESS,    /* expect_tx */
    BUG90_EXPECT_MORE,
    BUG90_NO_ARRIVE, /* nobody frees a stage */
    BUG90_TOO_MANY_ARRIVE,
    BUG90_WRONG_PARITY, /* the consumer's phase never flips */
    BUG90_MISALIGNED_TILE,
    BUG90_STORE_NOT_WAITED,
    BUG90_NOT_INITIALISED, /* a wait on something that is no mbarrier */
    BUG90_REGISTERS,       /* setmaxnreg.inc without anyone giving */
    BUG90_NO_GRID_WAIT,    /* a dependent launch that never waits */
    BUG90_ARRIVAL_LEFT,    /* at a named barrier that nobody waits at */
    BUG90_OPEN_PHASE,      /* reads what was released into the phase after the one that it waited for */
};
enum { BUG90_THREADS = 256, BUG90_STAGES = 2 };
struct bug_sm90_args {
    struct tensor_map a, b, y;
    int k, bug;
};

/* layouts_sm80.cu, layouts_sm90.cu: operands as they lie in registers or in shared memory */
enum layout_kind { LAYOUT_BF16, LAYOUT_E4M3 };
struct layout_args {
    const void *a,
        *b;  /* _mma: [32][4], [32][2] registers; _tile: 8192 bytes, a only; _stmatrix: a [32][4] registers */
    void *y; /* _mma: float [32][4]; _tile: registers [4 steps][32][16 of load_a<4>, then 16 of load_b<8>] */
    int kind;
};
enum layout_wgmma { LAYOUT_SS, LAYOUT_SS_E4M3, LAYOUT_RS, LAYOUT_SS_MN, LAYOUT_RS_MN };
struct layout_wgmma_args {
    const void *a, *b; /* shared memory, 8192 and 16384 bytes; RS: a is [128][4] registers per step */
    float *y;          /* [128][n / 2] */
    uint64_t *own;     /* klein's descriptors of a and b, without the address */
    uint64_t a_fields, b_fields; /* the descriptors to use, without the address */
    int a_step, b_step, steps;   /* bytes from the operands of a step to those of the next */
    int kind, n;
};

#endif
