/* vae.h: the autoencoder between pixels and latent tokens.                                     source: model
 * 5, appendix A Images are [h * w, channels] act tensors. Latents are tokens [(H/16) * (W/16), 4 *
 * latent_channels] f32, normalised by the BatchNorm statistics: what the image model reads and writes. */
#ifndef KLEIN_VAE_H
#define KLEIN_VAE_H

#include "run.h"
#include "../weights/checkpoint.h"

#define VAE_MAX_BLOCKS 4  /* per level */
#define VAE_SCALE      16 /* pixels per token side: 8x by the convolutions, 2x by patchify */

struct vae_norm {
    struct tensor gamma, beta; /* [1, c] */
};
struct vae_conv {
    struct tensor w, bias; /* [cout, cin * k * k], [1, cout]; w.ptr NULL: absent */
    int ksize;
};
struct vae_block {
    struct vae_norm norm1, norm2;
    struct vae_conv conv1, conv2, shortcut; /* shortcut where the channels change */
};
struct vae_attention {
    struct vae_norm norm;
    struct tensor w[4], bias[4]; /* q, k, v, out: [c, c], [1, c] */
};
struct vae_half { /* encoder or decoder; levels in the order they run */
    struct vae_conv conv_in, conv_out;
    struct vae_block mid[2];
    struct vae_attention attention;
    struct vae_block level[VAE_LEVELS][VAE_MAX_BLOCKS];
    struct vae_conv resample[VAE_LEVELS]; /* down- or upsampling after a level; absent after the last */
    struct vae_norm norm_out;
    int blocks; /* per level */
};
struct vae {
    const struct vae_config *cfg;
    struct vae_half encoder, decoder;
    struct vae_conv quant_conv, post_quant_conv; /* absent if the config says so */
    struct tensor bn_mean, bn_var;               /* [1, 4 * latent_channels] */
};

enum klein_status vae_bind(struct vae *v, struct checkpoint *c, struct klein_error *err);

/* tokens [(h/16) * (w/16), 4 latent] f32 = normalised mode of the posterior of rgb u8 [h * w, 3]; h, w
 * multiples of 16. */
void vae_encode(struct run *r, const struct vae *v, struct tensor tokens, struct tensor rgb, int h, int w);

/* How the devices of a run share the decoding of an image of h rows: each makes a band of rows. {0} if it has fewer rows of latents
 * (h / 8) than there are devices: the first one decodes it alone. */
struct share vae_bands(const struct run *r, int h);

/* image [h * w, 3] act (about -1..1, not clamped) = decoded tokens. All devices that vae_bands names call it; the first has the image then,
 * the others their rows. All have all tokens. */
void vae_decode(struct run *r, const struct vae *v, struct tensor image, struct tensor tokens, int h, int w);

#endif
