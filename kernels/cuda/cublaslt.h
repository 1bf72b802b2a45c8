/* cublaslt.h: NVIDIA's matrix products, to compare ours with: opened at run time where they are, never linked, and not used by the engine. */
#ifndef KLEIN_CUDA_CUBLASLT_H
#define KLEIN_CUDA_CUBLASLT_H

#include "gpu.h"

/* What we use of cublasLt.h 12 and 13, declared by hand (tests/driver/abi_cublaslt.c compares). */
#ifndef CUBLASLT_DECLARED_ELSEWHERE
typedef int cublasStatus_t; /* an enum */
typedef int cudaDataType, cublasComputeType_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulPreferenceAttributes_t;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDescOpaque_t *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayoutOpaque_t *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreferenceOpaque_t *cublasLtMatmulPreference_t;
typedef struct {
    uint64_t data[8];
} cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;
enum { CUDA_R_32F = 0, CUDA_R_16BF = 14, CUDA_R_8F_E4M3 = 28 };
enum {
    CUBLAS_OP_T = 1,
    CUBLAS_COMPUTE_32F = 68,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
};
#endif

/* X(name, parameters) */
#define KLEIN_CUBLASLT_ENTRIES(X)                                                                            \
    X(Create, (cublasLtHandle_t *))                                                                          \
    X(Destroy, (cublasLtHandle_t))                                                                           \
    X(MatmulDescCreate, (cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType))                         \
    X(MatmulDescSetAttribute, (cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t))  \
    X(MatmulDescDestroy, (cublasLtMatmulDesc_t))                                                             \
    X(MatrixLayoutCreate, (cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t, int64_t))             \
    X(MatrixLayoutDestroy, (cublasLtMatrixLayout_t))                                                         \
    X(MatmulPreferenceCreate, (cublasLtMatmulPreference_t *))                                                \
    X(MatmulPreferenceSetAttribute,                                                                          \
      (cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *, size_t))              \
    X(MatmulPreferenceDestroy, (cublasLtMatmulPreference_t))                                                 \
    X(MatmulAlgoGetHeuristic, (cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,               \
                               cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,       \
                               cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *, int *))   \
    X(Matmul, (cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t,   \
               const void *, cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t,     \
               void *, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t, CUstream))

#ifndef CUBLASLT_DECLARED_ELSEWHERE
struct cublaslt {
    void *library;
    struct gpu *gpu; /* borrowed */
    cublasLtHandle_t handle;
#define X(name, parameters) cublasStatus_t(*name) parameters;
    KLEIN_CUBLASLT_ENTRIES(X)
#undef X
};

/* y [m, n] BF16 = x [m, k] w [n, k]^T, dense rows, both BF16 or both F8_E4M3. */
struct cublaslt_product {
    struct cublaslt *lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulHeuristicResult_t chosen;
    void *workspace;
};

/* KLEIN_CUBLASLT=FILE in the environment, else libcublasLt.so.13, .12, .so; nothing but the former beside the soft GPU, whose memory no
 * other library knows. KLEIN_E_UNSUPPORTED: there is none, or it lacks something. */
enum klein_status cublaslt_open(struct gpu *g, struct cublaslt *out, struct klein_error *err);
void cublaslt_close(struct cublaslt *lt);
/* Chooses the kernel that the library's heuristic puts first. KLEIN_E_UNSUPPORTED: it has none. Close it also after a failure. */
enum klein_status cublaslt_product_open(struct cublaslt *lt, enum dtype type, int m, int n, int k,
                                        struct cublaslt_product *out, struct klein_error *err);
/* In the gpu's stream. */
enum klein_status cublaslt_product_run(const struct cublaslt_product *p, const void *x, const void *w,
                                       void *y, struct klein_error *err);
void cublaslt_product_close(struct cublaslt_product *p);
#endif

#endif
