"""Values, tensors, keys, retries, connections: the client's pure parts."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpath.client import Client, Request, RetryPolicy, Tensor, Tls, key_of, new_key, retry
from twinpath.client.errors import TwinpathError
from twinpath.client.values import to_value
from twinpath.inference import tensors as contract
from twinpath.inference.v1 import tensor_pb2

ROOT = Path(__file__).resolve().parents[3]


def test_importing_pulls_in_grpc_and_protobuf_only() -> None:
    """Beyond what grpc itself loads, the client loads protobuf's messages and nothing else."""
    script = (
        "import sys, grpc; before = set(sys.modules); import twinpath.client\n"
        "assert not {'numpy', 'opentelemetry', 'pydantic', 'grpc_status'} & set(sys.modules)\n"
        "assert 'twinpath.inference.tensors' not in sys.modules\n"
        "print('\\n'.join({n.partition('.')[0] for n in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert foreign <= {"google", "grpc", "twinpath"}


def test_each_kind_of_value_has_its_place() -> None:
    """Bool is no int, a time has microseconds, lists nest, NumPy's scalars are plain values."""
    assert to_value(True, "x").WhichOneof("kind") == "bool_value"
    assert to_value(None, "x").WhichOneof("kind") is None
    assert to_value("é", "x").string_value == "é"
    assert to_value(b"\x00", "x").bytes_value == b"\x00"
    moment = datetime(2026, 1, 31, 1, tzinfo=timezone(timedelta(hours=1)))
    expected = int(datetime(2026, 1, 31, tzinfo=UTC).timestamp()) * 1_000_000
    assert to_value(moment, "x").unix_time_us == expected
    assert to_value(np.int32(5), "x").int64_value == 5
    assert to_value(np.float32(0.5), "x").double_value == 0.5
    assert [v.int64_value for v in to_value(np.array([1, 2]), "x").list_value.values] == [1, 2]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (2**63, ValueError, "64 bits"),
        ("\ud800", ValueError, "UTF-8"),
        (datetime(2026, 1, 1), ValueError, "time zone"),  # noqa: DTZ001 - that is the point
        ({"a": 1}, TypeError, "dict is no value"),
        ([1, object()], TypeError, r"\[1\]"),
    ],
)
def test_values_that_the_contract_does_not_have_are_named(
    value: object, error: type[Exception], said: str
) -> None:
    """A wrong value is refused before anything is sent, by its name."""
    with pytest.raises(error, match=said) as caught:
        Request("t", entity={"patient_id": value})
    assert "entity['patient_id']" in str(caught.value)


def test_unknown_choices_are_refused() -> None:
    """A misspelt path is an error that lists the right ones; a text is no list of consents."""
    with pytest.raises(ValueError, match="only_path is one of local, remote, not 'cloud'"):
        Request("t", only_path="cloud")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list"):
        Request("t", consents="vendor_processing")


def test_a_request_shows_no_values() -> None:
    """Logs that show a request don't show whom it is about."""
    assert repr(Request("t", entity={"patient_id": 4711})) == "Request('t')"


@pytest.mark.parametrize("name", sorted(set(tensor_pb2.Datatype.keys()) - {"DATATYPE_UNSPECIFIED"}))
def test_tensors_of_every_type_read_as_the_contract_writes_them(name: str) -> None:
    """What the contract's companion writes, the client reads, with and without NumPy."""
    kind = name.removeprefix("DATATYPE_")
    value = tensor_pb2.Datatype.Value(name)
    field = contract._CONTENTS[value]
    plain = {"BOOL": [True, False], "BYTES": [b"a", b""]}.get(kind, [1, 3])
    message = tensor_pb2.Tensor(
        name="x",
        datatype=value,
        shape=[2, 1],
        contents=tensor_pb2.TensorContents(**{field: plain}),
    )
    (normal,) = contract.normalize([message])
    tensor = Tensor.from_message(normal)
    assert tensor.datatype == kind
    assert tensor.tolist() == [[plain[0]], [plain[1]]]
    assert tensor.numpy().tolist() == tensor.tolist()
    assert tensor.numpy().shape == (2, 1)


