"""The five services in one process: the mesh's own tests, and what is different there."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.integration import test_mesh_batches as batches
from tests.integration import test_mesh_decisions as decisions
from tests.integration import test_mesh_streams as streams
from tests.integration.conftest import LOCAL, REMOTE, MeshUnderTest, request, started_mesh
from tests.support import refusal
from twinpath.audit.v1 import audit_pb2
from twinpath.features.v1 import features_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# What callers, auditors and the vendor see is the same, so the tests are.
test_same_input = decisions.test_both_paths_get_the_same_input
test_restricted = decisions.test_a_restricted_record_is_answered_locally_and_never_sent
test_record_and_proof = decisions.test_a_decision_is_recorded_and_the_log_proves_it_offline
test_same_key = decisions.test_the_same_key_gives_the_same_decision
test_chunks = streams.test_text_arrives_in_chunks_and_the_end_holds_the_whole
test_reader_disappears = streams.test_a_reader_that_disappears_leaves_nothing_running
test_slow_readers = streams.test_slow_readers_do_not_raise_the_meshs_memory
test_items_fail_alone = batches.test_items_take_different_paths_and_fail_alone


@pytest.fixture(scope="module")
def edge_mesh(mesh_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshUnderTest]:
    """A mesh of one process for the five services, with the models that the session's has made."""
    folder = tmp_path_factory.mktemp("edge")
    for name in ("models", "artifacts", "signing"):
        if (mesh_home / name).is_dir():
            shutil.copytree(mesh_home / name, folder / name)
    with started_mesh(folder, edge=True) as mesh:
        yield mesh


@pytest.fixture
async def mesh(edge_mesh: MeshUnderTest) -> AsyncIterator[MeshUnderTest]:
    """The same mesh for every test, without faults."""
    yield edge_mesh
    await edge_mesh.faults()


async def test_one_trace_hangs_together(mesh: MeshUnderTest) -> None:
    """From the router into Redis, Triton and the vendor: one root, no orphan, every service."""
    async with mesh.router() as router:
        replies = [await router.Infer(request(only_path=path)) for path in (LOCAL, REMOTE)]
    for reply, far in zip(replies, ("triton", "standin-vendor"), strict=True):
        spans = await mesh.spans(reply.trace_id, {"twinpath-edge", far})
        assert {"twinpath-edge", far} <= {span.service for span in spans}
        known = {span.span_id for span in spans}
        assert sum(span.parent_id not in known for span in spans) == 1
        called = {span.name.lstrip("/").split("/")[0] for span in spans}
        assert {"twinpath.features.v1.Features", "twinpath.audit.v1.Audit"} <= called
        assert any("db.system" in span.attributes for span in spans)


async def test_every_service_has_its_own_door(mesh: MeshUnderTest) -> None:
    """A shared process lets nobody in: who may not ask features for a vector may not here."""
    async with mesh.stub("features", "caller") as features:
        error = await refusal(features.GetFeatures(features_pb2.GetFeaturesRequest()))
    assert error.code.name == "PERMISSION_DENIED"


async def test_one_page_of_metrics_has_every_service(mesh: MeshUnderTest) -> None:
    """Health and calls of all five stand on the page, told apart by their names."""
    async with (
        aiohttp.ClientSession(trust_env=False) as http,
        http.get(f"http://{mesh.launcher.wiring.metrics['audit']}/metrics") as page,
    ):
        text = await page.text()
    for service in ("router.v1.Router", "features.v1.Features", "audit.v1.Audit"):
        assert f'twinpath_serving{{service="twinpath.{service}"}} 1.0' in text


async def test_it_survives_a_crash_with_all_that_was_acknowledged(mesh: MeshUnderTest) -> None:
    """After kill -9 the process comes back; the answers that were given are in the log."""
    async with mesh.router() as router:
        replies = [await router.Infer(request(patient_id=n)) for n in range(1, 6)]
    mesh.kill("edge")
    await mesh.start("edge")
    await mesh.answers(only_path=LOCAL)
    async with mesh.stub("audit", "auditor") as audit:
        for reply in replies:
            found = await audit.Get(audit_pb2.GetRequest(decision_id=reply.decision_id))
            assert found.records[-1].leaf_index == reply.leaf_index
