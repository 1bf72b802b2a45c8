/* patch.cu: the latent image to normalised tokens and back. Channel c of a token's four pixels is its columns 4 c .. 4 c + 3, so a
 * thread per token and channel moves 16 bytes of the token at once, and neighbours take neighbouring channels of each pixel. */
#include "../device/device.h"
#include "../device/elements.h"

struct patch_place {
    int token, channel;
    int64_t pixel; /* upper left of the four */
};
DEVICE patch_place patch_place_of(const patch_kernel_args &args, int64_t i)
{
    patch_place p;
    p.token = (int)(i / args.channels);
    p.channel = (int)(i - (int64_t)p.token * args.channels);
    const int row = p.token / (args.w / 2), column = p.token - row * (args.w / 2);
    p.pixel = (int64_t)2 * row * args.w + 2 * column;
    return p;
}

DEVICE int64_t patch_pixel(const patch_kernel_args &args, const patch_place &p, int j)
{
    return p.pixel + j / 2 * args.w + j % 2;
}

/* Four neighbouring elements of a row, by one access if they are aligned. */
DEVICE void load_4(float (&f)[4], const matrix &m, int aligned, int row, int column)
{
    if (aligned && m.type == ELEMENT_F32) {
        unpack(f, load<float, 4>(m, row, column));
    } else if (aligned && m.type == ELEMENT_BF16) {
        unpack(f, load<bf16, 4>(m, row, column));
    } else {
        UNROLL
        for (int j = 0; j < 4; j++) f[j] = load_any(m.ptr, m.type, row * m.ld + column + j);
    }
}

/* tokens = (image - mean) / sqrt(var + eps) */
KERNEL(patch_pack, patch_kernel_args, PATCH_THREADS, 4)
{
    grid_wait();
    grid_launch_dependents();
    const int64_t i = (int64_t)block_x() * PATCH_THREADS + thread_index();
    if (i >= args.threads) return;
    const patch_place p = patch_place_of(args, i);
    float f[4], mean[4], var[4];
    UNROLL
    for (int j = 0; j < 4; j++)
        f[j] = load_any(args.image.ptr, args.image.type, patch_pixel(args, p, j) * args.image.ld + p.channel);
    load_4(mean, args.mean, args.aligned, 0, 4 * p.channel);
    load_4(var, args.var, args.aligned, 0, 4 * p.channel);
    UNROLL
    for (int j = 0; j < 4; j++) f[j] = (f[j] - mean[j]) / sqrtf(var[j] + args.eps);
    if (args.aligned) {
        store(args.tokens, p.token, 4 * p.channel, pack<float>(f));
    } else {
        UNROLL
        for (int j = 0; j < 4; j++)
            store_any(args.tokens.ptr, ELEMENT_F32, p.token * args.tokens.ld + 4 * p.channel + j, f[j]);
    }
}

/* image = tokens * sqrt(var + eps) + mean */
KERNEL(patch_unpack, patch_kernel_args, PATCH_THREADS, 4)
{
    grid_wait();
    grid_launch_dependents();
    const int64_t i = (int64_t)block_x() * PATCH_THREADS + thread_index();
    if (i >= args.threads) return;
    const patch_place p = patch_place_of(args, i);
    float f[4], mean[4], var[4];
    load_4(f, args.tokens, args.aligned, p.token, 4 * p.channel);
    load_4(mean, args.mean, args.aligned, 0, 4 * p.channel);
    load_4(var, args.var, args.aligned, 0, 4 * p.channel);
    UNROLL
    for (int j = 0; j < 4; j++)
        store_any(args.image.ptr, args.image.type, patch_pixel(args, p, j) * args.image.ld + p.channel,
                  fmaf(f[j], sqrtf(var[j] + args.eps), mean[j]));
}
