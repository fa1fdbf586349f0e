"""The sessions of docs/api.md and docs/python.md, as they stand there."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, run

SESSION = re.compile(r"```python\n(.*?)```\n\n```\n(.*?)```", re.DOTALL)


def session(page: str) -> tuple[str, list[str]]:
    """All the code of a page, and the lines that it prints."""
    blocks = SESSION.findall((ROOT / "docs" / page).read_text())
    return "".join(code for code, _ in blocks), "".join(output for _, output in blocks).splitlines()


def shorter(code: str) -> str:
    """The code with short trainings: it prints as many lines."""
    return re.sub(r"epochs=2|max_steps=300", "max_steps=9", code)


def link_folders(folder: Path) -> None:
    """Let a folder have the data sets and the pictures that the sessions use."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    for name in ("data", "docs"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["api.md", "python.md"])
def test_the_session_prints_what_the_page_says(tmp_path, page):
    """Accuracies depend on the kernels of the processor: those of the page are close."""
    link_folders(tmp_path)
    code, expected = session(page)
    done = run(0, "-c", code + shorter(code), cwd=tmp_path)  # a cell may be run twice
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 2 * len(expected)
    number = re.compile(r"0\.\d{4}")
    for line, told in zip(lines[: len(expected)], expected, strict=True):
        assert number.sub("", line) == number.sub("", told)
        for ours, theirs in zip(number.findall(line), number.findall(told), strict=True):
            assert float(ours) == pytest.approx(float(theirs), abs=0.02)


@pytest.mark.slow
def test_the_session_of_models_on_several_ranks(tmp_path):
    link_folders(tmp_path)
    code, expected = session("python.md")
    done = run(3, "-c", shorter(code), cwd=tmp_path)
    assert done.status == 0 and len(done.out.splitlines()) == 3 * len(expected)
    assert len(set(done.out.splitlines())) == len(expected)
