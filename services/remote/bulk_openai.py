"""Files and batches as OpenAI offers them: what is written and what is read. No I/O."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from services.remote.bulk_wire import Missing, Page, Requests, Seen, State, Suspect, by_custom_id
from services.remote.wire import JSON_TYPE, Body, Reply, dig, dump, load_object

_STATES = {
    "completed": State.ENDED,
    "expired": State.ENDED,
    "cancelled": State.ENDED,
    "failed": State.FAILED,
}
_METADATA = "twinpath_job"
_RENDERER = "openai-batch/1"
_PAGE = 100


class OpenAiBatches:
    """See `BatchApi`. The job's id stands in a batch's metadata, to find it by."""

    def upload(self, requests: Requests, base_path: str) -> Body | None:
        """See `BatchApi`."""
        lines = [
            b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n'
            % (json.dumps(name).encode(), json.dumps(base_path + body.path).encode(), body.content)
            for name, body in requests
        ]
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="batch.jsonl"'
            "\r\nContent-Type: application/jsonl\r\n\r\n"
        )
        content = b"".join([head.encode(), *lines, f"\r\n--{boundary}--\r\n".encode()])
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return Body(content, headers, _RENDERER, "/files")

    def create(self, job: str, requests: Requests, file: str, endpoint: str) -> Body:
        """See `BatchApi`."""
        del requests  # they are in the file
        document = {
            "input_file_id": file,
            "endpoint": endpoint,
            "completion_window": "24h",
            "metadata": {_METADATA: job},
        }
        return Body(dump(document), {"Content-Type": JSON_TYPE}, _RENDERER, "/batches")

    def look(self, batch: str) -> Body:
        """See `BatchApi`."""
        return _get(f"/batches/{quote(batch, safe='')}")

    def cancel(self, batch: str) -> Body:
        """See `BatchApi`."""
        return Body(b"", {}, _RENDERER, f"/batches/{quote(batch, safe='')}/cancel")

    def newest(self, after: str = "") -> Body:
        """See `BatchApi`."""
        more = f"&after={quote(after, safe='')}" if after else ""
        return _get(f"/batches?limit={_PAGE}{more}")

    def page(self, content: bytes, job: str, requests: int, since: float) -> Page:
        """See `BatchApi`."""
        del requests, since
        document = load_object(content)
        data = dig(document, "data", kind=list)
        for one in data:
            metadata = one.get("metadata") if isinstance(one, dict) else None
            if isinstance(metadata, dict) and metadata.get(_METADATA) == job:
                return Page([Suspect(dig(one, "id", kind=str), certain=True)], "")
        last = dig(data[-1], "id", kind=str) if data and document.get("has_more") else ""
        return Page([], last)

    def seen(self, content: bytes) -> Seen:
        """See `BatchApi`."""
        document = load_object(content)
        status = dig(document, "status", kind=str)
        fetch = [_get(f"/files/{quote(file, safe='')}/content") for file in _files(document)]
        missing = Missing.CANCELLED if status == "cancelled" else Missing.EXPIRED
        return Seen(_STATES.get(status, State.RUNNING), fetch, missing)

    def erase(self, content: bytes, file: str) -> Sequence[Body]:
        """See `BatchApi`. The batch itself stays; it holds neither."""
        files = [file, *_files(load_object(content))] if content else [file]
        return [
            Body(b"", {}, _RENDERER, f"/files/{quote(one, safe='')}", "DELETE")
            for one in files
            if one
        ]

    def answers(self, content: bytes) -> Mapping[str, Reply | Missing | None]:
        """See `BatchApi`."""
        return by_custom_id(content, _answer)


def _get(path: str) -> Body:
    return Body(b"", {}, _RENDERER, path, "GET")


def _files(document: dict[str, Any]) -> list[str]:
    """Return the files of answers that a batch has given."""
    named = [document.get(name) for name in ("output_file_id", "error_file_id")]
    return [file for file in named if isinstance(file, str) and file]


def _answer(document: dict[str, Any]) -> Reply | None:
    response = document.get("response")
    if response is None:
        dig(document, "error", kind=dict)
        return None
    status = dig(response, "status_code", kind=int)
    return Reply(status, {}, JSON_TYPE, dump(dig(response, "body", kind=dict)))
