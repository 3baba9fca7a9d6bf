"""Settings from the environment: all mistakes at once, by the variable's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import (
    ServiceSettings,
    SettingsError,
    load,
    load_or_exit,
    variable,
)

REQUIRED = {
    "TWINPATH_SAMPLE_LISTEN": "127.0.0.1:0",
    "TWINPATH_TRUSTED_KEYS": "keys.pem",
    "TWINPATH_ACCESS_FILE": "access.yaml",
    "TWINPATH_SAMPLE_LIMIT": "3",
}


class Sample(ServiceSettings):
    """Settings of a service that exists in this file alone."""

    model_config = SettingsConfigDict(env_prefix="TWINPATH_SAMPLE_")

    limit: int = Field(ge=1, description="how many")
    hosts: list[str] = Field(default_factory=list, description="which hosts")


def given(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """Set the required variables, changed; None leaves one out."""
    for name, value in {**REQUIRED, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def mistakes() -> list[str]:
    """Return the lines about what is wrong."""
    with pytest.raises(SettingsError) as error:
        load(Sample)
    return str(error.value).splitlines()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's own variables have its prefix; it may set a shared one for itself alone."""
    given(monkeypatch, TWINPATH_LOG_LEVEL="DEBUG", TWINPATH_SAMPLE_DRAIN_S="9")
    found = load(Sample)
    assert found.listen == "127.0.0.1:0"
    assert found.trusted_keys == Path("keys.pem")
    assert found.limit == 3
    assert found.log_level == "DEBUG"
    assert found.drain_s == 9.0


def test_every_missing_variable_is_named_at_once() -> None:
    """Nobody repairs them one start at a time."""
    lines = mistakes()
    assert [line.partition(":")[0] for line in lines] == list(REQUIRED)
    assert all("is missing" in line for line in lines)


def test_wrong_and_missing_variables_are_reported_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line for each, with what it is for."""
    given(
        monkeypatch,
        TWINPATH_SAMPLE_LISTEN="nowhere",
        TWINPATH_SAMPLE_LIMIT="0",
        TWINPATH_LOG_LEVEL="LOUD",
        TWINPATH_DRAIN_S="-1",
        TWINPATH_SAMPLE_METRICS_LISTEN="127.0.0.1:99999",
        TWINPATH_ACCESS_FILE=None,
    )
    lines = mistakes()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "TWINPATH_ACCESS_FILE",
        "TWINPATH_DRAIN_S",
        "TWINPATH_LOG_LEVEL",
        "TWINPATH_SAMPLE_LIMIT",
        "TWINPATH_SAMPLE_LISTEN",
        "TWINPATH_SAMPLE_METRICS_LISTEN",
    ]
    assert "(how many)" in next(line for line in lines if "LIMIT" in line)


def test_a_variable_that_is_empty_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty path would silently be the working folder."""
    given(monkeypatch, TWINPATH_TRUSTED_KEYS="")
    (line,) = mistakes()
    assert line.startswith("TWINPATH_TRUSTED_KEYS: is missing")


@pytest.mark.parametrize(
    "left_out", ["TWINPATH_SAMPLE_TLS_CERT", "TWINPATH_SAMPLE_TLS_KEY", "TWINPATH_TLS_CA"]
)
def test_a_part_of_mtls_is_refused(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """A forgotten variable must not turn encryption and certificates off."""
    parts = {
        "TWINPATH_SAMPLE_TLS_CERT": "c",
        "TWINPATH_SAMPLE_TLS_KEY": "k",
        "TWINPATH_TLS_CA": "a",
    }
    given(monkeypatch, **{**parts, left_out: None})
    (line,) = mistakes()
    assert "mTLS" in line
    assert line.endswith(f"missing: {left_out}")


def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what fails before validation is a clear line, not a stack of calls."""
    given(monkeypatch, TWINPATH_SAMPLE_HOSTS="a,b")
    (line,) = mistakes()
    assert "hosts" in line


def test_mistakes_end_the_process_with_2_and_no_stack_of_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a person reads is the list and nothing else."""
    with pytest.raises(SystemExit) as stop:
        load_or_exit(Sample)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert all(name in text for name in REQUIRED)


def test_every_field_has_a_variable_and_a_description() -> None:
    """The names are a contract, and the error lines explain them."""
    names = [variable(Sample, field) for field in Sample.model_fields]
    assert len(set(names)) == len(names)
    assert all(name.startswith("TWINPATH_") for name in names)
    assert all(info.description for info in Sample.model_fields.values())
