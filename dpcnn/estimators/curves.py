"""The curves of a training as a small SVG picture, for a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 220, 56, 28, 34  # pixels of a panel, and of its margins
RIGHT = 14
PANELS = 2
COLOURS = {"train": "#1f77b4", "validation": "#d95f02", "test": "#2ca02c"}

Row = Mapping[str, Any]


def curves(history: Sequence[Row]) -> str:
    """A picture with a panel for the loss and one for the first metric, over the epochs; empty without epochs.

    Args:
        history: for each epoch its figures by name, such as train_loss.
    """
    if not history:
        return ""
    keys = [key.partition("_") for key in history[-1]]
    names = list(dict.fromkeys(name for kind, _, name in keys if kind in COLOURS))[:PANELS]
    panels = [panel(history, name, place * WIDTH) for place, name in enumerate(names)]
    size = f'width="{len(names) * WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(panels) + "\n</svg>"


def panel(history: Sequence[Row], name: str, left: float) -> str:
    """The curves of one figure, for each kind of samples that has it."""
    kinds = [kind for kind in COLOURS if f"{kind}_{name}" in history[-1]]
    values = {
        kind: [(row["epoch"], row[f"{kind}_{name}"]) for row in history if f"{kind}_{name}" in row] for kind in kinds
    }
    every: list[float] = [value for points in values.values() for _, value in points]
    low, high = min(every), max(every)
    span, last = (high - low) or 1.0, max(int(history[-1]["epoch"]), 2)

    def x(epoch: float) -> float:
        return round(LEFT + (epoch - 1) / (last - 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / span * (HEIGHT - TOP - BOTTOM), 1)

    parts = [frame(name, kinds), *(label(LEFT - 6, y(value) + 4, f"{value:.4g}", "end") for value in {low, high})]
    parts += [label(x(epoch), HEIGHT - BOTTOM + 16, str(epoch), "middle") for epoch in {1, history[-1]["epoch"]}]
    for kind, points in values.items():
        parts.append(curve([(x(epoch), y(value)) for epoch, value in points], COLOURS[kind]))
    return f'<g transform="translate({left}, 0)">' + "".join(parts) + "</g>"


def frame(name: str, kinds: Sequence[str]) -> str:
    """The axes of a panel, its title and its legend."""
    box = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    parts = [
        f'<rect {box} fill="none" stroke="currentColor" stroke-opacity="0.4"/>',
        label(LEFT, TOP - 10, name.replace("_", " "), "start", 'font-weight="bold"'),
        label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch", "middle"),
    ]
    for place, kind in enumerate(reversed(kinds)):
        parts.append(label(WIDTH - RIGHT - 70 * place, TOP - 10, kind, "end", f'fill="{COLOURS[kind]}"'))
    return "".join(parts)


def curve(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A line through points, with a dot at each of them."""
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>' for x, y in points)
    line = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def label(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    """A text at a place."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {style}>{escape(text)}</text>'
