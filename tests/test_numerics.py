"""Native and portable numerics: what is settled before NumPy loads, and that a run gets what its options ask for."""

import pytest
from commands import training
from conftest import run, train

from dpcnn.base import cpuid, startup
from dpcnn.base.numerics import PORTABLE, vector_bits
from dpcnn.base.startup import AVX512, NEEDED, choose_blas, hold_kernels, numpy_version, typed_numerics

OTHERS = {"OPENBLAS_CORETYPE": "Sandybridge"}
"""Kernels that are not the portable ones, for processes that would load those anyway."""


def test_the_user_s_threads_stay():
    for given in ({"OMP_NUM_THREADS": "3"}, {"OPENBLAS_NUM_THREADS": "2"}):
        environment = dict(given)
        choose_blas(environment, [])
        assert environment == given
    environment = {}
    choose_blas(environment, [])
    assert environment["OPENBLAS_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("found", "core"),
    [
        ({"AuthenticAMD", *NEEDED, *AVX512}, "SkylakeX"),
        ({"AuthenticAMD", *NEEDED, *AVX512} - {"avx512vl"}, None),
        ({"AuthenticAMD", *NEEDED}, None),
        ({"GenuineIntel", *NEEDED, *AVX512}, None),
        (set(), None),
    ],
)
def test_avx512_kernels_where_detection_misses_them(found, core):
    environment = {}
    choose_blas(environment, found)
    assert environment.get("OPENBLAS_CORETYPE") == core
    choose_blas(mine := {"OPENBLAS_CORETYPE": "Zen"}, found)
    assert mine["OPENBLAS_CORETYPE"] == "Zen"


@pytest.mark.parametrize(
    ("numerics", "found", "kernels", "bits"),
    [
        ("native", {*NEEDED, *AVX512}, ["SkylakeX"], 512),
        ("native", {*NEEDED, *AVX512}, ["SapphireRapids", "Cooperlake"], 512),
        ("native", {*NEEDED, *AVX512}, [], 512),  # another BLAS
        ("native", {*NEEDED, *AVX512}, ["Haswell"], 256),
        ("native", {*NEEDED, *AVX512}, ["SkylakeX", "Zen"], 256),
        ("native", {*NEEDED, *AVX512} - {"avx512dq"}, ["Haswell"], 256),
        ("native", NEEDED, [], 256),
        ("portable", {*NEEDED, *AVX512}, ["SkylakeX"], 256),
    ],
)
def test_kernels_without_avx512_are_tuned_as_portable_ones(numerics, found, kernels, bits):
    assert vector_bits(numerics, found, kernels) == bits


@pytest.mark.skipif(not cpuid.instructions() >= {*NEEDED, *AVX512}, reason="this processor has no AVX-512")
@pytest.mark.parametrize(("core", "bits"), [("Haswell", 256), ("SkylakeX", 512)])
@pytest.mark.parametrize("first", ["dpcnn", "numpy"])
def test_the_tuning_is_that_of_the_kernels_that_the_user_has_chosen(core, bits, first):
    code = f"import {first}; from dpcnn.nn.tuning import BY_WIDTH, TUNING; print(TUNING == BY_WIDTH[{bits}])"
    assert run(0, "-c", code, env={"OPENBLAS_CORETYPE": core}).out.strip() == "True"


def test_ranks_have_one_blas_thread():
    code = "import dpcnn, numpy, threadpoolctl; print([i['num_threads'] for i in threadpoolctl.threadpool_info()])"
    clean = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), None)
    result = run(0, "-c", code, env={k: v for k, v in clean.items() if v})
    assert result.out.strip() == "[1]"


@pytest.mark.parametrize(
    ("version", "features"), [((2, 4, 6), "X86_V3"), ((2, 3, 5), "SSSE3 SSE41 POPCNT SSE42 AVX F16C FMA3 AVX2")]
)
def test_portable_kernels_replace_what_the_user_has_set(version, features):
    environment = {"OPENBLAS_CORETYPE": "SkylakeX", "NPY_DISABLE_CPU_FEATURES": "AVX2"}
    hold_kernels(environment, {"AuthenticAMD", *NEEDED, *AVX512}, version)
    assert environment == {"OPENBLAS_CORETYPE": "Haswell", "NPY_ENABLE_CPU_FEATURES": features}
    choose_blas(environment, {"AuthenticAMD", *NEEDED, *AVX512})
    assert environment["OPENBLAS_CORETYPE"] == "Haswell"


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_a_processor_without_an_instruction_is_left_alone(missing):
    environment = {"OPENBLAS_CORETYPE": "Nehalem"}
    hold_kernels(environment, NEEDED - {missing}, (2, 4, 6))
    assert environment == {"OPENBLAS_CORETYPE": "Nehalem"}


