"""The commands of the README, run as they stand there, with fewer steps; and its lists of commands and recipes."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, Job
from test_pictures import write_folder

import dpcnn
from dpcnn.__main__ import commands

README = (ROOT / "README.md").read_text()
TYPED = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def first_column(title: str) -> list[str]:
    """The names in the first column of the README's table that begins with ``title``."""
    rows = re.search(rf"^\| {title} \|.*\n((?:\|.*\n)+)", README, re.MULTILINE).group(1)
    return re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_keeps_its_form():
    assert len(README.splitlines()) <= 150
    assert TYPED[0] == "launch/local.sh" and TYPED[1] == ". .venv/bin/activate" and TYPED[-1] == "launch/test.sh"


def test_the_readme_lists_every_command_and_recipe():
    assert sorted(first_column("command")) == list(commands())
    recipes = Path(dpcnn.__file__).parent / "recipes"
    assert sorted(first_column("recipe")) == sorted(path.stem for path in recipes.glob("*.toml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.slow
def test_the_commands_for_data_of_one_s_own(tmp_path):
    """One after the other in an empty folder, as the environment's user would type them."""
    pytest.importorskip("matplotlib")
    write_folder(tmp_path / "photos", {"cat": 60, "dog": 40})
    first, second, third = TYPED[2:-1]
    for line, last in (
        (first, "data/mine: 100 samples in 9 shards"),
        (f"{second} --max-steps 3 --no-curves", "validation accuracy"),
        (third, "runs/mine/report.html: "),
    ):
        result = Job(["bash", "-c", line], cwd=tmp_path).wait()
        assert result.status == 0, f"{line}\n{result.err}"
        assert result.out.splitlines()[-1].startswith(last)
