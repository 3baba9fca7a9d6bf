"""`twinpath providers` by hand: list, check, new."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import description, provider_forms
from services.cli.description import MeshDescription
from services.cli.providers import app
from services.remote import providers
from services.remote.yaml_lines import read
from tests.support import ROOT
from tests.unit.remote.support import VENDOR_TOKEN, write_catalog

run = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalog with one provider, whose vendor is not there."""
    return write_catalog(tmp_path, "http://127.0.0.1:9")


def invoke(*args: object, **env: str):
    """One command."""
    return run.invoke(app, [str(arg) for arg in args], env=env)


def test_the_repositorys_own_providers_are_listed() -> None:
    """Provider, protocol, region, ceiling, model and price."""
    result = invoke("list", "--catalog", ROOT / "deploy" / "catalog")
    assert result.exit_code == 0
    for word in ("standin", "oip-http", "eu", "internal", "diabetes_large v1", "$0.00025/call"):
        assert word in result.output


def test_the_stand_in_is_that_of_the_mesh_that_runs(tmp_path: Path) -> None:
    """Its address and token are those of TWINPATH_HOME's mesh; a variable of one's own wins."""
    shown = {"TWINPATH_HOME": str(tmp_path)}
    token = tmp_path / "keys" / "standin.token"
    token.parent.mkdir()
    token.write_text("a-token")
    urls = {"standin": "http://127.0.0.1:7123"}
    mesh = MeshDescription(launcher_pid=os.getpid(), addresses={}, tokens={}, urls=urls)
    description.write(tmp_path / "run", mesh)
    folder = ROOT / "deploy" / "catalog"
    assert "http://127.0.0.1:7123" in invoke("list", "--catalog", folder, **shown).output
    assert invoke("check", "--catalog", folder, **shown).exit_code == 0
    own = {"TWINPATH_STANDIN_URL": "http://127.0.0.1:7999"}
    assert "http://127.0.0.1:7999" in invoke("list", "--catalog", folder, **shown, **own).output


def test_a_right_file_is_said_to_be_right(catalog: Path) -> None:
    """And no token is shown."""
    result = invoke("check", "--catalog", catalog)
    assert result.exit_code == 0
    assert "✓ standin: 2 models" in result.output
    assert VENDOR_TOKEN not in result.output


def test_a_mistake_has_file_line_and_rule(catalog: Path) -> None:
    """Status 1."""
    path = catalog / "providers" / "standin.yaml"
    path.write_text(path.read_text().replace("region: eu", "regoin: eu"))
    result = invoke("check", "--catalog", catalog)
    assert result.exit_code == 1
    assert "standin.yaml" in result.output
    assert "regoin" in result.output


def test_a_missing_token_is_said(catalog: Path, tmp_path: Path) -> None:
    """With the place where it should be."""
    (tmp_path / "vendor.token").unlink()
    result = invoke("check", "--catalog", catalog)
    assert result.exit_code == 1
    assert "no token" in result.output


def test_a_vendor_that_is_not_there_is_said(catalog: Path) -> None:
    """Only when asked to probe."""
    result = invoke("check", "--catalog", catalog, "--probe")
    assert result.exit_code == 1
    assert "VENDOR_UNAVAILABLE" in result.output


@pytest.mark.parametrize("protocol", sorted(provider_forms._FORMS))
def test_a_new_provider_is_whole_and_right(catalog: Path, protocol: str) -> None:
    """For every protocol; and a check of the catalog takes it."""
    if protocol == "sagemaker":
        pytest.importorskip("botocore", reason="this provider's own package")
    result = invoke(
        "new", "acme", "--protocol", protocol, "--base-url", "https://acme.example",
        "--model", "big: one", "--token-env", "MY_TOKEN", "--catalog", catalog,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    from services.remote.catalog import Provider

    found = read(catalog / "providers" / "acme.yaml", Provider, {}, providers.mistakes)
    assert found.protocol == protocol
    assert found.models[0].name == "big: one"
    checked = invoke("check", "--catalog", catalog, MY_TOKEN="x")
    assert checked.exit_code == 0, checked.output


def test_forms_are_of_protocols_and_a_protocol_without_one_gets_rows() -> None:
    """A new provider needs no entry there."""
    assert set(provider_forms._FORMS) <= providers.PROTOCOLS
    asked = ("acme", "https://acme.example", "m", "1", "MY_TOKEN", "eu")
    assert "protocol: brand-new" in provider_forms.form("brand-new", *asked)


def test_no_file_is_overwritten_and_no_wrong_one_left(catalog: Path) -> None:
    """An existing provider, a wrong URL, an unknown protocol, a name that is a path."""
    before = (catalog / "providers" / "standin.yaml").read_text()
    new = ("new", "standin", "--protocol", "openai-chat", "--catalog", catalog)
    assert invoke(*new).exit_code == 2
    assert (catalog / "providers" / "standin.yaml").read_text() == before
    for name, protocol, url in (
        ("acme", "openai-chat", "http://acme.example"),
        ("acme", "pigeon", ""),
        ("acme", "pigeon", "https://acme.example"),
        ("acme", "oip-http", ""),
        ("../acme", "openai-chat", ""),
    ):
        result = invoke(
            "new", name, "--protocol", protocol, "--base-url", url, "--catalog", catalog
        )
        assert result.exit_code == 2, result.output
    assert [path.name for path in (catalog / "providers").iterdir()] == ["standin.yaml"]
