"""pipe_*.safetensors: whole requests through Flux2KleinPipeline, every tensor under the name of klein's --dump."""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from common import PROMPTS, Capture, capture_ids, normal, packed, save
from models import TEXT_OUTPUTS


def run(
    pipe: Flux2KleinPipeline,
    prompt: str,
    latents: torch.Tensor,  # [1, 128, H / 16, W / 16]
    steps: int,
    images=(),
    guidance: float = 1.0,
    sigmas: list[float] | None = None,
    text_outputs=TEXT_OUTPUTS,
    text_length: int = 512,
    blocks: bool = False,
) -> dict[str, torch.Tensor]:
    """One request; returns klein's dump of it (names and shapes of klein's --dump, --dump-blocks), and `image_u8` [H, W, 3]."""
    tensors, embeds, calls = {}, [], 0
    passes = 2 if guidance > 1 and not pipe.config.is_distilled else 1

    def text(**kwargs):
        embeds.append(type(pipe)._get_qwen3_prompt_embeds(**kwargs))
        return embeds[-1]

    def encode(image, generator):
        latents = type(pipe)._encode_vae_image(pipe, image, generator)
        tensors[f"ref_latents.{sum(name.startswith('ref_latents') for name in tensors)}"] = packed(latents)
        return latents

    def step(velocity, *args, **kwargs):
        tensors[f"velocity.{pipe.scheduler.step_index or 0}"] = velocity[0]
        return type(pipe.scheduler).step(pipe.scheduler, velocity, *args, **kwargs)

    def step_end(_pipe, i, _t, values):
        tensors[f"latents.{i}"] = values["latents"][0]
        return {}

    def count(*_):
        nonlocal calls
        calls += 1

    def block_hook(name):
        def hook(_module, _inputs, output):
            i, part = divmod(calls - 1, passes)
            if part == 0 and name.startswith("double"):
                tensors[f"step.{i}.{name}.txt"], tensors[f"step.{i}.{name}.img"] = output[0][0], output[1][0]
            elif part == 0:
                tensors[f"step.{i}.{name}"] = output[0]

        return hook

    hooks = [pipe.transformer.register_forward_pre_hook(count)]
    if blocks:
        hooks += [b.register_forward_hook(block_hook(f"double.{i}")) for i, b in enumerate(pipe.transformer.transformer_blocks)]
        hooks += [
            b.register_forward_hook(block_hook(f"single.{i}")) for i, b in enumerate(pipe.transformer.single_transformer_blocks)
        ]
    pipe._get_qwen3_prompt_embeds, pipe._encode_vae_image, pipe.scheduler.step = text, encode, step
    try:
        with Capture({pipe.vae.decoder: "image"}) as capture, capture_ids(pipe.text_encoder) as ids:
            picture = pipe(
                prompt=prompt,
                image=list(images) or None,
                height=latents.shape[2] * 16,
                width=latents.shape[3] * 16,
                num_inference_steps=steps,
                sigmas=sigmas,
                guidance_scale=guidance,
                latents=latents,
                text_encoder_out_layers=text_outputs,
                max_sequence_length=text_length,
                callback_on_step_end=step_end,
            ).images[0]
    finally:
        del pipe._get_qwen3_prompt_embeds, pipe._encode_vae_image, pipe.scheduler.step
        for hook in hooks:
            hook.remove()
    tensors["input_ids"] = ids[0][0]
    tensors["prompt_embeds"] = embeds[0][0]
    tensors["sigmas"] = pipe.scheduler.sigmas
    tensors["image"] = capture["image"][0]
    tensors["image_u8"] = torch.from_numpy(np.array(picture))
    return tensors


