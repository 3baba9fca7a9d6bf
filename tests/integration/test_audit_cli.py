"""`twinpath audit …` against a real audit service, and offline against its files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.audit.compose import build
from services.cli.audit import app
from tests import support
from tests.integration.test_audit_service import LOCAL, REMOTE, Calls, entry, settings_in
from twinpath.audit.v1 import record_pb2
from twinpath.common.v1 import decision_pb2

PLAN = decision_pb2.Plan(
    entries=[
        decision_pb2.PlanEntry(candidate=LOCAL, rank=1),
        decision_pb2.PlanEntry(
            candidate=REMOTE,
            refusals=[decision_pb2.Refusal(rule="too_sensitive", message="it may not leave")],
        ),
    ],
    policy_version="p1",
)


def twinpath(*arguments, code=0) -> str:
    """Run a command in this process; return what it printed."""
    result = CliRunner().invoke(app, list(arguments), terminal_width=200, env={"COLUMNS": "200"})
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result.output


@contextlib.asynccontextmanager
async def filled(folder, monkeypatch):
    """A service with a few records, which commands find by environment variables."""
    async with contextlib.AsyncExitStack() as stack:
        keys = support.mesh_keys(folder / "mesh")
        running = await stack.enter_async_context(
            support.start_service(settings_in(folder, keys), build)
        )
        calls = Calls(running, keys, stack)
        attempt = decision_pb2.Attempt(
            candidate=REMOTE, bytes_out=10, latency_us=1500, reported_version="large-2026-03-01"
        )
        await calls.append(
            entry("d1", record_pb2.RECORD_KIND_INTENT),
            entry("d1", plan=PLAN),
            entry("d2", candidates=[REMOTE], attempts=[attempt], fallback=True, plan=PLAN),
            entry("d3", record_pb2.RECORD_KIND_REFUSED, patient=18, plan=PLAN),
        )
        token = keys.token_file("ann", roles=["auditor", "privacy_officer"])
        monkeypatch.setenv("TWINPATH_HOME", str(folder / "none"))
        monkeypatch.setenv("TWINPATH_TOKEN_FILE", str(token))
        monkeypatch.setenv("TWINPATH_AUDIT_ADDRESS", running.address)
        monkeypatch.setenv("TWINPATH_ROUTER_ADDRESS", running.address)
        yield calls


@pytest.mark.integration
async def test_an_auditors_questions(tmp_path, monkeypatch):
    """Each question is one command, and its answer holds what was asked for and nothing else."""
    key = str(tmp_path / "keys" / "audit.pem.vkey")
    who = ("-e", "patient_id=17", "--type", "diabetes_patient")

    async with filled(tmp_path, monkeypatch) as calls:

        async def ask(*arguments, code=0):
            return await asyncio.to_thread(twinpath, *arguments, code=code)

        assert "patient" not in await ask("get", "d1")
        reasons = await ask("why", "d2")
        assert "1  local  diabetes_small v1" in reasons
        refused = "refused  remote  diabetes_large v1  at standin (no region)"
        assert refused in reasons
        assert "too_sensitive  it may not leave" in reasons.split(refused)[1].splitlines()[0]
        assert "data class unspecified, policy p1" in reasons
        assert "refused" not in await ask("get", "d2")
        told = await ask("about", *who)
        assert "d1" in told
        assert "d2" in told
        assert "d3" not in told
        assert "d1" not in await ask("about", *who, "--until", "2020-01-01")
        for version in ("1", "large-2026-03-01"):
            found = await ask("by-model", "diabetes_large", version)
            assert "d2" in found
            assert "d1" not in found
        assert "no record fits" in await ask("by-model", "diabetes_large", "2")
        assert "says it is large-2026-03-01" in await ask("get", "d2")
        assert "d2" in await ask("egress")
        assert "d2" in await ask("fallbacks")
        refusals = await ask("refusals")
        assert "d3" in refusals
        assert "too_sensitive" in refusals
        printed = await ask("query", "--kind", "outcome", "--json")
        assert [json.loads(x)["record"]["decision_id"] for x in printed.split("\n") if x] == [
            "d1",
            "d2",
        ]
        assert "proven" in await ask("prove", "d2", "--key", key)
        kept = str(tmp_path / "kept")
        await ask("checkpoint", "--now", "--save", kept, "--key", key)
        await calls.append(entry("d4"))
        assert "from 4 to 5" in await ask("grew", kept, "--key", key)
        for name in ("out.jsonl", "out.parquet"):
            await ask("export", str(tmp_path / name))
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line)["record"]["decision_id"] for line in lines][-1] == "d4"
        table = await asyncio.to_thread(pq.read_table, tmp_path / "out.parquet")
        assert table.column("decision_id").to_pylist() == ["d1", "d1", "d2", "d3", "d4"]
        assert "erased" in await ask("erase", *who, "--reason", "asked", "--yes")
        assert "erase_subject" in await ask("overrides")
        assert "no record fits" in await ask("about", *who)
        assert "this means nobody any more" in await ask("get", "d2")
        refused = await ask("get", "unknown", code=1)
        assert "d1" not in refused


@pytest.mark.integration
async def test_verify_offline(tmp_path, monkeypatch):
    """`verify` needs the folder and the public key alone; a flipped byte names its record."""
    async with filled(tmp_path, monkeypatch):
        pass
    key = str(tmp_path / "keys" / "audit.pem.vkey")
    shutil.copytree(tmp_path / "audit", tmp_path / "copy")
    copy = str(tmp_path / "copy")
    assert "4 records" in twinpath("verify", copy, "--key", key)
    proven = twinpath("verify", copy, "--key", key, "--decision", "d2")
    assert "record 2 is in the log of 4" in proven
    assert (
        "no record"
        in json.loads(
            twinpath("verify", copy, "--key", key, "--decision", "nope", "--json", code=1)
        )["problem"]
    )
    segment = next((tmp_path / "copy" / "log").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.find(b"\x12\x02d2") + 2] ^= 1
    segment.write_bytes(data)
    assert "first: record 2" in twinpath("verify", copy, "--key", key, code=1)
    found = json.loads(twinpath("verify", copy, "--key", key, "--json", code=1))
    assert found["first_break"]["record"] == 2
    twinpath("verify", str(tmp_path / "keys"), "--key", key, code=2)


@pytest.mark.integration
async def test_backup_while_it_runs_and_restore(tmp_path, monkeypatch):
    """A copy taken under load verifies, comes back, and forgets those who were erased since."""
    key = str(tmp_path / "keys" / "audit.pem.vkey")
    store = str(tmp_path / "keys" / "subjects.sqlite")
    async with filled(tmp_path, monkeypatch) as calls:
        stop = asyncio.Event()

        async def load() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                await calls.append(entry(f"load-{n}"))

        loading = asyncio.create_task(load())
        await asyncio.to_thread(twinpath, "checkpoint", "--now", "--key", key)
        told = await asyncio.to_thread(
            twinpath,
            "backup",
            str(tmp_path / "audit"),
            str(tmp_path / "backup"),
            "--key-store",
            store,
            "--key",
            key,
        )
        assert "verified copy" in told
        stop.set()
        await loading
        await asyncio.to_thread(
            twinpath,
            "erase",
            "-e",
            "patient_id=18",
            "--type",
            "diabetes_patient",
            "--reason",
            "asked",
            "--yes",
        )
    home = tmp_path / "restored"
    told = twinpath(
        "restore",
        str(tmp_path / "backup"),
        str(home / "audit"),
        "--key-store",
        str(home / "keys" / "subjects.sqlite"),
        "--newer-log",
        str(tmp_path / "audit"),
        "--key",
        key,
    )
    assert "1 erasures replayed" in told
    twinpath("restore", str(tmp_path / "backup"), str(home / "audit"), "--key", key, code=1)
    shutil.copy(tmp_path / "keys" / "audit.pem", home / "keys" / "audit.pem")
    async with contextlib.AsyncExitStack() as stack:
        keys = support.mesh_keys(home / "mesh")
        running = await stack.enter_async_context(
            support.start_service(settings_in(home, keys), build)
        )
        again = Calls(running, keys, stack)
        assert (await again.append(entry("d1")))[0].existing.payload.reply == b"a reply to d1"
