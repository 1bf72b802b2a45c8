/* klein.h: the public C API of libklein, an inference engine for FLUX.2 [klein].
 *
 * Open a model folder, generate pictures, close. Every fallible call returns enum klein_status and fills a
 * struct klein_error of the caller (status and one line for people). Structs passed in start with
 * `size = sizeof *it`, so they can grow.
 *
 * Threads. No global state: contexts are independent. All calls on a context may come from any thread. A context works on one request at a
 * time: klein_generate and klein_warm_up wait until it is free. Callbacks of a request (progress, tap, finished) come from the thread
 * that works on it, which is the caller's of klein_generate, and the context's own of klein_submit; within them klein_generate and
 * klein_warm_up on that context are KLEIN_E_USAGE. klein_close is the last call on a context, and none may be in progress then. */
#ifndef KLEIN_H
#define KLEIN_H

#include <stddef.h>
#include <stdint.h>

#include "klein_status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KLEIN_VERSION        "0.1.0"
#define KLEIN_MAX_REFERENCES 16
#define KLEIN_MAX_STEPS      1000
#define KLEIN_MAX_IMAGES     64

struct klein; /* an open model on a device */

/* What a GPU launches as one: the stages of a request (text, references, one step, decode), the whole request (for one image; it cannot
 * be cancelled on the way), or each op. The results are the same, bit for bit. */
enum klein_graph { KLEIN_GRAPH_STAGES, KLEIN_GRAPH_REQUEST, KLEIN_GRAPH_OFF };

/* How several GPUs work on a request: on each picture together, each with some of its tokens and of the attention heads (their number must
 * divide the heads: 24 for klein 4B, 32 for 9B); on the two passes of a base model's guidance, one each (two GPUs); or each on some of the
 * request's pictures. The latter two give the same bytes as one GPU, ulysses does where its products run by the same kernels (results
 * then do not depend on how rows are shared out; a matrix product of few rows may run by another). */
enum klein_parallel { KLEIN_PARALLEL_ULYSSES, KLEIN_PARALLEL_CFG, KLEIN_PARALLEL_REPLICA };

enum klein_dtype { KLEIN_DTYPE_AUTO, KLEIN_DTYPE_F32, KLEIN_DTYPE_BF16 };
/* In what the transformer's blocks multiply: as all else does, or in FP8: e4m3 with a scale per row of the weights, made when the model
 * is opened, and per token. For GPUs since Ada (sm_89), with activations in BF16; needs half of the memory for these weights. Files whose
 * weights are in e4m3 are taken as they are: such a GPU multiplies them in FP8 whatever this says, the processor what they stand for. */
enum klein_precision { KLEIN_PRECISION_BF16, KLEIN_PRECISION_FP8 };
enum klein_variant { KLEIN_VARIANT_AUTO, KLEIN_VARIANT_DISTILLED, KLEIN_VARIANT_BASE };
/* Noise of a seed: what torch.randn gives with torch.Generator("cpu").manual_seed(seed), drawn as [1, 128,
 * H/16, W/16]. */
enum klein_noise { KLEIN_NOISE_TORCH, KLEIN_NOISE_TORCH_BF16 };

struct klein_open_options {
    size_t size;
    const char
        *model; /* diffusers folder, or BFL single file; required unless all three parts below are given */
    const char *transformer;  /* folder or file to use for that part instead; NULL: from `model` */
    const char *text_encoder; /* a folder with the tokenizer beside or inside, or a file (then the tokenizer
                                 is taken from `model`) */
    const char *vae;
    const char *
        device; /* "cpu"; "cuda" or "cuda:1", an NVIDIA GPU; "soft", the GPU's code on the host, slow; "ref". NULL or "auto": the first GPU
                           that can hold the model, else the processor (klein_model_info.no_gpu) */
    int threads; /* 0: all */
    enum klein_dtype dtype;
    enum klein_variant variant;
    size_t
        plan_bytes; /* of working memory that a GPU keeps for the shapes of requests it has seen; 0: a quarter of its memory */
    enum klein_precision precision;
    const int *
        gpus; /* n_gpus numbers of GPUs to use together, up to 8; device is then "cuda" (or NULL) or "soft". Each gets all weights */
    int n_gpus;
    enum klein_parallel parallel; /* KLEIN_E_USAGE without gpus, but for 0 */
};

