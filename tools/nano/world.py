"""world: a small procedural world, rendered with signed distances at 128 x 128.

A picture is a pure function of a Scene (what a caption can say) and a Look (six numbers in [-1, 1] that no caption says: where
exactly the object sits, how large it is, where the clouds or bricks are, how warm the light is). Nothing else is random, so a
small model can learn the map, and the six numbers are what makes two seeds differ.
"""
from dataclasses import dataclass, field, replace
import zlib

import numpy as np

SIZE = 128
LOOKS = 6  # dx, dy, scale of the object; shift, level of the place; warmth of the light

KINDS = ("balloon", "ball", "box", "star", "cup", "heart")
PLACES = ("table", "grass", "sky", "night", "brick", "sand")
POSITIONS = ("left", "centre", "right")
SIZES = ("small", "big")
COLOURS = {
    "red": (214, 32, 40),
    "orange": (250, 126, 16),
    "yellow": (252, 214, 36),
    "green": (24, 142, 62),
    "blue": (36, 84, 222),
    "purple": (126, 52, 176),
    "pink": (250, 132, 186),
}
CENTRE_X = {"left": 34.0, "centre": 64.0, "right": 94.0}
RADIUS = {"small": 14.0, "big": 23.0}
GROUND = 104.0  # where objects stand


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    size: str = "big"
    position: str = "centre"


@dataclass(frozen=True)
class Scene:
    place: str
    things: tuple = field(default_factory=tuple)  # none, one, or two (left, right)

    def with_thing(self, i, **changes):
        things = list(self.things)
        things[i] = replace(things[i], **changes)
        return replace(self, things=tuple(things))


def held_out(thing, place):
    """True for the one in eight (colour, kind, place) combinations that training never sees. A hash, so the split never moves."""
    return zlib.crc32(f"{thing.colour} {thing.kind} {place}".encode()) % 8 == 0


def scene_held_out(scene):
    return any(held_out(t, scene.place) for t in scene.things)


# --- drawing -------------------------------------------------------------------------------------------------------------

Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def rgb(*c):
    return np.array(c, np.float32) / 255


def coverage(d):
    """Area of a pixel inside the shape whose signed distance (negative inside) is d."""
    return np.clip(0.5 - d, 0, 1)


def blend(image, colour, alpha):
    image += alpha[..., None] * (colour - image)


def ramp(t, low, high):
    return low + np.clip(t, 0, 1)[..., None] * (high - low)


def smooth(t, a, b):
    t = np.clip((t - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def ellipse(x, y, rx, ry):
    k = np.sqrt((x / rx) ** 2 + (y / ry) ** 2) + 1e-6
    return (k - 1) * k / (np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2) + 1e-6)


def rounded(x, y, w, h, r):
    qx, qy = np.abs(x) - w + r, np.abs(y) - h + r
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - r


def convex(x, y, points):
    """Convex polygon, corners clockwise on the screen (y down)."""
    d = np.full_like(x, -1e9)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        n = np.hypot(bx - ax, by - ay)
        d = np.maximum(d, ((by - ay) * (x - ax) - (bx - ax) * (y - ay)) / n)
    return d


def star5(x, y, r, inner=0.5):
    """Five points, one up; d is exact enough near the edge."""
    a = np.arctan2(x, -y)
    sector = 2 * np.pi / 5
    a = np.abs((a + sector / 2) % sector - sector / 2)
    rho = np.hypot(x, y)
    px, py = rho * np.sin(a), rho * np.cos(a)
    ix, iy = r * inner * np.sin(sector / 2), r * inner * np.cos(sector / 2)
    ex, ey = ix, iy - r
    return ((py - r) * ex - px * ey) / np.hypot(ex, ey)


def heart(x, y, r):
    x, y = np.abs(x) / r * 0.62, (0.56 - y / r * 0.56) * 1.0
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    m = 0.5 * np.maximum(x + y, 0)
    low = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - m) ** 2 + (y - m) ** 2)) * np.sign(x - y)
    return np.where(y + x > 1, lobe, low) * r / 0.6


