"""Starting again: from what was kept, past what was forged, and not over damage."""

from __future__ import annotations

import asyncio
import errno

import pytest

from services.audit import filesystem, frames, tree_file
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.merkle import HASH_SIZE
from services.audit.verify import verify_directory
from services.chassis.errors import DataLossError, ResourceExhaustedError, from_status
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


async def test_a_torn_tail_is_cut_and_said(tmp_path, caplog):
    """What a crash left of an unfinished batch goes, with a word; what was acknowledged stays."""
    await filled(tmp_path, count=5)
    segment = max((tmp_path / "audit" / "log").glob("*.seg"))
    whole = segment.read_bytes()
    batch = b"".join(frames.batch(5, [b"nobody was told", b"about these"])[0])
    segment.write_bytes(whole + batch[:-3])
    async with service(tmp_path, **SMALL) as calls:
        assert segment.read_bytes() == whole
        (result,) = await calls.append(entry("next"))
        assert result.leaf_index == 5
        auditor = await calls.by("auditor")
        for n in range(5):
            found = await auditor.Get(audit_pb2.GetRequest(decision_id=f"d{n}"))
            assert found.records[0].leaf_index == n
    (said,) = [line for line in caplog.records if "unfinished batch" in line.message]
    assert (said.segment, said.bytes) == (segment.name, len(batch) - 3)


async def test_a_full_disk_refuses_each_record_and_goes_on_when_there_is_room(
    tmp_path, monkeypatch
):
    """RESOURCE_EXHAUSTED while nothing fits; nothing half is left behind, and then it works."""
    room = [True]
    reserve = filesystem._OsWriter.reserve

    def full(self, size) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "no space left on device")
        reserve(self, size)

    def large(decision: str) -> audit_pb2.Entry:
        made = entry(decision)
        made.payload.reply = bytes(300_000)  # more than what is reserved
        return made

    monkeypatch.setattr(filesystem._OsWriter, "reserve", full)
    async with service(tmp_path) as calls:
        assert (await calls.append(entry("before")))[0].status.code == 0
        room[0] = False
        for n in range(3):
            error = from_status((await calls.append(large(f"d{n}")))[0].status)
            assert isinstance(error, ResourceExhaustedError)
            assert error.reason == "LOG_DISK_FULL"
        room[0] = True
        (result,) = await calls.append(large("d0"))
        assert (result.status.code, result.leaf_index) == (0, 1)
    report = verify_directory(tmp_path / "audit" / "log", vkeys(tmp_path))
    assert report.ok, report.breaks
    assert report.size == 2
