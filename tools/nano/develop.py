"""develop: accuracy of a checkpoint folder on cases drawn with other seeds than the tests', to choose between checkpoints by: python develop.py FOLDER

Counts as tests/test_nano.c does: with the tests' finer outlines (one for each colour and place), the pairs also swapped where their text allows it.
As there, texts and edits of colour, place and kind ask for combinations that are held out of training, and at least half of the pairs do.
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from PIL import Image

import cases
import common
import data
import export
import world
from evaluate import KEYS, Nano, sheet
from judge import EDGES_X, Judge

TESTS = export.ROOT / "tests" / "nano"
CELL, ACROSS, DOWN = 3, 20, 24  # as tests/nano/make.py
MIN_BOX = 8


class TestsJudge(Judge):
    """What tests/support/judge.c is."""

    def __init__(self):
        tables = json.loads((TESTS / "judge.json").read_text())
        self.bands = {p: np.array(b) for p, b in tables["bands"].items()}
        self.background = {p: np.unpackbits(np.frombuffer(bytes.fromhex(h), np.uint8)).astype(bool) for p, h in tables["background"].items()}
        self.colours = {c: np.array(v) for c, v in tables["colours"].items()}
        tiles = np.asarray(Image.open(TESTS / "outlines.png").convert("L")) / 255
        self.outlines = tiles.reshape(len(world.COLOURS), len(world.PLACES), DOWN, -1, ACROSS).transpose(0, 1, 3, 2, 4)

    def __call__(self, picture):
        place, mask, _ = self.object(picture)
        nothing = dict(place=place, colour=None, kind=None, position=None, size=None)
        if mask is None:
            return nothing
        y0, y1, x0, x1 = self.box(mask)
        core = self.core(mask, picture)
        if min(y1 - y0, x1 - x0) < MIN_BOX or core is None:
            return nothing
        colour = min(world.COLOURS, key=lambda c: np.abs(core - self.colours[c]).sum())
        x = np.floor((x0 + x1) / 2 + CELL * (np.arange(ACROSS) + 0.5 - ACROSS / 2)).astype(int)
        y = np.floor((104 if place != "sky" else 80) + 2 + CELL * (np.arange(DOWN) + 0.5 - DOWN)).astype(int)
        cells = np.pad(mask, world.SIZE)[np.ix_(y + world.SIZE, x + world.SIZE)]
        of_colour = self.outlines[list(world.COLOURS).index(colour), world.PLACES.index(place)]
        kind, size = divmod(int(np.abs(of_colour - cells).sum((1, 2)).argmin()), len(world.SIZES))
        position = world.POSITIONS[sum((x0 + x1) / 2 >= edge for edge in EDGES_X)]
        return dict(place=place, colour=colour, kind=world.KINDS[kind], position=position, size=world.SIZES[size])


class Counts:
    def __init__(self, judge):
        self.judge, self.right, self.wrong = judge, {}, []

    def add(self, name, ok):
        a, n = self.right.get(name, (0, 0))
        self.right[name] = (a + bool(ok), n + 1)

    def see(self, name, pictures, wanted, texts):
        """All attributes of all pictures; returns which pictures are right in everything."""
        found = [self.judge(p) for p in pictures]
        ok = [all(f[k] == w[k] for k in KEYS) for f, w in zip(found, wanted)]
        for picture, f, w, right, text in zip(pictures, found, wanted, ok, texts):
            self.add(f"{name}: everything", right)
            if name == "text":
                for k in KEYS:
                    self.add(f"{name}: {k}", f[k] == w[k])
            if not right:
                self.wrong.append((picture, f"{name}: {text}: " + ", ".join(f"{k} {w[k]}: {f[k]}" for k in KEYS if f[k] != w[k]) + f" ({w['size']} {w['colour']} {w['kind']} {w['place']})"))
        return ok


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", nargs="?", default=export.ROOT / "weights" / "nano", type=pathlib.Path)
    p.add_argument("--draws", type=int, default=6, help="sets of cases")
    p.add_argument("--first", type=int, default=1, help="seed of the first set")
    p.add_argument("--what", default="text,edit,pair")
    p.add_argument("--wrong", type=pathlib.Path, help="a sheet of the wrong pictures, whose names are printed")
    args = p.parse_args()
    torch.set_num_threads(1)
    nano, counts = Nano(args.folder), Counts(TestsJudge())
    for seed in range(args.first, args.first + args.draws):
        texts, references, edits, pairs = cases.build(seed)
        latents = data.encode(nano.vae, np.stack([world.render(*r) for r in references]))
        if "text" in args.what:
            prompts = [t for t, _ in texts]
            counts.see("text", nano(prompts, seed=10000 * seed), [e for _, e in texts], prompts)
        if "edit" in args.what:
            prompts = [t for _, t, _, _ in edits]
            ok = counts.see("edit", nano(prompts, [latents[[e[2] for e in edits]]], seed=10000 * seed + 1000), [e for *_, e in edits], prompts)
            for (name, *_), right in zip(edits, ok):
                counts.add(f"edit of {name}", right)
        if "pair" in args.what:
            first, second = latents[[p[1] for p in pairs]], latents[[p[2] for p in pairs]]
            prompts = [p[0] for p in pairs]
            counts.see("pair", nano(prompts, [first, second], seed=10000 * seed + 2000), [p[3] for p in pairs], prompts)
            fits = [i for i, p in enumerate(pairs) if "object" in p[0] or "thing" in p[0]]
            wanted = [dict(cases.shown(references[pairs[i][2]][0]), place=references[pairs[i][1]][0].place) for i in fits]
            counts.see("swapped", nano([prompts[i] for i in fits], [second[fits], first[fits]], seed=10000 * seed + 3000), wanted, [prompts[i] for i in fits])
    for name, (a, n) in counts.right.items():
        print(f"{name:24} {a}/{n} = {100 * a / n:.1f} %")
    if args.wrong and counts.wrong:
        for i, (_, text) in enumerate(counts.wrong):
            print(i, text)
        sheet([picture for picture, _ in counts.wrong], args.wrong)


if __name__ == "__main__":
    main()
