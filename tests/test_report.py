"""The page of a run: whole, in one file, and what it says is so."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
from commands import command, training

from dpcnn.data.dataset import load
from dpcnn.data.file_names import write_names
from dpcnn.data.shards import read_manifest
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.page import deaths_table
from dpcnn.runs.checkpoint import read
from dpcnn.runs.events import epoch_rows

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


class Page(HTMLParser):
    """Collects what a page says, what it shows, and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.sources = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


def test_the_page_of_a_run(quick, tmp_path):
    folder = tmp_path / "a <run>"
    assert training(*quick, "--test", "--model", "small-cnn", "--out", folder, ranks=2).status == 0
    result = command("report", folder, "--out", folder / "config.toml", ranks=2)
    assert result.status == 2 and f"--out: {folder / 'config.toml'}: exists, and this command did" in result.errors[0]
    result = command("report", folder, ranks=2)
    assert result.status == 0 and result.out.startswith(f"{folder / 'report.html'}: "), result.err
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Where the network finds the predicted class" not in page.words  # there is no global average pooling
    assert len(page.sources) == 7 and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    end, epoch = (json.loads(line) for line in reversed((folder / "metrics.jsonl").read_text().splitlines()[-2:]))
    assert end["event"] == "end" and "a <run>" in page.words
    best = read(folder / "checkpoints" / "best.h5")
    (shown,) = [event for event in best.progress.epoch_events if event["step"] == best.progress.step]
    assert best.weights_sha256 in page.words and any(word.startswith("best.h5: after ") for word in page.words)
    assert any(word.startswith(f"{shown['test_accuracy']:.4f}: ") for word in page.words)
    assert f"{epoch['validation_loss']:.4f}" in page.words and "16" in page.words  # microbatch
    assert "2 epochs, 14 steps" in text and "is not complete" not in text
    assert re.search(
        r"since the run's last start.*<th>waited for</th><th>memory</th></tr>\n<tr><td>0</td>",
        text,
        re.S,
    )


@pytest.mark.parametrize("staged", [False, True])
def test_the_files_of_the_worst_mistakes_are_named(small, quick, tmp_path, staged):
    folder, data = tmp_path / "run", tmp_path / "set"
    shutil.copytree(small, data)
    flags = ["--data", data, "--stage", tmp_path / "scratch"] if staged else []
    assert training(*quick, *flags, "--model", "mlp", "--max-steps", "3", "--out", folder).status == 0
    manifest, number = read_manifest(data), 0
    for shard in manifest.splits["test"]:
        write_names(data / shard.file, [f"<{n}>.jpg" for n in range(number, number + shard.samples)])
        number += shard.samples
    result = command("report", folder, *([] if staged else ["--data", data]), "--out", tmp_path / "page.html", ranks=2)
    assert result.status == 0, result.err
    words = Page((tmp_path / "page.html").read_text(encoding="utf-8")).words
    start = words.index("file, in the order of the images") + 3
    labels = load(data, "test", SerialComm()).labels
    for file, label, predicted in zip(*(words[start + n : start + 72 : 3] for n in range(3)), strict=True):
        assert int(label) == labels[int(file[1:-5])] != int(predicted)


def test_deaths_of_ranks_are_listed():
    death = {"event": "death", "step": 120, "lost": ["rank 2 on a<b"], "ranks": 3, "seconds": 0.034}
    page = Page(deaths_table([{"event": "step"}, death]))
    assert page.words[-4:] == ["120", "rank 2 on a<b", "3", "0.03 s"]
    assert deaths_table([]) == ""


def test_an_epoch_that_was_not_evaluated_has_empty_cells():
    event = {"epoch": 1, "step": 7, "learning_rate": 0.1, "train_loss": 2, "train_accuracy": 0.5, "seconds": 1}
    event |= {"images_per_second": 600}
    later = event | {"epoch": 2, "step": 14, "test_loss": 1.5, "test_accuracy": 0.75}
    header, rows = epoch_rows([event, later])
    assert header == ["epoch", "step", "rate", "train loss", "accuracy", "test loss", "accuracy", "seconds", "images/s"]
    assert rows == [
        ["1", "7", "0.1", "2.0000", "0.5000", "", "", "1.0", "600"],
        ["2", "14", "0.1", "2.0000", "0.5000", "1.5000", "0.7500", "1.0", "600"],
    ]


def test_a_run_that_is_not_at_its_end(quick, tmp_path):
    folder = tmp_path / "run"
    assert training(*quick, "--model", "mlp", "--max-steps", "3", "--out", folder).status == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (folder / "times.json").unlink()
    result = command("report", folder, "--out", tmp_path / "page.html")
    assert result.status == 0, result.err
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "is not complete" in " ".join(page.words) and "Time and memory of each rank" not in page.words


@pytest.mark.parametrize("words", ["report", "data show mnist"])
def test_without_matplotlib_a_page_is_refused_in_one_line(words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # its import fails
    (tmp_path / "metrics.jsonl").touch()
    result = command(*words.split(), *([tmp_path] if words == "report" else []))
    assert result.status == 2 and result.err == (
        "dpcnn: error: a report needs pictures: matplotlib is not installed; pip install 'dpcnn[plot]'\n"
    )


def test_mistakes(tmp_path):
    result = command("report", tmp_path, ranks=2)
    assert result.status == 2
    assert result.errors == [f"dpcnn: error: {tmp_path}: not a run's folder: it has no metrics.jsonl"]
