"""The cost model: constants that were put in come out again, and bad files are refused."""

import json
import random
from dataclasses import replace

import pytest
from commands import command
from conftest import run

from dpcnn.errors import ConfigError
from dpcnn.evidence.forecast import TERMS, Job, check, fitted, look_ahead, predicted, read_job
from dpcnn.nn.layers import WeightProduct
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network

CONSTANTS = dict(zip(TERMS, (2e-12, 3e-9, 2e-9, 1e-4, 1e-9, 2e-9, 5e-6, 4e-5, 8e-9), strict=True))


def jobs(count, seed=0):
    """Jobs of every kind, that take just as long as the model says."""
    draw = random.Random(seed)
    for _ in range(count):
        nodes, a_node, microbatches = draw.randint(1, 9), draw.randint(1, 8), draw.randint(0, 4)
        images = 32 * microbatches * draw.randint(1, 4)
        size, flops, activations = draw.randint(1, 10**7), draw.randint(1, 10**8), draw.randint(1, 10**5)
        job = Job(nodes * a_node, nodes, images, microbatches, size, flops, activations)
        yield replace(job, seconds=sum(value * TERMS[name][1](job) for name, value in CONSTANTS.items()))


def test_the_constants_come_out_again():
    fit = fitted(list(jobs(60)))
    assert fit == pytest.approx(CONSTANTS, rel=1e-6)
    others = list(jobs(20, seed=1))
    assert [sum(predicted(fit, job).values()) for job in others] == pytest.approx([job.seconds for job in others])


def test_no_constant_is_negative():
    found = [replace(job, seconds=job.seconds * random.Random(n).uniform(0.5, 2)) for n, job in enumerate(jobs(30))]
    assert min(fitted(found).values()) >= 0


def test_jobs_of_one_network_and_microbatch_are_foretold_though_their_terms_are_not_told_apart():
    """As launch/slurm-scaling.sbatch measures them: fitted to a fixed batch per rank, foretold with a fixed batch."""

    def job(ranks, images):
        job = Job(ranks, min(4, ranks), images, images / 32, 10**6, 10**7, 10**4)
        return replace(job, seconds=sum(predicted(CONSTANTS, job).values()))

    counts = (1, 2, 4, 8, 16, 32, 64)
    fit = fitted([job(ranks, 128) for ranks in counts])
    assert set(TERMS) - set(fit) == {"gamma, memory", "gamma, weights", "gamma, microbatch"}
    strong = [job(ranks, 1024 / ranks) for ranks in counts]
    assert [sum(predicted(fit, job).values()) for job in strong] == pytest.approx([job.seconds for job in strong])
    with pytest.raises(ConfigError, match="give more, of other networks"):
        fitted([job(ranks, 128) for ranks in (1, 2, 4)])


def test_one_node_has_no_network():
    assert not {name for name in fitted([job for job in jobs(200) if job.nodes == 1]) if "network" in name}


def test_a_step_between_nodes_by_hand():
    """Of 8 bytes a parameter, there and back, a node keeps a quarter; it has 3 others, all in 2 rounds."""
    job = Job(ranks=4, nodes=4, images=0, microbatches=0, size=1000, flops=0, activations=0)
    times = predicted({"alpha, network": 1e-3, "beta, network": 1e-6}, job)
    assert times == pytest.approx({"alpha, network": (2 * 3 + 2) * 1e-3, "beta, network": 6000 * 1e-6})


def test_factors_and_copies_by_hand():
    """A layer of 3136 by 512 beside 20,000 other parameters, 64 images of each other node: with few nodes, factors and
    copies; with many, all images' factors are more than sums."""
    C, F, others, times = 3136, 512, 20_000, {"beta, network": 1.0, "gamma, update": 1.0, "alpha, network": 1.0}
    products = {7: WeightProduct(0, C, F)}
    job = Job(2, 2, images=64, microbatches=1, size=C * F + others, flops=0, activations=0, products=products)
    rows = products[7].rows(64)
    assert predicted(times, job) == {
        "beta, network": 4 * (others + 64 * (C + rows + F)),
        "gamma, update": C * F + others,
        "alpha, network": 2 + 1,
    }
    many = replace(job, ranks=64, nodes=64)
    assert predicted(times, many) == predicted(times, replace(many, products={}))


