"""Values from outside, in JSON or TOML: each is requested by name, type and bounds.

::

    table = Table(load_json(content))
    shape = table.integers("image_shape", 3, least=1, most=65_536)
    name = table.name("name")

Values are checked where they enter, so the rest of the code needs no checks.
"""

import json
import math
import re
import tomllib
from collections.abc import Collection, Iterator
from typing import Any

from dpcnn.errors import unknown_key

MOST_INTEGER = 2**53
"""The largest whole number that JSON readers generally represent exactly."""

MOST_DOTS = 200
"""The most dots in a line of TOML: each may open a table, and the time grows with their square."""

MOST_DIGITS = 15

MOST_NAME, MOST_TEXT = 255, 100_000  # characters


class FieldError(ValueError):
    """A value is missing, of the wrong type or out of bounds. The message names it and the expected value."""


def load_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        FieldError: it is not JSON, is nested too deeply, or holds NaN or infinity.
    """
    try:
        return json.loads(content, parse_constant=_refuse)
    except RecursionError:
        raise FieldError("nested too deeply") from None
    except ValueError as error:  # also too many digits, and bytes that are not UTF-8
        raise FieldError(f"not JSON: {error}") from None


def _refuse(constant: str) -> Any:
    raise FieldError(f"{constant} is not a number")


def load_toml(content: bytes) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        FieldError: it is not TOML, or is nested too deeply.
    """
    try:
        text = content.decode()
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise FieldError(f"a line of more than {MOST_DOTS} dots: nested too deeply")
        return tomllib.loads(text)
    except RecursionError:
        raise FieldError("nested too deeply") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FieldError(f"not text in UTF-8 (at line {line}); store the file in this encoding") from None
    except ValueError as error:
        raise FieldError(str(error)) from None


class Table:
    """A table from outside. Every method raises FieldError if the value is not as requested.

    Args:
        value: the value that was read, of any type.
        where: the path to this table, for messages.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        self._where = where
        if not isinstance(value, dict):
            raise FieldError(f"{where or 'the whole'}: expected a table of names and values, not {short(value)}")
        self._values: dict[str, Any] = value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def all(self) -> dict[str, Any]:
        """All values, unchecked."""
        return self._values

    def only(self, known: Collection[str]) -> None:
        """Refuse every key but these."""
        for key in self._values:
            if key not in known:
                raise FieldError(f"{self._path('')}{unknown_key(key, known)}")

    def value(self, key: str) -> Any:
        """A value of any type."""
        if key not in self._values:
            raise FieldError(f"{self._path(key)} is missing")
        return self._values[key]

    def integer(self, key: str, least: int = 0, most: int = MOST_INTEGER) -> int:
        """A whole number."""
        return integer(self.value(key), self._path(key), least, most)

    def number(self, key: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number."""
        return number(self.value(key), self._path(key), least, most)

    def flag(self, key: str) -> bool:
        """True or false."""
        value: bool = self._typed(key, bool, "true or false")
        return value

    def text(self, key: str) -> str:
        """A text of any characters."""
        value: str = self._typed(key, str, "text")
        if len(value) > MOST_TEXT:
            raise FieldError(f"{self._path(key)}: {len(value):,} characters; at most {MOST_TEXT:,} are read")
        return value

    def name(self, key: str) -> str:
        """A name: see :func:`name`."""
        return name(self.value(key), self._path(key))

    def sha256(self, key: str) -> str:
        """64 hexadecimal digits."""
        value = self.value(key)
        if not isinstance(value, str) or not is_sha256(value):
            raise FieldError(f"{self._path(key)}: expected a sha256, not {short(value)}")
        return value

    def items(self, key: str, most: int = 1_000_000) -> list[Any]:
        """A list of values of any type."""
        values: list[Any] = self._typed(key, list, "a list")
        if len(values) > most:
            raise FieldError(f"{self._path(key)}: {len(values):,} values; at most {most:,} are read")
        return values

    def integers(self, key: str, count: int, least: int = 0, most: int = MOST_INTEGER) -> tuple[int, ...]:
        """``count`` whole numbers."""
        values = self.items(key)
        if len(values) != count:
            raise FieldError(f"{self._path(key)}: expected {count} whole numbers, not {short(values)}")
        return tuple(integer(value, self._path(key), least, most) for value in values)

    def table(self, key: str) -> "Table":
        """A table within this one."""
        return Table(self.value(key), self._path(key))

    def tables(self, key: str, most: int = 1_000_000) -> list["Table"]:
        """A list of tables."""
        return [Table(value, f"{self._path(key)}[{index}]") for index, value in enumerate(self.items(key, most))]

    def _typed(self, key: str, kind: type, expected: str) -> Any:
        value = self.value(key)
        if not isinstance(value, kind):
            raise FieldError(f"{self._path(key)}: expected {expected}, not {short(value)}")
        return value

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def integer(value: Any, where: str, least: int = 0, most: int = MOST_INTEGER) -> int:
    """A whole number within these bounds, or FieldError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FieldError(f"{where}: expected a whole number from {least} to {most}, not {short(value)}")
    return value


def number(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within these bounds, or FieldError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300 or value != value:
        raise FieldError(f"{where}: expected a finite number, not {short(value)}")
    if not least <= value <= most:
        raise FieldError(f"{where}: expected a number from {least:g} to {most:g}, not {short(value)}")
    return float(value)


def is_sha256(text: str) -> bool:
    """Whether this is a sha256: 64 hexadecimal digits in lower case."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def label(value: Any, where: str) -> int | str:
    """The label of a class: a whole number, a truth value or a name; or FieldError."""
    if isinstance(value, bool):
        return value
    return integer(value, where, -MOST_INTEGER) if isinstance(value, int) else name(value, where)


def name(value: Any, where: str) -> str:
    """A name for display: a line of 1 to 255 printable characters, or FieldError."""
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_NAME or not value.isprintable():
        raise FieldError(f"{where}: expected a name of printable characters, not {short(value)}")
    return value


def short(value: Any) -> str:
    """A short form of a value for messages."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:60]


def digits(text: str) -> int | None:
    """The whole number in a text of at most 15 digits; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None
