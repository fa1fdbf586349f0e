"""Write the first N training and the first 2,000 test images of a data set: python docs/part.py DATA N FILE.npz"""

import sys
from pathlib import Path

import numpy as np

from dpcnn.data.dataset import load
from dpcnn.parallel.comm import SerialComm

data, count, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
arrays = {}
for split, samples in (("train", count), ("test", 2000)):
    images, labels = load(data, split, SerialComm()).take(np.arange(samples))
    arrays |= {f"x_{split}": images, f"y_{split}": labels}
np.savez(out, **arrays)
