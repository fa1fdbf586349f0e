"""The README's own commands, run as they stand there, with fewer steps."""

import re

import pytest
from conftest import ROOT, Job

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_the_readme_keeps_its_form():
    assert len(README.splitlines()) <= 150
    assert COMMANDS[:3] == ["launch/local.sh", "launch/test.sh", ". .venv/bin/activate"]
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"^\| `([^`]+)`", README, re.MULTILINE):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_commands_under_use(tmp_path):
    """One after the other in an empty folder beside the data, as the environment's user would type them."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    for line in COMMANDS[3:]:
        fewer = {
            "dpcnn.train": " --max-steps 3 --no-curves",
            "dpcnn.verify": " --steps 4 --ranks 1,2 --receipt receipt.json",
            "dpcnn.bench": " --steps 3",
        }
        flags = next((flags for command, flags in fewer.items() if command in line), "")
        result = Job(["bash", "-c", line + flags], cwd=tmp_path).wait()
        assert result.status == 0, f"{line}\n{result.err}"
        if "dpcnn.train" in line:
            assert result.out.splitlines()[-1].startswith("validation accuracy")
        elif "dpcnn.evaluate" in line:
            assert '"correct": ' in result.out or re.search(r"accuracy 0\.\d{4} \(\d+ of 10000\)", result.out)
        elif "dpcnn.bench" in line:
            assert "exact exchange and Adam on slices" in result.out.splitlines()[-1]
        elif "dpcnn.verify" in line:
            assert result.out.splitlines()[-1] == "PASS; receipt: receipt.json"
        elif "dpcnn.export" in line:
            assert result.out.startswith("runs/fast/net.npz: small-cnn of step 3, ")
        elif "dpcnn.report" in line:
            assert result.out.startswith("runs/fast/report.html: ")
        elif "dpcnn.doctor" in line:
            assert result.out.splitlines()[-1].endswith(", 0 FAIL")
        else:
            assert "every shard verified" in result.out
