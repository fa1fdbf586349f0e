"""The fuzz test with a fixed budget; see fuzz.py, which runs it for any time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 20


@pytest.mark.slow
def test_no_file_makes_a_command_fail_in_another_way_than_by_one_line():
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    seed = os.environ.get("DPCNN_FUZZ_SEED") or str(int.from_bytes(os.urandom(4)))
    command = [sys.executable, Path(__file__).parent / "fuzz.py", "--seconds", str(SECONDS), "--seed", seed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * SECONDS)
    print(done.stdout)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    cases = int(done.stdout.splitlines()[-1].split()[0])
    assert cases >= 50, done.stdout
