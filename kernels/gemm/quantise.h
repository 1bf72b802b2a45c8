/* quantise.h: rows of numbers as e4m3 with a scale per row, for products in FP8. */
#ifndef KLEIN_QUANTISE_H
#define KLEIN_QUANTISE_H

#include "../cuda/gpu.h"
#include "../../base/tensor.h"

/* y * row_scale = x, as nearly as e4m3 can; row_scale = largest magnitude of the row / 448. Enqueued on g's stream.
 * x BF16 [rows, cols], 16-byte aligned; y F8_E4M3 [rows, cols], 8-byte aligned rows; row_scale F32 [1, rows]; cols a multiple of 8.
 * sm_89 and later. KLEIN_E_UNSUPPORTED otherwise. */
enum klein_status quantise_rows(struct gpu *g, struct tensor y, struct tensor row_scale, struct tensor x,
                                struct klein_error *err);

#endif
