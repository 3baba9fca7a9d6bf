"""The output filter for answers in chunks: it holds back a window, and lets through what is safe.

A text is cut only where nothing found, or still to be found, can reach over the cut: not within a
word, and no nearer to the end than the longest find with blanks in it. So chunks, joined, are
what the filter makes of the whole, and `verify` sees to it that they are.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence

from services.chassis.errors import InternalError
from services.router import markup
from services.router.decision import Decision
from services.router.filters import OutputPolicy, masked
from services.router.outputs import give_back, refuse, values_for
from services.router.redaction import PutBack
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

_CONTEXT = 256  # characters before a cut that a pattern may look back at
_LONG = 2048  # characters held back from which on not every piece is a reason to look again


class _HeldBack:
    """One text that comes in pieces, under a policy."""

    def __init__(self, decision: Decision, policy: OutputPolicy, name: str) -> None:
        self._decision = decision
        self._policy = policy
        self._name = name
        self._context = ""
        self._held = ""
        self._in_tags = False
        self._look_at = 0

    def feed(self, piece: str, *, last: bool = False) -> str:
        """Take a piece; return what can be given.

        Raises:
            InternalError: OUTPUT_POLICY: what would be given next is refused.
        """
        self._held += piece
        if len(self._held) < self._look_at and not last:
            return ""
        text, at = self._context + self._held, len(self._context)
        finds = self._policy.find(text, at, in_tags=self._in_tags)
        cut = len(text)
        if not last:
            cut = _start_of_word(text, max(at, cut - self._policy.reach))
            for find in reversed(finds):
                if find.start < cut and (find.end > cut or find.end == len(text)):
                    cut = _start_of_word(text, find.start)
        cut = max(cut, at)
        finds = [find for find in finds if find.start < cut]
        refuse(self._decision, self._policy, self._name, finds)
        given = masked(text, finds, at, cut)
        self._in_tags = self._in_tags or markup.begins_tag(text[:cut])
        self._context, self._held = text[max(0, cut - _CONTEXT) : cut], text[cut:]
        # A word without end is looked at ever less often, so that it costs no square of its length.
        self._look_at = len(self._held) * 9 // 8 if len(self._held) > _LONG else 0
        return given


def _start_of_word(text: str, place: int) -> int:
    """Return where the word begins in which a place is; the place itself where it is in none."""
    while place > 0 and "!" <= text[place - 1] <= "~":  # finds without blanks are of these
        place -= 1
    return place


class _Text:
    """All stages of one tensor's text."""

    def __init__(self, decision: Decision, name: str) -> None:
        policy, values = decision.task.filters.policy, values_for(decision, name)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._policy = None if policy is None else _HeldBack(decision, policy, name)
        self._values = PutBack(values) if values else None
        self._digest = hashlib.sha256()

    def feed(self, raw: bytes, *, last: bool = False) -> bytes:
        """Take bytes of the text; return what can be given. Raises as `_HeldBack.feed`."""
        text = self._decoder.decode(raw, last)
        if self._policy is not None:
            text = self._policy.feed(text, last=last)
        if self._values is not None:
            text = self._values.feed(text) + (self._values.finish() if last else "")
        given = text.encode("utf-8", "surrogateescape")
        self._digest.update(given)
        return given

    def gave(self, whole: bytes) -> bool:
        """Tell whether this is what was given so far."""
        return self._digest.digest() == hashlib.sha256(whole).digest()


class StreamFilter:
    """Filters the chunks of one attempt."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        self._texts: dict[str, _Text] = {}

    @classmethod
    def of(cls, decision: Decision) -> StreamFilter | None:
        """Return the filter of a decision; None: there is nothing to filter, chunks go through."""
        values = decision.assembled.values if decision.assembled is not None else None
        return None if decision.task.filters.policy is None and not values else cls(decision)

    def feed(self, chunk: inference_pb2.InferChunk) -> inference_pb2.InferChunk | None:
        """Take a chunk; return what can be given of it and of those before, None: nothing yet.

        Raises:
            InternalError: OUTPUT_POLICY: what would be given next is refused.
        """
        outputs = []
        for tensor in chunk.outputs:
            if tensor.datatype != tensors.BYTES:
                outputs.append(tensor)
                continue
            text = self._texts.get(tensor.name)
            if text is None:
                text = self._texts[tensor.name] = _Text(self._decision, tensor.name)
            outputs += _tensors(tensor.name, text.feed(b"".join(tensors.decode_bytes(tensor.raw))))
        return inference_pb2.InferChunk(outputs=outputs) if outputs else None

    def finish(self) -> inference_pb2.InferChunk | None:
        """Return what was held back. Raises as `feed`."""
        outputs = [
            tensor
            for name, text in self._texts.items()
            for tensor in _tensors(name, text.feed(b"", last=True))
        ]
        return inference_pb2.InferChunk(outputs=outputs) if outputs else None

    def verify(self, accepted: Sequence[tensor_pb2.Tensor]) -> None:
        """See that the chunks, joined, are the answer.

        Raises:
            InternalError: OUTPUT_POLICY: the filter of the whole made something else of it.
        """
        for tensor in give_back(self._decision, accepted):
            text = self._texts.get(tensor.name)
            if text is not None and not text.gave(b"".join(tensors.decode_bytes(tensor.raw))):
                raise InternalError(
                    "OUTPUT_POLICY",
                    f"the chunks of {tensor.name} are not what the filter makes of the whole",
                    metadata={"tensor": tensor.name},
                )


def _tensors(name: str, text: bytes) -> list[tensor_pb2.Tensor]:
    if not text:
        return []
    raw = tensors.encode_bytes([text])
    return [tensor_pb2.Tensor(name=name, datatype=tensors.BYTES, shape=[1], raw=raw)]
