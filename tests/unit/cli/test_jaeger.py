"""Jaeger beside the mesh: how it is found, built, and read."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from services.cli.embedded import jaeger
from services.cli.tracing.jaeger import JaegerTraces
from services.cli.tracing.query import TracesGoneError
from tests.support import ROOT, free_port

TRACE = """{"data": [{"traceID": "00ab", "spans": [
 {"traceID": "00ab", "spanID": "1", "operationName": "ask", "references": [],
  "startTime": 1000, "duration": 50, "processID": "p1",
  "tags": [{"key": "span.kind", "value": "client"}, {"key": "twinpath.task", "value": "t"}]},
 {"traceID": "00ab", "spanID": "2", "operationName": "Infer", "startTime": 1010, "duration": 20,
  "references": [{"refType": "CHILD_OF", "traceID": "00ab", "spanID": "1"},
                 {"refType": "FOLLOWS_FROM", "traceID": "cd", "spanID": "9"}],
  "processID": "p2", "tags": [{"key": "otel.status_code", "value": "ERROR"},
                              {"key": "otel.status_description", "value": "no"}]}],
 "processes": {"p1": {"serviceName": "caller"},
               "p2": {"serviceName": "twinpath-router",
                      "tags": [{"key": "service.instance.id", "value": "77"}]}}}]}"""


class Answers(BaseHTTPRequestHandler):
    """Jaeger's query API, as far as it is asked here."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer one trace, or that it is not known."""
        self.asked.append(self.path)
        known = not self.path.endswith("f" * 32)
        body = TRACE.encode() if known else b'{"data": null, "errors": [{"code": 404}]}'
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """Where it answers."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_trace_is_read_in_the_words_of_the_collector(url: str) -> None:
    """Ids have their full length, kinds and errors are fields, links are told from the parent."""
    root, child = JaegerTraces(url).spans("0" * 30 + "ab")
    assert (root.service, root.kind, root.parent_id, root.error) == ("caller", "CLIENT", "", False)
    assert root.span_id == "0" * 15 + "1"
    assert root.attributes == {"twinpath.task": "t"}
    assert child.parent_id == root.span_id
    assert child.links == ("cd".rjust(32, "0"),)
    assert (child.error, child.message, child.process) == (True, "no", "77")
    assert (child.start_ns, child.duration_us) == (1_010_000, 20.0)


def test_the_newest_traces_may_have_to_have_an_attribute(url: str) -> None:
    """Traces without a decision, such as a health call's, are passed over."""
    traces = JaegerTraces(url)
    assert traces.newest(1) == ["0" * 30 + "ab"]
    assert traces.newest(1, "twinpath.task") == ["0" * 30 + "ab"]
    assert traces.newest(1, "twinpath.decision_id") == []


def test_what_is_not_there(url: str) -> None:
    """An unknown trace is empty, an id that is none is not asked for, a dead Jaeger is an error."""
    assert JaegerTraces(url).spans("f" * 32) == []
    before = len(Answers.asked)
    assert JaegerTraces(url).spans("../services") == []
    assert len(Answers.asked) == before
    with pytest.raises(TracesGoneError):
        JaegerTraces(f"http://127.0.0.1:{free_port()}").newest(1)


def test_the_binary_is_named_or_the_one_that_was_built(tmp_path: Path) -> None:
    """TWINPATH_JAEGER names it; `none`, or a file that can't be run, means that there is none."""
    program = tmp_path / "jaeger"
    program.write_text("#!/bin/sh\n")
    assert jaeger.binary({"TWINPATH_JAEGER": str(program)}) is None
    program.chmod(0o755)
    assert jaeger.binary({"TWINPATH_JAEGER": str(program)}) == program
    assert jaeger.binary({"TWINPATH_JAEGER": "none"}) is None


def test_without_go_the_build_says_what_to_do(tmp_path: Path) -> None:
    """One clear message and status 2, no half-made folder."""
    copy = tmp_path / "deploy" / "jaeger"
    copy.mkdir(parents=True)
    script = copy / "build.sh"
    script.write_bytes((ROOT / "deploy" / "jaeger" / "build.sh").read_bytes())
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "dirname"):
        real = next(p for p in os.get_exec_path() if os.access(f"{p}/{tool}", os.X_OK))
        (bare / tool).symlink_to(f"{real}/{tool}")
    done = subprocess.run(
        ["/bin/sh", str(script)],
        env={"PATH": str(bare)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Install Go" in done.stderr
    assert not (tmp_path / ".twinpath").exists()
