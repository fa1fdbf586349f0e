"""The notebook of docs/: its cells as a script, and in Jupyter where that is installed; the bar in a notebook."""

import io
import json
import re

import pytest
from conftest import ROOT, run

import dpcnn
from dpcnn.runs import console

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
CODE = ["".join(cell["source"]) for cell in CELLS]


@pytest.mark.slow
def test_the_cells_run_as_a_script_each_of_them_twice_and_on_several_ranks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("\n".join(code for code in CODE for _ in range(2)) + "\nprint('sha256', model.weights_sha256)\n")
    alone, together = (run(ranks, script, cwd=tmp_path) for ranks in (0, 2))
    assert alone.status == together.status == 0, alone.err + together.err
    (sha256,) = re.findall("sha256 ([0-9a-f]{64})", alone.out)
    assert re.findall("sha256 ([0-9a-f]{64})", together.out) == [sha256, sha256]
    assert (tmp_path / "shapes.h5").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's packages
def test_jupyter_shows_the_bar_and_the_curves(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra notebook is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra notebook is not installed")
    pytest.importorskip("ipykernel", reason="the extra notebook is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(NOTEBOOK, 4)
    kept = {cell["id"]: cell["outputs"] for cell in book.cells if cell.cell_type == "code"}
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            assert _kinds(cell["outputs"]) == _kinds(kept[cell["id"]]), cell["source"]
    (training,) = (cell for cell in book.cells if "model.fit(X, y, validation=0.1)" in cell["source"])
    text = "".join(output["text"] for output in training["outputs"] if output["output_type"] == "stream")
    assert re.search(r"\repoch 1/4 +\d+% \|.*left", text) and "epoch 4/4: validation accuracy" in text
    assert "epoch 1/0" not in text
    (page,) = (output["data"]["text/html"] for output in training["outputs"] if "text/html" in output.get("data", {}))
    assert page.count("<polyline") == 4


def _kinds(outputs) -> list[str]:
    """The kinds of a cell's outputs; a stream may come in several parts."""
    return sorted({output["output_type"] for output in outputs})


def test_a_notebook_has_a_bar_by_carriage_returns(monkeypatch):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(console.sys, "stdout", stream)
    X, y = [[[0, 255], [0, 0]], [[0, 0], [255, 0]]] * 20, ["a", "b"] * 20
    dpcnn.Classifier("fast", model="mlp", epochs=2, batch=10, microbatch=5, warmup=0).fit(X, y)
    text = stream.getvalue()
    assert re.search(r"\repoch 2/2 100% \|[█#]+\| .*left", text)
    assert [line for line in text.splitlines() if line.startswith("epoch 1/2: training accuracy")]
