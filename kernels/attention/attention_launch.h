/* attention_launch.h: op attention (ops.h) on a GPU. */
#ifndef KLEIN_ATTENTION_LAUNCH_H
#define KLEIN_ATTENTION_LAUNCH_H

#include "../cuda/gpu.h"
#include "../ops.h"

/* Launches the attention in g's stream; a has passed ops_check_attention. KLEIN_ATTENTION=<kernel> in the environment chooses the
 * kernel. KLEIN_E_UNSUPPORTED: heads wider than 512, scale not positive, more than 65535 heads, rows of 2^31 elements or more. */
enum klein_status attention_launch(struct gpu *g, const struct attention_args *a, struct klein_error *err);

#endif
