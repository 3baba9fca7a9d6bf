"""Whom we trust where a connection is encrypted."""

from __future__ import annotations

import ssl
from pathlib import Path


def tls(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return the HTTP client's way to check certificates: by these authorities, or the system's.

    Raises:
        OSError: The file is gone, or holds no certificates.
    """
    return True if ca_file is None else ssl.create_default_context(cafile=ca_file)
