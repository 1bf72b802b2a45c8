/* checkpoint.h: a model's tensors by canonical name, wherever and in whatever layout they are.
 *
 * Canonical names are those of the diffusers folder ("transformer_blocks.0.attn.to_q.weight", "model.layers.0.mlp.up_proj.weight",
 * "decoder.conv_in.weight"). BFL single files are translated, fused matrices sliced into row ranges, nothing is copied.
 * One exception makes order explicit: the final layer's adaLN is asked for as "norm_out.linear.scale" and "norm_out.linear.shift"
 * ([D, D] each), since diffusers stores [scale; shift] and BFL [shift; scale].
 *
 * Three kinds of checkpoint answer the same calls, so that one binding code in engine/ serves all:
 *   from files   (checkpoint_open)    tensors point into the mapped files
 *   shapes only  (checkpoint_shapes)  tensors have fake addresses: plans, make-random's list of tensors
 *   random       (checkpoint_random)  tensors in anonymous memory, seeded random values of sensible scale: latency work, tests */
#ifndef KLEIN_CHECKPOINT_H
#define KLEIN_CHECKPOINT_H

#include "config.h"
#include "../base/tensor.h"

enum checkpoint_part { PART_TRANSFORMER, PART_TEXT, PART_VAE, PART_COUNT };
const char *
checkpoint_part_name(enum checkpoint_part part); /* "transformer", "text_encoder", "vae": the folder names */

struct checkpoint;

struct checkpoint_paths {
    const char *model;                            /* folder or single file; NULL if all parts are given */
    const char *transformer, *text_encoder, *vae; /* overrides: folder or file; NULL: from model */
    int variant;                                  /* enum klein_variant: 0 auto, 1 distilled, 2 base */
};

/* Opens and maps the files, reads configs, translates names. Nothing in the files is trusted, no tensor data are read.
 *   model     a folder with transformer/, text_encoder/, vae/; or a single file (the transformer), the other parts from its folder
 *   override  a folder with config.json and weights (or a whole model: its part is meant), or a file, whose sizes come from shapes.
 *             A VAE file may be a decoder by itself: encoder and statistics are then the model's.
 *   variant   auto: the name of a single file ("base", else "klein"), else klein.json, else model_index.json beside the transformer
 * KLEIN_E_MODEL_MISSING, KLEIN_E_MODEL_CORRUPT, KLEIN_E_UNSUPPORTED (FLUX.2 [dev], the KV variant, ...) name the file; KLEIN_E_USAGE if
 * the variant cannot be told. */
enum klein_status checkpoint_open(const struct checkpoint_paths *paths, struct checkpoint **out,
                                  struct klein_error *err);
enum klein_status checkpoint_shapes(const struct model_config *config, struct checkpoint **out,
                                    struct klein_error *err);
/* dtype DT_BF16 or DT_F32. Norm weights are near 1, BatchNorm variances near those of the real VAE; matrices N(0, 1/fan_in). */
enum klein_status checkpoint_random(const struct model_config *config, enum dtype dtype, uint64_t seed,
                                    struct checkpoint **out, struct klein_error *err);
void checkpoint_close(struct checkpoint *c); /* NULL allowed; all tensors become invalid */

const struct model_config *checkpoint_config(const struct checkpoint *c);
/* Path of the tokenizer folder (holding tokenizer.json, or vocab.json and merges.txt), or NULL. Lives as long as c. */
const char *checkpoint_tokenizer_dir(const struct checkpoint *c);

/* "Apache-2.0", "FLUX Non-Commercial" (by the official sizes), or "unknown". A static string. */
const char *checkpoint_license(const struct checkpoint *c);

/* The tensor of that canonical name, marked as used. ndim and shape are what the model needs; the view has rows = shape[0]
 * (1 if ndim == 1) and cols = the product of the rest; trailing ones of a shape do not count. dtype F32, BF16 or F16; matrices of
 * the transformer also F8_E4M3, with scales from the file's weight_scale. Asking twice is a bug. KLEIN_E_MODEL_CORRUPT naming file, tensor, found and expected otherwise; KLEIN_E_UNSUPPORTED for other dtypes (quantised
 * files) and misaligned data. Sticky like run: after the first failure returns err->status at once. */
enum klein_status checkpoint_tensor(struct checkpoint *c, enum checkpoint_part part, const char *name,
                                    int ndim, const int64_t *shape, struct tensor *out,
                                    struct klein_error *err);

/* From now on checkpoint_tensor hands what it found to `place` before it returns it, with the part, name and shape that were asked for:
 * a device moves weights into its memory so. */
typedef enum klein_status checkpoint_placer(void *user, enum checkpoint_part part, const char *name, int ndim,
                                            const int64_t *shape, struct tensor *t, struct klein_error *err);
void checkpoint_place(struct checkpoint *c, checkpoint_placer *place, void *user);

/* The tensors of `part` will be asked for once more, as they were the first time: to place them again. */
void checkpoint_ask_again(struct checkpoint *c, enum checkpoint_part part);

/* After everything was asked for: every tensor in the files of `part` was used exactly once or is on the ignore list
 * (text encoder: layers from the last needed on, model.norm, lm_head; vae: bn.num_batches_tracked). Names up to three leftovers. */
enum klein_status checkpoint_all_used(struct checkpoint *c, enum checkpoint_part part,
                                      struct klein_error *err);

/* Tells the system that the mapped pages of a part are not needed now (they are read again from the file if they are).
 * Random weights stay. */
void checkpoint_drop_pages(struct checkpoint *c, enum checkpoint_part part);

/* For `klein info` and make-random: walks what was asked for so far, in order. */
struct checkpoint_entry {
    enum checkpoint_part part;
    const char *name; /* canonical */
    int ndim;
    int64_t shape[4];
    enum dtype dtype;
};
int checkpoint_entries(const struct checkpoint *c, int i, struct checkpoint_entry *out); /* 0 past the end */

#endif
