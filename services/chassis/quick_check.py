"""Tells good messages from others without saying why: the validator's way for nearly all calls.

It reads the same rules as validation.py, which finds and words every violation and takes several
times as long. What fits here has no violation there; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from twinpath.common.v1 import rules_pb2

Fits = Callable[[Any], bool]

_compiled: dict[str, list[Fits]] = {}


def fits(message: Message) -> bool:
    """Tell whether a message keeps every rule of its type."""
    return all(test(message) for test in _tests(message.DESCRIPTOR))


def _tests(descriptor: Any) -> list[Fits]:
    known = _compiled.get(descriptor.full_name)
    if known is None:
        known = _compiled[descriptor.full_name] = []  # set first: types may be recursive
        for field in descriptor.fields:
            known.extend(_field_tests(field))
    return known


def rules_of(field: FieldDescriptor) -> rules_pb2.FieldRules | None:
    """Return the rules that stand beside a field."""
    options: Any = field.GetOptions()
    return options.Extensions[rules_pb2.rules] if options.HasExtension(rules_pb2.rules) else None


def has_rules(descriptor: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Tell whether a type, or a type within it, has any rule. An enum is one by itself."""
    if descriptor.full_name in seen:
        return False
    seen |= {descriptor.full_name}
    return any(
        rules_of(field) is not None
        or field.enum_type is not None
        or (field.message_type is not None and has_rules(field.message_type, seen))
        for field in descriptor.fields
    )


def _field_tests(field: FieldDescriptor) -> Iterable[Fits]:
    rules, kind = rules_of(field), field.message_type
    if rules is not None:
        if field.is_repeated:
            yield _list_test(field.name, rules)
        elif kind is not None:
            if rules.required:
                yield _presence_test(field.name)
        else:
            yield _scalar_test(field, rules)
    if field.enum_type is not None:
        yield _enum_test(field)
    if kind is not None and has_rules(kind):
        yield _nested_test(field)


def _presence_test(name: str) -> Fits:
    return lambda message: bool(message.HasField(name))


def _list_test(name: str, rules: rules_pb2.FieldRules) -> Fits:
    get = attrgetter(name)
    least = max(rules.min_items, 1 if rules.required else 0)
    most = rules.max_items or float("inf")
    key = attrgetter(rules.unique_by) if rules.unique_by else None

    def test(message: Any) -> bool:
        values = get(message)
        size = len(values)
        if not least <= size <= most:
            return False
        return key is None or size < 2 or len({key(value) for value in values}) == size

    return test


def _scalar_test(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> Fits:
    name, get, required = field.name, attrgetter(field.name), rules.required
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        least, most = rules.min_len, rules.max_len or float("inf")
        pattern = re.compile(rules.pattern).fullmatch if rules.pattern else None

        def good(value: Any) -> bool:
            if not value:
                return True
            return least <= len(value) <= most and (pattern is None or pattern(value) is not None)

    else:
        lowest = rules.min if rules.HasField("min") else float("-inf")
        highest = rules.max if rules.HasField("max") else float("inf")
        free = not (rules.HasField("min") or rules.HasField("max"))

        def good(value: Any) -> bool:
            # Written so that NaN, which compares with nothing, does not pass where a bound is.
            return free or bool(lowest <= value <= highest)

    if field.has_presence:

        def test_optional(message: Any) -> bool:
            return good(get(message)) if message.HasField(name) else not required

        return test_optional

    def test(message: Any) -> bool:
        value = get(message)
        return good(value) if value else not required

    return test


def _enum_test(field: FieldDescriptor) -> Fits:
    get = attrgetter(field.name)
    enum: Any = field.enum_type
    known = frozenset(enum.values_by_number)
    if field.is_repeated:
        return lambda message: known.issuperset(get(message))
    return lambda message: get(message) in known


def _nested_test(field: FieldDescriptor) -> Fits:
    name, get = field.name, attrgetter(field.name)
    kind: Any = field.message_type
    if kind.GetOptions().map_entry:
        held = kind.fields_by_name["value"].message_type
        if held is None:
            return lambda _: True
        inner = _tests(held)
        return lambda message: all(test(value) for value in get(message).values() for test in inner)
    inner = _tests(kind)
    if field.is_repeated:

        def test_list(message: Any) -> bool:
            for value in get(message):
                for test in inner:
                    if not test(value):
                        return False
            return True

        return test_list

    def test_one(message: Any) -> bool:
        if message.HasField(name):
            value = get(message)
            for test in inner:
                if not test(value):
                    return False
        return True

    return test_one
