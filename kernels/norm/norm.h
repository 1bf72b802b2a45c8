/* norm.h: the norms of ops.h on a GPU. Each enqueues on g's stream; the operands have passed ops_check_* and are in g's memory.
 * Aligned operands (16 bytes, whole vectors; rmsnorm: BF16 weights) take one pass over memory, all others a plain kernel. */
#ifndef KLEIN_NORM_H
#define KLEIN_NORM_H

#include "../cuda/gpu.h"
#include "../ops.h"

/* y F8_E4M3: sm_89 and later; x BF16, at most 4096 wide, aligned. KLEIN_E_UNSUPPORTED otherwise. */
enum klein_status norm_adaln(struct gpu *g, const struct adaln_args *a, struct klein_error *err);

enum klein_status norm_rmsnorm(struct gpu *g, const struct rmsnorm_args *a, struct klein_error *err);

/* scratch: norm_gn_stats_scratch(a) bytes of g's memory, 16-byte aligned, free again when the stream has passed the call. */
size_t norm_gn_stats_scratch(const struct gn_stats_args *a);
enum klein_status norm_gn_stats(struct gpu *g, const struct gn_stats_args *a, void *scratch,
                                struct klein_error *err);
/* The second level alone: stats from partial [chunks, cols] of {mean, squares about it} of counts[chunk]
 * values each; groups of cols lie side by side. */
enum klein_status norm_gn_combine(struct gpu *g, struct tensor stats, const float *partial,
                                  const float *counts, int cols, int chunks, float eps,
                                  struct klein_error *err);

enum klein_status norm_gn_apply(struct gpu *g, const struct gn_apply_args *a, struct klein_error *err);

#endif
