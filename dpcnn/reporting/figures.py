"""The base of all pictures. Matplotlib is an extra, imported only when something is drawn."""

import io
import os
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.files import write_file
from dpcnn.data.shards import MNIST
from dpcnn.errors import printable

KINDS = ".png", ".svg"
"""The kinds of files of a picture."""

MOST_POINTS, MOST_LETTERS = 5_000, 14
"""The most points of a curve, and characters of a class's name."""

P = ParamSpec("P")


class NotDrawnError(Exception):
    """There is no picture; the message is a line with the reason."""


def picture(draw: Callable[P, str]) -> Callable[P, str]:
    """Let a function that draws and returns a line return the reason where there is no picture."""

    @wraps(draw)
    def drawn(*arguments: P.args, **options: P.kwargs) -> str:
        try:
            return draw(*arguments, **options)
        except NotDrawnError as error:
            return str(error)

    return drawn


def plain(text: str) -> str:
    """Text for a picture, with dollars escaped, so that they do not enclose a formula."""
    return printable(text).replace("$", r"\$")


def short(name: str, most: int = MOST_LETTERS) -> str:
    """The name of a class for a picture: its beginning if it has more than ``most`` characters."""
    return plain(name if len(name) <= most else f"{name[: most - 1].rstrip()}…")


def shades_of(resize: str) -> str:
    """The colour map of grey images: dark ink on white for MNIST's characters, which are light on dark."""
    return "Greys" if resize == MNIST else "gray"


def show(axes: Any, image: Array, shades: str) -> None:
    """Show an image (H, W, C) of values 0..255: in colour, or the mean of its channels."""
    axes.axis("off")
    axes.imshow(
        image.astype(np.uint8) if image.shape[-1] in (3, 4) else image.mean(axis=-1), cmap=shades, vmin=0, vmax=255
    )


def new_figure(width: float, height: float = 4) -> Any:
    """A figure of ``width`` by ``height`` inches, in a function with the decorator :func:`picture`.

    Raises:
        NotDrawnError: Matplotlib is not installed.
    """
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which fails if this names a missing backend
    try:
        import matplotlib
    except ImportError:
        raise NotDrawnError("nothing drawn: matplotlib is not installed (pip install 'dpcnn[plot]')") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, stem: Path, what: str) -> str:
    """Write a figure to STEM.png and STEM.svg, or to STEM if that ends with .png or .svg: the same bytes each time.

    Returns:
        A line with the paths, beginning with ``what``.
    """
    import matplotlib

    paths = [stem] if stem.suffix in KINDS else [stem.with_name(stem.name + kind) for kind in KINDS]
    for path in paths:
        content = io.BytesIO()
        date = {"Date": None} if path.suffix == ".svg" else {}
        with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "dpcnn"}):
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # in names of scripts that the font lacks
            figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=date)
        figure.set_layout_engine("none")  # the next file has the same layout, and takes less time
        write_file(path, content.getvalue())
    return f"{what} drawn: {' and '.join(map(str, paths))}"
