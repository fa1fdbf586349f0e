"""The commands of the tutorial, run as they stand there, one block after the other in an empty folder."""

import re

import pytest
from conftest import ROOT, Job

LIMIT = 300.0  # seconds of a block

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL)
INSTEAD = {
    "launch/local.sh -n 2": "mpirun -n 2 dpcnn train --max-steps 100",
    ". .venv/bin/activate": ":",
    "--max-steps 100 --out": "--max-steps 25 --out",
    "--max-steps 40": "--max-steps 10",
}
"""The tests have an environment, so the commands that create and enter one are replaced. The first training and those
that are compared have fewer steps, to save time."""


@pytest.mark.slow
def test_the_blocks_one_after_the_other(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist").symlink_to(ROOT / "data" / "mnist")
    outputs = {}
    for block in BLOCKS:
        command = block
        for words, replacement in INSTEAD.items():
            command = command.replace(words, replacement)
        result = Job(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path).wait(LIMIT)
        assert result.status == 0, f"{block}\n{result.out}\n{result.err}"
        outputs[block.splitlines()[-1]] = result.out.splitlines()

    def output(start):
        return next(lines for command, lines in outputs.items() if command.startswith(start))

    whole, parts = output("tail")
    assert whole == parts and re.fullmatch("weights [0-9a-f]{64}", whole)
    assert output("dpcnn verify")[-1] == "PASS; receipt: verify.json"
    assert output("dpcnn data info")[-1].startswith("every shard verified")
    assert float(re.search(r"accuracy (0\.\d+|1\.0+) ", "\n".join(output("dpcnn evaluate runs/shapes")))[1]) > 0.9
    assert len(output("dpcnn predict")) == 3
    assert "'conv2d1.w': (5, 5, 1, 16)" in output("python -c")[-1]
    assert output("dpcnn doctor")[-1].endswith(", 0 FAIL")
    assert "$starter python -m dpcnn.train --resume auto" in "\n".join(output("dpcnn submit"))