/* Maps the weights and checks every tensor it will use. On a processor it reads none of their data yet; on a GPU it reads all of them and
 * places them in its memory (where they fit only in turns, each request does). *out is NULL on failure. */
enum klein_status klein_open(const struct klein_open_options *options, struct klein **out,
                             struct klein_error *err);
/* NULL allowed. Submitted requests that have not ended are cancelled, and their klein_done called, before it returns: klein_wait(k, 0)
 * first lets them end. */
void klein_close(struct klein *k);

/* An RGB8 image: pixel (x, y) is rgb[3 * (y * width + x)]. As an input it is the caller's; as a result
 * klein_result_free frees it. */
struct klein_image {
    int width, height;
    uint8_t *rgb;
};

enum klein_stage {
    KLEIN_STAGE_TEXT,
    KLEIN_STAGE_REFERENCES,
    KLEIN_STAGE_DENOISE,
    KLEIN_STAGE_DECODE,
    KLEIN_STAGE_COUNT
};
const char *klein_stage_name(enum klein_stage stage); /* "text", "references", "denoise", "decode" */

struct klein_progress {
    enum klein_stage stage;
    int image, images; /* image being made, 0-based, of how many */
    /* Finished, of how many: steps, in KLEIN_STAGE_REFERENCES references; 0 of 0 in the other stages. */
    int step, steps;
    double fraction; /* of the whole request by FLOPs, 0..1 */
};

/* A named intermediate tensor, for research and tests: input_ids, prompt_embeds, sigmas, ref_latents.K,
 * velocity.I, latents.I, image; with tap_blocks also step.I.double.J.img, step.I.double.J.txt,
 * step.I.single.J. Data are F32 (input_ids: I32), row-major, valid during the call. With several images the
 * names get the suffix "@IMAGE" from the second image on. */
struct klein_tap {
    const char *name;
    int is_int32;
    int ndim;
    int64_t shape[4];
    const void *data;
};

/* One request. Zero means default for every field but prompt. */
struct klein_result;
struct klein_request {
    size_t size;
    const char *prompt; /* UTF-8; "" is allowed */
    int width,
        height; /* pixels, multiples of 16; 0: first reference's (fitted) size, else the model's default */
    int steps;  /* 0: 4 for distilled models, 50 for base */
    const float
        *sigmas;    /* `steps` values replacing 1 - i/steps before the shift; strictly decreasing in (0, 1] */
    float guidance; /* 0: 1 for distilled, 4 for base; ignored by distilled models, with a warning */
    uint64_t seed;  /* image i uses seed + i */
    int images;     /* 0: 1 */
    enum klein_noise noise;
    const struct klein_image *references; /* any size; fitted as the reference pipelines do */
    int n_references;
    const float *latents;       /* [128, height/16, width/16]: replaces the noise (of every image) */
    const float *prompt_embeds; /* [embed_rows, text width]: replaces the text encoder */
    int embed_rows;             /* must be the model's text length if prompt_embeds is given */
    int (*progress)(void *user, const struct klein_progress *p); /* non-zero: cancel (KLEIN_E_CANCELLED) */
    void *progress_user;
    void (*tap)(void *user, const struct klein_tap *t);
    void *tap_user;
    int tap_blocks;
    enum klein_graph graph;
    /* As soon as picture `image` is there: so_far has it and those before it, and stays klein_generate's. NULL allowed. */
    void (*finished)(void *user, int image, const struct klein_result *so_far);
    void *finished_user;
    int return_latents, return_embeds; /* non-zero: klein_result has them */
};

