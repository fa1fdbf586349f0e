"""Several labels per sample, and values: prepared, trained on any ranks through deaths and a resume, evaluated."""

import json
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command, training
from conftest import MNIST, ROOT, Job, run
from metrics import events, timeless
from sources import edit_manifest

from dpcnn.data.dataset import load
from dpcnn.data.shards import read_manifest
from dpcnn.nn.losses import LOSSES as LOSS_TABLE
from dpcnn.nn.losses import CrossEntropy
from dpcnn.nn.metrics import METRICS, Metric
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

SIZES = {"train": 130, "test": 40}
LOSSES = {
    "classes": [["--loss", "cross-entropy", "--class-weights", "1,2,0.5"]],
    "multilabel": [["--loss", "sigmoid-cross-entropy", "--monitor", "f1"]],
    "values": [["--loss", "squared-error"], ["--loss", "huber", "--delta", "0.2", "--monitor", "r2"]],
}
CASES = [(targets, flags) for targets, each in LOSSES.items() for flags in each]


def quadrants(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) with three bright corners or not; how bright each is, from 0 to 1."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(0, 2, (samples, 3)) * rng.uniform(0.5, 1, (samples, 3))
    images = rng.integers(0, 30, (samples, 8, 8)).astype(float)
    for corner, (row, column) in enumerate([(0, 0), (0, 4), (4, 0)]):
        images[:, row : row + 4, column : column + 4] += 200 * bright[:, corner, None, None]
    return images.astype(np.uint8), bright


def labels_of(bright: np.ndarray, targets: str) -> np.ndarray:
    if targets == "classes":
        return bright.argmax(axis=1)
    return (bright > 0).astype(np.int64) if targets == "multilabel" else bright


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for targets in LOSSES:
        arrays = {}
        for seed, (split, samples) in enumerate(SIZES.items()):
            arrays[f"x_{split}"], bright = quadrants(samples, seed)
            arrays[f"y_{split}"] = labels_of(bright, targets)
        np.savez(folder / f"{targets}.npz", **arrays)
    return {targets: folder / f"{targets}.npz" for targets in LOSSES}


def prepared(source: Path, out: Path, targets: str, *flags: str) -> Path:
    result = command("data", "prepare", source, "--out", out, "--shards", "2", "--targets", targets, *flags, ranks=2)
    assert result.status == 0, result.err
    return out


