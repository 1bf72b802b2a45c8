"""dit.safetensors: the transformer alone, with 0, 1, 3 and 16 references (transformer_flux2.py, ids by pipeline_flux2_klein.py)."""

from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline

from common import Capture, block_modules, block_outputs, normal, packed, save

T = 0.731
TARGET = (4, 6)
SIZES = [(3, 5), (2, 7), (5, 4)]  # of the references, which come again and again
CASES = {"r0": 0, "r1": 1, "r3": 3, "r16": 16}  # so many references


def forward(pipe: Flux2KleinPipeline, x, references, text, modules=None):
    """x [1, 128, h, w], references the same, text [l, W]: velocity [h * w, 128] and the captured outputs."""
    transformer = pipe.transformer
    ids = [pipe._prepare_latent_ids(x)]
    if references:
        ids.append(pipe._prepare_image_ids(references))
    with torch.no_grad(), Capture({**block_modules(transformer), **(modules or {})}) as capture:
        output = transformer(
            hidden_states=torch.cat([packed(r) for r in [x, *references]])[None],
            timestep=torch.tensor([T]),
            encoder_hidden_states=text[None],
            txt_ids=pipe._prepare_text_ids(text[None]),
            img_ids=torch.cat(ids, dim=1),
            return_dict=False,
        )[0][0]
    return output[: x.shape[2] * x.shape[3]], capture, torch.cat(ids, dim=1)[0]


def make(pipe: Flux2KleinPipeline, out: Path, text: torch.Tensor) -> None:
    transformer = pipe.transformer
    x = normal(1, 1, 128, *TARGET)
    references = [normal(2 + k, 1, 128, *size) for k, size in enumerate(SIZES)]
    tensors = {"t": torch.tensor([T]), "x": packed(x)}
    for k, reference in enumerate(references):
        tensors[f"ref.{k}"] = packed(reference)

    # Every block with all rows: few text tokens, one reference. Inputs of block J are the outputs of block J - 1.
    # The first token of each stream is tiny: there, and only there, the norms' eps 1e-6 matters.
    small_text = normal(10, 12, text.shape[1])
    small_x = x.clone()
    small_text[0] *= 1e-3
    small_x[:, :, 0, 0] *= 1e-3
    velocity, capture, _ = forward(
        pipe,
        small_x,
        references[:1],
        small_text,
        {
            transformer.double_stream_modulation_img: "mod.img",
            transformer.double_stream_modulation_txt: "mod.txt",
            transformer.single_stream_modulation: "mod.single",
            transformer.x_embedder: "img_in",
            transformer.context_embedder: "txt_in",
        },
    )
    tensors["small.x"], tensors["small.text"] = packed(small_x), small_text
    for name in ("mod.img", "mod.txt", "mod.single", "img_in", "txt_in"):
        tensors[f"small.{name}"] = capture[name].reshape(-1, capture[name].shape[-1])
    tensors["small.ref_in"] = tensors.pop("small.img_in")[TARGET[0] * TARGET[1] :]  # what klein makes beforehand
    tensors.update(block_outputs(capture, "small."))
    tensors["small.velocity"] = velocity

    # Whole passes with 512 text tokens.
    for case, count in CASES.items():
        velocity, capture, ids = forward(pipe, x, (references * 6)[:count], text)
        tensors[f"{case}.velocity"] = velocity
        if case == "r3":
            tensors.update({f"{n}@11": t[::11] for n, t in block_outputs(capture, "r3.").items()})
            cos, sin = transformer.pos_embed(ids)
            tensors["r3.rope_cos"], tensors["r3.rope_sin"] = cos[:, ::2], sin[:, ::2]  # one per pair
    save(out / "dit.safetensors", tensors)
