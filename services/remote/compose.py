"""The composition root: which parts the remote service is made of."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.chassis.clock import SystemClock
from services.chassis.identity import read_public_keys
from services.chassis.run import Mount, Service
from services.remote import catalog
from services.remote.grants import GrantVerifier, UsedGrants
from services.remote.oip_http import OipHttp
from services.remote.provider import MakeAdapter
from services.remote.servicer import RemoteInference
from services.remote.settings import RemoteSettings
from services.remote.vendors import Vendor, Vendors
from twinpath.inference.v1 import inference_pb2_grpc

# Adapters by the `protocol` of a provider file. A new one is one file and one line here.
ADAPTERS: dict[str, MakeAdapter] = {"oip-http": OipHttp}


async def build(settings: RemoteSettings, stack: AsyncExitStack) -> Service:
    """Put the service together. Vendors need not be there yet.

    Raises:
        CatalogError: A provider file is wrong; with file, line and rule.
        ValueError: The file of grant keys holds no key.
    """
    clock = SystemClock()
    vendors = {}
    for name, provider in catalog.load(settings.catalog, frozenset(ADAPTERS)).items():
        adapter = ADAPTERS[provider.protocol](provider, clock, settings.max_answer_bytes)
        stack.push_async_callback(adapter.aclose)
        vendors[name] = Vendor(provider, adapter)
    known = Vendors(vendors, clock, settings.probe_interval_s)
    verifier = GrantVerifier(
        read_public_keys(settings.grant_keys), clock, settings.grant_lifetime_s
    )
    servicer = RemoteInference(known, verifier, UsedGrants(clock, settings.grant_memory))
    mount = Mount(
        "twinpath.inference.v1.Inference",
        servicer,
        inference_pb2_grpc.add_InferenceServicer_to_server,
    )
    return Service(mounts=[mount], pings={"vendors": known.ping})
