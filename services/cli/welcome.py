"""What `twinpath up` says once the mesh runs: where everything is, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from services.cli.launcher.keys import SERVICES

if TYPE_CHECKING:
    from services.cli.launcher.mesh import Mesh

_WHAT = {
    "router": "decides: policy, plan, record",
    "features": "reads and writes the feature store",
    "local": "the local path, over Triton",
    "remote": "the remote path, over vendors",
    "audit": "keeps and proves the log",
}


def welcome(mesh: Mesh) -> RenderableType:
    """The whole text."""
    return Group(
        Panel(
            _listens(mesh), title="[bold green]the mesh runs", border_style="green", expand=False
        ),
        Text(""),
        Text("Try, in another terminal:", style="bold"),
        *_tries(mesh),
        Text(""),
        Text("From Python:", style="bold"),
        Syntax(_python(mesh), "python", background_color="default"),
        Text("Ctrl-C stops everything.", style="dim"),
    )


def _listens(mesh: Mesh) -> Table:
    wiring = mesh.wiring
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("listens at", overflow="fold")
    table.add_column("metrics", no_wrap=True)
    table.add_column("", style="dim")
    for name in SERVICES:
        port = wiring.metrics[name].rpartition(":")[2]
        table.add_row(name, wiring.services[name], f":{port}/metrics", _WHAT[name])
    triton = getattr(mesh.processes.get("triton"), "metrics_port", 0)
    rows = [
        ("triton", wiring.triton_url, f":{triton}/metrics" if triton else "", "model server"),
        ("state", wiring.state_url, "", "Redis protocol"),
        ("features-store", wiring.features_url, "", "Redis protocol, for Feast"),
        ("stand-in vendor", wiring.standin_url, "", f"no real vendor; admin {mesh.standin_admin}"),
    ]
    if mesh.jaeger is not None:
        rows.append(
            ("traces", mesh.jaeger.endpoint, "", f"Jaeger; its query API: {mesh.jaeger.url}")
        )
    elif mesh.collector is not None:
        rows.append(("traces", mesh.collector.endpoint, "", "OTLP; see `twinpath trace`"))
    else:
        rows.append(("traces", wiring.otlp_endpoint, "", "OTLP, your collector"))
    for name, address, metrics, what in rows:
        table.add_row(name, escape(address), metrics, what)
    return table


def _tries(mesh: Mesh) -> list[Text]:
    router = mesh.wiring.services["router"]
    token = mesh.keys.tokens["caller"]
    body = '{"task":"diabetes_progression","entity":{"patient_id":{"int64_value":17}}}'
    return [
        Text(line, overflow="fold")
        for line in (
            "  twinpath infer diabetes_progression --entity patient_id=17 --field bmi_now=27.5",
            "  twinpath explain tumour_triage --entity patient_id=17",
            "  twinpath trace",
            f"  grpcurl -plaintext -H \"authorization: Bearer $(cat '{token}')\" -d '{body}' \\",
            f"    {router} twinpath.router.v1.Router/Infer",
        )
    ]


def _python(mesh: Mesh) -> str:
    return f"""\
import grpc
from twinpath.common.v1.value_pb2 import Value
from twinpath.router.v1 import router_pb2, router_pb2_grpc

token = open("{mesh.keys.tokens["caller"]}").read()
with grpc.insecure_channel("{mesh.wiring.services["router"]}") as channel:
    reply = router_pb2_grpc.RouterStub(channel).Infer(
        router_pb2.InferRequest(
            task="diabetes_progression", entity={{"patient_id": Value(int64_value=17)}}
        ),
        metadata=[("authorization", f"Bearer {{token}}")],
        timeout=5,
    )
print(reply.decision_id, reply.answered_by.model, reply.latency_us, "us")
"""
