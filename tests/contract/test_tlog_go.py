"""Our log, checked by another implementation of transparency logs: that of Go's module mirror.

The program in tlog_go/ shares no code with the product.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from services.audit.checkpoint import Checkpoint, SignerKey
from services.audit.checkpoint_file import CheckpointFile
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.merkle import Tree
from services.audit.tiles import TileError, hash_tiles, name, publish

HERE = Path(__file__).parent
ORIGIN = "log.example/audit"
SIGNER = SignerKey.from_seed(ORIGIN, b"\x07" * 32)
KEYS = [SIGNER.verifier]

pytestmark = pytest.mark.timeout(300)


def grow(folder: Path, records: int) -> str:
    """Append so many records to a log, sign for them, and return the checkpoint."""
    files = OsFileSystem(folder)
    journal, _ = Journal.open(files)
    points = CheckpointFile(files, ORIGIN, KEYS)
    start = journal.size
    journal.append([b"decision %05d" % n for n in range(start, start + records)])
    tree = Tree(journal.leaf_hashes())
    note = points.append(Checkpoint(ORIGIN, tree.size, tree.root()), [SIGNER])
    points.close()
    journal.close()
    files.close()
    return note


def test_names_of_tiles_are_those_of_the_specification() -> None:
    """Groups of three digits, all but the last behind an x; a partial tile says its width."""
    assert name(0) == "000"
    assert name(5, 8) == "005.p/8"
    assert name(1234067) == "x001/x234/067"


def test_levels_go_up_as_far_as_there_are_whole_tiles() -> None:
    """Each level holds the roots of the whole tiles below; a partial tile has none."""
    leaves = b"".join(n.to_bytes(32, "big") for n in range(256 * 256 + 300))
    found = dict(hash_tiles(leaves))
    assert found["tile/2/000.p/1"] == Tree(leaves[: 256 * 256 * 32]).root()
    assert len(found["tile/1/001.p/1"]) == 32
    assert found["tile/1/000"][32:64] == Tree(leaves[256 * 32 : 512 * 32]).root()
    assert found["tile/0/257.p/44"] == leaves[-44 * 32 :]


def test_records_that_were_not_signed_are_not_published(tmp_path: Path) -> None:
    """Tiles of another log than the checkpoint's would only look like a proof."""
    grow(tmp_path / "log", 10)
    grow(tmp_path / "other", 9)
    (tmp_path / "other" / "checkpoints").write_bytes((tmp_path / "log/checkpoints").read_bytes())
    with pytest.raises(TileError):
        publish(tmp_path / "other", tmp_path / "out", KEYS)
    assert not (tmp_path / "out" / "checkpoint").exists()
    with pytest.raises(TileError):
        publish(tmp_path / "log", tmp_path / "out", [])


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")
def test_go_agrees_on_signature_root_and_every_proof(tmp_path: Path) -> None:
    """Go opens our checkpoint, recomputes its root from our tiles, and proves each record.

    It proves, too, that the log of an older checkpoint is a prefix; and finds a flipped byte.
    """
    work, log, out = tmp_path / "tlog", tmp_path / "log", tmp_path / "out"
    shutil.copytree(HERE / "tlog_go", work)
    fetched = subprocess.run(
        ["go", "mod", "download"], cwd=work, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"go mod download failed: {fetched.stderr.strip().splitlines()[-1]}")
    built = subprocess.run(
        ["go", "build", "-o", "tlog", "."], cwd=work, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr

    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(work / "tlog"), str(out), str(SIGNER.verifier), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    old = tmp_path / "old"
    old.write_text(grow(log, 300))
    assert publish(log, out, KEYS) == 300
    first = go()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("300 records")
    grow(log, 700)
    assert publish(log, out, KEYS) == 1000
    second = go(str(old))
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith("1000 records")
    entries = out / "tile/entries/002"
    data = bytearray(entries.read_bytes())
    data[-1] ^= 1
    entries.write_bytes(data)
    assert go().returncode != 0
