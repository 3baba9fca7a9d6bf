"""The life of models on a real Triton: loaded beside each other, rolled back, drained, refused."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.cli.embedded.triton import Triton
from services.local.compose import build
from services.local.manifest import write_card
from services.local.settings import LocalSettings
from services.local.triton import TritonServer
from tests import triton_models
from tests.local_path import Stub, ask, failure, features, item, new_triton, triton
from tests.support import (
    MeshKeys,
    client,
    free_port,
    public_pem,
    refusal,
    settings_for,
    start_service,
)
from twinpath.inference import tensors
from twinpath.inference.v1 import model_control_pb2 as pb
from twinpath.inference.v1 import model_control_pb2_grpc

pytestmark = pytest.mark.integration

# Answers with its version, after as many milliseconds as the input's greatest value.
CODE = """
import time

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, x):
        time.sleep(float(x.max()) / 1000)
        return pb.InferenceResponse([pb.Tensor("said", np.full((len(x), 1), VERSION, np.float32))])
"""
# Says itself what it gives, as exported graphs do: a version may give something else.
DECLARES = (
    CODE
    + """
    @staticmethod
    def auto_complete_config(config):
        config.add_output({"name": "said", "data_type": "TYPE_FP32", "dims": [1]})
        return config
"""
)
INPUTS = """max_batch_size: 8
input { name: "features" data_type: TYPE_FP32 dims: [ 1 ] }
"""
CONFIG = INPUTS + 'output { name: "said" data_type: TYPE_FP32 dims: [ 1 ] }\n'


def version(root: Path, name: str, number: int, code: str = CODE, config: str = CONFIG) -> Path:
    """Write a version of a model; returns its folder."""
    code = code.replace("VERSION", str(number))
    return triton_models.write_model(root, name, code, config, [str(number)]) / str(number)


@dataclass
class Local:
    """A local path's two clients: the router's and an operator's."""

    stub: Stub
    control: model_control_pb2_grpc.ModelControlStub
    service: Any

    async def said(self, model: str, wanted: str = "", *, milliseconds: float = 0) -> float:
        """Which version answers."""
        [result] = await ask(self.stub, item(model, features([milliseconds]), version=wanted))
        assert result.status.code == 0, result.status
        return float(tensors.to_numpy(result.outputs[0])[0, 0])

    async def load(self, model: str, number: str, **more: Any) -> pb.LoadModelResponse:
        """Load a version."""
        request = pb.LoadModelRequest(model=model, version=number, **more)
        loaded: pb.LoadModelResponse = await self.control.LoadModel(request, timeout=60)
        return loaded

    async def states(self, model: str) -> dict[str, pb.VersionState]:
        """Every version's state."""
        found = await self.control.ModelStates(pb.ModelStatesRequest(model=model))
        return {state.version: state for state in found.states}

    async def is_at(self, model: str, number: str, stage: pb.Stage) -> bool:
        """Whether a version is at a stage; no while Triton does not answer."""
        try:
            return (await self.states(model))[number].stage == stage
        except grpc.RpcError:
            return False

    async def is_ill(self) -> bool:
        """Whether the service is not serving."""
        return not await self.service.health.check()


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for a condition that must come; the limit only ends a broken test."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - there is no event of another process
            await asyncio.sleep(0.05)


