"""Tables of an examination's results."""

from collections.abc import Mapping
from typing import Any

from dpcnn.base.text import text
from dpcnn.nn.metrics import METRICS, TOP

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
    """The rows of :func:`class_rows` as text, with the confusion matrix if there is one."""
    if "confusion" not in results:
        return text(CLASS_HEADER, class_rows(results))
    rows = [
        (*row, *(str(count or ".") for count in counts))
        for row, counts in zip(class_rows(results), results["confusion"], strict=True)
    ]
    return text((*CLASS_HEADER, *(f"as {row[0]}" for row in rows)), rows)


def sentence(results: Mapping[str, Any]) -> str:
    """The results in lines: the loss and the accuracy, if there is one, then all other metrics of the loss."""
    accuracy = "accuracy {accuracy:.4f} ({correct} of {samples})" if "accuracy" in results else "{samples} samples"
    where = "{checkpoint} (step {step}) on the {split} samples of {data}: "
    line = f"{where}{accuracy}, loss {{loss:.4f}}, {{seconds:.1f}} s"
    others = [f"{name} {results[name]:.4f}" for name in telling(results) if name not in ("accuracy", "loss")]
    return f"{line.format(**results)}\n{', '.join(others)}"


def telling(results: Mapping[str, Any]) -> list[str]:
    """The metrics that results have, for people: without the top-5 accuracy of at most five classes, which is 1."""
    few = len(results.get("classes", ())) <= TOP
    return [name for name in METRICS if name in results and not (few and name == "top5")]
