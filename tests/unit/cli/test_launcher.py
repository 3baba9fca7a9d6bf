"""The launcher's parts that need no process: keys, wiring, ports, stamps, the description."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.chassis.identity import TokenVerifier, read_public_keys
from services.cli import description
from services.cli.description import MeshDescription, MeshNotRunningError
from services.cli.launcher import ground, ports
from services.cli.launcher.environment import Wiring, environments, inherited, otlp_http
from services.cli.launcher.ground import GroundError, digest, feast_address
from services.cli.launcher.keys import ROLES, SERVICES, make_artifact_key, make_keys
from services.cli.launcher.layout import ROOT, Layout, laptop
from services.cli.launcher.mesh import Mesh, MeshOptions, MeshRunningError, together
from services.cli.launcher.progress import Silent


def layout(folder: Path) -> Layout:
    """A layout in a folder of the test's own."""
    return Layout(home=folder, runtime=folder, feature_repo=folder / "feature_repo")


def wiring(**more) -> Wiring:
    """Wiring with made-up addresses."""
    return Wiring(
        services={name: f"127.0.0.1:{7000 + i}" for i, name in enumerate(SERVICES)},
        metrics={name: f"127.0.0.1:{7100 + i}" for i, name in enumerate(SERVICES)},
        state_url="redis://127.0.0.1:1/0",
        features_url="redis://127.0.0.1:2/0",
        feast_address="127.0.0.1:2",
        triton_url="127.0.0.1:3",
        standin_url="http://127.0.0.1:4",
        standin_port=4,
        standin_admin_port=5,
        **more,
    )


def test_keys_are_kept_and_tokens_are_new(tmp_path: Path) -> None:
    """A second start uses the same keys, so that old logs verify and old tokens still count."""
    first = make_keys(tmp_path / "keys")
    kept = [path.read_bytes() for path in (first.identity, first.grant, first.standin_token)]
    old = first.tokens["caller"].read_text()
    second = make_keys(tmp_path / "keys")
    assert [p.read_bytes() for p in (second.identity, second.grant, second.standin_token)] == kept
    verifier = TokenVerifier(read_public_keys(second.identity_public))
    assert verifier.verify(old).roles == {"caller"}
    assert verifier.verify(second.tokens["service:router"].read_text()).subject == "service:router"
    assert set(second.tokens) == {*ROLES, *(f"service:{name}" for name in SERVICES)}


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    """No key and no token can be read by anybody else."""
    make_keys(tmp_path / "keys")
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file() and not path.name.endswith(".pub.pem"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A file that holds no Ed25519 key is an error that names it."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "identity.key").write_bytes(pem)
    with pytest.raises(ValueError, match=r"identity\.key is not an Ed25519 key"):
        make_keys(tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_gets_the_settings_that_it_needs(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of each service makes valid settings: nothing is missing or misnamed."""
    import importlib

    from services.chassis.settings import ServiceSettings, load

    variables = environments(layout(tmp_path), make_keys(tmp_path / "keys"), wiring())[service]
    for name in list(os.environ):
        if name.startswith(("TWINPATH_", "OTEL_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module(f"services.{service}.settings")
    (kind,) = [
        found
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, ServiceSettings)
        and found is not ServiceSettings
    ]
    settings = load(kind)
    assert settings.listen == wiring().services[service]
    assert settings.token_file is not None
    assert f"service-{service}" in str(settings.token_file)


def test_a_service_gets_no_secret_of_another_one(tmp_path: Path) -> None:
    """Only the router can sign grants, only remote knows the vendor's token."""
    keys = make_keys(tmp_path / "keys")
    found = environments(layout(tmp_path), keys, wiring())
    for name, variables in found.items():
        values = set(variables.values())
        assert (str(keys.grant) in values) == (name == "router")
        assert (str(keys.standin_token) in values) == (name in {"remote", "standin"})
        assert str(keys.identity) not in values
        others = {str(path) for who, path in keys.tokens.items() if who != f"service:{name}"}
        assert not others & values


def test_spans_go_to_one_place_or_nowhere(tmp_path: Path) -> None:
    """With an endpoint every process has it, without one none."""
    keys = make_keys(tmp_path / "keys")
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    here = environments(layout(tmp_path), keys, wiring(otlp_endpoint="http://c:4317"))
    assert {variables[name] for variables in here.values()} == {"http://c:4317"}
    nowhere = environments(layout(tmp_path), keys, wiring())
    assert not any(name in variables for variables in nowhere.values())


def test_variables_of_the_launcher_alone_are_not_passed_on() -> None:
    """A token of the person at the keyboard is nothing for the services."""
    given = {"PATH": "/bin", "TWINPATH_TOKEN_FILE": "mine", "TWINPATH_LOG_LEVEL": "DEBUG"}
    assert inherited(given) == {"PATH": "/bin", "TWINPATH_LOG_LEVEL": "DEBUG"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317"}, "http://jaeger:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317/"}, "http://jaeger:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:9999"}, "http://c:9999"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
                "TWINPATH_OTLP_HTTP_ENDPOINT": "http://h:80/",
            },
            "http://h:80",
        ),
    ],
)
def test_tritons_collector_is_derived(given: dict[str, str], expected: str) -> None:
    """Triton speaks OTLP/HTTP only: its address is named, or the conventional other port."""
    assert otlp_http(given) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "127.0.0.1:6379"),
        ("redis://store", "store:6379"),
        ("redis://:secret@store:7000/3", "store:7000,password=secret,db=3"),
        ("rediss://me:secret@store:1", "store:1,username=me,password=secret,ssl=true"),
    ],
)
def test_feasts_connection_string_says_the_same_as_the_address(url: str, expected: str) -> None:
    """User, password, database and TLS survive."""
    assert feast_address(url) == expected