@asynccontextmanager
async def path(keys: MeshKeys, server: Triton, **fields: Any) -> AsyncIterator[Local]:
    """Run the local path with explicit control."""
    settings = settings_for(
        LocalSettings,
        keys,
        triton_url=server.url,
        models=server.options.models,
        **{"refresh_s": 0.1, "control": "explicit", **fields},
    )
    router, operator = keys.token("service:router"), keys.token("olivia", roles=["operator"])
    async with (
        start_service(settings, build) as service,
        client(service.address, router) as one,
        client(service.address, operator) as two,
    ):
        await until(service.health.check)
        yield Local(Stub(one), model_control_pb2_grpc.ModelControlStub(two), service)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton that has loaded nothing."""
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, triton_models.echo, control="explicit") as running:
        yield running


async def test_a_new_version_takes_over_and_gives_back_under_load(
    server: Triton, keys: MeshKeys
) -> None:
    """Loading, rolling back and unloading under load lose no request."""
    for number in (1, 2):
        version(server.options.models, "moving", number)
    async with path(keys, server) as local:
        assert (await local.load("moving", "1")).warm_up_us > 0
        answers: list[tuple[str, float]] = []  # what was true all the time, who answered
        now = ""
        stop = asyncio.Event()

        async def caller() -> None:
            while not stop.is_set():
                asked = now
                said = await local.said("moving", milliseconds=5)
                answers.append((asked if asked == now else "", said))

        async def more() -> None:
            seen = len(answers)
            while len(answers) < seen + 60:  # noqa: ASYNC110 - a count, not an event
                await asyncio.sleep(0.01)

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        now = "first"
        await more()
        now = ""
        loaded = await local.load("moving", "2")
        assert loaded.state.serving
        now = "loaded"
        await more()
        now = ""

        back = await local.control.SetServing(pb.SetServingRequest(model="moving"))
        assert (back.state.version, back.before) == ("1", "2")
        now = "back"
        await more()

        request = pb.UnloadModelRequest(model="moving", version="2")
        gone = await local.control.UnloadModel(request, timeout=60)
        assert gone.cut_off == 0
        await more()
        stop.set()
        await asyncio.gather(*callers)  # each of them asserts that it was answered
        assert {pair for pair in answers if pair[0]} == {("first", 1), ("loaded", 2), ("back", 1)}
        states = await local.states("moving")
        assert states["1"].serving
        assert states["2"].stage == pb.STAGE_UNLOADED


async def test_what_is_under_way_ends_before_the_version_goes(
    server: Triton, keys: MeshKeys
) -> None:
    """Unloading waits for a slow request, and refuses new ones meanwhile."""
    for number in (1, 2):
        version(server.options.models, "slow", number)
    async with path(keys, server) as local:
        await local.load("slow", "1")
        loaded = await local.load("slow", "2", aside=True)
        assert not loaded.state.serving
        assert await local.said("slow") == 1
        under_way = asyncio.create_task(local.said("slow", "2", milliseconds=1500))
        await asyncio.sleep(0.3)
        request = pb.UnloadModelRequest(model="slow", version="2")
        unloading = asyncio.ensure_future(local.control.UnloadModel(request, timeout=60))
        await until(lambda: local.is_at("slow", "2", pb.STAGE_DRAINING))
        [late] = await ask(local.stub, item("slow", features([0]), version="2"))
        assert failure(late).reason == "MODEL_UNAVAILABLE"
        assert await under_way == 2
        assert (await unloading).cut_off == 0
        error = await refusal(
            local.control.SetServing(pb.SetServingRequest(model="slow", version="2"))
        )
        assert error.reason == "MODEL_NOT_LOADED"


def vouch(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write a signed card for a version."""
    write_card(folder, {"name": folder.parent.name, "version": folder.name}, key)


async def loaded(server: Triton, model: str) -> set[str]:
    """The versions that Triton itself has loaded."""
    direct = TritonServer(server.url, 1 << 20)
    try:
        entries = await direct.index(10)
    finally:
        await direct.close()
    return {e.version for e in entries if e.name == model and e.state == "READY"}


