"""Makes everything in tests/golden again:  python tools/golden/make.py tests/golden --qwen3 MODEL/tokenizer

Seeded and single-threaded: the same bytes on every run on one kind of machine (other vector units round the last bits differently).
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

import dit
import encoder
import images
import models
import pipeline
import refs
import sigmas
import tokenizer
import vae


def copy_without_weights(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to; tests/golden in the repository")
    parser.add_argument("--qwen3", type=Path, help="folder with Qwen3's tokenizer: also makes the tokenizer's goldens")
    args = parser.parse_args()
    out = args.out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    images.make(out)
    with tempfile.TemporaryDirectory() as temporary:
        tiny, small_decoder = Path(temporary) / "tiny", Path(temporary) / "small-decoder"
        models.make_tiny(tiny)
        models.make_small_decoder(small_decoder)
        for folder in (tiny, small_decoder):
            copy_without_weights(folder, out / "models" / folder.name)

        pipe = models.load(tiny)
        embeds = encoder.make(pipe, out)
        dit.make(pipe, out, embeds["short"])
        vae.make(pipe, out)
        vae.make_small_decoder(models.load_vae(small_decoder), out)
        sigmas.make(pipe.scheduler, out)
        references = refs.make(out)
        pipeline.make(pipe, models.load(tiny, is_distilled=False), references, out)
        pipeline.make_bf16(pipe, models.load(tiny, torch.bfloat16), references, out)
        images.make(out)
        if args.qwen3:
            tokenizer.make(args.qwen3, out)


if __name__ == "__main__":
    main()
