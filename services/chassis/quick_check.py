"""Tells good messages from others without saying why: the validator's way for nearly all calls.

It reads the same rules as validation.py, which finds and words every violation and takes many
times as long. What fits here has no violation there; a test compares the two.

For each message type a Python function is written out and compiled once, one statement for each
rule: a tree of closures takes several times as long, and this stands in every call of every hop.
Nothing of a message gets into the source, only the contract's own field names and limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from twinpath.common.v1 import rules_pb2

Fits = Callable[[Any], bool]

_compiled: dict[str, Fits] = {}


def fits(message: Message) -> bool:
    """Tell whether a message keeps every rule of its type."""
    return _test(message.DESCRIPTOR)(message)


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


def _test(descriptor: Any) -> Fits:
    known = _compiled.get(descriptor.full_name)
    if known is None:
        known = _compiled[descriptor.full_name] = _compile(descriptor)
    return known


def _compile(descriptor: Any) -> Fits:
    """Write the function that tests a message of this type, and compile it."""
    held: dict[str, Any] = {}
    lines = [line for field in descriptor.fields for line in _lines(field, held)]
    source = "\n".join(["def test(m):", *(f"    {line}" for line in lines), "    return True"])
    exec(compile(source, f"<rules of {descriptor.full_name}>", "exec"), held)  # noqa: S102
    test: Fits = held["test"]
    return test


def _lines(field: FieldDescriptor, held: dict[str, Any]) -> Iterator[str]:
    """Write a field's statements; what they need by name goes into `held`."""
    rules, name = rules_of(field), field.name
    if rules is not None:
        if field.is_repeated:
            yield from _list_lines(name, rules)
        elif field.message_type is not None:
            if rules.required:
                yield f"if not m.HasField({name!r}): return False"
        else:
            yield from _scalar_lines(field, rules, held)
    if field.enum_type is not None:
        enum: Any = field.enum_type
        known = held[f"known_{name}"] = frozenset(enum.values_by_number)
        if field.is_repeated:
            yield f"if m.{name} and not known_{name}.issuperset(m.{name}): return False"
        elif 0 in known:
            yield f"v = m.{name}"
            yield f"if v and v not in known_{name}: return False"
        else:
            yield f"if m.{name} not in known_{name}: return False"
    if field.message_type is not None and has_rules(field.message_type):
        yield from _nested_lines(field, held)


def _nested_lines(field: FieldDescriptor, held: dict[str, Any]) -> Iterator[str]:
    name = field.name
    kind: Any = field.message_type
    is_map = kind.GetOptions().map_entry
    if is_map:
        kind = kind.fields_by_name["value"].message_type
        if kind is None:
            return
    held[f"inner_{name}"] = _Later(kind)
    if field.is_repeated:
        values = f"m.{name}.values()" if is_map else f"m.{name}"
        yield f"for v in {values}:"
        yield f"    if not inner_{name}.test(v): return False"
    else:
        yield f"if m.HasField({name!r}) and not inner_{name}.test(m.{name}): return False"


class _Later:
    """A nested type's test, compiled when it is first needed: message types may be recursive."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def test(self, message: Any) -> bool:
        """Compile the test, and be it from now on."""
        self.test = _test(self._descriptor)  # type: ignore[assignment, method-assign]
        return self.test(message)


def _list_lines(name: str, rules: rules_pb2.FieldRules) -> Iterator[str]:
    least = max(rules.min_items, 1 if rules.required else 0)
    bounds = [f"n < {least}"] * bool(least) + [f"n > {rules.max_items}"] * bool(rules.max_items)
    yield f"n = len(m.{name})"
    if bounds:
        yield f"if {' or '.join(bounds)}: return False"
    if rules.unique_by:
        yield f"if n > 1 and len({{v.{rules.unique_by} for v in m.{name}}}) != n: return False"


def _scalar_lines(
    field: FieldDescriptor, rules: rules_pb2.FieldRules, held: dict[str, Any]
) -> Iterator[str]:
    name = field.name
    wrong = []
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        if rules.min_len:
            wrong.append(f"len(v) < {rules.min_len}")
        if rules.max_len:
            wrong.append(f"len(v) > {rules.max_len}")
        if rules.pattern:
            held[f"pattern_{name}"] = re.compile(rules.pattern).fullmatch
            wrong.append(f"pattern_{name}(v) is None")
        wrong = [f"v and ({' or '.join(wrong)})"] if wrong else []
    else:
        # Written so that NaN, which compares with nothing, does not pass where a bound is.
        if rules.HasField("min"):
            wrong.append(f"not v >= {rules.min!r}")
        if rules.HasField("max"):
            wrong.append(f"not v <= {rules.max!r}")
    yield f"v = m.{name}"
    if field.has_presence:
        yield f"if m.HasField({name!r}):"
        yield f"    if {' or '.join(wrong) or 'False'}: return False"
        if rules.required:
            yield "else: return False"
        return
    yield "if v:"
    yield f"    if {' or '.join(wrong) or 'False'}: return False"
    if rules.required:
        yield "else: return False"
