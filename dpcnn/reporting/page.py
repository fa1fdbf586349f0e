"""The report of a run: the sections of its page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dpcnn import __version__
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_JSON, read_bytes
from dpcnn.base.text import count_of
from dpcnn.base.timing import PHASES
from dpcnn.errors import CheckpointError, LaunchError, printable
from dpcnn.reporting.activation_maps import draw_activation_maps
from dpcnn.reporting.confusion import PAIR_HEADER, confused_pairs, draw_confusion
from dpcnn.reporting.curves import draw_curves
from dpcnn.reporting.figures import NotDrawnError, new_figure
from dpcnn.reporting.first_layer import draw_first_layer
from dpcnn.reporting.html import Section, document, facts, note, picture, table
from dpcnn.reporting.mistakes import draw_mistakes, mistake_rows
from dpcnn.reporting.scatter import draw_scatter
from dpcnn.reporting.tables import CLASS_HEADER, class_rows, telling
from dpcnn.reporting.timelines import draw_timelines
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.events import Event, epoch_rows, read_events
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Progress
from dpcnn.training.examination import Examination

MISTAKES, COLUMNS = 24, 4
"""The largest number of images, and the number of columns, in the picture of the worst mistakes."""


def check_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        LaunchError: matplotlib is not installed.
    """
    try:
        new_figure(1)
    except NotDrawnError:
        raise LaunchError("a report needs pictures: matplotlib is not installed; pip install 'dpcnn[plot]'") from None


def page(folder: RunFolder, path: Path, checkpoint: Checkpoint, examination: Examination) -> str:
    """The HTML page of a run and its checkpoint.

    Args:
        folder: the run's folder.
        path: the checkpoint's path.
        checkpoint: the checkpoint that the page is about.
        examination: the examination of the checkpoint on the test samples.

    Raises:
        CheckpointError: a file of the run's folder is not as the run wrote it.
    """
    events = read_events(folder.metrics)
    with TemporaryDirectory(prefix="dpcnn-report-") as work:
        draw(folder, checkpoint, examination, events, Path(work))
        found = results(events, examination, Path(work), checkpoint.config.monitored)
        sections = [*found, *circumstances(folder, checkpoint, events)]
    return document(printable(folder.path.resolve().name), summary(path, checkpoint, examination, events), sections)


def draw(
    folder: RunFolder, checkpoint: Checkpoint, examination: Examination, events: Sequence[Event], out: Path
) -> None:
    """Draw the page's pictures into a folder, as SVG."""
    draw_curves([folder.path], out / "curves.svg", narrow=True)
    draw_timelines(events, out, ".svg")
    if examination.confusion is not None:
        draw_confusion(examination.confusion, examination.class_names, out / "confusion.svg")
        draw_mistakes(examination, MISTAKES, out / "mistakes.svg", COLUMNS)
        draw_activation_maps(checkpoint, examination, out / "activation.svg")
    elif "classes" not in examination.results:
        draw_scatter(examination.answers, out / "values.svg")
    draw_first_layer(checkpoint, examination.samples.take(np.array([0]))[0], out, ".svg")


def results(events: Sequence[Event], examination: Examination, drawn: Path, monitor: str) -> list[Section]:
    """The sections on the results; ``drawn`` is the folder of the pictures."""
    of_test = examination.results
    classes = table(CLASS_HEADER, class_rows(of_test), names=1) if "classes" in of_test else ""
    metrics = {name: f"{of_test[name]:.6f}" for name in telling(of_test)}
    epochs = [event for event in events if event["event"] == "epoch"]
    confused = [] if examination.confusion is None else confused_pairs(examination.confusion, examination.class_names)
    pictures = (
        ("Predicted values", "values", "predicted values over true values"),
        ("Filters of the first layer", "filters", "before and after training"),
        ("Feature maps", "maps", "feature maps before and after training"),
    )
    return [
        Section("Epochs", table(*epoch_rows(epochs, monitor)) if epochs else "", wide=True),
        Section("Loss and accuracy", picture(drawn, "curves", "loss and accuracy over the epochs")),
        Section("Learning rate", picture(drawn, "rate", "learning rate over the epochs")),
        Section("Peak memory", memory_curve(drawn)),
        Section("Metrics, on the test samples", facts(metrics)),
        Section("Classes, on the test samples", classes),
        Section("Confusion matrix", picture(drawn, "confusion", "counts of true class by predicted class")),
        Section("The most confused classes", table(PAIR_HEADER, confused, names=2) if confused else ""),
        Section("The worst mistakes", mistakes(examination, drawn)),
        Section("Where the network finds the predicted class", activation_maps(drawn)),
        *(Section(title, picture(drawn, name, text)) for title, name, text in pictures),
    ]


def mistakes(examination: Examination, drawn: Path) -> str:
    """The picture of the worst mistakes, and the files of its images if the data set has their names."""
    rows = [] if examination.confusion is None else mistake_rows(examination, MISTAKES)
    header = ["file, in the order of the images", "class", "predicted class"]
    images = picture(drawn, "mistakes", "true class as predicted class")
    return images + (table(header, rows, names=2) if rows else "")


def memory_curve(drawn: Path) -> str:
    """The curve of the memory with its explanation; empty if the run recorded none."""
    curve = picture(drawn, "memory", "peak memory over the epochs")
    return curve and curve + note("The largest memory of rank 0 since its start.")


