"""Receipts: the result of a verification on one machine, as a JSON file for a comparison on another machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from platform import node
from tempfile import TemporaryDirectory
from typing import Any

import tomli_w

from dpcnn import __version__
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_TEXT, read_bytes
from dpcnn.base.numerics import describe
from dpcnn.config import Config, from_dict
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import read_manifest
from dpcnn.errors import ConfigError, ImportNeeded
from dpcnn.evidence.proof import Outcome, Training, first_difference, run_each, verdict
from dpcnn.runs.events import Event


def receipt(outcomes: Sequence[Outcome], different: Sequence[str | None]) -> dict[str, Any]:
    """The configuration, the machine, and the hashes and the first difference of each run, for a JSON file."""
    checkpoint = outcomes[0].checkpoint
    return {
        "verdict": verdict(different),
        "dpcnn": __version__,
        "host": node(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": checkpoint.config.as_dict(),
        "data": checkpoint.data,
        "fingerprint": checkpoint.fingerprint,
        "runs": [run_receipt(*each) for each in zip(outcomes, different, strict=True)],
    }


def run_receipt(outcome: Outcome, difference: str | None) -> dict[str, Any]:
    """The part of the receipt that describes one run."""
    return {
        "run": outcome.name,
        "weights_sha256": outcome.checkpoint.weights_sha256,
        "first_difference": difference,
        "hashes": {event["step"]: event["parameters"] for event in outcome.events if event["event"] == "hash"},
    }


@dataclass(frozen=True)
class Receipt:
    """The values of a receipt that are compared.

    Attributes:
        host: the name of the node that wrote it.
        config: of the training.
        data: the checksum of its data set.
        fingerprint: of the numerics, by name.
        hashes: an event for each step, with the hashes of all parameters.
    """

    host: str
    config: Config
    data: str
    fingerprint: dict[str, Any]
    hashes: list[Event]


def read_receipt(path: Path) -> Receipt:
    """Read a file with a dictionary of :func:`receipt`.

    Raises:
        ConfigError: the file can't be read, or is not a receipt.
    """
    try:
        table = Table(load_json(read_bytes(path, MOST_TEXT)))
        steps = table.tables("runs")[0].table("hashes")
        fingerprint = table.table("fingerprint")
        return Receipt(
            table.name("host"),
            from_dict(table.table("config").all(), "config: ", whole=True),
            table.sha256("data"),
            {key: fingerprint.value(key) for key in ("numpy", "blas", "cpu_features", "machine")},
            [{"event": "hash", "step": int(step), "parameters": steps.table(step).all()} for step in steps],
        )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a receipt of dpcnn verify") from None
    except ImportNeeded as error:
        raise ConfigError(f"{path}: {error}") from None
    except (FieldError, ConfigError, IndexError, ValueError) as error:
        raise ConfigError(f"{path}: not a receipt of dpcnn verify: {error}") from None


def repeat(
    known: Receipt, counts: Sequence[int], launcher: str, data: str | None, say: Callable[[str], None]
) -> list[Outcome]:
    """Run the training of a receipt on each number of ranks.

    Args:
        data: a data set's name or folder in place of the receipt's.

    Raises:
        ConfigError: the data set has other samples.
    """
    config = replace(known.config, data=data or known.config.data)
    if read_manifest(find_data(config.data)).checksum != known.data:
        raise ConfigError(f"{config.data}: not the data of the receipt; give --data the data set that it was made with")
    with TemporaryDirectory(prefix="dpcnn-verify-") as work:
        recipe = Path(work) / "receipt.toml"
        recipe.write_bytes(tomli_w.dumps(config.as_dict()).encode())
        flags = {"imports": config.imports} if config.imports else {}
        return run_each(Training(launcher, str(recipe), flags, len(known.hashes)), counts, Path(work), say)


def compare(known: Receipt, outcomes: Sequence[Outcome]) -> tuple[list[str | None], list[str]]:
    """The first difference of each run from the receipt, and the differences of the fingerprints in words."""
    different = [
        first_difference(known.hashes, [event for event in outcome.events if event["event"] == "hash"])
        for outcome in outcomes
    ]
    ours = outcomes[0].checkpoint.fingerprint
    changed = [describe(key, value, ours[key]) for key, value in known.fingerprint.items() if value != ours[key]]
    return different, changed
