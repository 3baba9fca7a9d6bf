"""The interval and the verdict, against published values and by exact enumeration."""

from __future__ import annotations

import math

import pytest

from services.cli.audit.agreement import Verdict, needed, share, verdict


@pytest.mark.parametrize(
    ("agreeing", "size", "low", "high"),
    [  # Newcombe (1998), "Two-sided confidence intervals for the single proportion", method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(agreeing, size, low, high) -> None:
    """The published intervals come out, to the digits that are published."""
    found = share(agreeing, size)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_the_interval_holds_the_share_and_stays_within_its_ends() -> None:
    """Whatever the sample says, the truth may be it, and is a share."""
    for size in range(1, 60):
        for agreeing in range(size + 1):
            found = share(agreeing, size)
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_agreement_and_disagreement_mirror_each_other() -> None:
    """The interval of those that differ is that of those that agree, turned round."""
    for agreeing in range(31):
        this, that = share(agreeing, 30), share(30 - agreeing, 30)
        assert this.low == pytest.approx(1 - that.high)


def test_a_larger_sample_or_less_confidence_is_narrower() -> None:
    """More evidence never leaves more room."""
    widths = [
        share(size * 9 // 10, size).high - share(size * 9 // 10, size).low
        for size in (10, 100, 1000)
    ]
    assert widths == sorted(widths, reverse=True)
    assert share(9, 10, 0.99).low < share(9, 10, 0.8).low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """By exact enumeration of the binomial: near 95 % on average over the shares."""
    size = 50
    total = 0.0
    truths = [n / 200 for n in range(2, 199)]
    for truth in truths:
        for agreeing in range(size + 1):
            found = share(agreeing, size)
            if found.low <= truth <= found.high:
                ways = math.comb(size, agreeing)
                total += ways * truth**agreeing * (1 - truth) ** (size - agreeing)
    assert 0.945 < total / len(truths) < 0.96


def test_the_verdict_needs_the_whole_interval_on_one_side() -> None:
    """All above: it holds. All below: it fails. Else nobody can say."""
    assert verdict(share(100, 100), 0.95) is Verdict.HOLDS
    assert verdict(share(50, 100), 0.95) is Verdict.FAILS
    assert verdict(share(95, 100), 0.95) is Verdict.UNDECIDED
    assert verdict(share(10, 10), 0.95) is Verdict.UNDECIDED
    assert verdict(share(0, 0), 0.95) is Verdict.UNDECIDED


@pytest.mark.parametrize("required", [0.5, 0.9, 0.95, 0.99])
def test_the_needed_size_is_the_least_that_can_show_it(required) -> None:
    """One replay fewer could not, even if all agreed."""
    size = needed(required)
    assert verdict(share(size, size), required) is Verdict.HOLDS
    assert size == 1 or verdict(share(size - 1, size - 1), required) is not Verdict.HOLDS


@pytest.mark.parametrize(("agreeing", "size"), [(-1, 5), (6, 5)])
def test_numbers_that_make_no_share_are_refused(agreeing, size) -> None:
    """More agreeing than replayed is a mistake of the caller's."""
    with pytest.raises(ValueError, match="of 5"):
        share(agreeing, size)
    with pytest.raises(ValueError, match="no sample"):
        needed(1.0)