def test_tensors_that_don_t_fit_are_errors() -> None:
    """Bytes that don't fit type and shape are never read as something else."""
    with pytest.raises(ValueError, match="3 bytes for 1 elements"):
        Tensor("x", "FP32", (1,), b"\0\0\0").flat()
    with pytest.raises(ValueError, match="within a length"):
        Tensor("x", "BYTES", (1,), b"\0\0\0").flat()
    with pytest.raises(ValueError, match="within an element"):
        Tensor("x", "BYTES", (1,), struct.pack("<I", 9) + b"abc").flat()
    with pytest.raises(ValueError, match="the shape is"):
        Tensor("x", "BYTES", (2,), struct.pack("<I", 0)).flat()
    with pytest.raises(ValueError, match="2 elements, not one"):
        Tensor("x", "INT8", (2,), b"\1\2").item()
    assert Tensor("x", "FP64", (), struct.pack("<d", 2.5)).tolist() == 2.5
    assert Tensor("x", "FP64", (0, 3), b"").tolist() == []


def test_keys_of_equal_facts_are_equal_and_of_others_differ() -> None:
    """A key is a stable name of its parts, in their order and kinds."""
    assert key_of("claim", 17) == key_of("claim", 17)
    others = {key_of("claim", "17"), key_of("claim1", 7), key_of(17, "claim"), key_of("claim", 17)}
    assert len(others) == 4
    assert new_key() != new_key()
    for wrong in (1.5, True, None):
        with pytest.raises(TypeError):
            key_of("claim", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a part"):
        key_of()


def _error(
    code: grpc.StatusCode, reason: str, after: float | None, *, described: bool
) -> TwinpathError:
    return TwinpathError(code, reason, "x", retry_after=after, described=described)


codes = st.sampled_from(list(grpc.StatusCode))
reasons = st.sampled_from(["OVERLOADED", "ALL_CANDIDATES_FAILED", "UNAVAILABLE", "NO_CANDIDATE"])


@given(
    code=codes,
    reason=reasons,
    after=st.none() | st.floats(0, 100),
    made=st.integers(1, 50),
    left=st.floats(-1, 100),
    keyed=st.booleans(),
    described=st.booleans(),
    roll=st.floats(0, 1, exclude_max=True),
)
def test_waits_are_bounded_and_respect_what_the_mesh_asked_for(
    code: grpc.StatusCode,
    reason: str,
    after: float | None,
    made: int,
    left: float,
    keyed: bool,
    described: bool,
    roll: float,
) -> None:
    """A wait is at least RetryInfo's, at most that and the bound, and ends before the deadline."""
    policy = RetryPolicy(attempts=10, base_s=0.1, max_s=2.0)
    error = _error(code, reason, after, described=described)
    wait = retry.delay(policy, made, error, keyed=keyed, time_left_s=left, random=lambda: roll)
    if wait is None:
        return
    assert made < 10
    assert (after or 0.0) <= wait <= (after or 0.0) + 2.0
    assert wait < left
    assert code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
    assert keyed or reason in {"OVERLOADED", "NO_CANDIDATE"}


def test_a_message_that_is_too_large_is_not_sent_again() -> None:
    """The transport's own RESOURCE_EXHAUSTED is about the message, not about load."""
    error = _error(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", None, described=False)
    assert not retry.may_repeat(error, keyed=True)


def test_a_retry_policy_makes_sense() -> None:
    """Zero attempts, and waits below zero, are refused."""
    for wrong in ({"attempts": 0}, {"base_s": -1.0}, {"max_s": -math.inf}):
        with pytest.raises(ValueError, match="attempts are"):
            RetryPolicy(**wrong)


@pytest.mark.parametrize(
    "target", ["router.internal:7070", "dns:///router.internal:7070", "10.0.0.7:7070", "[::2]:1"]
)
def test_tokens_don_t_cross_a_network_in_plain_text(target: str) -> None:
    """A token without TLS is refused, except on this machine or when told that it is safe."""
    with pytest.raises(ValueError, match="plain text"):
        Client(target, token="t")
    Client(target, token="t", plaintext_token=True).close()
    Client(target, token="t", tls=Tls()).close()
    Client(target).close()


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x.sock"])
def test_this_machine_needs_no_tls(target: str) -> None:
    """On the loopback a token may go without TLS."""
    Client(target, token="t").close()


def test_half_of_mtls_is_refused() -> None:
    """A certificate without its key is a mistake."""
    with pytest.raises(ValueError, match="mTLS"):
        Tls(certificate=Path("chain.pem"))