struct klein_result {
    int n_images;
    struct klein_image *images;
    uint64_t *seeds;
    uint64_t *latent_hashes; /* FNV-1a 64 of the final f32 latents, packed order */
    int width, height, steps;
    float guidance;
    double seconds[KLEIN_STAGE_COUNT], total_seconds;
    int prompt_tokens; /* real ones, template included */
    char warning[512]; /* empty, or what the user should know: a truncated prompt (and what was cut), ignored
                          guidance */
    /* If asked for, else NULL: of each picture the final latents [128, height/16, width/16], as `latents` of a request has them; of all
     * pictures the text encoder's output [embed_rows, embed_cols], as `prompt_embeds` takes it (the same picture then, bit for bit). */
    float **latents, *prompt_embeds;
    int embed_rows, embed_cols;
};

/* *result is zeroed first and owns what it points to: klein_result_free it, also after a failure. A GPU that fails amid a request
 * (KLEIN_E_INTERNAL, naming it) stays lost to the context, whose later requests fail too: close it. */
enum klein_status klein_generate(struct klein *k, const struct klein_request *request,
                                 struct klein_result *result, struct klein_error *err);
void klein_result_free(struct klein_result *result);

/* Makes ready what requests of these shapes need, so that the first of each is as fast as later ones: plans, and on a GPU working memory
 * and graphs (each shape is computed on twice). Of a request count: size, steps, guidance, references (their rgb may be NULL), whether
 * there are prompt_embeds, graph. KLEIN_E_NO_MEMORY if the device does not keep them all (klein_open_options.plan_bytes, 16 shapes). */
enum klein_status klein_warm_up(struct klein *k, const struct klein_request *requests, int n,
                                struct klein_error *err);

/* --- requests that run by themselves: in the order in which they were submitted, in a thread that the context starts for them --- */

/* The end of request `id`, with klein_generate's status, result and message; exactly once for each that was accepted, in order, from the
 * context's thread while it works on nothing. The result is freed on return, unless the callee takes it: copies the struct
 * and zeroes *result. It may call anything on the context but klein_close; what it does holds up the requests behind. */
typedef void klein_done(void *user, uint64_t id, enum klein_status status, struct klein_result *result,
                        const struct klein_error *err);
/* Queues a request. It is checked now and copied with all it points to (but for the users' pointers): the caller may free it. *id,
 * from 1, is never reused. */
enum klein_status klein_submit(struct klein *k, const struct klein_request *request, klein_done *done,
                               void *user, uint64_t *id, struct klein_error *err);
/* Ends a request with KLEIN_E_CANCELLED: without work if it waits, as soon as possible (within a step) if it runs. Does not wait for that.
 * 0 if it has ended. */
int klein_cancel(struct klein *k, uint64_t id);
/* Returns when request `id` has ended and its klein_done returned; 0: all that were submitted. At once within klein_done and other callbacks
 * of the context's thread. */
void klein_wait(struct klein *k, uint64_t id);

/* Facts about an open model. Strings live as long as the context. */
struct klein_model_info {
    const char *name;           /* "klein 4B", "klein base 9B", "custom (D 256)" */
    const char *device, *dtype; /* "cpu", "cuda", "cuda:1"; of several GPUs "cuda" */
    const char *license;        /* "Apache-2.0", "FLUX Non-Commercial", what klein.json says, or "unknown" */
    int distilled, toy;
    uint64_t parameters; /* that will be used */
    int default_width, default_height, default_steps;
    float default_guidance;
    int text_length, text_width;
    const char *precision; /* of the products of the transformer's blocks: "fp8", or as dtype */
    const char *no_gpu; /* which GPUs "auto" passed over, and why each; or what its driver lacks; or NULL */
    const int *gpus;    /* the numbers of the n_gpus GPUs that work together; NULL: one device */
    int n_gpus;
    const char *parallel; /* how they do: "ulysses", "cfg", "replica"; NULL: one device */
};
void klein_model_info(const struct klein *k, struct klein_model_info *info);

const char *klein_version(void);
const char *klein_status_name(enum klein_status status); /* "E_INPUT" */
const char *klein_status_text(enum klein_status status);

#ifdef __cplusplus
}
#endif

#endif
