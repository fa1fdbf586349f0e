"""Models from Python: arrays and data sets, any ranks, files, parameters, callbacks, mistakes."""

import json
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from commands import command, training
from conftest import run
from metrics import events
from sources import synthetic
from threads import run_ranks

import dpcnn
from dpcnn.base import numerics, startup
from dpcnn.errors import CheckpointError, ConfigError, DataError
from dpcnn.estimators import session
from dpcnn.estimators.arrays import images_of
from dpcnn.nn.activations import ReLU
from dpcnn.nn.models import KINDS
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.events import MEASURED

X, Y = synthetic(200, 1)
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def small_model(**options) -> dpcnn.Classifier:
    return dpcnn.Classifier(
        "fast", **{"model": "mlp", "epochs": 2, "warmup": 0, "batch": 30, "microbatch": 8, "verbose": False} | options
    )


@pytest.fixture(scope="module")
def fitted():
    return small_model(verbose=True).fit(X, NAMES[Y], validation=0.1)


def on_threads(nodes, function, dying=None):
    """What ``function`` returns on each rank, with threads as ranks."""
    rank = threading.local()

    def one(comm):
        rank.comm = comm
        return function()

    with mock.patch.object(session, "ranks", lambda: rank.comm):
        return run_ranks(nodes, one, dying)


