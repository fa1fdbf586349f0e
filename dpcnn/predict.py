"""Predict the classes of pictures: dpcnn predict RUN|CHECKPOINT FILE..."""

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
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a PNG, JPEG, IDX or NPZ file; - for stdin")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object per image, one per line")
    form.add_argument("--csv", action="store_true", help="print a table of comma-separated values")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Predict on rank 0; the other ranks of ``comm`` wait for its success or its error."""
    show = print_json if options.json else print_csv if options.csv else print_text
    with comm.fail_together():
        if comm.rank == 0:
            show(predictions(options.checkpoint, options.files))
    return DONE


def print_text(found: Iterable[dict[str, Any]]) -> None:
    """Print a line per image: its likeliest classes and their probabilities."""
    for each in found:
        p = np.array(each["probabilities"])
        likeliest = ", ".join(f"{number} ({p[number]:.4f})" for number in np.argsort(-p, kind="stable")[:SHOWN])
        print(f"{printable(each['file'])}{' image ' + str(each['image']) if each['image'] else ''}: {likeliest}")


def print_json(found: Iterable[dict[str, Any]]) -> None:
    """Print a JSON object per image, one per line."""
    for each in found:
        print(json.dumps(each))


def print_csv(found: Iterable[dict[str, Any]]) -> None:
    """Print a row per image, under a header."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for place, each in enumerate(found):
        if not place:
            rows.writerow(["file", "image", "class", *(f"p{number}" for number in range(len(each["probabilities"])))])
        rows.writerow([each["file"], each["image"], each["class"], *(f"{p:.6g}" for p in each["probabilities"])])


if __name__ == "__main__":
    sys.exit(main())
