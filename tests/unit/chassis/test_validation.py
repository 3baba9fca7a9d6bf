"""The validator at the door: each kind of rule, and all violations at once."""

from __future__ import annotations

import pytest

from services.chassis.errors import InvalidArgumentError
from services.chassis.validation import check, violations
from tests.unit.chassis.probe import item
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, rules_pb2, value_pb2
from twinpath.features.v1 import features_pb2
from twinpath.inference.v1 import inference_pb2, tensor_pb2
from twinpath.router.v1 import router_pb2


def found(message: object) -> dict[str, str]:
    """Return the violations by field."""
    return dict(violations(message))


def test_a_message_that_fits_has_no_violations() -> None:
    """The rules admit what the contract admits."""
    check(inference_pb2.InferRequest(items=[item("a"), item("b")]))
    check(router_pb2.InferRequest(task="tumour_triage"))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (inference_pb2.InferRequest(), "items"),  # a list
        (audit_pb2.Subject(), "entity"),  # a map
        (router_pb2.InferRequest(), "task"),  # a string
        (audit_pb2.ProveConsistencyRequest(), "first_size"),  # a number
        (router_pb2.ExplainRequest(), "request"),  # a message
        (tensor_pb2.Tensor(name="x"), "datatype"),  # an enum
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_required(message: object, field: str) -> None:
    """What is required and missing is named, whatever its type."""
    assert field in found(message)


@pytest.mark.parametrize(
    ("message", "field", "text"),
    [
        (router_pb2.InferRequest(task="a" * 129), "task", "128 are allowed"),
        (router_pb2.InferRequest(task="Tumour"), "task", "must match"),
        (router_pb2.InferRequest(task="ok\n"), "task", "must match"),
        (router_pb2.InferRequest(task="ok", purpose="No way"), "purpose", "must match"),
        (tensor_pb2.ModelInput(digest=b"short"), "digest", "at least 32"),
        (tensor_pb2.ModelInput(digest=b"x" * 33), "digest", "32 are allowed"),
        (audit_pb2.QueryRequest(page_size=-1), "page_size", "below 0"),
        (audit_pb2.QueryRequest(page_size=1001), "page_size", "above 1000"),
        (context_pb2.ItemContext(id="a", time_left_us=-1), "time_left_us", "below 0"),
        (
            router_pb2.InferRequest(task="ok", consents=["c"] * 33),
            "consents",
            "32 are allowed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits(message: object, field: str, text: str) -> None:
    """Lengths, patterns, ranges and counts are enforced, and the sentence says which limit."""
    assert text in found(message)[field]


def test_lengths_of_strings_are_counted_in_characters_and_of_bytes_in_bytes() -> None:
    """128 umlauts are 128 characters, although they are 256 bytes."""
    assert violations(context_pb2.ItemContext(id="ü" * 128)) == []
    assert "129 characters" in found(context_pb2.ItemContext(id="ü" * 129))["id"]


def test_empty_values_of_optional_fields_are_not_looked_at() -> None:
    """Absence is not a violation of a least length, a pattern or a range."""
    assert violations(router_pb2.InferRequest(task="ok", purpose="", residency="")) == []
    assert violations(audit_pb2.QueryRequest(page_size=0)) == []


def test_entries_that_must_differ_are_named_with_the_first_of_their_kind() -> None:
    """unique_by reaches into messages."""
    message = inference_pb2.InferRequest(items=[item("a"), item("b"), item("a")])
    assert found(message) == {"items[2].context.id": "stands at [0] already"}


def test_a_list_that_is_too_long_is_not_looked_through() -> None:
    """Its length is the one violation: looking at every entry would hold up all other callers."""
    message = audit_pb2.AppendRequest(entries=[audit_pb2.Entry()] * 1025)
    assert found(message) == {"entries": "has 1025 entries; 1024 are allowed"}
    assert len(violations(audit_pb2.AppendRequest(entries=[audit_pb2.Entry()] * 2))) > 1


def test_all_violations_are_reported_at_once_each_with_its_path() -> None:
    """One answer names everything that is wrong, however deep."""
    broken = item("b")
    broken.ClearField("input")
    broken.model = ""
    broken.context.trace.traceparent = "nonsense"
    tensors = item("c")
    tensors.input.tensors[0].name = ""
    message = inference_pb2.InferRequest(items=[item("a"), broken, tensors])
    assert set(found(message)) == {
        "items[1].input",
        "items[1].model",
        "items[1].context.trace.traceparent",
        "items[2].input.tensors[0].name",
    }
    with pytest.raises(InvalidArgumentError) as error:
        check(message)
    assert error.value.reason == "INVALID_FIELDS"
    assert len(error.value.violations) == 4


def test_values_in_maps_are_checked_under_their_key() -> None:
    """A map's entry is named by its key."""
    message = router_pb2.InferRequest(task="ok")
    message.entity["patient_id"].list_value.values.add().string_value = "x" * 1_048_577
    assert list(found(message)) == ["entity[patient_id].list_value.values[0].string_value"]


def test_a_type_that_contains_itself_is_checked_to_its_full_depth() -> None:
    """Lists of lists end where protobuf's own limit of nesting ends."""
    message = value_pb2.Value()
    inner = message
    for _ in range(45):
        inner = inner.list_value.values.add()
    inner.string_value = "x" * 1_048_577
    message = value_pb2.Value.FromString(message.SerializeToString())
    (path,) = found(message)
    assert path.count("list_value") == 45


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (router_pb2.InferRequest(task="ok", data_class=77), "data_class"),
        (router_pb2.InferRequest(task="ok", only_path=9), "only_path"),
        (context_pb2.ItemContext(id="a", priority=12), "priority"),
        (tensor_pb2.Tensor(name="x", datatype=99), "datatype"),
        (audit_pb2.Filter(kinds=[record_pb2.RECORD_KIND_INTENT, 55]), "kinds[1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_enum_value_that_the_contract_does_not_know_is_refused(
    message: object, field: str
) -> None:
    """An unknown data class or path is not compared with, or ignored: it is named."""
    assert "is no" in found(message)[field]


def test_unknown_enum_values_are_found_below_messages_without_rules_of_their_own() -> None:
    """The search does not stop at a type whose only faults can be its enums."""
    record = record_pb2.Record()
    record.plan.entries.add().candidate.path = 44
    entry = audit_pb2.Entry(context=context_pb2.ItemContext(id="a"), record=record)
    assert list(found(entry)) == ["record.plan.entries[0].candidate.path"]


def test_a_type_without_rules_costs_nothing_and_passes() -> None:
    """Types without rules are not walked."""
    assert violations(value_pb2.FloatArray(values=[1.0] * 1000)) == []


def test_columns_are_unique_by_name() -> None:
    """The same rule kind on another message: the table of rules is the contract's, not ours."""
    message = features_pb2.GetFeaturesRequest(
        feature_service="s",
        rows=[context_pb2.ItemContext(id="1")],
        join_keys=[value_pb2.Column(name="k"), value_pb2.Column(name="k")],
    )
    assert list(found(message)) == ["join_keys[1].name"]


def test_every_kind_of_rule_is_used_here() -> None:
    """A new kind of rule in rules.proto needs a test, and a place in this list."""
    assert set(rules_pb2.FieldRules.DESCRIPTOR.fields_by_name) == {
        "required",
        "min_len",
        "max_len",
        "pattern",
        "min",
        "max",
        "min_items",
        "max_items",
        "unique_by",
    }
