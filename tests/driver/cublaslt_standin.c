/* A stand-in for cuBLASLt on the soft GPU, whose memory is the host's: the product in plain C, at once. KLEIN_STANDIN=wrong: zeros;
 * none: the heuristic finds no kernel. */
#include "../../kernels/cuda/cublaslt.h"
#include "../../base/tensor.h"

#include <stdlib.h>
#include <string.h>

struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
};

#define ENTRY(name)               __attribute__((visibility("default"))) cublasStatus_t cublasLt##name
#define DECLARE(name, parameters) ENTRY(name) parameters;
KLEIN_CUBLASLT_ENTRIES(DECLARE)

static int is_called(const char *name)
{
    const char *how = getenv("KLEIN_STANDIN");
    return how && !strcmp(how, name);
}

/* Everything opaque is a block of memory that has to be destroyed: a sanitizer tells of what is not. */
static cublasStatus_t make(void *out, size_t bytes)
{
    void *p = calloc(1, bytes);
    memcpy(out, &p, sizeof p);
    return p ? 0 : 3;
}

static cublasStatus_t unmake(void *p)
{
    free(p);
    return 0;
}

ENTRY(Create)(cublasLtHandle_t *out)
{
    return make(out, 1);
}
ENTRY(Destroy)(cublasLtHandle_t h)
{
    return unmake(h);
}
ENTRY(MatmulDescCreate)(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType scale)
{
    return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? make(out, sizeof(int)) : 7;
}
ENTRY(MatmulDescSetAttribute)
(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes)
{
    if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || bytes != sizeof(int)) return 7;
    memcpy(d, value, bytes);
    return 0;
}
ENTRY(MatmulDescDestroy)(cublasLtMatmulDesc_t d)
{
    return unmake(d);
}
ENTRY(MatrixLayoutCreate)
(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (make(out, sizeof **out)) return 3;
    **out = (struct cublasLtMatrixLayoutOpaque_t){type, rows, cols, ld};
    return 0;
}
ENTRY(MatrixLayoutDestroy)(cublasLtMatrixLayout_t l)
{
    return unmake(l);
}
ENTRY(MatmulPreferenceCreate)(cublasLtMatmulPreference_t *out)
{
    return make(out, 1);
}
ENTRY(MatmulPreferenceSetAttribute)
(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
 size_t bytes)
{
    return attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == sizeof(size_t) ? 0 : 7;
}
ENTRY(MatmulPreferenceDestroy)(cublasLtMatmulPreference_t p)
{
    return unmake(p);
}
ENTRY(MatmulAlgoGetHeuristic)
(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
 cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t p, int most,
 cublasLtMatmulHeuristicResult_t *out, int *found)
{
    *found = !is_called("none");
    if (*found) memset(out, 0x5a, sizeof *out);
    return 0;
}

static double element(const void *at, cublasLtMatrixLayout_t l, uint64_t row, uint64_t col)
{
    return (double)f32_load(at, l->type == CUDA_R_16BF ? DT_BF16 : DT_F8E4M3, col * (uint64_t)l->ld + row);
}

/* Y = A^T B by columns. */
ENTRY(Matmul)
(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t la,
 const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c, cublasLtMatrixLayout_t lc,
 void *y, cublasLtMatrixLayout_t ly, const cublasLtMatmulAlgo_t *algo, void *workspace,
 size_t workspace_bytes, CUstream stream)
{
    if (la->rows != lb->rows || ly->rows != la->cols || ly->cols != lb->cols ||
        algo->data[0] != 0x5a5a5a5a5a5a5a5a)
        return 7;
    const struct tensor out = tensor_of(y, DT_BF16, (int)ly->cols, (int)ly->rows);
    for (uint64_t n = 0; n < ly->rows; n++)
        for (uint64_t m = 0; m < ly->cols; m++) {
            double sum = 0;
            for (uint64_t k = 0; k < la->rows; k++) sum += element(a, la, k, n) * element(b, lb, k, m);
            tensor_set(out, (int)m, (int)n, is_called("wrong") ? 0 : (float)sum);
        }
    return 0;
}