def test_a_digest_follows_names_and_contents(tmp_path: Path) -> None:
    """Another content or another name is another digest; the folder is not."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.py").write_text("1")
    assert digest([one / "a.py"]) == digest([two / "a.py"])
    (two / "a.py").write_text("2")
    assert digest([one / "a.py"]) != digest([two / "a.py"])
    (one / "a.py").rename(one / "b.py")
    assert digest([one / "b.py"]) != digest([])


async def test_data_is_made_once_a_day_and_again_when_its_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits its inputs is not made again."""
    made: list[str] = []

    async def python(name: str, *_: object, **__: object) -> None:
        made.append(name)

    monkeypatch.setattr(ground, "_python", python)
    (tmp_path / "feature_repo" / "data").mkdir(parents=True)
    for _ in range(2):
        await ground.make_data(layout(tmp_path), Silent())
    assert made == ["data"]
    monkeypatch.setattr(ground, "TRAINING", tmp_path)
    (tmp_path / "changed.py").write_text("")
    await ground.make_data(layout(tmp_path), Silent())
    assert made == ["data", "data"]


async def test_a_step_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    """The error names the module, its status and what it said."""
    with pytest.raises(GroundError, match=r"status 2[\s\S]*must be|usage"):
        await ground._python(
            "data", ["deploy.training.build_data", "--no-such"], layout(tmp_path), Silent()
        )


def test_fixed_ports_give_way_when_they_are_taken() -> None:
    """Nobody is pushed aside: a port in use is replaced by a free one."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not ports.is_free(taken.getsockname()[1])
    chosen = ports.choose(fixed=True)
    assert set(chosen) == set(ports.FIXED)
    assert len(set(chosen.values())) == len(chosen)


async def test_the_first_failure_cancels_the_rest_and_is_raised_alone() -> None:
    """No exception group reaches the person at the keyboard."""
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise GroundError("no luck")

    with pytest.raises(GroundError, match="no luck"):
        await together(endless(), together(failing()))
    assert cancelled.is_set()


async def test_two_meshes_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one is refused, and names the process of the first."""
    description.write(
        tmp_path / "run", MeshDescription(launcher_pid=os.getpid(), addresses={}, tokens={})
    )
    with pytest.raises(MeshRunningError, match=str(os.getpid())):
        await Mesh(MeshOptions(layout(tmp_path))).start()


def test_what_a_dead_mesh_left_behind_is_not_a_mesh(tmp_path: Path) -> None:
    """Without a file, with a broken one, or with a launcher that is gone, no mesh runs."""
    with pytest.raises(MeshNotRunningError, match="no mesh runs"):
        description.read(tmp_path)
    (tmp_path / "mesh.json").write_text("{")
    with pytest.raises(MeshNotRunningError, match="can't be read"):
        description.read(tmp_path)
    gone = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", ""])
    assert gone == 0
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    description.write(tmp_path, MeshDescription(launcher_pid=pid, addresses={}, tokens={}))
    with pytest.raises(MeshNotRunningError, match="is gone"):
        description.read(tmp_path)


def test_the_laptops_layout_can_be_pointed_elsewhere(tmp_path: Path) -> None:
    """Another Triton environment and another catalog come from the environment."""
    plain = laptop(tmp_path, {})
    assert plain.triton_env == ROOT / ".venv-triton"
    other = laptop(tmp_path, {"TWINPATH_TRITON_ENV": "/t", "TWINPATH_CATALOG": "/c"})
    assert (other.triton_env, other.catalog) == (Path("/t"), Path("/c"))


def test_the_trained_models_are_signed_and_checked(tmp_path: Path) -> None:
    """By a key that lies with them and is kept; another repository is not checked with it."""
    private, public = make_artifact_key(tmp_path / "signing")
    assert make_artifact_key(tmp_path / "signing") == (private, public)
    assert private.stat().st_mode & 0o077 == 0
    where = layout(tmp_path)
    keys = make_keys(tmp_path / "keys")
    own = environments(where, keys, wiring())["local"]
    assert own["TWINPATH_LOCAL_ARTIFACT_KEYS"] == str(public)
    assert own["TWINPATH_LOCAL_CONTROL"] == "explicit"
    other = replace(where, models=tmp_path / "other")
    assert "TWINPATH_LOCAL_ARTIFACT_KEYS" not in environments(other, keys, wiring())["local"]
    foreign = environments(where, keys, wiring(own_triton=False))["local"]
    assert foreign["TWINPATH_LOCAL_CONTROL"] == "none"
    assert "TWINPATH_TRITON_HTTP" not in foreign
    both = environments(where, keys, wiring(triton_http="127.0.0.1:9"))["local"]
    assert both["TWINPATH_TRITON_HTTP"] == "127.0.0.1:9"


def test_a_key_of_ones_own_signs(tmp_path: Path) -> None:
    """Only its public half is written; what is no such key is said."""
    private, _ = make_artifact_key(tmp_path / "mine")
    used, public = make_artifact_key(tmp_path / "mesh", private)
    assert used == private
    assert public.read_bytes() == (tmp_path / "mine" / "artifacts.pub.pem").read_bytes()
    assert [path.name for path in (tmp_path / "mesh").iterdir()] == ["artifacts.pub.pem"]
