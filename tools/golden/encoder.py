"""encoder.safetensors: prompts through the real pipeline's tokenising and Qwen3 (pipeline_flux2_klein.py, modeling_qwen3.py)."""

from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline

from common import PROMPTS, capture_ids, save
from models import TEXT_OUTPUTS


def make(pipe: Flux2KleinPipeline, out: Path) -> dict[str, torch.Tensor]:
    """Returns prompt name -> prompt_embeds [512, 192]."""
    embeds, tensors = {}, {}
    for name, prompt in PROMPTS.items():
        with torch.no_grad(), capture_ids(pipe.text_encoder) as ids:
            embeds[name] = pipe.encode_prompt(prompt, text_encoder_out_layers=TEXT_OUTPUTS)[0][0]
        input_ids, mask = ids[0]
        check_padding(pipe, input_ids, mask, embeds[name])
        tensors[f"{name}.prompt"] = torch.tensor(list(prompt.encode()), dtype=torch.uint8)
        tensors[f"{name}.input_ids"] = input_ids
        tensors[f"{name}.real"] = mask.sum().reshape(1)
        if name == "short":
            tensors[f"{name}.prompt_embeds"] = embeds[name]
        else:
            tensors[f"{name}.prompt_embeds@11"] = embeds[name][::11]
    with torch.no_grad(), faint(pipe.text_encoder):
        states = pipe.encode_prompt(PROMPTS["short"], text_encoder_out_layers=TEXT_OUTPUTS)[0][0]
    tensors["faint.prompt_embeds@31"] = states[::31]
    save(out / "encoder.safetensors", tensors)
    return embeds


@contextmanager
def faint(text_encoder):
    """Embeddings scaled by 2^-10: the first norm divides by so little that RMSNorm's eps 1e-6 matters."""
    table = text_encoder.get_input_embeddings().weight.data
    table *= 2**-10
    try:
        yield
    finally:
        table *= 2**10


def check_padding(pipe, input_ids, mask, embeds) -> None:
    """The claim klein relies on: query i attends key j iff j <= i and j is a real token; positions count the padding too."""
    j = torch.arange(512)
    allowed = (j[None, :] <= j[:, None]) & (j[None, :] < mask.sum())
    with torch.no_grad():
        states = pipe.text_encoder(
            input_ids[None], attention_mask=allowed[None, None], position_ids=j[None], output_hidden_states=True
        ).hidden_states
    assert torch.equal(torch.cat([states[k][0] for k in TEXT_OUTPUTS], dim=-1), embeds)
