"""nano.safetensors: one picture of the demo checkpoint by diffusers, in float32:  python tools/golden/nano.py [weights/nano] [tests/golden]

Make it again whenever the checkpoint changes. The noise is that of the seed, as klein draws it.
"""

import argparse
import json
from pathlib import Path

import torch

import models
import pipeline
from common import normal, save

PROMPT, SEED = "A red balloon on a wooden table.", 1
ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, out: Path) -> None:
    klein = json.loads((folder / "klein.json").read_text())
    width, height, steps = klein["default_width"], klein["default_height"], klein["default_steps"]
    dump = pipeline.run(
        models.load(folder),
        PROMPT,
        normal(SEED, 1, 128, height // 16, width // 16),
        steps,
        text_outputs=tuple(klein["text_outputs"]),
        text_length=klein["text_length"],
    )
    tensors = {
        "prompt": torch.tensor(list(PROMPT.encode()), dtype=torch.uint8),
        "request": torch.tensor([width, height, steps, SEED]),
        "prompt_embeds@7": dump["prompt_embeds"][::7],
        **{name: dump[name] for name in ("input_ids", "sigmas", f"latents.{steps - 1}", "image_u8")},
    }
    save(out / "nano.safetensors", tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "weights/nano")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "tests/golden")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make(args.folder, args.out)


if __name__ == "__main__":
    main()
