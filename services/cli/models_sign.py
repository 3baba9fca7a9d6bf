"""`twinpath models sign`: somebody vouches for a version's files, by name and key."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from services.cli import console
from services.cli.description import home

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A version's folder: MODELS/NAME/VERSION.", exists=True, file_okay=False
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with the private Ed25519 key; else TWINPATH_ARTIFACT_KEY, else the key "
            "of the mesh on this machine.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="For a model without a card: its licence, such as Apache-2.0.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="For a model without a card: what it was trained with.")
    ] = "",
    anew: Annotated[
        bool, typer.Option("--anew", help="The files and the configuration as they are now count.")
    ] = False,
) -> None:
    """Sign a version: its card lists every file and the configuration, and is signed.

    Where there is no card, one is written; it needs a licence and the data, and asks for what is
    missing. A card that states other files than those that are there is not signed, unless you have
    looked at them and say `--anew`. Where TWINPATH_LOCAL_ARTIFACT_KEYS is set (`twinpath up` sets
    it), only signed versions serve. Exits with 1 when nothing was signed.

    [bold]twinpath models sign .twinpath/models/m/1 --licence MIT --data "our notes of 2025"[/]
    """
    from services.local import manifest, signature  # noqa: PLC0415 - not for `--help`
    from services.local.artifacts import Artifacts  # noqa: PLC0415

    private = _read_key(key or _own_key())
    folder = folder.resolve()
    if not folder.name.isdigit():
        _refuse(f"{folder}: the folder of a version has a number for a name")
    if manifest.of_folder(folder) == manifest.Manifest({}):
        _refuse(f"{folder}: there is neither a file nor a {manifest.CONFIG}")
    path = folder / manifest.CARD
    if not path.exists():
        card = _new_card(folder, licence, data)
    else:
        fault = Artifacts(folder.parent.parent).look(folder.parent.name, folder.name).fault
        if fault and not anew:
            _refuse(f"{folder}: {fault}. If what is there now is meant, sign it with --anew")
        card = _read_card(path, folder)
    manifest.write_card(folder, card, private)
    console.out.print(f"signed {path} as {signature.key_id(private.public_key())}")


def _new_card(folder: Path, licence: str, data: str) -> dict[str, Any]:
    """Return the least that a card says, but for the files."""
    if not (licence and data) and not sys.stdin.isatty():
        _refuse(f"{folder}: it has no card; say --licence and --data, and one is written")
    return {
        "name": folder.parent.name,
        "version": folder.name,
        "path": "local",
        "licence": licence or typer.prompt("Its licence"),
        "data": {"name": data or typer.prompt("What it was trained with")},
        "made_by": "twinpath models sign",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read_card(path: Path, folder: Path) -> dict[str, Any]:
    """Return a card that is there; it must be this version's."""
    try:
        card = json.loads(path.read_bytes())
    except ValueError:
        card = None
    if not isinstance(card, dict):
        _refuse(f"{path} can't be read")
    name, version = card.get("name", folder.parent.name), card.get("version", folder.name)
    if (str(name), str(version)) != (folder.parent.name, folder.name):
        _refuse(f"{path} is that of {name} version {version}")
    return card


def _own_key() -> Path:
    from services.cli.launcher.layout import laptop  # noqa: PLC0415 - not for `--help`

    named = os.environ.get("TWINPATH_ARTIFACT_KEY")
    return Path(named) if named else laptop(home(), os.environ).artifact_keys / "artifacts.key"


def _read_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        _refuse(f"{path}: {error.strerror}; `twinpath up` makes a key, --key names one")
    except (ValueError, TypeError):
        private = None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        _refuse(f"{path} holds no Ed25519 private key")
    return private


def _refuse(why: str) -> NoReturn:
    console.show_problem("not signed", why)
    raise SystemExit(1)
