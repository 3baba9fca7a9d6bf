"""The environment of every process of a mesh, computed from where everything is. Pure.

This is the whole of the wiring: a service started by hand with these variables is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.cli.launcher.keys import SERVICES, Keys
from services.cli.launcher.layout import Layout

# Of our own process: each would mean something else, or nothing, in a child.
_NOT_INHERITED = (
    "TWINPATH_TOKEN_FILE",
    "PYTHONDONTWRITEBYTECODE",  # five processes that compile the same modules at every start
    "OTEL_SERVICE_NAME",
)
# What a small machine costs, so that the local path's share of it is metered and can be compared
# with a vendor's price. An assumption; set the variable to your machine's.
_MACHINE_USD_PER_HOUR = "0.10"


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where everything of one mesh is.

    Attributes:
        services: host:port by service.
        metrics: host:port of /metrics by service.
        state_url: redis:// of the state store.
        features_url: redis:// of the feature store.
        feast_address: The same, as Feast's connection string.
        triton_url: host:port of Triton's gRPC.
        triton_http: host:port of Triton's HTTP; empty: not known.
        standin_url: http:// of the stand-in vendor.
        standin_port: Its port.
        standin_admin_port: Its admin's port.
        otlp_endpoint: OTLP/gRPC that takes the spans; empty: none are made.
        own_triton: Triton is one of the mesh's processes, so that its models are the local path's
            to load.
        extra: Further variables by service, or for all `services`; they win.
    """

    services: Mapping[str, str]
    metrics: Mapping[str, str]
    state_url: str
    features_url: str
    feast_address: str
    triton_url: str
    standin_url: str
    standin_port: int
    standin_admin_port: int
    triton_http: str = ""
    otlp_endpoint: str = ""
    own_triton: bool = True
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of our own environment: all but what would mislead it."""
    return {name: value for name, value in environment.items() if name not in _NOT_INHERITED}


def shared(layout: Layout, keys: Keys, wiring: Wiring) -> dict[str, str]:
    """The variables that all services share."""
    found = {
        "TWINPATH_TRUSTED_KEYS": str(keys.identity_public),
        "TWINPATH_ACCESS_FILE": str(layout.catalog / "access.yaml"),
        "TWINPATH_CATALOG": str(layout.catalog),
        "TWINPATH_STATE_URL": wiring.state_url,
        "TWINPATH_FEATURES_URL": wiring.features_url,
        "TWINPATH_TRITON_URL": wiring.triton_url,
        "PYTHONUNBUFFERED": "1",
    }
    if wiring.otlp_endpoint:
        found["OTEL_EXPORTER_OTLP_ENDPOINT"] = wiring.otlp_endpoint
    for name, address in wiring.services.items():
        found[f"TWINPATH_{name.upper()}_ADDRESS"] = address
    return found


def environments(layout: Layout, keys: Keys, wiring: Wiring) -> dict[str, dict[str, str]]:
    """The variables of every service and of the stand-in vendor, by name."""
    standin = {
        "TWINPATH_STANDIN_URL": wiring.standin_url,
        "TWINPATH_STANDIN_TOKEN_FILE": str(keys.standin_token),
    }
    # A repository of one's own need not be signed by the key of the training here.
    signed = {
        "TWINPATH_LOCAL_ARTIFACT_KEYS": str(layout.artifact_keys / "artifacts.pub.pem"),
    }
    own: dict[str, dict[str, str]] = {
        "router": {
            "TWINPATH_ROUTER_GRANT_KEY": str(keys.grant),
            "TWINPATH_ROUTER_PSEUDONYM_KEY": str(keys.pseudonym),
            "TWINPATH_ROUTER_CACHE_KEY": str(keys.cache),
            "TWINPATH_ROUTER_OUTBOX": str(layout.outbox),
        },
        "features": {
            "TWINPATH_FEATURES_REPO": str(layout.feature_repo),
            "TWINPATH_FEAST_REDIS": wiring.feast_address,
        },
        "local": {
            "TWINPATH_LOCAL_MODELS": str(layout.models or layout.trained),
            "TWINPATH_LOCAL_MACHINE_USD_PER_HOUR": _MACHINE_USD_PER_HOUR,
            "TWINPATH_LOCAL_CONTROL": "explicit" if wiring.own_triton else "none",
            "TWINPATH_LOCAL_CONTROL_FILE": str(layout.control_file),
            **(signed if layout.models is None else {}),
            **({"TWINPATH_TRITON_HTTP": wiring.triton_http} if wiring.triton_http else {}),
        },
        "remote": {"TWINPATH_GRANT_KEYS": str(keys.grant_public), **standin},
        "audit": {
            "TWINPATH_AUDIT_DIRECTORY": str(layout.audit),
            "TWINPATH_AUDIT_KEY_STORE": str(keys.audit / "subjects.sqlite"),
            "TWINPATH_AUDIT_SIGNING_KEY": str(keys.audit / "checkpoints.key"),
        },
    }
    found = {}
    for name in SERVICES:
        prefix = f"TWINPATH_{name.upper()}"
        found[name] = {
            **shared(layout, keys, wiring),
            f"{prefix}_LISTEN": wiring.services[name],
            f"{prefix}_METRICS_LISTEN": wiring.metrics[name],
            f"{prefix}_TOKEN_FILE": str(keys.tokens[f"service:{name}"]),
            **own[name],
            **wiring.extra.get("services", {}),
            **wiring.extra.get(name, {}),
        }
    found["standin"] = {
        **standin,
        "TWINPATH_STANDIN_PORT": str(wiring.standin_port),
        "TWINPATH_STANDIN_ADMIN_PORT": str(wiring.standin_admin_port),
        "TWINPATH_STANDIN_MODELS": str(layout.artifacts),
        "PYTHONUNBUFFERED": "1",
        **wiring.extra.get("standin", {}),
    }
    if wiring.otlp_endpoint:
        found["standin"]["OTEL_EXPORTER_OTLP_ENDPOINT"] = wiring.otlp_endpoint
    return found


def edge(variables: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The variables of the one process that hosts all services, made of those of each.

    One process has one page of metrics: the router's address shows it.
    """
    found: dict[str, str] = {}
    for name in SERVICES:
        found |= variables[name]
        if name != "router":
            del found[f"TWINPATH_{name.upper()}_METRICS_LISTEN"]
    return found


def otlp_http(environment: Mapping[str, str]) -> str:
    """OTLP/HTTP for Triton, which speaks no OTLP/gRPC; empty if spans go nowhere outside.

    TWINPATH_OTLP_HTTP_ENDPOINT names it; else it is OTEL_EXPORTER_OTLP_ENDPOINT with the
    conventional port 4318 in place of 4317.
    """
    named = environment.get("TWINPATH_OTLP_HTTP_ENDPOINT", "").rstrip("/")
    if named:
        return named
    endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/")
    return f"{endpoint.removesuffix(':4317')}:4318" if endpoint.endswith(":4317") else endpoint
