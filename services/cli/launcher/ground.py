"""The ground that the services stand on: data, trained models, features in the online store.

What is there and still fits its inputs is not made again: data when the day or its code changed,
models when the code or the feature definitions changed. The features are applied and materialized
at every start, because the embedded store keeps nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.cli.embedded import guard
from services.cli.launcher.keys import make_artifact_key
from services.cli.launcher.layout import ROOT, Layout
from services.cli.launcher.progress import Progress, step

TRAINING = ROOT / "deploy" / "training"
_HISTORY = timedelta(days=5 * 365)
_LAST_LINES = 20


class GroundError(RuntimeError):
    """A step failed; the text holds its last lines."""


async def make_data(layout: Layout, progress: Progress) -> None:
    """Build the offline data, unless it was built today by the same code."""
    stamp = layout.feature_repo / "data" / ".built.json"
    today = datetime.now(UTC).date().isoformat()
    inputs = {"day": today, "code": digest(_training_files())}
    if _read(stamp) == inputs:
        return
    with step(progress, "data: real rows with a synthetic history"):
        out = ("--out", str(layout.feature_repo / "data"))
        await _python("data", ["deploy.training.build_data", *out], layout, progress)
    _write(stamp, inputs)


async def make_models(layout: Layout, progress: Progress) -> None:
    """Train the models and write them for Triton and for the stand-in vendor, if need be."""
    stamp = layout.home / "models.json"
    named = os.environ.get("TWINPATH_ARTIFACT_KEY")
    key, public = make_artifact_key(layout.artifact_keys, Path(named) if named else None)
    inputs = {
        "code": digest([*_training_files(), *layout.feature_repo.glob("*.py")]),
        "signer": hashlib.sha256(public.read_bytes()).hexdigest(),
    }
    there = layout.trained.is_dir() and layout.artifacts.is_dir()
    if there and _read(stamp) == inputs:
        return
    with step(progress, "models: train, export to ONNX, check"):
        folders = ("--models", str(layout.trained), "--artifacts", str(layout.artifacts))
        repo = ("--repo", str(layout.feature_repo))
        arguments = ["deploy.training.train", *repo, *folders]
        environment = {"TWINPATH_ARTIFACT_KEY": str(key)}
        await _python("models", arguments, layout, progress, environment)
    _write(stamp, inputs)


async def fill_store(layout: Layout, features_url: str, progress: Progress) -> None:
    """`feast apply` and `feast materialize`, into the store at a redis:// address."""
    now = datetime.now(UTC)
    span = [moment.strftime("%Y-%m-%dT%H:%M:%S") for moment in (now - _HISTORY, now)]
    arguments = ["services.cli.launcher.feast_steps", str(layout.feature_repo), *span]
    with step(progress, "features: feast apply, feast materialize"):
        await _python(
            "feast",
            arguments,
            layout,
            progress,
            environment={"TWINPATH_FEAST_REDIS": feast_address(features_url)},
        )


def feast_address(url: str) -> str:
    """A redis:// address as Feast's connection string: `host:port,password=...,ssl=true`.

    Raises:
        ValueError: It is no redis:// or rediss:// address.
    """
    import redis  # noqa: PLC0415 - not for `twinpath --help`

    parts = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    options = [f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}"]
    options += [f"{name}={parts[name]}" for name in ("username", "password") if name in parts]
    if parts.get("db"):
        options.append(f"db={parts['db']}")
    if url.startswith("rediss://"):
        options.append("ssl=true")
    return ",".join(options)


def digest(paths: Iterable[Path]) -> str:
    """A hash of files, by name and contents."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _training_files() -> list[Path]:
    sources = TRAINING.parent / "triton" / "models"
    return [*TRAINING.glob("*.py"), *TRAINING.glob("*.json"), *sources.glob("*.py")]


def _read(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(stamp: Path, inputs: Mapping[str, str]) -> None:
    stamp.write_text(json.dumps(inputs), encoding="utf-8")


async def _python(
    name: str,
    arguments: Sequence[str],
    layout: Layout,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `python -m ARGUMENTS`; it goes when we go. Its lines go to its log and to `progress`."""
    argv = [sys.executable, "-W", "ignore", "-m", *arguments]
    guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *argv]
    log_path = layout.log(name)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    process = await asyncio.create_subprocess_exec(
        *guarded,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **(environment or {})},
        cwd=ROOT,
        limit=1024 * 1024,
    )
    try:
        assert process.stdout is not None
        with log_path.open("w", encoding="utf-8") as log:
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                log.write(line + "\n")
                if line:
                    last.append(line)
                    progress.note(name, line)
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if status != 0:
        text = "\n".join(last)
        raise GroundError(f"{arguments[0]} ended with status {status}; see {log_path}:\n{text}")
