#include "abi.h"
#include "../../kernels/cuda/driver_api.h"

const struct abi_row abi_ours[] = {ABI_VALUES(ABI_ROW) ABI_SIZES(ABI_ROW){0}};
