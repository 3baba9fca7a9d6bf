"""All vendors of the catalog with their adapters, and whether each one is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis.clock import Clock
from services.chassis.errors import NotFoundError, ServiceError
from services.remote import meters
from services.remote.catalog import Model, Provider
from services.remote.provider import Adapter

_PROBE_TIMEOUT_S = 0.9
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Vendor:
    """A provider, its adapter, and what the last probe said.

    Attributes:
        provider: What the catalog says.
        adapter: How to speak to it.
        asked_at: When it was probed last, on the monotonic clock; below zero: never.
        problem: Why it is not there; empty: it is.
    """

    provider: Provider
    adapter: Adapter
    asked_at: float = -1.0
    problem: str = "not asked yet"


class Vendors:
    """The vendors by name.

    Args:
        vendors: All of them.
        clock: Its monotonic clock decides when a probe is due.
        probe_interval_s: For how long a vendor that answered is not probed again. One that did
            not answer is probed each time.
    """

    def __init__(
        self, vendors: Mapping[str, Vendor], clock: Clock, probe_interval_s: float
    ) -> None:
        self._vendors = dict(vendors)
        self._clock = clock
        self._interval = probe_interval_s
        self._reported: dict[tuple[str, str, str], str] = {}

    def find(self, provider: str) -> Vendor:
        """Return a vendor; raises NotFoundError (PROVIDER_UNKNOWN)."""
        vendor = self._vendors.get(provider)
        if vendor is None:
            raise NotFoundError(
                "PROVIDER_UNKNOWN",
                "the catalog has no such provider",
                metadata={"provider": provider},
            )
        return vendor

    def find_model(self, vendor: Vendor, name: str, version: str) -> Model:
        """Return a vendor's model; raises NotFoundError (MODEL_UNKNOWN)."""
        model = vendor.provider.find(name, version)
        if model is None:
            raise model_unknown(name, version)
        return model

    def all(self) -> list[Vendor]:
        """Return all vendors, by name."""
        return [self._vendors[name] for name in sorted(self._vendors)]

    async def ping(self) -> None:
        """Probe those that are due. Raises ServiceError if not one vendor is there.

        One vendor that is down makes only its own models unavailable, not this service.
        """
        vendors = self.all()
        await asyncio.gather(*(self._probe(vendor) for vendor in vendors))
        if all(vendor.problem for vendor in vendors):
            raise RuntimeError(
                "; ".join(f"{vendor.provider.name}: {vendor.problem}" for vendor in vendors)
            )

    def reported(self, provider: str, model: Model, version: str) -> None:
        """Note the version that a vendor reported; a change of it is an event (alias drift)."""
        if not version:
            return
        key = (provider, model.name, model.version)
        before = self._reported.get(key, model.version)
        self._reported[key] = version
        if version != before:
            meters.DRIFT.labels(provider, model.name).inc()
            log.warning(
                "the vendor reports another version under the same name",
                extra={
                    "provider": provider,
                    "model": model.name,
                    "asked_version": model.version,
                    "reported_before": before,
                    "reported_now": version,
                },
            )

    async def _probe(self, vendor: Vendor) -> None:
        now = self._clock.monotonic()
        if not vendor.problem and now - vendor.asked_at < self._interval:
            return
        vendor.asked_at = now
        try:
            await vendor.adapter.probe(_PROBE_TIMEOUT_S)
            vendor.problem = ""
        except ServiceError as error:
            vendor.problem = error.message
        meters.VENDOR_UP.labels(vendor.provider.name).set(0 if vendor.problem else 1)


def model_unknown(name: str, version: str) -> NotFoundError:
    """Return the error for a model that the catalog does not list."""
    return NotFoundError(
        "MODEL_UNKNOWN",
        "the catalog lists no such model",
        metadata={"model": name, "version": version},
    )
