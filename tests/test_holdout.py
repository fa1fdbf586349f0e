"""Which samples are held back for validation."""

import numpy as np
import pytest
from commands import command, training
from hypothesis import given
from hypothesis import strategies as st

from dpcnn.data.holdout import hold_out

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(np.array)


@given(
    LABELS,
    st.one_of(st.floats(0, 0.99), st.integers(0, 100)),
    st.sampled_from(["stratified", "last"]),
    st.integers(0, 9),
)
def test_the_parts_make_up_the_whole(labels, amount, how, seed):
    found = hold_out(labels, amount, how, seed)
    assert sorted([*found.training, *found.validation]) == list(range(len(labels)))
    assert len(found.training) and list(found.training) == sorted(found.training)
    again = hold_out(labels, amount, how, seed)
    np.testing.assert_array_equal(again.validation, found.validation)


@given(LABELS, st.integers(1, 79), st.integers(0, 9))
def test_each_class_gives_its_share(labels, count, seed):
    if count >= len(labels):
        return
    found = hold_out(labels, count, "stratified", seed)
    assert len(found.validation) == count
    for label in np.unique(labels):
        exact = count * (labels == label).sum() / len(labels)
        assert np.floor(exact) <= (labels[found.validation] == label).sum() <= np.ceil(exact)


def test_a_set_in_the_order_of_classes():
    labels = np.repeat(np.arange(5), 40)
    last, drawn = (hold_out(labels, 20, how, 0) for how in ("last", "stratified"))
    assert set(labels[last.validation]) == {4}
    assert last.remarks == ("warning: none of the 20 validation samples is of class 0, 1, 2, 3",)
    named = hold_out(labels, 20, "last", 0, ("cat", "dog", *"abcdefgh"))
    assert named.remarks == ("warning: none of the 20 validation samples is of class cat, dog, a, b",)
    assert np.bincount(labels[drawn.validation]).tolist() == [4] * 5 and not drawn.remarks
    other = hold_out(labels, 20, "stratified", 1)
    assert not np.array_equal(other.validation, drawn.validation)
    np.testing.assert_array_equal(hold_out(labels, 0.1, "stratified", 0).validation, drawn.validation)


@pytest.mark.parametrize("amount", [200, 10_000])
def test_a_number_that_does_not_fit(amount):
    found = hold_out(np.arange(200) % 2, amount, "last", 0)
    assert len(found.validation) == 20
    assert found.remarks[0].startswith(f"--validation {amount} is not below the 200 training samples: 20 of them are")


@pytest.mark.parametrize("amount", [[], ["--validation", "50"], ["--holdout", "last"]])
def test_the_command_that_began_a_run_resumes_it_also_with_a_recipe_of_other_data(small, tmp_path, amount):
    flags = ["--data", small, "--recipe", "fast", *amount, "--out", tmp_path / "run", "--resume", "auto"]
    for steps in ("1", "2"):
        result = training(*flags, "--max-steps", steps)
        assert result.status == 0, result.err
    assert "resuming from step-00000001.h5: epoch 1, step 1" in result.out


def test_the_cut_of_the_published_recipes_is_kept_for_their_own_data_alone(small, tmp_path):
    result = training("--recipe", "fast", "--max-steps", "1", "--out", tmp_path / "a")
    assert "59,000 images to train, 1,000 to validate\n" in result.out, result.err
    flags = ["--data", small, "--recipe", "fast", "--max-steps", "1"]
    result = training(*flags, "--out", tmp_path / "b")
    assert "630 images to train, 70 to validate, drawn from each class by seed\n" in result.out, result.err
    result = training(*flags, "--validation", "50", "--out", tmp_path / "c", ranks=2)
    assert "650 images to train, 50 to validate, drawn from each class by seed\n" in result.out, result.err
    result = training(*flags, "--validation", "900", "--holdout", "last", "--out", tmp_path / "d", ranks=2)
    assert "630 images to train, 70 to validate\n" in result.out, result.err
    assert "--validation 900 is not below the 700 training samples: 70 of them are held back" in result.out
    evaluated = command("evaluate", tmp_path / "c", "--split", "validation", ranks=2)
    assert "on the validation samples of small" in evaluated.out and " of 50)" in evaluated.out, evaluated.err
