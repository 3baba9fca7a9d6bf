"""What the catalog's tasks expect of local models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.local.contracts import Contracts
from services.local.spec import ModelSpec, TensorSpec
from tests.support import ROOT
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2

TASK = """
name: t
inputs: [{name: features, datatype: FP32, shape: [1, 3], from: [a, b, c]}]
outputs: [{name: y, datatype: INT64, shape: [1, 1]}]
candidates:
  - {id: a, path: local, model: m, version: "1"}
  - {id: b, path: remote, model: big, version: "1", provider: p}
"""


def spec(*extra: TensorSpec, width: int = 3, out: str = "y") -> ModelSpec:
    """A model that fits the task, except for the changes."""
    features = TensorSpec("features", tensors.FP32, (-1, width))
    return ModelSpec(
        "m",
        "1",
        (features, *extra),
        (TensorSpec(out, tensor_pb2.DATATYPE_INT64, (-1, 1)),),
        8,
    )


@pytest.fixture
def contracts(tmp_path: Path) -> Contracts:
    """The contracts of a catalog with one task."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(TASK)
    found = Contracts(tmp_path)
    found.read()
    return found


def test_a_model_that_fits_has_no_fault(contracts: Contracts) -> None:
    """Free dimensions, and optional inputs that the task does not send, are fine."""
    assert contracts.fault(spec()) == ""
    assert contracts.fault(spec(width=-1)) == ""
    optional = TensorSpec("hint", tensors.BYTES, (-1, 1), optional=True)
    assert contracts.fault(spec(optional)) == ""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (spec(width=4), r"'features' is \[-1, 4\], the task's \[1, 3\]"),
        (spec(out="z"), "no output 'y'"),
        (spec(TensorSpec("more", tensors.FP32, (-1, 1))), "needs an input 'more'"),
    ],
)
def test_each_divergence_is_named(contracts: Contracts, model: ModelSpec, says: str) -> None:
    """With the task's name."""
    import re

    fault = contracts.fault(model)
    assert fault.startswith("task t can't use it")
    assert re.search(says, fault)


def test_a_data_type_is_part_of_the_contract(contracts: Contracts) -> None:
    """An output of FP32 is no INT64."""
    model = ModelSpec(
        "m", "1", spec().inputs, (TensorSpec("y", tensors.FP32, (-1, 1)),), max_batch_size=8
    )
    assert "data type" in contracts.fault(model)


def test_models_that_no_task_names_are_free(contracts: Contracts) -> None:
    """Other names, other versions, and remote candidates."""
    other = ModelSpec("other", "1", (), ())
    assert contracts.fault(other) == ""
    assert contracts.fault(ModelSpec("m", "2", (), ())) == ""
    assert contracts.fault(ModelSpec("big", "1", (), ())) == ""


def test_a_change_is_read_and_a_broken_file_left_out(tmp_path: Path, contracts: Contracts) -> None:
    """A file that is being written does not stop a model."""
    path = tmp_path / "tasks" / "t.yaml"
    path.write_text(TASK.replace("[1, 3]", "[1, 30]"))
    contracts.read()
    assert contracts.fault(spec())
    path.write_text(TASK[:90])
    contracts.read()
    assert contracts.fault(spec()) == ""


def test_without_a_catalog_there_is_nothing_to_differ_from() -> None:
    """The setting is optional."""
    contracts = Contracts(None)
    contracts.read()
    assert contracts.fault(spec()) == ""


def test_the_real_catalog_can_be_read() -> None:
    """Each of its local candidates has a contract."""
    contracts = Contracts(ROOT / "deploy" / "catalog")
    contracts.read()
    for name in ("tumour_small", "diabetes_small"):
        assert "has no input 'features'" in contracts.fault(ModelSpec(name, "1", (), ()))


def test_who_wants_what_serves_binds_every_version(tmp_path: Path) -> None:
    """A version that does not fit is refused; there is no exact version to load, and no pin."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(TASK.replace('m, version: "1"', "m, version: live"))
    live = Contracts(tmp_path)
    live.read()
    assert (live.live(), live.exact(), live.pins("m")) == (["m"], [], [])
    for version in ("1", "7"):
        assert live.fault(replace(spec(), version=version)) == ""
        assert "no output 'y'" in live.fault(replace(spec(out="z"), version=version))


def test_exact_versions_are_pins(contracts: Contracts) -> None:
    """Each with the task that names it."""
    assert contracts.pins("m") == [("t", "1")]
    assert contracts.pins("big") == []


def test_the_tightest_budget_counts(tmp_path: Path) -> None:
    """Of all tasks that name a model; vendors' have none here."""
    (tmp_path / "tasks").mkdir()
    for name, budget in (("t", 80), ("u", 50)):
        text = TASK.replace("name: t", f"name: {name}")
        text = text.replace(
            'model: m, version: "1"', f"model: m, version: live, budget_ms: {budget}"
        )
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    found = Contracts(tmp_path)
    found.read()
    assert found.budget_ms("m") == 50
    assert found.budget_ms("big") == 0
