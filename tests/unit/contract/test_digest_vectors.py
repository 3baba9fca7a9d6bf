"""The digest's test vectors: the product, the published file and an independent writing agree."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import canonical
from tests.support import ROOT
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import tensor_pb2

FILE = ROOT / "protos" / "twinpath" / "inference" / "v1" / "digest_vectors.json"
CASES = json.loads(FILE.read_text(encoding="utf-8"))["cases"]


def _tensor(entry: dict[str, Any]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        name=entry["name"],
        datatype=tensors.datatype_value(entry["datatype"]),
        shape=entry["shape"],
        raw=bytes.fromhex(entry["raw"]),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_the_product_gives_the_published_digest(case: dict[str, Any]) -> None:
    """Normalization, canonical form and digest are those of the file."""
    normal = tensors.normalize(_tensor(entry) for entry in case["given"])
    assert normal == [_tensor(entry) for entry in case["normalized"]]
    assert digest.canonical_form(normal).hex() == case["canonical_form"]
    assert digest.digest(normal).hex() == case["digest"]
    assert digest.fits(tensor_pb2.ModelInput(tensors=normal, digest=bytes.fromhex(case["digest"])))


def test_the_published_file_is_what_the_specification_gives() -> None:
    """The file is the output of an implementation that shares no code with the product."""
    assert FILE.read_text(encoding="utf-8") == canonical.vectors()


def test_every_datatype_has_a_vector() -> None:
    """No datatype can be added to the contract without a vector."""
    covered = {entry["datatype"] for case in CASES for entry in case["given"]}
    assert covered == {tensors.datatype_name(v) for v in tensor_pb2.Datatype.values() if v}
