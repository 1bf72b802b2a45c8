/* Compiled only where the CUDA toolkit is: also that our declarations of the entries are those of cuda.h. */
#include <cuda.h>
#include "abi.h"
#include "../../kernels/cuda/driver_api.h"

#define X(name, symbol, parameters)                                                                          \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol), CUresult(*) parameters),                \
                   #symbol " is declared otherwise");
KLEIN_DRIVER_ENTRIES(X)
#undef X

const struct abi_row abi_cuda[] = {ABI_VALUES(ABI_ROW) ABI_SIZES(ABI_ROW){0}};
