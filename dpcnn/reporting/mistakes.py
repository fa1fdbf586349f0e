"""The picture of the worst mistakes."""

from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.data.file_names import names_of
from dpcnn.nn.metrics import Answers
from dpcnn.reporting.figures import new_figure, picture, save, shades_of, short, show
from dpcnn.training.examination import Examination


def worst_mistakes(answers: Answers, most: int) -> Array:
    """The numbers of the wrong answers with the highest losses, at most ``most``, the highest first."""
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    worst: Array = wrong[np.argsort(-answers.losses[wrong], kind="stable")][:most]
    return worst


def mistake_rows(examination: Examination, most: int) -> list[list[str]]:
    """The file, the class and the predicted class of the :func:`worst_mistakes`; empty if the data set has no names.

    Raises:
        DataError: the names of the files can't be read.
    """
    answers, names, manifest = examination.answers, examination.class_names, examination.samples.manifest
    worst = worst_mistakes(answers, most)
    split = "test" if examination.results["split"] == "test" else "train"
    files = names_of(examination.folder, manifest, split, examination.indices[worst]) if len(worst) else []
    return [
        [file, names[answers.labels[number]], names[answers.predicted[number]]]
        for file, number in zip(files, worst, strict=False)
    ]


@picture
def draw_mistakes(examination: Examination, most: int, stem: Path, columns: int = 8) -> str:
    """Draw the images with the highest losses among those classified wrong, to STEM.png and STEM.svg.

    Args:
        most: the largest number of pictures.
        columns: the number of images side by side.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    answers, names = examination.answers, examination.class_names
    worst = worst_mistakes(answers, most)
    if not len(worst):
        return "no mistakes drawn: there are none"
    rows = -(-len(worst) // columns)
    figure = new_figure(width=1.1 * columns, height=1.3 * rows)
    images, _ = examination.samples.take(examination.indices[worst])
    shades = shades_of(examination.resize)
    lines = "\n" if max(map(len, names)) > 2 else " "
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, number, image in zip(grid.flat, worst, images, strict=False):
        show(axes, image, shades)
        right, predicted = short(names[answers.labels[number]]), short(names[answers.predicted[number]])
        axes.set_title(f"{right}{lines}as {predicted}", fontsize=9 if lines == " " else 7)
    return save(figure, stem, "worst mistakes")
