"""What goes over a vendor's wire and comes back, as values. No I/O, no vendor's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinpath.inference.v1 import inference_pb2, tensor_pb2

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Body:
    """A request as it goes over the wire.

    Attributes:
        content: The bytes.
        headers: What belongs to them: content type, protocol version; no credentials.
        renderer: Version of the code that wrote them. It stands in the record beside the body's
            digest, so any change of the bytes is a new version.
        path: Appended to the provider's base URL, percent-encoded.
        method: HTTP method.
        route: What a trace may show instead of the path, where that holds values of the input.
    """

    content: bytes
    headers: dict[str, str]
    renderer: str
    path: str = ""
    method: str = "POST"
    route: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A vendor's whole answer.

    Attributes:
        status: HTTP status.
        headers: Its headers, found by names in any case.
        content_type: Its media type, without parameters.
        content: The body.
    """

    status: int
    headers: Mapping[str, str]
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """The vendor's own count.

    Attributes:
        input_tokens: Tokens in, those of the vendor's cache included.
        output_tokens: Tokens out.
        cached_input_tokens: Those of the tokens in that came from the vendor's cache.
        cache_write_tokens: Those of the tokens in that were written to it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer that keeps to its protocol.

    Attributes:
        outputs: The tensors, contents in `raw`; empty where the content policy stopped it.
        version: The model version that the vendor reports; may be empty.
        finish_reason: Why the model stopped.
        usage: The vendor's own count; None: it did not say.
    """

    outputs: Sequence[tensor_pb2.Tensor]
    version: str = ""
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its name (empty: none was given) and its data."""

    name: str
    data: str


class AnswerError(ValueError):
    """An answer breaks the protocol. `rule` names what it breaks, without a value from it."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class ErrorInsideError(Exception):
    """An answer with status 200 that holds an error."""


class CutAnswerError(Exception):
    """An answer that the length limit cut where it is of no use in part."""


@dataclass(slots=True)
class EventReader:
    """Server-sent events from bytes as they come, by the WHATWG's rules.

    Attributes:
        max_line: Bytes of one line at most.
    """

    max_line: int = 1 << 20
    _rest: bytes = b""
    _name: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, part: bytes) -> list[Event]:
        """Return the events that are complete now; raises AnswerError."""
        lines = (self._rest + part).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self.max_line:
            raise AnswerError("event_too_long")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._name, "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        try:
            name, _, value = line.decode().partition(":")
        except UnicodeDecodeError:
            raise AnswerError("utf8") from None
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        return None


def _no_constant(_: str) -> None:
    raise AnswerError("json")


# Made once: json's own functions make new ones for every call with options.
_ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=True).encode
_DECODE = json.JSONDecoder(parse_constant=_no_constant).decode


def dump(document: Mapping[str, Any]) -> bytes:
    """Write JSON: compact, ASCII, keys in the order given."""
    return _ENCODE(document).encode()


def load_object(text: bytes | str) -> dict[str, Any]:
    """Read a JSON object strictly; raises AnswerError (`json` or `structure`)."""
    try:
        document = _DECODE(text.decode() if isinstance(text, bytes) else text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise AnswerError("json") from None
    if not isinstance(document, dict):
        raise AnswerError("structure")
    return document


def json_answer(reply: Reply) -> dict[str, Any]:
    """Read an answer that must be a JSON object without an error inside.

    Raises:
        AnswerError: It is not JSON, or not an object.
        ErrorInsideError: It holds an error.
    """
    if reply.content_type != JSON_TYPE:
        raise AnswerError("content_type")
    document = load_object(reply.content)
    if document.get("error") is not None or document.get("type") == "error":
        raise ErrorInsideError
    return document


def dig(document: Any, *path: str | int, kind: type | tuple[type, ...]) -> Any:
    """Return what stands at a place of a JSON document; raises AnswerError (`structure`)."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            raise AnswerError("structure") from None
    if not isinstance(document, kind) or (isinstance(document, bool) and kind is int):
        raise AnswerError("structure")
    return document


def count(document: Any, *path: str) -> int:
    """Return a count from a usage report, 0 if it is absent or makes no sense."""
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document if type(document) is int and 0 <= document < 2**48 else 0
