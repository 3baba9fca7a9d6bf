"""The stand-in vendor reads the protocol strictly and answers it exactly."""

from __future__ import annotations

import json
import struct

import pytest

from services.standin.oip import BadRequestError, parse
from services.standin.tensors import DATATYPES, WIDTH

INFER = "/v2/models/echo/infer"
GOOD = {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}


def body(**changes) -> bytes:
    """A request with one input that has these fields changed; a field set to None is left out."""
    entry = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return json.dumps({"inputs": [entry]}).encode()


async def test_metadata_calls_it_a_stand_in(vendor) -> None:
    """Nobody can take it for a real vendor."""
    async with vendor.get("/v2") as reply:
        assert "stand-in" in (await reply.json())["name"]


async def test_a_model_describes_itself(vendor) -> None:
    """Metadata with and without a version, and readiness."""
    for path in ("/v2/models/echo", "/v2/models/echo/versions/1"):
        async with vendor.get(path) as reply:
            described = await reply.json()
        assert described["versions"] == ["1"]
        assert described["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, -1]}]
        async with vendor.get(f"{path}/ready") as reply:
            assert reply.status == 200


async def test_health_needs_no_token(standin) -> None:
    """Load balancers may ask."""
    import aiohttp

    async with aiohttp.ClientSession(standin.url) as session:
        for path in ("/v2/health/live", "/v2/health/ready"):
            async with session.get(path) as reply:
                assert reply.status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic c3RhbmQ=", 401),
        ("Bearer", 401),
        ("Bearer limited-token", 403),
    ],
)
async def test_without_a_fitting_token_nothing_is_computed(
    standin, admin, authorization, status
) -> None:
    """401 for an unknown token, 403 for one that may not infer; both are counted as received."""
    import aiohttp

    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession(standin.url, headers=headers) as session,
        session.post(INFER, data=body(), headers={"Content-Type": "application/json"}) as r,
    ):
        assert r.status == status
        assert "error" in await r.json()
    async with admin.get("/admin/counters") as reply:
        counters = await reply.json()
    assert counters["received"] == 1
    assert counters["billed_usd"] == "0"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/ghost/infer", 404),
        ("/v2/models/echo/versions/7/infer", 404),
        ("/v2/nothing", 404),
    ],
)
async def test_what_does_not_exist_is_not_found(vendor, path, status) -> None:
    """Unknown model, version and path."""
    async with vendor.post(
        path, data=body(), headers={"Content-Type": "application/json"}
    ) as reply:
        assert reply.status == status
        assert (await reply.json())["error"]


async def test_json_comes_back_as_it_went(vendor) -> None:
    """JSON in, JSON out, with the id, the version and the price."""
    request = {"id": "a-1", "inputs": [GOOD]}
    async with vendor.post(INFER, json=request) as reply:
        answer = await reply.json()
        assert reply.headers["x-standin-cost-usd"] == "0.00025"
    assert answer["id"] == "a-1"
    assert answer["model_name"] == "echo"
    assert answer["model_version"] == "1"
    assert answer["outputs"] == [GOOD]
    assert answer["parameters"]["standin_usage"] == {"cost_usd": "0.00025", "input_elements": "2"}


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_comes_back_byte_for_byte_as_binary(vendor, datatype) -> None:
    """The binary extension keeps each byte, NaN payloads and odd strings too."""
    if datatype == "BYTES":
        raw = struct.pack("<I", 3) + b"\x00\xff\xfe" + struct.pack("<I", 0)
    elif datatype == "BOOL":
        raw = b"\x01\x00"
    else:
        raw = b"\xff" * (2 * WIDTH[datatype])
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "t",
                    "datatype": datatype,
                    "shape": [2],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
        }
    ).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    async with vendor.post(INFER, data=head + raw, headers=headers) as reply:
        assert reply.status == 200
        answer = await reply.read()
        size = int(reply.headers["Inference-Header-Content-Length"])
    described = json.loads(answer[:size])["outputs"][0]
    assert described == {
        "name": "t",
        "datatype": datatype,
        "shape": [2],
        "parameters": {"binary_data_size": len(raw)},
    }
    assert answer[size:] == raw


