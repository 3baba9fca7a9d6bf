"""What is known about models' artifacts, from their files and the cards beside them.

`<models>/<name>/<version>/` holds what Triton loads and, where our training or `twinpath models
sign` wrote it, `card.json`. A card lists every file of its version and states its configuration
(manifest.py); a version that differs from its card in any of them is not what was approved, and is
refused. Where keys are given, a card must be signed by one of them too (signature.py).
Triton may hold in memory what it loaded before a file changed: the digest is that of the files,
looked at whenever they change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.local import manifest, signature

CARD = manifest.CARD


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact's SHA-256, empty where it is not known; `fault` says why it must not serve."""

    digest: bytes = b""
    fault: str = ""


_UNKNOWN = Artifact()


class Artifacts:
    """Looks at a model repository on disk. Blocks: call it from a thread."""

    def __init__(self, folder: Path | None, keys: Sequence[Ed25519PublicKey] = ()) -> None:
        self._folder = folder
        self._keys = tuple(keys)  # whose signature a card needs; none: no signatures are asked for
        self._seen: dict[Path, tuple[object, Artifact]] = {}

    def look(self, name: str, version: str) -> Artifact:
        """Return what is known about a version's artifact; hashes only what has changed."""
        if self._folder is None:
            return _UNKNOWN
        folder = self._folder / name / version
        try:
            state = manifest.stamps(folder)
            known = self._seen.get(folder)
            if known is None or known[0] != state:
                known = (state, _examine(folder, self._keys))
                self._seen[folder] = known
        except OSError as error:
            return Artifact(fault=f"its files can't be read: {error.strerror}")
        return known[1]


def _examine(folder: Path, keys: Sequence[Ed25519PublicKey]) -> Artifact:
    card, seal = folder / CARD, folder / manifest.SEAL
    if not card.is_file():
        fault = f"it has no {CARD}, so nobody vouches for it" if keys else ""
        return Artifact(manifest.of_folder(folder, strict=False).digest, fault)
    content = card.read_bytes()
    if keys:
        if not seal.is_file():
            return Artifact(fault=f"its {CARD} is not signed")
        if not signature.verified(
            keys, content, seal.read_text(encoding="ascii", errors="replace")
        ):
            return Artifact(fault=f"its {CARD} is not signed by a key that is trusted here")
    try:
        read = json.loads(content)
        names = read.get("name", folder.parent.name), str(read.get("version", folder.name))
        if "files" not in read["artifact"]:
            return Artifact(
                fault=f"its {CARD} is of an older form, which does not list the version's files: "
                "train it again, or look at them and sign it (twinpath models sign --anew)"
            )
        stated = manifest.of_card(read["artifact"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return Artifact(fault=f"its {CARD} can't be read")
    if names != (folder.parent.name, folder.name):  # signed, but for something else
        return Artifact(fault=f"its {CARD} is that of {names[0]} version {names[1]}")
    found = manifest.of_folder(folder)
    fault = found.misfit(stated)
    return Artifact(fault=fault) if fault else Artifact(found.digest)
