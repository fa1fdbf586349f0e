"""What a checkpoint gets right and wrong: python -m dpcnn.evaluate CHECKPOINT"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.text import text
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.config import from_dict
from dpcnn.data.dataset import Samples, find_data, load
from dpcnn.data.holdout import hold_out
from dpcnn.errors import ConfigError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.shared import share_or_part
from dpcnn.reporting.figures import draw_confusion, draw_mistakes
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint
from dpcnn.training.evaluation import Answers, evaluate

SENTENCE = (
    "{checkpoint} (step {step}) on the {split} samples of {data}: accuracy {accuracy:.4f} "
    "({correct} of {samples}), loss {loss:.4f}, {seconds:.1f} s"
)
MISTAKES = 40  # in the picture


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: command(comm, argv))


def command(comm: Alone, argv: Sequence[str] | None) -> int:
    """Evaluate, on every rank of ``comm``, as the command line says."""
    parser = Parser(prog="dpcnn.evaluate", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN|CHECKPOINT", help="a run's folder: its best checkpoint; or a checkpoint"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which samples (default test)")
    parser.add_argument("--data", metavar="NAME|DIR", help="another data set than the checkpoint's")
    parser.add_argument(
        "--classes", action="store_true", help="precision and recall of each class, and who is taken for whom"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the confusion matrix and the worst mistakes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all of this")
    with comm.together():
        options = parse(parser, argv, comm)
    path, checkpoint = read_on_rank_0(comm, options.checkpoint)
    found = examine(comm, path, checkpoint, options.split, options.data)
    with comm.together():
        if comm.rank == 0:
            print(json.dumps(found.told) if options.json else SENTENCE.format(**found.told))
            if options.classes:
                print(f"\n{class_table(found.told)}")
            if options.plots:
                options.plots.mkdir(parents=True, exist_ok=True)
                print(draw_confusion(found.confusion, options.plots / "confusion"))
                print(draw_mistakes(found.answers, found.samples, found.indices, MISTAKES, options.plots / "mistakes"))
    return DONE


@dataclass(frozen=True)
class Examination:
    """What a checkpoint's net says of some samples.

    Attributes:
        samples: the split.
        indices: (n,) the numbers of those that were answered.
        answers: to them.
        confusion: (classes, classes) counts: by row the right class, by column the predicted one.
        told: all of it in figures, ready for JSON.
    """

    samples: Samples
    indices: NDArray[Any]
    answers: Answers
    confusion: NDArray[Any]
    told: dict[str, Any]


def read_on_rank_0(comm: Alone, path: Path) -> tuple[Path, Checkpoint | None]:
    """The checkpoint at a path, or of a run's folder there: where it lies, and on rank 0 what it holds; else None.

    Raises:
        CheckpointError: on every rank.
    """
    with comm.together():
        path = find_checkpoint(path)
        return path, read(path) if comm.rank == 0 else None


def examine(comm: Alone, path: Path, checkpoint: Checkpoint | None, split: str, data: str | None = None) -> Examination:
    """The answers of a checkpoint's net, on every rank of ``comm``, each rank working out a share of them.

    Args:
        path: of the checkpoint, to be told.
        checkpoint: what rank 0 has read; None elsewhere.
        split: "test" or "validation".
        data: another data set than the checkpoint's.

    Raises:
        ConfigError, CheckpointError, DataError: on every rank.
    """
    place = {"checkpoint": str(path), "step": checkpoint.cursor.step} if checkpoint else {}
    config = from_dict(comm.broadcast_obj(checkpoint and asdict(checkpoint.config)))
    with comm.together():
        folder = find_data(data or config.data)
    apart = share_or_part(comm)
    if apart and comm.rank == 0:
        print(apart, file=sys.stderr)
    samples = load(folder, "test" if split == "test" else "train", comm)
    indices = np.arange(len(samples))
    if split == "validation":
        indices = hold_out(samples.labels, config.validation, config.holdout, config.seed).validation
    with comm.together():
        if not len(indices):
            raise ConfigError(f"{path}: its run held no samples back for validation; give --split test")
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
        vector = network.flat(checkpoint.parameters) if checkpoint else np.empty(network.size, np.float32)
    comm.broadcast(vector)
    started = time.perf_counter()
    answers = evaluate(comm, network, vector, samples, indices, config.label_smoothing)
    confusion, tally = answers.confusion(network.classes), answers.tally
    told = {
        **place,
        "data": samples.manifest.name,
        "split": split,
        "samples": tally.count,
        "correct": tally.correct,
        "accuracy": tally.accuracy,
        "loss": tally.mean_loss,
        "classes": of_classes(confusion),
        "confusion": confusion.tolist(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Examination(samples, indices, answers, confusion, told)


def of_classes(confusion: NDArray[Any]) -> list[dict[str, Any]]:
    """For each class: its samples; recall, the part of them that were found; and precision, the part
    of those taken for it that were right. None where there are none."""
    right, of_class, taken = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": number,
            "samples": int(of_class[number]),
            "precision": right[number] / taken[number] if taken[number] else None,
            "recall": right[number] / of_class[number] if of_class[number] else None,
        }
        for number in range(len(confusion))
    ]


def class_table(result: Mapping[str, Any]) -> str:
    """A row for each class: how many, precision and recall, and what they were taken for."""
    rows = [
        (
            str(found["class"]),
            str(found["samples"]),
            *("-" if found[key] is None else f"{found[key]:.4f}" for key in ("precision", "recall")),
            *(str(count or ".") for count in counts),
        )
        for found, counts in zip(result["classes"], result["confusion"], strict=True)
    ]
    return text(("class", "samples", "precision", "recall", *(f"as {row[0]}" for row in rows)), rows)


if __name__ == "__main__":
    sys.exit(main())
