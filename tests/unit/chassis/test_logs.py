"""Logs: a JSON object a line, with the trace id."""

from __future__ import annotations

import json
import logging
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from services.chassis import logs
from services.chassis.logs import JsonFormatter

FORMAT = JsonFormatter("router")


def line(record: logging.LogRecord) -> dict:
    """Return what a record's line says."""
    text = FORMAT.format(record)
    assert "\n" not in text
    return json.loads(text)


def record(message: str, **extra: object) -> logging.LogRecord:
    """Return a record."""
    logger = logging.getLogger("some.module")
    return logger.makeRecord(logger.name, 20, "f", 1, message, (), None, extra=extra)


def test_a_line_has_time_level_service_logger_message_and_extras() -> None:
    """What tools filter by has names of its own."""
    found = line(record("call failed", method="/a.B/C", reason="X"))
    assert found["level"] == "INFO"
    assert found["service"] == "router"
    assert found["logger"] == "some.module"
    assert found["message"] == "call failed"
    assert (found["method"], found["reason"]) == ("/a.B/C", "X")
    assert found["time"].endswith("Z")


def test_a_line_carries_the_trace_of_the_call() -> None:
    """From a log line to the trace, and back."""
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        found = line(record("x"))
    assert found["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert found["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert "trace_id" not in line(record("x"))
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_exception_stands_in_its_line() -> None:
    """A stack of calls is one field, not many lines."""
    try:
        int("two\nlines")
    except ValueError:
        made = logging.getLogger("m").makeRecord("m", 40, "f", 1, "x", (), sys.exc_info())
    assert "ValueError" in line(made)["exception"]


def test_extras_do_not_replace_what_the_line_is_about() -> None:
    """An extra named like a field of the frame does not forge it."""
    found = line(record("x", level="CRITICAL", service="audit", time="never"))
    assert found["level"] == "INFO"
    assert found["service"] == "router"
    assert found["time"] != "never"


def test_any_value_becomes_valid_json() -> None:
    """Values that JSON does not know don't break a line for those who parse it."""
    constants: list[str] = []
    text = FORMAT.format(record("x", number=float("nan"), thing=object(), text="ü\n"))
    found = json.loads(text, parse_constant=constants.append)
    assert constants == []
    assert (found["number"], found["text"]) == ("nan", "ü\n")


def test_a_caller_who_leaves_is_no_error(monkeypatch) -> None:
    """An error of gRPC's own stays; its stack for an answer that nobody waits for does not."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    logger = logging.getLogger("grpc._cython.cygrpc")
    monkeypatch.setattr(logger, "filters", [])
    seen: list[str] = []
    logs.setup("router", "INFO")
    heard = logging.Handler()
    heard.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    root.handlers[:] = [heard]
    method = "/twinpath.router.v1.Router/Infer"
    for what in ("ExecuteBatchError raised in core", "Unexpected [ValueError] raised"):
        logger.error("%s by servicer method [%s]", what, method)
    assert seen == [f"Unexpected [ValueError] raised by servicer method [{method}]"]
