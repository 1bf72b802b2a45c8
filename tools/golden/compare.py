"""Compares the tensors of two safetensors files by name:  python tools/golden/compare.py OURS REFERENCE

Relative L2 is |ours - reference| / |reference|. A reference tensor NAME@11 is compared with rows 0, 11, 22, ... of NAME, and so on.
"""

import argparse

import torch
from safetensors.torch import load_file


def compare(ours: torch.Tensor, reference: torch.Tensor) -> str:
    if ours.shape != reference.shape:
        return f"shape {tuple(ours.shape)} against {tuple(reference.shape)}"
    if not reference.is_floating_point():
        return f"{(ours != reference).sum().item()} of {reference.numel()} differ"
    a, b = ours.double(), reference.double()
    difference = (a - b).norm() / b.norm().clamp_min(1e-300)
    return f"relative L2 {difference.item():.3e}   max {(a - b).abs().max().item():.3e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ours")
    parser.add_argument("reference")
    args = parser.parse_args()
    ours, references = load_file(args.ours), load_file(args.reference)
    for name, reference in references.items():
        base, _, stride = name.partition("@")
        found = ours.get(name, ours.get(base))
        if found is None:
            continue
        if name not in ours and stride:
            found = found[:: int(stride)]
        print(f"{name:32} {compare(found, reference)}")


if __name__ == "__main__":
    main()
