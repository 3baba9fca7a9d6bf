"""The remote service in this process, before a real stand-in vendor, with grants that fit."""

from __future__ import annotations

import contextlib
import secrets
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio

from services.remote.compose import build
from services.remote.settings import RemoteSettings
from services.standin.app import StandIn
from services.standin.settings import Settings as StandInSettings
from tests.support import MeshKeys, client, settings_for, sign_grant, start_service
from twinpath.common.v1 import context_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import grant_pb2, inference_pb2, inference_pb2_grpc, tensor_pb2

VENDOR_TOKEN = "vendor-token-that-must-not-leak"
LIMITED_TOKEN = "limited-token-that-must-not-leak"

# `echo` and `echo_types` are models that the stand-in has for tests; the tensors of `echo_types`
# are optional, so that a test may send any of them.
ECHO_PROVIDER = """
name: {name}
protocol: oip-http
base_url: {base_url}
token: {{file: {token_file}}}
region: eu
max_data_class: internal
{extra}
models:
  - name: echo
    version: "1"
    price: {{per_call_nanos_usd: 123000}}
    inputs: [{{name: features, datatype: FP32, shape: [-1, -1]}}]
    outputs: [{{name: features, datatype: FP32, shape: [-1, -1]}}]
  - name: echo_types
    version: "1"
    inputs:
{types}
    outputs:
{types}
"""


def provider_yaml(
    base_url: str,
    token_file: Path,
    name: str = "standin",
    extra: str = "cost_header: x-standin-cost-usd",
) -> str:
    """A provider file for the stand-in's echo models."""
    types = "\n".join(
        f"      - {{name: t_{datatype.lower()}, datatype: {datatype}, shape: [-1, -1], optional: true}}"
        for datatype in sorted(tensors.datatype_name(value) for value in tensors._CONTENTS)
    )
    return ECHO_PROVIDER.format(
        base_url=base_url, token_file=token_file, name=name, extra=extra, types=types
    )


def write_catalog(folder: Path, base_url: str, **options: Any) -> Path:
    """A catalog with one provider, `standin`; returns the catalog's folder."""
    providers = folder / "catalog" / "providers"
    providers.mkdir(parents=True, exist_ok=True)
    token_file = folder / "vendor.token"
    token_file.write_text(VENDOR_TOKEN + "\n")
    (providers / "standin.yaml").write_text(provider_yaml(base_url, token_file, **options))
    return providers.parent


def features(*values: float) -> tensor_pb2.Tensor:
    """The tensor `features`, one row."""
    raw = struct.pack(f"<{len(values)}f", *values)
    return tensor_pb2.Tensor(
        name="features", datatype=tensors.FP32, shape=[1, len(values)], raw=raw
    )


def claims_for(item: inference_pb2.InferItem, **changes: Any) -> grant_pb2.GrantClaims:
    """Claims that fit an item, except for the changes."""
    fields: dict[str, Any] = {
        "grant_id": secrets.token_hex(16),
        "decision_id": item.decision_id,
        "candidate": "echo_remote",
        "provider": item.provider,
        "input_digest": item.input.digest,
        "data_class": context_pb2.DATA_CLASS_INTERNAL,
        "policy_version": "test",
        "region": "eu",
        "task": "test",
        "model": item.model,
        "version": item.version,
    }
    return grant_pb2.GrantClaims(**(fields | changes))


def make_item(
    keys: MeshKeys,
    *given: tensor_pb2.Tensor,
    model: str = "echo",
    claims: dict[str, Any] | None = None,
    grant: bool = True,
    **fields: Any,
) -> inference_pb2.InferItem:
    """An item with a digest and a grant that fits, except for the changes to its claims."""
    values: dict[str, Any] = {
        "context": context_pb2.ItemContext(id=secrets.token_hex(4)),
        "provider": "standin",
        "version": "1",
        "decision_id": "d-1",
    }
    item = inference_pb2.InferItem(model=model, **(values | fields))
    chosen = list(given) or [features(1.5, -2.0)]
    if not item.HasField("input"):
        item.input.tensors.extend(chosen)
        item.input.digest = digest.digest(chosen)
    if grant:
        item.grant.CopyFrom(sign_grant(keys.grants, claims_for(item, **(claims or {}))))
    return item


@dataclass
class Remote:
    """A running remote service and its vendor."""

    keys: MeshKeys
    standin: StandIn
    channel: grpc.aio.Channel
    address: str

    @property
    def stub(self) -> inference_pb2_grpc.InferenceStub:
        """The contract's client, as the router."""
        return inference_pb2_grpc.InferenceStub(self.channel)

    async def infer(self, *items: inference_pb2.InferItem, timeout: float = 10.0):
        """The results of items."""
        reply = await self.stub.Infer(inference_pb2.InferRequest(items=items), timeout=timeout)
        return list(reply.results)

    async def one(self, **options: Any) -> inference_pb2.InferResult:
        """The result of one item that is made from the options."""
        timeout = options.pop("timeout", 10.0)
        (result,) = await self.infer(make_item(self.keys, **options), timeout=timeout)
        return result

    async def faults(self, *rules: Any) -> None:
        """Put a fault schedule in force at the stand-in."""
        async with (
            aiohttp.ClientSession() as http,
            http.put(f"{self.standin.admin_url}/admin/faults", json=list(rules)) as reply,
        ):
            assert reply.status == 204, await reply.text()

    @property
    def posts(self) -> int:
        """Requests that could carry data which the stand-in has received."""
        return self.standin.public.ledger.posts


@contextlib.asynccontextmanager
async def start_remote(
    keys: MeshKeys,
    folder: Path,
    base_url: str | None = None,
    *,
    extra: str | None = None,
    provider: Callable[[str, Path], str] | None = None,
    standin: dict[str, Any] | None = None,
    **fields: Any,
) -> AsyncIterator[Remote]:
    """Start the stand-in and the remote service, both in this process.

    `base_url` points the service somewhere else than at the stand-in; `extra` are lines of the
    provider file; `provider` writes the whole of it from the base URL and the token's file;
    `standin` are settings of the stand-in, `fields` those of the service.
    """
    options = {} if extra is None else {"extra": extra}
    token = {"token": VENDOR_TOKEN, "limited_token": LIMITED_TOKEN}
    async with StandIn(StandInSettings(**(token | (standin or {})))) as vendor:
        catalog = write_catalog(folder, base_url or vendor.url, **options)
        if provider is not None:
            where = f"http://127.0.0.1:{vendor.grpc_port}" if vendor.grpc_port else vendor.url
            text = provider(base_url or where, folder / "vendor.token")
            (catalog / "providers" / "standin.yaml").write_text(text)
        settings = settings_for(
            RemoteSettings, keys, catalog=catalog, grant_keys=keys.grant_keys, **fields
        )
        async with (
            start_service(settings, build) as running,
            client(running.address, keys.token("service:router")) as channel,
        ):
            yield Remote(keys, vendor, channel, running.address)
