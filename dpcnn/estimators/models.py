"""The models from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.data.classes import numbered as number_names
from dpcnn.estimators import session
from dpcnn.estimators.estimator import Estimator
from dpcnn.estimators.files import file_path
from dpcnn.estimators.targets import check_kind, classes_of, labels_of, marks_of, numbered, values_of
from dpcnn.nn.losses import MULTILABEL, VALUES
from dpcnn.nn.metrics import Answers, r2
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint


class Classifier(Estimator):
    """A network that learns classes. Parameters: see :class:`dpcnn.estimators.parameters.Parameters`.

    Labels are whole numbers or texts. With the loss ``sigmoid-cross-entropy``, an image can have several of K labels: y
    and the predictions are then (n, K) zeros and ones.

    Attributes:
        classes_: (classes,) the label of each class: of arrays the labels, ascending; of a data set the names of its
            classes, or numbers from 0 if they have no names. With several labels per image, these are K.

    The other attributes: see :class:`dpcnn.estimators.estimator.Estimator`.
    """

    _estimator_type = "classifier"

    def _encode(self, y: Any, count: int, labels: Array | None = None) -> tuple[Array, Array]:
        if self.config(self._options()).make_loss().targets == MULTILABEL:
            marks = marks_of(y, count, None if labels is None else labels.shape[1])
            return marks, marks[:0]  # no labels, of as many columns
        given = labels_of(y, count)
        classes = classes_of(given) if labels is None else labels
        return numbered(given, classes), classes

    def _adopt(self, checkpoint: Checkpoint) -> Self:
        self.classes_ = np.array(labels_of_classes(checkpoint))
        return super()._adopt(checkpoint)

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes, (n, classes) float64, in the order of ``classes_``.

        Args:
            X: images as for ``fit``; or the name or folder of a data set, for its test samples; or a picture file, a
                folder of pictures, or a list of these: see :meth:`predict_files`.

        Raises:
            ConfigError, DataError: on every rank.
        """
        return self._outputs(X)

    def predict(self, X: Any) -> Array:
        """The label of the most probable class of each image, (n,), of the type of ``classes_``.

        With several labels per image, (n, K) int64: 1 where the probability is above 0.5, otherwise 0.

        Args:
            X: as for :meth:`predict_proba`.

        Raises:
            ConfigError, DataError: on every rank.
        """
        probabilities = self.predict_proba(X)
        if self._several:
            return (probabilities > 0.5).astype(np.int64)
        found: Array = self.classes_[probabilities.argmax(axis=1)]
        return found

    @property
    def _several(self) -> bool:
        """Whether an image can have several labels."""
        targets: str = self._fitted().config.make_loss().targets
        return targets == MULTILABEL

    def score(self, X: Any, y: Any = None) -> float:
        """The accuracy for images and their labels, or for the test samples of a data set: see :meth:`predict_proba`.

        Args:
            y: (n,) labels as in ``classes_``; after a training on a data set, also numbers of classes. With several
                labels per image, (n, K) zeros and ones, which must all be right.

        Raises:
            ConfigError, DataError: on every rank.
        """
        predicted = self.predict(X)
        if self._several:
            return float(np.mean((predicted == marks_of(self._given(X, y), *predicted.shape)).all(axis=1)))
        truth = self._truth(X, y, len(predicted))
        check_kind(truth, self.classes_)
        return float(np.mean(predicted == truth))

    def _truth(self, X: Any, y: Any, count: int) -> Array:
        known, given = self._fitted(), labels_of(self._given(X, y), count)
        if y is not None and (known.labels or given.dtype.kind == "U"):
            return given
        of_numbers: Array = self.classes_[numbered(given, np.arange(known.classes))]
        return of_numbers

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        inputs = InputTags(two_d_array=True, three_d_array=True)
        return Tags(
            "classifier", TargetTags(required=True), classifier_tags=ClassifierTags(multi_label=True), input_tags=inputs
        )


class Regressor(Estimator):
    """A network that learns values, one or several for each image.

    Its loss is the squared error, unless the recipe or the option ``loss`` has another one for values, such as huber.
    Parameters: see :class:`dpcnn.estimators.parameters.Parameters`; attributes: see
    :class:`dpcnn.estimators.estimator.Estimator`.
    """

    _estimator_type = "regressor"

    def _options(self) -> dict[str, Any]:
        own = self.base().make_loss().targets == VALUES
        return self.options if own else {"loss": "squared-error", **self.options}

    def _encode(self, y: Any, count: int, labels: Array | None = None) -> tuple[Array, Array]:
        values = values_of(y, count, labels if labels is None else labels.shape[1])
        return values, values[:0]  # no labels, of as many values

    def predict(self, X: Any) -> Array:
        """The values of each image, float64: (n,) if there is one for each, otherwise (n, K).

        Args:
            X: images as for ``fit``; or the name or folder of a data set, for its test samples; or a picture file, a
                folder of pictures, or a list of these: see :meth:`predict_files`.

        Raises:
            ConfigError, DataError: on every rank.
        """
        values = self._outputs(X)
        return values[:, 0] if values.shape[1] == 1 else values

    def score(self, X: Any, y: Any = None) -> float:
        """The coefficient of determination (R2), the mean over the K values; for X see :meth:`predict`.

        Args:
            y: (n,) or (n, K) values; None for a data set.

        Raises:
            ConfigError, DataError: on every rank.
        """
        predicted = self._outputs(X)
        truth = values_of(self._given(X, y), *predicted.shape)
        nothing = np.zeros(len(truth))
        return r2(Answers(truth, predicted, nothing, nothing, nothing))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        inputs, targets = InputTags(two_d_array=True, three_d_array=True), TargetTags(required=True, multi_output=True)
        return Tags("regressor", targets, regressor_tags=RegressorTags(), input_tags=inputs)


def labels_of_classes(known: Checkpoint) -> Sequence[int | str]:
    """The label of each class: the user's, or the name, or the number if the classes have no names."""
    names = known.class_names
    return known.labels or (range(len(names)) if names == number_names(len(names)) else names)


def load(path: str | Path) -> Classifier | Regressor:
    """The model of a checkpoint, or of the best checkpoint of a run's folder.

    Its recipe is the whole configuration of the run, so that ``fit`` repeats that.

    Args:
        path: a file that ``save`` or a training has written, or the folder of a run.

    Raises:
        CheckpointError: there is none, or it can't be read; on every rank.
    """
    comm = session.ranks()

    def read_file() -> Checkpoint:
        with comm.fail_together():
            return read(find_checkpoint(file_path(path)))

    known = comm.transact(read_file)
    kind = Regressor if known.config.make_loss().targets == VALUES else Classifier
    return kind(known.config.as_dict(), image_shape=known.image_shape, max_value=known.max_value)._adopt(known)
