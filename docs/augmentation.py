"""The time of each augmentation in performance.md, as a part of the time of the gradient of resnet20."""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import dpcnn  # noqa: F401  before NumPy: it sets BLAS threads and kernels

import numpy as np  # isort: skip
from dpcnn.base.rng import SampleRng
from dpcnn.data.augment import Augment
from dpcnn.recipe import read_recipe

SHAPE, CLASSES, ROUNDS = (32, 32, 3), 10, 15
AUGMENTATIONS = {
    "flip": {"flip": "horizontal"},
    "crop-padding": {"crop_padding": 4},
    "flip, crop-padding": {"flip": "horizontal", "crop_padding": 4},
    "random resized crop": {"crop_area": 0.25},
    "colours": {"colour_jitter": 0.4},
    "cutout": {"cutout": 8},
    "shift": {"shift": 2.0},
    "rotation": {"rotation": 10.0},
    "zoom": {"zoom": 0.1},
    "elastic": {"elastic": 1.0},
    "shift, rotation, zoom, elastic": {"shift": 2.0, "rotation": 10.0, "zoom": 0.1, "elastic": 1.0},
    "all": {"flip": "horizontal", "crop_padding": 4, "colour_jitter": 0.4, "cutout": 8}
    | {"shift": 2.0, "rotation": 10.0, "zoom": 0.1, "elastic": 1.0},
}


def seconds(action: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


recipe = replace(read_recipe("resnet20"), shift=0.0)
network, loss = recipe.network(SHAPE, CLASSES), recipe.make_loss()
params, gradient = network.initialise(0), np.empty(network.size, np.float32)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (recipe.microbatch, *SHAPE), np.uint8)
labels, indices = rng.integers(0, CLASSES, recipe.microbatch), np.arange(recipe.microbatch)
augments = {name: Augment(SHAPE, replace(recipe, **options)) for name, options in AUGMENTATIONS.items()}
steps, times = [], {name: [] for name in augments}
for number in range(ROUNDS + 1):
    draws = SampleRng(0, number, indices)
    steps.append(seconds(network.gradient, params, images, labels, loss, gradient, draws))
    for name, augment in augments.items():
        times[name].append(seconds(augment, images, draws))
step = median(steps[1:])
print(f"{recipe.microbatch} images of {'x'.join(map(str, SHAPE))}: the gradient takes {1e3 * step:.1f} ms\n")
print("| augmentation | ms | part of the gradient's time |\n| --- | --- | --- |")
for name, found in times.items():
    print(f"| {name} | {1e3 * median(found[1:]):.2f} | {median(found[1:]) / step:.1%} |")
