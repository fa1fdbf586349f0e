"""The benchmark: what it says adds up. How fast anything is, no test asks."""

import json
from unittest import mock

import pytest
from commands import command
from conftest import run

from dpcnn import bench, verify
from dpcnn.base.options import flag_of
from dpcnn.config import Config
from dpcnn.data.dataset import load
from dpcnn.data.shards import read_manifest
from dpcnn.evidence.measure import measure, time_steps, warm_up
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training import plan
from dpcnn.training.trainer import Trainer


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_job_measures_itself(quick, tmp_path, ranks):
    words = [*quick, "--steps", "4", "--json", tmp_path / "b.json"]
    result = run(ranks, "-m", "dpcnn.bench", *words) if ranks else command("bench", *words)
    ranks = ranks or 1
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["ranks"] == ranks == len(found["shares"]) == len(found["memory"])
    for shares in found["shares"]:
        assert 0.5 < sum(shares.values()) <= 1.01 and min(shares.values()) >= 0
    images = 75 + 90 + 90 + 75  # of the sixth to the ninth batch of 255 training samples
    assert found["images_per_second"] == pytest.approx(images / (4 * found["seconds_a_step"]))
    limit = found["sgemm_peak"] / found["flops_an_image"]
    assert found["fraction_of_limit"] == pytest.approx(found["images_per_second"] / limit)
    assert all(0 < used["own"] <= used["peak"] for used in found["memory"])
    assert len(found["exchange"]["ratios"]) == 9 and found["exchange"]["ratio"] > 0
    assert f"simple-cnn, {ranks} rank{'s' * (ranks > 1)}, batch 90 in microbatches of 16: " in result.out
    assert " ms per step of 82.5 images on average: an epoch ends in a smaller batch\n" in result.out
    assert "exact exchange and Adam on shards" in result.out.splitlines()[-1]


def test_an_exchange_alone_depends_on_the_network(small, tmp_path):
    words = ["--exchange-only", "--data", small, "--model", "mlp", "--steps", "2", "--json", tmp_path / "b.json"]
    result = command("bench", *words)
    assert result.status == 0 and result.out.startswith("1 rank: exact exchange and Adam on shards"), result.err
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["parameters"] == 144 * 128 + 128 + 128 * 10 + 10 and "seconds_a_step" not in found


def of_seven_steps(data):
    """A configuration, its network and its samples; an epoch has seven steps."""
    config, samples = (
        Config(data=str(data), batch=90, microbatch=45, model="small-cnn"),
        load(data, "train", SerialComm()),
    )
    return config, config.network(samples.manifest.image_shape, samples.manifest.classes), samples


def test_a_measurement_draws_the_order_of_each_epoch_once(small):
    """Each step of a measurement with more steps than an epoch took as long as two random orders of all samples."""
    trainer = Trainer(SerialComm(), *of_seven_steps(small), RunFolder(small), Reporter())
    with mock.patch.object(plan, "permutation", wraps=plan.permutation) as drawn:
        warm_up(trainer)
        time_steps(SerialComm(), trainer, 3 * trainer.plan.steps_per_epoch)
    epochs = [call.args[1] for call in drawn.call_args_list]
    assert epochs == sorted(set(epochs)) and len(epochs) >= 3


def test_the_clock_does_not_count_an_order_that_the_warm_up_has_drawn(small):
    timed: list[int] = []

    def record(*arguments):
        with mock.patch.object(plan, "permutation", wraps=plan.permutation) as drawn:
            seconds = time_steps(*arguments)
        timed.extend(call.args[1] for call in drawn.call_args_list)
        return seconds

    with mock.patch("dpcnn.evidence.measure.time_steps", record):
        measure(SerialComm(), *of_seven_steps(small), 20)
    assert timed == [2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "effect"),
    [
        ("--compile", "an effect only with --versus"),
        ("--compile --survive", "an effect only with --versus"),
        ("--batches 8 --scaling 1", "an effect only with --versus"),
        ("--ranks 3 --layers", "an effect only with --versus or --survive"),
        ("--ranks 2", "an effect only with --versus or --survive"),
        ("--rounds 2", "an effect only with --scaling or --versus or --survive or --layers"),
        ("--launcher srun", "an effect only with --scaling or --versus or --survive"),
        ("--ranks 2 --exchange-only", "an effect only with --versus or --survive"),
        ("--steps 5 --layers", "no effect with --layers"),
    ],
)
def test_an_option_of_another_measurement_is_refused(flags, effect):
    result = command("bench", *flags.split())
    option = flags.split()[0]
    assert (result.status, result.err) == (
        2,
        f"dpcnn: error: {option}: has {effect}; leave it out\n",
    )


