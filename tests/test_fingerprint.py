"""The numerics of ranks, compared: by hand, and with ranks that were really started unlike."""

import os
import shlex
import shutil
import sys

from conftest import Job

from dpcnn.base.numerics import differences, fingerprint


def test_what_decides_the_bits():
    found = fingerprint()
    assert set(found) == {"numpy", "blas", "cpu_features", "machine"}
    assert found["blas"] != "unknown" and found["cpu_features"]
    assert found == fingerprint()


def test_differences_are_named_once_a_kind():
    one = {"numpy": "2.4.6", "blas": "openblas 0.3.31 SkylakeX, 1 thread", "cpu_features": ["AVX2", "AVX512F"]}
    two = one | {"blas": "openblas 0.3.31 Haswell, 1 thread", "cpu_features": ["AVX2"]}
    assert differences([("a", one), ("b", one)]) == []
    lines = differences([("a", one), ("a", one), ("b", two), ("b", two)])
    assert lines[0] == (
        "the numerics of rank 2 on b differ from those of rank 0 on a: blas openblas 0.3.31 Haswell, 1 thread, "
        "not openblas 0.3.31 SkylakeX, 1 thread; cpu_features AVX512F on one of them only"
    )
    assert len(lines) == 2 and "--numerics portable" in lines[1]


def test_a_rank_with_other_threads_is_told_of(quick, tmp_path):
    train = shlex.join(
        [sys.executable, "-m", "dpcnn.train", *quick, "--max-steps", "1", "--out", str(tmp_path / "run")]
    )
    unlike = f"{shutil.which('mpirun')} -n 1 {train} : -n 1 {shutil.which('env')} OPENBLAS_NUM_THREADS=2 {train}"
    result = Job(["bash", "-c", unlike], env={"OPENBLAS_NUM_THREADS": "1"}).wait()
    assert result.status == 0, result.err
    assert f"the numerics of rank 1 on {os.uname().nodename} differ from those of rank 0" in result.out
    assert "2 threads, not openblas" in result.out
