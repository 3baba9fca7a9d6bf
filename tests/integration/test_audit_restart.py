"""Starting again: from what was kept, past what was forged, and not over damage."""

from __future__ import annotations

import asyncio

import pytest

from services.audit import tree_file
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.merkle import HASH_SIZE
from services.audit.verify import verify_directory
from services.chassis.errors import DataLossError
from tests import support
from tests.integration.test_audit_service import entry, service, vkeys
from twinpath.audit.v1 import audit_pb2

pytestmark = pytest.mark.integration
SMALL = {"segment_records": 8}


async def filled(folder, count: int = 50) -> bytes:
    """Make a log of several segments; return its root."""
    async with service(folder, **SMALL) as calls:
        for n in range(count):
            await calls.append(entry(f"d{n}"))
        auditor = await calls.by("auditor")
        point = await auditor.Checkpoint(audit_pb2.CheckpointRequest(now=True))
        return point.root_hash


async def root_of(folder, more: int = 0) -> bytes:
    """Start again, append some, and return the root that is signed."""
    async with service(folder, **SMALL) as calls:
        assert await calls.running.health.check()
        for n in range(more):
            await calls.append(entry(f"more{n}"))
        auditor = await calls.by("auditor")
        point = await auditor.Checkpoint(audit_pb2.CheckpointRequest(now=True))
        return point.root_hash


async def test_a_start_from_kept_nodes_goes_on_with_the_same_tree(tmp_path):
    """The root is the same, what is appended after it verifies, with any of the files missing."""
    root = await filled(tmp_path)
    kept = sorted((tmp_path / "audit" / "log").glob(f"*{tree_file.TREE_SUFFIX}"))
    assert len(kept) == 6
    assert await root_of(tmp_path) == root
    kept[2].unlink()
    kept[4].write_bytes(kept[4].read_bytes()[:-1])
    assert await root_of(tmp_path) == root
    await root_of(tmp_path, more=20)
    report = verify_directory(tmp_path / "audit" / "log", vkeys(tmp_path))
    assert report.ok, report.breaks
    assert report.size == 70


async def test_forged_nodes_accuse_nobody(tmp_path):
    """Inner nodes that were exchanged, checksum and all, are hashed anew and not believed."""
    root = await filled(tmp_path)
    files = OsFileSystem(tmp_path / "audit" / "log")
    journal, _ = Journal.open(files)
    for name, first, hashes in journal.sealed():
        stop = first + len(hashes) // HASH_SIZE
        right = tree_file.decode(files.read_all(tree_file.tree_name(name)), first, hashes)
        forged = tree_file.encode(first, stop, hashes, bytes(len(right)))
        files.replace(tree_file.tree_name(name), forged)
    journal.close()
    files.close()
    assert await root_of(tmp_path) == root
    assert await root_of(tmp_path) == root


async def test_a_damaged_payload_is_found_without_being_asked_for(tmp_path):
    """Soon after the start the service stops serving, and names the payload."""
    await filled(tmp_path)
    segment = sorted((tmp_path / "audit" / "payloads").glob("*.seg"))[2]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    first = int(segment.stem)
    async with service(tmp_path, **SMALL) as calls:
        for _ in range(500):
            if not await calls.running.health.check():
                break
            await asyncio.sleep(0.02)
        router = await calls.by("service:router")
        refused = await support.refusal(
            router.Append(audit_pb2.AppendRequest(entries=[entry("later")]))
        )
        assert isinstance(refused, DataLossError)
        named = int(refused.message.split("record ")[1].split(":")[0])
        assert first <= named < first + 8
