"""What the test's judge needs beside tools/nano/judge.py's tables, and what it is itself judged by.

    python tests/nano/make.py       writes beside this file:

    outlines.png                 what each thing looks like to the judge: tiles of 20 x 24 cells, white where all of six renders have the object. Twelve
                                 in a row (small and big of each kind), a row for each colour at each place. Half of the renders are blurred, as
                                 pictures through the autoencoder are. judge.json has one outline for all colours, sizes and heights above the ground:
                                 that takes a balloon whose string is lost for a ball.
    scenes.webp, scenes.json     a lossless sheet of 10 x 6 scenes that no table was made from, and what they show

The other files here are written by `python tools/nano/cases.py tests/nano`. Needs tools/nano/requirements.txt.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image, ImageFilter

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools" / "nano"))
import world  # noqa: E402
from cases import shown  # noqa: E402
from judge import Judge  # noqa: E402

COLUMNS, ROWS = 10, 6
CELL, ACROSS, DOWN = 3, 20, 24


def cells(mask, place):
    """The object in cells of 3 x 3 pixels, each sampled in its middle: across round the middle of its box, down to below the ground."""
    _, _, x0, x1 = Judge.box(mask)
    ground = 104 if place != "sky" else 80
    x = np.floor((x0 + x1) / 2 + CELL * (np.arange(ACROSS) + 0.5 - ACROSS / 2)).astype(int)
    y = np.floor(ground + 2 + CELL * (np.arange(DOWN) + 0.5 - DOWN)).astype(int)
    return np.pad(mask, world.SIZE)[np.ix_(y + world.SIZE, x + world.SIZE)]


def outline(judge, rng, thing, place):
    seen = []
    for position in world.POSITIONS:
        picture = Image.fromarray(world.render(world.Scene(place, (world.replace(thing, position=position),)), world.random_look(rng)))
        for blur in (0, 1.5):
            found, mask, _ = judge.object(np.array(picture.filter(ImageFilter.GaussianBlur(blur))))
            if mask is not None and found == place:
                seen.append(cells(mask, place))
    return np.mean(seen, 0)


def make_outlines():
    judge, rng = Judge(), np.random.default_rng(13)
    rows = [
        np.concatenate([outline(judge, rng, world.Thing(k, c, s), p) for k in world.KINDS for s in world.SIZES], 1)
        for c in world.COLOURS
        for p in world.PLACES
    ]
    Image.fromarray((255 * np.concatenate(rows)).round().astype(np.uint8)).save(HERE / "outlines.png", optimize=True)


def make_scenes():
    rng = np.random.default_rng(77)
    scenes = [(world.random_scene(rng, 1), world.random_look(rng)) for _ in range(COLUMNS * ROWS - len(world.PLACES))]
    scenes += [(world.Scene(place), world.random_look(rng)) for place in world.PLACES]  # nothing there
    pictures = np.stack([world.render(*s) for s in scenes]).reshape(ROWS, COLUMNS, world.SIZE, world.SIZE, 3)
    sheet = pictures.transpose(0, 2, 1, 3, 4).reshape(ROWS * world.SIZE, COLUMNS * world.SIZE, 3)
    Image.fromarray(sheet).save(HERE / "scenes.webp", lossless=True, quality=100, method=6)
    lines = ",\n".join(json.dumps(shown(scene)) for scene, _ in scenes)
    (HERE / "scenes.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    make_scenes()
    make_outlines()
