"""`python -m services.standin`: the stand-in vendor as a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from pydantic import ValidationError

from services.standin import spans
from services.standin.app import StandIn
from services.standin.engine import ModelLoadError
from services.standin.settings import Settings

_MISCONFIGURED = 2


async def _serve(standin: StandIn) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with standin:
        await stop.wait()


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s stand-in vendor %(levelname)s %(message)s"
    )
    try:
        standin = StandIn(Settings())
    except ValidationError as error:
        sys.stderr.write("the stand-in vendor's settings are wrong:\n")
        for mistake in error.errors():
            name = "_".join(map(str, mistake["loc"])).upper()
            where = f"TWINPATH_STANDIN_{name}: " if name else ""
            sys.stderr.write(f"  {where}{mistake['msg'].removeprefix('Value error, ')}\n")
        return _MISCONFIGURED
    except ModelLoadError as error:
        sys.stderr.write(f"the stand-in vendor can't start: {error}\n")
        return _MISCONFIGURED
    try:
        with spans.exporting():
            asyncio.run(_serve(standin))
    except OSError as error:
        sys.stderr.write(f"the stand-in vendor can't start: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
