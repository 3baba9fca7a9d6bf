"""What can go wrong with a log, in four words that its callers tell apart."""

from __future__ import annotations


class JournalError(Exception):
    """Base of what the journal reports."""


class CorruptLogError(JournalError):
    """Something that was durable is damaged or gone; `index` names the first such record."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"record {index}: {detail}")
        self.index = index


class JournalFailedError(JournalError):
    """Writing failed in a way that leaves durability unknown. Acknowledge nothing more; exit."""


class JournalFullError(JournalError):
    """The disk is full. Nothing of the batch was kept; a later append may succeed."""
