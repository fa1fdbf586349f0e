"""Loss and accuracy of a checkpoint: python -m dpcnn.evaluate CHECKPOINT"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dpcnn.checkpoint import Checkpoint, read
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.config import from_dict
from dpcnn.data.samples import find_data, load
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.shared import share_or_part
from dpcnn.validation import evaluate

SENTENCE = (
    "{checkpoint} (step {step}) on the {split} samples of {data}: accuracy {accuracy:.4f} "
    "({correct} of {samples}), loss {loss:.4f}, {seconds:.1f} s"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: command(comm, argv))


def command(comm: Alone, argv: Sequence[str] | None) -> int:
    """Evaluate, on every rank of ``comm``, as the command line says."""
    parser = Parser(prog="dpcnn.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, such as RUN/checkpoints/best.h5")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which samples (default test)")
    parser.add_argument("--data", metavar="NAME|DIR", help="another data set than the checkpoint's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    with comm.together():
        options = parse(parser, argv, comm)
    checkpoint: Checkpoint | None = None
    with comm.together():
        if comm.rank == 0:
            checkpoint = read(options.checkpoint)
    config = from_dict(comm.broadcast_obj(checkpoint and asdict(checkpoint.config)))
    with comm.together():
        folder = find_data(options.data or config.data)
    apart = share_or_part(comm)
    if apart and comm.rank == 0:
        print(apart, file=sys.stderr)
    samples = load(folder, "test" if options.split == "test" else "train", comm)
    first = 0 if options.split == "test" else max(0, len(samples) - config.validation)
    with comm.together():
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
        vector = np.empty(network.size, np.float32)
        if checkpoint:
            vector = network.flat(checkpoint.parameters)
    comm.broadcast(vector)
    started = time.perf_counter()
    tally = evaluate(comm, network, vector, samples, range(first, len(samples)), config.label_smoothing)
    if checkpoint:
        result = {
            "checkpoint": str(options.checkpoint),
            "step": checkpoint.cursor.step,
            "data": samples.manifest.name,
            "split": options.split,
            "samples": tally.count,
            "correct": tally.correct,
            "accuracy": tally.accuracy,
            "loss": tally.mean_loss,
            "seconds": round(time.perf_counter() - started, 3),
        }
        print(json.dumps(result) if options.json else SENTENCE.format(**result))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
