"""`name=value` pairs of the command line as values of the contract."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from twinpath.common.v1.value_pb2 import Value

_MICROSECONDS = 1_000_000


def _truth(text: str) -> bool:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    raise ValueError("must be true or false")


def _time(text: str) -> int:
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * _MICROSECONDS)


_KINDS: dict[str, tuple[str, Callable[[str], object]]] = {
    "int": ("int64_value", int),
    "float": ("double_value", float),
    "bool": ("bool_value", _truth),
    "str": ("string_value", str),
    "time": ("unix_time_us", _time),
}
_GUESSES = ("int", "float", "bool")


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, Value]:
    """Read `name=value` pairs.

    A value is a whole number, a floating-point number, true or false, or else text; a kind can be
    forced: `name:str=17`, `name:float=3`, `name:time=2026-01-31`. `name=` is null.

    Args:
        pairs: As they were typed.
        option: The option's name, for the error message.

    Raises:
        typer.BadParameter: A pair without `=`, a name that stands twice, or a value that is not
            of the kind asked for.
    """
    found: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name, _, kind = name.partition(":")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name} stands there twice", param_hint=option)
        try:
            found[name] = _value(text, kind)
        except ValueError as error:
            raise typer.BadParameter(f"{pair!r}: {error}", param_hint=option) from None
    return found


def _value(text: str, kind: str) -> Value:
    from twinpath.common.v1.value_pb2 import Value  # noqa: PLC0415 - not for `twinpath --help`

    if kind:
        if kind not in _KINDS:
            raise ValueError(f"{kind} is none of {', '.join(_KINDS)}")
        field, convert = _KINDS[kind]
        return Value(**{field: convert(text)})  # type: ignore[arg-type]
    if not text:
        return Value()
    for guess in _GUESSES:
        field, convert = _KINDS[guess]
        with contextlib.suppress(ValueError):
            return Value(**{field: convert(text)})  # type: ignore[arg-type]
    return Value(string_value=text)
