"""The mesh that canaries fly in: real processes, a fake local path, requests with marked values."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio

from services.chassis.errors import from_rpc_error
from services.chassis.settings import ServiceSettings
from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.cli.embedded.valkey import Valkey
from services.cli.launcher import ports
from services.cli.launcher.environment import Wiring, environments
from services.cli.launcher.keys import Keys, make_keys
from services.cli.launcher.layout import Layout
from services.cli.launcher.readiness import answering, serving
from tests.fakes import FakeInference, FakeModel, build_inference
from tests.support import ROOT, client, start_service
from twinpath.common.v1 import context_pb2, value_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import jobs_pb2_grpc, router_pb2, router_pb2_grpc

MARK = b"CANARY"
PER_ROAD = 32
RESTRICTED, INTERNAL = context_pb2.DATA_CLASS_RESTRICTED, context_pb2.DATA_CLASS_INTERNAL
LOCAL, REMOTE = context_pb2.PATH_LOCAL, context_pb2.PATH_REMOTE

TASK = """
name: {name}
version: "1"
summary: A text with marked values.
data_class: internal
entity: {{type: note, keys: {{note_id: string}}}}
fields: {{note: {{type: string}}, unlisted: {{type: string, default: ""}}}}
inputs:
  - {{name: text_input, datatype: BYTES, shape: [1], from: ["text:{template}"]}}
outputs:
  - {{name: text_output, datatype: BYTES, shape: [-1]}}
candidates:
  - {{id: here, path: local, model: note, version: "1"}}
  - {{id: there, path: remote, model: note_chat, version: standin-chat-2026-01-01,
     provider: vendor, region: eu, cost_nanos_usd: 900000, bulk: true}}
resilience: {{retries: 2, hedge: true}}
filters: {filters}
{more}
"""
FILTERS = "{patterns: {case: 'CANARY-[0-9]{6}'}, redact: [case], entity_keys: [note_id]}"
PROVIDER = """
name: vendor
protocol: openai-chat
base_url: ${{TWINPATH_STANDIN_URL}}/v1
token: {{file: "${{TWINPATH_STANDIN_TOKEN_FILE}}"}}
region: eu
max_data_class: {max_data_class}
models:
  - name: note_chat
    version: standin-chat-2026-01-01
    wire_name: standin-chat
    inputs: [{{name: text_input, datatype: BYTES, shape: [1]}}]
    outputs: [{{name: text_output, datatype: BYTES, shape: [-1]}}]
    price: {{usd_per_million_input_tokens: 10, usd_per_million_output_tokens: 20, bulk_share: 0.5}}
"""
NO_CEILING = """
import runpy
from services.remote.catalog import Provider
from twinpath.common.v1 import context_pb2
Provider.ceiling = property(lambda _: context_pb2.DATA_CLASS_RESTRICTED)
runpy.run_module("services.remote", run_name="__main__")
"""
RELEASE = """
release:
  id: half
  arms:
    trial: {weight: 1, candidates: [there, here]}
    control: {weight: 1, candidates: [here, there]}
"""
NO_POLICY = """
rules:
  - {id: all_may, message: Everything may go everywhere., require: "true"}
