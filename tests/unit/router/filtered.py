"""A world whose tasks have filters: the committed catalog, with keys of a test's own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from services.chassis.call import Call, Identity
from services.router.attempt import Attempter
from services.router.cache import ResponseCache
from services.router.dispatch import Dispatcher
from services.router.pipeline import Pipeline
from services.router.pseudonyms import Pseudonyms
from services.router.replay import Replays
from services.router.steps import CatalogView
from services.router.streams import Streams
from tests.unit.router.ports import CATALOG, World
from tests.unit.router.test_cache import Kept
from twinpath.common.v1 import value_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

NOTES = "note_summary"
KEY = b"p" * 32


def catalog_with(folder: Path, task: str = NOTES, **keys: Any) -> Path:
    """Write the committed catalog to a folder, with other keys in one task's file."""
    shutil.copytree(CATALOG, folder, dirs_exist_ok=True)
    path = folder / "tasks" / f"{task}.yaml"
    yaml = YAML()
    data = yaml.load(path.read_text(encoding="utf-8"))
    data.update(keys)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(data, file)
    return folder


class Filtered(World):
    """A router over fakes, with a cache, replays and pseudonyms. Models echo what they get.

    `says` is what models answer in place of an echo: a text, or a function of what they got.
    """

    def __init__(self, *, pseudonyms: bytes | None = KEY, **keys: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(catalog_with(Path(folder), **keys))
        self.says: Any = None
        self.tenant = "acme"
        for path in (self.local, self.remote):
            path.behave = self.echo
        self.steps._pseudonyms = Pseudonyms(pseudonyms) if pseudonyms else None
        self.kept = Kept()
        paths = {"local": self.local, "remote": self.remote}
        attempter = Attempter(
            paths, self.board, self.signer, self.clock, ResponseCache(self.kept, b"k" * 32)
        )
        admission = self.pipeline._admission
        dispatcher = Dispatcher(attempter, self.board, self.clock, lambda: 0.0)
        self.pipeline = Pipeline(
            steps=self.steps,
            claims=self.claims,
            dispatcher=dispatcher,
            clock=self.clock,
            admission=admission,
        )
        self.streams = Streams(
            steps=self.steps,
            claims=self.claims,
            attempter=attempter,
            admission=admission,
            clock=self.clock,
            random=lambda: 0.0,
        )
        self.replays = Replays(
            steps=self.steps,
            dispatcher=dispatcher,
            streams=self.streams,
            admission=admission,
            audit=self.audit,
            catalog=lambda: CatalogView(self.catalog, stale=False),
            clock=self.clock,
            code_version="test",
        )

    def echo(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """Answer with what was asked, or with what the test says."""
        asked = seen(item)
        text = self.says(asked) if callable(self.says) else self.says
        result = inference_pb2.InferResult(id=item.context.id)
        result.outputs.append(text_output(asked if text is None else text))
        return result

    def call(self, left_s: float = 5.0, subject: str = "alice") -> Call:
        """A call of this world's tenant."""
        del left_s
        return Call(
            "/m", Identity(subject, self.tenant, frozenset({"caller"})), self.clock.now + 1e9
        )

    async def note(self, text: str, note_id: str = "n-1", **more: Any) -> router_pb2.InferResponse:
        """Make one decision about a note."""
        await self.board.refresh()
        return await self.pipeline.decide(about(text, note_id, **more), self.call())

    @property
    def items(self) -> list[inference_pb2.InferItem]:
        """What models of either path got."""
        return [*self.local.items, *self.remote.items]


def about(text: str, note_id: str = "n-1", **more: Any) -> router_pb2.InferRequest:
    """A request about a note."""
    return router_pb2.InferRequest(
        task=NOTES,
        entity={"note_id": value_pb2.Value(string_value=note_id)},
        fields={"note": value_pb2.Value(string_value=text)},
        **more,
    )


def text_output(text: str | bytes) -> Any:
    """The tensor `text_output` with one text."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return tensors.from_numpy("text_output", np.array([raw], dtype=object))


def seen(item: inference_pb2.InferItem, name: str = "text_input") -> str:
    """The text that a model got."""
    (tensor,) = [t for t in item.input.tensors if t.name == name]
    return tensors.decode_bytes(tensor.raw)[0].decode("utf-8", "surrogateescape")


def said(outputs: Any) -> str:
    """The text that the caller got."""
    return b"".join(
        e for t in outputs if t.name == "text_output" for e in tensors.decode_bytes(t.raw)
    ).decode("utf-8", "surrogateescape")
