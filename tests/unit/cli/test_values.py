"""`name=value` pairs become values of the kind that they look like, or that is asked for."""

from __future__ import annotations

import math

import pytest
import typer

from services.cli.values import parse_pairs


@pytest.mark.parametrize(
    ("pair", "kind", "value"),
    [
        ("id=17", "int64_value", 17),
        ("id=-3", "int64_value", -3),
        ("bmi=27.5", "double_value", 27.5),
        ("bmi=1e3", "double_value", 1000.0),
        ("bmi=inf", "double_value", math.inf),
        ("smokes=true", "bool_value", True),
        ("smokes=False", "bool_value", False),
        ("name=Ann=Lee", "string_value", "Ann=Lee"),
        ("zip:str=01234", "string_value", "01234"),
        ("age:float=3", "double_value", 3.0),
        ("seen:time=1970-01-02", "unix_time_us", 86_400_000_000),
        ("seen:time=1970-01-01T01:00:00+01:00", "unix_time_us", 0),
    ],
)
def test_a_value_has_the_kind_that_it_looks_like(pair: str, kind: str, value: object) -> None:
    """Numbers, truth values and texts are told apart; a kind can be forced."""
    (found,) = parse_pairs([pair], "--field").values()
    assert found.WhichOneof("kind") == kind
    assert getattr(found, kind) == value


def test_nothing_behind_the_equals_sign_is_null() -> None:
    """`name=` is a value without a kind."""
    assert parse_pairs(["bmi="], "--field")["bmi"].WhichOneof("kind") is None


@pytest.mark.parametrize(
    "pairs", [["id"], ["=17"], ["id=1", "id=2"], ["id:int=x"], ["id:shoe=1"], ["id:bool=1"]]
)
def test_what_is_no_pair_is_refused_by_name(pairs: list[str]) -> None:
    """A pair without a name or value, a name twice, and a value not of its kind are errors."""
    with pytest.raises(typer.BadParameter):
        parse_pairs(pairs, "--entity")
