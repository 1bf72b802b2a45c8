/* linear_launch.h: op linear (ops.h) on a GPU. */
#ifndef KLEIN_LINEAR_LAUNCH_H
#define KLEIN_LINEAR_LAUNCH_H

#include "../cuda/gpu.h"
#include "../device/args.h"
#include "../ops.h"

/* Enqueues the op on g's stream; a has passed ops_check_linear, its operands are in g's memory. What the matrix kernels take (act BF16,
 * weights BF16, vectors F32, everything aligned, heads of 128) goes to them, few rows of F32 to linear_rows, all else to linear_simple.
 * Weights of F8_E4M3 (sm_89 and later): x is quantised into the scratch memory unless it comes quantised, and the e4m3 kernels take the
 * product or nothing does.
 * scratch: linear_scratch(a) bytes of g's memory, 256-byte aligned, free again when the stream has passed the call; with less of it
 * the rows are taken in smaller bands.
 * KLEIN_GEMM in the environment limits the choice of matrix kernels to those that it names, with commas between, for the products that
 * go to one; linear_simple takes everything.
 * KLEIN_E_UNSUPPORTED: more than 4194240 rows of W in a part, F8_E4M3 weights or results that the chip or the kernels do not take; KLEIN_E_INTERNAL: scratch that does not hold one row. */
enum klein_status linear_launch(struct gpu *g, const struct linear_args *a, void *scratch,
                                size_t scratch_bytes, struct klein_error *err);
size_t linear_scratch(const struct linear_args *a); /* at most 32 MiB, or one row if that is more */

/* Launches a matrix kernel: `type` is that of x and the weights, BF16 or F8_E4M3; args as args.h wants them. */
enum klein_status gemm_launch(struct gpu *g, enum dtype type, const struct linear_kernel_args *args,
                              struct klein_error *err);

#endif
