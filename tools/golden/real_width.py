"""real_width.safetensors: one block of each kind with the widths of klein 4B, by the real classes.

    python tools/golden/real_width.py tests/golden

The weights are those of klein's random checkpoints, seed 1: bf16, by the recipe of weights/random.c, which `values` repeats (`dit.weights`
pins it). A minute of one core, 6 GB.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from common import Capture, block_modules, block_outputs, normal, packed, save
from vae import decode, pixels, statistics

SEED, TABLE, MASK = 1, 4096, (1 << 64) - 1
TRANSFORMER, TEXT, VAE = range(3)
T = 0.72  # 720 survives bf16
TARGET, REFERENCE, TEXT_TOKENS = (2, 3), (2, 2), 6
PROMPT_TOKENS, PROMPT_REAL, VOCABULARY = 24, 17, 512
IMAGE = (16, 32)  # height, width


def mix(x):
    """splitmix64's finaliser, of an int or an array of uint64."""
    if isinstance(x, int):
        return int(mix(np.array([x & MASK], dtype=np.uint64))[0])
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def unit_normals() -> np.ndarray:
    h = mix(np.arange(TABLE // 2, dtype=np.uint64))
    sums = h.view(np.uint8).reshape(-1, 8).astype(np.float64).sum(axis=1) - 8 * 127.5
    half = sums.astype(np.float32) * np.float32(1 / math.sqrt((sums * sums).sum() / (TABLE // 2)))
    return np.concatenate([half, -half])


def table(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("running_var"):
        return np.float32(2.91) + np.float32(0.56) * np.arange(TABLE, dtype=np.float32) / np.float32(TABLE - 1)
    mean = 0.0
    if name.endswith("running_mean"):
        deviation = 0.05
    elif len(shape) == 1:
        mean, deviation = (1.0, 0.1) if name.endswith(".weight") else (0.0, 0.02)
    else:
        deviation = 1 / math.sqrt(math.prod(shape[1:]))
    return np.float32(mean) + np.float32(deviation) * unit_normals()


def values(part: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    key = mix(SEED ^ mix(part))
    for byte in name.encode():
        key = mix(key ^ byte)
    n, floats = math.prod(shape), table(name, shape)
    with np.errstate(over="ignore"):
        hashes = mix(np.arange((n + 3) // 4, dtype=np.uint64) + np.uint64(key))
    if name.endswith("running_mean"):  # near-equal in fours
        i = np.arange(n)
        means = floats[(hashes[i // 4] % np.uint64(TABLE)).astype(int)]
        return torch.from_numpy(means + np.float32(0.002) * ((i % 4).astype(np.float32) - np.float32(1.5))).bfloat16()
    halves = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy()
    drawn = halves[hashes.view(np.uint16)[:n] & np.uint16(TABLE - 1)]
    return torch.from_numpy(drawn).view(torch.bfloat16).reshape(shape)


def fill(model: torch.nn.Module, part: int) -> None:
    """Every tensor by its canonical name. norm_out's matrix is two of them, scale and shift."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "norm_out.linear.weight":
                half = (tensor.shape[0] // 2, tensor.shape[1])
                tensor[: half[0]] = values(part, "norm_out.linear.scale", half)
                tensor[half[0] :] = values(part, "norm_out.linear.shift", half)
            elif tensor.is_floating_point() and name != "lm_head.weight":  # tied: nothing reads it
                tensor.copy_(values(part, name, tuple(tensor.shape)))




def add(tensors: dict, name: str, single: torch.Tensor, half: torch.Tensor, every: int = 1) -> None:
    """NAME in f32 and NAME.bf16_error, how far the same in bf16 is from it, of every `every`-th row."""
    suffix = f"@{every}" if every > 1 else ""
    single, half = single[::every].float(), half[::every].float()
    tensors[name + suffix] = single
    tensors[f"{name}.bf16_error"] = (torch.linalg.norm((half - single).double()) / torch.linalg.norm(single.double())).float().reshape(1)
    print(name, tuple(single.shape), "rms", float(single.square().mean().sqrt()), "bf16", float(tensors[f"{name}.bf16_error"]))


def make_dit(tensors: dict) -> None:
    model = Flux2Transformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False)
    assert model.config.attention_head_dim == 128 and model.config.mlp_ratio == 3.0 and model.config.in_channels == 128
    fill(model, TRANSFORMER)
    # Small inputs: what the blocks add is then larger than what they add it to, and its errors show.
    x, reference = ((normal(1 + i, 1, 128, *size) / 8).bfloat16() for i, size in enumerate((TARGET, REFERENCE)))
    text = (normal(3, TEXT_TOKENS, 7680) / 8).bfloat16()
    ids = torch.cat([Flux2KleinPipeline._prepare_latent_ids(x), Flux2KleinPipeline._prepare_image_ids([reference])], dim=1)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with torch.no_grad(), Capture(block_modules(model)) as capture:
            velocity = model(
                hidden_states=torch.cat([packed(x), packed(reference)])[None].to(dtype),
                timestep=torch.tensor([T], dtype=dtype),
                encoder_hidden_states=text[None].to(dtype),
                txt_ids=Flux2KleinPipeline._prepare_text_ids(text[None]),
                img_ids=ids,
                return_dict=False,
            )[0][0]
        results[dtype] = {**block_outputs(capture, "dit."), "dit.velocity": velocity[: TARGET[0] * TARGET[1]]}
    tensors.update({"dit.t": torch.tensor([T]), "dit.x": packed(x), "dit.reference": packed(reference), "dit.text": text})
    tensors["dit.weights"] = values(TRANSFORMER, "x_embedder.weight", (3072, 128))[:8]
    for name, single in results[torch.float32].items():
        add(tensors, name, single, results[torch.bfloat16][name], 1 if name == "dit.velocity" else 3)


def make_qwen3(tensors: dict) -> None:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=1,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
            attention_bias=False,
        )
    )
    fill(model, TEXT)
    ids = torch.randint(0, VOCABULARY, (PROMPT_TOKENS,), generator=torch.Generator("cpu").manual_seed(4))
    mask = (torch.arange(PROMPT_TOKENS) < PROMPT_REAL).long()
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with torch.no_grad(), Capture({model.model.layers[0]: "layer"}) as capture:
            model(input_ids=ids[None], attention_mask=mask[None])
        layer = capture["layer"]
        results[dtype] = (layer[0] if isinstance(layer, tuple) else layer).reshape(PROMPT_TOKENS, -1)
    tensors["text.ids"], tensors["text.real"] = ids, torch.tensor([PROMPT_REAL])
    add(tensors, "text.layer", results[torch.float32], results[torch.bfloat16], 3)


def make_vae(tensors: dict) -> None:
    model = AutoencoderKLFlux2()
    assert model.config.block_out_channels == (128, 256, 512, 512) and model.config.latent_channels == 32
    fill(model, VAE)
    model.eval()
    rgb, latents = pixels(*IMAGE), normal(5, 1, 128, IMAGE[0] // 16, IMAGE[1] // 16).bfloat16()
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        mean, std = statistics(model)
        with torch.no_grad():
            mode = Flux2KleinPipeline._patchify_latents(model.encode(rgb.to(dtype)).latent_dist.mode())
            results[dtype] = packed((mode - mean) / std), packed(decode(model, latents.to(dtype)))
    tensors["vae.pixels"] = packed(((rgb + 1) * 127.5).round()).to(torch.uint8)
    tensors["vae.latents"] = packed(latents)
    for i, name in enumerate(("vae.encoded", "vae.image")):
        add(tensors, name, results[torch.float32][i], results[torch.bfloat16][i])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to; tests/golden in the repository")
    torch.set_num_threads(1)
    out, tensors = parser.parse_args().out, {}
    make_dit(tensors)
    make_qwen3(tensors)
    make_vae(tensors)
    save(out / "real_width.safetensors", tensors)


if __name__ == "__main__":
    main()
