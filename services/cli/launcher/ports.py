"""Which port everything listens on: fixed ones for people, free ones for demo and tests."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from types import MappingProxyType

from services.cli.embedded.ports import LOOPBACK, free_ports

# What `twinpath up` takes while nobody else has it.
FIXED: Mapping[str, int] = MappingProxyType(
    {
        "router": 7070,
        "features": 7071,
        "local": 7072,
        "remote": 7073,
        "audit": 7074,
        "state": 7075,
        "features-store": 7076,
        "triton": 7077,
        "triton-http": 7078,
        "triton-metrics": 7079,
        "standin": 7080,
        "standin-admin": 7081,
        "collector": 7082,
        "collector-http": 7083,
        # Jaeger's own, where it is built.
        "jaeger-otlp": 4317,
        "jaeger-otlp-http": 4318,
        "jaeger-query": 16686,
        "jaeger-query-grpc": 16685,
        "jaeger-health": 13133,
        "router-metrics": 7090,
        "features-metrics": 7091,
        "local-metrics": 7092,
        "remote-metrics": 7093,
        "audit-metrics": 7094,
    }
)


def choose(*, fixed: bool) -> dict[str, int]:
    """A port for each name: its fixed one if that is wanted and free, else any free one."""
    free = dict(zip(FIXED, free_ports(len(FIXED)), strict=True))
    if not fixed:
        return free
    return {name: port if is_free(port) else free[name] for name, port in FIXED.items()}


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True
