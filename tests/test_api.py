"""The session of docs/api.md, as it stands there."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment

CODE, OUTPUT = re.search(
    r"```python\n(.*?)```\n\n```\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL
).groups()


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    code = CODE + CODE  # a cell may be run twice
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    accuracy, classes, *again = done.stdout.splitlines()
    assert again == [accuracy, classes]
    assert float(accuracy.split()[0]) > 0.95 and accuracy.split()[1:] == OUTPUT.splitlines()[0].split()[1:]
    assert classes == OUTPUT.splitlines()[1] == "[7 2 1] [7 2 1]"
    assert len(list((tmp_path / "runs").glob("notebook-*/checkpoints/last.h5"))) == 2
