"""From features and request fields to the model input, before any path is known.

Pure but for the contract's own messages. Only what the task's contract lists gets in; what a path
may not see is never in it.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.chassis.errors import FailedPreconditionError, InvalidArgumentError
from services.router.catalog import PLACEHOLDER, InputSpec, Task
from services.router.filters import counted
from services.router.pseudonyms import Pseudonyms, pseudonyms_for
from services.router.redaction import Redactor, holds_more
from twinpath.common.v1 import decision_pb2, value_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import tensor_pb2

_PRESENT = decision_pb2.FEATURE_STATUS_PRESENT
_STALE = decision_pb2.FEATURE_STATUS_STALE
_RULES: dict[int, str] = {
    decision_pb2.FEATURE_STATUS_STALE: "stale",
    decision_pb2.FEATURE_STATUS_NULL: "null",
    decision_pb2.FEATURE_STATUS_ABSENT_FEATURE: "absent_feature",
    decision_pb2.FEATURE_STATUS_ABSENT_ENTITY: "absent_entity",
}
_KINDS = {
    "int64": ("int64_value",),
    "double": ("double_value", "int64_value"),
    "bool": ("bool_value",),
    "string": ("string_value",),
}
# How elements are packed: struct's letter, and the contract's type. Ten times as fast as numpy for
# the few numbers of one decision, and stricter: a fraction is no INT64.
_PACKED = {
    "FP32": ("f", tensor_pb2.DATATYPE_FP32),
    "FP64": ("d", tensor_pb2.DATATYPE_FP64),
    "INT32": ("i", tensor_pb2.DATATYPE_INT32),
    "INT64": ("q", tensor_pb2.DATATYPE_INT64),
    "BOOL": ("?", tensor_pb2.DATATYPE_BOOL),
}
_CONSTANTS = {"true": True, "false": False}


def _constant(text: str, _fields: Mapping[str, Any]) -> Any:
    """Return a constant: a truth value, a number, or else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _text(template: str, fields: Mapping[str, Any]) -> str:
    """Return a template with its fields filled in, in one pass: a value is never a template."""
    return PLACEHOLDER.sub(lambda m: str(fields[m[1]]), template)


# Sources that are not features, by what stands before their colon. What they take is a request
# field, or the pseudonym of an entity key: the key itself is not among what they can take from.
_MADE: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "field": lambda name, fields: fields[name],
    "text": _text,
    "entity": lambda name, fields: fields[name],
    "const": _constant,
}


@dataclass(frozen=True, slots=True)
class Assembled:
    """The model input, and what was done about features that were not PRESENT.

    `values` is what the tokens in its texts stand for; it stays in the request's memory. `filters`
    says what was replaced, as records say it: kinds and counts.
    """

    model_input: tensor_pb2.ModelInput
    handling: list[decision_pb2.FeatureHandling]
    values: Mapping[str, str] | None = field(default=None, repr=False)
    filters: tuple[str, ...] = ()


