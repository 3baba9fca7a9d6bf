"""The index: what it finds, what it makes of damage, and the filter before it."""

from __future__ import annotations

import asyncio

import pytest

from services.audit import seen
from services.audit.index import Index, Row, Search
from services.audit.live_index import LiveIndex

INTENT, OUTCOME, FAILED = 1, 2, 7


def row(n: int, kind: int = OUTCOME, **fields) -> Row:
    """A row of decision n."""
    return Row(decision=f"d{n}", kind=kind, time_us=n * 10, **fields)


def test_times_narrow_by_half_open_ranges(tmp_path):
    """A time range takes its start in and leaves its end out."""
    index = Index(tmp_path / "i.sqlite")
    index.add(0, [row(n) for n in range(100)], mark=1)
    assert index.search(Search(start_us=250, end_us=300)) == [25, 26, 27, 28, 29]
    assert index.search(Search(start_us=251, end_us=260)) == []
    assert index.search(Search(start_us=980)) == [98, 99]
    assert index.search(Search(start_us=10_000)) == []
    assert index.search(Search(end_us=1)) == [0]
    assert index.count(Search()) == 100


def test_pages_join_up(tmp_path):
    """Pages taken one after the other hold each record once."""
    index = Index(tmp_path / "i.sqlite")
    index.add(0, [row(n, task="a" if n % 3 else "b") for n in range(50)], mark=1)
    found, after = [], -1
    while page := index.search(Search(task="a"), after=after, limit=7):
        found += page
        after = page[-1]
    assert found == [n for n in range(50) if n % 3]


def test_rows_it_has_are_skipped_and_gaps_refused(tmp_path):
    """Adding again is harmless; adding beyond the end would hide records and is refused."""
    index = Index(tmp_path / "i.sqlite")
    index.add(0, [row(n) for n in range(5)], mark=1)
    index.add(3, [row(n) for n in range(3, 8)], mark=2)
    assert index.size == 8
    assert index.mark == 2
    with pytest.raises(ValueError, match="missing"):
        index.add(9, [row(9)], mark=3)


def test_overdue_intents(tmp_path):
    """An INTENT is overdue past its deadline, unless its decision ended, before it or after."""
    index = Index(tmp_path / "i.sqlite")
    rows = [
        row(0, INTENT, opens_until_us=100),
        row(1, INTENT, opens_until_us=100),
        row(1, OUTCOME, closes=True),
        row(2, FAILED, closes=True),
        row(2, INTENT, opens_until_us=100),
        row(3, INTENT, opens_until_us=900),
    ]
    index.add(0, rows, mark=1)
    assert index.overdue(500, (OUTCOME, FAILED)) == [("d0", 0)]
    assert index.overdue(99, (OUTCOME, FAILED)) == []


def test_a_damaged_file_is_made_anew(tmp_path):
    """An index that can't be read, or of another version, starts empty instead of failing."""
    path = tmp_path / "i.sqlite"
    path.write_bytes(b"no database at all" * 500)
    index = Index(path)
    assert index.size == 0
    index.add(0, [row(0)], mark=1)
    index.close()
    assert Index(path).size == 1


async def test_the_live_index_knows_what_is_not_written_yet(tmp_path):
    """An OUTCOME is found at once, before, while and after its row is written."""
    index = Index(tmp_path / "i.sqlite")
    live = LiveIndex(index, seen.Seen(), OUTCOME, lambda size: size)
    live.committed(0, [row(n) for n in range(10)])
    live.stored(0, [bytes([n]) * 32 for n in range(3)])
    assert live.outcomes(["d3", "d99"]) == {"d3": 3}
    assert live.payload(bytes([2]) * 32) == 2
    task = asyncio.create_task(live.run())
    await live.settle()
    assert index.size == 10
    assert index.payloads == 3
    assert live.outcomes(["d3", "d99"]) == {"d3": 3}
    assert live.payload(bytes([2]) * 32) == 2
    assert live.payload(bytes([9]) * 32) is None
    task.cancel()


async def test_payloads_that_no_record_names_leave_the_others_where_they_are(tmp_path):
    """A batch that a full disk refused leaves its payloads behind: the later ones are found."""
    index = Index(tmp_path / "i.sqlite")
    live = LiveIndex(index, seen.Seen(), OUTCOME, lambda size: size)
    first, later = b"a" * 32, b"b" * 32
    live.committed(0, [row(0)])
    live.stored(0, [first])
    live.committed(1, [row(1)])
    live.stored(3, [later])  # two stand between them
    task = asyncio.create_task(live.run())
    async with asyncio.timeout(10):
        await live.settle()
    assert (live.payload(first), live.payload(later)) == (0, 3)
    assert (index.payload(first), index.payload(later)) == (0, 3)
    assert index.payloads == 4
    task.cancel()


def test_the_filter_never_denies_what_it_was_told():
    """All that was added may be there; nearly all that wasn't is denied; a copy says the same."""
    known = seen.Seen()
    for n in range(5_000):
        known.add(f"decision-{n}")
    assert all(f"decision-{n}" in known for n in range(5_000))
    assert sum(f"other-{n}" in known for n in range(5_000)) < 5
    data = known.encode(5_000, 42)
    copied, size, mark = seen.decode(data)
    assert (size, mark) == (5_000, 42)
    assert all(f"decision-{n}" in copied for n in range(5_000))
    assert seen.decode(data[:-1]) is None
    assert seen.decode(data[:100] + b"\xff" + data[101:]) is None