def test_a_model_learns_and_answers(fitted):
    assert fitted.classes_.tolist() == sorted(NAMES) and fitted.n_features_in_ == 144
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (200, 10) and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    predicted = fitted.predict(X)
    np.testing.assert_array_equal(predicted, fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.score(X, NAMES[Y]) == np.mean(predicted == NAMES[Y]) > 0.7
    assert [row["epoch"] for row in fitted.history] == [1, 2]
    assert {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy"} <= set(fitted.history[0])


def test_the_weights_are_those_of_the_command(small, npz, tmp_path):
    """A data set's folder, the same samples as arrays, and ``dpcnn train``, which writes files."""
    flags = {"epochs": 2, "batch": 90, "microbatch": 16, "lr": 0.003, "warmup": 0}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    result = training("--recipe", "fast", "--data", small, *words, "--test", "--out", tmp_path / "run")
    assert result.status == 0, result.err
    model = dpcnn.Classifier("fast", **flags, test=True, verbose=False).fit(small)
    end, last = events(tmp_path / "run")[-1], events(tmp_path / "run")[-2]
    assert model.weights_sha256 == end["weights_sha256"]
    assert model.score(small) == model.history[-1]["test_accuracy"] == last["test_accuracy"]
    with np.load(npz) as arrays:
        again = dpcnn.Classifier("fast", **flags, verbose=False)
        again.fit(arrays["x_train"], arrays["y_train"], validation=0.1)
        assert again.weights_sha256 == model.weights_sha256
        assert again.score(arrays["x_test"], arrays["y_test"]) == model.score(small)
    np.testing.assert_array_equal(again.predict(small), model.predict(small))


@pytest.mark.parametrize("nodes", [[2], [3], [1, 2]], ids=str)
def test_ranks_change_nothing(fitted, nodes):
    def one():
        seen = []
        model = small_model().fit(X, NAMES[Y], validation=0.1, on_step=seen.append, on_epoch=seen.append)
        timeless = [{k: v for k, v in figures.items() if k not in MEASURED} for figures in seen]
        return model.weights_sha256, json.dumps(timeless), model.predict_proba(X).tobytes(), model.score(X, NAMES[Y])

    results = set(on_threads(nodes, one))
    assert len(results) == 1
    weights, seen, probabilities, score = results.pop()
    assert weights == fitted.weights_sha256 and probabilities == fitted.predict_proba(X).tobytes()
    assert score == fitted.score(X, NAMES[Y]) and json.loads(seen)[-1]["epoch"] == 2


def test_the_same_under_mpirun_whatever_was_loaded_first(tmp_path):
    """Alone and on 3 ranks: a cell run twice, a file, and NumPy before dpcnn, with more threads than one."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport dpcnn\n"
        "y = np.arange(90) % 3\nX = np.random.default_rng(0).integers(0, 80, (90, 12, 12)) + 80 * y[:, None, None]\n"
        "for _ in range(2):\n"
        "    model = dpcnn.Classifier('fast', epochs=1, batch=30, microbatch=15, warmup=0, verbose=False)\n"
        "    model.fit(X, y, validation=0.1)\n"
        "    model.save('net.h5')\n"
        "    again = dpcnn.load('net.h5')\n"
        "    assert (again.predict(X) == model.predict(X)).all() and again.classes_.tolist() == [0, 1, 2]\n"
        "    print(model.weights_sha256)\n"
    )
    results = [run(ranks, script, cwd=tmp_path) for ranks in (0, 3)]
    assert all(result.status == 0 for result in results), results
    alone, together = (result.out.split() for result in results)
    assert len(set(alone)) == 1 and together == alone[:1] * 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("if ranks().rank == 1: raise ValueError('mine')", "ValueError: mine"),
        pytest.param("model.fit(X, y[1:])", "DataError: y: expected labels (90,)", marks=pytest.mark.slow),
        pytest.param(
            "model.fit(X, y + ranks().rank)", "DataError: rank 1 was given other arrays", marks=pytest.mark.slow
        ),
    ],
)
def test_an_error_ends_the_whole_job(tmp_path, line, message):
    script = tmp_path / "script.py"
    script.write_text(
        "import dpcnn\nimport numpy as np\nfrom dpcnn.estimators.session import ranks\n"
        "y = np.arange(90) % 3\nX = np.zeros((90, 12, 12))\n"
        "model = dpcnn.Classifier('fast', epochs=1, batch=30, verbose=False).fit(X, y)\n"
        f"{line}\nmodel.predict(X)\n"
    )
    result = run(2, script)
    assert result.status == 1 and result.err.count(message) == 1, result.err


@pytest.mark.slow
def test_a_script_survives_deaths_under_ulfm(fitted, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\nimport dpcnn\nfrom dpcnn.estimators.session import ranks\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from sources import synthetic\n"
        "X, y = synthetic(200, 1)\n"
        "def die(figures):\n"
        "    if ranks().members[ranks().rank] == int(sys.argv[1]) and figures['step'] == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "model = dpcnn.Classifier('fast', model='mlp', epochs=2, warmup=0, batch=30, microbatch=8)\n"
        f"model.fit(X, y.astype(str), validation=0.1, on_step=die)\n"
        "print(ranks().size, model.weights_sha256, model.score(X, y.astype(str)))\n"
        "model.fit(X, y.astype(str), validation=0.1)\n"
        "print(ranks().size, model.weights_sha256, model.score(X, y.astype(str)))\n"
    )
    alone = small_model().fit(X, Y.astype(str), validation=0.1)
    for rank in ("0", "1"):
        result = run(3, script, rank, flags=["--with-ft", "ulfm"])
        last = f"2 {alone.weights_sha256} {alone.score(X, Y.astype(str))}"
        assert result.out.count(last) == 4, result.out + result.err
        assert len([line for line in result.out.splitlines() if "died after step 4" in line]) == 1


@pytest.mark.parametrize("operation", range(20, 140, 17))
def test_ranks_that_live_finish_the_model(fitted, operation):
    def one():
        model = small_model().fit(X, NAMES[Y], validation=0.1)
        return model.weights_sha256, model.predict_proba(X).tobytes()

    results = on_threads([3], one, dying={operation % 3: operation})
    assert [result for result in results if result] == [(fitted.weights_sha256, fitted.predict_proba(X).tobytes())] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": lambda rank: X + rank}, "rank 1 was given other arrays or options than rank 0"),
        ({"y": lambda rank: Y + rank}, "rank 1 was given other arrays or options than rank 0"),
        ({"lr": lambda rank: 0.1 + rank}, "rank 1 was given other arrays or options than rank 0"),
        ({"y": lambda rank: Y[rank:]}, r"y: expected labels \(200,\)"),
    ],
)
def test_all_ranks_must_be_given_the_same(change, message):
    def one():
        given = {name: value(session.ranks().rank) for name, value in change.items()}
        model = small_model(**{name: value for name, value in given.items() if name == "lr"})
        model.fit(given.get("X", X), given.get("y", Y))

    with pytest.raises(DataError, match=message):
        on_threads([2], one)


def test_all_ranks_must_ask_about_the_same_images(fitted):
    with pytest.raises(DataError, match="rank 1 was given other arrays"):
        on_threads([2], lambda: fitted.predict(X + session.ranks().rank))


def test_a_file_keeps_the_model_and_commands_read_it(fitted, small, tmp_path):
    fitted.save(tmp_path / "net.h5")
    fitted.save(tmp_path / "net.h5")  # a cell may be run twice
    model = dpcnn.load(tmp_path / "net.h5")
    np.testing.assert_array_equal(model.predict(X), fitted.predict(X))
    assert model.classes_.tolist() == fitted.classes_.tolist() and model.history == fitted.history
    assert model.set_params(verbose=False).fit(X, NAMES[Y], validation=0.1).weights_sha256 == fitted.weights_sha256
    result = command("evaluate", tmp_path / "net.h5", "--data", small)
    assert result.status == 0, result.err
    assert "trained on arrays from Python, or on a data set" in command("evaluate", tmp_path / "net.h5").errors[0]
    with pytest.raises(CheckpointError, match="nowhere: No such file or directory; give the checkpoint another folder"):
        fitted.save(tmp_path / "nowhere" / "net.h5")
    with pytest.raises(CheckpointError, match="give a checkpoint's path"):
        dpcnn.load(tmp_path / "other.h5")


def test_whole_numbers_and_the_value_of_white_are_kept_too(tmp_path):
    model = small_model(max_value=16, epochs=1).fit(X / 15.9, Y.astype(np.int64) * 5 - 7)
    model.save(tmp_path / "net.h5")
    again = dpcnn.load(tmp_path / "net.h5")
    assert again.classes_.tolist() == list(range(-7, 43, 5)) and again.classes_.dtype.kind == "i"
    np.testing.assert_array_equal(again.predict_proba(X / 15.9), model.predict_proba(X / 15.9))


def test_truth_values_and_parameters_of_numpy_are_kept_too(tmp_path):
    parameters = {"image_shape": np.array([12, 12, 1]), "max_value": np.float32(255)}
    model = small_model(epochs=1, **parameters).fit(X.reshape(200, 144), Y > 4, out=tmp_path / "run")
    model.save(tmp_path / "net.h5")
    assert "image_shape=array" in repr(model)
    for again in (dpcnn.load(tmp_path / "net.h5"), dpcnn.load(tmp_path / "run")):
        assert again.classes_.tolist() == [False, True] and again.image_shape == (12, 12, 1) and again.max_value == 255
        assert again.score(X, Y > 4) == model.score(X, Y > 4)


def test_a_run_s_folder_is_continued_and_read(fitted, tmp_path):
    """A callback breaks the first fit off; the second one finishes it, and the third finds it complete."""
    steps = []

    def stop(figures):
        steps.append(figures["step"])
        if len(steps) == 8:
            raise InterruptedError

    out = tmp_path / "run"
    with pytest.raises(InterruptedError):
        small_model().fit(X, NAMES[Y], validation=0.1, out=out, on_step=stop)
    for taken in ([*range(7, 13)], []):
        model = small_model().fit(X, NAMES[Y], validation=0.1, out=out, on_step=lambda f: steps.append(f["step"]))
        assert steps[8:] == taken and model.weights_sha256 == fitted.weights_sha256
        assert [row["epoch"] for row in model.history] == [1, 2]
        del steps[8:]
    assert dpcnn.load(out).predict(X[:9]).tolist() == fitted.predict(X[:9]).tolist()
    assert command("plot", out).status == 0
    for options, error in (({"lr": 0.1}, "--lr: .* can't be resumed with 0.1"), ({"seed": 1}, "--seed")):
        with pytest.raises(ConfigError, match=error):
            small_model(**options).fit(X, NAMES[Y], validation=0.1, out=out)
    with pytest.raises(CheckpointError, match="trained on other data than arrays"):
        small_model().fit(255 - X, NAMES[Y], validation=0.1, out=out)
    renamed = np.array([f"{name}!" for name in NAMES])  # in the same order
    with pytest.raises(
        CheckpointError, match="the run has the labels eight, five, .*, not eight!, five!, .*; give those"
    ):
        small_model().fit(X, renamed[Y], validation=0.1, out=out)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model(epochs=1).fit(X, Y)
    assert not list(tmp_path.iterdir())


def test_callbacks_have_the_figures_of_each_step_and_each_epoch(fitted):
    steps, epochs = [], []
    model = small_model().fit(X, NAMES[Y], validation=0.1, on_step=steps.append, on_epoch=epochs.append)
    assert [figures["step"] for figures in steps] == [*range(1, 13)]
    assert set(steps[0]) == {"step", "epoch", "loss", "accuracy", "learning_rate"}
    assert epochs == model.history and model.weights_sha256 == fitted.weights_sha256


def test_validation_samples_of_one_s_own():
    model = small_model().fit(X[:150], Y[:150], validation=(X[150:], Y[150:]))
    assert model.history[-1]["validation_accuracy"] == model.score(X[150:], Y[150:])
    other = small_model().fit(X[:150], Y[:150])
    assert other.weights_sha256 == model.weights_sha256 and "validation_loss" not in other.history[-1]
    kept = small_model(validation=0.1).fit(X, Y)
    assert kept.weights_sha256 == small_model().fit(X, Y, validation=0.1).weights_sha256


def test_the_console_prints_the_epochs(capsys):
    small_model(verbose=True).fit(X, Y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dpcnn ") and "on arrays: 200 images to train, 0 to validate" in lines[0]
    assert [line.split(":")[0] for line in lines[-2:]] == ["epoch 1/2", "epoch 2/2"]
    assert not any("run folder" in line for line in lines)
    small_model().fit(X, Y)
    assert capsys.readouterr().out == ""


# Classes of a data set


@pytest.fixture(scope="module")
def named(npz, tmp_path_factory):
    """The data set ``small`` with names, whose order is not that of their characters."""
    folder = tmp_path_factory.mktemp("named") / "set"
    assert command("data", "prepare", npz, "--out", folder, "--names", ",".join(NAMES)).status == 0
    return folder


@pytest.fixture(scope="module")
def of_names(named):
    return small_model().fit(named)


def test_the_classes_of_a_data_set_have_its_names(of_names, named, small, npz, tmp_path):
    of_names.save(tmp_path / "net.h5")
    for model in (of_names, dpcnn.load(tmp_path / "net.h5")):
        assert model.classes_.tolist() == NAMES.tolist()
        with np.load(npz) as arrays:
            X_test, y_test = arrays["x_test"], arrays["y_test"]
        np.testing.assert_array_equal(model.predict(X_test), NAMES[model.predict_proba(X_test).argmax(axis=1)])
        scores = [model.score(named), model.score(small), model.score(X_test, NAMES[y_test])]
        assert set(scores) == {model.score(X_test, y_test)} and scores[0] > 0.7
    numbers = small_model().fit(small)
    assert numbers.classes_.tolist() == [*range(10)] and numbers.score(small) == scores[0] == numbers.score(named)


def test_labels_of_other_classes_are_refused(of_names, fitted, npz, tmp_path):
    with pytest.raises(DataError, match="y: no class 10 among the labels of the training: 0, 1, 2"):
        of_names.score(X, Y + 1)
    with pytest.raises(DataError, match="y: expected labels of the type <U5"):
        fitted.score(X, Y)
    other = tmp_path / "other"
    assert command("data", "prepare", npz, "--out", other, "--names", ",".join(NAMES[::-1])).status == 0
    with pytest.raises(ConfigError, match="Classifier: its class 'zero' is 'nine' in other"):
        of_names.score(other)
    np.savez(tmp_path / "two.npz", x_train=X, y_train=Y % 2, x_test=X, y_test=Y % 2)
    assert command("data", "prepare", tmp_path / "two.npz", "--out", tmp_path / "two").status == 0
    with pytest.raises(DataError, match="two: 2 classes, but the network has 10"):
        of_names.score(tmp_path / "two")


# Picture files


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in a folder of folders, in the order of their names, with two files that are not pictures."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for number in range(12):
        path = tmp_path / "photos" / f"{number // 6}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(X[number]).save(path)
    (tmp_path / "photos" / "0" / "notes.txt").write_text("none")
    (tmp_path / "photos" / "1" / "05.png").write_bytes(b"broken")
    return tmp_path / "photos"


def test_pictures_are_predicted_like_arrays(fitted, regressor, photos, capsys):
    files = sorted(photos.glob("*/[01]?.png"))
    del files[6]  # the broken one
    expected = fitted.predict(X[:12])
    for paths, answer in (
        (photos, expected),
        (str(photos), expected),
        ([str(path) for path in files], expected),
        (files[3], expected[3:4]),
        ((files[5], photos / "1"), expected[5:]),
    ):
        np.testing.assert_array_equal(fitted.predict(paths), answer)
        np.testing.assert_array_equal(fitted.predict_proba(paths).argmax(axis=1), fitted.classes_.searchsorted(answer))
    skipped = capsys.readouterr().err.splitlines()
    assert len(skipped) == 10 and all(line.startswith("skipped ") for line in skipped)
    assert fitted.score(photos, expected) == 1
    np.testing.assert_allclose(regressor.predict(files), regressor.predict(X[:12]), rtol=1e-5)


def test_files_without_images_have_no_predictions(fitted, regressor, tmp_path):
    np.savez(tmp_path / "none.npz", x=X[:0])
    files = [tmp_path / "none.npz"]
    assert fitted.predict_proba(files).shape == (0, 10) and len(fitted.predict(files)) == 0
    assert regressor.predict(files).shape == (0, *regressor.predict(X[:1]).shape[1:])
    assert fitted.predict_files(files) == []


def test_predictions_name_the_files_like_the_command(of_names, photos, tmp_path, capsys):
    """Of a model, of its file, and of the folder of a run; on two ranks, too."""
    out = tmp_path / "run"
    of_names.save(tmp_path / "net.h5")
    again = small_model().fit(of_names.checkpoint_.config.data, out=out)
    assert again.weights_sha256 == of_names.weights_sha256
    printed = command("predict", tmp_path / "net.h5", photos, "--json")
    assert printed.status == 0, printed.err
    expected = [json.loads(line) for line in printed.out.splitlines()]
    assert len(expected) == 12 and expected[0]["file"] == str(photos / "0" / "00.png")
    for model in (of_names, dpcnn.load(tmp_path / "net.h5"), dpcnn.load(out)):
        assert model.predict_files(photos) == model.predict_files([str(photos)]) == expected
    assert on_threads([2], lambda: of_names.predict_files(photos)) == [expected] * 2
    capsys.readouterr()
    on_threads([2], lambda: of_names.predict(photos))
    assert len(capsys.readouterr().err.splitlines()) == 2  # of one rank


def test_a_name_means_a_data_set_before_it_means_pictures(of_names, named, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos.parent / "data").mkdir()
    (photos.parent / "data" / "photos").symlink_to(named)
    np.testing.assert_array_equal(of_names.predict("photos"), of_names.predict(named))
    assert len(of_names.predict(["photos"])) == len(of_names.predict(photos.absolute())) == 12


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda model, photos: model.predict("nowhere"),
            "no data set 'nowhere'.* and there is no picture file or fold",
        ),
        (lambda model, photos: model.predict(["nowhere"]), "nowhere: No such file or directory"),
        (lambda model, photos: model.predict([photos / "1" / "05.png"]), "05.png: expected a PNG"),
        (lambda model, photos: model.predict(photos / "none"), "none: no file in this folder can be read"),
        (lambda model, photos: model.predict_files([]), "no file to predict; give at least one file or folder"),
        (lambda model, photos: model.predict_files([3]), "expected the name of a file or folder, not 3"),
        (lambda model, photos: model.predict_files(3), "expected the name of a file or folder, not 3"),
        (lambda model, photos: model.predict("a\0b"), r"expected the name of a file or folder, not 'a\\x00b'"),
        (lambda model, photos: model.predict(""), "expected the name of a file or folder, not ''"),
        (lambda model, photos: model.predict([]), "X: expected images of numbers"),
        (lambda model, photos: model.score(photos), "no.* data set"),
        (lambda model, photos: model.score(photos, NAMES[:2]), r"y: expected labels \(12,\)"),
        (lambda model, photos: model.fit([photos], NAMES[:1]), "make a data set of picture files: dpcnn data prepare"),
    ],
)
def test_mistakes_with_pictures(fitted, photos, ask, message):
    (photos / "none").mkdir()
    with pytest.raises(DataError, match=message):
        ask(fitted, photos)


# Parameters


def test_parameters_are_read_set_and_copied(fitted):
    model = small_model()
    params = model.get_params()
    assert params["recipe"] == "fast" and params["epochs"] == 2 and params["max_value"] is None
    copy = dpcnn.Classifier(**params)
    assert copy.get_params() == params and repr(copy) == repr(model)
    assert all(copy.get_params()[name] is value for name, value in params.items())
    assert model.set_params(epochs=np.int64(1), lr=np.float64(0.01), verbose=False) is model
    assert len(model.fit(X, Y).history) == 1 and model.checkpoint_.config.lr == 0.01
    assert repr(dpcnn.Classifier("fast", epochs=3)) == "Classifier('fast', epochs=3)"
    assert repr(dpcnn.Classifier([{"kind": "linear"}])) == "Classifier([1 layers])"


def test_a_list_of_layers_and_a_file_are_recipes(tmp_path):
    layers = [
        {"kind": "scale"},
        {"kind": "flatten"},
        {"kind": "linear", "features": 8},
        {"kind": "relu"},
        {"kind": "linear"},
    ]
    options = {"epochs": 1, "warmup": 0, "batch": 50, "verbose": False}
    from_list = dpcnn.Classifier(layers, **options).fit(X, Y)
    (tmp_path / "r.toml").write_text("model = 'mine'\nlayers = " + json.dumps(layers).replace(":", " ="))
    from_file = dpcnn.Classifier(tmp_path / "r.toml", **options).fit(X, Y)
    from_table = dpcnn.Classifier({"model": "mine", "layers": layers}, **options).fit(X, Y)
    assert from_list.weights_sha256 == from_file.weights_sha256 == from_table.weights_sha256
    (tmp_path / "nameless.toml").write_text((tmp_path / "r.toml").read_text().partition("\n")[2])
    nameless = [dpcnn.Classifier(recipe) for recipe in (layers, {"layers": layers}, tmp_path / "nameless.toml")]
    assert [model.base().model for model in nameless] == ["layers", "layers", "nameless"]


def test_scikit_learn_searches_clones_and_chains(fitted):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    assert is_classifier(fitted) and clone(fitted).get_params() == fitted.get_params()
    assert (
        clone(fitted).set_params(verbose=False).fit(X, NAMES[Y], validation=0.1).weights_sha256 == fitted.weights_sha256
    )
    search = GridSearchCV(small_model(), {"lr": [1e-6, 0.008]}, cv=2, error_score="raise").fit(X, NAMES[Y])
    assert search.best_params_ == {"lr": 0.008} and search.score(X, NAMES[Y]) > 0.7
    chain = make_pipeline(MinMaxScaler(), small_model()).set_params(classifier__epochs=4)
    assert chain.fit(X.reshape(200, -1), Y).score(X.reshape(200, -1), Y) > 0.7
    assert "Classifier" in chain._repr_html_()


# Arrays


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1), (6, 2, 2, 3), (6, 25)], ids=str)
def test_arrays_of_every_shape(shape):
    array = np.random.default_rng(0).integers(0, 256, shape)
    images = images_of(array, None, None)
    expected = {(6, 4, 5): (6, 4, 5, 1), (6, 25): (6, 5, 5, 1)}.get(shape, shape)
    assert images.shape == expected and images.dtype == np.uint8
    np.testing.assert_array_equal(images, array.reshape(expected))
    rows = images_of(array.reshape(6, -1), expected[1:], None)
    np.testing.assert_array_equal(rows, images)


def test_white_is_255_for_the_network():
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8)
    for scaled, white in (
        (array / 255, None),
        (array.astype(np.float32) / 255, None),
        (array / 4, 63.75),
        (array / 255, 1),
    ):
        images = images_of(scaled, None, white)
        assert images.dtype == np.float32
        np.testing.assert_allclose(images[..., 0], array, rtol=1e-5)
    assert images_of(array, None, 255) is not array and images_of(array, None, 255).dtype == np.uint8
    np.testing.assert_allclose(images_of(array // 16, None, 15)[..., 0], (array // 16) * 17, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": X[:, 0, :11]}, DataError, r"X: expected \(n, H, W\), .* not \(200, 11\); .* image_shape=\(H, W, C\)"),
        ({"X": X.astype(float)}, DataError, "X: expected floats from 0 to 1, found 0 to 219; give .* max_value"),
        ({"X": X.astype(int) * 2}, DataError, "X: expected whole numbers from 0 to 255, found 0 to 438"),
        ({"X": X * np.nan}, DataError, "X: some values are not finite"),
        ({"X": X.astype(str)}, DataError, "X: expected images of numbers, not <U3"),
        ({"X": X.astype(object)}, DataError, r"not object \(200, 12, 12\); convert its numbers, as with X.astype"),
        ({"X": X[:0]}, DataError, r"X: expected images of numbers, not uint8 \(0, 12, 12\)"),
        ({"X": np.ma.array(X, mask=X > 200)}, DataError, r"X: some values are masked; .* X.filled\(0\), or leave them"),
        ({"X": list(np.ma.array(X, mask=X > 200))}, DataError, "X: some values are masked"),
        ({"y": np.ma.array(Y, mask=Y == 3)}, DataError, "y: some values are masked"),
        ({"validation": (np.ma.array(X, mask=X > 200), Y)}, DataError, "X: some values are masked"),
        ({"y": np.where(Y, NAMES[Y], np.array(np.nan, object))}, DataError, "y: expected texts only, .* found nan"),
        ({"y": [*NAMES[Y][1:], 7]}, DataError, "y: expected texts only, or numbers only, found 7 among texts"),
        ({"y": Y[1:]}, DataError, r"y: expected labels \(200,\), one for each image"),
        ({"y": Y / 2}, DataError, "whole numbers or text, not float64 .*; convert classes, as with y.astype"),
        ({"y": None}, DataError, "y: expected labels"),
        ({"y": Y * 0}, DataError, "y: 1 different labels; expected 2 to"),
        ({"X": [[1, 2], [3]]}, DataError, "X: not an array: .* inhomogeneous"),
        ({"y": [[1], [1, 2]]}, DataError, "y: not an array: .* inhomogeneous"),
        ({"y": np.where(Y, NAMES[Y], "")}, DataError, "y: expected a name of printable characters, not ''"),
        ({"y": np.where(Y, NAMES[Y], "a\nb")}, DataError, r"y: expected a name of printable characters, not 'a\\nb'"),
        ({"y": Y.astype(np.uint64) + 2**63}, DataError, "y: expected a whole number from -9007199254740992 to"),
        ({"validation": (X,)}, DataError, r"validation: expected a pair \(X, y\), not 1 values"),
        ({"out": "runs/\0"}, DataError, "expected the name of a file or folder"),
        ({"out": 3}, DataError, "expected the name of a file or folder, not 3"),
        ({"validation": (X, Y + 90)}, DataError, r"y: no class 9\d among the labels of the training: 0, 1, 2"),
        ({"validation": (X, Y.astype(str))}, DataError, "y: expected labels of the type uint8, as in the training"),
        ({"validation": -1}, ConfigError, "--validation: must be at least 0"),
        ({"X": "nowhere", "y": None}, DataError, "no data set 'nowhere'"),
        ({"X": "mnist"}, DataError, "the data set mnist has labels of its own; give no y"),
        ({"options": {"lr": -1.0}}, ConfigError, "--lr: must be a number above 0"),
        ({"options": {"test": True}}, ConfigError, "test: arrays have no test samples"),
        ({"options": {"image_shape": (5, 5, 1)}}, DataError, r"X: expected images of image_shape=\(5, 5, 1\)"),
        ({"options": {"image_shape": 12}}, ConfigError, "Classifier: image_shape: expected a list, not 12"),
        ({"options": {"image_shape": (-12, -12, 1)}}, ConfigError, "image_shape: expected a whole number from 1 to"),
        ({"options": {"image_shape": (12.0, 12, 1)}}, ConfigError, "image_shape: expected a whole number from 1 to"),
        ({"options": {"max_value": 0}}, ConfigError, r"max_value: expected a number from 1e-30 to 1e\+30, not 0"),
        ({"options": {"max_value": -255.0}}, ConfigError, "max_value: expected a number from 1e-30"),
        ({"options": {"max_value": np.nan}}, ConfigError, "max_value: expected a finite number, not nan"),
        ({"options": {"max_value": "white"}}, ConfigError, "max_value: expected a finite number, not 'white'"),
        ({"options": {"recipe": "fst"}}, ConfigError, "no recipe and no file 'fst'"),
        ({"options": {"recipe": [{"kind": "liner"}]}}, ConfigError, "layer 1: no kind 'liner'"),
        ({"options": {"recipe": [{"kind": {1}}]}}, ConfigError, "recipe: expected numbers, texts and lists"),
    ],
)  # fmt: skip
def test_mistakes(change, error, message):
    change = {"X": X, "y": Y, "options": {}} | change
    model = small_model().set_params(**change.pop("options"))
    if "recipe" in model.get_params() and isinstance(model.recipe, list):
        model.options.pop("model")
    with pytest.raises(error, match=message):
        model.fit(**change)
    assert not hasattr(model, "classes_")


def test_mistakes_before_and_after_fit(fitted):
    with pytest.raises(ConfigError, match="Classifier: unknown key 'epoch'; did you mean 'epochs'?"):
        dpcnn.Classifier("fast", epoch=3)
    with pytest.raises(ConfigError, match=r"this Classifier has no network yet: call fit\(X, y\)"):
        small_model().predict(X)
    with pytest.raises(DataError, match=r"expected images of image_shape=\(12, 12, 1\)"):
        fitted.predict(X[:, 1:])
    with pytest.raises(DataError, match="y: expected labels of the type <U5"):
        fitted.score(X, Y)
    with pytest.raises(DataError, match="X: some values are masked"):
        fitted.predict(np.ma.array(X, mask=X > 200))
    assert fitted.score(np.ma.array(X), NAMES[Y].tolist()) == fitted.score(X, NAMES[Y].astype(object))
    assert fitted.score(X, NAMES[Y].astype(np.dtypes.StringDType())) == fitted.score(X, NAMES[Y])
    with pytest.raises(CheckpointError, match="a{300}: File name too long"):
        dpcnn.load("a" * 300)
    for use in (fitted.save, dpcnn.load):
        for name in (None, "a\0b", ""):
            with pytest.raises(DataError, match="expected the name of a file or folder, not"):
                use(name)
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        dpcnn.Clasifier  # noqa: B018
    assert {"Classifier", "load", "register"} <= set(dir(dpcnn))


def test_numerics_are_those_of_the_process(fitted, monkeypatch):
    other = next(name for name in startup.NUMERICS if name != startup.numerics)
    with pytest.raises(ConfigError, match=f"set DPCNN_NUMERICS={other} before Python starts"):
        small_model(numerics=other).fit(X, Y)
    monkeypatch.setattr(startup, "late", True)
    monkeypatch.setattr(numerics, "deviations", lambda: "blas openblas SkylakeX, not Haswell")
    with pytest.raises(
        ConfigError, match="NumPy was loaded before dpcnn, .* SkylakeX, not Haswell.*; import dpcnn first"
    ):
        small_model().fit(X, Y)


def test_without_a_launcher_there_is_no_mpi():
    assert type(session.ranks()) is SerialComm


# Layers of one's own, and what a notebook shows


def test_a_layer_of_one_s_own_is_registered_once_and_again(monkeypatch):
    monkeypatch.setattr("dpcnn.estimators.registry.TABLES", {key: dict(table) for key, table in _tables().items()})
    registry = dpcnn.register.__globals__["TABLES"]
    for _ in range(2):

        @dpcnn.register
        class Mine(ReLU):
            pass

        assert next(iter(registry.values()))["mine"] is Mine
    with pytest.raises(ConfigError, match="register relu: dpcnn.nn.activations.ReLU has this name"):
        dpcnn.register(Mine, "relu")
    with pytest.raises(ConfigError, match="register dict: expected a subclass of Layer, Optimizer or Loss"):
        dpcnn.register(dict)
    with pytest.raises(ConfigError, match="register 'mine': expected a subclass of Layer, Optimizer or Loss"):
        dpcnn.register("mine")
    with pytest.raises(ConfigError, match="register: expected a text as the name, not 3"):
        dpcnn.register(Mine, 3)
    assert "mine" not in KINDS


def _tables():
    return dpcnn.register.__globals__["TABLES"]


def test_a_notebook_shows_the_curves(fitted):
    page = fitted._repr_html_()
    picture = ET.fromstring(page[page.index("<svg") :])
    words = [element.text for element in picture.iter() if element.text and element.text.strip()]
    assert {"loss", "accuracy", "train", "validation", "epoch", "1", "2"} <= set(words)
    lines = [element for element in picture.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 4 and all(len(line.get("points").split()) == 2 for line in lines)
    unfitted = dpcnn.Classifier([{"kind": "linear"}], model="<b>")._repr_html_()
    assert "<svg" not in unfitted and "&lt;b&gt;" in unfitted


def test_a_file_with_wrong_labels_is_refused(fitted, tmp_path):
    from dataclasses import replace

    from dpcnn.runs.checkpoint import write

    for labels in (("a",) * 10, (1, 2), ("a", 1, *range(2, 10)), (1.5, *range(9)), ("a\n", *map(str, range(9)))):
        write(tmp_path / "net.h5", replace(fitted.checkpoint_, labels=labels))
        with pytest.raises(CheckpointError, match="labels"):
            dpcnn.load(tmp_path / "net.h5")


# Several labels


def test_several_labels_are_learned(npz, tmp_path):
    """From arrays and from a data set, in a file, and on two ranks."""
    marks = np.stack([X[:, :, :6].mean(axis=(1, 2)) > 60, X[:, :, 6:].mean(axis=(1, 2)) > 60, X[:, 3, 3] > 99], axis=1)
    assert 0.1 < marks.mean() < 0.9

    def fitted(*data, **options):
        return small_model(loss="sigmoid-cross-entropy", epochs=12, lr=0.01).fit(*data, **options)

    model = fitted(X, marks, validation=(X[:50], marks[:50].astype(float)))
    assert model.predict_proba(X).shape == model.predict(X).shape == (200, 3) and model.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    assert model.score(X, marks) == (model.predict(X) == marks).all(axis=1).mean() > 0.7
    assert model.history[-1]["validation_accuracy"] == model.score(X[:50], marks[:50])
    np.savez(tmp_path / "a.npz", x_train=X, y_train=marks, x_test=X[:50], y_test=marks[:50])
    words = ["--targets", "multilabel", "--names", "left,right,spot", "--out", tmp_path / "set"]
    assert command("data", "prepare", tmp_path / "a.npz", *words).status == 0
    named = fitted(tmp_path / "set", validation=0)
    assert named.classes_.tolist() == ["left", "right", "spot"]
    assert named.score(tmp_path / "set") == named.score(X[:50], marks[:50]) > 0.7
    named.save(tmp_path / "net.h5")
    np.testing.assert_array_equal(dpcnn.load(tmp_path / "net.h5").predict(X), named.predict(X))
    alone = fitted(X, marks).weights_sha256
    assert alone == named.weights_sha256
    assert on_threads([2], lambda: fitted(X, marks).weights_sha256) == [alone] * 2


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        (
            {},
            np.eye(10)[Y],
            r"of one-hot rows, give y.argmax\(axis=1\); for several labels per image, give loss='sigmoid-cross",
        ),
        ({"loss": "sigmoid-cross-entropy"}, Y, r"y: expected zeros and ones \(200, K\), .* not uint8 \(200,\)"),
        ({"loss": "sigmoid-cross-entropy"}, 2 * np.eye(10)[Y], r"y: expected zeros and ones \(200, K\)"),
        ({"loss": "sigmoid-cross-entropy"}, np.eye(10)[Y[1:]], r"y: expected zeros and ones \(200, K\)"),
    ],
)
def test_mistakes_with_several_labels(options, y, message):
    with pytest.raises(DataError, match=message):
        small_model(**options).fit(X, y)


# Values


def places(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 12, 12) of a bright square, and its row and column (count, 2), from 0 to 1."""
    rng = np.random.default_rng(seed)
    corners, images = rng.integers(0, 10, (count, 2)), rng.integers(0, 50, (count, 12, 12))
    for image, (row, column) in zip(images, corners, strict=True):
        image[row : row + 3, column : column + 3] += 150
    return images, corners / 9


def small_regressor(**options) -> dpcnn.Regressor:
    known = {"model": "mlp", "epochs": 8, "warmup": 0, "batch": 30, "microbatch": 8, "lr": 0.003, "verbose": False}
    return dpcnn.Regressor("fast", **known | options)


SQUARES, PLACES = places(240, 1)


@pytest.fixture(scope="module")
def regressor():
    return small_regressor().fit(SQUARES, PLACES, validation=0.1)


def test_values_are_learned(regressor, tmp_path):
    test, truth = places(60, 2)
    predicted = regressor.predict(test)
    assert predicted.shape == (60, 2) and predicted.dtype == np.float64
    expected = 1 - ((predicted - truth) ** 2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    assert regressor.score(test, truth) == pytest.approx(expected.mean(), abs=1e-6)
    assert regressor.score(test, truth) > 0.8
    assert {"train_loss", "validation_mae", "validation_r2"} <= set(regressor.history[-1])
    assert regressor._repr_html_().count("<polyline") == 3
    regressor.save(tmp_path / "net.h5")
    again = dpcnn.load(tmp_path / "net.h5")
    assert type(again) is dpcnn.Regressor and again.predict(test).tobytes() == predicted.tobytes()


def test_ranks_change_no_values(regressor):
    def one():
        model = small_regressor().fit(SQUARES, PLACES, validation=0.1)
        return model.weights_sha256, model.predict(SQUARES).tobytes(), model.score(SQUARES, PLACES)

    expected = regressor.weights_sha256, regressor.predict(SQUARES).tobytes(), regressor.score(SQUARES, PLACES)
    assert on_threads([3], one) == [expected] * 3


def test_the_order_of_values_in_memory_does_not_matter(regressor):
    """The columns of a data frame lie one after the other."""
    for values in (np.asfortranarray(PLACES), np.asfortranarray(PLACES, np.float32), PLACES.astype(">f8")):
        model = small_regressor().fit(SQUARES, values, validation=0.1)
        assert model.weights_sha256 == regressor.weights_sha256
        assert model.score(SQUARES, values) == regressor.score(SQUARES, PLACES)


def test_one_value_for_each_image_and_another_loss(tmp_path):
    model = small_regressor(loss="huber", delta=0.3, max_value=200.0).fit(SQUARES, PLACES[:, 0])
    assert model.predict(SQUARES).shape == (240,) and model.score(SQUARES, PLACES[:, 0]) > 0.8
    assert model.checkpoint_.config.loss == "huber"
    model.save(tmp_path / "net.h5")
    np.testing.assert_array_equal(dpcnn.load(tmp_path / "net.h5").predict(SQUARES), model.predict(SQUARES))
    recipe = {**model.checkpoint_.config.as_dict(), "delta": 0.4}
    assert dpcnn.Regressor(recipe, verbose=False)._options() == {}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": PLACES[1:]}, DataError, r"y: expected numbers \(240,\) or \(240, K\)"),
        ({"y": PLACES.astype(str)}, DataError, "y: expected numbers .* not <U"),
        (
            {"y": PLACES.astype(object)},
            DataError,
            "y: expected numbers .* not object .*; convert them, as with y.astype",
        ),
        ({"y": np.where(PLACES > 0.5, np.inf, 0)}, DataError, "y: some values are not finite"),
        ({"options": {"loss": "cross-entropy"}}, ConfigError, "--loss: this loss is for one class per sample"),
        (
            {"validation": (SQUARES, PLACES[:, :1])},
            DataError,
            "y: expected 2 values for each image, as in the training",
        ),
    ],
)
def test_mistakes_with_values(change, error, message):
    change = {"X": SQUARES, "y": PLACES, "options": {}} | change
    model = small_regressor(**change.pop("options"))
    with pytest.raises(error, match=message):
        model.fit(**change)


def test_a_score_needs_as_many_values(regressor):
    with pytest.raises(DataError, match="y: expected 2 values for each image, as in the training"):
        regressor.score(SQUARES, PLACES[:, 0])


def test_scikit_learn_takes_regressors(regressor):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone, is_regressor
    from sklearn.model_selection import cross_val_score

    assert is_regressor(regressor) and clone(regressor).get_params() == regressor.get_params()
    assert cross_val_score(small_regressor(), SQUARES, PLACES, cv=2, error_score="raise").min() > 0.5
