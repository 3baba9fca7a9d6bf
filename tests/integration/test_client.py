"""The client for other teams, against the whole mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import MeshUnderTest
from twinpath.client import AsyncClient, Client, Request, errors, key_of, new_key

pytestmark = pytest.mark.integration
NOTE = (
    "The patient was admitted with chest pain. An electrocardiogram showed no change. "
    "Blood pressure was high on arrival. The patient was given aspirin and rested. "
    "Pain was gone by the evening. The patient was sent home with advice to return if it came back."
)


@pytest.fixture
async def client(mesh: MeshUnderTest) -> AsyncIterator[AsyncClient]:
    """A client with a caller's token file."""
    launcher = mesh.launcher
    address, token = launcher.wiring.services["router"], launcher.keys.tokens["caller"]
    async with AsyncClient(address, token=token, timeout_s=30) as made:
        yield made


async def test_both_paths_answer_plain_values(client: AsyncClient) -> None:
    """The same call on either path gives a float, who answered and what it cost."""
    for path in ("local", "remote"):
        decision = await client.infer(
            "diabetes_progression", entity={"patient_id": 17}, only_path=path
        )
        assert isinstance(decision["progression"], float)
        assert decision.path == decision.answered_by.path == path
        assert decision.cost is not None
        assert not decision.repeated


async def test_a_key_gives_the_same_decision_to_copies_at_once(client: AsyncClient) -> None:
    """Five copies with one key are one decision."""
    key = key_of("claim", new_key())
    asks = (
        client.infer("diabetes_progression", entity={"patient_id": 3}, idempotency_key=key)
        for _ in range(5)
    )
    decisions = await asyncio.gather(*asks)
    assert len({decision.decision_id for decision in decisions}) == 1
    assert len({decision["progression"] for decision in decisions}) == 1
    assert sum(not decision.repeated for decision in decisions) == 1


async def test_wrong_requests_name_their_fields(client: AsyncClient) -> None:
    """A wrong type and an unknown field come back as violations; an unknown task by its reason."""
    with pytest.raises(errors.InvalidArgumentError) as caught:
        await client.infer(
            "diabetes_progression", entity={"patient_id": "x"}, fields={"nonsense": 1}
        )
    fields = " ".join(violation.field for violation in caught.value.violations)
    assert "patient_id" in fields
    assert "nonsense" in fields
    with pytest.raises(errors.NotFoundError, match="TASK_UNKNOWN"):
        await client.infer("no_such_task")


async def test_a_batch_s_items_fail_alone(client: AsyncClient) -> None:
    """One wrong item among good ones is one error among decisions."""
    items = [
        Request("diabetes_progression", entity={"patient_id": 1}),
        Request("no_such_task"),
        Request("diabetes_progression", entity={"patient_id": 2}, only_path="remote"),
    ]
    good, bad, other = await client.batch_infer(items)
    assert good.unwrap().decision_id != other.unwrap().decision_id
    assert other.unwrap().path == "remote"
    assert bad.error is not None
    assert bad.error.reason == "TASK_UNKNOWN"


async def test_explain_refuses_the_vendor_for_restricted_data(client: AsyncClient) -> None:
    """The plan names who would be asked, and by which rule the vendor would not."""
    plan = await client.explain("tumour_triage", entity={"patient_id": 17})
    assert [candidate.path for candidate in plan.admitted] == ["local"]
    assert "restricted_never_leaves" in {rule for rules in plan.refused.values() for rule in rules}


@pytest.mark.parametrize("path", ["local", "remote"])
async def test_text_arrives_in_chunks_on_both_paths(client: AsyncClient, path: str) -> None:
    """Chunks come one by one, and the decision's text is what they were together."""
    async with client.infer_stream(
        "note_summary", entity={"note_id": "n1"}, fields={"note": NOTE}, only_path=path
    ) as stream:
        texts = [chunk.text async for chunk in stream]
    assert len(texts) > 1
    (text,) = [t.text() for t in stream.decision.outputs.values() if t.datatype == "BYTES"]
    assert "".join(texts) == text
    assert stream.decision.path == path


def test_the_client_with_threads(session_mesh: MeshUnderTest) -> None:
    """The synchronous client needs no event loop."""
    launcher = session_mesh.launcher
    token = launcher.token("caller")
    with Client(launcher.wiring.services["router"], token=token, timeout_s=30) as client:
        decision = client.infer("tumour_triage", entity={"patient_id": 17})
        assert 0.0 <= decision["probability"] <= 1.0
        with (
            pytest.raises(errors.UnauthenticatedError),
            Client(launcher.wiring.services["router"], token="no token") as stranger,
        ):
            stranger.infer("tumour_triage", entity={"patient_id": 17})