@pytest.mark.parametrize(
    ("program", "words", "typed"),
    [
        ("dpcnn.train", ["--numerics", "portable"], "portable"),
        ("-mdpcnn.train", ["--epochs", "1", "--numerics=portable"], "portable"),
        ("/venv/bin/dpcnn", ["train", "--numerics", "native", "--seed", "1"], "native"),
        ("dpcnn.train", ["--numerics", "portable", "--numerics", "native"], "native"),
        ("dpcnn.train", ["--numerics", "nonsense"], None),
        ("dpcnn.train", ["--out", "--numerics=portable2"], None),
        ("dpcnn.train", [], None),
        ("pytest", ["--numerics", "portable"], None),
        ("", [], None),
    ],
)
def test_the_typed_numerics(program, words, typed):
    assert typed_numerics(program, words) == typed


def test_a_program_may_have_set_more_arguments_than_it_was_given():
    assert run(0, "-c", "import sys; sys.argv = ['program', *'arguments']; import dpcnn").status == 0


def test_numpy_s_version_is_known_before_numpy_is_loaded():
    code = "import sys, dpcnn; v = dpcnn.startup.numpy_version(); assert 'numpy' not in sys.modules; import numpy; "
    code += "print('.'.join(map(str, v)) == numpy.__version__)"
    assert run(0, "-c", code).out.strip() == "True"
    assert len(numpy_version()) == 3


def test_the_processor_is_asked_and_not_linux():
    """On this machine, without emulation, both say the same."""
    told = cpuid._parse(cpuid._cpuinfo())
    if not told:
        pytest.skip("no x86-64 under Linux")
    assert cpuid.instructions() - {"osxsave"} == told


def test_what_linux_says_stands_in_where_memory_cannot_be_executed(monkeypatch):
    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(cpuid.mmap, "mmap", refused)
    monkeypatch.setattr(cpuid, "_cpuinfo", lambda: "vendor_id : AuthenticAMD\nflags : fpu avx2 fma xyz\n")
    assert cpuid.instructions() == {"AuthenticAMD", "avx2", "fma"}


def registers(xcr0: int):
    """A processor with all instructions, under an operating system that saves these registers."""

    def cpuid_(leaf, subleaf, address):
        values = (13, 0x756E6547, 0x6C65746E, 0x49656E69) if leaf == 0 else (2**32 - 1,) * 4
        (cpuid.ctypes.c_uint32 * 4).from_address(address)[:] = values

    return cpuid._ask(cpuid_, lambda: xcr0)


def test_instructions_count_only_where_the_operating_system_saves_their_registers():
    assert registers(0xE7) == {"GenuineIntel", *cpuid.BITS}
    assert registers(0x07) & {*NEEDED, *AVX512} == NEEDED
    assert not registers(0x03) & {"avx2", "fma", *AVX512}


def loaded(result) -> bool:
    """Whether a run's opening lines tell of the portable kernels."""
    return "Haswell, 1 thread, portable numerics" in result.out


needs_avx2 = pytest.mark.skipif(not cpuid.instructions() >= NEEDED, reason="this processor has no AVX2")


@needs_avx2
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_recipe_s_numerics_are_loaded_and_so_are_a_checkpoint_s(quick, tmp_path, ranks):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text('model = "mlp"\nnumerics = "portable"\n')
    first = train(ranks, *quick, "--recipe", recipe, "--max-steps", "3", "--out", folder, env=OTHERS)
    assert first.status == 0 and loaded(first), first.err
    assert not first.err
    again = train(ranks, "--resume", "--out", folder, "--max-steps", "5", env=OTHERS)
    assert again.status == 0 and loaded(again) and "numerics differ" not in again.out
    words = ["--model", "mlp", "--numerics", "portable", "--max-steps", "5", "--out", tmp_path / "typed"]
    typed = train(ranks, *quick, *words, env=OTHERS)
    assert typed.out.split()[-1] == again.out.split()[-1], "the same weights"
    refused = train(ranks, "--resume", "--out", folder, "--numerics", "native")
    assert refused.status == 2 and refused.errors[0].endswith("drop the flag or start a new run")


