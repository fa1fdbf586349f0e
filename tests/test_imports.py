"""The layout of the package: one import direction, and each foreign library in its one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpcnn

PACKAGE = Path(dpcnn.__file__).parent
ORDER = [  # a file imports only from what stands above it
    "dpcnn",
    "errors",
    "files",
    "fields",
    "streams",
    "stopping",
    "spans",
    "memory",
    "nn.convolution",
    "nn.layer",
    "nn.layers",
    "nn.pooling",
    "nn.activations",
    "nn.normalisation",
    "nn.reference",
    "nn.losses",
    "nn.models",
    "nn.initialise",
    "nn.network",
    "nn.torch_layout",
    "optim",
    "parallel.launch",
    "parallel.comm",
    "parallel.split",
    "parallel.shared",
    "parallel.exchange",
    "parallel.datagrams",
    "parallel.links",
    "parallel.verdict",
    "parallel.watch",
    "config",
    "metrics",
    "fingerprint",
    "guard",
    "data.inputs",
    "data.shards",
    "data.layout",
    "data.samples",
    "data.stage",
    "data.holdout",
    "data.augment",
    "data.formats",
    "data.npz",
    "data.sources",
    "data.downloads",
    "data.pictures",
    "checkpoint",
    "run_folder",
    "tables",
    "board",
    "console",
    "validation",
    "plots",
    "trainer",
    "trace",
    "cli",
    "data.__main__",
    "resume",
    "evaluate",
    "predict",
    "plot",
    "report",
    "export",
    "import",
    "training",
    "train",
    "submit",
    "diagnosis",
    "doctor",
    "verify",
    "measure",
    "bench",
    "forecast",
    "reproduce",
    "peers.torch_net",
    "peers.torch_ddp",
    "peers.torch_recipe",
    "__main__",
]
ONLY_IN = {
    "mpi4py": {"parallel.comm"},
    "h5py": {"data.layout", "checkpoint"},
    "matplotlib": {"plots"},
    "PIL": {"data.pictures"},
    "onnx": {"export"},
    "safetensors": {"export", "import"},
    "tensorboardX": {"board"},
    "torch": {"peers.torch_net", "peers.torch_ddp", "peers.torch_recipe"},
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


def test_every_file_has_its_place_in_the_order():
    assert set(FILES) == set(ORDER)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_up(name):
    for imported in imports(FILES[name]):
        if imported.startswith("dpcnn."):
            assert ORDER.index(imported.removeprefix("dpcnn.")) < ORDER.index(name), f"{name} imports {imported}"
        for library, places in ONLY_IN.items():
            if imported.partition(".")[0] == library:
                assert name in places, f"{name} imports {library}"


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
