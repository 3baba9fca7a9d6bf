"""Endpoints as SageMaker invokes them: JSON rows in and out, requests signed with SigV4.

The token is one line of JSON: `{"access_key_id": …, "secret_access_key": …, "session_token": …}`,
the last one where the credentials are temporary. The base URL is the runtime's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn
from urllib.parse import quote

import numpy as np
from botocore.auth import SigV4Auth  # type: ignore[import-not-found,import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-not-found,import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-not-found,import-untyped]
from yarl import URL

from services.remote import failures
from services.remote.catalog import Model, Options, Provider
from services.remote.oip_body import json_data, raw_of_json
from services.remote.provider import Ask, no_stream
from services.remote.wire import (
    JSON_TYPE,
    AnswerError,
    Body,
    Parsed,
    Reply,
    dig,
    dump,
    json_answer,
    load_object,
)
from services.remote.yaml_lines import Mistake
from twinpath.inference.v1 import tensor_pb2

RENDERER = "sagemaker-json/1"
_VARIANT = "x-amzn-invoked-production-variant"


class ModelOptions(Options):
    """Of one model; its `wire_name` is the endpoint's.

    Attributes:
        variant: The production variant that is asked; absent: the endpoint chooses.
    """

    variant: str | None = None


class ProviderOptions(Options):
    """Of the provider.

    Attributes:
        aws_region: For the signature.
        service: For the signature.
    """

    aws_region: str
    service: str = "sagemaker"


def check(model: Model) -> Iterator[Mistake]:
    """Yield where a model's tensors are no rows."""
    for what, entries in (("inputs", model.inputs), ("outputs", model.outputs)):
        if [len(entry.shape) for entry in entries] != [2]:
            yield (what,), "one tensor of rows"


class Dialect:
    """See `provider.Dialect`."""

    probe_path = "/ping"

    def __init__(self, provider: Provider) -> None:
        self._provider = provider.name
        self._options = ProviderOptions.of(provider)

    def streams(self, model: Model) -> bool:
        """Never."""
        del model
        return False

    def longest_answer(self, model: Model) -> int:
        """None: tokens out are not what is counted here."""
        del model
        return 0

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write rows as `instances`."""
        del stream
        (tensor,) = ask.tensors
        rows = np.array(json_data(tensor, "input.tensors[0].raw"), dtype=object)
        content = dump({"instances": rows.reshape(tuple(tensor.shape)).tolist()})
        headers = {"Content-Type": JSON_TYPE, "Accept": JSON_TYPE}
        variant = ModelOptions.of(ask.model).variant
        if variant is not None:
            headers["X-Amzn-SageMaker-Target-Variant"] = variant
        path = f"/endpoints/{quote(ask.model.on_wire, safe='')}/invocations"
        return Body(content, headers, RENDERER, path)

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read rows from `predictions`."""
        rows = dig(json_answer(reply), "predictions", kind=list)
        (entry,) = ask.model.outputs
        wide = [row if isinstance(row, list) else [row] for row in rows]
        if len({len(row) for row in wide}) > 1:
            raise AnswerError("rows")
        shape = [len(wide), len(wide[0]) if wide else 0]
        tensor = tensor_pb2.Tensor(name=entry.name, datatype=entry.spec().datatype, shape=shape)
        tensor.raw = raw_of_json(tensor.datatype, shape, wide)
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return Parsed([tensor], headers.get(_VARIANT, ""))

    def refused(self, reply: Reply) -> failures.Failure | bool | None:
        """424 is a failure of the model's own container; 400 may be a spent account's throttle."""
        if reply.status == 424:
            return failures.HTTP[500]
        headers = {name.lower(): value for name, value in reply.headers.items()}
        if headers.get("x-amzn-errortype", "").startswith("ThrottlingException"):
            return failures.HTTP[429]
        return None

    def decoder(self, ask: Ask) -> NoReturn:
        """Never called: see `streams`."""
        no_stream(ask)

    def sign(
        self, body: Body, url: URL, headers: Mapping[str, str], secret: str
    ) -> Mapping[str, str]:
        """Return the headers with a signature over request and body."""
        try:
            held = load_object(secret)
            credentials = Credentials(
                dig(held, "access_key_id", kind=str),
                dig(held, "secret_access_key", kind=str),
                held.get("session_token"),
            )
        except AnswerError:
            raise failures.TOKEN.error(self._provider) from None
        request = AWSRequest(body.method, str(url), headers=dict(headers), data=body.content)
        SigV4Auth(credentials, self._options.service, self._options.aws_region).add_auth(request)
        return dict(request.headers.items())
