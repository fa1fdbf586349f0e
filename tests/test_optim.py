"""Optimizers against their papers, and against themselves in slices."""

import itertools

import numpy as np
import pytest

from dpcnn.nn import reference
from dpcnn.optim.averaging import update_average
from dpcnn.optim.clipping import squares
from dpcnn.optim.optimizer import UPDATE_BLOCK
from dpcnn.optim.optimizers import OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, Momentum, Nesterov, RMSProp
from dpcnn.optim.schedules import SCHEDULES

SIZE = 2 * UPDATE_BLOCK + 1234


def values(seed: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(dtype)


def test_adam_is_the_paper_s_algorithm():
    p, m, v = values(0, np.float64), np.zeros(SIZE), np.zeros(SIZE)
    ours, adam = p.copy(), Adam()
    state = adam.zeros(SIZE, np.float64)
    for step in range(1, 6):
        g = values(step, np.float64)
        adam.update(ours, 7 * g, state, step, 0.01, scale=1 / 7)
        reference.adam(p, m, v, g, step, 0.01, 0.9, 0.999, 1e-8)
        np.testing.assert_allclose(ours, p, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state["v"], v, rtol=1e-12)


def test_momentum_by_hand():
    p, u = values(0), np.zeros(SIZE, np.float32)
    ours, momentum = p.copy(), Momentum()
    state = momentum.zeros(SIZE)
    for step in range(1, 4):
        g = values(step)
        momentum.update(ours, g, state, step, 0.1)
        u = np.float32(0.9) * u + g
        p = p - np.float32(0.1) * u
        np.testing.assert_array_equal(ours, p)


def formula(kind, p, state, g, rate):
    """One step as the definition has it, in float64."""
    if kind is SGD:
        p -= rate * g
    elif kind is Nesterov:  # the update of the look-ahead point: momentum is applied once more
        state[...] = 0.7 * state + g
        p -= rate * (g + 0.7 * state)
    elif kind is AdaGrad:
        state += g**2
        p -= rate * g / (np.sqrt(state) + 1e-7)
    elif kind is RMSProp:
        state[...] = 0.99 * state + 0.01 * g**2
        p -= rate * g / (np.sqrt(state) + 1e-8)


@pytest.mark.parametrize("kind", [SGD, Nesterov, AdaGrad, RMSProp])
def test_others_are_their_formulas(kind):
    p, state = values(0, np.float64), np.zeros(SIZE)
    ours, optimizer = p.copy(), kind(**({"momentum": 0.7} if kind is Nesterov else {}))
    memory = optimizer.zeros(SIZE, np.float64)
    for step in range(1, 6):
        g = values(step, np.float64)
        optimizer.update(ours, 7 * g, memory, step, 0.01, scale=1 / 7)
        formula(kind, p, state, g, 0.01)
        np.testing.assert_allclose(ours, p, rtol=1e-12, atol=1e-14)


def test_adamw_decays_the_weights_beside_adam():
    p, adam, adamw = values(0, np.float64), Adam(), AdamW(weight_decay=0.3)
    ours, plain = p.copy(), p.copy()
    g = values(1, np.float64)
    adamw.update(ours, g, adamw.zeros(SIZE, np.float64), 1, 0.01)
    adam.update(plain, g, adam.zeros(SIZE, np.float64), 1, 0.01)
    np.testing.assert_allclose(ours - plain, -0.01 * 0.3 * p, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_slices_have_the_bits_of_the_whole(name, parts):
    whole, sliced = values(0), values(0)
    bounds = [part * SIZE // parts for part in range(parts + 1)]
    slices = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    optimizer = OPTIMIZERS[name]()
    state, states = optimizer.zeros(SIZE), [optimizer.zeros(s.stop - s.start) for s in slices]
    for step in range(1, 4):
        g = values(step)
        optimizer.update(whole, g, state, step, 0.01)
        for one, s in zip(states, slices, strict=True):
            optimizer.update(sliced[s], g[s], one, step, 0.01)
    np.testing.assert_array_equal(whole.view(np.uint32), sliced.view(np.uint32))
    assert whole.dtype == np.float32 and all(array.dtype == np.float32 for array in state.values())


def test_the_gradient_is_left_as_it_is():
    p, g = values(0), values(1)
    for optimizer in OPTIMIZERS.values():
        optimizer().update(p, g, optimizer().zeros(SIZE), 1, 0.01)
    np.testing.assert_array_equal(g, values(1))


def test_schedules():
    exponential, cosine = SCHEDULES["exponential"], SCHEDULES["cosine"]
    assert [exponential(t, 8, 0.8) for t in (0, 0.99, 1, 2.5)] == pytest.approx([1, 1, 0.8, 0.64])
    assert [cosine(t, 8, 0.8) for t in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
    step, one_cycle = SCHEDULES["step"], SCHEDULES["one-cycle"]
    assert SCHEDULES["constant"](3, 8, 0.8) == 1
    assert [step(t, 8, 0.1) for t in (0, 3.9, 4, 5.9, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [one_cycle(t, 10, 0.8) for t in (0, 1.5, 3, 6.5, 10)] == pytest.approx([0.04, 0.52, 1, 0.500002, 4e-6])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 30])
def test_sums_of_squares_by_blocks(count):
    vector = np.arange(count, dtype=np.float32)
    found = squares(vector, 8)
    assert found.tolist() == [sum(x * x for x in range(s, min(s + 8, count))) for s in range(0, count, 8)]


def test_a_block_s_sum_of_squares_has_the_same_bits_in_any_slice():
    vector = values(1)
    whole = squares(vector, 1024)
    for first in (1, 2, 17):
        np.testing.assert_array_equal(squares(vector[first * 1024 :], 1024), whole[first:])


def test_a_running_average_by_hand():
    running, p = np.full(SIZE, 3, np.float32), np.full(SIZE, 7, np.float32)
    update_average(running, p, 1, 0.999)  # keeps (1 + 1) / (4 + 1)
    np.testing.assert_allclose(running, 3 * 2 / 5 + 7 * 3 / 5, rtol=1e-6)
    update_average(running, p, 10_000, 0.5)
    np.testing.assert_allclose(running, 3 / 5 + 7 * 4 / 5, rtol=1e-6)
