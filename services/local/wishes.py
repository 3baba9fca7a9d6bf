"""What operators asked for: which versions of a model are loaded, and which one serves.

Triton forgets at every restart; this is what is brought about again. Kept in a JSON file where
one is configured, else only as long as this process lives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Wish:
    """One model.

    Attributes:
        versions: The versions to load, rising.
        serving: The one that answers requests which name none; empty only if none is loaded.
        before: The one that did so before it; empty: none.
    """

    versions: tuple[str, ...] = ()
    serving: str = ""
    before: str = ""

    def with_version(self, version: str) -> Wish:
        """Return this with a version more."""
        versions = tuple(sorted({*self.versions, version}, key=int))
        return Wish(versions, self.serving, self.before)

    def without_version(self, version: str) -> Wish:
        """Return this with a version less."""
        versions = tuple(v for v in self.versions if v != version)
        serving = "" if self.serving == version else self.serving
        return Wish(versions, serving, "" if self.before == version else self.before)

    def serve(self, version: str) -> Wish:
        """Return this with another version that serves."""
        if version == self.serving:
            return self
        return Wish(self.versions, version, self.serving)


class Wishes:
    """The wishes by model.

    Raises:
        ValueError: By the constructor, if the file can't be read as such.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._all: dict[str, Wish] = {}
        if file is None or not file.exists():
            return
        try:
            for name, entry in json.loads(file.read_text(encoding="utf-8")).items():
                self._all[name] = Wish(tuple(entry["versions"]), entry["serving"], entry["before"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} can't be read as the state of the models") from error

    def get(self, name: str) -> Wish | None:
        """Return the wish for a model, None if nobody has one."""
        return self._all.get(name)

    def __iter__(self) -> Iterator[str]:
        """Give the models for which there is a wish, as they are now."""
        return iter(list(self._all))

    def put(self, name: str, wish: Wish) -> None:
        """Replace a wish; on disk before this returns, where there is a file."""
        self._all[name] = wish
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f".{self._file.name}.part")
        text = json.dumps({n: asdict(w) for n, w in self._all.items()}, indent=2, sort_keys=True)
        with part.open("w", encoding="utf-8") as out:
            out.write(text + "\n")
            out.flush()
            os.fsync(out.fileno())
        part.replace(self._file)
