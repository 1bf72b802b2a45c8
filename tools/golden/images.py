"""noise.safetensors (torch), lanczos.safetensors and references.safetensors (Pillow, diffusers), images/ and images.safetensors (Pillow).

By itself:  python tools/golden/images.py tests/golden
torch's noise is that of its AVX2 kernel, which it takes on every x86-64 processor of the last ten years.
"""

import argparse
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image, ImageOps
from safetensors.torch import save_file

SEEDS = [0, 1, 5, 42, 123456789, 2**31, 2**32 + 5, 2**63, 2**64 - 1]
LENGTHS = [16, 17, 31, 48, 100, 1024, 4099]
LONG = 128 * 64 * 64  # the latents of 1024x1024

# width, height -> width, height
RESIZES = [
    ((1, 1), (5, 4)), ((1, 7), (3, 2)), ((9, 1), (4, 3)), ((2, 2), (31, 33)), ((40, 30), (40, 30)), ((40, 30), (20, 15)),
    ((37, 53), (36, 52)), ((37, 53), (38, 54)), ((37, 53), (37, 20)), ((37, 53), (80, 53)), ((64, 48), (7, 5)), ((17, 13), (101, 77)),
    ((120, 90), (1, 1)), ((300, 2), (5, 9)), ((3, 200), (50, 6)), ((200, 10), (3, 40)), ((50, 70), (49, 12)), ((66, 112), (30, 2)),
    ((101, 77), (64, 48)), ((97, 61), (96, 61)), ((16, 16), (64, 64)), ((33, 100), (16, 64)),
]  # fmt: skip

# Sizes whose fitted pixels are compared, by hash.
FITTED = [(64, 64), (79, 95), (1025, 1024), (1024, 1025), (1920, 1080), (700, 1600), (600, 2400), (512, 4096), (2300, 500), (2000, 1500)]  # fmt: skip


def bytes_of_index(n: int) -> np.ndarray:
    """A picture of any size that the tests can make as well: byte i is a hash of i."""
    i = np.arange(n, dtype=np.uint32) * np.uint32(2654435761)
    i = (i ^ (i >> np.uint32(15))) * np.uint32(2246822519)
    return (i >> np.uint32(24)).astype(np.uint8)