def test_a_batch_needs_memory_for_the_sums_of_its_microbatches(small):
    network = read_recipe("simple-cnn").network(read_manifest(small).image_shape, read_manifest(small).classes)
    left = network.memory(1) + 9 * 4 * network.size  # six vectors of Adam's two states, and three sums
    flags = ["--data", small, "--validation", "8", "--microbatch", "1", "--steps", "1"]
    with mock.patch("dpcnn.nn.network.memory_left", lambda: left):
        fits, refused = (command("bench", *flags, "--batch", batch) for batch in ("8", "16"))
    assert fits.status == 0, fits.err
    assert refused.status == 2 and "are free here; give a smaller --microbatch" in refused.err


def test_flops_by_hand():
    network = Network((28, 28, 1), build(MODELS["simple-cnn"], 10))
    convolutions = 28**2 * 9 * 16 * 2 + 14**2 * 9 * 16 * 32 * 3 + 14**2 * 9 * 32 * 64 * 3
    assert network.flops == 2 * (convolutions + 3136 * 512 * 3 + 512 * 10 * 3)


@pytest.mark.slow
def test_scaling_starts_the_jobs_and_draws_them(quick, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["-m", "dpcnn.bench", "--scaling", "1,2", "--rounds", "1", "--steps", "2", *quick]
    result = run(0, *words, cwd=tmp_path)
    assert result.status == 0, result.err
    rows = [line.split(" | ") for line in result.out.splitlines() if line.startswith(("| strong", "| weak"))]
    assert [row[:3] for row in rows] == [
        ["| strong", "1", "90"], ["| strong", "2", "90"], ["| weak", "1", "90"], ["| weak", "2", "180"]
    ]  # fmt: skip
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_cost_of_survival_is_measured(quick, tmp_path):
    words = ["-m", "dpcnn.bench", "--survive", "--ranks", "2", "--rounds", "1", "--steps", "10", *quick]
    result = run(0, *words, "--json", tmp_path / "b.json")
    if "Open MPI v5" not in result.out:
        assert result.status == 2 and len(result.errors) == 1, result.err
        pytest.skip("only the ranks of Open MPI 5 survive")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "b.json").read_text())
    assert [len(times) for times in found["seconds_a_step"].values()] == [1, 1]
    assert all(0 < seconds < 60 for seconds in found["seconds_to_the_next_step"])
    assert "| from a rank's death to the next step |" in result.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--survive", "--ranks", "1"], "--ranks: --survive needs at least 2, not 1"),
        (["--steps", "0"], "--steps: must be from 1 to 2147483647, not 0"),
        (["--layers", "--scaling", "1,2"], "argument --scaling: not allowed with argument --layers"),
        (["--layers", "--versus", "torch"], "argument --versus: not allowed with argument --layers"),
        (["--json", "nosuchfolder/b.json"], "--json: no such folder: nosuchfolder; create it"),
        (
            ["--json", "own.txt"],
            "--json: own.txt: exists, and this command did not write it; give another name, or delete it",
        ),
        (["--max-steps", "9"], "--max-steps: has no effect on a measurement; leave it out"),
        (
            ["--exchange-only", "--lr", "0.1"],
            "--lr: has no effect with --exchange-only, which depends on the number of ",
        ),
        (["--exchange-only", "--no-test"], "--test: has no effect on a measurement"),
        (["--exchange-only", "--model", "mlp", "--batch", "8"], "--batch: has no effect with --exchange-only, which "),
        (["--scaling", "1,2", "--keep", "2"], "--keep: has no effect on a measurement; leave it out"),
        (["--scaling", "1,x"], "--scaling: expected numbers such as 1,2,4, not 1,x"),
        (["--versus", "torch", "--batches", "8,8"], "--batches: expected different numbers, not 8,8"),
        (["--scaling", "1,2", "--launcher", "nosuchrun"], "--launcher: no nosuchrun on the PATH"),
    ],
)
def test_mistakes(tmp_path, flags, message):
    (tmp_path / "own.txt").write_text("mine\n")
    result = command("bench", *flags, cwd=tmp_path)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]


def test_a_mistake_that_a_started_job_finds(tmp_path):
    result = run(0, "-m", "dpcnn.bench", "--scaling", "1", "--data", "nosuchdata", cwd=tmp_path)
    message = "it said: dpcnn: error: no data set 'nosuchdata'"
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]


def test_the_help_omits_what_the_command_refuses():
    for module, refused in ((bench, bench.IDLE), (verify, verify.OWN)):
        usage = module.make_parser().format_usage()
        assert "[--model " in usage and not any(f"[{flag_of(name)} " in usage for name in refused)
