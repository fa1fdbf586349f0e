"""Output that nobody reads, or that finds no room: what a command returns, and what it says."""

import os
import subprocess
import sys
from unittest import mock

import pytest
from conftest import run

from dpcnn import __main__

ROOM = {
    "pipe": "set -o pipefail; {} | true",
    "full": "{} > /dev/full",
    "closed": "{} >&-",
    "all full": "{} &> /dev/full",
}


def status(how: str, *words: str, buffered: bool = True) -> tuple[int, str]:
    """The exit status of ``dpcnn WORDS`` without a launcher, and what it prints to stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    line = ROOM[how].format(f"{sys.executable} -m dpcnn {' '.join(words)}")
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ["--help", "--version", "summary --help", "summary fast"])
@pytest.mark.parametrize("how", ["pipe", "closed"])
def test_a_program_that_reads_no_more_is_no_error(how, words):
    code, said = status(how, words)
    assert code == 0 and "Error" not in said  # argparse prints its help to stderr if there is no stdout


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_is_named(buffered):
    assert status("full", "summary", "fast", buffered=buffered) == (
        2,
        "dpcnn: error: <stdout>: No space left on device\n",
    )


def test_an_error_keeps_its_status_where_it_can_t_be_printed():
    assert status("all full", "summary", "nothing")[0] == 2


@pytest.mark.parametrize("how", ["pipe", "full"])
def test_a_training_that_nobody_watches_ends_well(how, small, tmp_path):
    words = ["train", "--model", "mlp", "--data", str(small), "--max-steps", "1", "--no-curves"]
    assert status(how, *words, "--out", str(tmp_path / "run")) == (0, "")
    assert '"event": "end"' in (tmp_path / "run" / "metrics.jsonl").read_text()


INTERRUPTED = """
import sys
from unittest import mock
from dpcnn import cli, doctor
def world():
    raise KeyboardInterrupt
cli.world = world
sys.exit(doctor.main([]))
"""


def test_ctrl_c_while_mpi_starts_is_no_traceback():
    result = run(0, "-c", INTERRUPTED)
    assert (result.status, result.out, result.err) == (130, "", "")


def test_ctrl_c_while_a_command_is_loaded_is_no_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dpcnn", "doctor"])
    monkeypatch.setattr(__main__.importlib, "import_module", mock.Mock(side_effect=KeyboardInterrupt))
    assert __main__.main() == 130


def test_a_command_that_does_not_exist_is_one_line_of_a_job():
    result = run(3, "-m", "dpcnn", "trian")
    assert result.status == 2
    assert result.errors == ["dpcnn: error: no command 'trian'; did you mean 'train'?; see dpcnn --help"]
    result = run(3, "-m", "dpcnn", "--version")
    assert result.status == 0 and len(result.out.splitlines()) == 1
