"""A run as one HTML page: python -m dpcnn.report RUN"""

import sys
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dpcnn import __version__
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_TEXT, read_bytes, write_file
from dpcnn.base.timing import PHASES
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.errors import CheckpointError, ConfigError, LaunchError, printable
from dpcnn.evaluate import Examination, examine, read_on_rank_0
from dpcnn.parallel.comm import Alone
from dpcnn.plot import draw_first_layer
from dpcnn.reporting.figures import draw_confusion, draw_curves, draw_mistakes, new_figure
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.events import Event, epoch_rows, read_events
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Cursor

MISTAKES, COLUMNS = 25, 5  # in the picture

EPOCHS, RANKS = "Epochs", "Time and memory of each rank"
WIDE = (EPOCHS, RANKS)
"""Sections that take the whole width of a page where others stand in two columns."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 76rem; margin: 0 auto; padding: 1rem; }
main { columns: 34rem 2; column-gap: 3rem; }
section { break-inside: avoid; } section.wide { column-span: all; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { width: 100%; max-width: 34rem; display: block; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
table.facts th, table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts th { font-weight: normal; color: #555; white-space: nowrap; }
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: report(comm, argv))


def report(comm: Alone, argv: Sequence[str] | None) -> int:
    """Evaluate the run's best checkpoint on every rank of ``comm``, and write the page on rank 0."""
    parser = Parser(prog="dpcnn.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--data", metavar="NAME|DIR", help="another data set than the run's")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default RUN/report.html)")
    with comm.together():
        options = parse(parser, argv, comm)
    folder = RunFolder(options.run)
    with comm.together():
        if comm.rank == 0 and not folder.metrics.is_file():
            raise ConfigError(f"{options.run}: no run's folder: it has no metrics.jsonl")
        if comm.rank == 0 and new_figure(1) is None:
            raise LaunchError("a report needs pictures: matplotlib is not installed; pip install 'dpcnn[plot]'")
    path, checkpoint = read_on_rank_0(comm, options.run)
    found = examine(comm, path, checkpoint, "test", options.data)
    with comm.together():
        if checkpoint:
            out = options.out or options.run / "report.html"
            write_file(out, page(folder, path, checkpoint, found).encode())
            print(f"{out}: {out.stat().st_size:,} bytes")
    return DONE


