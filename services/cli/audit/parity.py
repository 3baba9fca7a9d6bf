"""Do both paths give the same answers? A sample of decisions, replayed, and a verdict."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from services.cli import client, console
from services.cli.audit import agreement
from services.cli.audit import options as opt
from services.cli.audit.replay import Absolute, Relative, Where, request_of
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.router.v1 import router_pb2

if TYPE_CHECKING:
    from services.chassis.errors import ServiceError
    from twinpath.audit.v1 import audit_pb2_grpc
    from twinpath.router.v1 import router_pb2_grpc

_PAGE = 1000
_AT_ONCE = 4
_FIRST = 3  # if policy refuses so many, it will refuse the rest
_NAMED = 5
_NOT_AGREED, _UNDECIDED = 1, 3
_POLICY = "POLICY_REFUSED"
_OURS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})


def parity(
    task: Annotated[str, typer.Argument(help="The task.")],
    since: opt.Since = "",
    until: opt.Until = "",
    sample: Annotated[int, typer.Option("--sample", "-n", min=1, help="Replay so many.")] = 100,
    path: Annotated[Where, typer.Option("--path", help="Where to run them.")] = Where.OTHER,
    required: Annotated[
        float, typer.Option("--required", min=0, max=0.9999, help="The share that must agree.")
    ] = 0.95,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.9999)] = 0.95,
    absolute: Absolute = None,
    relative: Relative = None,
    seed: Annotated[int, typer.Option("--seed", help="Which sample is drawn.")] = 1,
    as_json: opt.Json = False,
) -> None:
    """Do both paths of this task give the same answers?

    Replays a sample, and gives the share that agrees with a Wilson confidence interval, and a
    verdict. Exits with 0 if the required share is shown, with 1 if it is refuted, with 3 if the
    sample is too small to say.
    """
    wanted = audit_pb2.Filter(
        task=task,
        start_time_unix_us=opt.moment(since, "--since"),
        end_time_unix_us=opt.moment(until, "--until"),
        kinds=[record_pb2.RECORD_KIND_OUTCOME],
    )

    async def work(mesh: client.Connection) -> _Parity:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="auditor", deadline_s=600) as channel:
            found = _Parity(task, required)
            stub = audit_pb2_grpc.AuditStub(channel)
            chosen = await _draw(_outcomes(stub, wanted), sample, seed, found)
        with console.err.status(f"replaying {len(chosen)} decisions"):
            requests = [request_of(name, path, absolute, relative) for name in chosen]
            await _replay_all(mesh, requests, found)
        return found

    found = client.run("twinpath audit parity", work)
    share = agreement.share(found.agreeing, found.replayed, confidence)
    verdict = agreement.verdict(share, required)
    if as_json:
        print(json.dumps(_as_dict(found, share, verdict)))
    else:
        _show_parity(found, share, verdict)
    if verdict is not agreement.Verdict.HOLDS:
        undecided = verdict is agreement.Verdict.UNDECIDED
        raise typer.Exit(_UNDECIDED if undecided else _NOT_AGREED)


@dataclass(slots=True)
class _Parity:
    """What came of replaying a sample."""

    task: str
    required: float
    population: int = 0
    erased: int = 0
    replayed: int = 0
    agreeing: int = 0
    not_same_input: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    greatest: dict[str, float] = field(default_factory=dict)
    disagreeing: list[str] = field(default_factory=list)


async def _outcomes(
    stub: audit_pb2_grpc.AuditStub, wanted: audit_pb2.Filter
) -> AsyncIterator[audit_pb2.StoredRecord]:
    token = ""
    while True:
        page = await stub.Query(
            audit_pb2.QueryRequest(filter=wanted, page_size=_PAGE, page_token=token)
        )
        for stored in page.records:
            yield stored
        token = page.next_page_token
        if not token:
            return


async def _draw(
    outcomes: AsyncIterator[audit_pb2.StoredRecord], size: int, seed: int, found: _Parity
) -> list[str]:
    """Draw decisions, each with the same chance (a reservoir: one pass, no more memory)."""
    dice = random.Random(seed)  # noqa: S311 - a sample, not a secret
    chosen: list[str] = []
    async for stored in outcomes:
        if stored.record.replay_of:
            continue
        if stored.erased:
            found.erased += 1
            continue
        found.population += 1
        if len(chosen) < size:
            chosen.append(stored.record.decision_id)
        elif (at := dice.randrange(found.population)) < size:
            chosen[at] = stored.record.decision_id
    return chosen


async def _replay_all(
    mesh: client.Connection, requests: Sequence[router_pb2.ReplayRequest], found: _Parity
) -> None:
    """Replay the first few one by one, and the rest some at a time.

    Raises:
        ServiceError: policy refuses all of the first ones, or the caller may not replay.
    """
    from twinpath.router.v1 import router_pb2_grpc  # noqa: PLC0415 - heavy

    waiting = iter(requests)
    async with mesh.channel("router", role="auditor") as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        refusal = await _replay_each(stub, islice(waiting, _FIRST), found)
        if refusal is not None and found.failures[_POLICY] == min(_FIRST, len(requests)):
            raise refusal
        await asyncio.gather(*(_replay_each(stub, waiting, found) for _ in range(_AT_ONCE)))


async def _replay_each(
    stub: router_pb2_grpc.RouterStub,
    requests: Iterator[router_pb2.ReplayRequest],
    found: _Parity,
) -> ServiceError | None:
    """Replay what the iterator still has; return the last refusal by policy."""
    import grpc  # noqa: PLC0415 - heavy

    from services.chassis.errors import ServiceError, from_rpc_error  # noqa: PLC0415 - heavy

    refusal = None
    for request in requests:
        try:
            _count(await stub.Replay(request), found)
        except (grpc.RpcError, ServiceError) as raised:
            error = raised if isinstance(raised, ServiceError) else from_rpc_error(raised)
            if error.reason == _POLICY:
                refusal = error
            elif error.code.name in _OURS:
                raise error from None
            found.failures[error.reason] += 1
    return refusal


def _count(answer: router_pb2.ReplayResponse, found: _Parity) -> None:
    found.replayed += 1
    found.agreeing += answer.agrees
    found.not_same_input += not answer.same_input
    if not answer.agrees:
        found.disagreeing.append(answer.replay_of)
    for output in answer.outputs:
        if output.HasField("tolerance"):
            greatest = max(found.greatest.get(output.name, 0.0), output.max_absolute)
            found.greatest[output.name] = greatest


# ---- what people read -----------------------------------------------------------------------

_WORDS = {
    agreement.Verdict.HOLDS: "[bold green]the paths agree[/]",
    agreement.Verdict.FAILS: "[bold red]the paths do not agree[/]",
    agreement.Verdict.UNDECIDED: "[bold yellow]undecided[/]",
}


def _show_parity(found: _Parity, share: agreement.Share, verdict: agreement.Verdict) -> None:
    out = console.out
    out.print(f"{_WORDS[verdict]}  {found.task}: {_sentence(found, share, verdict)}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if share.size:
        interval = f"{share.low:.2%} to {share.high:.2%} with {share.confidence:.0%} confidence"
        table.add_row("agreement", f"{share.value:.2%} of {share.size} replayed; {interval}")
    table.add_row("required", f"{found.required:.2%}")
    table.add_row("decisions", f"{found.population} could be replayed, {found.erased} are erased")
    for name, greatest in sorted(found.greatest.items()):
        table.add_row(f"output {name}", f"differs by {greatest:.6g} at most")
    for reason, count in found.failures.most_common():
        table.add_row("not replayed", Text(f"{count}: {reason}", style="yellow"))
    if found.not_same_input:
        told = f"{found.not_same_input} replays are not shown to have had the recorded input"
        table.add_row("input", Text(told, style="red"))
    for decision in found.disagreeing[:_NAMED]:
        table.add_row("disagrees", decision)
    if len(found.disagreeing) > _NAMED:
        table.add_row("", f"and {len(found.disagreeing) - _NAMED} more; --json names all")
    out.print(table)


def _sentence(found: _Parity, share: agreement.Share, verdict: agreement.Verdict) -> str:
    if verdict is agreement.Verdict.HOLDS:
        return f"at least {share.low:.2%} of answers are the same"
    if verdict is agreement.Verdict.FAILS:
        return f"at most {share.high:.2%} of answers are the same"
    if not share.size:
        return "nothing could be replayed" if found.population else "the log has no such decision"
    least = agreement.needed(found.required, share.confidence)
    more = f"it takes {least} replays at least" if share.size < least else "a larger sample may say"
    return f"{share.size} replays don't show it either way; {more}"


def _as_dict(
    found: _Parity, share: agreement.Share, verdict: agreement.Verdict
) -> dict[str, object]:
    return {
        "task": found.task,
        "verdict": verdict.value,
        "required": found.required,
        "agreeing": share.agreeing,
        "replayed": share.size,
        "share": share.value if share.size else None,
        "low": share.low,
        "high": share.high,
        "confidence": share.confidence,
        "population": found.population,
        "erased": found.erased,
        "not_replayed": dict(found.failures),
        "not_same_input": found.not_same_input,
        "greatest_differences": found.greatest,
        "disagreeing": found.disagreeing,
    }
