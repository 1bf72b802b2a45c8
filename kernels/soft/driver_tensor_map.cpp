/* driver_tensor_map.cpp: cuTensorMapEncodeTiled with every rule of its documentation; the first one broken is named. */
#include "driver.h"
#include "tensor_map.h"

static uint32_t element_bytes(CUtensorMapDataType type)
{
    static const uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    return (unsigned)type < sizeof bytes ? bytes[type] : 0;
}

ENTRY cuTensorMapEncodeTiled(CUtensorMap *out, CUtensorMapDataType type, uint32_t rank, void *address,
                             const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                             const uint32_t *element_strides, CUtensorMapInterleave interleave,
                             CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                             CUtensorMapFloatOOBfill fill)
{
    guard g;
    static const uint32_t spans[] = {0, 32, 64, 128};
    const CUresult no = CUDA_ERROR_INVALID_VALUE;
    uint32_t element = element_bytes(type);
    if (chip_of()->major < 9)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor maps need sm_90, this is %s", chip_of()->arch);
    if ((uintptr_t)out % 64) return refuse(no, "tensor map: its address is not 64-byte aligned");
    if (!element) return refuse(no, "tensor map: unknown data type %d", (int)type);
    if (rank < 1 || rank > 5) return refuse(no, "tensor map: rank %u is not in 1..5", rank);
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor map: the soft GPU does not interleave");
    if ((unsigned)swizzle > 3)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor map: the soft GPU does not do swizzle mode %d",
                      (int)swizzle);
    if ((unsigned)promotion > 3) return refuse(no, "tensor map: unknown L2 promotion %d", (int)promotion);
    if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "tensor map: the soft GPU fills with zeros only");
    if ((uintptr_t)address % 16)
        return refuse(no, "tensor map: global address %p is not 16-byte aligned", address);
    const struct allocation *a = memory_find(address);
    if (!a) return refuse(no, "tensor map: global address %p is not device memory", address);

    struct soft_tensor_map m = {};
    m.magic = SOFT_TENSOR_MAP_MAGIC;
    m.base = (uint64_t)(uintptr_t)address;
    m.rank = (uint8_t)rank;
    m.swizzle = (uint8_t)spans[swizzle];
    m.stride[0] = element;
    uint64_t extent = 0;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t stride = i ? strides[i - 1] : element;
        uint32_t step = i ? element_strides[i] : 1; /* dimension 0 has none */
        if (!dims[i] || dims[i] > 1ull << 32)
            return refuse(no, "tensor map: dimension %u of %llu is not in 1..2^32", i,
                          (unsigned long long)dims[i]);
        if (i && (stride % 16 || stride >= 1ull << 40))
            return refuse(no, "tensor map: stride %u of %llu bytes is not a multiple of 16 below 2^40", i,
                          (unsigned long long)stride);
        if (i && stride < m.stride[i - 1] * (i == 1 ? dims[0] : 1))
            return refuse(no, "tensor map: stride %u of %llu bytes is smaller than what it steps over", i,
                          (unsigned long long)stride);
        if (!box[i] || box[i] > 256)
            return refuse(no, "tensor map: box of %u in dimension %u is not in 1..256", box[i], i);
        if (!element_strides[i] || element_strides[i] > 8)
            return refuse(no, "tensor map: element stride %u is not in 1..8", element_strides[i]);
        m.dim[i] = dims[i] >> 32 ? UINT32_MAX : (uint32_t)dims[i];
        m.stride[i] = stride;
        m.box[i] = (uint16_t)box[i];
        m.element_stride[i] = (uint8_t)step;
        extent += stride * (dims[i] - (i ? 1 : 0));
    }
    uint32_t inner = box[0] * element;
    if (inner % 16) return refuse(no, "tensor map: inner box of %u bytes is not a multiple of 16", inner);
    if (m.swizzle && inner > m.swizzle)
        return refuse(no, "tensor map: inner box of %u bytes is wider than the swizzle of %u", inner,
                      m.swizzle);
    if (m.swizzle && inner < m.swizzle)
        return refuse(
            CUDA_ERROR_NOT_SUPPORTED,
            "tensor map: the soft GPU needs an inner box as wide as the swizzle of %u bytes, not %u",
            m.swizzle, inner);
    if ((char *)address + extent > a->base + a->size)
        return refuse(
            no,
            "tensor map: the tensor of %llu bytes goes beyond its allocation, of which %zu bytes are left",
            (unsigned long long)extent, (size_t)(a->base + a->size - (char *)address));
    memset(out, 0, sizeof *out);
    memcpy(out, &m, sizeof m);
    return CUDA_SUCCESS;
}
