"""judge: what does a picture show? A tiny pixel classifier that knows the world's palettes and outlines, and no model.

place     nearest of six pairs of colours: means of the top and bottom 12 rows
mask      pixels whose colour (5 bits a channel) the empty place never shows; the largest connected piece of them is the object
colour    nearest of the colours that the mask of each rendered colour has in the middle half of the object
kind      nearest of the place's six outlines: the square round the mask divided in 16 x 16 cells, occupied or not
position  the third in which the bounding box's middle lies
size      the larger side of the bounding box against a threshold for each kind

cases.py writes its tables as JSON, for a judge in another language; `python judge.py` counts how often it is right on renders.
"""
import numpy as np

import world
from world import COLOURS, KINDS, PLACES, SIZES, Scene, Thing

BAND = 12
CELLS = 16
MIN_PIXELS = 60  # less is no object
THIN = 5
EDGES_X = (49, 79)


def bins(picture):
    p = picture.astype(np.int32) >> 3
    return p[..., 0] * 1024 + p[..., 1] * 32 + p[..., 2]


def bands(picture):
    return np.concatenate([picture[:BAND].mean((0, 1)), picture[-BAND:].mean((0, 1))])


def widened(seen):
    """Colour bins with their six neighbours."""
    out = seen.copy()
    for axis in range(3):
        a, o = np.moveaxis(seen, axis, 0), np.moveaxis(out, axis, 0)
        o[1:] |= a[:-1]
        o[:-1] |= a[1:]
    return out


def largest_piece(mask):
    """Largest 4-connected piece, or None: the greatest index spreads through each piece until nothing changes."""
    if not mask.any():
        return None
    label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        grown = label.copy()
        grown[1:] = np.maximum(grown[1:], label[:-1])
        grown[:-1] = np.maximum(grown[:-1], label[1:])
        grown[:, 1:] = np.maximum(grown[:, 1:], label[:, :-1])
        grown[:, :-1] = np.maximum(grown[:, :-1], label[:, 1:])
        grown[~mask] = 0
        if (grown == label).all():
            break
        label = grown
    counts = np.bincount(label[mask])
    return label == counts.argmax()


class Judge:
    def __init__(self):
        rng = np.random.default_rng(11)
        self.bands, self.background = {}, {}
        for place in PLACES:
            seen = np.zeros(32768, bool)
            total = 0
            for _ in range(150):
                picture = world.render(Scene(place), world.random_look(rng))
                seen[bins(picture)] = True
                total = total + bands(picture) / 150
            self.bands[place], self.background[place] = total, widened(seen.reshape(32, 32, 32)).reshape(-1)
        self.colours, self.outlines, self.sizes = {}, {}, {}
        for colour in COLOURS:
            seen = [self.core(*self.object(picture)[1:]) for picture, _ in self.examples(rng, colour=colour)]
            self.colours[colour] = np.mean([s for s in seen if s is not None], 0)
        for kind in KINDS:
            cells, sides = {p: [] for p in PLACES}, {s: [] for s in SIZES}
            for picture, thing in self.examples(rng, kind=kind, count=180):
                place, mask, _ = self.object(picture)
                if mask is not None:
                    cells[place].append(self.cells(mask))
                    sides[thing.size].append(self.side(mask))
            self.outlines[kind] = {p: np.mean(c, 0) for p, c in cells.items()}
            self.sizes[kind] = (np.mean(sides["small"]) + np.mean(sides["big"])) / 2

    @staticmethod
    def examples(rng, colour=None, kind=None, count=60):
        for _ in range(count):
            thing = Thing(kind or str(rng.choice(KINDS)), colour or str(rng.choice(list(COLOURS))), str(rng.choice(SIZES)), str(rng.choice(world.POSITIONS)))
            yield world.render(Scene(str(rng.choice(PLACES)), (thing,)), world.random_look(rng)), thing

    def place(self, picture):
        b = bands(picture)
        return min(PLACES, key=lambda p: np.abs(b - self.bands[p]).sum())

    def object(self, picture):
        """(place, mask of the largest piece or None, picture)"""
        place = self.place(picture)
        mask = largest_piece(~self.background[place][bins(picture)])
        return place, None if mask is None or mask.sum() < MIN_PIXELS or mask.sum(1).max() < THIN else mask, picture

    @staticmethod
    def box(mask):
        """y0, y1, x0, x1 without rows of fewer than THIN pixels (a balloon's string shows on some places only)."""
        ys = np.nonzero(mask.sum(1) >= THIN)[0]
        xs = np.nonzero(mask[ys].any(0))[0]
        return ys[0], ys[-1] + 1, xs[0], xs[-1] + 1

    def side(self, mask):
        y0, y1, x0, x1 = self.box(mask)
        return max(y1 - y0, x1 - x0)

    def cells(self, mask):
        """The square round the bounding box's middle, sampled at the middles of 16 x 16 cells; outside the picture is nothing."""
        y0, y1, x0, x1 = self.box(mask)
        at = ((np.arange(CELLS) + 0.5) / CELLS - 0.5) * max(y1 - y0, x1 - x0)
        padded = np.pad(mask, world.SIZE)
        rows, columns = (y0 + y1) / 2 + at + world.SIZE, (x0 + x1) / 2 + at + world.SIZE
        return padded[np.ix_(rows.astype(int), columns.astype(int))].astype(float)

    def core(self, mask, picture):
        """Median colour of the mask in the middle half of its bounding box."""
        if mask is None:
            return None
        y0, y1, x0, x1 = self.box(mask)
        h, w = (y1 - y0) // 4, (x1 - x0) // 4
        inner = (slice(y0 + h, y1 - h), slice(x0 + w, x1 - w))
        chosen = picture[inner][mask[inner]]
        return np.median(chosen, 0) if len(chosen) else None

    def __call__(self, picture):
        """dict with place, and colour, kind, position, size (None each if nothing is there)"""
        place, mask, _ = self.object(picture)
        core = self.core(mask, picture)
        if core is None:
            return dict(place=place, colour=None, kind=None, position=None, size=None)
        cells = self.cells(mask)
        kind = min(KINDS, key=lambda k: np.abs(cells - self.outlines[k][place]).sum())
        _, _, x0, x1 = self.box(mask)
        middle = (x0 + x1) / 2
        return dict(
            place=place,
            colour=min(COLOURS, key=lambda c: np.abs(core - self.colours[c]).sum()),
            kind=kind,
            position=world.POSITIONS[sum(middle >= e for e in EDGES_X)],
            size="big" if self.side(mask) > self.sizes[kind] else "small")

    def tables(self):
        return dict(
            bands={p: b.round(1).tolist() for p, b in self.bands.items()},
            background={p: np.packbits(b).tobytes().hex() for p, b in self.background.items()},
            colours={c: v.round(1).tolist() for c, v in self.colours.items()},
            outlines={k: {p: (v * 9).round().astype(int).reshape(-1).tolist() for p, v in o.items()} for k, o in self.outlines.items()},
            sizes={k: round(float(v), 1) for k, v in self.sizes.items()})


def main():
    rng, right, n = np.random.default_rng(12), {}, 600
    judge = Judge()
    for _ in range(n):
        scene = world.random_scene(rng, 1)
        found = judge(world.render(scene, world.random_look(rng)))
        wanted = dict(place=scene.place, **vars(scene.things[0]))
        for key in found:
            right[key] = right.get(key, 0) + (found[key] == wanted[key])
    print("on renders:", {k: f"{v}/{n}" for k, v in right.items()})


if __name__ == "__main__":
    main()
