"""The registry in force: swapped as a whole, kept when the new one is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError

from services.chassis.errors import FailedPreconditionError, NotFoundError, UnavailableError
from services.features.definitions import (
    DataClass,
    FeatureService,
    Field,
    KeyPart,
    Registry,
    ViewRead,
)
from services.features.prepared import Live
from services.features.settings import FeaturesSettings


def registry(version: str, key_type: str = "INT64") -> Registry:
    """A registry with one feature service."""
    key = (KeyPart("user", "user", key_type),)
    read = ViewRead("v", "v", key, (Field("x", "INT64"),), 0)
    service = FeatureService(
        name="s",
        join_keys=(Field("user", key_type),),
        request_fields=(),
        reads=(read,),
        on_demand=(),
        outputs=(),
        versions=(("v", "1"),),
        data_class=DataClass.UNSPECIFIED,
    )
    return Registry(version, "p", {"s": service})


class Script:
    """A loader that gives what it is told."""

    def __init__(self, *answers: Registry | Exception | None) -> None:
        self._answers = list(answers)

    def load(self) -> Registry | None:
        """The next answer."""
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def shown() -> float | None:
    """What metrics say about the registry."""
    return REGISTRY.get_sample_value("twinpath_features_registry_ok")


async def test_nothing_is_served_before_the_first_registry() -> None:
    """UNAVAILABLE, and the ping says why; then all is well."""
    live = Live(Script(ValueError("torn"), registry("1")), 1.0)
    await live.refresh()
    with pytest.raises(UnavailableError):
        live.get()
    with pytest.raises(RuntimeError, match="torn"):
        await live.ping()
    await live.refresh()
    await live.ping()
    assert live.get().registry.version == "1"


async def test_a_broken_registry_keeps_the_last_good_one_and_shows() -> None:
    """It is served on; the metric and `problem` say that it is not the newest."""
    live = Live(Script(registry("1"), ValueError("torn"), None, registry("2")), 1.0)
    assert await live.refresh()
    assert not await live.refresh()
    await live.ping()
    assert live.get().registry.version == "1"
    assert live.problem == "torn"
    assert shown() == 0
    assert not await live.refresh()
    assert live.problem == ""
    assert shown() == 1
    assert await live.refresh()
    assert live.get().registry.version == "2"


async def test_a_service_that_cant_be_served_breaks_no_other() -> None:
    """It is FAILED_PRECONDITION with its reason; an unknown one is NOT_FOUND."""
    live = Live(Script(registry("1", "DOUBLE")), 1.0)
    await live.refresh()
    with pytest.raises(FailedPreconditionError, match="DOUBLE"):
        live.get().service("s")
    with pytest.raises(NotFoundError):
        live.get().service("t")


def test_feast_apply_is_looked_for_often_enough() -> None:
    """No setting lets a change wait for longer than half of the promised 10 s."""
    values = {
        "listen": "127.0.0.1:1",
        "url": "redis://localhost",
        "repo": Path(),
        "_env_file": None,
    }
    with pytest.raises(ValidationError) as caught:
        FeaturesSettings(refresh_interval_s=5.1, **values)  # type: ignore[arg-type]
    assert any("refresh_interval_s" in error["loc"] for error in caught.value.errors())
