"""The metrics every service has, and the endpoint that shows them to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

CALLS = Counter(
    "twinpath_rpc_server_calls_total", "Calls served, by method and gRPC code.", ("method", "code")
)
DURATION = Histogram(
    "twinpath_rpc_server_duration_seconds", "Time to serve a call.", ("method",), buckets=_SECONDS
)
IN_FLIGHT = Gauge("twinpath_rpc_server_in_flight", "Calls being served now.", ("method",))
SERVING = Gauge("twinpath_serving", "1 while the service's health is SERVING.", ("service",))
PING_OK = Gauge(
    "twinpath_dependency_up",
    "1 while a dependency answers a service's pings.",
    ("service", "dependency"),
)


@contextmanager
def shown(collector: Any) -> Iterator[None]:
    """Have what a collector reads on /metrics for a while. A second one of its names is not shown.

    The second: tests run two services in one process.
    """
    try:
        REGISTRY.register(collector)
    except ValueError:  # the names are taken
        yield
        return
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


def serve(listen: str | None) -> None:
    """Serve /metrics on host:port in a thread of its own; nothing without `listen`."""
    if listen:
        host, _, port = listen.rpartition(":")
        start_http_server(int(port), addr=host)
