"""The Open Inference Protocol v2 over HTTP (KServe, MLServer, Seldon, Triton elsewhere)."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from services.remote.catalog import Model, Options, Provider
from services.remote.oip_body import HEADER_LENGTH, RENDERERS, parse
from services.remote.provider import Ask, Decoder, no_stream
from services.remote.wire import Body, Parsed, Reply


class ModelOptions(Options):
    """Of one model.

    Attributes:
        versioned_path: Whether the version stands in the path; some servers have none.
    """

    versioned_path: bool = True


class ProviderOptions(Options):
    """None: how tensors are encoded is the provider's own `encoding`."""


class Dialect:
    """See `provider.Dialect`. The base URL ends before `/v2`."""

    probe_path = "/v2/health/ready"

    def __init__(self, provider: Provider) -> None:
        encoding: Literal["binary", "json"] = provider.encoding
        self._render = RENDERERS[encoding]
        self._paths = {(model.name, model.version): _path(model) for model in provider.models}

    def streams(self, model: Model) -> bool:
        """Never: the protocol has no stream over HTTP."""
        del model
        return False

    def longest_answer(self, model: Model) -> int:
        """None: tokens out are not what is counted here."""
        del model
        return 0

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write an infer request."""
        del stream
        return self._render(ask.model, ask.tensors, self._paths[ask.model.name, ask.model.version])

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read an infer answer."""
        del ask
        return parse(reply.content, reply.content_type, reply.headers.get(HEADER_LENGTH))

    def refused(self, reply: Reply) -> None:
        """Nothing is special: models of this protocol have no content policy."""

    def decoder(self, ask: Ask) -> Decoder:
        """Never called: see `streams`."""
        no_stream(ask)


def _path(model: Model) -> str:
    path = f"/v2/models/{quote(model.on_wire, safe='')}"
    if ModelOptions.of(model).versioned_path:
        path += f"/versions/{quote(model.version, safe='')}"
    return f"{path}/infer"
