"""Predict the classes of images: dpcnn predict RUN|CHECKPOINT FILE..."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.cli import DONE, Parser, add_checkpoint, run_command
from dpcnn.errors import printable
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.folder import numerics_of
from dpcnn.training.prediction import predictions

SHOWN = 3
"""Classes per line of text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, numerics=lambda options: numerics_of(options.checkpoint))


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.predict", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a PNG, JPEG, IDX or NPZ file; -: read from stdin"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object per image, one per line")
    form.add_argument("--csv", action="store_true", help="print comma-separated values, with a header line")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Predict on rank 0; the other ranks of ``comm`` wait for its success or its error."""
    show = print_json if options.json else print_csv if options.csv else print_text
    with comm.fail_together():
        if comm.rank == 0:
            show(predictions(options.checkpoint, options.files))
    return DONE


def print_text(found: Iterable[dict[str, Any]]) -> None:
    """Print a line per image: its likeliest classes or labels and their probabilities, or its values."""
    for each in found:
        if "values" in each:
            answer = ", ".join(f"{value:.6g}" for value in each["values"])
        else:
            p = np.array(each["probabilities"])
            answer = ", ".join(f"{number} ({p[number]:.4f})" for number in np.argsort(-p, kind="stable")[:SHOWN])
        print(f"{printable(each['file'])}{' image ' + str(each['image']) if each['image'] else ''}: {answer}")


def print_json(found: Iterable[dict[str, Any]]) -> None:
    """Print a JSON object per image, one per line."""
    for each in found:
        print(json.dumps(each))


def print_csv(found: Iterable[dict[str, Any]]) -> None:
    """Print a row per image, under a header."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for place, each in enumerate(found):
        if not place:
            rows.writerow(columns(each))
        numbers = each.get("probabilities") or each["values"]
        best = [each["class"]] if "class" in each else []
        rows.writerow([each["file"], each["image"], *best, *(f"{number:.6g}" for number in numbers)])


def columns(each: dict[str, Any]) -> list[str]:
    """The header for rows like that of a prediction: p0, p1 and so on are probabilities, and y0, y1 .. values."""
    best = ["class"] if "class" in each else []
    letter, numbers = ("y", each["values"]) if "values" in each else ("p", each["probabilities"])
    return ["file", "image", *best, *(f"{letter}{number}" for number in range(len(numbers)))]


if __name__ == "__main__":
    sys.exit(main())
