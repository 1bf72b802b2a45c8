"""refs/*.png: small synthetic reference pictures."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# name -> width, height. `odd` needs the crop to multiples of 16.
SIZES = {"a": (96, 64), "b": (64, 80), "odd": (101, 77)}


def picture(name: str) -> Image.Image:
    """A two-colour gradient in coarse steps and three shapes; different for every name."""
    width, height = SIZES[name]
    shade = sum(name.encode()) % 7
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 32 // width) * 7, (y * 32 // height) * 7, (x * 16 // width + y * 16 // height) * (4 + shade)]
    image = Image.fromarray(np.stack(planes[shade % 3 :] + planes[: shade % 3], axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    w, h = width, height
    draw.ellipse((w // 8, h // 6, w // 2, h * 3 // 4), fill=(30 * shade, 200, 255 - 20 * shade))
    draw.rectangle((w * 5 // 8, h // 2, w * 7 // 8, h * 7 // 8), fill=(240, 40 * (shade % 3), 60))
    draw.line((0, h - 1, w - 1, 0), fill=(255, 255, 255), width=max(1, w // 50))
    return image


def make(out: Path) -> dict[str, Image.Image]:
    (out / "refs").mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        picture(name).save(out / "refs" / f"{name}.png", optimize=True)
    return {name: Image.open(out / "refs" / f"{name}.png") for name in SIZES}
