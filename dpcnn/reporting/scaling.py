"""The picture of speed over ranks."""

from collections.abc import Mapping
from pathlib import Path

from dpcnn.reporting.figures import new_figure, picture, save


@picture
def draw_scaling(speeds: Mapping[str, Mapping[int, float]], stem: Path, log: bool = False) -> str:
    """Draw images per second over ranks, with a line for each kind of scaling, to STEM.png and STEM.svg.

    With ``log``, both axes are logarithmic.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=6)
    axes = figure.subplots()
    for (kind, rates), mark in zip(speeds.items(), "os^", strict=False):
        axes.plot(list(rates), list(rates.values()), f"{mark}-", label=kind)
    first = next(iter(speeds.values()))
    start = next(iter(first))
    axes.plot(
        list(first),
        [first[start] * ranks / start for ranks in first],
        ":",
        color="grey",
        label="linear speed-up",
    )
    axes.set(xlabel="ranks", ylabel="images per second")
    if log:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set(ylim=(0, None), xticks=list(first))
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, stem, "scaling")
