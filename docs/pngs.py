"""Export a data set as a folder of PNG files, with a folder for each class: python docs/pngs.py DATA FOLDER"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dpcnn.data.dataset import load
from dpcnn.parallel.comm import SerialComm

data, out = map(Path, sys.argv[1:])
for split in ("train", "test"):
    samples = load(data, split, SerialComm())
    names = samples.manifest.class_names
    for name in names:
        (out / split / name.replace("/", "-")).mkdir(parents=True, exist_ok=True)
    for number in range(len(samples)):
        images, labels = samples.take(np.array([number]))
        file = out / split / names[labels[0]].replace("/", "-") / f"{number:05}.png"
        Image.fromarray(images[0].squeeze(-1) if images.shape[-1] == 1 else images[0]).save(file)
