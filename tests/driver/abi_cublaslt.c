/* Compiled only where the CUDA toolkit is: our declarations of cuBLASLt are those of cublasLt.h. */
#include <cublasLt.h>
#include <stddef.h>
#define CUBLASLT_DECLARED_ELSEWHERE
#define CUstream cudaStream_t /* the same struct pointer in cuda.h and here */
#include "../../kernels/cuda/cublaslt.h"

#define X(name, parameters)                                                                                  \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&cublasLt##name), cublasStatus_t(*) parameters),  \
                   "cublasLt" #name " is declared otherwise");
KLEIN_CUBLASLT_ENTRIES(X)
#undef X

_Static_assert(sizeof(cublasStatus_t) == 4 && sizeof(cudaDataType) == 4 && sizeof(cublasComputeType_t) == 4,
               "enums");
_Static_assert(sizeof(cublasLtMatmulDescAttributes_t) == 4 &&
                   sizeof(cublasLtMatmulPreferenceAttributes_t) == 4,
               "enums");
_Static_assert(sizeof(cublasLtMatmulAlgo_t) == 64 && sizeof(cublasLtMatmulHeuristicResult_t) == 96, "sizes");
_Static_assert(offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) == 64, "the algorithm first");
_Static_assert(CUDA_R_32F == 0 && CUDA_R_16BF == 14 && CUDA_R_8F_E4M3 == 28, "types");
_Static_assert(CUBLAS_OP_T == 1 && CUBLAS_COMPUTE_32F == 68 && CUBLAS_STATUS_SUCCESS == 0, "values");
_Static_assert(CUBLASLT_MATMUL_DESC_TRANSA == 3 && CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES == 1,
               "attributes");
