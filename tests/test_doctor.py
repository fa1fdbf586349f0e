"""The doctor: no complaint on a healthy machine, and each staged fault found, by the right check."""

import copy
import json
import os
import shutil

import pytest
from conftest import MNIST, ROOT, run

from dpcnn.cluster.checks import FAIL, OK, WARN, judge, screen


@pytest.fixture(scope="module")
def healthy():
    """The facts of a job of two ranks, put on two hosts with four cores and no other load."""
    result = run(2, "-m", "dpcnn.doctor", "--json", "--data", MNIST)
    assert result.status == 0, result.err + result.out
    facts = json.loads(result.out)["facts"]
    for number, rank in enumerate(facts["ranks"]):
        rank |= {"host": f"node{number}", "cores": [0, 1, 2, 3], "host_cores": 4, "gflops": 50.0, "memory_mb": 9000}
    facts["links"] = [{"host": "node1", "near": False, "latency": 2e-5, "bytes_per_second": 1.2e9}]
    return facts


def test_nothing_to_complain_of(healthy):
    checks = judge(healthy)
    assert [check.verdict for check in checks] == [OK] * len(checks), screen(checks)
    assert screen(checks).endswith(f"{len(checks)} OK, 0 WARN, 0 FAIL")
    assert "11 ms per step of simple-cnn" in screen(checks)


def both(facts, **changes):
    for rank in facts["ranks"]:
        rank |= changes


def one_host(facts, count, **changes):
    facts["ranks"] = [copy.deepcopy(facts["ranks"][0]) | changes for _ in range(count)]


FAULTS = {
    "each alone": ("launcher", FAIL, lambda f: both(f, asked=2, size=1)),
    "fewer ranks than tasks": ("ranks", WARN, lambda f: f.update(environment={"SLURM_NTASKS": "8"})),
    "ranks outnumber cores": ("ranks", WARN, lambda f: one_host(f, 5)),
    "8 ranks x 10 threads": ("binding", FAIL, lambda f: one_host(f, 8, threads=10, cores=list(range(8)), host_cores=8)),
    "all bound to one core": ("binding", FAIL, lambda f: one_host(f, 2, cores=[0])),
    "two of three on a core": ("binding", FAIL, lambda f: (one_host(f, 3, cores=[0]), f["ranks"][2].update(cores=[1]))),
    "another Python": ("software", FAIL, lambda f: f["ranks"][1]["software"].update(python="3.10.1")),
    "another BLAS kernel": ("numerics", FAIL, lambda f: f["ranks"][1]["numerics"].update(blas="openblas Haswell")),
    "a slow node": ("speed", WARN, lambda f: f["ranks"][1].update(gflops=20.0)),
    "little memory": ("memory", FAIL, lambda f: f["ranks"][1].update(memory_mb=200)),
    "containers": ("shared memory", WARN, lambda f: f.update(apart="warning: ranks can't share memory")),
    "a read-only place": ("output", FAIL, lambda f: f["output"].update(fault="Read-only file system")),
    "a full disk": ("output", FAIL, lambda f: f["output"].update(free_mb=3)),
    "a place of one node": ("output", WARN, lambda f: f["output"].update(seen=[True, False])),
    "no locks": ("file locks", WARN, lambda f: f["output"].update(locks=False)),
    "a damaged shard": ("data", FAIL, lambda f: f["data"].update(faults=["", "shard 3 is damaged"])),
    "two data sets": ("data", FAIL, lambda f: f["data"].update(checksums=["a", "b"])),
    "a slow network": ("network", WARN, lambda f: f["links"][0].update(latency=0.01)),
    "UDP is blocked": ("heartbeats", WARN, lambda f: f.update(unwatched="warning: heartbeats from node1 ...")),
    "a job without an end": ("time", WARN, lambda f: f.update(environment={"PBS_JOBID": "7"})),
    "a job at its end": ("time", WARN, lambda f: f.update(environment={"DPCNN_JOB_END": str(int(f["now"]) + 30)})),
    "a garbled end": ("time", FAIL, lambda f: f.update(environment={"PBS_WALLTIME": "1h"})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_check_and_told_with_what_to_do(healthy, fault):
    name, verdict, inflict = FAULTS[fault]
    facts = copy.deepcopy(healthy)
    inflict(facts)
    found = {check.name: check for check in judge(facts) if check.verdict != OK}
    assert name in found and found[name].verdict == verdict and found[name].advice
    assert set(found) <= ({name, "ranks"} if name == "binding" else {name})
    assert f"{verdict:<5} {name}" in screen(judge(facts))


def test_faults_for_real(tmp_path):
    """A BLAS thread for each core on each rank, a shard with a flipped bit, a place that can't be written."""
    threads = max(2, os.cpu_count())
    folder = tmp_path / "mnist"
    shutil.copytree(MNIST, folder)
    shard = folder / "train-03.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    words = ["-m", "dpcnn.doctor", "--data", folder, "--out", "/proc"]
    result = run(2, *words, env={"OPENBLAS_NUM_THREADS": str(threads)}, cwd=ROOT)
    assert result.status == 1 and "Traceback" not in result.err, result.err
    failed = [line.split()[1] for line in result.out.splitlines() if line.startswith(FAIL)]
    assert failed == ["binding", "output", "data"], result.out
    assert f"2 ranks x {threads} BLAS threads on " in result.out and "train-03.h5" in result.out


def test_a_file_in_place_of_the_folder_for_runs_is_found(tmp_path):
    (tmp_path / "runs").touch()
    result = run(0, "-m", "dpcnn.doctor", "--data", MNIST, "--out", tmp_path / "runs")
    assert result.status == 1 and result.err == ""
    assert f"FAIL  output         {tmp_path / 'runs'}: Not a directory" in result.out
