"""The angle of rotated digits: dpcnn.Regressor beside scikit-learn's MLPRegressor, if that is installed.

mpirun -n 2 python docs/angles.py [--train N] [--test N] [--epochs N]
"""

import dpcnn  # isort: skip
import argparse
import time

import numpy as np

from dpcnn.data.dataset import find_data, load
from dpcnn.data.warp import bilinear
from dpcnn.estimators.session import ranks

LARGEST = 45.0  # degrees


def rotated(split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's first images of a split (count, 28, 28), each turned by a random angle, and the angles in degrees."""
    images, _ = load(find_data("mnist"), split, ranks()).take(np.arange(count))
    degrees = np.random.default_rng(seed).uniform(-LARGEST, LARGEST, count)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    grid = np.indices((28, 28)).reshape(2, -1) - 13.5
    turned = bilinear(images, (turn @ grid + 13.5).astype(np.float32))
    return turned[..., 0].round().astype(np.uint8), degrees


def tell(name: str, predicted: np.ndarray, degrees: np.ndarray, seconds: float) -> None:
    """Print the errors of a model, in degrees."""
    error = np.abs(LARGEST * predicted - degrees)
    r2 = 1 - np.sum((LARGEST * predicted - degrees) ** 2) / np.sum((degrees - degrees.mean()) ** 2)
    print(f"{name}: mean error {error.mean():.2f} degrees, R2 {r2:.4f}, {seconds:.0f} s")


def main() -> None:
    """Train both, and print their errors."""
    parser = argparse.ArgumentParser()
    for name, default in (("train", 60_000), ("test", 10_000), ("epochs", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    X, degrees = rotated("train", options.train, seed=0)
    X_test, degrees_test = rotated("test", options.test, seed=1)
    started = time.perf_counter()
    model = dpcnn.Regressor("fast", epochs=options.epochs, lr=0.004, verbose=False).fit(X, degrees / LARGEST)
    seconds, predicted = time.perf_counter() - started, model.predict(X_test)
    if ranks().rank:
        return
    tell(f"dpcnn.Regressor, {ranks().size} ranks", predicted, degrees_test, seconds)
    try:
        from sklearn.neural_network import MLPRegressor
    except ImportError:
        print("scikit-learn is not installed")
        return
    started = time.perf_counter()
    other = MLPRegressor(hidden_layer_sizes=(256, 128), early_stopping=True, random_state=0)
    other.fit(X.reshape(len(X), -1) / 255, degrees / LARGEST)
    predicted = other.predict(X_test.reshape(len(X_test), -1) / 255)
    tell("MLPRegressor((256, 128))", predicted, degrees_test, time.perf_counter() - started)


if __name__ == "__main__":
    main()