@pytest.fixture(scope="module")
def sets(sources, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {targets: prepared(source, folder / targets, targets) for targets, source in sources.items()}


QUICK = [
    "--model", "mlp", "--validation", "30", "--epochs", "3", "--batch", "40", "--microbatch", "8", "--lr", "0.01",
    "--warmup", "0", "--dropout", "0.1", "--test",
]  # fmt: skip


@pytest.mark.parametrize("layout", [[], ["--contiguous"]], ids=str)
@pytest.mark.parametrize("targets", LOSSES)
def test_labels_come_back(sources, targets, layout, tmp_path):
    folder = prepared(sources[targets], tmp_path / "set", targets, *layout)
    samples = load(folder, "test", SerialComm())
    expected = labels_of(quadrants(SIZES["test"], 1)[1], targets)
    images, labels = samples.take(np.arange(40)[::-1])
    np.testing.assert_array_equal(labels, expected[::-1].astype(samples.manifest.labels_type))
    np.testing.assert_array_equal(images[..., 0], quadrants(40, 1)[0][::-1])
    assert (samples.manifest.targets, samples.manifest.classes) == (targets, 3)
    result = command("data", "info", folder, ranks=2)
    assert result.status == 0 and f"every shard verified; data {samples.manifest.checksum}" in result.out
    counts = np.bincount(expected) if targets == "classes" else (expected != 0).sum(axis=0)
    rows = re.findall(r"^ *(\w+) +\d+ +(\d+)$", result.out, re.MULTILINE)
    assert [int(count) for _, count in rows] == [*counts, 40, 1], result.out


def test_values_without_columns_have_one(sources, tmp_path):
    with np.load(sources["values"]) as arrays:
        np.savez(tmp_path / "one.npz", **{key: a[:, 0] if key[0] == "y" else a for key, a in arrays.items()})
    samples = load(prepared(tmp_path / "one.npz", tmp_path / "set", "values"), "train", SerialComm())
    assert samples.labels.shape == (130, 1) and samples.labels.dtype == np.float32


@pytest.mark.parametrize(("targets", "flags"), CASES, ids=str)
def test_the_same_bits_on_any_ranks_through_deaths_and_a_resume(sets, targets, flags, tmp_path):
    def trained(name, *words, **how):
        result = command(
            "train", "--no-curves", "--stall-timeout", "0", *words, "--out", tmp_path / name, **how
        )  # fmt: skip
        assert result.status == 0, result.err
        return [event for event in timeless(tmp_path / name) if event["event"] != "death"]

    whole = ["--data", sets[targets], *QUICK, *flags]
    alone = trained("1", *whole)
    assert trained("2", *whole, ranks=2) == alone
    assert trained("death", *whole, ranks=3, dying={0: 90, 2: 150}) == alone
    assert "death" in {event["event"] for event in events(tmp_path / "death")}
    trained("cut", *whole, "--max-steps", "4", ranks=2)
    assert trained("cut", "--resume", "--max-steps", "0", "--test", ranks=3) == alone
    first, *_, last = (event for event in alone if event["event"] == "epoch")
    assert last["validation_loss"] < first["validation_loss"]
    if "class" in targets:
        assert last["validation_accuracy"] > 0.5
    assert ("train_accuracy" in last) == (targets != "values")


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for targets, (flags, *_) in LOSSES.items():
        result = training("--data", sets[targets], *QUICK, *flags, "--out", folder / targets)
        assert result.status == 0, result.err
        (folder / f"{targets}.out").write_text(result.out)
    return {targets: folder / targets for targets in LOSSES}


def epochs_of(folder: Path) -> list[dict]:
    return [event for event in events(folder) if event["event"] == "epoch"]


def test_what_a_regression_prints_has_no_accuracy(runs):
    lines = (runs["values"].parent / "values.out").read_text().splitlines()
    *_, last = epochs = epochs_of(runs["values"])
    best = min(epochs, key=lambda event: event["validation_loss"])
    (epoch,) = (line for line in lines if line.startswith("epoch 3/3: "))
    assert not any("accuracy" in line for line in lines)
    assert f"validation mae {last['validation_mae']:.4f}, r2 {last['validation_r2']:.4f}, loss " in epoch
    assert f"; training loss {last['train_loss']:.4f}; " in epoch
    header = next(line for line in lines if line.startswith("epoch  step"))
    assert re.split("  +", header.strip())[3:8] == ["train loss", "valid. loss", "mae", "r2", "test loss"]
    assert f"validation mae {last['validation_mae']:.4f}, validation r2 " in lines[-1]
    assert f"(best loss {best['validation_loss']:.4f}, epoch {best['epoch']})" in lines[-1]
    assert "100 images to train, 30 to validate, drawn by seed" in lines[0]


def test_the_table_of_epochs_has_the_metric_that_is_monitored(runs):
    lines = (runs["multilabel"].parent / "multilabel.out").read_text().splitlines()
    header = next(line for line in lines if line.startswith("epoch  step"))
    assert re.split("  +", header.strip())[3:8] == ["train loss", "accuracy", "valid. loss", "accuracy", "f1"]


@pytest.mark.parametrize("targets", LOSSES)
def test_evaluate_finds_the_metrics_of_the_run_on_any_ranks(runs, targets):
    last, epoch = runs[targets] / "checkpoints" / "last.h5", epochs_of(runs[targets])[-1]
    found = [json.loads(command("evaluate", last, "--json", ranks=ranks).out) for ranks in (1, 3)]
    for result in found:
        result.pop("seconds")
        assert result == found[0]
    told = {key.removeprefix("test_"): value for key, value in epoch.items() if key.startswith("test_")}
    assert found[0]["step"] == epoch["step"] and found[0].items() >= told.items()
    result = command("evaluate", last, "--classes")
    text = result.out
    assert all(f"{name} {value:.4f}" in text for name, value in told.items() if name != "top5")  # of three classes
    assert ("precision  recall" in text) == (targets != "values")
    assert ("--classes: has no effect" in result.err) == (targets == "values")


def test_scores_of_each_label(runs):
    found = json.loads(command("evaluate", runs["multilabel"], "--json").out)
    truth = labels_of(quadrants(40, 1)[1], "multilabel")
    assert [each["samples"] for each in found["classes"]] == truth.sum(axis=0).tolist()
    assert found["recall"] == pytest.approx(np.mean([each["recall"] for each in found["classes"]]))
    result = command("evaluate", runs["multilabel"], "--plots", runs["multilabel"])
    assert result.status == 2 and "--plots: there is no picture of several labels" in result.errors[0]
    assert not result.out, "it evaluates nothing in vain"


@pytest.mark.parametrize("targets", ["values", pytest.param("multilabel", marks=pytest.mark.slow)])
def test_report_and_plot(runs, targets, tmp_path):
    pytest.importorskip("matplotlib")
    assert command("report", runs[targets], "--out", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text()
    results = json.loads(command("evaluate", runs[targets], "--json").out)
    for name in ("r2", "mae") if targets == "values" else ("f1", "accuracy"):
        assert f"{name}</th><td>{results[name]:.6f}" in page
    assert "Confusion matrix" not in page and ("Predicted values" in page) == (targets == "values")
    assert ("accuracy" in re.sub("<h2>.*?</h2>|<img[^>]*>", "", page)) == (targets != "values")
    assert command("plot", runs[targets], "--out", tmp_path).out.startswith("curves drawn: ")


def test_the_picture_of_predicted_values(runs, tmp_path):
    pytest.importorskip("matplotlib")
    result = command("evaluate", runs["values"], "--plots", tmp_path)
    assert f"predicted values drawn: {tmp_path / 'values.png'} and " in result.out
    assert (tmp_path / "values.png").read_bytes().startswith(b"\x89PNG")


def test_predictions(runs, tmp_path):
    images, _ = quadrants(5, 9)
    np.savez(tmp_path / "five.npz", images)

    def predict(targets, *flags):
        result = command("predict", runs[targets], tmp_path / "five.npz", *flags)
        assert result.status == 0, result.err
        return result.out.splitlines()

    values = [json.loads(line) for line in predict("values", "--json")]
    checkpoint = read(runs["values"] / "checkpoints" / "best.h5")
    network = checkpoint.network()
    expected = network.logits(network.flat(checkpoint.parameters), images[..., None])
    np.testing.assert_array_equal(np.array([list(each["values"].values()) for each in values], np.float32), expected)
    header, first, *_ = predict("values", "--csv")
    numbers = values[0]["values"].values()
    assert header == "file,image,y(0),y(1),y(2)" and first.endswith(",".join(f"{v:.6g}" for v in numbers))
    assert predict("values")[0].endswith(": " + ", ".join(f"{v:.6g}" for v in numbers))
    labels = [json.loads(line) for line in predict("multilabel", "--json")]
    assert all(each["names"] == [name for name, p in each["probabilities"].items() if p > 0.5] for each in labels)
    assert all(each["names"] == [str(label) for label in each["labels"]] for each in labels)
    assert predict("multilabel", "--csv")[0] == "file,image,p(0),p(1),p(2)"


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [
        ("classes", np.ones((130, 3)), "labels (130, 3): expected one-hot rows, with a single 1 and zeros; "
         "otherwise give --targets multilabel or values"),
        ("classes", np.full(130, 0.5), "expected labels of whole numbers or text, not float64 (130,); give "
         "--targets values"),
        ("multilabel", np.full((130, 2), 2), "the labels of sample 0 are [2, 2]: expected zeros and ones"),
        ("multilabel", np.ones(130, int), "labels int64 (130,): expected numbers (n, K), K from 1 to 256"),
        ("values", np.full((130, 300), 0.5), "labels float64 (130, 300): expected numbers (n, K), K from 1 to 256"),
        ("values", np.zeros((130, 5, 4)), "labels float64 (130, 5, 4): expected numbers (n, K), K from 1 to 256; "
         "give a row for each image: labels.reshape(len(labels), -1)"),
        ("values", np.array([0.5] * 129 + [np.nan]), "the labels of sample 129 are [nan]: expected finite numbers"),
        ("values", np.array([0.5] * 129 + [1e39]), "the labels of sample 129 are [1e+39]: expected finite numbers"),
        ("values", np.zeros((130, 2)), "the training and test labels have another number of columns"),
        ("values", np.zeros(129), "images (130, 8, 8, 1) and labels (129,) do not match"),
    ],
)  # fmt: skip
def test_labels_of_another_kind_are_refused(sources, targets, labels, message, tmp_path):
    with np.load(sources[targets]) as arrays:
        np.savez(tmp_path / "wrong.npz", **{**arrays, "y_train": labels})
    words = ["prepare", tmp_path / "wrong.npz", "--out", tmp_path / "set", "--targets", targets]
    result = command("data", *words)
    assert result.status == 2 and f"{tmp_path / 'wrong.npz'}: {message}" in result.errors[0]
    assert not (tmp_path / "set").exists()


def test_pictures_have_classes(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"not read")
    words = ["--size", "8x8", "--targets", "values"]
    result = command("data", "prepare", tmp_path / "photos", "--out", tmp_path / "set", *words)
    assert (
        result.status == 2 and "--targets: a picture has one class; for several labels or values, write" in result.err
    )


@pytest.mark.parametrize("targets", ["values", "multilabel"])
def test_test_samples_are_drawn_and_the_columns_have_names(sources, targets, tmp_path):
    with np.load(sources[targets]) as arrays:
        np.savez(tmp_path / "one.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
        pairs = {image.tobytes(): label for image, label in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    words = ["prepare", tmp_path / "one.npz", "--targets", targets, "--test", "30"]
    result = command("data", *words, "--out", tmp_path / "set", "--names", "left,right,top")
    assert result.status == 0, result.err
    sets = {split: load(tmp_path / "set", split, SerialComm()) for split in ("train", "test")}
    assert [len(samples.labels) for samples in sets.values()] == [len(pairs) - 30, 30]
    assert sets["test"].manifest.class_names == ("left", "right", "top")
    for samples in sets.values():
        images, labels = samples.take(np.arange(len(samples.labels)))
        stored = [pairs[image.tobytes()] for image in images[..., 0]]
        np.testing.assert_array_equal(labels, np.array(stored, labels.dtype))
    result = command("data", *words, "--out", tmp_path / "two", "--names", "left,right")
    assert result.status == 2 and "--names: 2 names for the 3 columns of labels; give 3 names" in result.errors[0]


def rewrite(folder: Path, labels) -> None:
    """Replace the labels of a shard, and its sha256 in the manifest, as an attacker could."""
    import hashlib

    path = folder / "test-00.h5"
    with h5py.File(path, "a") as file:
        del file["labels"]
        file.create_dataset("labels", data=labels)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(folder, lambda manifest: manifest["splits"]["test"][0].update(sha256=sha256))


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [
        ("values", np.full((40, 3), np.inf, np.float32), "sample 0 has label inf, but values must be finite"),
        ("values", np.zeros((40, 3)), "labels are float64 (40, 3), but manifest.json says float32 (40, 3)"),
        ("values", np.zeros((40, 3), ">f4"), "labels are >f4 (40, 3), but manifest.json says float32 (40, 3)"),
        ("values", np.zeros((40, 3), np.uint8), "labels are uint8 (40, 3), but manifest.json says float32 (40, 3)"),
        ("multilabel", np.full((40, 3), 2, np.uint8), "sample 0 has label 2, but labels are 0 or 1"),
        ("multilabel", np.zeros(40, np.uint8), "labels are uint8 (40,), but manifest.json says uint8 (40, 3)"),
    ],
)
def test_a_shard_with_other_labels_is_refused(sets, targets, labels, message, tmp_path):
    shutil.copytree(sets[targets], tmp_path / "set")
    rewrite(tmp_path / "set", labels)
    result = command("data", "info", tmp_path / "set")
    assert result.status == 2 and message in result.errors[0], result.err


def test_a_manifest_with_unknown_targets_is_refused_and_one_without_has_classes(sets, tmp_path):
    shutil.copytree(sets["classes"], tmp_path / "set")
    known = read_manifest(tmp_path / "set")
    edit_manifest(tmp_path / "set", lambda manifest: manifest.pop("targets"))
    assert read_manifest(tmp_path / "set") == known
    edit_manifest(tmp_path / "set", lambda manifest: manifest.update(targets="boxes"))
    result = command("data", "info", tmp_path / "set")
    assert result.status == 2 and "targets: expected one of classes, multilabel, values, not 'boxes'" in result.err


def test_a_loss_for_other_targets_is_refused(sets, runs, tmp_path):
    for flags, message in (
        (["--data", sets["values"]], "this loss is for one class per sample, but the data set values has values; "
         "give another data set, or train with --loss squared-error or huber"),
        (["--data", sets["classes"], "--class-weights", "1,2"], "--class-weights: expected 3 weights, one for each"),
    ):  # fmt: skip
        result = training(*flags, "--out", tmp_path / "run", ranks=2)
        assert result.status == 2 and message in result.errors[0]
    result = command("evaluate", runs["values"], "--data", sets["multilabel"])
    assert result.status == 2 and "this loss is for values, but the data set multilabel has several" in result.err


PLATEAU = [
    "--schedule", "plateau", "--plateau-patience", "1", "--gamma", "0.1", "--epochs", "9", "--monitor", "mae",
    "--loss", "huber",
]  # fmt: skip


def test_a_plateau_lowers_the_rate_the_same_way_on_any_ranks_and_through_a_resume(sets, tmp_path):
    """With this rate the network gets worse, or no better, until the rate has fallen."""

    def trained(name, *words, **how):
        command("train", "--no-curves", "--stall-timeout", "0", *words, "--out", tmp_path / name, **how)
        return [event for event in timeless(tmp_path / name) if event["event"] != "death"]

    whole = ["--data", sets["values"], *QUICK, *PLATEAU, "--lr", "0.3"]
    alone = trained("1", *whole)
    rates = [event["learning_rate"] for event in alone if event["event"] == "epoch"]
    assert rates[0] == 0.3 and len(rates) == 9 and rates[-1] < 0.1 and sorted(rates, reverse=True) == rates
    assert trained("death", *whole, ranks=3, dying={1: 300}) == alone
    trained("cut", *whole, "--max-steps", "17", ranks=3)
    refused = training("--resume", "--max-steps", "0", "--monitor", "loss", "--out", tmp_path / "cut")
    assert refused.status == 2 and "as the schedule plateau depends on it" in refused.errors[0]
    assert trained("cut", "--resume", "--max-steps", "0", "--test", ranks=2) == alone


def test_patience_and_the_best_epoch_follow_the_monitored_metric(sets, tmp_path):
    flags = ["--data", sets["values"], *QUICK, "--loss", "huber", "--monitor", "r2", "--patience", "2"]
    result = training(*flags, "--epochs", "30", "--lr", "0.3", "--schedule", "constant", "--out", tmp_path / "run")
    assert result.status == 0, result.err
    epochs = epochs_of(tmp_path / "run")
    best = max(epochs, key=lambda event: (event["validation_r2"], -event["validation_loss"]))
    assert len(epochs) == best["epoch"] + 2 < 30
    assert "no better validation r2 in 2 epochs" in result.out
    pointed = (tmp_path / "run" / "checkpoints" / "best.h5").resolve().name
    assert pointed == f"step-{best['step']:08d}.h5"
    assert events(tmp_path / "run")[-1]["best_validation_r2"] == best["validation_r2"]


def test_a_metric_of_the_user_s_own(sets, monkeypatch, tmp_path):
    """Entered in the tables, it is recorded, monitored, and read again."""

    class Own(CrossEntropy):
        metrics = (*CrossEntropy.metrics, "errors_squared")

    monkeypatch.setitem(LOSS_TABLE, "own", Own)
    metric = Metric(lambda answers: float((~answers.correct).sum()) ** 2, higher=False, most=1e9)
    monkeypatch.setitem(METRICS, "errors_squared", metric)
    flags = ["--data", sets["classes"], *QUICK, "--loss", "own", "--monitor", "errors_squared"]
    assert training(*flags, "--max-steps", "4", "--out", tmp_path / "run", ranks=2).status == 0
    result = training("--resume", "--max-steps", "0", "--out", tmp_path / "run")
    assert result.status == 0, result.err
    last, end = epochs_of(tmp_path / "run")[-1], events(tmp_path / "run")[-1]
    assert last["validation_errors_squared"] == round(30 * (1 - last["validation_accuracy"])) ** 2
    assert end["best_validation_errors_squared"] == min(
        event["validation_errors_squared"] for event in epochs_of(tmp_path / "run")
    )
    assert "errors_squared" in result.out


@pytest.mark.slow
@pytest.mark.parametrize(("targets", "flags"), CASES, ids=str)
def test_the_same_bits_under_mpirun(sets, targets, flags, tmp_path):
    words = ["-m", "dpcnn.train", "--no-curves", "--data", sets[targets], *QUICK, *flags, "--out"]
    for ranks in (1, 3):
        result = run(ranks, *words, tmp_path / str(ranks))
        assert result.status == 0, result.err
    assert timeless(tmp_path / "1") == timeless(tmp_path / "3")


@pytest.mark.slow
def test_the_session_of_the_page_on_losses(tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    page = (ROOT / "docs" / "losses.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist").symlink_to(MNIST)
    assert "np.arange(len(samples))" in script
    (tmp_path / "angles.py").write_text(script.replace("len(samples)", "10_000"))  # of 60,000, to save time
    quick = commands.replace("dpcnn train", "dpcnn train --no-curves --max-steps 100")
    done = Job(["bash", "-euc", f"{sys.executable} angles.py\n{quick}"], cwd=tmp_path).wait()
    assert done.status == 0, done.err
    sentence, others = done.out.splitlines()[-2:]
    assert "(step 100) on the test samples of angles: 10000 samples, loss 0.0" in sentence
    assert 0 < float(re.fullmatch(r"mae (\d\.\d+), r2 -?\d\.\d+", others)[1]) < 0.5