"""


def write_catalog(folder: Path, *, policy: bool) -> None:
    """The committed access table and policies, two tasks, one vendor; or all of it switched off."""
    committed = ROOT / "deploy" / "catalog"
    for name in ("tasks", "providers"):
        (folder / name).mkdir(parents=True)
    shutil.copy(committed / "access.yaml", folder)
    shutil.copytree(committed / "policies", folder / "policies")
    if not policy:
        (folder / "policies" / "base.yaml").write_text(NO_POLICY)
    template = "About {note_id}: {note}" if policy else "{note} {unlisted}"
    for name, more in (
        ("whole", "cache: {ttl_s: 60, restricted: true}"),
        ("chunks", "streaming: true"),
        ("released", RELEASE),
    ):
        text = TASK.format(
            name=name, template=template, filters=FILTERS if policy else "{}", more=more
        )
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    most = "internal" if policy else "confidential"  # no provider file can say restricted
    (folder / "providers" / "vendor.yaml").write_text(PROVIDER.format(max_data_class=most))


def say_it_again(given: Sequence[tensor_pb2.Tensor]) -> list[tensor_pb2.Tensor]:
    """The local model: the text that it got."""
    (text,) = given
    return [tensor_pb2.Tensor(name="text_output", datatype=text.datatype, shape=[1], raw=text.raw)]


@dataclass
class World:
    """What the roads need, and what they found out.

    Attributes:
        router: A caller's stub.
        auditor: An auditor's stub.
        jobs: A caller's stub for batch jobs.
        local: The local path.
        admin: The stand-in vendor's admin endpoint.
        processes: What runs, by name.
        wiring: Where it is.
        keys: Its keys and tokens.
        data_class: Of the requests.
        kinds: How the attempts came about, counted over all roads.
        reasons: Why requests failed, counted.
        answers: What callers got, by number.
        cached: How many answers came from the cache.
    """

    router: router_pb2_grpc.RouterStub
    auditor: router_pb2_grpc.RouterStub
    jobs: jobs_pb2_grpc.JobsStub
    local: FakeInference
    admin: str
    processes: dict[str, ManagedProcess]
    wiring: Wiring
    keys: Keys
    data_class: int = INTERNAL
    kinds: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    answers: dict[int, str] = field(default_factory=dict)
    cached: int = 0
    next_number: int = 0

    def requests(self, count: int, task: str = "whole", **more: Any) -> list[tuple[int, Any]]:
        """So many requests, each with three marked values of its own, and their numbers."""
        first = self.next_number
        self.next_number += count
        return [
            (n, marked(n, task, data_class=self.data_class, **more))
            for n in range(first, first + count)
        ]

    def note(self, number: int, reply: router_pb2.InferResponse) -> str:
        """Take an answer in; return its decision's id."""
        self.kinds.update(attempt.kind for attempt in reply.attempts)
        self.cached += reply.cached
        (text,) = [e for t in reply.outputs for e in tensors.decode_bytes(t.raw)]
        self.answers[number] = text.decode()
        return reply.decision_id

    async def infer(self, asked: Iterable[tuple[int, Any]], at_once: int = 8) -> list[str]:
        """Ask; return the ids of the decisions that were made."""
        gate = asyncio.Semaphore(at_once)

        async def one(number: int, request: router_pb2.InferRequest) -> str:
            async with gate:
                try:
                    return self.note(number, await self.router.Infer(request, timeout=10))
                except grpc.aio.AioRpcError as error:
                    self.reasons[from_rpc_error(error).reason] += 1
                    return ""

        made = await asyncio.gather(*(one(*pair) for pair in asked))
        return [decision for decision in made if decision]

    async def well(self) -> None:
        """Wait until breakers that a road has opened are closed again; these texts hold no mark."""
        for path in (LOCAL, REMOTE):
            good = 0
            while good < 5:
                request = marked(0, "whole", only_path=path)
                request.entity["note_id"].string_value = f"plain-{time.monotonic()}"
                for name in request.fields:
                    request.fields[name].string_value = "Nothing to find."
                try:
                    await self.router.Infer(request, timeout=5)
                except grpc.aio.AioRpcError:
                    good = 0
                    await asyncio.sleep(0.2)
                else:
                    good += 1

    async def faults(self, *rules: dict[str, Any]) -> None:
        """Put faults in force at the vendor; none: no more."""
        async with aiohttp.ClientSession(trust_env=False) as http:
            reply = await http.put(f"{self.admin}/admin/faults", json=list(rules))
            assert reply.status == 204, await reply.text()

    async def received(self) -> list[bytes]:
        """Everything that the vendor got, a request each: method, path, headers and body."""
        async with (
            aiohttp.ClientSession(trust_env=False) as http,
            http.get(f"{self.admin}/admin/log?limit=1000000") as reply,
        ):
            entries = (await reply.json())["entries"]
        return [
            json.dumps([e["method"], e["path"], e["headers"]]).encode()
            + base64.b64decode(e["body_base64"])
            for e in entries
        ]

    async def forget(self) -> None:
        """Empty the vendor's log."""
        async with aiohttp.ClientSession(trust_env=False) as http:
            await http.delete(f"{self.admin}/admin/log")


def marked(number: int, task: str, **more: Any) -> router_pb2.InferRequest:
    """A request with three marked values."""
    key = f"CANARYKEY-{number:06}"
    note = f"What of {key}? The value is CANARY-{number:06}, says the note."
    texts = {"note": note, "unlisted": f"CANARYFIELD-{number:06}"}
    return router_pb2.InferRequest(
        task=task,
        entity={"note_id": value_pb2.Value(string_value=key)},
        fields={name: value_pb2.Value(string_value=text) for name, text in texts.items()},
        **more,
    )