def read_request(
    task: Task, entity: Mapping[str, value_pb2.Value], fields: Mapping[str, value_pb2.Value]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entity's keys and the request fields as plain values, defaults filled in.

    Raises:
        InvalidArgumentError: keys or fields are missing, unknown or of the wrong type; all named.
    """
    found: list[tuple[str, str]] = []
    keys = {
        name: _read(f"entity[{name}]", kind, entity.get(name), found)
        for name, kind in task.entity.keys.items()
    }
    found += [(f"entity[{name}]", "is not a key of this task") for name in entity.keys() - keys]
    values: dict[str, Any] = {}
    for name, spec in task.fields.items():
        given = fields.get(name)
        if given is None or given.WhichOneof("kind") is None:
            if spec.required:
                found.append((f"fields[{name}]", "is required"))
            values[name] = spec.default
        else:
            value = _read(f"fields[{name}]", spec.type, given, found)
            if isinstance(value, str) and len(value) > spec.max_len:
                found.append((f"fields[{name}]", f"is longer than {spec.max_len} characters"))
            if spec.required and value == "":
                found.append((f"fields[{name}]", "is empty"))
            values[name] = value
    unknown = fields.keys() - task.fields.keys()
    found += [(f"fields[{name}]", "is not a field of this task") for name in unknown]
    if found:
        found.sort()
        text = "; ".join(f"{field} {what}" for field, what in found[:8])
        raise InvalidArgumentError("INVALID_REQUEST", text, violations=found)
    return keys, values


def _read(
    place: str, kind: str, value: value_pb2.Value | None, found: list[tuple[str, str]]
) -> Any:
    which = None if value is None else value.WhichOneof("kind")
    if value is None or which is None:
        found.append((place, "is required"))
        return None
    if which not in _KINDS[kind]:
        found.append((place, f"must be {kind}, not {which.removesuffix('_value')}"))
        return None
    plain = getattr(value, which)
    if kind == "double":
        plain = float(plain)
        if not math.isfinite(plain):
            found.append((place, "must be a finite number"))
    return plain


def redactor_for(
    task: Task, tenant: str, entity: Mapping[str, Any], made_by: Pseudonyms | None
) -> Redactor | None:
    """Return what redacts the texts of one request; None where the task has nothing to redact.

    Raises:
        FailedPreconditionError: PSEUDONYM_KEY_MISSING: the task wants pseudonyms, and there is no
            key for them.
    """
    finders, names = task.filters.redacting, task.pseudonymized
    if not finders and not names:
        return None
    pseudonyms = pseudonyms_for(made_by, tenant, task.name, names, entity) if names else {}
    return Redactor(finders, pseudonyms, entity, task.filters.entity_keys)


def assemble(
    task: Task,
    values: Mapping[str, Any],
    statuses: Mapping[str, int],
    fields: Mapping[str, Any],
    redactor: Redactor | None = None,
) -> Assembled:
    """Build the model input of one request.

    `values` and `statuses` are by `view__feature`. `redactor` is there where the task has rules for
    texts, or shows models a pseudonym of its entity.

    Raises:
        FailedPreconditionError: features are not there and the task's rule refuses.
        InvalidArgumentError: a value does not fit its tensor (NaN, range); each named.
    """
    handling: list[decision_pb2.FeatureHandling] = []
    refused: list[tuple[str, str]] = []
    found: list[tuple[str, str]] = []
    out = []
    texts: list[tuple[InputSpec, list[Any]]] = []
    if redactor is not None and redactor.pseudonyms:
        fields = {**fields, **redactor.pseudonyms}
    for spec in task.inputs:
        elements = []
        for source in spec.sources:
            kind, colon, rest = source.partition(":")
            if colon and kind in _MADE:
                elements.append(_MADE[kind](rest, fields))
                continue
            status = statuses.get(source, decision_pb2.FEATURE_STATUS_ABSENT_FEATURE)
            value = values.get(source)
            if status != _PRESENT:
                value = _handle(task, source, status, value, handling, refused)
            elements.append(value)
        if refused:
            continue
        if redactor is not None and spec.datatype == "BYTES":
            texts.append((spec, elements))
        else:
            out.append(_tensor(spec, elements, found))
    if refused:
        names = ", ".join(name for name, _ in refused[:8])
        raise FailedPreconditionError(
            "FEATURES_MISSING",
            f"the task {task.name} refuses to decide without: {names}",
            metadata=dict(refused[:32]),
        )
    if found:
        text = "; ".join(f"{field} {what}" for field, what in found[:8])
        raise InvalidArgumentError("INVALID_INPUT", text, violations=found)
    if redactor is not None:
        _redact(texts, redactor)
        out += [_tensor(spec, elements, found) for spec, elements in texts]
    ordered = tensors.normalize(out)
    model_input = tensor_pb2.ModelInput(tensors=ordered, digest=digest.digest(ordered))
    if redactor is None:
        return Assembled(model_input, handling)
    applied = counted("pseudonymized", redactor.named) + counted("redacted", redactor.kinds)
    return Assembled(model_input, handling, redactor.values, applied)


def _redact(texts: list[tuple[InputSpec, list[Any]]], redactor: Redactor) -> None:
    """Redact all texts of a request together, in place; constants are the task's own words."""
    places = [
        (elements, index)
        for spec, elements in texts
        for index, source in enumerate(spec.sources)
        if not source.startswith("const:")
    ]
    given = [_as_text(elements[index]) for elements, index in places]
    for (elements, index), clean in zip(places, redactor.redact(given), strict=True):
        elements[index] = clean.encode("utf-8", "surrogateescape")


def _as_text(element: Any) -> str:
    """Return an element of a BYTES tensor as text; bytes that are no UTF-8 survive the way back."""
    if isinstance(element, str):
        return element
    return bytes(element).decode("utf-8", "surrogateescape")


def not_redacted(task: Task, model_input: tensor_pb2.ModelInput, entity: Mapping[str, Any]) -> bool:
    """Tell whether an input that was made before holds what the task's rules redact now."""
    finders = task.filters.redacting
    keys = [str(entity[name]) for name in task.filters.entity_keys if name in entity]
    if not finders and not keys:
        return False
    specs = {spec.name: spec for spec in task.inputs if spec.datatype == "BYTES"}
    for tensor in model_input.tensors:
        if tensor.datatype != tensors.BYTES:
            continue
        spec = specs.get(tensor.name)
        for index, element in enumerate(tensors.decode_bytes(tensor.raw)):
            source = spec.sources[index] if spec and index < len(spec.sources) else ""
            if source.startswith("const:"):
                continue
            if holds_more(_as_text(element), finders, keys):
                return True
    return False


def _handle(
    task: Task,
    source: str,
    status: int,
    value: Any,
    handling: list[decision_pb2.FeatureHandling],
    refused: list[tuple[str, str]],
) -> Any:
    """Apply the task's rule to a feature that is not PRESENT; return the value to use."""
    rule = getattr(task.missing_features, _RULES[status])
    action = decision_pb2.FEATURE_ACTION_UNSPECIFIED
    if rule == "accept" and status == _STALE and value is not None:
        action = decision_pb2.FEATURE_ACTION_ACCEPTED_STALE
    elif rule in ("default", "accept") and source in task.missing_features.defaults:
        value = task.missing_features.defaults[source]
        action = decision_pb2.FEATURE_ACTION_DEFAULTED
    elif rule == "impute" and source in task.medians:
        value = task.medians[source]
        action = decision_pb2.FEATURE_ACTION_IMPUTED
    else:
        refused.append((source, _RULES[status]))
        return None
    handling.append(
        decision_pb2.FeatureHandling(feature=source, status=status, action=action)  # type: ignore[arg-type]
    )
    return value


def _tensor(
    spec: InputSpec, elements: list[Any], found: list[tuple[str, str]]
) -> tensor_pb2.Tensor:
    """Return one tensor; what does not fit is added to `found`, by the name of its source."""
    if spec.datatype == "BYTES":
        coded = [e.encode() if isinstance(e, str) else bytes(e) for e in elements]
        return tensor_pb2.Tensor(
            name=spec.name,
            datatype=tensors.BYTES,
            shape=spec.shape,
            raw=tensors.encode_bytes(coded),
        )
    kind, datatype = _PACKED[spec.datatype]
    try:
        raw = struct.pack(f"<{len(elements)}{kind}", *elements)
    except (struct.error, OverflowError):
        raw = b""
        for source, element in zip(spec.sources, elements, strict=True):
            with contextlib.suppress(struct.error, OverflowError):
                struct.pack(f"<{kind}", element)
                continue
            found.append((source, f"does not fit {spec.datatype}, the type of {spec.name}"))
    if kind in "fd" and not all(map(math.isfinite, elements if raw else ())):
        found += [
            (source, "is not a finite number")
            for source, element in zip(spec.sources, elements, strict=True)
            if not math.isfinite(element) and not (spec.allow_nan and math.isnan(element))
        ]
    return tensor_pb2.Tensor(name=spec.name, datatype=datatype, shape=spec.shape, raw=raw)  # type: ignore[arg-type]
