"""Secret keys from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.chassis.files import read_key


@pytest.mark.parametrize("raw", [b"k" * 32, b"6b" * 32, b"6b" * 32 + b"\n"])
def test_a_key_is_32_bytes_or_64_hex_digits(tmp_path: Path, raw: bytes) -> None:
    """As tools write them, with or without a line's end."""
    path = tmp_path / "key"
    path.write_bytes(raw)
    assert read_key(path) == b"k" * 32


@pytest.mark.parametrize("raw", [b"", b"short", b"x" * 64])
def test_a_key_file_with_something_else_is_refused(tmp_path: Path, raw: bytes) -> None:
    """At the start, with the file's name."""
    path = tmp_path / "key"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"key: holds neither 32 bytes"):
        read_key(path)
