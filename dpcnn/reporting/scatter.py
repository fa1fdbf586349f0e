"""The picture of a regression: predicted values over true ones."""

from pathlib import Path

from dpcnn.nn.metrics import Answers
from dpcnn.reporting.figures import MOST_POINTS, new_figure, picture, save

MOST_VALUES = 10
"""The most values of a sample that are drawn: Matplotlib has as many colours."""


@picture
def draw_scatter(answers: Answers, stem: Path) -> str:
    """Draw the predicted over the true values of at most 5,000 samples to STEM.png and STEM.svg.

    Args:
        answers: with labels and predictions (n, K); the first values of a sample are drawn, each in its colour.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure, dots = new_figure(width=6, height=5.5), {"markersize": 3, "alpha": 0.5, "rasterized": True}
    axes, every = figure.subplots(), -(-answers.count // MOST_POINTS)
    true, predicted = answers.labels[::every], answers.predicted[::every]
    for number in range(min(true.shape[1], MOST_VALUES)):
        axes.plot(true[:, number], predicted[:, number], ".", label=f"value {number}", **dots)
    ends = [true.min(), true.max()]
    axes.plot(ends, ends, color="black", lw=1)
    axes.set(xlabel="true value", ylabel="predicted value")
    axes.grid(alpha=0.3)
    if true.shape[1] > 1:
        axes.legend(markerscale=3)
    return save(figure, stem, "predicted values")
