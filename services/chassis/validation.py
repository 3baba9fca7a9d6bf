"""The validator at the door: reads the rules that stand beside the fields in the protos.

A message type is compiled once into a list of checks; types without rules cost nothing. All
violations of a message are found, and reported together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.chassis.errors import InvalidArgumentError
from services.chassis.quick_check import fits, has_rules, rules_of
from twinpath.common.v1 import rules_pb2

Violation = tuple[str, str]
Descriptor = Any  # the C implementation's class differs from the documented one
Check = Callable[[Message, str], Iterator[Violation]]

_compiled: dict[str, list[Check] | None] = {}


def check(message: Message) -> None:
    """Check a message against the rules of its type.

    Raises:
        InvalidArgumentError: with every violation, each with its field's path.
    """
    if fits(message):  # nearly always
        return
    found = violations(message)
    if found:
        raise InvalidArgumentError(
            "INVALID_FIELDS",
            "; ".join(f"{field}: {text}" for field, text in found[:8]),
            violations=found,
        )


def violations(message: Message) -> list[Violation]:
    """Return every violation as (path, sentence)."""
    return list(_run(message, ""))


def _run(message: Message, prefix: str) -> Iterator[Violation]:
    for test in _checks(message.DESCRIPTOR):
        yield from test(message, prefix)


def _checks(descriptor: Descriptor) -> list[Check]:
    known = _compiled.get(descriptor.full_name)
    if known is None:
        known = []
        _compiled[descriptor.full_name] = known  # set first: message types may be recursive
        for field in descriptor.fields:
            known.extend(_field_checks(field))
    return known


def _is_list(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _field_checks(field: FieldDescriptor) -> Iterator[Check]:
    rules = rules_of(field)
    name = field.name
    if rules is not None:
        if _is_list(field):
            yield _list_check(name, rules)
        elif field.message_type is not None:
            if rules.required:
                yield _presence_check(name)
        else:
            yield _scalar_check(field, rules)
    if field.enum_type is not None:
        yield _enum_check(field)
    if field.message_type is not None and has_rules(field.message_type):
        yield _nested_check(field)


def _nested_check(field: FieldDescriptor) -> Check:
    name = field.name
    kind: Any = field.message_type
    if _is_map(field):
        if kind.fields_by_name["value"].message_type is None:
            return lambda _message, _prefix: iter(())

        def check_map(message: Message, prefix: str) -> Iterator[Violation]:
            for key, value in getattr(message, name).items():
                yield from _run(value, f"{prefix}{name}[{key}].")

        return check_map
    if _is_list(field):
        rules = rules_of(field)
        most = (rules.max_items if rules is not None else 0) or math.inf

        def check_list(message: Message, prefix: str) -> Iterator[Violation]:
            values = getattr(message, name)
            if len(values) > most:
                return  # said already; a list that is too long is not looked through
            for index, value in enumerate(values):
                yield from _run(value, f"{prefix}{name}[{index}].")

        return check_list

    def check_one(message: Message, prefix: str) -> Iterator[Violation]:
        if message.HasField(name):
            yield from _run(getattr(message, name), f"{prefix}{name}.")

    return check_one


def _presence_check(name: str) -> Check:
    def check_presence(message: Message, prefix: str) -> Iterator[Violation]:
        if not message.HasField(name):
            yield f"{prefix}{name}", "is required"

    return check_presence


def _list_check(name: str, rules: rules_pb2.FieldRules) -> Check:
    least = max(rules.min_items, 1 if rules.required else 0)
    path = rules.unique_by.split(".") if rules.unique_by else []

    def key_of(value: Any) -> Any:
        for part in path:
            value = getattr(value, part)
        return value

    def check_list(message: Message, prefix: str) -> Iterator[Violation]:
        values = getattr(message, name)
        if len(values) < least:
            yield f"{prefix}{name}", f"needs {least} or more entries"
        if rules.max_items and len(values) > rules.max_items:
            yield f"{prefix}{name}", f"has {len(values)} entries; {rules.max_items} are allowed"
            return  # a list that is too long is not looked through
        if path and len(values) > 1:
            first: dict[Any, int] = {}
            for index, value in enumerate(values):
                key = key_of(value)
                if key in first:
                    where = f"{prefix}{name}[{index}].{rules.unique_by}"
                    yield where, f"stands at [{first[key]}] already"
                else:
                    first[key] = index

    return check_list


def _scalar_check(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> Check:
    name = field.name
    optional = field.has_presence
    measured = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    unit = "characters" if field.type == FieldDescriptor.TYPE_STRING else "bytes"
    pattern = re.compile(rules.pattern) if rules.pattern else None

    def check_scalar(message: Message, prefix: str) -> Iterator[Violation]:
        if optional and not message.HasField(name):
            if rules.required:
                yield f"{prefix}{name}", "is required"
            return
        value = getattr(message, name)
        if not optional and not value:
            if rules.required:
                yield f"{prefix}{name}", "is required"
            return
        if measured:
            size = len(value)
            if size and size < rules.min_len:
                yield f"{prefix}{name}", f"has {size} {unit}; at least {rules.min_len} are needed"
            if rules.max_len and size > rules.max_len:
                yield f"{prefix}{name}", f"has {size} {unit}; {rules.max_len} are allowed"
            elif pattern is not None and size and pattern.fullmatch(value) is None:
                yield f"{prefix}{name}", f"must match {rules.pattern}"
        else:
            # Written so that NaN, which compares with nothing, does not pass.
            if rules.HasField("min") and not value >= rules.min:
                yield f"{prefix}{name}", f"is below {rules.min}"
            if rules.HasField("max") and not value <= rules.max:
                yield f"{prefix}{name}", f"is above {rules.max}"

    return check_scalar


def _enum_check(field: FieldDescriptor) -> Check:
    """Check that values are those of the contract: proto3 lets any number through."""
    name = field.name
    enum: Any = field.enum_type
    known = frozenset(enum.values_by_number)

    def check_one(message: Message, prefix: str) -> Iterator[Violation]:
        value = getattr(message, name)
        if value not in known:
            yield f"{prefix}{name}", f"{value} is no {enum.name}"

    def check_list(message: Message, prefix: str) -> Iterator[Violation]:
        for index, value in enumerate(getattr(message, name)):
            if value not in known:
                yield f"{prefix}{name}[{index}]", f"{value} is no {enum.name}"

    return check_list if _is_list(field) else check_one
