"""What the golden makers share: writing tensors, strided rows, seeded inputs, forward hooks."""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

# NAME@11 holds rows 0, 11, 22, ... of NAME. Strides are odd primes, so that no pattern of 2, 4 or 16 hides between the rows.

PROMPTS = {
    "short": 'a red fox in the snow, holding a sign that says "hello 42"',
    "empty": "",
    "unicode": "Ünïcode: 猫 и 🐱‍👤, it's  two  spaces\n\nand a <|im_end|> inside",
    # Far more than 512 tokens: the end of the prompt and the template's tail are cut.
    "long": "a city street in the rain with neon signs, people walking under umbrellas, wet road. " * 40,
}


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Floats as they are (float32 or bfloat16), integers as int32 (bytes as uint8); nothing else may come."""
    out = {}
    for name, t in tensors.items():
        t = t.detach()
        if not t.is_floating_point() and t.dtype != torch.uint8:
            t = t.to(torch.int32)
        assert t.dtype in (torch.float32, torch.bfloat16, torch.int32, torch.uint8), (name, t.dtype)
        assert not t.is_floating_point() or torch.isfinite(t.float()).all(), name
        out[name] = t.clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path)
    print(f"{path.name}: {len(out)} tensors, {path.stat().st_size} bytes")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def packed(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] or [C, h, w] to tokens [h * w, C]."""
    latents = latents.reshape(latents.shape[-3:])
    return latents.flatten(1).T


class Capture:
    """Collects outputs of modules by name while active: with Capture({module: "name"}) as c: ...; c["name"]."""

    def __init__(self, modules: dict):
        self.modules, self.tensors, self.handles = modules, {}, []

    def __enter__(self):
        for module, name in self.modules.items():
            self.handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def __getitem__(self, name):
        return self.tensors[name]

    def _hook(self, name):
        def hook(_module, _inputs, output):
            if name not in self.tensors:  # the first call only
                self.tensors[name] = output

        return hook


@contextmanager
def capture_ids(text_encoder):
    """Yields a list that gets (input_ids [L], attention_mask [L]) of every call of the text encoder."""
    calls = []
    handle = text_encoder.register_forward_pre_hook(
        lambda _m, _args, kwargs: calls.append((kwargs["input_ids"][0], kwargs["attention_mask"][0])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


def block_modules(transformer) -> dict:
    """Blocks of a transformer by the names of klein's taps."""
    names = {b: f"double.{i}" for i, b in enumerate(transformer.transformer_blocks)}
    names.update({b: f"single.{i}" for i, b in enumerate(transformer.single_transformer_blocks)})
    return names


def block_outputs(capture: Capture, prefix: str = "") -> dict[str, torch.Tensor]:
    """Captured block outputs as PREFIXdouble.J.img, PREFIXdouble.J.txt, PREFIXsingle.J, without the batch dimension."""
    out = {}
    for name, value in capture.tensors.items():
        if name.startswith("double."):
            out[f"{prefix}{name}.txt"], out[f"{prefix}{name}.img"] = value[0][0], value[1][0]
        elif name.startswith("single."):
            out[f"{prefix}{name}"] = value[0]
    return out
