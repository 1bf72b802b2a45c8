"""evaluate: accuracy of the exported checkpoint (bf16 weights, computed in f32) on the cases of cases.py, four steps, guidance 1.

Also measures what an edit leaves alone, and shows that the judge is not fooled: shuffled prompts and zeroed references must do badly.
"""
import argparse
import json
import pathlib
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from PIL import Image
from transformers import Qwen3ForCausalLM

import cases
import common
import data
import export
import model
import tokenizer
import world
from judge import Judge

KEYS = ("colour", "kind", "place", "position", "size")


class Nano:
    def __init__(self, folder):
        self.vae = AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).eval()
        self.transformer = Flux2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()
        self.prompts = tokenizer.Prompts(folder / "tokenizer")

    @torch.no_grad()
    def __call__(self, texts, references=(), seed=0):
        """Pictures for texts; references: lists of latents [n, 64, 128]. Noise of sample i is that of the seed seed + i."""
        ids, mask = map(torch.from_numpy, self.prompts(texts))
        noise = torch.stack([torch.randn(128, model.GRID, model.GRID, generator=torch.Generator().manual_seed(seed + i)).flatten(1).T
                             for i in range(len(texts))])
        return data.decode(self.vae, model.sample(self.transformer, model.encode_text(self.encoder, ids, mask), noise, references))


def score(judge, pictures, wanted, keys=KEYS):
    found = [judge(p) for p in pictures]
    return {k: sum(f[k] == w[k] for f, w in zip(found, wanted)) for k in keys}, [all(f[k] == w[k] for k in KEYS[:4]) for f, w in zip(found, wanted)]


def sheet(pictures, path, columns=12):
    pictures = list(pictures) + [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
    Image.fromarray(np.concatenate([np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)], 0)).save(path)


def kept(before, after, scene, look):
    """Mean absolute difference (levels) of two pictures away from the things of the first."""
    away = np.ones((world.SIZE, world.SIZE), bool)
    for i in range(len(scene.things)):
        x0, y0, x1, y1 = world.thing_box(replace(scene, things=tuple(replace(t, kind="balloon") for t in scene.things)), i, look)
        away &= ~((world.X > x0) & (world.X < x1) & (world.Y > y0) & (world.Y < y1))
    return np.abs(before.astype(float) - after)[away].mean()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", nargs="?", default=export.ROOT / "weights" / "nano", type=pathlib.Path)
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    common.setup(0)
    nano, judge = Nano(args.folder), Judge()
    texts, references, edits, pairs = cases.build()
    drawn = np.stack([world.render(*r) for r in references])
    latents = data.encode(nano.vae, drawn)
    report, pictures = {}, {}

    def count(name, right, n):
        report[name] = f"{right}/{n} = {100 * right / n:.1f} %"
        print(name, report[name], flush=True)

    def run(name, prompts, wanted, refs=(), each=None):
        totals, whole = dict.fromkeys(KEYS, 0), 0
        names = {}
        for seed in range(args.seeds):
            made = nano(prompts, refs, seed=1000 * seed)
            pictures.setdefault(name, made)
            right, all_right = score(judge, made, wanted)
            for k in KEYS:
                totals[k] += right[k]
            whole += sum(all_right)
            for n, ok in zip(each or (), all_right):
                names.setdefault(n, []).append(ok)
        n = len(prompts) * args.seeds
        for k in KEYS:
            count(f"{name}: {k}", totals[k], n)
        count(f"{name}: colour, kind, place and position", whole, n)
        for k, v in sorted(names.items()):
            count(f"{name} of {k}: all four", sum(v), len(v))

    run("text", [t for t, _ in texts], [e for _, e in texts])
    run("edit", [t for _, t, _, _ in edits], [e for *_, e in edits], [latents[[r for _, _, r, _ in edits]]], [n for n, *_ in edits])
    first, second = latents[[a for _, a, _, _ in pairs]], latents[[b for _, _, b, _ in pairs]]
    run("pair", [t for t, *_ in pairs], [e for *_, e in pairs], [first, second])

    rolled = [t for t, _ in texts][1:] + [texts[0][0]]
    _, right = score(judge, nano(rolled), [e for _, e in texts])
    count("control: prompts shuffled", sum(right), len(texts))
    _, right = score(judge, nano([t for _, t, _, _ in edits], [torch.zeros_like(latents[[r for _, _, r, _ in edits]])]), [e for *_, e in edits])
    count("control: references of edits zeroed", sum(right), len(edits))
    _, right = score(judge, nano([t for t, *_ in pairs], [second, first]), [e for *_, e in pairs])
    count("control: references of pairs swapped", sum(right), len(pairs))
    _, right = score(judge, data.decode(nano.vae, latents), [cases.shown(s) for s, _ in references])
    count("judge through the autoencoder alone", sum(right), len(references))

    recoloured = [(i, r) for i, (n, _, r, _) in enumerate(edits) if n in ("colour", "kind")]
    away = [kept(drawn[r], pictures["edit"][i], *references[r]) for i, r in recoloured]
    report["edit: mean difference away from the thing, levels"] = round(float(np.mean(away)), 2)
    print(report["edit: mean difference away from the thing, levels"], "levels of difference away from the thing in", len(away), "edits")
    (common.STATE / "accuracy.json").write_text(json.dumps(dict(seeds=args.seeds, right=report), indent=1) + "\n")
    for name, made in pictures.items():
        sheet(made, common.STATE / f"evaluate-{name}.png")


if __name__ == "__main__":
    main()
