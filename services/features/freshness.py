"""Freshness of features, from event times alone: Feast does not enforce ttl online."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.features.definitions import Raw, Status


def row_status(event_us: int | None, *, any_value: bool, ttl_us: int, now_us: int) -> Status:
    """Return the status that a view's row gives to the values it has.

    Args:
        event_us: The row's event time; None: it has none.
        any_value: Whether any feature was found.
        ttl_us: The view's time to live; 0: never stale.
        now_us: The clock.
    """
    if event_us is None:
        if not any_value:
            return Status.ABSENT_ENTITY
        # Values without a time are half a row: with a ttl nobody can call them fresh.
        return Status.STALE if ttl_us else Status.PRESENT
    if ttl_us and now_us - event_us > ttl_us:
        return Status.STALE
    return Status.PRESENT


def row_statuses(
    events_us: Sequence[int | None], columns: Sequence[Sequence[Raw]], *, ttl_us: int, now_us: int
) -> list[Status]:
    """Return the status of each row of a view, by their event times and their values."""
    times = [event for event in events_us if event is not None]
    if len(times) == len(events_us) and (not ttl_us or now_us - min(times, default=0) <= ttl_us):
        return [Status.PRESENT] * len(times)  # nearly always
    found = [any(v is not None for v in row) for row in zip(*columns, strict=True)]
    return [
        row_status(event, any_value=any_value, ttl_us=ttl_us, now_us=now_us)
        for event, any_value in zip(events_us, found, strict=True)
    ]


def feature_status(raw: Raw, row: Status) -> Status:
    """Return the status of one value in a row of this status; a row of no status has none."""
    if row is Status.ABSENT_ENTITY or row is Status.UNSPECIFIED:
        return row
    if raw is None:
        return Status.ABSENT_FEATURE
    return row if raw else Status.NULL


def column_statuses(raw: Sequence[Raw], rows: Sequence[Status]) -> Sequence[Status]:
    """Return the status of each value of a column."""
    if all(raw):
        return rows
    return [feature_status(value, row) for value, row in zip(raw, rows, strict=True)]


_RANK = {
    Status.PRESENT: 0,
    Status.STALE: 1,
    Status.NULL: 2,
    Status.ABSENT_FEATURE: 3,
    Status.ABSENT_ENTITY: 4,
}


def worst(statuses: Iterable[Status]) -> Status:
    """Return the status that is furthest from PRESENT."""
    return max(statuses, key=_RANK.__getitem__, default=Status.PRESENT)
