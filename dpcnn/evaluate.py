"""Evaluate a checkpoint on test or validation samples: dpcnn evaluate RUN|CHECKPOINT"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from dpcnn.cli import DONE, Parser, add_checkpoint, add_verify, run_command
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import VALUES
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.confusion import draw_confusion
from dpcnn.reporting.mistakes import draw_mistakes
from dpcnn.reporting.scatter import draw_scatter
from dpcnn.reporting.tables import class_table, sentence
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.folder import numerics_of
from dpcnn.training.examination import MOST_CONFUSED, Examination, examine, has_confusion, read_on_rank_0

MISTAKES = 40
"""The most images in the picture of the worst mistakes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, numerics=lambda options: numerics_of(options.checkpoint))


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn evaluate", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="the samples to evaluate on (default test)"
    )
    parser.add_argument("--data", metavar="NAME|DIR", help="a data set to use in place of the checkpoint's")
    add_verify(parser)
    parser.add_argument(
        "--classes", action="store_true", help="also print precision, recall and the predicted classes of each class"
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="draw the confusion matrix and the worst mistakes, or the predicted values, into this folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with all results, and nothing else")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Evaluate on every rank of ``comm``; rank 0 prints and draws the results."""
    with comm.fail_together():
        if options.json and options.classes:
            raise ConfigError(
                "--classes: has no effect with --json, which prints the scores of each class; leave it out"
            )
    path, checkpoint = read_on_rank_0(comm, options.checkpoint)
    with comm.fail_together():
        if options.plots and checkpoint:
            check_pictures(checkpoint)
    found = examine(comm, path, checkpoint, options.split, options.data, options.verify)
    with comm.fail_together():
        if comm.rank == 0:
            show(found, options)
    return DONE


def show(found: Examination, options: Namespace) -> None:
    """Print and draw the results as the command line asks."""
    print(json.dumps(found.results) if options.json else sentence(found.results))
    if options.classes and "classes" in found.results:
        print(f"\n{class_table(found.results)}")
    elif options.classes:
        print("--classes: has no effect, as the samples have values and no classes", file=sys.stderr)
    if options.plots:
        draw(found, options.plots, sys.stderr if options.json else sys.stdout)


def check_pictures(checkpoint: Checkpoint) -> None:
    """Make sure that there are pictures of a network's answers.

    Raises:
        ConfigError: there are none.
    """
    loss = checkpoint.config.make_loss()
    if loss.targets != VALUES and not has_confusion(loss, checkpoint.classes):
        raise ConfigError(
            "--plots: there is no picture of several labels per sample, or of more than "
            f"{MOST_CONFUSED:,} classes; drop the flag"
        )


def draw(found: Examination, folder: Path, names: TextIO) -> None:
    """Draw the confusion matrix and the worst mistakes, or the predicted values; print the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    if found.confusion is None:
        print(draw_scatter(found.answers, folder / "values"), file=names)
        return
    print(draw_confusion(found.confusion, found.class_names, folder / "confusion"), file=names)
    print(draw_mistakes(found, MISTAKES, folder / "mistakes"), file=names)


if __name__ == "__main__":
    sys.exit(main())
