"""What the test's judge needs beside tools/nano/judge.py's tables, and what it is itself judged by.

    python tests/nano/make.py       writes beside this file:

    outlines.json                what each colour and kind looks like at each place: 16 x 16 cells, how many tenths of 12 rendered things occupy
                                 each. One outline for all colours (judge.json) takes a blue balloon at night for a ball: its rim is the night's.
    scenes.webp, scenes.json     a lossless sheet of 10 x 6 scenes that no table was made from, and what they show

The other files here are written by `python tools/nano/cases.py tests/nano`. Needs tools/nano/requirements.txt.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools" / "nano"))
import world  # noqa: E402
from cases import shown  # noqa: E402
from judge import Judge  # noqa: E402

COLUMNS, ROWS = 10, 6


def outline(judge, rng, thing, place):
    cells = []
    for size in world.SIZES:
        for position in world.POSITIONS * 2:
            scene = world.Scene(place, (world.replace(thing, size=size, position=position),))
            _, mask, _ = judge.object(world.render(scene, world.random_look(rng)))
            if mask is not None:
                cells.append(judge.cells(mask))
    return "".join(str(int(round(9 * c))) for c in np.mean(cells, 0).flat)


def make_outlines():
    judge, rng = Judge(), np.random.default_rng(13)
    table = {
        f"{colour} {kind} {place}": outline(judge, rng, world.Thing(kind, colour), place)
        for colour in world.COLOURS
        for kind in world.KINDS
        for place in world.PLACES
    }
    (HERE / "outlines.json").write_text(json.dumps(table, indent=0) + "\n")


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
