"""Say what is in pictures: python -m dpcnn.predict CHECKPOINT FILE..."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.data.pictures import open_pictures, read_pictures
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import softmax
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.tree import cut
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import find_checkpoint
from dpcnn.training.evaluation import EVALUATION_BLOCK

SHOWN = 3  # classes in a line of text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: predict(comm, argv))


def predict(comm: Alone, argv: Sequence[str] | None) -> int:
    """Predict on rank 0; the other ranks of ``comm`` wait to hear whether it went well."""
    parser = Parser(prog="dpcnn.predict", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN|CHECKPOINT", help="a run's folder: its best checkpoint; or a checkpoint"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG, JPEG, IDX or NPZ; - for stdin")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object for each image, a line each")
    form.add_argument("--csv", action="store_true", help="print a table of comma-separated values")
    with comm.together():
        options = parse(parser, argv, comm)
    with comm.together():
        if comm.rank == 0:
            found = predictions(options.checkpoint, options.files)
            {True: print_text, options.json: print_json, options.csv: print_csv}[True](found)
    return DONE


def predictions(checkpoint: Path, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """For each image of each file: the file, its number there, the class, and the probabilities of all.

    Raises:
        CheckpointError, DataError, ConfigError: a file is not what it should be.
    """
    known = read(find_checkpoint(checkpoint))
    network = known.network()
    vector = network.flat(known.parameters)
    for path in files:
        with open_pictures(path) as source:
            images = read_pictures(source, known.image_shape)
        for start, stop in cut(len(images), EVALUATION_BLOCK):
            rows: NDArray[Any] = softmax(network.logits(vector, images[start:stop]).astype(np.float64))
            if not np.isfinite(rows).all():
                raise DataError(f"{path}: the network's answer is not finite: its weights are too large for this file")
            for number, row in enumerate(rows, start):
                yield {"file": str(path), "image": number, "class": int(row.argmax()), "probabilities": row.tolist()}


def print_text(found: Iterator[dict[str, Any]]) -> None:
    """A line for each image: its class, and the likeliest of the others."""
    for each in found:
        p = np.array(each["probabilities"])
        likeliest = ", ".join(f"{number} ({p[number]:.4f})" for number in np.argsort(-p, kind="stable")[:SHOWN])
        print(f"{printable(each['file'])}{' image ' + str(each['image']) if each['image'] else ''}: {likeliest}")


def print_json(found: Iterator[dict[str, Any]]) -> None:
    """An object for each image, a line each."""
    for each in found:
        print(json.dumps(each))


def print_csv(found: Iterator[dict[str, Any]]) -> None:
    """A row for each image, under a header."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for place, each in enumerate(found):
        if not place:
            rows.writerow(["file", "image", "class", *(f"p{number}" for number in range(len(each["probabilities"])))])
        rows.writerow([each["file"], each["image"], each["class"], *(f"{p:.6g}" for p in each["probabilities"])])


if __name__ == "__main__":
    sys.exit(main())
