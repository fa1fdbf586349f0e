"""Predict the classes of images: dpcnn predict RUN|CHECKPOINT FILE|FOLDER..."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpcnn.cli import DONE, MISTAKE, Parser, add_checkpoint, run_command, tell
from dpcnn.errors import ConfigError, DpcnnError, printable
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.folder import numerics_of
from dpcnn.training.prediction import predictions

SHOWN = 3
"""Classes per line of text, unless ``--top`` says otherwise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, numerics=lambda options: numerics_of(options.checkpoint))


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn predict", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE|FOLDER",
        help="a PNG, JPEG, WebP, TIFF, IDX or NPZ file, or a folder of such files; -: read from stdin",
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help=f"the number of classes per line of text (default {SHOWN})"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object per image, one per line")
    form.add_argument("--csv", action="store_true", help="print comma-separated values, with a header line")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Predict on rank 0; the other ranks of ``comm`` wait for its success or its error.

    Returns:
        The exit status: :data:`dpcnn.cli.MISTAKE` if a file of the command line can't be read.
    """
    faults: list[DpcnnError] = []
    with comm.fail_together():
        top = number_shown(options)
        if comm.rank == 0:
            found = predictions(options.checkpoint, options.files, tell_skipped, faults.append)
            print_json(found) if options.json else print_csv(found) if options.csv else print_text(found, top)
            for fault in faults:
                tell(fault)
    return MISTAKE if comm.broadcast_obj(bool(faults)) else DONE


def number_shown(options: Namespace) -> int:
    """The number of classes per line of text.

    Raises:
        ConfigError: ``--top`` is wrong, or without effect.
    """
    if options.top is None:
        return SHOWN
    if options.json or options.csv:
        raise ConfigError("--top: has no effect with --json and --csv, which have all classes; leave it out")
    if options.top < 1:
        raise ConfigError(f"--top: must be at least 1, not {options.top}")
    return int(options.top)


def tell_skipped(line: str) -> None:
    """Print a line about a file that is skipped, to stderr."""
    print(line, file=sys.stderr)


def print_text(found: Iterable[dict[str, Any]], top: int) -> None:
    """Print a line per image: its ``top`` likeliest classes or labels and their probabilities, or its values."""
    for each in found:
        if "values" in each:
            answer = ", ".join(f"{value:.6g}" for value in each["values"].values())
        else:
            ordered = sorted(each["probabilities"].items(), key=lambda item: -item[1])
            answer = ", ".join(f"{name} ({probability:.4f})" for name, probability in ordered[:top])
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
        numbers = each["values"] if "values" in each else each["probabilities"]
        best = [each["name"]] if "name" in each else []
        rows.writerow([each["file"], each["image"], *best, *(f"{number:.6g}" for number in numbers.values())])


def columns(each: dict[str, Any]) -> list[str]:
    """The header for rows like that of a prediction: p(NAME) is a probability, and y(NAME) is a value."""
    best = ["class"] if "name" in each else []
    letter, numbers = ("y", each["values"]) if "values" in each else ("p", each["probabilities"])
    return ["file", "image", *best, *(f"{letter}({name})" for name in numbers)]


if __name__ == "__main__":
    sys.exit(main())
