"""Write JPEG pictures of ten classes, N of each to train and a fifth to test: python docs/photos.py FOLDER N

They are cut from the sample photographs of scikit-image and scikit-learn: pip install scikit-image scikit-learn pillow
The pictures to test come from other parts of the photographs than those to train.
"""

import random
import sys
from pathlib import Path

import skimage
import sklearn
from PIL import Image

SIDE, CELL, LEAST = 512, 128, 64
"""The short side of a photograph, the side of its cells, and the shortest side of a picture, in pixels."""

NAMES = "astronaut chelsea coffee hubble_deep_field ihc motorcycle_left retina rocket china flower".split()


def photograph(name):
    """A sample photograph, with a short side of SIDE pixels."""
    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"]
    (path,) = (path for folder in folders for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg"))
    picture = Image.open(path).convert("RGB")
    scale = SIDE / min(picture.size)
    return picture.resize([round(scale * side) for side in picture.size])


def cut(photo, cells, draw):
    """A random rectangle within one of the cells."""
    left, top = draw.choice(cells)
    width, height = draw.randint(LEAST, CELL), draw.randint(LEAST, CELL)
    left, top = left + draw.randint(0, CELL - width), top + draw.randint(0, CELL - height)
    return photo.crop((left, top, left + width, top + height))


out, count = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
for name in NAMES:
    photo = photograph(name)
    corners = [(x, y) for y in range(0, photo.height - CELL + 1, CELL) for x in range(0, photo.width - CELL + 1, CELL)]
    draw.shuffle(corners)
    parts = {"test": (corners[: len(corners) // 4], count // 5), "train": (corners[len(corners) // 4 :], count)}
    for part, (cells, pictures) in parts.items():
        (out / part / name).mkdir(parents=True)
        for number in range(pictures):
            cut(photo, cells, draw).save(out / part / name / f"{number:05}.jpg", quality=90)
