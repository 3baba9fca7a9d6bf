"""The quick check says yes to what the validator finds nothing in, and to nothing else."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.quick_check import fits
from services.chassis.validation import violations
from twinpath.audit.v1 import audit_pb2
from twinpath.features.v1 import features_pb2
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

REQUESTS = [
    method.input_type
    for module in (audit_pb2, features_pb2, inference_pb2, router_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
_F = FieldDescriptor
_FLOATS = (_F.TYPE_DOUBLE, _F.TYPE_FLOAT)
_UNSIGNED = (_F.TYPE_UINT32, _F.TYPE_UINT64, _F.TYPE_FIXED32, _F.TYPE_FIXED64)


def scalar(field: Any, dice: random.Random) -> Any:
    """A value: often an ordinary one, now and then one at or beyond an edge."""
    if field.type == _F.TYPE_STRING:
        return dice.choice(["", "a", "abc", "eu-1", "A b!", "x" * 129, "y" * 2000])
    if field.type == _F.TYPE_BYTES:
        return dice.choice([b"", b"1", bytes(32), bytes(33)])
    if field.type == _F.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type == _F.TYPE_ENUM:
        return dice.choice([*(v.number for v in field.enum_type.values), 0, 99])
    if field.type in _FLOATS:
        return dice.choice([0.0, -1.0, 0.5, 1e9, math.nan, math.inf])
    if field.type in _UNSIGNED:
        return dice.choice([0, 1, 1000, 2**31])
    return dice.choice([0, 1, -1, 1000, 1001])


def fill(message: Message, dice: random.Random, depth: int = 0) -> None:
    """Set some of a message's fields to something."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.35 or depth > 5:
            continue
        kind: Any = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            value = kind.fields_by_name["value"]
            for _ in range(dice.choice([0, 1, 2, 40])):
                key = scalar(kind.fields_by_name["key"], dice) or "k"
                if value.message_type is not None:
                    fill(getattr(message, field.name)[key], dice, depth + 1)
                else:
                    getattr(message, field.name)[key] = scalar(value, dice)
        elif field.is_repeated:
            for _ in range(dice.choice([0, 1, 2, 2, 20])):
                if kind is not None:
                    fill(getattr(message, field.name).add(), dice, depth + 1)
                else:
                    getattr(message, field.name).append(scalar(field, dice))
        elif kind is not None:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), dice, depth + 1)
        else:
            setattr(message, field.name, scalar(field, dice))


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda kind: kind.full_name)
def test_it_agrees_with_the_validator_on_every_request(request_type: Any) -> None:
    """Random messages of each RPC, good and bad ones."""
    dice = random.Random(request_type.full_name)
    for _ in range(150):
        message = GetMessageClass(request_type)()
        if dice.random() < 0.97:
            fill(message, dice)
        assert fits(message) == (violations(message) == []), message


def test_good_messages_of_the_hot_path_fit() -> None:
    """An Append as the router sends it does not take the slow way."""
    from tests.load.audit_bench import entry

    made = [entry(f"d{n}", 2, n) for n in range(3)]
    assert fits(audit_pb2.AppendRequest(entries=made))
    made[1].context.id = made[0].context.id
    assert not fits(audit_pb2.AppendRequest(entries=made))
