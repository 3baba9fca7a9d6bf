"""The collector's servers, in threads of their own, on 127.0.0.1 only.

OTLP/gRPC   opentelemetry.proto.collector.trace.v1.TraceService
POST        /v1/traces       OTLP/HTTP, JSON or protobuf, gzip or plain
GET         /traces          ids of the newest traces; ?limit=N (20), &attribute=NAME
GET         /traces/<id>     the spans of one trace, as JSON
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.cli.tracing.otlp import OtlpError, from_json, from_message
from services.cli.tracing.spans import SpanStore

_LOOPBACK = "127.0.0.1"
_MAX_BODY = 16 * 1024 * 1024
_TRACE_ID = re.compile(r"/traces/([0-9a-fA-F]{32})")


class Collector:
    """Takes spans over both forms of OTLP and answers queries about them.

    It runs in threads, because it must go on whatever event loop its owner has.

    Args:
        grpc_port: Port of OTLP/gRPC; 0 takes a free one.
        http_port: Port of OTLP/HTTP and of the queries; 0 takes a free one.
        limit: Spans kept at most.
    """

    def __init__(self, grpc_port: int = 0, http_port: int = 0, limit: int = 50_000) -> None:
        self.spans = SpanStore(limit)
        self.grpc_port = grpc_port
        self.http_port = http_port
        self._grpc: grpc.Server | None = None
        self._http: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        """OTLP/gRPC, as OTEL_EXPORTER_OTLP_ENDPOINT takes it."""
        return f"http://{_LOOPBACK}:{self.grpc_port}"

    @property
    def url(self) -> str:
        """OTLP/HTTP and queries: put /v1/traces or /traces behind it."""
        return f"http://{_LOOPBACK}:{self.http_port}"

    def start(self) -> Self:
        """Open both ports; raises OSError if one is taken."""
        self._http = _Server((_LOOPBACK, self.http_port), self.spans)
        self.http_port = int(self._http.server_address[1])
        threading.Thread(
            target=self._http.serve_forever, name="collector-http", daemon=True
        ).start()
        self._grpc = grpc.server(
            ThreadPoolExecutor(2, thread_name_prefix="collector-grpc"),
            options=[("grpc.max_receive_message_length", _MAX_BODY), ("grpc.so_reuseport", 0)],
        )
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
            _TraceService(self.spans), self._grpc
        )
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{_LOOPBACK}:{self.grpc_port}")
        except RuntimeError as error:
            self.stop()
            raise OSError(f"port {self.grpc_port} is taken") from error
        self._grpc.start()
        return self

    def stop(self) -> None:
        """Close both ports. What was collected stays readable."""
        if self._grpc is not None:
            self._grpc.stop(grace=0.2).wait()
            self._grpc = None
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None


class _TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, spans: SpanStore) -> None:
        self._spans = spans

    def Export(  # noqa: N802 - the contract's name
        self, request: Any, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        del context
        self._spans.add(from_message(request))
        return trace_service_pb2.ExportTraceServiceResponse()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], spans: SpanStore) -> None:
        self.spans = spans
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > _MAX_BODY:
            self.close_connection = True
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "the body is too large"})
            return
        body = self.rfile.read(length)
        if self.path != "/v1/traces":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "post to /v1/traces"})
            return
        kind = self.headers.get_content_type()
        try:
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if kind == "application/x-protobuf":
                request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
                self.server.spans.add(from_message(request))
            else:
                self.server.spans.add(from_json(body))
        except (OtlpError, DecodeError, OSError, EOFError, zlib.error) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        self._answer(HTTPStatus.OK, {})

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        if found := _TRACE_ID.fullmatch(where.path):
            spans = self.server.spans.trace(found[1])
            self._answer(HTTPStatus.OK, {"spans": [asdict(span) for span in spans]})
        elif where.path == "/traces":
            asked = parse_qs(where.query)
            limit = asked.get("limit", ["20"])[0]
            count = int(limit) if limit.isdigit() else 20
            newest = self.server.spans.newest(count, asked.get("attribute", [""])[0])
            self._answer(HTTPStatus.OK, {"traces": newest})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "ask for /traces or /traces/<trace id>"})

    def _answer(self, status: HTTPStatus, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        del format, args  # every export would be a line