# --- things --------------------------------------------------------------------------------------------------------------

def solid(image, d, colour, x, y, r):
    """A filled shape with soft light from the upper left and a darker rim."""
    light = np.clip(1.0 - 0.34 * (0.55 * x / r + 0.85 * y / r), 0.66, 1.34)[..., None]
    fill = np.clip(colour * np.minimum(light, 1.0) + (1 - colour) * np.clip(light - 1, 0, 1) * 0.8, 0, 1)
    rim = coverage(d + 2.6) * 0.55 + 0.45
    blend(image, fill * rim[..., None], coverage(d))


def gloss(image, x, y, cx, cy, rx, ry, strength):
    blend(image, rgb(255, 255, 255), strength * smooth(-ellipse(x - cx, y - cy, rx, ry), -0.8, 2.0))


def draw_balloon(image, x, y, r, c):
    y = y + 0.95 * r
    string = np.abs(x - 1.2 * np.sin(y * 0.12)) - 0.8
    blend(image, rgb(70, 66, 72), coverage(np.maximum(string, np.maximum(r * 1.15 - y, y - 1.95 * r))) * 0.85)
    knot = convex(x, y, [(0, r * 1.06), (r * 0.2, r * 1.34), (-r * 0.2, r * 1.34)])
    d = np.minimum(ellipse(x, y, r * 0.93, r * 1.14), knot)
    solid(image, d, c, x, y, r)
    gloss(image, x, y, -0.36 * r, -0.46 * r, 0.2 * r, 0.3 * r, 0.75)


def draw_ball(image, x, y, r, c):
    d = np.hypot(x, y) - r
    solid(image, d, c, x, y, r)
    band = np.maximum(np.abs(y - 0.22 * r + 0.3 * (x / r) ** 2 * r) - 0.15 * r, d + 2.2)
    blend(image, c * 0.35 + 0.62, coverage(band) * 0.9)
    gloss(image, x, y, -0.36 * r, -0.46 * r, 0.24 * r, 0.17 * r, 0.8)


def draw_box(image, x, y, r, c):
    s, k = 0.78 * r, 0.5 * r
    left, right, top, bottom = -s - k / 2, s - k / 2, -s + k / 2, r
    outline = convex(x, y, [(left, top), (left + k, top - k), (right + k, top - k), (right + k, bottom - k), (right, bottom), (left, bottom)])
    blend(image, c * 0.45, coverage(outline))
    for points, shade in (
        ([(left, top), (right, top), (right, bottom), (left, bottom)], 1.0),
        ([(left, top), (left + k, top - k), (right + k, top - k), (right, top)], 1.3),
        ([(right, top), (right + k, top - k), (right + k, bottom - k), (right, bottom)], 0.68),
    ):
        face = c * min(shade, 1) + (1 - c) * max(shade - 1, 0) * 1.5
        blend(image, face, coverage(convex(x, y, points) + 1.0))


def draw_star(image, x, y, r, c):
    solid(image, star5(x, y + 0.08 * r, 1.18 * r) - 0.5, c, x, y, r)


def draw_cup(image, x, y, r, c):
    w, top, bottom = 0.72 * r, -0.8 * r, r
    handle = np.abs(np.hypot((x - w * 0.95), (y - 0.05 * r) * 0.95) - 0.42 * r) - 0.14 * r
    body = convex(x, y, [(-w, top), (w, top), (w * 0.84, bottom), (-w * 0.84, bottom)])
    solid(image, np.minimum(body, handle), c, x, y, r)
    mouth = ellipse(x, y - top, w, 0.2 * r)
    blend(image, c * 0.3 + 0.66, coverage(mouth))
    blend(image, c * 0.42, coverage(mouth + 2.0))


def draw_heart(image, x, y, r, c):
    solid(image, heart(x, y, 1.18 * r), c, x, y, r)
    gloss(image, x, y, -0.46 * r, -0.42 * r, 0.2 * r, 0.14 * r, 0.7)


