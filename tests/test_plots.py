"""The picture of a run, of runs beside each other, and of the shortest run there is."""

import json

import pytest

from dpcnn.reporting.figures import draw_curves


def write_run(folder, epochs: int, steps: int):
    folder.mkdir()
    step = {"event": "step", "epoch": 1, "accuracy": 0.5, "learning_rate": 0.1}
    events = [step | {"step": s + 1, "loss": 2.0 / (s + 1)} for s in range(steps)]
    times = {"learning_rate": 0.1, "seconds": 1.0, "images_per_second": 10.0}
    for epoch in range(1, epochs + 1):
        losses = {"train_loss": 1 / epoch, "validation_loss": 1.1 / epoch}
        accuracies = {"train_accuracy": 1 - 0.1 / epoch, "validation_accuracy": 1 - 0.2 / epoch}
        events.append({"event": "epoch", "epoch": epoch, "step": 10 * epoch, **losses, **accuracies, **times})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (1, 3), (5, 40)])
def test_a_picture_of_any_run(epochs, steps, tmp_path):
    run = write_run(tmp_path / "run", epochs, steps)
    line = draw_curves([run], tmp_path / "curves")
    assert line == f"curves drawn: {tmp_path / 'curves.png'} and {tmp_path / 'curves.svg'}"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<path" in (tmp_path / "curves.svg").read_text()


def test_runs_beside_each_other(tmp_path):
    runs = [write_run(tmp_path / name, 3, 30) for name in ("one", "two")]
    draw_curves(runs, tmp_path / "both")
    draw_curves(runs[:1], tmp_path / "single")
    assert (tmp_path / "both.svg").stat().st_size > (tmp_path / "single.svg").stat().st_size