async def test_a_bad_version_is_refused_and_the_old_one_serves_on(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """Unsigned, changed, added to, broken, not warming up, not fitting its task, not there."""
    key = Ed25519PrivateKey.generate()
    trusted = tmp_path / "approvers.pem"
    trusted.write_text(public_pem(key))
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    root = server.options.models

    def new(number: int, code: str = DECLARES) -> Path:
        return version(root, "checked", number, code, INPUTS)

    vouch(new(1), key)
    new(2)
    vouch(new(3), key)
    with (root / "checked" / "3" / "model.py").open("a") as file:
        file.write("# changed after it was signed\n")
    vouch(new(4, DECLARES + "\nraise RuntimeError('tilt')\n"), key)
    vouch(new(5, DECLARES.replace("(len(x), 1)", "(7, 3)")), key)
    vouch(new(7), key)
    (root / "checked" / "7" / "extra.py").write_text("")
    vouch(new(8, DECLARES.replace('"dims": [1]', '"dims": [2]')), key)
    async with path(keys, server, artifact_keys=trusted, catalog=tasks.parent) as local:
        await local.load("checked", "1")
        (tasks / "t.yaml").write_text(
            """
name: checks
inputs: [{name: features, datatype: FP32, shape: [1, 1]}]
outputs: [{name: said, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: checked, version: live}]
"""
        )
        for number, reason, why in (
            ("2", "ARTIFACT_UNTRUSTED", "no card.json"),
            ("3", "ARTIFACT_UNTRUSTED", "not the one"),
            ("4", "MODEL_LOAD_FAILED", "tilt"),
            ("5", "WARM_UP_FAILED", "output"),
            ("6", "MODEL_UNKNOWN", "no such version"),
            ("7", "ARTIFACT_UNTRUSTED", "does not list: extra.py"),
            ("8", "CONTRACT_DIVERGES", "task checks can't use it: its output 'said' is [-1, 2]"),
        ):
            error = await refusal(local.load("checked", number))
            assert error.reason == reason
            assert why in error.message
            assert await loaded(server, "checked") == {"1"}  # the rest is gone from Triton, too
            assert await local.said("checked") == 1
        states = await local.states("checked")
        assert [s.version for s in states.values() if s.stage == pb.STAGE_READY] == ["1"]
        assert states["2"].stage == pb.STAGE_REFUSED
        error = await refusal(
            local.control.UnloadModel(pb.UnloadModelRequest(model="checked", version="9"))
        )
        assert error.reason == "MODEL_NOT_LOADED"


async def test_a_configuration_that_fits_no_task_does_not_stay(
    server: Triton, keys: MeshKeys, tmp_path: Path
) -> None:
    """Triton gives it to every version when it loads one; the old one gets its own back."""
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    root = server.options.models
    version(root, "reshaped", 1)
    async with path(keys, server, catalog=tasks.parent) as local:
        await local.load("reshaped", "1")
        (tasks / "t.yaml").write_text(
            """
name: reshapes
inputs: [{name: features, datatype: FP32, shape: [1, 1]}]
outputs: [{name: said, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: reshaped, version: live}]
"""
        )
        broken = INPUTS + 'output { name: "said" data_type: TYPE_FP32 dims: [ 2 ] }\n'
        version(root, "reshaped", 2, config=broken)
        assert (await refusal(local.load("reshaped", "2"))).reason == "CONTRACT_DIVERGES"
        assert await local.said("reshaped") == 1
        version(root, "reshaped", 2, "raise RuntimeError('tilt')", config=broken)
        assert (await refusal(local.load("reshaped", "2"))).reason == "MODEL_LOAD_FAILED"
        assert await local.said("reshaped") == 1
        version(root, "reshaped", 2)
        await local.load("reshaped", "2")
        assert await local.said("reshaped") == 2


async def test_what_was_asked_for_outlives_restarts(keys: MeshKeys, tmp_path: Path) -> None:
    """Of Triton, which forgets everything, and of the local path, which has a file."""
    port = free_port()
    options = {"control": "explicit", "grpc_port": port}
    server = new_triton(tmp_path, triton_models.echo, **options)
    tasks = tmp_path / "catalog" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "t.yaml").write_text(
        """
name: echoes
inputs: [{name: features, datatype: FP32, shape: [1, 1]}]
outputs: [{name: features, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: echo, version: "1"}]
"""
    )
    (tasks / "u.yaml").write_text(
        """
name: kept
inputs: [{name: features, datatype: FP32, shape: [1, 1]}]
outputs: [{name: said, datatype: FP32, shape: [1, 1]}]
candidates: [{id: x, path: local, model: kept, version: "1"}]
"""
    )
    for number in (1, 2, 3):
        version(server.options.models, "kept", number)
    fields: dict[str, Any] = {
        "control_file": tmp_path / "state" / "models.json",
        "catalog": tasks.parent,
    }
    async with server, path(keys, server, **fields) as local:
        [result] = await ask(local.stub, item("echo", features([1])))
        assert result.status.code == 0  # the catalog's models are loaded without a word
        await local.load("kept", "2")
        back = await local.control.SetServing(pb.SetServingRequest(model="kept"))
        assert (back.state.version, back.before) == ("1", "2")  # to what the catalog had loaded
        await local.load("kept", "3")
        await local.control.SetServing(pb.SetServingRequest(model="kept", version="2"))
        request = pb.UnloadModelRequest(model="kept", version="3")
        await local.control.UnloadModel(request, timeout=60)
        server.signal(signal.SIGKILL)
        await until(local.is_ill)
        again = new_triton(tmp_path, triton_models.echo, **options)
        async with again:
            await until(lambda: local.is_at("kept", "2", pb.STAGE_READY))
            assert await local.said("kept") == 2
            assert (await local.states("kept"))["3"].stage == pb.STAGE_UNLOADED
            async with path(keys, again, **fields) as later:
                assert await later.said("kept") == 2
                assert await later.said("kept", "1") == 1


async def test_without_explicit_control_nothing_is_loaded_by_call(
    server: Triton, keys: MeshKeys
) -> None:
    """The refusal says why; looking is allowed; the router may do neither."""
    async with path(keys, server, control="none") as local:
        error = await refusal(local.load("echo", "1"))
        assert error.reason == "CONTROL_NOT_EXPLICIT"
        states = await local.control.ModelStates(pb.ModelStatesRequest())
        assert not states.explicit
