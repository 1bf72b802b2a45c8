"""plot: the training curves as a picture, from those logs that are there: python plot.py curve.png"""
import csv
import math
import sys

from PIL import Image, ImageDraw, ImageFont

import common

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 300, 64, 44, 34
KINDS = {"text": (214, 32, 40), "edit": (250, 126, 16), "pair": (126, 52, 176)}
PANELS = (
    ("vae", "autoencoder", {"l1": (36, 84, 222), "edge": (24, 142, 62)}),
    ("flow", "text encoder and transformer: velocity error", KINDS),
    ("refine", "the same, refined on the sampler's own path", KINDS),
)


def rows(name):
    with (common.STATE / f"{name}.csv").open() as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def panel(draw, font, top, name, title, lines):
    data = rows(name)
    last = max(r["step"] for r in data)
    values = [r[k] for r in data for k in lines if r[k] > 0]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = math.floor(low * 4) / 4, math.ceil(high * 4) / 4
    bottom, right = top + HEIGHT - BOTTOM, WIDTH - 16

    def at(step, value):
        return LEFT + (right - LEFT) * step / last, bottom - (bottom - top - TOP) * (math.log10(value) - low) / (high - low)

    draw.text((LEFT, top + 8), title, (20, 20, 20), font)
    for i in range(round((high - low) * 4) + 1):
        value = 10 ** (low + i / 4)
        y = at(0, value)[1]
        draw.line((LEFT, y, right, y), (225, 225, 230))
        draw.text((8, y - 7), f"{value:.3f}", (90, 90, 90), font)
    for i in range(6):
        x = at(last * i / 5, 10**low)[0]
        draw.line((x, top + TOP, x, bottom), (225, 225, 230))
        draw.text((x - 14, bottom + 6), f"{last * i / 5:.0f}", (90, 90, 90), font)
    draw.text((right - 180, bottom + 22), f"steps ({data[-1]['minutes']:.0f} minutes)", (90, 90, 90), font)
    for i, (key, colour) in enumerate(lines.items()):
        points = [at(r["step"], r[key]) for r in data if r[key] > 0]
        draw.line(points, colour, 2, joint="curve")
        draw.text((right - 200 + 70 * i, top + 8), key, colour, font)


def main():
    panels = [p for p in PANELS if (common.STATE / f"{p[0]}.csv").exists()]
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for i, (name, title, lines) in enumerate(panels):
        panel(draw, font, i * HEIGHT, name, title, lines)
    image.quantize(64).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
