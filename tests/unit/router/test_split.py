"""An entity keeps its arm, and a changed weight moves as few entities as possible."""

from __future__ import annotations

import hashlib
import hmac as reference_hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.split import choose, unit

KEY = b"0123456789abcdef"
ENTITIES = [str(i).encode() for i in range(8000)]
ARMS = st.dictionaries(st.text(max_size=8), st.floats(0.001, 1000), min_size=1, max_size=6)


@given(entity=st.binary(max_size=64), weights=ARMS)
def test_the_same_entity_gets_the_same_arm(entity: bytes, weights: dict[str, float]) -> None:
    """Whatever the order in which the arms are listed."""
    arm = choose(KEY, "r1", entity, weights)
    assert arm in weights
    assert arm == choose(KEY, "r1", entity, dict(reversed(weights.items())))


@given(entity=st.binary(max_size=64), weights=ARMS, factor=st.floats(0.1, 10), data=st.data())
def test_a_changed_weight_moves_entities_to_or_from_that_arm_only(
    entity: bytes, weights: dict[str, float], factor: float, data: st.DataObject
) -> None:
    """Nobody moves between two arms whose weights did not change."""
    changed = data.draw(st.sampled_from(sorted(weights)))
    before = choose(KEY, "r1", entity, weights)
    after = choose(KEY, "r1", entity, weights | {changed: weights[changed] * factor})
    if before != after:
        assert (after if factor > 1 else before) == changed


def test_shares_follow_the_weights() -> None:
    """90/9/1 gives 90/9/1 within statistics."""
    weights = {"live": 90.0, "canary": 9.0, "arm": 1.0}
    arms = [choose(KEY, "r1", entity, weights) for entity in ENTITIES]
    for arm, weight in weights.items():
        assert arms.count(arm) / len(arms) == pytest.approx(weight / 100, abs=0.012)


def test_growing_a_canary_keeps_its_entities_and_moves_no_more_than_the_difference() -> None:
    """5 % to 10 %: all old canary entities stay, about 5 % join, nobody else moves."""
    old = [choose(KEY, "r1", e, {"live": 95, "canary": 5}) for e in ENTITIES]
    new = [choose(KEY, "r1", e, {"live": 90, "canary": 10}) for e in ENTITIES]
    moved = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
    assert set(moved) == {("live", "canary")}
    assert len(moved) / len(ENTITIES) == pytest.approx(0.05, abs=0.01)


def test_two_releases_split_independently() -> None:
    """Half of one release's arm is half of the other's."""
    both = sum(
        choose(KEY, "r1", e, {"a": 1, "b": 1}) == choose(KEY, "r2", e, {"a": 1, "b": 1})
        for e in ENTITIES
    )
    assert both / len(ENTITIES) == pytest.approx(0.5, abs=0.03)


def test_without_the_key_the_arm_cannot_be_known() -> None:
    """Another key is another split."""
    same = sum(
        choose(KEY, "r1", e, {"a": 1, "b": 1}) == choose(KEY[::-1], "r1", e, {"a": 1, "b": 1})
        for e in ENTITIES
    )
    assert same / len(ENTITIES) == pytest.approx(0.5, abs=0.03)


def test_the_draw_is_hmac_sha256() -> None:
    """The number can be computed again from its definition, by an auditor without our code."""
    message = b"\x00\x00\x00\x02r1\x00\x00\x00\x04live42"
    digest = reference_hmac.new(KEY, message, hashlib.sha256).digest()
    expected = ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52
    assert unit(KEY, "r1", b"42", "live") == expected


def test_names_do_not_run_into_each_other() -> None:
    """("a", "bc") and ("ab", "c") draw different numbers."""
    assert unit(KEY, "a", b"", "bc") != unit(KEY, "ab", b"", "c")
    assert unit(KEY, "a", b"c", "b") != unit(KEY, "a", b"", "bc")


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": float("nan")}, {"a": float("inf")}]
)
def test_weights_that_say_nothing_are_refused(weights: dict[str, float]) -> None:
    """A split without a positive, finite weight is a mistake."""
    with pytest.raises(ValueError, match="split:"):
        choose(KEY, "r1", b"1", weights)


def test_a_short_key_is_refused() -> None:
    """An empty key would make the split guessable."""
    with pytest.raises(ValueError, match="key"):
        choose(b"short", "r1", b"1", {"a": 1})


def test_a_drained_arm_gets_nobody() -> None:
    """Weight zero is no traffic at all."""
    assert {choose(KEY, "r1", e, {"a": 1, "b": 0, "c": 1}) for e in ENTITIES} == {"a", "c"}
