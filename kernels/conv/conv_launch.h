/* conv_launch.h: op conv (ops.h) on a GPU. */
#ifndef KLEIN_CONV_LAUNCH_H
#define KLEIN_CONV_LAUNCH_H

#include "../cuda/gpu.h"
#include "../ops.h"

/* Convolution kernels read packed weights, which a device makes once, when a model is placed on it (like its vectors, which become F32).
 * conv_packed: the tensor for a convolution of that act (BF16 or F32), ptr NULL. Its rows and cols are those of the file's; a row
 * is ld elements, [tap][channel], channels padded to a multiple of 8. It takes rows * ld * dtype_size bytes, 16-byte aligned. */
struct tensor conv_packed(int cout, int cin, int ksize, enum dtype act);
/* Fills packed, which has memory now, from w [cout, cin * ksize * ksize] as the files hold it (F32, BF16 or F16). */
enum klein_status conv_pack(struct gpu *g, struct tensor packed, struct tensor w, int ksize,
                            struct klein_error *err);

/* Bytes that conv_launch needs, at most 64 MiB; may be 0. With a norm, or rows of x that are not 16-byte aligned, x goes through
 * scratch memory in bands of rows: small enough to stay in the L2 until they are read, so it uses no more than this except for
 * images that do not fit otherwise. Less serves too (more bands). With stats, moments
 * of y that the tiles find (moments.h) lie behind that; where they have no room y is read again. */
size_t conv_scratch(const struct conv_args *a);

/* Launches the convolution in g's stream; a has passed ops_check_conv, and a->w is packed: see above. scratch: 16-byte aligned, free
 * again when the stream has passed the call. KLEIN_CONV=<kernels> in the environment is the choice (conv_pick.h). KLEIN_E_UNSUPPORTED: scratch
 * does not hold the input of one row; rows of x of 2^31 elements. */
enum klein_status conv_launch(struct gpu *g, const struct conv_args *a, void *scratch, size_t scratch_bytes,
                              struct klein_error *err);

#endif