def test_errors_of_the_check(tmp_path):
    job = replace(next(jobs(1)), seconds=1.0)
    guess = sum(predicted(CONSTANTS, job).values())
    text = check(CONSTANTS, [(tmp_path / "a.json", replace(job, seconds=guess / 1.1))])
    assert text.splitlines()[2].endswith("| +10% |") and text.endswith("median error of these 10%, largest 10%")


def test_twice_the_ranks_without_a_network_are_twice_as_fast():
    base = Job(ranks=2, nodes=1, images=64, microbatches=1, size=1000, flops=1e6, activations=1e4)
    _, speeds = look_ahead({"gamma, arithmetic": 1e-11}, base, 2, [1, 2, 4])
    for kind in speeds.values():
        assert list(kind) == [2, 4, 8]
        assert [kind[ranks] / kind[2] for ranks in kind] == pytest.approx([1, 2, 4])


@pytest.mark.slow
def test_from_the_benchmark_to_a_forecast(quick, tmp_path):
    files = []
    for ranks, more in ((1, []), (2, []), (2, ["--microbatch", "45"]), (2, ["--exchange-only"])):
        files.append(tmp_path / f"{len(files)}.json")
        nodes = {"DPCNN_PRETEND_NODES": "1,1"} if "--exchange-only" in more else {}
        words = ["-m", "dpcnn.bench", *(quick[:2] if nodes else quick), "--steps", "3", *more, "--json", files[-1]]
        assert run(ranks, *words, env=nodes).status == 0
    found = [read_job(path) for path in files]
    assert [(job.ranks, job.nodes, job.images, job.microbatches) for job in found] == [
        (1, 1, 90, 6), (2, 1, 45, 3), (2, 1, 45, 1), (2, 2, 0, 0)
    ]  # fmt: skip
    assert {job.size for job in found} == {Network((12, 12, 1), build(MODELS["simple-cnn"], 10)).size} and all(
        job.seconds > 0 for job in found
    )
    result = run(0, "-m", "dpcnn.forecast", "--fit", files[2], "--nodes", "1,4", "--check", *files[:2])
    assert result.status == 2 and "give more, of other networks" in result.err


def test_without_a_training_there_are_constants_and_no_forecast(tmp_path):
    """A picture was asked for, and the command ended with status 0 and drew none."""
    files = []
    for number, job in enumerate(job for job in jobs(60) if not job.images):
        files.append(tmp_path / f"{number}.json")
        times = {"exchange": {"milliseconds": {"exact": [1e3 * job.seconds]}}}
        files[-1].write_text(json.dumps({"ranks": job.ranks, "nodes": job.nodes, "parameters": job.size, **times}))
    fitted = command("forecast", "--fit", *files)
    assert fitted.status == 0 and "| gamma, update | " in fitted.out, fitted.err
    assert fitted.out.splitlines()[-1].startswith("no forecast: no file of --fit measures a training; give one of")
    for flags in (["--plot", tmp_path / "s"], ["--latency", "1e-5"], ["--nodes", "1"], ["--ranks-per-node", "2"]):
        result = command("forecast", "--fit", *files, *flags)
        assert (result.status, result.out) == (2, "") and not list(tmp_path.glob("*.png"))
        assert result.err.startswith(f"dpcnn: error: {flags[0]}: no file of --fit measures a training; give one of ")


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"ranks": 1, "nodes": 1, "parameters": None})])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="expected a file of dpcnn bench --json, of one job"):
        read_job(path)
