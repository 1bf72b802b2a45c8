/* product.h: products of F32 tiles on vector units, for processors that multiply no bf16 (those go to oneDNN). The second operand is packed:
 * slivers of PRODUCT_N columns, in each the elements of one row side by side, [sliver][k][PRODUCT_N]; the first is read where it lies. */
#ifndef KLEIN_PRODUCT_H
#define KLEIN_PRODUCT_H

#include "vec.h"

/* A micro tile is PRODUCT_M rows by two vectors: with what they are made of, it fills the registers. PRODUCT_K rows of four slivers stay in the second
 * cache while all rows of the first operand pass. */
enum { PRODUCT_M = VL == 16 ? 8 : 6, PRODUCT_N = 2 * VL, PRODUCT_K = 512 };

/* Floats that k rows of n columns take packed. */
static inline size_t packed_floats(int k, int n)
{
    return (size_t)ceil_div(n, PRODUCT_N) * PRODUCT_N * (size_t)k;
}

/* Packs n rows of b, elements [from, from + k), k <= PRODUCT_K, which become columns: for a product with b transposed. Any dtype, scales applied. */
void ISA(pack_rows)(float *to, struct tensor b, int from, int k);

/* Packs columns [from, from + n) of all rows of b. F32 or BF16. */
void ISA(pack_columns)(float *to, struct tensor b, int from, int n);

/* c [m, n] = or += a b. Row i of a begins at a[i] + offset and has k elements; packed slivers lie `stride` floats apart; rows of c lie ldc apart. */
struct product {
    int m, n, k;
    const float *const *a;
    size_t offset;
    const float *packed;
    size_t stride;
    float *c;
    int ldc, accumulate;
};
void ISA(product)(const struct product *p);

#endif
