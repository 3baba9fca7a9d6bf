"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import contextlib
import socket

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Find `count` different ports on 127.0.0.1 that nothing listens on.

    All are held at once while they are being chosen, so that they differ. They are released before
    this returns: another process may take one in between, and then the server that gets it fails
    at start with a clear message. Ask just before use.
    """
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.bind((LOOPBACK, 0))
            ports.append(int(sock.getsockname()[1]))
        return ports


def free_port() -> int:
    """Find one free port on 127.0.0.1; see `free_ports`."""
    return free_ports(1)[0]
