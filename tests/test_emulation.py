"""The same bits on processors of other kinds, as QEMU's user-mode emulation shows them: Debian's package qemu-user."""

import re
import shutil
import sys

import pytest
from conftest import Job, many
from test_golden import deviations

QEMU = shutil.which("qemu-x86_64")
TRAININGS = ["lenet5", "mlp", "all-options"][: many(3)]
PROCESSORS = [("Haswell-v4", TRAININGS), ("EPYC-Rome-v1", ["lenet5"]), ("Skylake-Client-v4", ["lenet5"])][: many(3)]
"""Of the golden trainings, those that take no minutes under emulation."""

MODELS, OLD_PROCESSORS = ["mlp", "simple-cnn"][: many(2)], ["Nehalem", "Opteron_G5"][: many(2)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64: apt-get install qemu-user"),
]


def emulated(processor: str) -> list[str]:
    """The Python of these tests on another processor, without the kernels that the tests have chosen for this one."""
    return ["env", "-u", "OPENBLAS_CORETYPE", str(QEMU), "-cpu", processor, sys.executable]


@pytest.mark.parametrize(("processor", "trainings"), PROCESSORS)
def test_a_processor_of_another_kind_gives_the_bits_of_the_table(processor, trainings):
    if deviations():
        pytest.skip(f"not the numerics of the table: {deviations()}")
    words = ["-m", "dpcnn.verify", "--golden", *trainings, "--numerics", "portable"]
    result = Job([*emulated(processor), *words]).wait(limit=600)
    assert result.status == 0, result.out + result.err
    assert result.out.splitlines()[-1] == "PASS" and "numerics differ" not in result.out


def mixed(*words: str) -> Job:
    """A training on two ranks of one job, the second one on an emulated processor."""
    train = ["-m", "dpcnn.train", "--no-curves", "--stall-timeout", "0", *words]
    ranks = [["-n", "1", sys.executable, *train], ["-n", "1", *emulated("Haswell-v4"), *train]]
    return Job([str(shutil.which("mpirun")), *ranks[0], ":", *ranks[1]])


@pytest.mark.parametrize("model", MODELS)
def test_ranks_on_unlike_processors_give_the_bits_of_one_rank(quick, tmp_path, model):
    words = [*quick, "--model", model, "--max-steps", "3", "--numerics", "portable", "--out"]
    alone = Job([sys.executable, "-m", "dpcnn.train", "--no-curves", *words, str(tmp_path / "alone")]).wait()
    both = mixed(*words, str(tmp_path / "both")).wait(limit=300)
    assert (alone.status, both.status) == (0, 0), both.err
    assert "2 ranks" in both.out and "numerics of rank 1" not in both.out
    assert both.out.split()[-1] == alone.out.split()[-1] and re.fullmatch("[0-9a-f]{64}", both.out.split()[-1])


def test_native_ranks_on_unlike_processors_are_told_to_be_portable(quick, tmp_path):
    words = [*quick, "--model", "mlp", "--max-steps", "1", "--out", str(tmp_path / "run")]
    code = "import dpcnn; print(*dpcnn.startup.instructions())"
    if "avx512f" not in Job([sys.executable, "-c", code]).wait().out:
        pytest.skip("this processor has no AVX-512, which the emulated one lacks")
    result = mixed(*words).wait(limit=300)
    assert result.status == 0, result.err
    assert "the numerics of rank 1" in result.out and "--numerics portable" in result.out


@pytest.mark.parametrize("processor", OLD_PROCESSORS)
def test_a_processor_without_avx2_says_why_its_bits_may_differ(quick, tmp_path, processor):
    words = [*quick, "--model", "mlp", "--max-steps", "1", "--numerics", "portable", "--out", str(tmp_path / "run")]
    command = [*emulated(processor), "-m", "dpcnn.train", "--no-curves", *words]
    result = Job(command).wait(limit=300)
    assert result.status == 0, result.err
    told = [line for line in result.out.splitlines() if line.startswith("the bits may not be those of other machines")]
    assert len(told) == 1 and "this processor lacks" in told[0] and "avx2" in told[0]


def test_kernels_fit_the_processor_and_not_linux_s_description_of_another(quick, tmp_path):
    """Linux describes the processor of the host, under emulation too."""
    words = [*quick, "--model", "mlp", "--max-steps", "1", "--out", str(tmp_path / "run")]
    command = [*emulated("Haswell-v4"), "-m", "dpcnn.train", "--no-curves", *words]
    result = Job(command).wait(limit=300)
    assert result.status == 0 and "Haswell, 1 thread" in result.out, result.err