def page(folder: RunFolder, path: Path, checkpoint: Checkpoint, found: Examination) -> str:
    """The page on the checkpoint at ``path`` and its run: one file, nothing loaded from elsewhere."""
    events = read_events(folder.metrics)
    with TemporaryDirectory(prefix="dpcnn-report-") as work:
        out, sample = Path(work), found.samples.take(np.array([0]))[0]
        draw_curves([folder.path], out / "curves", narrow=True)
        draw_confusion(found.confusion, out / "confusion")
        draw_mistakes(found.answers, found.samples, found.indices, MISTAKES, out / "mistakes", COLUMNS)
        draw_first_layer(checkpoint, sample, out)
        epochs = [event for event in events if event["event"] == "epoch"]
        sections = [
            (EPOCHS, table(*epoch_rows(epochs)) if epochs else ""),
            ("Loss and accuracy", picture(out, "curves", "loss and accuracy over the epochs")),
            ("Classes, on the test samples", classes_table(found.told)),
            ("Who is taken for whom", picture(out, "confusion", "counts of right class by predicted class")),
            ("The worst mistakes", picture(out, "mistakes", "right class as predicted class")),
            ("Filters of the first layer", picture(out, "filters", "before and after training")),
            ("What they make of an image", picture(out, "maps", "feature maps before and after training")),
            (RANKS, ranks_table(folder)),
            ("Configuration", facts({k: v for k, v in asdict(checkpoint.config).items() if k != "layers"})),
            ("Layers", layers_table(checkpoint)),
            (
                "Numerics",
                facts(checkpoint.fingerprint | {"cpu_features": " ".join(checkpoint.fingerprint["cpu_features"])}),
            ),
        ]
    name = printable(folder.path.resolve().name)
    body = "\n".join(
        f"<section{' class=wide' * (title in WIDE)}><h2>{title}</h2>\n{content}</section>"
        for title, content in sections
        if content
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(name)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{escape(name)}</h1>\n{facts(summary(path, checkpoint, found, events))}\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def summary(path: Path, checkpoint: Checkpoint, found: Examination, events: Sequence[Event]) -> dict[str, Any]:
    """What a reader wants to know first."""
    cursor, told = checkpoint.cursor, found.told
    network = checkpoint.network()
    run = Cursor(events=list(events))
    best, last = run.best(checkpoint.config.monitor) or {}, (run.epoch_events or [{"epoch": 0, "step": 0}])[-1]
    end = "" if any(event["event"] == "end" for event in events) else "; the run has not come to its end"
    return {
        "network": f"{checkpoint.config.model}, {network.size:,} parameters",
        "checkpoint": f"{path.name}: after {cursor.step:,} steps, {cursor.epochs} epochs; the figures, pictures and "
        "classes on this page are of this one",
        "test accuracy": f"{told['accuracy']:.4f}: {told['correct']:,} of {told['samples']:,} of {told['data']}",
        "validation accuracy": f"{best['validation_accuracy']:.4f} at best, after epoch {best['epoch']}"
        if "validation_accuracy" in best
        else "no samples held back",
        "trained for": f"{last['epoch']} epochs, {last['step']:,} steps{end}",
        "seed": checkpoint.config.seed,
        "sha256 of the weights": checkpoint.weights_sha256,
        "sha256 of the data": checkpoint.data,
        "dpcnn": __version__,
    }


def picture(folder: Path, name: str, text: str) -> str:
    """A drawn picture, within the page; nothing where it was not drawn."""
    path = folder / f"{name}.svg"
    if not path.exists():
        return ""
    return f'<img alt="{text}" src="data:image/svg+xml;base64,{b64encode(path.read_bytes()).decode()}">\n'


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table, as wide as it must be: it scrolls by itself."""
    lines = [f"<tr>{''.join(f'<th>{escape(str(cell))}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return '<div class="table"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def facts(values: dict[str, Any]) -> str:
    """Names and values, a line each."""
    lines = [f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in values.items()]
    return '<table class="facts">\n' + "\n".join(lines) + "\n</table>\n"


def classes_table(told: dict[str, Any]) -> str:
    """Precision and recall of each class."""
    rows = [
        [row["class"], row["samples"], *("-" if row[k] is None else f"{row[k]:.4f}" for k in ("precision", "recall"))]
        for row in told["classes"]
    ]
    return table(["class", "samples", "precision", "recall"], rows)


def ranks_table(folder: RunFolder) -> str:
    """Where each rank's time went since the run's last start; nothing where that was not recorded.

    Raises:
        CheckpointError: the run's file of it is not what a run has written.
    """
    if not folder.times.exists():
        return ""
    try:
        told = Table(load_json(read_bytes(folder.times, MOST_TEXT)))
        rows = []
        for rank, of_rank in enumerate(told.tables("ranks")):
            seconds = of_rank.table("seconds")
            times = [*(seconds.number(phase) for phase in PHASES), of_rank.number("waited_for")]
            rows.append([rank, *(f"{time:.1f} s" for time in times), f"{of_rank.number('peak_memory_mb'):.0f} MB"])
        library = told.name("mpi")
    except OSError as error:
        raise CheckpointError(f"{folder.times}: {error.strerror}; delete it") from None
    except FieldError as error:
        raise CheckpointError(f"{folder.times}: not what a run has written ({error}); delete it") from None
    header = ["rank", *PHASES, "waited for", "memory"]
    return f"<p>{escape(library)}; since the run's last start.</p>\n{table(header, rows)}"


def layers_table(checkpoint: Checkpoint) -> str:
    """The network's layers and their parameters."""
    network = checkpoint.network()
    rows, shape = [], network.input_shape
    for name, layer in zip(network.names, network.layers, strict=True):
        shape = layer.connect(shape)
        rows.append([name, " x ".join(map(str, shape)), f"{sum(prod(p.shape) for p in layer.parameters):,}"])
    return table(["layer", "output", "parameters"], rows)


if __name__ == "__main__":
    sys.exit(main())
