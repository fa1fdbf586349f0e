"""Tables for people."""

from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def count_of(count: int, noun: str) -> str:
    """A number of things, as in "1 file" and "1,200 files"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
