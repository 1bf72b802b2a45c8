/* pointwise.h: the ops of ops.h that move numbers or treat them one by one, on a GPU. Each enqueues on g's stream; the operands have
 * passed ops_check_* and are in g's memory. Aligned operands (16 bytes, whole vectors) move 16 bytes at a time. */
#ifndef KLEIN_POINTWISE_H
#define KLEIN_POINTWISE_H

#include "../cuda/gpu.h"
#include "../ops.h"

enum klein_status pointwise_embed(struct gpu *g, const struct embed_args *a, struct klein_error *err);
enum klein_status pointwise_copy(struct gpu *g, const struct copy_args *a, struct klein_error *err);
enum klein_status pointwise_to_u8(struct gpu *g, const struct to_u8_args *a, struct klein_error *err);
enum klein_status pointwise_from_u8(struct gpu *g, const struct from_u8_args *a, struct klein_error *err);
enum klein_status pointwise_euler(struct gpu *g, const struct euler_args *a, struct klein_error *err);
enum klein_status pointwise_cfg(struct gpu *g, const struct cfg_args *a, struct klein_error *err);
enum klein_status pointwise_patchify(struct gpu *g, const struct patch_args *a, struct klein_error *err);
enum klein_status pointwise_unpatchify(struct gpu *g, const struct patch_args *a, struct klein_error *err);
enum klein_status pointwise_timestep(struct gpu *g, const struct timestep_args *a, struct klein_error *err);

#endif
