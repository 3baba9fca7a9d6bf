"""What a caller asks, in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from twinpath.client.values import to_values
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

Path = Literal["local", "remote"]
Priority = Literal["interactive", "normal", "batch"]
DataClass = Literal["public", "internal", "confidential", "restricted"]

_PATHS = {"local": context_pb2.PATH_LOCAL, "remote": context_pb2.PATH_REMOTE}
_PRIORITIES = {
    "interactive": context_pb2.PRIORITY_INTERACTIVE,
    "normal": context_pb2.PRIORITY_NORMAL,
    "batch": context_pb2.PRIORITY_BATCH,
}
_CLASSES = {
    "public": context_pb2.DATA_CLASS_PUBLIC,
    "internal": context_pb2.DATA_CLASS_INTERNAL,
    "confidential": context_pb2.DATA_CLASS_CONFIDENTIAL,
    "restricted": context_pb2.DATA_CLASS_RESTRICTED,
}


class Ask(TypedDict, total=False):
    """What may be said beside the task's name; all of it may be left out.

    entity: Join keys and their values, {"patient_id": 17}.
    fields: Request-time fields and their values.
    idempotency_key: With one, asking again gives the same decision; see `keys`.
    purpose: What the answer is for; policies may demand it.
    data_class: The request's own data class; it can only make the task's stricter.
    priority: How urgent it is; "normal" if it is left out.
    only_path: Only this path; it narrows what policy admits and never widens it.
    residency: Where the data may be processed, such as "eu".
    consents: What the data subject consented to.
    include_plan: The decision carries the plan.
    """

    entity: Mapping[str, Any]
    fields: Mapping[str, Any]
    idempotency_key: str
    purpose: str
    data_class: DataClass
    priority: Priority
    only_path: Path
    residency: str
    consents: Sequence[str]
    include_plan: bool


class Request:
    """One question: a task and what `Ask` lists. Also what a batch is made of."""

    __slots__ = ("message",)

    def __init__(
        self,
        task: str,
        *,
        entity: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
        purpose: str = "",
        data_class: DataClass | None = None,
        priority: Priority | None = None,
        only_path: Path | None = None,
        residency: str = "",
        consents: Sequence[str] = (),
        include_plan: bool = False,
    ) -> None:
        """Make it; nothing is sent yet.

        Raises:
            TypeError: A value of a kind that the contract does not have.
            ValueError: A value that the contract can't carry. Both messages name it.
        """
        if isinstance(consents, str):
            raise TypeError("consents is a list of names, not a text")
        self.message = router_pb2.InferRequest(
            task=task,
            entity=to_values(entity or {}, "entity"),
            fields=to_values(fields or {}, "fields"),
            idempotency_key=idempotency_key,
            purpose=purpose,
            data_class=_chosen(_CLASSES, data_class, "data_class"),  # type: ignore[arg-type]
            priority=_chosen(_PRIORITIES, priority, "priority"),  # type: ignore[arg-type]
            only_path=_chosen(_PATHS, only_path, "only_path"),  # type: ignore[arg-type]
            residency=residency,
            consents=list(consents),
            include_plan=include_plan,
        )

    @property
    def keyed(self) -> bool:
        """Whether it has an idempotency key, and so may be asked again freely."""
        return bool(self.message.idempotency_key)

    def __repr__(self) -> str:
        # Not the values: they may be about a person.
        return f"Request({self.message.task!r})"


def _chosen(known: Mapping[str, int], name: str | None, what: str) -> int:
    if name is None:
        return 0
    if name not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {name!r}")
    return known[name]


def batch_message(
    items: Mapping[str, Request] | Sequence[Request],
) -> router_pb2.BatchInferRequest:
    """Return a batch; the items of a sequence are named by their place, "0", "1", ..."""
    named = items if isinstance(items, Mapping) else {str(i): r for i, r in enumerate(items)}
    return router_pb2.BatchInferRequest(
        items=[
            router_pb2.BatchItem(id=name, request=request.message)
            for name, request in named.items()
        ]
    )
