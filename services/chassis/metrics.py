"""The metrics every service has, and the endpoint that shows them to Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

CALLS = Counter(
    "twinpath_rpc_server_calls_total", "Calls served, by method and gRPC code.", ("method", "code")
)
DURATION = Histogram(
    "twinpath_rpc_server_duration_seconds", "Time to serve a call.", ("method",), buckets=_SECONDS
)
IN_FLIGHT = Gauge("twinpath_rpc_server_in_flight", "Calls being served now.", ("method",))
SERVING = Gauge("twinpath_serving", "1 while the service's health is SERVING.")
PING_OK = Gauge("twinpath_dependency_up", "1 while a dependency answers pings.", ("dependency",))


def serve(listen: str | None) -> None:
    """Serve /metrics on host:port in a thread of its own; nothing without `listen`."""
    if listen:
        host, _, port = listen.rpartition(":")
        start_http_server(int(port), addr=host)
