"""A model from Python: its training, its answers and its file."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from math import prod
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.numerics import arithmetic, check
from dpcnn.config import Config
from dpcnn.data.dataset import ARRAYS, Indices, Samples, find_data
from dpcnn.data.dataset import load as load_data
from dpcnn.data.moments import moments_of
from dpcnn.errors import ConfigError, DataError
from dpcnn.estimators import session
from dpcnn.estimators.arrays import check_same, images_of, samples_of
from dpcnn.estimators.curves import curves
from dpcnn.estimators.files import file_path, picture_paths
from dpcnn.estimators.fitting import Announcer, Callback, figures, train
from dpcnn.estimators.parameters import Parameters
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import Checkpoint, write
from dpcnn.training.evaluation import answers
from dpcnn.training.examination import check_classes
from dpcnn.training.prediction import Prediction, file_outputs, predict_files
from dpcnn.training.resume import with_cut

T = TypeVar("T")
Training = tuple[Config, Samples, Samples | None]
"""What a training needs: its options, its samples, and test samples or None."""


class Estimator(Parameters):
    """A network with the interface of scikit-learn.

    In a script that mpirun starts, every rank makes the same calls with the same arrays; the ranks share the work, and
    the result has the same bits as on one rank. For the parameters see :class:`Parameters`.

    Attributes:
        history: for each epoch a dictionary: epoch, step, train_loss, validation_loss and so on; after ``fit``, as all
            that follows.
        weights_sha256: of the weights.
        checkpoint_: the network as ``save`` writes it.
        n_features_in_: the number of values of an image.
    """

    @abstractmethod
    def _encode(self, y: Any, count: int, labels: Array | None = None) -> tuple[Array, Array]:
        """The targets of ``count`` samples as the loss takes them, and the labels of the classes, if there are classes.

        Args:
            labels: those of the training, if y is of other samples.
        """

    def _options(self) -> dict[str, Any]:
        """The options for the training: those that were given."""
        return self.options

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        out: str | Path | None = None,
        on_step: Callback | None = None,
        on_epoch: Callback | None = None,
    ) -> Self:
        """Train a new network.

        Args:
            X: images (n, H, W), (n, H, W, C) or (n, F): whole numbers 0..255, or floats 0..1 (see ``max_value``); or
                the name or folder of a data set.
            y: (n,) the label or the value of each image, or (n, K) values; None for a data set.
            validation: samples that are evaluated after each epoch, and not trained on: a number, a fraction below 1,
                or a pair (X, y). None: the option ``validation``; without that option, none of arrays, and of a
                data set those of the recipe.
            out: the folder for the files of the run. A run that has begun there continues, with the same data and
                options; if it is complete, its network is read. None: no files.
            on_step, on_epoch: functions that are called on every rank after each step and after each epoch, with a
                dictionary of figures.

        Returns:
            The model itself.

        Raises:
            ConfigError, DataError, CheckpointError, DivergenceError: on every rank.
        """
        comm = session.ranks()
        with arithmetic():
            config, samples, test = comm.transact(lambda: self._prepare(comm, X, y, validation))
            reporter = Announcer(lambda: self.verbose and comm.rank == 0, on_step, on_epoch)
            checkpoint = train(comm, config, samples, test, out, reporter)
        return self._adopt(checkpoint)

    def _prepare(self, comm: SerialComm, X: Any, y: Any, validation: Any) -> Training:
        test = None
        if isinstance(X, str | Path):
            with comm.fail_together():
                config, folder = self._of_data_set(str(X), y, validation)
            samples = load_data(folder, "train", comm)
            if config.test:
                test = load_data(folder, "test", comm)
        else:
            with comm.fail_together():
                config, samples = self._from_arrays(X, y, validation)
        check_same(comm, [], [samples.manifest.checksum, samples.class_labels, config.as_dict()])
        return config, samples, test

    def _of_data_set(self, name: str, y: Any, validation: Any) -> tuple[Config, Path]:
        if y is not None or isinstance(validation, tuple | list):
            raise DataError(f"fit: the data set {name} has labels of its own; give no y, and validation as a number")
        typed = {**self._options(), "data": name} | ({} if validation is None else {"validation": validation})
        return with_cut(self.config(typed), self.base(), typed), find_data(name)

    def _from_arrays(self, X: Any, y: Any, validation: Any) -> tuple[Config, Samples]:
        shape, max_value = self.form()
        images = images_of(X, shape, max_value)
        targets, labels = self._encode(y, len(images))
        trained = images
        options = {"validation": 0, "holdout": "stratified", **self._options()}
        if isinstance(validation, tuple | list):
            if len(validation) != 2:
                raise DataError(f"validation: expected a pair (X, y), not {len(validation)} values")
            held, held_y = validation
            more = images_of(held, images.shape[1:], max_value)
            images = np.concatenate([images, more])
            targets = np.concatenate([targets, self._encode(held_y, len(more), labels)[0]])
            options |= {"validation": len(more), "holdout": "last"}
        elif validation is not None:
            options["validation"] = validation
        if options.get("test"):
            raise ConfigError("test: arrays have no test samples; give fit a pair as validation, or call score")
        config = self.config({**options, "data": ARRAYS, "test": False})
        normalise = [layer for layer in config.layers if layer.get("kind") == "normalise"]
        if not all({"mean", "deviation"} <= layer.keys() for layer in normalise):
            config = config.measured(*moments_of(trained))
        return config, samples_of(images, targets, labels, max_value)

    def _adopt(self, checkpoint: Checkpoint) -> Self:
        self.checkpoint_ = checkpoint
        self.history = [figures(event) for event in checkpoint.progress.epoch_events]
        self.weights_sha256, self.n_features_in_ = checkpoint.weights_sha256, prod(checkpoint.image_shape)
        return self

    def _outputs(self, X: Any) -> Array:
        """The answers of the network, (n, K) float64: probabilities or values, by the loss of the training."""
        known, comm = self._fitted(), session.ranks()
        with arithmetic():
            return comm.transact(lambda: self._answers(comm, known, X))

    def predict_files(self, paths: Any) -> list[Prediction]:
        """The predictions for picture files, with the names of the files: what ``dpcnn predict --json`` prints.

        Args:
            paths: a file or a folder, or a list of these, which must not be empty. The files of a folder that can't be
                read are skipped, with a line on stderr.

        Returns:
            For each image a dictionary: see :func:`dpcnn.training.prediction.predict_files`. The same on every rank;
            rank 0 reads the files and computes.

        Raises:
            ConfigError, DataError: on every rank.
        """
        known, comm = self._fitted(), session.ranks()
        listed = [
            file_path(path)
            for path in ([paths] if isinstance(paths, str) or not isinstance(paths, Iterable) else paths)
        ]
        with arithmetic():
            return comm.transact(lambda: _on_rank_0(comm, listed, lambda: predict_files(known, listed, _say)))

    def _test_targets(self, known: Checkpoint, name: str) -> Array:
        """The targets of the test samples of a data set, which has the classes of the training."""
        comm = session.ranks()

        def targets() -> Array:
            samples = load_data(find_data(name), "test", comm)
            data = samples.manifest
            with comm.fail_together():
                known.config.make_loss().check_data(data.targets, data.classes, data.name)
                check_classes(Path(type(self).__name__), known.class_names, data)
                if data.classes != known.classes:
                    raise DataError(f"{name}: {data.classes} classes, but the network has {known.classes}")
            return samples.labels

        return comm.transact(targets)

    def _given(self, X: Any, y: Any) -> Any:
        """y; without y, the targets of the test samples of the data set that X names."""
        return self._test_targets(self._fitted(), str(X)) if y is None and isinstance(X, str | Path) else y

    def save(self, path: str | Path) -> None:
        """Write the network as a checkpoint, which all commands of dpcnn read; :func:`dpcnn.load` reads it as a model.

        Raises:
            CheckpointError: on every rank, if it can't be written; an old file is untouched.
        """
        known, comm = self._fitted(), session.ranks()

        def save() -> None:
            with comm.fail_together():
                file = file_path(path)
                if comm.rank == 0:
                    write(file, known)

        comm.transact(save)

    def _fitted(self) -> Checkpoint:
        if not self.__sklearn_is_fitted__():
            raise ConfigError(f"this {type(self).__name__} has no network yet: call fit(X, y), or dpcnn.load(FILE)")
        return self.checkpoint_

    def _answers(self, comm: SerialComm, known: Checkpoint, X: Any) -> Array:
        with comm.fail_together():
            check(known.config.numerics)
            paths = picture_paths(X)
        if paths:
            return np.reshape(_on_rank_0(comm, paths, lambda: _rows(known, paths)), (-1, known.classes))
        images, shape, count = self._images(comm, known, X)
        with comm.fail_together():
            if shape != known.image_shape:
                raise DataError(f"{X}: images of {shape}, but the network takes {known.image_shape}")
            network, loss = known.network(), known.config.make_loss()
            network.check_memory(min(network.at_once, count), comm.node().size)
        return answers(comm, network, network.flat(known.parameters), images, count, loss)

    def _images(self, comm: SerialComm, known: Checkpoint, X: Any) -> tuple[Callable[[Indices], Array], Shape, int]:
        """A function of indices that returns images, their shape, and their number."""
        if isinstance(X, str | Path):
            with comm.fail_together():
                folder = find_data(str(X))
            samples = load_data(folder, "test", comm)
            return lambda indices: samples.take(indices)[0], samples.manifest.image_shape, len(samples)
        with comm.fail_together():
            array = images_of(X, known.image_shape, known.max_value)
        check_same(comm, [array])
        return array.__getitem__, known.image_shape, len(array)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "checkpoint_")

    def _repr_html_(self) -> str:
        """The model and the curves of its training, for a notebook."""
        return f"<pre>{escape(repr(self))}</pre>\n{curves(getattr(self, 'history', []))}"


def _rows(known: Checkpoint, paths: Sequence[Path]) -> Iterator[list[float]]:
    """The answers of the network for the images of files, K numbers for each image."""
    return (row.tolist() for _, _, row in file_outputs(known, paths, _say))


def _on_rank_0(comm: SerialComm, paths: Sequence[Path], predict: Callable[[], Iterable[T]]) -> list[T]:
    """The predictions for files, ready for JSON, that rank 0 makes, on every rank of ``comm``."""
    check_same(comm, [], list(map(str, paths)))
    found: list[T] = []
    with comm.fail_together():
        if comm.rank == 0:
            found = list(predict())
    every: list[T] = comm.broadcast_obj(found)
    return every


def _say(line: str) -> None:
    print(line, file=sys.stderr)