def activation_maps(drawn: Path) -> str:
    """The class activation maps with their explanation; empty if the network has none."""
    maps = picture(drawn, "activation", "images, and the class activation maps over them")
    text = (
        "The worst mistakes, and the surest right answers. The colours show how much each place adds to the output for "
        "the predicted class, from blue (the least in this image) to red (the most)."
    )
    return maps and maps + note(text)


def circumstances(folder: RunFolder, checkpoint: Checkpoint, events: Sequence[Event]) -> list[Section]:
    """The sections on the ranks, the configuration, the layers and the numerics."""
    config = {name: value for name, value in checkpoint.config.as_dict().items() if name != "layers"}
    numerics = checkpoint.fingerprint | {"cpu_features": " ".join(checkpoint.fingerprint["cpu_features"])}
    return [
        Section("Time and memory of each rank", ranks_table(folder), wide=True),
        Section("Ranks that died during the run", deaths_table(events)),
        Section("Configuration", facts(config)),
        Section("Layers", layers_table(checkpoint)),
        Section("Numerics", facts(numerics)),
    ]


def summary(path: Path, checkpoint: Checkpoint, examination: Examination, events: Sequence[Event]) -> dict[str, Any]:
    """The facts at the top of the page."""
    progress, results = checkpoint.progress, examination.results
    return {
        "network": f"{checkpoint.config.model}, {checkpoint.network().counted}",
        "checkpoint": f"{path.name}: after {count_of(progress.step, 'step')}, {count_of(progress.epochs, 'epoch')}; "
        "all figures, pictures and tables of classes on this page belong to it",
        **of_test(results),
        **achieved(events, checkpoint.config.monitored),
        "seed": checkpoint.config.seed,
        "sha256 of the weights": checkpoint.weights_sha256,
        "sha256 of the data": checkpoint.data,
        "dpcnn": __version__,
    }


def of_test(results: dict[str, Any]) -> dict[str, str]:
    """The accuracy on the test samples, or the loss if there is no accuracy."""
    if "accuracy" not in results:
        return {"test loss": f"{results['loss']:.4f}, of {results['samples']:,} samples of {results['data']}"}
    right = f"{results['correct']:,} of {results['samples']:,} of {results['data']}"
    return {"test accuracy": f"{results['accuracy']:.4f}: {right}"}


def achieved(events: Sequence[Event], monitor: str) -> dict[str, str]:
    """The best validation accuracy of the run, or ``monitor`` if there is none, and its epochs and steps."""
    progress = Progress(events=list(events))
    best, last = progress.best(monitor) or {}, (progress.epoch_events or [{"epoch": 0, "step": 0}])[-1]
    end = "" if any(event["event"] == "end" for event in events) else "; the run is not complete"
    name = "accuracy" if "train_accuracy" in last else monitor
    return {
        f"validation {name}": f"{best[f'validation_{name}']:.4f} at best, after epoch {best['epoch']}"
        if f"validation_{name}" in best
        else "no samples held back",
        "trained for": f"{count_of(last['epoch'], 'epoch')}, {count_of(last['step'], 'step')}{end}",
    }


def ranks_table(folder: RunFolder) -> str:
    """The time and memory of each rank since the run's last start; empty if the run recorded none.

    Raises:
        CheckpointError: the run's file ``times.json`` is not as a run writes it.
    """
    if not folder.times.exists():
        return ""
    try:
        times = Table(load_json(read_bytes(folder.times, MOST_JSON)))
        rows = [[rank, *times_of(of_rank)] for rank, of_rank in enumerate(times.tables("ranks"))]
        library = times.name("mpi")
    except OSError as error:
        raise CheckpointError(f"{folder.times}: {error.strerror}; delete it") from None
    except FieldError as error:
        raise CheckpointError(f"{folder.times}: not written by a run ({error}); delete it") from None
    header = ["rank", *PHASES, "waited for", "memory"]
    return f"<p>{escape(library)}; since the run's last start.</p>\n{table(header, rows)}"


def deaths_table(events: Sequence[Event]) -> str:
    """The deaths of ranks, and the number of ranks after each; empty if no rank died."""
    deaths = [event for event in events if event["event"] == "death"]
    rows = [[d["step"], ", ".join(d["lost"]), d["ranks"], f"{d['seconds']:.2f} s"] for d in deaths]
    return table(["after step", "died", "ranks left", "recovery"], rows) if rows else ""


def times_of(rank: Table) -> list[str]:
    """The cells of a rank: its time per phase, the time that others waited for it, and its peak memory.

    Raises:
        FieldError: a value is missing or not a number.
    """
    seconds = rank.table("seconds")
    times = [*(seconds.number(phase) for phase in PHASES), rank.number("waited_for")]
    return [*(f"{time:.1f} s" for time in times), f"{rank.number('peak_memory_mb'):.0f} MB"]


def layers_table(checkpoint: Checkpoint) -> str:
    """A table of the network's layers, their output shapes and their numbers of learned parameters."""
    network = checkpoint.network()
    rows = [
        [name, " x ".join(map(str, shape)), f"{layer.learned:,}"]
        for name, layer, shape in zip(network.names, network.layers, network.shapes, strict=True)
    ]
    return table(["layer", "output", "parameters"], rows, names=1)
