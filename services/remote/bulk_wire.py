"""Files and batches as OpenAI offers them: what is written and what is read. No I/O.

Each request of a batch holds a body exactly as a single call would send it, byte for byte, so that
its digest in the record is that of what left.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from services.remote.wire import JSON_TYPE, AnswerError, Body, Reply, dig, dump, load_object

# What a vendor says of a batch that it won't work on any more, or will.
CANCELLED = "cancelled"
ENDED = frozenset({"completed", "expired", CANCELLED})
FAILED = "failed"
_METADATA = "twinpath_job"
_RENDERER = "openai-batch/1"
_PAGE = 100


def upload(requests: Iterable[tuple[str, Body]], base_path: str) -> Body:
    """Write a file with all requests, each under its own id; `base_path` ends before the paths."""
    lines = [
        b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n'
        % (json.dumps(name).encode(), json.dumps(base_path + body.path).encode(), body.content)
        for name, body in requests
    ]
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="batch.jsonl"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    content = b"".join([head.encode(), *lines, f"\r\n--{boundary}--\r\n".encode()])
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return Body(content, headers, _RENDERER, "/files")


def create(job: str, file: str, endpoint: str) -> Body:
    """Write the request for a batch; the job's id goes with it, to be found by."""
    document = {
        "input_file_id": file,
        "endpoint": endpoint,
        "completion_window": "24h",
        "metadata": {_METADATA: job},
    }
    return Body(dump(document), {"Content-Type": JSON_TYPE}, _RENDERER, "/batches")


def look(batch: str) -> Body:
    """Write the question how far a batch is."""
    return _get(f"/batches/{quote(batch, safe='')}")


def cancel(batch: str) -> Body:
    """Write the request to end a batch."""
    return Body(b"", {}, _RENDERER, f"/batches/{quote(batch, safe='')}/cancel")


def newest(after: str = "") -> Body:
    """Write the question for a page of batches, the newest first."""
    return _get(f"/batches?limit={_PAGE}" + (f"&after={quote(after, safe='')}" if after else ""))


def content_of(file: str) -> Body:
    """Write the question for a file's content."""
    return _get(f"/files/{quote(file, safe='')}/content")


def _get(path: str) -> Body:
    return Body(b"", {}, _RENDERER, path, "GET")


def id_of(content: bytes) -> str:
    """Read the id of what was made; raises AnswerError."""
    found: str = dig(load_object(content), "id", kind=str)
    return found


def page(content: bytes, job: str) -> tuple[str, str]:
    """Read a page of batches; raises AnswerError.

    Returns:
        The id of the job's batch, empty if it is not there; and after which one the next page
        begins, empty if this was the last one.
    """
    document = load_object(content)
    data = dig(document, "data", kind=list)
    for one in data:
        metadata = one.get("metadata") if isinstance(one, dict) else None
        if isinstance(metadata, dict) and metadata.get(_METADATA) == job:
            return dig(one, "id", kind=str), ""
    last = dig(data[-1], "id", kind=str) if data and document.get("has_more") else ""
    return "", last


def state(content: bytes) -> tuple[str, list[str]]:
    """Read how far a batch is, and which files it has given; raises AnswerError."""
    document = load_object(content)
    files = [document.get(name) for name in ("output_file_id", "error_file_id")]
    return dig(document, "status", kind=str), [one for one in files if isinstance(one, str) and one]


def answers(content: bytes) -> Mapping[str, tuple[Reply | None, str]]:
    """Read a file of answers: for each id its answer, or none and the vendor's code for why.

    Raises:
        AnswerError: A line is not what it has to be.
    """
    found: dict[str, tuple[Reply | None, str]] = {}
    for line in content.splitlines():
        if not line.strip():
            continue
        document = load_object(line)
        name = dig(document, "custom_id", kind=str)
        if name in found:
            raise AnswerError("custom_id")
        found[name] = _answer(document)
    return found


def _answer(document: dict[str, Any]) -> tuple[Reply | None, str]:
    response = document.get("response")
    if response is None:
        code = dig(document, "error", kind=dict).get("code")
        return None, code if isinstance(code, str) else ""
    status = dig(response, "status_code", kind=int)
    return Reply(status, {}, JSON_TYPE, dump(dig(response, "body", kind=dict))), ""
