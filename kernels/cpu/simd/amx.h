/* amx.h: products of bf16 tiles by AMX, the processor's matrix unit. A tile register has 16 rows of 64 bytes; one instruction multiplies 16x32 by
 * 32x16 bf16 and adds to 16x16 f32. Both operands are packed as tiles, zero where they end, so that no product has edges:
 *
 *   left   [row tile][step of k][16][32]                 rows as they are
 *   right  [32 columns][step of k][2][16][16][2]         the elements of two rows side by side for 16 columns
 *
 * Compilations without AMX emulate it in plain C, so that everything here is tested on any processor. */
#ifndef KLEIN_AMX_H
#define KLEIN_AMX_H

#include "vec.h"

/* AMX_BLOCK elements of k of AMX_N columns stay in the first cache while all rows pass. */
enum { AMX_M = 16, AMX_K = 32, AMX_N = 32, AMX_BLOCK = 512 };
enum { AMX_ROW = 64, AMX_TILE = 1024 }; /* bytes, of a tile's row and of a tile */

/* Around products, in every thread: sets the tile registers up, and gives them back. */
void ISA(amx_begin)(void);
void ISA(amx_end)(void);

/* Packs all rows of a, elements [from, from + k), as a left operand. Any float type. */
void ISA(amx_left)(bf16 *to, struct tensor a, int from, int k);

/* Packs at most AMX_N rows of b, elements [from, from + k), which become columns, as a right operand. Any dtype, scales applied. */
void ISA(amx_transposed)(bf16 *to, struct tensor b, int from, int k);

/* Packs columns [from, from + n) of all rows of b as a right operand, AMX_N columns after another. F32 or BF16. */
void ISA(amx_right)(bf16 *to, struct tensor b, int from, int n);

/* Memory to bring to the second cache during a product: `rows` (0: none) of `bytes`, `row` bytes apart. Never read, so it may end earlier. */
struct amx_ahead {
    const char *at;
    size_t row;
    int rows, bytes;
};

/* c [16 tiles, AMX_N] = or += left right. k is `parts` times `steps`: row tile i of part s begins part[s] bytes behind left[i]; its rows lie `row`
 * bytes apart and its steps `step` bytes: AMX_ROW and AMX_TILE where it is packed. Rows of c lie ldc floats apart. */
struct amx_product {
    int tiles, parts, steps;
    const char *const *left;
    const size_t *part; /* NULL: one, at 0 */
    size_t row, step;
    const bf16 *right;
    float *c;
    int ldc, accumulate;
    struct amx_ahead ahead[2];
};
void ISA(amx_product)(const struct amx_product *p);

#endif