def fnv(data: bytes) -> int:
    """FNV-1a 64, as a signed integer."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h - (h >> 63 << 64)


def make_noise(out: Path) -> None:
    def randn(n: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)

    tensors = {}
    for seed in SEEDS:
        for n in LENGTHS:
            tensors[f"f32.{seed}.{n}"] = randn(n, seed, torch.float32)
            tensors[f"bf16.{seed}.{n}"] = randn(n, seed, torch.bfloat16)
    long = randn(LONG, 42, torch.float32)
    tensors[f"hash.42.{LONG}"] = torch.tensor([fnv(long.numpy().tobytes())])
    save_file(tensors, out / "noise.safetensors")


def make_lanczos(out: Path) -> None:
    tensors = {}
    for i, ((width, height), size) in enumerate(RESIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        if i % 2:  # black and white only: the filter overshoots
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        tensors[f"{i}.in"] = torch.from_numpy(pixels)
        tensors[f"{i}.out"] = torch.from_numpy(np.array(resized))
    save_file(tensors, out / "lanczos.safetensors")


def fit(image: Image.Image) -> tuple[tuple[int, int], Image.Image] | None:
    """The size after the area cap, and the picture that Flux2KleinPipeline encodes; None where it refuses."""
    processor = Flux2ImageProcessor(vae_scale_factor=16)
    try:
        processor.check_image_input(image)
    except ValueError:
        return None
    if image.width * image.height > 1024 * 1024:
        image = processor._resize_to_target_area(image, 1024 * 1024)
    return image.size, processor._resize_and_crop(image, image.width // 16 * 16, image.height // 16 * 16)


def make_references(out: Path) -> None:
    random.seed(7)
    sizes = [(63, 64), (64, 63), (64, 512), (64, 513), (513, 64), (1024, 1024), (1448, 724), (1449, 725), (8192, 1024), (8193, 1024)]
    sizes += [(random.randint(60, 3000), random.randint(60, 3000)) for _ in range(120)]
    rows = []
    for width, height in sizes:
        fitted = fit(Image.new("L", (width, height)))
        rows.append([width, height, *fitted[0], *fitted[1].size] if fitted else [width, height, 0, 0, 0, 0])
    hashes = []
    for width, height in FITTED:
        pixels = bytes_of_index(3 * width * height).reshape(height, width, 3)
        hashes.append([width, height, fnv(fit(Image.fromarray(pixels))[1].tobytes())])
    save_file({"sizes": torch.tensor(rows, dtype=torch.int32), "hashes": torch.tensor(hashes)}, out / "references.safetensors")


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """Different in every corner, so that every turn shows, and noisy, so that the files have some length."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 128 + 60 * (x // 8 % 2) - 60 * (y // 8)], axis=-1)
    pixels += np.random.default_rng(1).integers(-20, 21, pixels.shape)
    pixels[:4, :4] = (250, 20, 20)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def png16(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_files(folder: Path) -> None:
    """One small file for every kind that the readers tell apart."""
    rgb = picture()
    grey = rgb.convert("L")
    alpha = Image.fromarray((np.arange(24 * 16).reshape(16, 24) % 256).astype(np.uint8))
    rgba, grey_alpha = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    wide = Image.fromarray((np.arange(24 * 16, dtype=np.uint32).reshape(16, 24) * 170).astype(np.uint16))

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.save(folder / f"exif{orientation}.jpg", quality=95, subsampling=0, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "exif6.png", exif=exif)
    rgb.save(folder / "exif6.webp", lossless=True, exif=exif)

    rgb.save(folder / "420.jpg", quality=80, subsampling=2)
    rgb.save(folder / "progressive.jpg", quality=90, progressive=True)
    grey.save(folder / "grey.jpg", quality=90)
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)

    rgb.save(folder / "rgb.png")
    rgba.save(folder / "rgba.png")
    grey.save(folder / "grey.png")
    grey_alpha.save(folder / "grey_alpha.png")
    grey.convert("1").save(folder / "bits1.png")
    rgb.quantize(13).save(folder / "palette4.png")
    rgb.quantize(13).save(folder / "transparent.png", transparency=3)
    wide.save(folder / "grey16.png")
    (folder / "rgb16.png").write_bytes(png16(np.array(rgb).astype(np.uint16) * 257 - np.array(rgb) // 3))
    rgb.quantize(200).save(folder / "palette8.png")

    rgb.save(folder / "lossy.webp", quality=80)
    rgb.save(folder / "lossless.webp", lossless=True)
    rgba.save(folder / "alpha.webp", lossless=True, exact=True)
    rgb.save(folder / "animated.webp", save_all=True, append_images=[ImageOps.mirror(rgb)], lossless=True)

    rgb.save(folder / "rgb.bmp")
    rgb.quantize(13).save(folder / "palette.bmp")
    rgb.save(folder / "rgb.tga")
    rgb.save(folder / "rle.tga", compression="tga_rle")
    rgb.save(folder / "rgb.ppm")
    grey.save(folder / "grey.pgm")
    rgb.quantize(13).save(folder / "palette.gif")
    rgb.quantize(13).save(folder / "animated.gif", save_all=True, append_images=[ImageOps.mirror(rgb).quantize(13)])


def load(path: Path) -> torch.Tensor:
    """What diffusers.utils.load_image makes of a file."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # Pillow's convert would clip instead of scale
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB")))


def make(out: Path) -> None:
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    make_noise(out)
    make_lanczos(out)
    make_references(out)
    make_files(folder)
    save_file({path.name: load(path) for path in sorted(folder.iterdir())}, out / "images.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
