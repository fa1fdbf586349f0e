"""The sealed datagrams of the watch: what a rank sends arrives, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcnn.cluster.datagrams import PHASES, SIZE, Message, Seal

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
MESSAGE = Message("forward", 7, 123, text="in fit")


def sealed(message: Message = MESSAGE, key: bytes = KEY) -> bytes:
    """A datagram from rank 1 to rank 0."""
    return Seal(key, 1).close(message, 0)


def opened(data: bytes) -> Message | None:
    """What rank 0 makes of it, on its link to rank 1."""
    return Seal(KEY, 0).open(data, 1)


@given(
    st.builds(
        Message,
        st.sampled_from(PHASES),
        st.integers(0, 2**64 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=1131),
    )
)
def test_a_message_arrives_as_it_was_sent(message):
    data = sealed(message)
    assert len(data) == SIZE and opened(data) == message


def test_of_a_long_text_the_end_arrives_whatever_it_holds():
    message = opened(sealed(Message(text="\N{EURO SIGN}" * 5000 + "\udcff" + "\N{EURO SIGN}" * 100 + "end")))
    assert message is not None and message.text.endswith("\N{EURO SIGN}end")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 50_000,
        b"[" * SIZE,
        bytes(SIZE),
        sealed()[:-1],
        sealed() + b"\0",
        sealed(key=OTHER_KEY),  # of one who knows all but the key
        Seal(KEY, 1).close(MESSAGE, 2),  # for another rank
        Seal(KEY, 2).close(MESSAGE, 0),  # of another rank
        Seal(KEY, 0).close(MESSAGE, 1),  # of this rank itself, sent back
    ],
    ids="empty deep-json json zeros truncated longer key recipient sender reflected".split(),
)
def test_a_datagram_of_another_origin_is_dropped(data):
    assert opened(data) is None


@given(st.binary(max_size=2 * SIZE) | st.binary(min_size=SIZE, max_size=SIZE))
def test_random_bytes_are_dropped(data):
    assert opened(data) is None


@given(st.integers(0, SIZE - 1), st.integers(0, 7))
def test_an_altered_datagram_is_dropped(place, bit):
    data = bytearray(sealed())
    data[place] ^= 1 << bit
    assert opened(bytes(data)) is None


def test_an_unknown_phase_is_dropped(monkeypatch):
    monkeypatch.setattr("dpcnn.cluster.datagrams.PHASES", (*PHASES, "of a later version"))
    data = sealed(Message("of a later version"))
    monkeypatch.undo()
    assert opened(data) is None


def test_a_datagram_is_taken_once_and_none_that_is_older():
    sender, recipient = Seal(KEY, 1), Seal(KEY, 0)
    first, second, third = (sender.close(Message(step=step), 0) for step in (1, 2, 3))
    steps = [message.step for data in (second, second, first, third, third) if (message := recipient.open(data, 1))]
    assert steps == [2, 3]
