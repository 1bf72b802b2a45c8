/* The op table of the GPU backend. */
#include "cuda.h"

#include "../attention/attention_launch.h"
#include "../conv/conv_launch.h"
#include "../gemm/linear_launch.h"
#include "../norm/norm.h"
#include "../pointwise/pointwise.h"

static void *scratch_of(struct device *dev)
{
    return ((struct cuda_device *)dev)->scratch;
}

static enum klein_status linear(struct device *dev, const struct linear_args *a, struct klein_error *err)
{
    return linear_launch(gpu_of(dev), a, scratch_of(dev), CUDA_SCRATCH, err);
}

static enum klein_status conv(struct device *dev, const struct conv_args *a, struct klein_error *err)
{
    return conv_launch(gpu_of(dev), a, scratch_of(dev), CUDA_SCRATCH, err);
}

static enum klein_status gn_stats(struct device *dev, const struct gn_stats_args *a, struct klein_error *err)
{
    CHECK(norm_gn_stats_scratch(a) <= CUDA_SCRATCH);
    return norm_gn_stats(gpu_of(dev), a, scratch_of(dev), err);
}

#define OP(op, function)                                                                                     \
    static enum klein_status op(struct device *dev, const struct op##_args *a, struct klein_error *err)      \
    {                                                                                                        \
        return function(gpu_of(dev), a, err);                                                                \
    }
OP(embed, pointwise_embed)
OP(rmsnorm, norm_rmsnorm)
OP(adaln, norm_adaln)
OP(attention, attention_launch)
OP(timestep, pointwise_timestep)
OP(gn_apply, norm_gn_apply)
OP(euler, pointwise_euler)
OP(cfg, pointwise_cfg)
OP(copy, pointwise_copy)
OP(to_u8, pointwise_to_u8)
OP(from_u8, pointwise_from_u8)

static enum klein_status patchify(struct device *dev, const struct patch_args *a, struct klein_error *err)
{
    return pointwise_patchify(gpu_of(dev), a, err);
}

static enum klein_status unpatchify(struct device *dev, const struct patch_args *a, struct klein_error *err)
{
    return pointwise_unpatchify(gpu_of(dev), a, err);
}

/* The name of the op goes along, for messages about faults that are found later. */
#define X(op, args)                                                                                          \
    static enum klein_status named_##op(struct device *dev, const struct args *a, struct klein_error *err)   \
    {                                                                                                        \
        gpu_op(gpu_of(dev), #op, "");                                                                        \
        return op(dev, a, err);                                                                              \
    }
KLEIN_OPS(X)
#undef X

const struct op_table cuda_ops = {
#define X(op, args) .op = named_##op,
    KLEIN_OPS(X)
#undef X
};
