"""Random weights that need no storage: an exact recipe that C and Python evaluate to the same bits.

Element i of a tensor is   bf16(base + scale * (2 b - 255) / 256),   b = top byte of output i of splitmix64 seeded with fnv1a64(name),
with the multiplication and the addition rounded to float32 and the result rounded to bf16 (nearest even): uniform in base +- scale.
`base` and `scale` are float32 per tensor; with a `fade` F > 0 the scale of column c is multiplied by ((c mod F) / F)^2. weights.txt lists file by file, in file order, what save_pretrained wrote, with the
FNV-1a 64 of the whole file; tests/golden/weights.c writes the same files from it and compares the hash.
"""

import fnmatch
import json
import math
import struct
from pathlib import Path

import numpy as np
import torch

MASK = (1 << 64) - 1


def fnv1a64(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def fnv1a64_file(path: Path) -> int:
    """The same over a file, eight bytes (little endian, zero padded) at a time: byte by byte is too slow in Python for megabytes."""
    data = path.read_bytes()
    words = np.frombuffer(data + bytes(-len(data) % 8), dtype="<u8").tolist()
    h = 0xCBF29CE484222325
    for word in words:
        h = ((h ^ word) * 0x100000001B3) & MASK
    return h


def values(name: str, shape: tuple[int, ...], base: float, scale: float, fade: int) -> torch.Tensor:
    n = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name.encode())) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = ((z >> np.uint64(56)).astype(np.float32) * 2 - 255) / np.float32(256)
    scales = np.float32(scale)
    if fade:
        column = (np.arange(n, dtype=np.int64) % shape[-1] % fade).astype(np.float32) / np.float32(fade)
        scales = scales * (column * column)
    x = np.float32(base) + scales * u
    return torch.from_numpy(x).to(torch.bfloat16).reshape(shape)


def matrix(std: float, fade: int = 0) -> tuple[float, float, int]:
    """(base, scale, fade) of a zero-mean uniform distribution with that standard deviation."""
    return 0.0, std * math.sqrt(15.0 if fade else 3.0), fade  # the mean of the faded squares is 1/5


def fill(model: torch.nn.Module, rules, used: dict) -> None:
    """Sets every tensor of `model` by the first rule (glob, function of the shape -> (base, scale, fade)) matching its name, in bf16.
    Records those in `used`."""
    state, filled = {}, {}
    for name, tensor in model.state_dict().items():
        first = filled.setdefault(tensor.data_ptr(), name)
        if first != name:  # tied
            state[name] = state[first]
            continue
        if not tensor.is_floating_point():
            state[name] = torch.zeros_like(tensor)
            continue
        rule = next((f for glob, f in rules if fnmatch.fnmatchcase(name, glob)), None)
        if rule is None:
            raise SystemExit(f"no rule for {name}")
        used[name] = rule(tuple(tensor.shape))
        state[name] = values(name, tuple(tensor.shape), *used[name])
    model.to(torch.bfloat16)
    model.load_state_dict(state, strict=True)


def write_list(folder: Path, used: dict) -> None:
    """weights.txt: `file PATH FNV` then one line per tensor, `NAME DTYPE BASE SCALE FADE NDIM DIMS...`; integers are zero."""
    lines = []
    for path in sorted(folder.rglob("*.safetensors")):
        lines.append(f"file {path.relative_to(folder)} {fnv1a64_file(path):016x}")
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            base, scale, fade = used[name] if entry["dtype"] == "BF16" else (0.0, 0.0, 0)
            dims = " ".join(map(str, [len(entry["shape"]), *entry["shape"]]))
            lines.append(f"{name} {entry['dtype']} {base:.9g} {np.float32(scale):.9g} {fade} {dims}")
    (folder / "weights.txt").write_text("\n".join(lines) + "\n")
