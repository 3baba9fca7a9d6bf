"""Another signing key: checkpoints of the one before go on to count."""

from __future__ import annotations

import pytest

from services.audit.checkpoint import CheckpointError, VerifierKey
from services.audit.signing import read_keyring, rotate
from services.audit.verify import verify_directory
from tests.integration.test_audit_cli import twinpath
from tests.integration.test_audit_service import entry, service, vkeys


async def test_key_rotation(tmp_path):
    """Checkpoints of the old key, of both, and of the new one all verify with the known keys."""
    old, new = tmp_path / "keys" / "audit.pem", tmp_path / "keys" / "new.pem"
    async with service(tmp_path) as calls:
        await calls.append(entry("d1"))
    async with service(tmp_path, signing_key=new, also_sign=old) as calls:
        await calls.append(entry("d2"))
    known = tmp_path / "known"
    known.write_text((tmp_path / "keys" / "audit.pem.vkey").read_text())
    async with service(tmp_path, signing_key=new, known_keys=known) as calls:
        await calls.append(entry("d3"))
    both = [*vkeys(tmp_path), VerifierKey.parse((tmp_path / "keys" / "new.pem.vkey").read_text())]
    log = tmp_path / "audit" / "log"
    assert verify_directory(log, both).ok
    assert not verify_directory(log, both[1:]).ok


@pytest.mark.integration
async def test_the_command_that_rotates(tmp_path, monkeypatch):
    """Both keys sign until it is ended; `verify` without a word about keys accepts all of it."""
    home = tmp_path / "home"
    key = home / "keys" / "audit" / "checkpoints.key"
    monkeypatch.setenv("TWINPATH_HOME", str(home))
    places = {"directory": home / "audit", "signing_key": key}

    async def life(decision: str) -> None:
        async with service(tmp_path, **places) as calls:
            assert (await calls.append(entry(decision)))[0].status.code == 0

    await life("d1")
    kept = tmp_path / "auditors.vkey"  # what an auditor got before the rotation
    kept.write_text((home / "keys" / "audit" / "checkpoints.key.vkey").read_text())
    old_key = key.read_bytes()
    told = twinpath("rotate-key")
    assert kept.read_text().strip() in told
    assert key.read_bytes() != old_key
    await life("d2")
    assert "2 records" in twinpath("verify")
    assert "2 records" in twinpath("verify", "--key", str(kept))
    twinpath("rotate-key", "--end")
    twinpath("rotate-key", "--end", code=1)
    assert not [path for path in key.parent.iterdir() if path.read_bytes() == old_key]
    await life("d3")
    assert "3 records" in twinpath("verify")
    assert "no known key" in twinpath("verify", "--key", str(kept), code=1)
    assert "no known key" in twinpath("verify", "--key", f"{key}.vkey", code=1)  # nor the new alone
    twinpath("rotate-key")
    await life("d4")
    assert "4 records" in twinpath("verify")


async def test_a_rotation_that_a_crash_cut_short_is_made_whole(tmp_path):
    """Without a signing key the next start makes one, and the one before still counts."""
    key = tmp_path / "keys" / "audit.pem"
    async with service(tmp_path) as calls:
        await calls.append(entry("d1"))
    rotate(key)
    key.unlink()
    async with service(tmp_path) as calls:
        await calls.append(entry("d2"))
    known = read_keyring("twinpath.local/audit", key, None, None).verifiers
    assert verify_directory(tmp_path / "audit" / "log", known).ok


def test_what_is_no_key_is_not_rotated(tmp_path):
    """A missing key, or another key's public half, changes nothing."""
    key = tmp_path / "audit.pem"
    with pytest.raises(OSError, match=r"audit\.pem"):
        rotate(key)
    for name in ("audit.pem", "other.pem"):
        read_keyring("a", tmp_path / name, None, None)
    before = key.read_bytes()
    (tmp_path / "audit.pem.vkey").write_text((tmp_path / "other.pem.vkey").read_text())
    with pytest.raises(CheckpointError, match="not the public half"):
        rotate(key)
    assert key.read_bytes() == before
