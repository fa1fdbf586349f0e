"""Modules of the user, which are imported only if the user says so."""

import sys
from typing import Any

from dpcnn.errors import ConfigError, ImportNeeded

MOST_IMPORTS = 16


def check_imports(names: Any) -> None:
    """Check that the modules with these names are imported. Only the user imports modules; a file never does.

    Raises:
        ConfigError: they are no names of modules.
        ImportNeeded: what to type.
    """
    if not isinstance(names, list) or len(names) > MOST_IMPORTS or not all(map(is_module_name, names)):
        raise ConfigError(f"imports: expected at most {MOST_IMPORTS} names of modules, not {repr(names)[:60]}")
    missing = [name for name in names if name not in sys.modules]
    if missing:
        flags = " ".join(f"--import {name}" for name in missing)
        raise ImportNeeded(
            f"imports: this needs your module {missing[0]}, which runs only if you say so: add {flags} to the command"
        )


def is_module_name(name: Any) -> bool:
    """Whether this is a name as in an import statement, such as ``package.module``."""
    return isinstance(name, str) and len(name) <= 100 and all(word.isidentifier() for word in name.split("."))