DRAW = {k: globals()[f"draw_{k}"] for k in KINDS}


def thing_circle(scene, i, look):
    """Centre and radius in pixels of the circle that thing i fills; the second thing moves against the first."""
    thing = scene.things[i]
    dx, dy, scale = (-look[0], -look[1], look[2]) if i else look[:3]
    r = RADIUS[thing.size] * (1 + 0.015 * scale)
    return CENTRE_X[thing.position] + dx, GROUND - r + 0.5 * dy - (24 if scene.place == "sky" else 0), r


def thing_box(scene, i, look):
    """x0, y0, x1, y1 in pixels of everything drawn for thing i."""
    x, y, r = thing_circle(scene, i, look)
    return x - 1.3 * r, y - (2.2 if scene.things[i].kind == "balloon" else 1.3) * r, x + 1.3 * r, y + 1.3 * r


def draw_thing(image, scene, i, look):
    thing = scene.things[i]
    cx, cy, r = thing_circle(scene, i, look)
    if scene.place != "sky":
        shadow = ellipse(X - cx - 0.12 * r, Y - (cy + r), r * 0.95, r * 0.22)
        blend(image, rgb(10, 10, 24), 0.42 * smooth(-shadow, -3.0, 5.0))
    DRAW[thing.kind](image, X - cx, Y - cy, r, rgb(*COLOURS[thing.colour]))


# --- places --------------------------------------------------------------------------------------------------------------

def place_table(shift, level):
    edge = 82 + 3 * level
    image = ramp(Y / edge, rgb(232, 224, 206), rgb(214, 200, 178))
    depth = (Y - edge) / (SIZE - edge)
    wood = ramp(depth, rgb(150, 98, 56), rgb(188, 128, 76))
    grain = 0.5 + 0.5 * np.sin(Y * 1.1 + 2.2 * np.sin(X * 0.05 + 2 * shift))
    wood *= (1 - 0.07 * grain)[..., None]
    seams = np.abs((X - 64 - 6 * shift) / (0.55 + 0.75 * np.maximum(depth, 0)) % 30 - 15) - 14.2
    wood *= (1 - 0.3 * coverage(-seams))[..., None]
    blend(image, wood, coverage(edge - Y))
    blend(image, rgb(104, 64, 36), coverage(np.abs(Y - edge) - 1.4))
    return image


def place_grass(shift, level):
    image = ramp(Y / 90, rgb(196, 228, 240), rgb(240, 248, 232))
    far = 72 + 3 * level + 5 * np.sin(X * 0.045 + 1.2 * shift)
    blend(image, rgb(152, 206, 112), coverage(far - Y))
    near = 86 + 3 * level - 4 * np.sin(X * 0.038 - 1.0 * shift)
    blades = 0.5 + 0.5 * np.sin(X * 1.05 + 4 * shift) * np.sin(Y * 0.55)
    meadow = ramp((Y - 84) / 44, rgb(136, 196, 72), rgb(104, 172, 52)) * (1 - 0.1 * blades)[..., None]
    blend(image, meadow, coverage(near - Y))
    return image


def place_sky(shift, level):
    image = ramp(Y / SIZE, rgb(104, 176, 240), rgb(188, 226, 250))
    for cx, cy, s in ((24, 24, 1.0), (102, 38, 0.8), (40, 108, 1.15), (112, 112, 0.8)):
        x, y = X - cx - 8 * shift, Y - cy - 3 * level
        puff = np.minimum(np.minimum(ellipse(x, y, 19 * s, 7 * s), ellipse(x + 7 * s, y + 4 * s, 9 * s, 8 * s)), ellipse(x - 5 * s, y + 6 * s, 10 * s, 9 * s))
        blend(image, rgb(252, 253, 255), 0.92 * smooth(-puff, -1.5, 3.0))
    return image


STARS = ((10, 14), (30, 40), (46, 10), (62, 30), (80, 14), (118, 52), (16, 62), (50, 56), (88, 46), (120, 12), (72, 66), (100, 72))