async def test_one_output_as_binary_and_one_as_json(vendor) -> None:
    """Each wanted output says for itself how it is wanted; the order is the asked one."""
    inputs = [GOOD, GOOD | {"name": "other"}]
    outputs = [{"name": "other", "parameters": {"binary_data": True}}, {"name": "features"}]
    async with vendor.post(INFER, json={"inputs": inputs, "outputs": outputs}) as reply:
        answer = await reply.read()
        size = int(reply.headers["Inference-Header-Content-Length"])
    described = json.loads(answer[:size])["outputs"]
    assert [entry["name"] for entry in described] == ["other", "features"]
    assert described[1]["data"] == GOOD["data"]
    assert answer[size:] == struct.pack("<2f", 1.5, -2.0)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"{", "failed to parse"),
        (b"\xff", "failed to parse"),
        (b"[]", "must be a JSON object"),
        (b"{}", "inputs must be a list"),
        (b'{"inputs":[]}', "at least one tensor"),
        (b'{"inputs":[1]}', "must be a JSON object"),
        (b'{"inputs":[],"inputs":[]}', "same key twice"),
        (b'{"inputs":[],"extra":1}', "unknown field 'extra'"),
        (body(extra=1), "unknown field 'extra'"),
        (body(name=None), "needs a name"),
        (body(datatype="FLOAT"), "unknown datatype"),
        (body(shape=[1, -2]), "shape must be a list of integers"),
        (body(shape=[True, 2]), "shape must be a list of integers"),
        (body(shape=[2**40]), "too large"),
        (body(shape=[1, 3]), "2 elements, shape"),
        (body(data=None), "needs either data or binary_data_size"),
        (body(data=[[1.0], [2.0]]), "nested data does not fit"),
        (body(data=["1", "2"]), "element 0 is not a FP32"),
        (body(data=[1.0, None]), "element 1 is not a FP32"),
        (body(data=[1.0, True]), "element 1 is not a FP32"),
        (body(data=[1.0, 1e300]), "out of the range of FP32"),
        (body().replace(b"-2.0", b"NaN"), "NaN is not JSON"),
        (body(datatype="INT8", data=[1, 200]), "element 1 is not a INT8"),
        (body(datatype="FP16"), "must be sent as binary"),
        (body(parameters={"binary_data_size": 8}), "needs either data or"),
        (body(data=None, parameters={"binary_data_size": 8}), "does not fit the 0 binary bytes"),
        (body(parameters=[1]), "parameters must be a JSON object"),
        (json.dumps({"inputs": [GOOD, GOOD]}).encode(), "is there twice"),
        (json.dumps({"id": 7, "inputs": [GOOD]}).encode(), "id must be a string"),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_its_reason(sent, words) -> None:
    """A vendor that is strict here would be, so the stand-in is."""
    with pytest.raises(BadRequestError, match=words):
        parse(sent, None)


@pytest.mark.parametrize(
    ("length", "tail", "words"),
    [
        ("-1", b"", "must be an integer"),
        ("99999", b"", "must be an integer"),
        ("all", b"", "must be an integer"),
        (None, b"", "does not fit the 0 binary bytes"),
    ],
)
def test_a_wrong_header_length_is_refused(length, tail, words) -> None:
    """The header must say how much of the body is JSON."""
    head = body(data=None, parameters={"binary_data_size": 8})
    with pytest.raises(BadRequestError, match=words):
        parse(head + tail, length)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    """Nothing may hide behind the last tensor."""
    head = body(data=None, parameters={"binary_data_size": 8})
    with pytest.raises(BadRequestError, match="1 bytes after the last tensor"):
        parse(head + bytes(9), str(len(head)))


def test_nested_data_is_read_row_by_row() -> None:
    """Nested and flat lists mean the same tensor."""
    assert parse(body(data=[[1.5, -2.0]]), None).inputs == parse(body(), None).inputs


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (body(), {"Content-Type": "text/plain"}, 415),
        (body(), {"Content-Type": "application/octet-stream"}, 400),
        (b"{", {"Content-Type": "application/json"}, 400),
        (bytes(17 * 2**20), {"Content-Type": "application/json"}, 413),
    ],
)
async def test_bad_content_gets_the_status_that_a_vendor_gives(
    vendor, content, headers, status
) -> None:
    """400, 413 and 415, each with an error in JSON."""
    async with vendor.post(INFER, data=content, headers=headers) as reply:
        assert reply.status == status
        assert (await reply.json())["error"]


async def test_an_answer_that_json_cannot_hold_is_an_error_not_a_lie(vendor) -> None:
    """NaN in a JSON answer is refused; binary carries it."""
    head = body(data=None, shape=[1], parameters={"binary_data_size": 4})
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    nan = struct.pack("<f", float("nan"))
    async with vendor.post(INFER, data=head + nan, headers=headers) as reply:
        assert reply.status == 400
        assert "binary_data" in (await reply.json())["error"]


def test_its_span_joins_the_callers_trace() -> None:
    """Headers in any case; without them the span begins a trace of its own."""
    from opentelemetry import context, trace

    from services.standin import spans

    seen = []
    start = spans._tracer.start_as_current_span

    class Tracer:
        def start_as_current_span(self, name, parent: context.Context, **more):
            seen.append(trace.get_current_span(parent).get_span_context().trace_id)
            return start(name, parent, **more)

    original, spans._tracer = spans._tracer, Tracer()
    try:
        with spans.inference({"Traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}, "echo"):
            pass
        with spans.inference({}, "echo"):
            pass
    finally:
        spans._tracer = original
    assert seen == [int("a" * 32, 16), 0]
