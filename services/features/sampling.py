"""Samples of served vectors, as Parquet: what skew and drift are measured on.

A sample holds no entity key. It holds the values, their statuses and event times, and the
subject's pseudonym: an HMAC of the join keys under a key that the operator keeps in a file. Who has
that file and a list of entities can find an entity's samples, and compare them with the offline
store; nobody can read from a sample whom it is about, and without the file nobody ever can.
Encryption for each subject, as payloads have it, would need the audit log's keys in this service,
and a decryption for each row of what is meant to be read in bulk. Restricted vectors are not
sampled at all unless the settings say so, because values alone may tell who somebody is.

Off the hot path: a served answer is kept with what it was asked for, and a thread writes what was
kept once a minute. Bounded: what waits, the rows of a call, and the files.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from prometheus_client import Counter
from pyarrow import parquet

from services.features.definitions import DataClass
from services.features.prepared import Prepared

log = logging.getLogger(__name__)

SAMPLES = Counter(
    "twinpath_features_samples_total", "Sampled calls, by what became of them.", ("result",)
)

SERVED = "served_unix_us"
SUBJECT = "subject"
REGISTRY = "registry_version"
_WAITING = 256  # calls that wait to be written
_ROWS = 100  # rows of a call that are kept


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Where samples go, and how many.

    `share` of the calls is kept; `files` is the most for each feature service, of which the
    oldest go first. Without `key` samples have no pseudonyms.
    """

    folder: Path
    share: float
    files: int
    key: bytes = b""
    restricted: bool = False
    interval_s: float = 60.0


@dataclass(frozen=True, slots=True)
class _Kept:
    prepared: Prepared
    keys: Mapping[str, Sequence[Any]]
    answer: Any
    served_us: int


def pseudonym(key: bytes, entity: Mapping[str, Any]) -> str:
    """Return the pseudonym of an entity: 32 hex digits; the order of its join keys is no matter.

    Args:
        key: What the operator keeps.
        entity: Join keys and their values.
    """
    text = json.dumps(sorted((name, str(value)) for name, value in entity.items()))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


class Sampler:
    """Keeps some of the answers, and writes them.

    Args:
        options: See there.
        chance: Gives numbers from 0 to 1.
    """

    def __init__(
        self, options: SamplingOptions, chance: Callable[[], float] = random.random
    ) -> None:
        self._options = options
        self._chance = chance
        self._waiting: deque[_Kept] = deque()

    def offer(
        self,
        prepared: Prepared,
        keys: Mapping[str, Sequence[Any]],
        answer: Any,
        served_us: int,
    ) -> None:
        """Keep an answer, perhaps. `keys` are the join keys of all its rows."""
        if self._chance() >= self._options.share:
            return
        secret = prepared.service.data_class is DataClass.RESTRICTED
        if secret and not self._options.restricted:
            return
        if len(self._waiting) >= _WAITING:
            SAMPLES.labels("dropped").inc()
            return
        self._waiting.append(_Kept(prepared, keys, answer, served_us))

    async def run(self) -> None:
        """Write what was kept, until cancelled."""
        while True:
            await asyncio.sleep(self._options.interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what was kept so far. A disk that is full or gone stops nothing else."""
        kept, self._waiting = list(self._waiting), deque()
        if not kept:
            return
        try:
            await asyncio.to_thread(self._write, kept)
        except Exception as error:  # noqa: BLE001 - samples are not worth a failure
            SAMPLES.labels("failed").inc(len(kept))
            log.warning("samples not written", extra={"why": f"{type(error).__name__}: {error}"})
        else:
            SAMPLES.labels("written").inc(len(kept))

    def _write(self, kept: Sequence[_Kept]) -> None:
        groups: dict[tuple[str, str], list[_Kept]] = {}
        for item in kept:
            version = item.prepared.lineage.registry_version
            groups.setdefault((item.prepared.service.name, version), []).append(item)
        for (service, version), items in groups.items():
            rows = [row for item in items for row in _rows(item, self._options.key)]
            if not rows:
                continue
            folder = self._options.folder / service
            folder.mkdir(parents=True, exist_ok=True)
            names = dict.fromkeys(name for row in rows for name in row)
            columns = {name: _array([row.get(name) for row in rows]) for name in names}
            target = folder / f"{items[-1].served_us:020d}-{version[:8]}.parquet"
            building = target.with_suffix(".part")
            parquet.write_table(pa.table(columns), building)
            building.replace(target)
            for old in sorted(folder.glob("*.parquet"))[: -self._options.files]:
                old.unlink(missing_ok=True)


def _rows(kept: _Kept, key: bytes) -> list[dict[str, Any]]:
    """Return an answer's rows that went well, as what a sample holds."""
    rows = []
    for number, result in enumerate(kept.answer.rows[:_ROWS]):
        if result.status.code:
            continue
        row: dict[str, Any] = {
            SERVED: kept.served_us,
            REGISTRY: kept.answer.lineage.registry_version,
        }
        if key:
            entity = {name: column[number] for name, column in kept.keys.items()}
            row[SUBJECT] = pseudonym(key, entity)
        for column in kept.answer.columns:
            name = column.values.name
            row[name] = value_of(column, number)
            row[f"{name}.status"] = column.statuses[number]
            if column.event_times_unix_us[number]:
                row[f"{column.view}.event_time_unix_us"] = column.event_times_unix_us[number]
        rows.append(row)
    return rows


def value_of(column: Any, row: int) -> Any:
    """Return a row's value in a `FeatureColumn` as plain Python; None where it has none."""
    array = column.values.WhichOneof("values")
    if array is None or column.statuses[row] not in (1, 2):
        return None
    return _plain(getattr(column.values, array).values[row], array)


def _plain(value: Any, array: str) -> Any:
    if array != "mixed":
        return value
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [_plain(item, "mixed") for item in value.list_value.values]
    return None if kind is None else getattr(value, kind)


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # kinds that Arrow can't mix
        return pa.array(
            [None if value is None else json.dumps(value, default=str) for value in values]
        )
