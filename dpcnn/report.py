"""A run as one HTML page: python -m dpcnn.report RUN"""

import json
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
from dpcnn.checkpoint import LAST, Checkpoint
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.evaluate import Examination, examine, read_on_rank_0
from dpcnn.metrics import Event, epoch_rows, read_events
from dpcnn.parallel.comm import Alone
from dpcnn.plot import draw_first_layer
from dpcnn.plots import draw_confusion, draw_curves, draw_mistakes, new_figure
from dpcnn.run_folder import RunFolder, replace_file
from dpcnn.spans import PHASES

MISTAKES, COLUMNS = 25, 5  # in the picture

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 46rem; margin: 0 auto; padding: 1rem; }
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
    """Evaluate the run's last checkpoint on every rank of ``comm``, and write the page on rank 0."""
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
    path = folder.checkpoints / LAST
    checkpoint = read_on_rank_0(comm, path)
    found = examine(comm, path, checkpoint, "test", options.data)
    with comm.together():
        if checkpoint:
            out = options.out or options.run / "report.html"
            replace_file(out, page(folder, checkpoint, found).encode())
            print(f"{out}: {out.stat().st_size:,} bytes")
    return DONE


def page(folder: RunFolder, checkpoint: Checkpoint, found: Examination) -> str:
    """The page: one file, nothing loaded from elsewhere."""
    with TemporaryDirectory(prefix="dpcnn-report-") as work:
        out, sample = Path(work), found.samples.take(np.array([0]))[0]
        draw_curves([folder.path], out / "curves", narrow=True)
        draw_confusion(found.confusion, out / "confusion")
        draw_mistakes(found.answers, found.samples, found.first, MISTAKES, out / "mistakes", COLUMNS)
        draw_first_layer(checkpoint, sample, out)
        epochs = checkpoint.cursor.epoch_events
        sections = [
            ("Loss and accuracy", picture(out, "curves", "loss and accuracy over the epochs")),
            ("Epochs", table(*epoch_rows(epochs)) if epochs else ""),
            ("Classes, on the test samples", classes_table(found.told)),
            ("Who is taken for whom", picture(out, "confusion", "counts of right class by predicted class")),
            ("The worst mistakes", picture(out, "mistakes", "right class as predicted class")),
            ("Filters of the first layer", picture(out, "filters", "before and after training")),
            ("What they make of a digit", picture(out, "maps", "feature maps before and after training")),
            ("Time and memory of each rank", ranks_table(folder)),
            ("Configuration", facts({k: v for k, v in asdict(checkpoint.config).items() if k != "layers"})),
            ("Layers", layers_table(checkpoint)),
            (
                "Numerics",
                facts(checkpoint.fingerprint | {"cpu_features": " ".join(checkpoint.fingerprint["cpu_features"])}),
            ),
        ]
    name = folder.path.resolve().name
    body = "\n".join(f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections if content)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(name)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{escape(name)}</h1>\n{facts(summary(checkpoint, found, read_events(folder.metrics)))}\n"
        f"{body}\n</body>\n</html>\n"
    )


def summary(checkpoint: Checkpoint, found: Examination, events: Sequence[Event]) -> dict[str, Any]:
    """What a reader wants to know first."""
    cursor, told = checkpoint.cursor, found.told
    network = checkpoint.network()
    best = cursor.best or {}
    end = "" if any(event["event"] == "end" for event in events) else "; the run has not come to its end"
    return {
        "network": f"{checkpoint.config.model}, {network.size:,} parameters",
        "test accuracy": f"{told['accuracy']:.4f}: {told['correct']:,} of {told['samples']:,} of {told['data']}",
        "validation accuracy": f"{best['validation_accuracy']:.4f} at best, after epoch {best['epoch']}"
        if "validation_accuracy" in best
        else "no samples held back",
        "trained for": f"{cursor.epochs} epochs, {cursor.step:,} steps, {cursor.seconds:.1f} s{end}",
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
    """Where each rank's time went since the run's last start; nothing where that was not recorded."""
    if not folder.times.is_file():
        return ""
    times = json.loads(folder.times.read_text(encoding="utf-8"))
    rows = [
        [
            rank,
            *(f"{found['seconds'][phase]:.1f} s" for phase in PHASES),
            f"{found['waited_for']:.1f} s",
            f"{found['peak_memory_mb']:.0f} MB",
        ]
        for rank, found in enumerate(times["ranks"])
    ]
    return f"<p>{escape(times['mpi'])}; since the run's last start.</p>\n" + table(
        ["rank", *PHASES, "waited for", "memory"], rows
    )


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
