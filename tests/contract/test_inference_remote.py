"""The inference contract, on the remote path before a real stand-in vendor process."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from services.cli.embedded.process import ManagedProcess, ProcessSpec
from services.remote.compose import build
from services.remote.settings import RemoteSettings
from tests.canonical import Wire
from tests.contract.inference_suite import InferenceContract, Subject
from tests.local_path import running
from tests.support import (
    ROOT,
    MeshKeys,
    client,
    free_port,
    settings_for,
    sign_grant,
    start_service,
)
from tests.unit.remote.support import VENDOR_TOKEN, write_catalog
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.integration


def wires(entry: dict) -> list[Wire]:
    """Read a request's body as the Open Inference Protocol's binary extension lays it out."""
    body = base64.b64decode(entry["body_base64"])
    headers = {name.lower(): value for name, value in entry["headers"].items()}
    split = int(headers["inference-header-content-length"])
    at = split
    found = []
    for tensor in json.loads(body[:split])["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        raw = body[at : at + size]
        at += size
        found.append(Wire(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), raw))
    assert at == len(body)
    return found


@dataclass(frozen=True)
class Vendor:
    """Where the stand-in vendor answers."""

    url: str
    admin_url: str


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    """The stand-in vendor as a process of its own, with its echo models."""
    port, admin = free_port(), free_port()
    found = Vendor(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}")

    async def ready() -> bool:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{found.admin_url}/admin/health") as reply,
        ):
            return reply.status == 200

    environment = {
        "TWINPATH_STANDIN_PORT": str(port),
        "TWINPATH_STANDIN_ADMIN_PORT": str(admin),
        "TWINPATH_STANDIN_TOKEN": VENDOR_TOKEN,
    }
    process = ManagedProcess(
        ProcessSpec(
            "stand-in vendor",
            (sys.executable, "-m", "services.standin"),
            tmp_path_factory.mktemp("standin") / "standin.log",
            env={**os.environ, **environment},
            cwd=ROOT,
            ready=ready,
        )
    )
    with running(process):
        yield found


class TestRemote(InferenceContract):
    """The remote path keeps to the contract."""

    @pytest.fixture
    async def subject(
        self, vendor: Vendor, keys: MeshKeys, tmp_path: Path
    ) -> AsyncIterator[Subject]:
        """The service in this process, the stand-in vendor in its own."""

        async def arrived() -> list[list[Wire]]:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"{vendor.admin_url}/admin/log?limit=1000") as reply,
            ):
                entries = (await reply.json())["entries"]
            return [wires(entry) for entry in entries if entry["method"] == "POST"]

        def dress(item: inference_pb2.InferItem) -> None:
            item.provider = "standin"
            given = item.input
            found = given.digest or digest.digest(tensors.normalize(given.tensors))
            claims = {
                "grant_id": secrets.token_hex(16),
                "decision_id": item.decision_id,
                "candidate": "echo_remote",
                "provider": "standin",
                "input_digest": found,
                "data_class": context_pb2.DATA_CLASS_INTERNAL,
                "policy_version": "test",
                "region": "eu",
                "task": "test",
                "model": item.model,
                "version": item.version,
            }
            item.grant.CopyFrom(sign_grant(keys.grants, claims))

        async with (
            aiohttp.ClientSession() as http,
            http.delete(f"{vendor.admin_url}/admin/log") as reply,
        ):
            assert reply.status == 204
        catalog = write_catalog(tmp_path, vendor.url)
        settings = settings_for(RemoteSettings, keys, catalog=catalog, grant_keys=keys.grant_keys)
        async with (
            start_service(settings, build) as service,
            client(service.address, keys.token("service:router")) as channel,
        ):
            stub = inference_pb2_grpc.InferenceStub(channel)
            yield Subject(
                context_pb2.PATH_REMOTE,
                service.address,
                stub,
                keys,
                arrived,
                dress,
            )
