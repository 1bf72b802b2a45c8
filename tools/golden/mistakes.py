"""What the goldens can see: makes typical mistakes in the reference and prints how far the outputs move (relative L2).

python tools/golden/mistakes.py        (the table in tests/golden/README.md)
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.transformers import transformer_flux2

import dit
import encoder
import models
import vae
from common import PROMPTS, capture_ids, normal


def moved(x: torch.Tensor, reference: torch.Tensor) -> float:
    return ((x - reference).norm() / reference.norm()).item()


@contextmanager
def eps(model: torch.nn.Module, kind: type, value: float):
    """The norms of that class with another eps."""
    norms = [(m, m.eps) for m in model.modules() if isinstance(m, kind)]
    for norm, _ in norms:
        norm.eps = value
    try:
        yield
    finally:
        for norm, old in norms:
            norm.eps = old


def half_split(x, tables, sequence_dim=1):
    cos, sin = (torch.cat([t[:, ::2]] * 2, -1)[None, :, None] for t in tables)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def transformer_mistakes(pipe, text, real: int, states):
    x = normal(1, 1, 128, *dit.TARGET)
    refs = [normal(2 + k, 1, 128, *size) for k, size in enumerate(dit.SIZES)]

    def velocity(refs=refs, text=text):
        return dit.forward(pipe, x, refs, text)[0]

    right = velocity()
    image_ids, text_ids, latent_ids = pipe._prepare_image_ids, pipe._prepare_text_ids, pipe._prepare_latent_ids
    yield "no references", moved(velocity(refs=[]), right)
    yield "references swapped", moved(velocity(refs=[refs[1], refs[0], refs[2]]), right)
    with patch.object(pipe, "_prepare_image_ids", lambda r: image_ids(r, scale=9)):
        yield "T offset 9 instead of 10", moved(velocity(), right)
    with patch.object(pipe, "_prepare_image_ids", lambda r: image_ids(r) - torch.tensor([10, 0, 0, 0])):
        yield "T = 0 for the first reference", moved(velocity(), right)
    with patch.object(pipe, "_prepare_latent_ids", lambda r: latent_ids(r)[..., [0, 2, 1, 3]]):
        yield "h and w exchanged", moved(velocity(), right)
    with patch.object(pipe, "_prepare_text_ids", lambda r: text_ids(r) + torch.tensor([0, 0, 0, 1])):
        yield "text positions from 1", moved(velocity(), right)
    with patch.object(transformer_flux2, "apply_rotary_emb", half_split):
        yield "half-split RoPE", moved(velocity(), right)
    with patch.object(pipe.transformer.pos_embed, "theta", 10000):
        yield "RoPE theta 10000", moved(velocity(), right)
    with patch.object(transformer_flux2, "apply_rotary_emb", lambda x, _tables, sequence_dim: x):
        yield "no RoPE", moved(velocity(), right)
    with patch.object(dit, "T", 0.735):
        yield "t 0.735 instead of 0.731", moved(velocity(), right)

    padded = text.clone()
    padded[real:] = 0
    yield "padding rows zeroed", moved(velocity(text=padded), right)
    yield "padding rows left out", moved(velocity(text=text[:real]), right)
    masked, unmasked, faint, faint_other_eps = states
    yield "no key mask in the text encoder", moved(velocity(text=rows(unmasked, (1, 2, 3))), right)
    yield "text outputs off by one layer", moved(velocity(text=rows(masked, (2, 3, 4))), right)
    yield "text outputs in reverse order", moved(velocity(text=rows(masked, (3, 2, 1))), right)
    yield "RMSNorm eps 1e-5 in the text encoder (`faint`)", moved(rows(faint_other_eps, (1, 2, 3)), rows(faint, (1, 2, 3)))

    tiny_x, tiny_text = x.clone(), normal(10, 12, text.shape[1])  # as `small` in dit.py
    tiny_x[:, :, 0, 0] *= 1e-3
    tiny_text[0] *= 1e-3
    right = dit.forward(pipe, tiny_x, refs[:1], tiny_text)[0]
    with eps(pipe.transformer, torch.nn.LayerNorm, 1e-5):
        yield "LayerNorm eps 1e-5 (`small.velocity`)", moved(dit.forward(pipe, tiny_x, refs[:1], tiny_text)[0], right)


def vae_mistakes(model):
    def encode(pixels):
        return model.encode(pixels).latent_dist.mode()

    image = vae.pixels(48, 64)
    flat = torch.randint(126, 130, (1, 3, 32, 32), generator=torch.Generator("cpu").manual_seed(23)) / 255 * 2 - 1
    right, right_flat = encode(image), encode(flat)
    with eps(model, torch.nn.GroupNorm, 1e-5):
        yield "GroupNorm eps 1e-5 (`flat`)", moved(encode(flat), right_flat)
    for block in model.encoder.down_blocks:
        for down in block.downsamplers or []:
            down.forward = lambda x, conv=down.conv: F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    yield "symmetric padding in the VAE encoder", moved(encode(image), right)


def rows(states, layers):
    return torch.cat([states[k][0] for k in layers], dim=-1)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        models.make_tiny(Path(temporary))
        pipe = models.load(Path(temporary))
    with capture_ids(pipe.text_encoder) as calls:
        text = pipe.encode_prompt(PROMPTS["short"], text_encoder_out_layers=models.TEXT_OUTPUTS)[0][0]
    ids, mask = calls[0]

    def hidden(mask):
        return pipe.text_encoder(ids[None], attention_mask=mask, output_hidden_states=True).hidden_states

    states = [hidden(mask[None]), hidden(None)]
    with encoder.faint(pipe.text_encoder):
        states.append(hidden(mask[None]))
        for m in pipe.text_encoder.modules():
            if hasattr(m, "variance_epsilon"):
                m.variance_epsilon = 1e-5
        states.append(hidden(mask[None]))
    for name, change in [*transformer_mistakes(pipe, text, int(mask.sum()), states), *vae_mistakes(pipe.vae)]:
        print(f"{name:40} {change:.3f}")


if __name__ == "__main__":
    main()
