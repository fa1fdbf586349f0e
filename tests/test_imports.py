"""The layout of the package: one import direction, and each foreign library in its one place."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import dpcnn

PACKAGE = Path(dpcnn.__file__).parent
PACKAGES = (
    "errors base nn optim config recipe flags parallel cli data cluster runs training "
    "interop reporting evidence estimators"
).split()
"""A file imports only from its own package and those before it; a command from all, but from no other command."""

ONLY_IN = {
    "mpi4py": {"parallel.start"},
    "h5py": {"data.hdf5", "data.layout", "runs.checkpoint", "runs.checkpoint_file"},
    "matplotlib": {"reporting.figures"},
    "PIL": {"data.decoding", "data.characters"},
    "onnx": {"interop.onnx"},
    "safetensors": {"interop.safetensors"},
    "tensorboardX": {"runs.tensorboard"},
    "torch": {f"evidence.peers.torch_{name}" for name in ("net", "parts", "training", "ddp", "recipe", "layers")},
    "jax": {f"evidence.peers.jax_{name}" for name in "net layers optimizers step training run".split()},
    "sklearn": {"estimators.models"},
    "pickle": set(),
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__").removesuffix("__init__") or "dpcnn"


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.read_text().count("\n") > 1}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    package = name.partition(".")[0]
    allowed = PACKAGES[: PACKAGES.index(package) + 1] if package in PACKAGES and name != "data.__main__" else PACKAGES
    for imported in imports(FILES[name]) - {"dpcnn"}:
        library, _, rest = imported.partition(".")
        if library == "dpcnn":
            assert rest.partition(".")[0] in allowed, f"{name} imports {imported}"
        assert name in ONLY_IN.get(library, {name}), f"{name} imports {library}"


def test_no_public_function_without_a_docstring():
    missing = []
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                missing.append(f"{name}.{node.name}")
    assert not missing


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, dpcnn; print([m for m in ('numpy', 'mpi4py', 'h5py', 'matplotlib') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert found.stdout.strip() == "[]"


SCRIPTS = [*ROOT.glob("docs/*.py"), *ROOT.glob("docs/*.sh"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/ranks/*.py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_scripts_and_pages_import_is_there(path):
    """Not every script of docs/ runs in a test."""
    for module, names in re.findall(r"^\s*from (dpcnn[\w.]*) import ([\w, ]+)", path.read_text(), re.MULTILINE):
        if "peers" not in module:  # which needs PyTorch or JAX
            exec(f"from {module} import {names}")
