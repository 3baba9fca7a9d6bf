"""How the cost of a read grows: `python -m tests.load.features_scale` prints a Markdown table.

The servicer itself, in one process with its client, over a real Valkey; without gRPC, identity
and rules. Processor time of this process for each call, because it does not depend on what else
the machine does; the time of a round trip is the median, and does.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from services.chassis.clock import SystemClock
from services.features import store as codec
from services.features.coalescer import Coalescer
from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    KeyPart,
    Output,
    Registry,
    Tags,
    ViewRead,
)
from services.features.keys import feature_field, key_encoder, time_field
from services.features.online import OnlineStore
from services.features.prepared import Live
from services.features.push import Pusher
from services.features.servicer import FeaturesServicer
from tests.unit.features import feast_repo

KEY = (KeyPart("user_id", "user_id", "INT64"),)
EVENT = b"\x08\x80\xc2\xd7\x2f"  # a serialized Timestamp


def service(name: str, views: int, features: int) -> FeatureService:
    """A feature service of so many doubles in so many views of one entity."""
    each = features // views
    reads, outputs = [], []
    for number in range(views):
        view = f"v{views}x{each}_{number}"
        fields = tuple(Field(f"f{n}", "DOUBLE") for n in range(each))
        reads.append(ViewRead(view, view, KEY, fields, 0))
        outputs += [
            Output(view, item, Tags(), 0, (number, at), None) for at, item in enumerate(fields)
        ]
    key = (Field("user_id", "INT64"),)
    none = DataClass.UNSPECIFIED
    return FeatureService(name, key, (), tuple(reads), (), tuple(outputs), (), none)


class Fixed:
    """A registry that never changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry: Registry | None = registry

    def load(self) -> Registry | None:
        """The registry, once."""
        found, self._registry = self._registry, None
        return found


async def fill(client: Any, given: FeatureService, start: int, stop: int) -> None:
    """Write rows as Feast stores them."""
    encode = key_encoder(KEY, "p")
    value = b"\x29" + struct.pack("<d", 0.5)
    pairs = {time_field(read.stored_as): EVENT for read in given.reads}
    for read in given.reads:
        pairs |= {feature_field(read.stored_as, f.name): value for f in read.features}
    for first in range(start, stop, 1000):
        ids = list(range(first, min(first + 1000, stop)))
        pipe = client.pipeline(transaction=False)
        for key in encode({"user_id": ids}, len(ids)):
            pipe.hset(key, mapping=pairs)
        await pipe.execute()


async def cost(
    servicer: FeaturesServicer, name: str, rows: int, entities: int, seconds: float
) -> tuple[float, float]:
    """Return processor time and median time of a call, in milliseconds."""
    requests = [
        feast_repo.request(
            name, {"user_id": [(at * 7919 + n * 104_729) % entities for n in range(rows)]}
        )
        for at in range(20)
    ]
    for request in requests:
        answer = await servicer.GetFeatures(request, None)
        assert answer.columns[0].statuses[0] == 1
    times: list[float] = []
    used, end = time.process_time(), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await servicer.GetFeatures(requests[len(times) % len(requests)], None)
        times.append(time.perf_counter() - start)
    spent = (time.process_time() - used) / len(times)
    return spent * 1e3, sorted(times)[len(times) // 2] * 1e3


async def measure(entities: Sequence[int], seconds: float) -> None:
    """Measure and print."""
    shapes = [(1, 20), (2, 20), (5, 20), (10, 20), (1, 100), (1, 300)]
    services = {f"{v} x {f}": service(f"{v} x {f}", v, f) for v, f in shapes}
    with tempfile.TemporaryDirectory() as folder:
        async with feast_repo.valkey(Path(folder)) as server:
            online = OnlineStore(server.url, "standalone", "", 30.0)
            live = Live(Fixed(Registry("1", "p", services)), 1.0)
            await live.refresh()
            servicer = FeaturesServicer(
                *(live, online, Coalescer(online.fetch, max_keys=512), codec),
                *(SystemClock(), Pusher(online, codec)),
                share_up_to=64,
            )
            print("| entities | views | features | rows | CPU ms | ms a call | CPU us a row |")  # noqa: T201
            print("|--:|--:|--:|--:|--:|--:|--:|")  # noqa: T201

            async def line(count: int, name: str, rows: int) -> None:
                cpu, p50 = await cost(servicer, name, rows, count, seconds)
                views, features = name.split(" x ")
                cells = [f"{count:,}", views, features, f"{rows:,}", f"{cpu:.2f}", f"{p50:.2f}"]
                print("|", " | ".join([*cells, f"{cpu / rows * 1e3:.0f}"]), "|", flush=True)  # noqa: T201

            async with redis.Redis(port=server.port) as client:
                for name, given in services.items():
                    await fill(client, given, 0, 1_000)
                    await line(1_000, name, 1)
                    await line(1_000, name, 100)
                for rows in (10, 1_000, 10_000):
                    await line(1_000, "1 x 20", rows)
                await client.flushall(asynchronous=False)
                await asyncio.sleep(2)  # it frees memory in the background
                done, before = 0, (await client.info("memory"))["used_memory"]
                for count in entities:
                    await fill(client, services["1 x 20"], done, count)
                    done = count
                    await line(count, "1 x 20", 1)
                    await line(count, "1 x 20", 100)
                    used = (await client.info("memory"))["used_memory"] - before
                    print(f"<!-- {count:,} entities: {used / count:,.0f} bytes each -->")  # noqa: T201
            await online.close()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument(
        "--entities", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000]
    )
    given = parser.parse_args()
    asyncio.run(measure(given.entities, given.seconds))


if __name__ == "__main__":
    main()
