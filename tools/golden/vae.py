"""vae.safetensors, small_decoder.safetensors: AutoencoderKLFlux2 encode and decode with the pipeline's packing and BatchNorm
statistics (autoencoder_kl_flux2.py, pipeline_flux2_klein.py)."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline

from common import normal, packed, save

SIZES = [(48, 64), (80, 48)]  # height, width


def pixels(height: int, width: int) -> torch.Tensor:
    """A picture with smooth parts, edges and some noise, as 8-bit levels in [-1, 1] [1, 3, H, W]."""
    y = torch.arange(height, dtype=torch.float32)[:, None] / height
    x = torch.arange(width, dtype=torch.float32)[None, :] / width
    planes = torch.stack([x + 0 * y, y + 0 * x, ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.08).float()])
    planes = 0.8 * planes + 0.1 + 0.05 * normal(20, 3, height, width)
    return ((planes * 255).round().clamp(0, 255) / 255 * 2 - 1)[None]


def statistics(vae: AutoencoderKLFlux2):
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return vae.bn.running_mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def decode(vae: AutoencoderKLFlux2, latents: torch.Tensor) -> torch.Tensor:
    """What the pipeline does with its last latents [1, 128, h, w]."""
    mean, std = statistics(vae)
    return vae.decode(Flux2KleinPipeline._unpatchify_latents(latents * std + mean), return_dict=False)[0]


def make(pipe: Flux2KleinPipeline, out: Path) -> None:
    vae, tensors = pipe.vae, {}
    for height, width in SIZES:
        size = f"{width}x{height}"
        image = pixels(height, width)
        latents = normal(21, 1, 128, height // 16, width // 16)
        with torch.no_grad():
            tensors[f"{size}.pixels"] = image[0]
            tensors[f"{size}.ref_latents"] = packed(pipe._encode_vae_image(image, generator=None))
            tensors[f"{size}.latents"] = packed(latents)
            tensors[f"{size}.image"] = decode(vae, latents)[0]
    # Nearly flat: the first norms divide by so little that GroupNorm's eps 1e-6 matters.
    flat = torch.randint(126, 130, (1, 3, 32, 32), generator=torch.Generator("cpu").manual_seed(23)) / 255 * 2 - 1
    with torch.no_grad():
        tensors["flat.pixels"], tensors["flat.ref_latents"] = flat[0], packed(pipe._encode_vae_image(flat, generator=None))
    save(out / "vae.safetensors", tensors)


def make_small_decoder(vae: AutoencoderKLFlux2, out: Path) -> None:
    latents = normal(22, 1, 128, 3, 4)
    with torch.no_grad():
        image = decode(vae, latents)[0]
    save(out / "small_decoder.safetensors", {"64x48.latents": packed(latents), "64x48.image": image})