def place_night(shift, level):
    image = ramp(Y / 100, rgb(14, 18, 58), rgb(48, 48, 108))
    for i, (sx, sy) in enumerate(STARS):
        d = np.hypot(X - (sx + 6 * shift), Y - sy)
        blend(image, rgb(255, 250, 224), np.clip(1.9 - 0.3 * (i % 3) - d, 0, 1))
    moon = np.maximum(np.hypot(X - 104 - 6 * shift, Y - 26) - 12, 9.5 - np.hypot(X - 99 - 6 * shift, Y - 23))
    blend(image, rgb(255, 240, 186), coverage(moon))
    hill = 88 + 3 * level + 4 * np.sin(X * 0.04 + 1.2 * shift)
    blend(image, ramp((Y - 84) / 44, rgb(30, 44, 62), rgb(20, 30, 46)), coverage(hill - Y))
    return image


def place_brick(shift, level):
    edge = 94 + 3 * level
    h, w = 13.0, 27.0
    row = np.floor((Y - edge) / h)
    bx = (X + 8 * shift + (row % 2) * w / 2) % w - w / 2
    by = (Y - edge) % h - h / 2
    d = rounded(bx, by, w / 2 - 0.9, h / 2 - 0.9, 1.5)
    image = ramp(Y / SIZE, rgb(206, 188, 174), rgb(190, 172, 160))
    tone = 1 - 0.1 * ((row * 3 + np.floor((X + 8 * shift + (row % 2) * w / 2) / w) * 5) % 4) / 3
    blend(image, rgb(170, 96, 76) * tone[..., None], coverage(d))
    blend(image, ramp((Y - edge) / 34, rgb(150, 148, 152), rgb(176, 174, 178)), coverage(edge - Y))
    blend(image, rgb(112, 108, 112), coverage(np.abs(Y - edge) - 1.2))
    return image


def place_sand(shift, level):
    sea, shore = 58 + 2 * level, 78 + 3 * level
    image = ramp(Y / sea, rgb(150, 214, 236), rgb(222, 242, 244))
    blend(image, ramp((Y - sea) / 22, rgb(28, 132, 168), rgb(76, 192, 198)), coverage(sea - Y))
    wave = shore + 2.5 * np.sin(X * 0.09 + 2 * shift)
    blend(image, rgb(246, 252, 252), coverage(wave - 3 - Y))
    dunes = 0.5 + 0.5 * np.sin(Y * 0.42 + 1.8 * np.sin(X * 0.045 + 1.5 * shift))
    blend(image, ramp((Y - shore) / 50, rgb(238, 216, 160), rgb(226, 194, 132)) * (1 - 0.06 * dunes)[..., None], coverage(wave - Y))
    return image


PLACE = {k: globals()[f"place_{k}"] for k in PLACES}


def render(scene, look):
    """uint8 [128, 128, 3]. look: six numbers in [-1, 1]."""
    image = PLACE[scene.place](look[3], look[4]).astype(np.float32)
    for i in range(len(scene.things)):
        draw_thing(image, scene, i, look)
    image *= 1 + 0.05 * look[5] * np.array([1.0, 0.2, -0.8], np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def random_look(rng):
    return rng.uniform(-1, 1, LOOKS).astype(np.float32)


def random_scene(rng, things=None, held=False):
    """A scene of the training half, or with held=True one whose (first) combination is held out."""
    while True:
        n = things if things is not None else int(rng.choice((1, 1, 1, 2)))
        place = rng.choice(PLACES)
        positions = ("left", "right") if n == 2 else (str(rng.choice(POSITIONS)),)
        scene = Scene(str(place), tuple(
            Thing(str(rng.choice(KINDS)), str(rng.choice(list(COLOURS))), str(rng.choice(SIZES, p=(0.4, 0.6))), p)
            for p in positions[:n]))
        if n == 2 and scene.things[0].kind == scene.things[1].kind:
            continue  # so that "the star" names one thing
        if held == scene_held_out(scene):
            return scene
