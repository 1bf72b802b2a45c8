/* tensor_map.h: what the soft driver writes into the 128 opaque bytes of a CUtensorMap. */
#ifndef KLEIN_SOFT_TENSOR_MAP_H
#define KLEIN_SOFT_TENSOR_MAP_H

#include <stdint.h>

struct soft_tensor_map {
    uint64_t magic, base;
    uint64_t stride[5]; /* bytes; [0] is the element */
    uint32_t dim[5];
    uint16_t box[5];
    uint8_t element_stride[5], rank, swizzle; /* swizzle: 16-byte chunks within 32, 64 or 128 bytes; 0 none */
};
static const uint64_t SOFT_TENSOR_MAP_MAGIC = 0x70616d2d74666f73u; /* "soft-map" */
static_assert(sizeof(struct soft_tensor_map) <= 128, "fits a CUtensorMap");

/* PTX ISA 5.5.7: on absolute shared addresses, 128: bits 4-6 ^= bits 7-9; 64: bits 4-5 ^= bits 7-8; 32: bit 4 ^= bit 7. */
static inline uint32_t soft_swizzle(uint32_t address, uint32_t span)
{
    return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

#endif
