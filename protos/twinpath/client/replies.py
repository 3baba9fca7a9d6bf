"""What comes back, as plain values. `message` is always the whole, as the contract has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from twinpath.client.errors import TwinpathError, from_status
from twinpath.client.tensors import Tensor
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import inference_pb2, tensor_pb2
from twinpath.router.v1 import router_pb2

_BATCH_OF_ONE = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model at one version on one path.

    Attributes:
        id: Its id in the catalog.
        model: The model's name.
        version: The model's version.
        path: "local" or "remote".
        provider: The vendor; empty on the local path.
        region: Where the vendor processes the input; empty on the local path.
    """

    id: str
    model: str
    version: str
    path: str
    provider: str
    region: str

    @classmethod
    def from_message(cls, message: decision_pb2.CandidateRef) -> Candidate:
        """Read the contract's form."""
        path = context_pb2.Path.Name(message.path).removeprefix("PATH_").lower()
        return cls(
            message.id, message.model, message.version, path, message.provider, message.region
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount of money.

    Attributes:
        currency: ISO 4217, such as "USD".
        nanos: Billionths of one unit: whole numbers add up exactly.
        basis: "reported" by the vendor, "estimated" from prices, "measured" on our machine, or
            "unspecified".
    """

    currency: str
    nanos: int
    basis: str

    @property
    def amount(self) -> float:
        """In units of the currency."""
        return self.nanos / 1e9

    @classmethod
    def from_message(cls, message: decision_pb2.Cost) -> Cost:
        """Read the contract's form."""
        basis = decision_pb2.CostBasis.Name(message.basis).removeprefix("COST_BASIS_").lower()
        return cls(message.currency_code, message.nanos, basis)


def _tensors(messages: Iterable[tensor_pb2.Tensor]) -> dict[str, Tensor]:
    return {message.name: Tensor.from_message(message) for message in messages}


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. `decision["name"]` is an output's plain value.

    Attributes:
        message: The whole reply.
        outputs: The outputs by name.
    """

    message: router_pb2.InferResponse = field(repr=False)
    outputs: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def from_message(cls, message: router_pb2.InferResponse) -> Decision:
        """Read the contract's form."""
        return cls(message, _tensors(message.outputs))

    def __getitem__(self, name: str) -> Any:
        """Return an output: its only element if it has one, else nested lists.

        Raises:
            KeyError: The task has no such output.
        """
        tensor = self.outputs[name]
        flat = tensor.flat()
        return flat[0] if len(flat) == _BATCH_OF_ONE else tensor.tolist()

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    @property
    def decision_id(self) -> str:
        """What to give to the audit log, to support, to a replay."""
        return self.message.decision_id

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty without a trace."""
        return self.message.trace_id

    @property
    def answered_by(self) -> Candidate:
        """Who answered."""
        return Candidate.from_message(self.message.answered_by)

    @property
    def path(self) -> str:
        """Where it was answered: "local" or "remote"."""
        return self.answered_by.path

    @property
    def latency_s(self) -> float:
        """From admission to reply, in seconds, as the router measured it."""
        return self.message.latency_us / 1e6

    @property
    def cost(self) -> Cost | None:
        """The sum over all attempts; None: nothing is known."""
        return Cost.from_message(self.message.cost) if self.message.HasField("cost") else None

    @property
    def fallback(self) -> bool:
        """Whether another candidate answered than the first of the plan."""
        return self.message.fallback

    @property
    def repeated(self) -> bool:
        """Whether it was made before, for the same idempotency key."""
        return self.message.repeated

    @property
    def cut_by_length(self) -> bool:
        """Whether the model stopped at its length limit, so that the answer is not whole."""
        return self.message.finish_reason == inference_pb2.FINISH_REASON_LENGTH


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a streamed output; provisional until the decision."""

    outputs: Mapping[str, Tensor]

    @classmethod
    def from_message(cls, message: inference_pb2.InferChunk) -> Chunk:
        """Read the contract's form."""
        return cls(_tensors(message.outputs))

    @property
    def text(self) -> str:
        """The text of all BYTES outputs of this part."""
        return "".join(t.text() for t in self.outputs.values() if t.datatype == "BYTES")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of one item of a batch: a decision or an error.

    Attributes:
        id: The item's.
        decision: The decision; None on failure.
        error: Why there is none; None on success.
    """

    id: str
    decision: Decision | None
    error: TwinpathError | None

    @classmethod
    def from_message(cls, message: router_pb2.BatchResult) -> BatchItem:
        """Read the contract's form."""
        if message.status.code:
            return cls(message.id, None, from_status(message.status))
        return cls(message.id, Decision.from_message(message.response), None)

    def unwrap(self) -> Decision:
        """Return the decision, or raise the item's error."""
        if self.decision is None:
            assert self.error is not None
            raise self.error
        return self.decision


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan that `infer` would follow now.

    Attributes:
        message: The whole reply.
        admitted: Who would be asked, in order.
        refused: By candidate id, the rules that refuse it.
    """

    message: router_pb2.ExplainResponse = field(repr=False)
    admitted: tuple[Candidate, ...]
    refused: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_message(cls, message: router_pb2.ExplainResponse) -> Explanation:
        """Read the contract's form."""
        entries = message.plan.entries
        ranked = sorted((e for e in entries if e.rank), key=lambda entry: entry.rank)
        return cls(
            message,
            tuple(Candidate.from_message(entry.candidate) for entry in ranked),
            {e.candidate.id: tuple(r.rule for r in e.refusals) for e in entries if not e.rank},
        )
