"""The settings of the local path."""

from __future__ import annotations

import pytest

from services.chassis.settings import SettingsError, load
from services.local.settings import LocalSettings
from tests.support import MeshKeys


def test_everything_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each variable."""
    for name in ("TWINPATH_TRITON_URL", "TWINPATH_LOCAL_LISTEN", "TWINPATH_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError) as caught:
        load(LocalSettings)
    for name in ("TWINPATH_TRITON_URL", "TWINPATH_LOCAL_LISTEN", "TWINPATH_TRUSTED_KEYS"):
        assert f"{name}: is missing" in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:8001", "a:1,b", "a:1,,b:2"])
def test_a_wrong_address_is_named(
    monkeypatch: pytest.MonkeyPatch, keys: MeshKeys, url: str
) -> None:
    """It must be host:port, or several of them."""
    for name, value in keys.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWINPATH_LOCAL_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("TWINPATH_TRITON_URL", url)
    with pytest.raises(SettingsError, match="TWINPATH_TRITON_URL"):
        load(LocalSettings)


def test_replicas_are_listed_once_each(monkeypatch: pytest.MonkeyPatch, keys: MeshKeys) -> None:
    """In their order."""
    for name, value in keys.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWINPATH_LOCAL_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("TWINPATH_TRITON_URL", "b:1, a:2,b:1")
    assert load(LocalSettings).replicas == ["b:1", "a:2"]


def test_each_replica_has_one_http_door_or_none(
    monkeypatch: pytest.MonkeyPatch, keys: MeshKeys
) -> None:
    """In the replicas' order; some of them without would be mixed up."""
    for name, value in keys.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWINPATH_LOCAL_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("TWINPATH_TRITON_URL", "a:1,b:1")
    assert load(LocalSettings).doors == []
    monkeypatch.setenv("TWINPATH_TRITON_HTTP", "a:2, b:2")
    assert load(LocalSettings).doors == ["a:2", "b:2"]
    for wrong in ("a:2", "http://a:2,b:2"):
        monkeypatch.setenv("TWINPATH_TRITON_HTTP", wrong)
        with pytest.raises(SettingsError, match="TWINPATH_TRITON_HTTP"):
            load(LocalSettings)


def test_keys_without_files_are_a_mistake(monkeypatch: pytest.MonkeyPatch, keys: MeshKeys) -> None:
    """Signatures that can't be checked must not look as if they were."""
    for name, value in keys.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWINPATH_LOCAL_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("TWINPATH_TRITON_URL", "a:1")
    monkeypatch.setenv("TWINPATH_LOCAL_ARTIFACT_KEYS", str(keys.grant_keys))
    with pytest.raises(SettingsError, match="TWINPATH_LOCAL_MODELS"):
        load(LocalSettings)
