"""Texts that must be JSON of one form: the `json_schema` of an output in a task's file. Pure."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import jsonschema_rs
from pydantic import AfterValidator


class TextSchema:
    """A JSON Schema, compiled. What it refers to must stand in it: nothing is fetched.

    Raises:
        ValueError: it is no schema.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            plain = json.loads(json.dumps(schema))  # a file's reader has types of its own
            self._validator = jsonschema_rs.validator_for(plain, retriever=_fetch_nothing)
        except (ValueError, TypeError) as error:
            raise ValueError(f"is no JSON schema: {str(error).splitlines()[0]}") from None

    def fault(self, text: str) -> str:
        """Return what is wrong with a text, without a value from it; empty: it fits."""
        try:
            document = _DECODE(text)
        except (ValueError, RecursionError):
            return "is no JSON"
        return "" if self._validator.is_valid(document) else "does not fit its JSON schema"


def escaped(value: str) -> str:
    """Return a text as it stands within a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"it refers to {uri}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and infinity are Python's, not JSON's


_DECODE = json.JSONDecoder(parse_constant=_no_constant).decode


def _compiles(schema: dict[str, Any]) -> dict[str, Any]:
    TextSchema(schema)
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_compiles)]
