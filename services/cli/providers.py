"""`twinpath providers …`: the vendors of the catalog. Works on the files; needs no mesh."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from services.cli import console, provider_forms
from services.cli.description import MeshNotRunningError, home
from services.cli.description import read as read_description

if TYPE_CHECKING:
    from services.remote.catalog import Model, Provider

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="The vendors of the catalog: what they offer, whether their files are right, a new one.",
)
Catalog = Annotated[
    Path, typer.Option(envvar="TWINPATH_CATALOG", help="The catalog's folder; holds providers/.")
]
_DEFAULT = Path("deploy/catalog")
_PROBE_S = 3.0


@app.command("list")
def list_(catalog: Catalog = _DEFAULT) -> None:
    """Show every provider and its models: protocol, region, highest data class, price, limits."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in ("provider", "protocol", "where", "region", "up to", "model", "price", "limits"):
        table.add_column(name, overflow="fold")
    for provider in _load(catalog).values():
        first = [
            provider.name, provider.protocol, provider.base_url, provider.region,
            provider.max_data_class,
        ]  # fmt: skip
        for model in provider.models:
            row = [*first, f"{model.name} v{model.version}", _price(model), _limits(model)]
            table.add_row(*row)
            first = [""] * len(first)
    console.out.print(table)


@app.command()
def check(
    catalog: Catalog = _DEFAULT,
    *,
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each vendor if it is there; sends no data.")
    ] = False,
) -> None:
    """Check every provider file, and that each token is there; exits with 1 if one is wrong."""
    from services.chassis.errors import ServiceError  # noqa: PLC0415 - loads gRPC
    from services.remote.tokens import TokenSource  # noqa: PLC0415 - loads gRPC

    found = _load(catalog)
    bad = False
    for provider in found.values():
        notes = []
        tokens = {"": provider.token} | {m.name: m.token for m in provider.models if m.token}
        for model, token in tokens.items():
            source = token.oauth2.client_secret if token.oauth2 else token
            try:
                TokenSource(provider.name, source).token()
            except ServiceError:
                notes.append(f"no token{' for ' + model if model else ''}: {_where(source)}")
        if probe and not notes:
            notes += asyncio.run(_probe(provider))
        bad = bad or bool(notes)
        mark = Text("✗ ", style="red") if notes else Text("✓ ", style="green")
        what = (
            "; ".join(notes) or f"{len(provider.models)} model{'s' * (len(provider.models) != 1)}"
        )
        console.out.print(mark + Text(f"{provider.name}: {what}"))
    if bad:
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The provider's name, and its file's.")],
    protocol: Annotated[str, typer.Option(help="How it is spoken to; --help lists them below.")],
    base_url: Annotated[str, typer.Option(help="Where it is.")] = "",
    model: Annotated[str, typer.Option(help="Its first model.")] = "my-model",
    version: Annotated[str, typer.Option(help="That model's version, as it reports it.")] = "1",
    token_env: Annotated[str, typer.Option(help="Variable that holds our token.")] = "",
    region: Annotated[str, typer.Option(help="Where it processes what it gets.")] = "eu",
    catalog: Catalog = _DEFAULT,
) -> None:
    """Write the file of a new provider, whole and checked, for you to edit.

    Protocols: oip-http, oip-grpc, openai-chat, openai-responses, openai-embeddings,
    anthropic-messages, sagemaker, template.
    """
    path = catalog / "providers" / f"{name}.yaml"
    try:
        text = provider_forms.form(
            protocol, name, base_url, model, version, token_env or _variable(name), region
        )
    except ValueError as error:
        console.err.print(Text(str(error), style="red"))
        raise typer.Exit(2) from None
    if not path.parent.is_dir():
        console.err.print(Text(f"{path.parent}: no such folder", style="red"))
        raise typer.Exit(2)
    try:
        with path.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        console.err.print(Text(f"{path} exists already; it is left as it is", style="red"))
        raise typer.Exit(2) from None
    problem = _mistakes(path)
    if problem:  # a value of the command line, most likely
        path.unlink()
        console.err.print(Text(problem, style="red"))
        raise typer.Exit(2)
    console.out.print(Text(f"wrote {path}\n\n") + Text(text, style="dim"))
    console.out.print(
        f"Edit it, put the token into {token_env or _variable(name)}, then: "
        "[bold]twinpath providers check --probe[/]"
    )


def _load(catalog: Path) -> dict[str, Provider]:
    from services.remote import catalog as files  # noqa: PLC0415 - loads gRPC
    from services.remote import providers  # noqa: PLC0415
    from services.remote.yaml_lines import CatalogError  # noqa: PLC0415

    try:
        return files.load(catalog, providers.mistakes, _environment())
    except CatalogError as error:
        console.err.print(Text(str(error), style="red"))
        raise typer.Exit(1) from None


def _environment() -> dict[str, str]:
    """Our own variables, and without them where the stand-in vendor of this machine's mesh is."""
    standin = {"TWINPATH_STANDIN_TOKEN_FILE": str(home() / "keys" / "standin.token")}
    with suppress(MeshNotRunningError, KeyError):
        standin["TWINPATH_STANDIN_URL"] = read_description(home() / "run").urls["standin"]
    return {**standin, **os.environ}


def _mistakes(path: Path) -> str:
    from services.remote import providers  # noqa: PLC0415 - loads gRPC
    from services.remote.catalog import Provider  # noqa: PLC0415
    from services.remote.yaml_lines import CatalogError, read  # noqa: PLC0415

    try:
        read(path, Provider, _environment(), providers.mistakes)
    except CatalogError as error:
        return str(error)
    return ""


async def _probe(provider: Provider) -> list[str]:
    from services.chassis.clock import SystemClock  # noqa: PLC0415 - loads gRPC
    from services.chassis.errors import ServiceError  # noqa: PLC0415
    from services.remote import providers  # noqa: PLC0415

    adapter = providers.make(provider, SystemClock(), 1 << 20)
    try:
        await adapter.probe(_PROBE_S)
    except ServiceError as error:
        return [f"{error.reason}: {error.message}"]
    finally:
        await adapter.aclose()
    return []


def _where(source: object) -> str:
    file, env = getattr(source, "file", None), getattr(source, "env", None)
    return f"the file {file}" if file else f"the variable {env}"


def _price(model: Model) -> str:
    if not model.price:
        return "not known"
    newest = max(model.price, key=lambda price: price.since)
    parts = []
    if newest.per_call_nanos_usd:
        parts.append(f"${newest.per_call_nanos_usd / 1e9:g}/call")
    if newest.by_tokens:
        given = newest.usd_per_million_input_tokens, newest.usd_per_million_output_tokens
        parts.append(f"${given[0]:g} in, ${given[1]:g} out/M tokens")
    if newest.bulk_share != 1:
        parts.append(f"{newest.bulk_share:.0%} of it in batches")
    return ", ".join(parts) or "$0"


def _limits(model: Model) -> str:
    found = []
    for share, whose in ((model.limits, ""), (model.limits.per_caller, " each caller")):
        if share.requests_per_minute:
            found.append(f"{share.requests_per_minute} requests/min{whose}")
        if share.tokens_per_minute:
            found.append(f"{share.tokens_per_minute} tokens/min{whose}")
    if model.limits.weights:
        weights = ", ".join(f"{who} {weight:g}" for who, weight in model.limits.weights.items())
        found.append(f"shared by weight: {weights}, others 1")
    return ", ".join(found) or "none"


def _variable(name: str) -> str:
    return f"{name.upper().replace('-', '_')}_TOKEN"
