"""Server-sent events however they are cut, and rate-limit headers however they are written."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.remote.vendor_pace import exhausted_for_s
from services.remote.wire import AnswerError, Event, EventReader, count, dig, load_object

STREAM = (
    b": a comment\n\nevent: one\ndata: first\ndata: second\n\n"
    b"data:no space\r\n\r\nid: 7\nretry: 5\ndata: \xc3\xbc\n\nevent: no data\n\ndata: unfinished\n"
)
EVENTS = [Event("one", "first\nsecond"), Event("", "no space"), Event("", "ü")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    """Also within a character and between CR and LF; what is unfinished is no event."""
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [e for a, b in itertools.pairwise(edges) for e in reader.feed(STREAM[a:b])]
    assert found == EVENTS


def test_a_line_without_end_is_given_up() -> None:
    """A vendor can't fill our memory."""
    reader = EventReader(max_line=100)
    with pytest.raises(AnswerError, match="event_too_long"):
        reader.feed(b"data: " + b"x" * 200)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "json"),
        ("[1]", "structure"),
        ('{"a": NaN}', "json"),
        (b"\xff", "json"),
        ("[" * 99999, "json"),
    ],
)
def test_what_is_no_json_object_is_told(text, rule) -> None:
    """Without a value from it."""
    with pytest.raises(AnswerError) as caught:
        load_object(text)
    assert caught.value.rule == rule


def test_places_and_counts_are_read_with_their_types() -> None:
    """A bool is no number, and nonsense counts nothing."""
    document = {"a": [{"b": 3}], "c": True, "d": -1}
    assert dig(document, "a", 0, "b", kind=int) == 3
    for path in (("a", 1), ("a", "b"), ("c",)):
        with pytest.raises(AnswerError):
            dig(document, *path, kind=int)
    assert [count(document, name) for name in ("c", "d", "x")] == [0, 0, 0]


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"X-RateLimit-Remaining-Tokens": "0", "X-RateLimit-Reset-Tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "1s"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1790000012"}, 12.0),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-09-21T14:13:30Z",
            },
            10.0,
        ),
        ({}, 0.0),
    ],
)
def test_what_vendors_say_about_our_rate_is_read(headers, wait) -> None:
    """Three families of headers, in each of their forms."""
    assert exhausted_for_s(headers, NOW) == pytest.approx(wait)
