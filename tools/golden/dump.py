"""Runs diffusers on any klein model folder and writes every intermediate tensor under the names of `klein generate --dump`:

python tools/golden/dump.py MODEL -p "a red fox" -W 512 -H 512 --steps 4 --seed 0 -o reference.safetensors
klein generate -m MODEL -p "a red fox" -W 512 -H 512 -s 4 -S 0 --dtype f32 --dump ours.safetensors -o ours.png
python tools/golden/compare.py ours.safetensors reference.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

import models
import pipeline
from common import normal, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("-p", "--prompt", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("-W", "--width", type=int, default=512)
    parser.add_argument("-H", "--height", type=int, default=512)
    parser.add_argument("-s", "--steps", type=int, default=4)
    parser.add_argument("-S", "--seed", type=int, default=0, help="of the float32 CPU noise (klein's default noise)")
    parser.add_argument("-g", "--guidance", type=float, default=1.0)
    parser.add_argument("-i", "--image", action="append", default=[], help="reference image, may be repeated")
    parser.add_argument("--latents", type=Path, help="safetensors file with the tensor `latents` instead of the noise")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dump-blocks", action="store_true", help="also every block's output")
    parser.add_argument("--picture", type=Path, help="also write the picture")
    args = parser.parse_args()

    klein = args.model / "klein.json"
    outputs = json.loads(klein.read_text())["text_outputs"] if klein.exists() else (9, 18, 27)
    latents = load_file(args.latents)["latents"] if args.latents else normal(args.seed, 1, 128, args.height // 16, args.width // 16)
    tensors = pipeline.run(
        models.load(args.model, getattr(torch, args.dtype)),
        args.prompt,
        latents,
        args.steps,
        [Image.open(path).convert("RGB") for path in args.image],
        args.guidance,
        text_outputs=tuple(outputs),
        blocks=args.dump_blocks,
    )
    save(args.output, {"latents": latents, **tensors})
    if args.picture:
        Image.fromarray(tensors["image_u8"].numpy()).save(args.picture)


if __name__ == "__main__":
    main()