@needs_avx2
def test_commands_load_the_numerics_of_a_checkpoint_without_its_run(quick, tmp_path, small):
    assert train(0, *quick, "--numerics", "portable", "--max-steps", "2", "--out", tmp_path / "run").status == 0
    lone = tmp_path / "lone.h5"
    lone.write_bytes((tmp_path / "run" / "checkpoints" / "last.h5").read_bytes())
    trace = OTHERS | {"OPENBLAS_VERBOSE": "2"}  # OpenBLAS names its kernels as it loads
    for words in (["-m", "dpcnn.evaluate", lone], ["-m", "dpcnn", "evaluate", tmp_path / "run"]):
        result = run(0, *words, env=trace)
        assert result.status == 0 and result.err.split() == ["Core:", "Sandybridge", "Core:", "Haswell"]


def test_a_process_with_other_numerics_refuses_a_run(quick, tmp_path):
    other = next(name for name in startup.NUMERICS if name != startup.numerics)
    result = training(*quick, "--numerics", other, "--out", tmp_path / "run")
    assert result.status == 2 and f"set DPCNN_NUMERICS={other} before Python starts" in result.errors[0]
    assert not (tmp_path / "run").exists()


def test_unknown_numerics_in_the_environment(quick, tmp_path):
    result = train(0, *quick, "--out", tmp_path / "run", env={"DPCNN_NUMERICS": "exact"})
    assert result.status == 2 and result.errors == [
        "dpcnn: error: DPCNN_NUMERICS=exact: expected native or portable; change or unset it"
    ]


@pytest.mark.parametrize(("value", "status"), [("Portable", 1), ("", 0)])
def test_a_notebook_with_unknown_numerics_in_the_environment_trains_nothing(value, status):
    code = "import dpcnn, numpy as np; x = np.zeros((20, 8, 8), np.uint8); "
    code += "dpcnn.Classifier('mlp-adam', epochs=1).fit(x, np.arange(20) % 2)"
    result = run(0, "-c", code, env={"DPCNN_NUMERICS": value})
    assert result.status == status, result.err
    assert result.err.count("LaunchError: DPCNN_NUMERICS=Portable: expected native or portable") == status


@needs_avx2
def test_a_notebook_asks_by_a_variable():
    code = "import warnings; warnings.simplefilter('error'); import dpcnn; from dpcnn.base import numerics; "
    code += "from dpcnn.nn.tuning import TUNING; "
    code += "print(numerics.fingerprint()); print(numerics.deviations()); print(TUNING.copied)"
    result = run(0, "-c", code, env={"DPCNN_NUMERICS": "portable", "OPENBLAS_CORETYPE": "Zen"})
    assert result.status == 0, result.err
    found, why, copied = result.out.splitlines()
    assert copied == "0", "the tuning is that of AVX2"
    assert "Haswell, 1 thread" in found and "AVX512" not in found and "X86_V4" not in found
    assert bool(why) == (found != str(PORTABLE)), "any other difference is told"


@needs_avx2
def test_numpy_before_dpcnn_is_told_of():
    code = "import numpy, dpcnn; from dpcnn.base.numerics import deviations; print(deviations())"
    result = run(0, "-c", code, env={"DPCNN_NUMERICS": "portable", "OPENBLAS_CORETYPE": "Sandybridge"})
    assert "blas openblas" in result.out and "Sandybridge, " in result.out


@needs_avx2
def test_other_processes_inherit_what_the_user_has_set_and_not_what_was_settled():
    code = "import os, dpcnn; print(os.environ['OPENBLAS_CORETYPE'], dpcnn.startup.environment() == BEFORE)"
    code = f"import os; BEFORE = dict(os.environ); {code}"
    result = run(0, "-c", code, env={"DPCNN_NUMERICS": "portable", "OPENBLAS_CORETYPE": "Zen"})
    assert result.out.split() == ["Haswell", "True"]