@contextlib.asynccontextmanager
async def mesh(
    home: Path, *, policy: bool, ceiling: bool = True, **standin: str
) -> AsyncIterator[World]:
    """Router, remote, audit, state store and stand-in as processes, and a fake local path.

    Without a `ceiling` the remote service lets restricted data through, which no setting can make
    it do. `standin` are further variables of the stand-in vendor.
    """
    write_catalog(home / "catalog", policy=policy)
    layout = Layout(home=home, runtime=home, catalog=home / "catalog")
    keys, port = make_keys(layout.keys), ports.choose(fixed=False)
    host = "127.0.0.1"
    wiring = Wiring(
        services={n: f"{host}:{port[n]}" for n in ("router", "features", "local", "remote", "audit")},
        metrics={n: f"{host}:{port[f'{n}-metrics']}" for n in ("router", "features", "local", "remote", "audit")},
        state_url=f"redis://{host}:{port['state']}/0",
        features_url="",
        feast_address="",
        triton_url="",
        standin_url=f"http://{host}:{port['standin']}",
        standin_port=port["standin"],
        standin_admin_port=port["standin-admin"],
        extra={
            "services": {"TWINPATH_DRAIN_S": "0.2", "TWINPATH_PING_INTERVAL_S": "0.2"},
            "router": {
                "TWINPATH_ROUTER_CACHE_KEY": str(cache_key(home)),
                "TWINPATH_ROUTER_JOBS_POLL_S": "0.2",
            },
            "standin": {"TWINPATH_STANDIN_LOG_ENTRIES": "100000", **standin},
        },
    )  # fmt: skip
    admin = f"http://{host}:{port['standin-admin']}"
    variables = environments(layout, keys, wiring)
    del variables["standin"]["TWINPATH_STANDIN_MODELS"]  # it talks, and runs no model
    processes: list[ManagedProcess] = [Valkey("state", layout.state, port["state"])]
    ready = {name: serving(wiring.services[name]) for name in ("audit", "remote", "router")}
    ready["standin"] = answering(f"{admin}/admin/health")
    for name in ("standin", "audit", "remote", "router"):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TWINPATH_", "OTEL_"))}
        processes.append(
            ManagedProcess(
                ProcessSpec(
                    name=name,
                    argv=(
                        (sys.executable, "-c", NO_CEILING)
                        if name == "remote" and not ceiling
                        else (sys.executable, "-m", f"services.{name}")
                    ),
                    log_path=layout.log(name),
                    env={**kept, **variables[name]},
                    cwd=ROOT,
                    ready=ready[name],
                    ready_timeout_s=90,
                )
            )
        )
    async with contextlib.AsyncExitStack() as stack:
        local = await stack.enter_async_context(fake_local(wiring, keys))
        await stack.enter_async_context(nothing_at(wiring.services["features"]))
        for process in processes:
            stack.push_async_callback(process.stop)
            await process.start()
        caller, auditor = [
            await stack.enter_async_context(
                client(wiring.services["router"], keys.tokens[role].read_text().strip())
            )
            for role in ("caller", "auditor")
        ]
        yield World(
            router_pb2_grpc.RouterStub(caller),
            router_pb2_grpc.RouterStub(auditor),
            jobs_pb2_grpc.JobsStub(caller),
            local=local,
            admin=admin,
            processes={p.spec.name: p for p in processes[1:]},
            wiring=wiring,
            keys=keys,
        )


def cache_key(home: Path) -> Path:
    """A key for the response cache."""
    path = home / "cache.key"
    path.write_bytes(os.urandom(32))
    return path


@contextlib.asynccontextmanager
async def fake_local(wiring: Wiring, keys: Keys) -> AsyncIterator[FakeInference]:
    """The local path: one model that repeats its text."""
    text = [("text_input", tensors.BYTES, (1,))]
    model = FakeModel("note", text, [("text_output", tensors.BYTES, (1,))], compute=say_it_again)
    fake = FakeInference(models=[model])
    settings = ServiceSettings(
        listen=wiring.services["local"],
        trusted_keys=keys.identity_public,
        access_file=ROOT / "deploy" / "catalog" / "access.yaml",
        drain_s=0.2,
    )
    async with start_service(settings, build_inference(fake)):
        yield fake


@contextlib.asynccontextmanager
async def nothing_at(address: str) -> AsyncIterator[None]:
    """A server without services: these tasks read no features, and the router only looks for it."""
    server = grpc.aio.server()
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
