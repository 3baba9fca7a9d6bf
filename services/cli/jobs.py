"""`twinpath jobs`: many decisions at a vendor's batch price, within a day instead of at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import client, console
from services.cli.decide import Json, Purpose

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table

    from services.cli.job_file import Asked
    from twinpath.router.v1 import jobs_pb2, jobs_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Batch jobs: cheap, and within a day.")

_DEADLINE_S = 300.0
_POLL_S = 2.0
JobId = Annotated[str, typer.Argument(help="The job's id; `twinpath jobs list` shows them.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Items, one a line.")],
    task: Annotated[str, typer.Option("--task", "-t", help="The task's name.")],
    candidate: Annotated[str, typer.Option(help="Only this candidate, by its id.")] = "",
    purpose: Purpose = "",
    key: Annotated[str, typer.Option(help="Idempotency key: submitting again repeats.")] = "",
    as_json: Json = False,
) -> None:
    """Submit a file of items: JSON, one a line.

    {"id": "a", "entity": {"note_id": "n-1"}, "fields": {"note": "..."}}

    Further keys of a line are data_class, residency and consents; without an id it is the line's
    number. More than 1,024 items, or 8 MiB, become several jobs.
    """
    from services.cli import job_file  # noqa: PLC0415 - not for `--help`

    try:
        parts = job_file.read(file)
    except job_file.LineError as error:
        raise typer.BadParameter(str(error), param_hint=str(file)) from None

    made: list[jobs_pb2.Job] = []

    async def work(mesh: client.Connection) -> None:
        async with mesh.channel("router", role="caller", deadline_s=_DEADLINE_S) as channel:
            stub = _stub(channel)
            for number, items in enumerate(parts):
                own = f"{key}/{number}" if key and number else key
                request = _request(task, items, candidate, purpose, own)
                made.append((await stub.SubmitJob(request)).job)

    try:
        client.run("twinpath jobs submit", work)
    finally:  # of several jobs the first may be there though a later one is not
        if made:
            _show(made, as_json=as_json)


@app.command()
def get(
    job: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far a job is."""

    async def work(mesh: client.Connection) -> jobs_pb2.Job:
        import asyncio  # noqa: PLC0415 - not for `--help`

        from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - as above

        async with mesh.channel("router", role="caller") as channel:
            while True:
                reply = await _stub(channel).GetJob(jobs_pb2.GetJobRequest(job_id=job))
                found: jobs_pb2.Job = reply.job
                if found.end_time_unix_us or not wait:
                    return found
                await asyncio.sleep(_POLL_S)

    _show([client.run("twinpath jobs get", work)], as_json=as_json)


@app.command("list")
def list_(
    most: Annotated[int, typer.Option("--most", min=1, max=200, help="Jobs at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List your jobs of the last 30 days, the newest first."""

    async def work(mesh: client.Connection) -> Sequence[jobs_pb2.Job]:
        from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - not for `--help`

        async with mesh.channel("router", role="caller") as channel:
            reply = await _stub(channel).ListJobs(jobs_pb2.ListJobsRequest(page_size=most))
            found: Sequence[jobs_pb2.Job] = reply.jobs
            return found

    _show(client.run("twinpath jobs list", work), as_json=as_json)


@app.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """End a job; what was answered before stays."""

    async def work(mesh: client.Connection) -> jobs_pb2.Job:
        from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - not for `--help`

        async with mesh.channel("router", role="caller", deadline_s=_DEADLINE_S) as channel:
            reply = await _stub(channel).CancelJob(jobs_pb2.CancelJobRequest(job_id=job))
            found: jobs_pb2.Job = reply.job
            return found

    _show([client.run("twinpath jobs cancel", work)], as_json=as_json)


@app.command()
def results(
    job: JobId,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; none: stdout.")] = None,
) -> None:
    """Write each item's result as JSON, one a line: its outputs, or its error."""

    async def work(mesh: client.Connection) -> list[str]:
        from services.cli import job_file  # noqa: PLC0415 - not for `--help`
        from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - as above

        async with mesh.channel("router", role="caller", deadline_s=_DEADLINE_S) as channel:
            asked = jobs_pb2.ListJobResultsRequest(job_id=job)
            replies = _stub(channel).ListJobResults(asked)
            return [job_file.line_of(reply.result) async for reply in replies]

    lines = client.run("twinpath jobs results", work)
    text = "".join(f"{line}\n" for line in lines)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)
        console.out.print(f"{len(lines)} results in {out}")


def _stub(channel: Any) -> jobs_pb2_grpc.JobsStub:
    from twinpath.router.v1 import jobs_pb2_grpc  # noqa: PLC0415 - not for `--help`

    return jobs_pb2_grpc.JobsStub(channel)


def _request(
    task: str, items: Sequence[Asked], candidate: str, purpose: str, key: str
) -> jobs_pb2.SubmitJobRequest:
    from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - not for `--help`

    return jobs_pb2.SubmitJobRequest(
        task=task, items=items, candidate=candidate, purpose=purpose, idempotency_key=key
    )


def _show(jobs: Sequence[jobs_pb2.Job], *, as_json: bool) -> None:
    if as_json:
        for job in jobs:
            print(_as_json(job))
        return
    console.out.print(table(jobs) if jobs else "no jobs")


def _as_json(message: Message) -> str:
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - not for `--help`

    return MessageToJson(message, preserving_proto_field_name=True)


def table(jobs: Sequence[jobs_pb2.Job]) -> Table:
    """Return jobs as a table."""
    from rich.table import Table  # noqa: PLC0415 - not for `--help`

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "task", "state", "items", "ok", "failed", "refused", "cost", "submitted"):
        number = name in ("items", "ok", "failed", "refused")
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    for job in jobs:
        shown.add_row(*_row(job))
    return shown


def _row(job: jobs_pb2.Job) -> Iterator[str]:
    from services.cli import render  # noqa: PLC0415 - not for `--help`
    from twinpath.router.v1 import jobs_pb2  # noqa: PLC0415 - as above

    yield job.id
    yield job.task
    yield jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    for count in (job.items, job.succeeded, job.failed, job.refused):
        yield str(count)
    yield render.cost(job.cost if job.HasField("cost") else None)
    yield time.strftime("%Y-%m-%d %H:%M", time.localtime(job.create_time_unix_us / 1e6))
