"""Files of batch jobs: what a line may hold, and how large files are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.chassis.errors import UnavailableError, to_status
from services.cli import job_file
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2


def written(tmp_path: Path, *lines: str) -> Path:
    """A file with these lines."""
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_line_is_an_item_with_values_of_their_json_types(tmp_path: Path) -> None:
    """Numbers, texts, truth values and nulls; without an id the line's number is one."""
    line = {
        "entity": {"patient_id": 17},
        "fields": {"a": 1.5, "b": True, "c": "x", "d": None},
        "data_class": "restricted", "residency": "eu", "consents": ["vendor_processing"],
    }  # fmt: skip
    ((item,),) = job_file.read(written(tmp_path, "", json.dumps(line), ""))
    assert item.id == "2"
    assert item.entity["patient_id"].int64_value == 17
    kinds = {name: value.WhichOneof("kind") for name, value in item.fields.items()}
    assert kinds == {"a": "double_value", "b": "bool_value", "c": "string_value", "d": None}
    assert item.data_class == context_pb2.DATA_CLASS_RESTRICTED
    assert (item.residency, list(item.consents)) == ("eu", ["vendor_processing"])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"id": "a"}', "no json"], "line 2: "),
        (["[]"], "line 1: is no JSON object"),
        (['{"enttiy": {}}'], "line 1: unknown keys: enttiy"),
        (['{"fields": {"a": [1]}}'], "line 1: a is neither"),
        (['{"entity": 3}'], "line 1: entity and fields"),
        (['{"data_class": "secret"}'], "line 1: "),
        (['{"id": "a"}', '{"id": "a"}'], "line 2: the id a stands twice"),
        ([""], "no item"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, lines: list[str], says: str) -> None:
    """By its number, with the reason."""
    with pytest.raises(job_file.LineError, match=says):
        job_file.read(written(tmp_path, *lines))


def test_a_large_file_becomes_several_jobs(tmp_path: Path, monkeypatch) -> None:
    """By items and by bytes; nothing is lost, and the order is kept."""
    lines = [json.dumps({"id": f"i{n}", "fields": {"a": "x" * 100}}) for n in range(2500)]
    path = written(tmp_path, *lines)
    parts = job_file.read(path)
    assert [len(part) for part in parts] == [1024, 1024, 452]
    assert [item.id for part in parts for item in part] == [f"i{n}" for n in range(2500)]
    monkeypatch.setattr(job_file, "MOST_BYTES", 3 * parts[0][0].ByteSize() + 10)
    assert {len(part) for part in job_file.read(path)[:-1]} == {3}


def test_results_are_lines_of_json() -> None:
    """An answer with its outputs and cost, or an error with its reason."""
    good = router_pb2.BatchResult(id="a")
    good.response.decision_id = "d"
    raw = tensors.encode_bytes([b"said"])
    good.response.outputs.append(
        tensor_pb2.Tensor(name="text", datatype=tensors.BYTES, shape=[1], raw=raw)
    )
    good.response.cost.CopyFrom(decision_pb2.Cost(currency_code="USD", nanos=5))
    said = json.loads(job_file.line_of(good))
    assert said["outputs"] == {"text": ["said"]}
    assert (said["decision_id"], said["cost_nanos"], said["currency"]) == ("d", 5, "USD")
    bad = router_pb2.BatchResult(id="b", status=to_status(UnavailableError("AWAY", "is away")))
    assert json.loads(job_file.line_of(bad)) == {
        "id": "b", "error": {"code": "UNAVAILABLE", "reason": "AWAY", "message": "is away"},
    }  # fmt: skip
