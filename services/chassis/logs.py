"""Logs: one JSON object a line on standard error, with the trace id of the call."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from opentelemetry import trace

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, service, message, trace_id, and its extras."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
            line["span_id"] = f"{span.span_id:016x}"
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line.setdefault(name, value)  # an extra never replaces what the line is about
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return json.dumps(line, default=str, ensure_ascii=False, allow_nan=False)
        except ValueError:  # NaN or infinity, which JSON does not know
            return json.dumps({name: str(value) for name, value in line.items()})


def _worth_saying(record: logging.LogRecord) -> bool:
    """Tell gRPC's own errors from a caller who left while his answer was being sent.

    gRPC logs the latter as an error of the handler, with a stack. Answers that can't be sent for
    another reason don't get that far (boundary.py).
    """
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


def setup(service: str, level: str) -> None:
    """Send the root logger's records to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("grpc", "asyncio", "aiohttp.access", "opentelemetry.exporter"):
        logging.getLogger(noisy).setLevel("WARNING")
    logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_saying)
