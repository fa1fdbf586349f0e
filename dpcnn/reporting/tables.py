"""Tables of an examination's results."""

from collections.abc import Mapping
from typing import Any

from dpcnn.base.text import text

CLASS_HEADER = ("class", "samples", "precision", "recall")


def class_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per class under :data:`CLASS_HEADER`, of :attr:`dpcnn.training.examination.Examination.results`."""
    return [
        (
            scores["name"],
            str(scores["samples"]),
            *("-" if scores[key] is None else f"{scores[key]:.4f}" for key in ("precision", "recall")),
        )
        for scores in results["classes"]
    ]


def class_table(results: Mapping[str, Any]) -> str:
    """The rows of :func:`class_rows` as text, with the confusion matrix."""
    rows = [
        (*row, *(str(count or ".") for count in counts))
        for row, counts in zip(class_rows(results), results["confusion"], strict=True)
    ]
    return text((*CLASS_HEADER, *(f"as {row[0]}" for row in rows)), rows)
