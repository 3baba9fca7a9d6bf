"""What should not leave is found, and what only looks like it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import PermissionDeniedError, from_status
from tests.unit.remote.support import Remote, make_item, start_remote
from twinpath.inference import detectors, tensors
from twinpath.inference.v1 import tensor_pb2

FOUND = [
    ("card", "my card is 4111 1111 1111 1111, thanks"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("card", "2223003122003222"),
    ("card", "order 5 4111 1111 1111 1111 shipped"),
    ("card", "378282246310005 1 piece"),
    ("iban", "pay to DE89 3704 0044 0532 0130 00 today"),
    ("iban", "GB29NWBK60161331926819"),
    ("iban", "to MT84MALT011000012345MTLCAST001S now"),
    ("email", "write to Jane.Doe+x@mail.example.co.uk."),
    ("email", "an jürgen@müller.de"),
    ("email", "почта@пример.рф"),
    ("email", "info@xn--mller-kva.xn--p1ai"),
    ("phone", "call +49 (0)30 901820"),
    ("phone", "0049 30 901820"),
    ("phone", "(212) 555-0123"),
    ("phone", "212-555-0123"),
    ("phone", "mobil 0171 2345678"),
    ("phone", "Tel. 089/1234567"),
    ("phone", "Tel. (089) 123 45 67."),
    ("phone", "030 901820 or later"),
    ("phone", "appelez le 06 12 34 56 78"),
    ("phone", "06.12.34.56.78"),
    ("phone", "ring 020 7946 0958"),
    ("phone", "07700 900123"),
    ("phone", "0161 496 0000, 12 2026"),
    ("national_id", "SSN 536-22-1234"),
    ("national_id", "NINO AB 12 34 56 C"),
    ("national_id", "DNI 12345678Z"),
    ("national_id", "NIE X1234567L"),
    ("national_id", "hetu 131052-308T"),
    ("national_id", "NIR 2 55 08 14 168 025 38"),
    ("national_id", "PESEL 44051401359"),
    ("national_id", "born 02270803624"),
    ("national_id", "BSN 111222333"),
    ("national_id", "burgerservicenummer is: 123456782"),
    ("national_id", "1234.56.782"),
    ("national_id", "AHV 756.9217.0769.85"),
    ("national_id", "7569217076985"),
    ("secret", "-----BEGIN RSA PRIVATE KEY-----"),
    ("secret", "AKIAIOSFODNN7EXAMPLE"),
    ("secret", "key sk-proj-abcdefghijklmnopqrstuv"),
    ("secret", "ghp_" + "a" * 36),
    ("secret", "password: hunter2hunter2"),
    ("secret", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz"),
]
NOT_FOUND = [
    "order 4111 1111 1111 1112",  # the checksum does not fit
    "id 1790000000123456",  # a time in microseconds
    "GB28NWBK60161331926819",
    "DNI 12345678A",
    "000-12-3456 and 666-12-3456",
    "a@b and @home and foo@",
    "from 2026-11-23 to 2026-12-01, 12:30-13:45",
    "PESEL 44051401358 and 44951401359",  # the checksum, the month
    "AHV 756.9217.0769.84",
    "order 111222333",  # a Dutch number's checksum alone says too little of nine digits
    "BSN 111222334",
    "open 0800-1700, from 01/02/2026 to 2026/03/04, 0049",
    "codes 01234 56789 01234 and 0123 4567 8901 and 0123-4567-8901-2345",
    "lot 01067 of 1234567 and 0.0171 2345678 and 10171 2345678",
    "ISBN 0-306-40615-2 or 978-0-306-40615-7",
    "values 0.12345678901234567 and 1e-07 and 152.13348416",
    "the secret of the password is to have none",
    "version 1.2.3-4567 build 20261123",
    "password: [EMAIL_1]",  # a token of the router's redaction
]


@pytest.mark.parametrize(("name", "text"), FOUND)
def test_what_should_not_leave_is_found(name: str, text: str) -> None:
    """Each form that services/remote/providers/README.md lists."""
    assert name in list(detectors.find(text))


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    """A refusal costs an answer: dates, measurements and ids pass."""
    assert list(detectors.find(text)) == []


@pytest.mark.parametrize(
    ("name", "text", "held"),
    [
        ("card", "my card is 4111 1111 1111 1111 12/29", "4111 1111 1111 1111"),
        ("iban", "pay DE89 3704 0044 0532 0130 00 TODAY", "DE89 3704 0044 0532 0130 00"),
        ("email", "<Jane.Doe@mail.example.co.uk>.", "Jane.Doe@mail.example.co.uk"),
        ("phone", "call +49 (0)30 901820.", "+49 (0)30 901820"),
        ("phone", "call 0171 234 56 78 12 2026", "0171 234 56 78"),
        ("national_id", "my BSN: 111222333.", "111222333"),
        ("secret", "x -----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- y",
         "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"),
        ("secret", "-----BEGIN PRIVATE KEY-----\nabc", "-----BEGIN PRIVATE KEY-----\nabc"),
    ],
)  # fmt: skip
def test_the_place_is_the_whole_value_and_no_more(name, text: str, held: str) -> None:
    """Who cuts out what was found leaves nothing of it, and takes nothing else."""
    ((start, end),) = detectors.spans(name, text)
    assert text[start:end] == held


def test_an_allowed_detector_does_not_refuse() -> None:
    """A provider file may say that such content is meant for this vendor."""
    assert list(detectors.find("a@b.example", frozenset({"email"}))) == []


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_measurements_as_text_hold_nothing(values: list[float]) -> None:
    """No shortest decimal form of an FP32 is taken for a person's number."""
    text = "\n".join(str(np.float32(value)) for value in values)
    assert list(detectors.find(text)) == []


@given(st.text(max_size=200))
def test_any_text_can_be_searched(text: str) -> None:
    """No text makes a detector fail."""
    list(detectors.find(text))


def text_tensor(text: str) -> tensor_pb2.Tensor:
    """The tensor `t_bytes` with one text."""
    raw = tensors.encode_bytes([text.encode()])
    return tensor_pb2.Tensor(name="t_bytes", datatype=tensors.BYTES, shape=[1, 1], raw=raw)


@pytest.mark.parametrize(
    "tensor",
    [
        text_tensor("my card is 4111 1111 1111 1111"),
        tensors.from_numpy("t_int64", np.array([[4111111111111111]])),
    ],
)
async def test_the_door_refuses_it_and_nothing_is_sent(remote: Remote, tensor) -> None:
    """PERMISSION_DENIED with the detector and the place, never the text; the grant is not used."""
    item = make_item(remote.keys, tensor, model="echo_types")
    (result,) = await remote.infer(item)
    error = from_status(result.status)
    assert isinstance(error, PermissionDeniedError)
    assert error.reason == "SENSITIVE_CONTENT"
    assert error.metadata == {
        "provider": "standin", "field": "input.tensors[0]", "detectors": "card",
    }  # fmt: skip
    assert "4111" not in str(result)
    assert not result.metering.sent
    assert remote.posts == 0


async def test_what_the_provider_file_allows_leaves(keys, tmp_path) -> None:
    """The control: with the detector off, the same text reaches the vendor."""
    async with start_remote(keys, tmp_path, extra="allow: [card]") as remote:
        tensor = text_tensor("my card is 4111 1111 1111 1111")
        (result,) = await remote.infer(make_item(keys, tensor, model="echo_types"))
        assert result.status.code == 0, result.status
        (entry,) = remote.standin.public.ledger.entries(10)
    assert b"4111 1111 1111 1111" in entry.body
