"""The command line without a mesh: quick help, clear words when nothing runs, errors as panels."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services.chassis.errors import InvalidArgumentError, UnavailableError
from services.cli import console, render
from services.cli.client import connect
from services.cli.description import MeshNotRunningError
from services.cli.operate import run_until_signal
from services.cli.steps import Steps
from tests.support import ROOT
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2


def twinpath(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder in which no mesh runs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        env={**kept, "TWINPATH_HOME": str(home), "COLUMNS": "120", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def plain(thing: object, width: int = 100) -> str:
    """What is printed of a thing."""
    with Path(os.devnull).open("w") as nowhere:
        printer = Console(width=width, record=True, file=nowhere)
        printer.print(thing)
        return printer.export_text()


def test_help_names_every_command(tmp_path: Path) -> None:
    """All commands stand in the help, each with a line about it."""
    shown = twinpath(tmp_path, "--help").stdout
    for name in ("up", "demo", "infer", "explain", "tasks", "trace", "audit"):
        assert f" {name} " in shown


def test_help_does_not_import_the_mesh(tmp_path: Path) -> None:
    """Importing the command takes neither gRPC nor OpenTelemetry nor Feast along."""
    code = (
        "import sys, services.cli.__main__, services.cli.decide, services.cli.operate;"
        "print([m for m in ('grpc', 'opentelemetry.sdk', 'feast', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [("infer", "t"), ("explain", "t"), ("tasks",), ("trace",)])
def test_without_a_mesh_a_command_says_how_to_start_one(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Exit code 1, what is wrong, and what to do about it."""
    done = twinpath(tmp_path, *arguments)
    assert done.returncode == 1
    assert "the mesh is not running" in done.stderr
    assert "twinpath up" in done.stderr


def test_a_router_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    """A router named by the environment needs no mesh here; its absence is an error panel."""
    done = twinpath(tmp_path, "tasks", TWINPATH_ROUTER_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr


def test_a_pair_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    """Mistakes on the command line are told before anything is asked."""
    done = twinpath(tmp_path, "infer", "t", "--entity", "patient_id")
    assert done.returncode == 2
    assert "is not name=value" in done.stderr


def test_the_environment_goes_before_what_the_launcher_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address or token file that a person names wins."""
    monkeypatch.delenv("TWINPATH_ROUTER_ADDRESS", raising=False)
    with pytest.raises(MeshNotRunningError):
        connect(tmp_path)
    monkeypatch.setenv("TWINPATH_ROUTER_ADDRESS", "there:1")
    monkeypatch.setenv("TWINPATH_TOKEN_FILE", "/a/token")
    mesh = connect(tmp_path)
    assert mesh.address("router") == "there:1"
    assert mesh.token_file("caller") == Path("/a/token")
    with pytest.raises(MeshNotRunningError, match="TWINPATH_AUDIT_ADDRESS"):
        mesh.address("audit")


def test_an_error_is_shown_with_all_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, reason, message, each wrong field, names and the time to come back."""
    with Path(os.devnull).open("w") as nowhere:
        printer = Console(width=100, record=True, file=nowhere)
        monkeypatch.setattr(console, "err", printer)
        wrong = [("entity[id]", "is required"), ("fields[x]", "is not a field")]
        console.show_error(InvalidArgumentError("INVALID_REQUEST", "no [b]good", violations=wrong))
        console.show_error(
            UnavailableError("NO_CANDIDATE", "away", metadata={"small": "drained"}, retry_after=2)
        )
        shown = printer.export_text()
    for text in ("INVALID_ARGUMENT INVALID_REQUEST", "no [b]good", "entity[id]", "is required"):
        assert text in shown
    for text in ("UNAVAILABLE NO_CANDIDATE", "small", "drained", "Try again in 2 s."):
        assert text in shown


def test_a_decision_is_shown_with_what_people_ask_for() -> None:
    """Outputs, who answered, time, cost, ids, and everything out of the ordinary."""
    reply = router_pb2.InferResponse(
        decision_id="d1",
        trace_id="ab" * 16,
        latency_us=4200,
        input_digest=b"\1" * 32,
        repeated=True,
        fallback=True,
        outputs=[
            tensor_pb2.Tensor(
                name="progression",
                datatype=tensor_pb2.DATATYPE_FP32,
                shape=[1, 1],
                raw=b"\x00\x00\xc0\x3f",
            ),
        ],
        feature_handling=[
            decision_pb2.FeatureHandling(
                feature="v__f",
                status=decision_pb2.FEATURE_STATUS_NULL,
                action=decision_pb2.FEATURE_ACTION_DEFAULTED,
            )
        ],
    )
    reply.answered_by.path = context_pb2.PATH_REMOTE
    reply.answered_by.model = "large"
    reply.answered_by.provider = "vendor"
    shown = plain(render.decision(reply))
    for text in ("progression = 1.5", "remote", "large", "vendor", "4.2 ms", "not known", "d1"):
        assert text in shown
    assert "made before" in shown
    assert "another did" in shown
    assert "v__f was null: defaulted" in shown


def test_a_cost_says_what_it_is_known_from() -> None:
    """An amount without a currency is not known, which is not the same as nothing."""
    paid = decision_pb2.Cost(
        currency_code="USD", nanos=400_000, basis=decision_pb2.COST_BASIS_REPORTED
    )
    assert render.cost(paid) == "0.0004000 USD (reported)"
    assert render.cost(None) == render.cost(decision_pb2.Cost()) == "not known"


def test_a_plan_gives_every_reason() -> None:
    """A refused candidate stands there with its rules and their words."""
    entry = decision_pb2.PlanEntry(
        refusals=[decision_pb2.Refusal(rule="never_leaves", message="It stays.")]
    )
    shown = plain(render.plan(decision_pb2.Plan(entries=[entry], policy_version="v7")))
    for text in ("refused", "never_leaves", "It stays.", "v7"):
        assert text in shown


def test_steps_are_lines_where_there_is_no_terminal() -> None:
    """In a log each step is one line when it is over, failed ones too."""
    with Path(os.devnull).open("w") as nowhere:
        printer = Console(width=100, record=True, file=nowhere)
        with Steps(printer) as steps:
            steps.begin("a")
            steps.note("a", "something")
            steps.end("a", 1.25, ok=True)
            steps.begin("b")
            steps.end("b", 2, ok=False)
        assert printer.export_text() == "✓ a (1.2 s)\n✗ b (2.0 s)\n"


def test_a_signal_lets_the_work_clean_up() -> None:
    """TERM cancels the work, waits for its cleaning up, and exits like Ctrl-C."""
    import signal

    cleaned: list[bool] = []

    async def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return 0

    assert run_until_signal(work()) == 130
    assert cleaned == [True]
