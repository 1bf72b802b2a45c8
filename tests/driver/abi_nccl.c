/* Compiled only where NCCL's header is, beside the toolkit's: our declarations of NCCL are those of nccl.h. */
#include <nccl.h>
#define NCCL_DECLARED_ELSEWHERE
#define CUstream cudaStream_t /* the same struct pointer in cuda.h and here */
#include "../../kernels/group/nccl_library.h"

#define X(name, result, parameters)                                                                          \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&nccl##name), result(*) parameters),              \
                   "nccl" #name " is declared otherwise");
KLEIN_NCCL_ENTRIES(X)
#undef X

_Static_assert(sizeof(ncclResult_t) == 4 && sizeof(ncclDataType_t) == 4, "enums");
_Static_assert(ncclSuccess == 0 && ncclUint8 == 1, "values");
_Static_assert(NCCL_VERSION(2, 19, 0) == 21900 && NCCL_VERSION(2, 8, 4) == 2804, "versions");