def small(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is kept of a dump: every 31st row of the embeddings and of the first step's blocks."""
    out = {}
    for name, t in tensors.items():
        if name == "prompt_embeds" or name.startswith("step.0."):
            out[f"{name}@31"] = t[::31]
        elif not name.startswith("step."):
            out[name] = t
    return out


REQUESTS = {
    # name: (base model, prompt, width, height, steps, references, guidance, custom sigmas)
    "t2i": (False, PROMPTS["short"], 96, 64, 4, [], 1.0, None),
    "edit": (False, "make the balloon green", 96, 64, 4, ["a"], 1.0, None),
    "two_refs": (False, "the object of the first image in the place of the second", 80, 64, 4, ["b", "odd"], 1.0, None),
    "base": (True, PROMPTS["short"], 64, 64, 6, [], 4.0, None),
    "base_edit": (True, "turn day into night", 64, 80, 3, ["b"], 2.5, None),
    "sigmas": (False, PROMPTS["unicode"], 64, 64, 4, [], 1.0, [1.0, 0.8, 0.55, 0.2]),
}


def request_tensors(prompt, latents, steps, references, guidance, sigmas) -> dict[str, torch.Tensor]:
    """The request itself. `latents` is what klein's --latents takes."""
    height, width = (16 * n for n in latents.shape[2:])
    tensors = {
        "prompt": torch.tensor(list(prompt.encode()), dtype=torch.uint8),
        "latents": latents,
        "request": torch.tensor([width, height, steps, len(references)]),
        "guidance": torch.tensor([guidance], dtype=torch.float32),
    }
    if sigmas is not None:
        tensors["sigmas_in"] = torch.tensor(sigmas, dtype=torch.float32)
    return tensors


def make(pipe: Flux2KleinPipeline, base: Flux2KleinPipeline, references: dict, out: Path) -> None:
    for seed, (name, (is_base, prompt, width, height, steps, refs, guidance, sigmas)) in enumerate(REQUESTS.items()):
        latents = normal(30 + seed, 1, 128, height // 16, width // 16)
        dump = run(
            base if is_base else pipe,
            prompt,
            latents,
            steps,
            [references[r] for r in refs],
            guidance,
            sigmas,
            blocks=name == "two_refs",
        )
        tensors = {**request_tensors(prompt, latents, steps, refs, guidance, sigmas), **small(dump)}
        if name not in ("t2i", "two_refs", "base"):
            del tensors["image"]  # its 8 bits suffice
        save(out / f"pipe_{name}.safetensors", tensors)


# Timesteps (1000 sigma) on which diffusers' roundings in bf16 (t, t / 1000, that times 1000) change nothing: what is left between its
# bf16 and its float32 is arithmetic, not another schedule.
BF16_TIMESTEPS = [1000, 960, 880, 720]


def sigmas_for(timesteps: list[int], tokens: int) -> list[float]:
    """Custom sigmas that the shift turns into timesteps / 1000."""
    shift = math.exp(compute_empirical_mu(tokens, len(timesteps)))
    return [1 / (1 + shift * (1000 / t - 1)) for t in timesteps]


def make_bf16(pipe: Flux2KleinPipeline, half: Flux2KleinPipeline, references: dict, out: Path) -> None:
    """The same two requests by the reference in float32 and in bfloat16: the error that klein's bf16 is measured against."""
    for timestep in map(float, BF16_TIMESTEPS):
        t = torch.tensor(timestep, dtype=torch.bfloat16)
        assert (t / 1000 * 1000).item() == timestep, timestep
    for seed, (name, refs) in enumerate({"t2i": [], "edit": ["a"]}.items()):
        prompt, width, height, steps = REQUESTS[name][1:5]
        latents = normal(50 + seed, 1, 128, height // 16, width // 16).to(torch.bfloat16).float()
        sigmas = sigmas_for(BF16_TIMESTEPS, (width // 16) * (height // 16))
        tensors = request_tensors(prompt, latents, steps, refs, 1.0, sigmas)
        for kind, reference in {"f32": pipe, "bf16": half}.items():
            dump = run(reference, prompt, latents, steps, [references[r] for r in refs], sigmas=sigmas)
            kept = [n for n in dump if n.startswith("ref_latents")]
            kept += ["prompt_embeds", "velocity.0", f"latents.{steps - 1}", "image"]
            tensors.update({f"{kind}.{n}": t for n, t in small({n: dump[n] for n in kept}).items()})
        tensors["sigmas"] = dump["sigmas"]
        save(out / f"bf16_{name}.safetensors", tensors)
