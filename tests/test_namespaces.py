"""Nodes for real: hosts of their own in network namespaces, with TCP of a limited rate between them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import training
from conftest import Job
from metrics import until_step

from dpcnn.evidence.forecast import read_job

SCRIPT = Path(__file__).parent / "namespaces.sh"
TOOLS = ("ip", "tc", "unshare")
HOSTS = {"DPCNN_HOSTS": "dpcnntest", "DPCNN_SUBNET": "7"}


def script(*words):
    return subprocess.run([SCRIPT, *words], env=os.environ | HOSTS, capture_output=True, text=True, timeout=60)


def why_not():
    """Why there can be no such hosts here, or None."""
    if os.geteuid() or not all(shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") for tool in TOOLS):
        return "network namespaces need root and iproute2"
    if not (Path(sys.executable).parent / "ompi_info").exists():
        return "tests/namespaces.sh starts ranks with Open MPI"
    made = script("up", "1", "1gbit")
    script("down")
    return None if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


@pytest.fixture(scope="module")
def hosts():
    """Two hosts at 1 Gbit/s."""
    if reason := why_not():
        pytest.skip(reason)
    script("up", "2", "1gbit")
    yield
    script("down")


def start_on_hosts(ranks, *words):
    spread = {2: "h1:1,h2:1", 3: "h1:2,h2:1"}[ranks]
    return Job([SCRIPT, "mpirun", "--host", spread, "-n", str(ranks), sys.executable, *words], env=HOSTS)


def on_hosts(ranks, *words):
    return start_on_hosts(ranks, *words).wait(90)


def weights(result):
    assert result.status == 0, result.err
    return result.out.split("weights ")[-1].split()[0]


@pytest.mark.slow
def test_ranks_on_two_hosts_train_to_the_same_bits(hosts, quick, tmp_path):
    expected = weights(training(*quick, "--out", tmp_path / "one"))
    result = on_hosts(3, "-m", "dpcnn.train", "--no-curves", *quick, "--out", tmp_path / "three")
    assert weights(result) == expected
    assert "warning" not in result.out, "heartbeats reach the other host"


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "host"), [(0, "h1"), (1, "h2")])
def test_a_rank_that_stops_is_named_by_one_on_the_other_host(hosts, quick, tmp_path, victim, host):
    flags = [*quick, "--epochs", "3000", "--no-curves", "--stall-timeout", "3", "--out", tmp_path / "run"]
    job = start_on_hosts(2, "-m", "dpcnn.train", *flags)
    until_step(tmp_path / "run", 3, job)
    network = os.stat(f"/run/netns/dpcnntest-{host}").st_ino
    (there,) = [pid for pid in job.ranks() if os.stat(f"/proc/{pid}/ns/net").st_ino == network]
    os.kill(there, signal.SIGSTOP)
    result = job.wait(60)
    assert result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {host} has sent no heartbeat for " in line


@pytest.mark.slow
def test_the_benchmark_sees_the_network(hosts, small, tmp_path):
    path = tmp_path / "there.json"
    assert on_hosts(2, "-m", "dpcnn.bench", "--data", small, "--exchange-only", "--json", path).status == 0
    there = read_job(path)
    assert (there.ranks, there.nodes) == (2, 2)
    least = 4 * there.size / 125e6  # each host sends half of the sums, then half of the parameters
    assert there.seconds > 0.8 * least


CLOCK = """
import dpcnn.parallel.start
from dpcnn.runs.trace import clock_offset
comm = dpcnn.parallel.start.world()
offset = clock_offset(comm)
if comm.rank: print("off by", offset)
"""


@pytest.mark.slow
def test_clocks_of_two_hosts_are_brought_together(hosts):
    """The hosts are one machine's, so their clocks don't differ: what is found of that is the error."""
    result = on_hosts(2, "-c", CLOCK)
    assert result.status == 0, result.err
    assert 0 < abs(float(result.out.split("off by ")[1])) < 1e-3
