"""The fuzz test with a fixed number of cases; see fuzz.py, which runs it for any time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import many

CASES, SECONDS = many(200), 120  # fewer cases where the machine is busy


@pytest.mark.slow
def test_no_file_makes_a_command_fail_in_another_way_than_by_one_line():
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    seed = os.environ.get("DPCNN_FUZZ_SEED") or str(int.from_bytes(os.urandom(4)))
    words = f"--cases {CASES} --seconds {SECONDS} --seed {seed}".split()
    command = [sys.executable, Path(__file__).parent / "fuzz.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS)
    print(done.stdout)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    cases = int(done.stdout.splitlines()[-1].split()[0])
    assert cases >= 50, done.stdout
