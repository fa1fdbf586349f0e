"""The table of a network's layers."""

import pytest
from commands import command


def test_the_table_of_a_recipe():
    result = command("summary", "lenet5")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["layer", "inputs", "output", "parameters", "MFLOP"]
    (conv,) = [line for line in lines if line.split()[:1] == ["conv2d2"]]
    assert conv.split() == [
        "conv2d2",
        "avgpool2d1",
        *"10 x 10 x 16".split(),
        "2,416",
        f"{2 * 100 * 16 * 150 / 1e6:.2f}",
    ]
    assert lines[-1].startswith("61,706 parameters, 0.2 MB; ") and "for a microbatch of 32 images" in lines[-1]


def test_the_residual_network_has_the_published_size():
    """0.27 million parameters; each shortcut by projection and each normalisation counts."""
    result = command("summary", "resnet20", "--images", "32x32x3")
    assert result.status == 0, result.err
    learned = 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 512 + 2048 + 650
    normalised = 16 * 7 + 32 * 7 + 64 * 7
    assert result.out.splitlines()[-1].startswith(f"{learned + 4 * normalised:,} parameters")
    assert f"{learned + 2 * normalised:,}" == "272,474"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fast", "--images", "32x"], "--images: expected height, width and channels, as in 32x32x3, not '32x'"),
        (["fast", "--images", "0x1x1"], "--images: expected height, width and channels, as in 32x32x3, not '0x1x1'"),
        (["fast", "--images", "9x9x1", "--classes", "0"], "--classes: must be from 1 to 65535, not 0"),
        (["fast", "--images", "2x2x1"], "images of (2, 2, 1) are too small for this model: "),
        (["fastest"], "--recipe: no recipe and no file 'fastest'"),
    ],
)
def test_a_mistake_is_named(words, message):
    result = command("summary", *words)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
