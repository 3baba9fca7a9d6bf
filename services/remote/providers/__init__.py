"""The providers: one file for each protocol, named as the protocol with `_` for `-`.

A file here holds `ModelOptions`, `ProviderOptions` (what a provider file may say under `options`)
and either `Dialect` (HTTP; see `provider.Dialect`) or `make` (anything else). Add the file
and a case in tests/contract/provider_cases.py; see the README beside this file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from services.chassis.clock import Clock
from services.remote.catalog import Provider
from services.remote.http_vendor import HttpVendor
from services.remote.provider import Adapter
from services.remote.yaml_lines import Mistake

# Found by name, imported when a provider file names one: each may need a package of its own.
PROTOCOLS = frozenset(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__))


def make(provider: Provider, clock: Clock, max_answer_bytes: int) -> Adapter:
    """Return the adapter of a provider, on the running event loop."""
    module = _module(provider.protocol)
    if hasattr(module, "make"):
        adapter: Adapter = module.make(provider, clock, max_answer_bytes)
        return adapter
    return HttpVendor(provider, module.Dialect(provider), clock, max_answer_bytes)


def mistakes(provider: Provider) -> Iterator[Mistake]:
    """Yield what a provider file says that its protocol does not understand."""
    if provider.protocol not in PROTOCOLS:
        yield ("protocol",), f"{provider.protocol} is none of: {', '.join(sorted(PROTOCOLS))}"
        return
    try:
        module = _module(provider.protocol)
    except ImportError as error:
        yield ("protocol",), f"needs a package that is not installed: {error.name}"
        return
    places: list[tuple[tuple[Any, ...], Any, Any]] = [
        (("options",), module.ProviderOptions, provider.options)
    ]
    for index, model in enumerate(provider.models):
        places.append((("models", index, "options"), module.ModelOptions, model.options))
    found = False
    for place, kind, options in places:
        try:
            kind.model_validate(options)
        except ValidationError as error:
            found = True
            for fault in error.errors():
                yield (*place, *fault["loc"]), fault["msg"].removeprefix("Value error, ")
    if hasattr(module, "check_provider"):
        yield from module.check_provider(provider)
    check = getattr(module, "check", None)
    if check is not None and not found:
        for index, model in enumerate(provider.models):
            for place, text in check(model):
                yield ("models", index, *place), text


def _module(protocol: str) -> Any:
    return importlib.import_module(f"{__name__}.{protocol.replace('-', '_')}")
