"""sheet: docs/nano.png, pictures by the klein program: python sheet.py build/klein ../../docs/nano.png"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

import export

# (prompt, indices of the pictures that it refers to)
PICTURES = (
    ("a red balloon on a wooden table",),
    ("a blue star in the sky",),
    ("a small yellow cup on the grass on the left",),
    ("an orange ball on the beach on the right",),
    ("a green heart before a brick wall",),
    ("a purple box at night",),
    ("a pink star and a blue ball on the grass",),
    ("a yellow balloon at night",),
    ("make the balloon green", 0),
    ("put it on the grass", 0),
    ("put the object from image 1 into image 2", 4, 3),
    ("put the object from image 1 into image 2", 3, 7),
)
COLUMNS, GAP, SEED = 4, 4, 1


def main():
    program, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / f"{i}.png" for i in range(len(PICTURES))]
        for file, (prompt, *references) in zip(files, PICTURES):
            inputs = [a for r in references for a in ("-i", files[r])]
            subprocess.run([program, "generate", "-m", export.ROOT / "weights" / "nano", *inputs, "-S", str(SEED), "-o", file, prompt], check=True)
        pictures = [np.pad(np.asarray(Image.open(f).convert("RGB")), ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for f in files]
    rows = [np.concatenate(pictures[i : i + COLUMNS], 1) for i in range(0, len(pictures), COLUMNS)]
    Image.fromarray(np.concatenate(rows)[:-GAP, :-GAP]).save(out, optimize=True)


if __name__ == "__main__":
    main()
