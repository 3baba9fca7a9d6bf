"""Who may call what: the shipped table against an expectation that is written out here."""

from __future__ import annotations

import pytest

from services.chassis.call import Identity
from services.chassis.errors import PermissionDeniedError
from services.chassis.identity import read_access_table
from tests.support import ACCESS_FILE
from twinpath.audit.v1 import audit_pb2
from twinpath.features.v1 import features_pb2
from twinpath.inference.v1 import bulk_pb2, inference_pb2, model_control_pb2
from twinpath.router.v1 import jobs_pb2, router_pb2

TABLE = read_access_table(ACCESS_FILE)

# Everyone there is: the services of the mesh, and the roles of end callers.
SERVICES = ["router", "features", "local", "remote", "audit", "cli", "standin", "control"]
ROLES = [
    *("caller", "operator", "auditor", "payload_reader", "privacy_officer", "feature_writer"),
    "admin",
]
READERS = {"role:auditor", "role:payload_reader", "role:privacy_officer"}
IDENTITIES = {
    **{f"service:{name}": Identity(f"service:{name}") for name in SERVICES},
    **{f"role:{name}": Identity("ann", roles=frozenset({name})) for name in ROLES},
    "somebody": Identity("somebody"),
    "nobody": Identity(""),
    "a caller named like a role": Identity("auditor"),
    "a caller named like a service": Identity("router"),
}

ROUTER, FEATURES = "/twinpath.router.v1.Router", "/twinpath.features.v1.Features"
INFERENCE, AUDIT = "/twinpath.inference.v1.Inference", "/twinpath.audit.v1.Audit"
CONTROL, BULK = "/twinpath.inference.v1.ModelControl", "/twinpath.inference.v1.Bulk"
JOBS = "/twinpath.router.v1.Jobs"
EXPECTED: dict[str, set[str]] = {
    f"{ROUTER}/Infer": {"role:caller", "role:operator"},
    f"{ROUTER}/InferStream": {"role:caller", "role:operator"},
    f"{ROUTER}/BatchInfer": {"role:caller", "role:operator"},
    f"{ROUTER}/Explain": {"role:caller", "role:operator", "role:auditor"},
    f"{ROUTER}/Describe": {"role:caller", "role:operator", "role:auditor"},
    f"{ROUTER}/OverridePath": {"role:operator"},
    f"{ROUTER}/Replay": {"role:auditor"},
    f"{JOBS}/SubmitJob": {"role:caller", "role:operator"},
    f"{JOBS}/GetJob": {"role:caller", "role:operator"},
    f"{JOBS}/ListJobs": {"role:caller", "role:operator"},
    f"{JOBS}/CancelJob": {"role:caller", "role:operator"},
    f"{JOBS}/ListJobResults": {"role:caller", "role:operator"},
    f"{FEATURES}/GetFeatures": {"service:router", "role:operator"},
    f"{FEATURES}/Describe": {"service:router", "role:operator"},
    f"{FEATURES}/Push": {"role:feature_writer"},
    f"{INFERENCE}/Infer": {"service:router"},
    f"{INFERENCE}/InferStream": {"service:router"},
    f"{INFERENCE}/Describe": {"service:router", "role:operator"},
    f"{BULK}/SubmitBulk": {"service:router"},
    f"{BULK}/GetBulk": {"service:router"},
    f"{BULK}/CancelBulk": {"service:router"},
    f"{BULK}/ForgetBulk": {"service:router"},
    f"{CONTROL}/LoadModel": {"role:operator"},
    f"{CONTROL}/UnloadModel": {"role:operator"},
    f"{CONTROL}/SetServing": {"role:operator"},
    f"{CONTROL}/ModelStates": {"role:operator"},
    f"{AUDIT}/Append": {"service:router"},
    f"{AUDIT}/Get": {"service:router", *READERS},
    f"{AUDIT}/Query": {"role:auditor"},
    f"{AUDIT}/Prove": {"role:auditor"},
    f"{AUDIT}/ProveConsistency": {"role:auditor"},
    f"{AUDIT}/Checkpoint": {"service:router", "role:auditor"},
    f"{AUDIT}/Export": READERS,
    f"{AUDIT}/Erase": {"role:privacy_officer"},
    f"{AUDIT}/Retain": {"role:privacy_officer"},
}
OPEN = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


def every_method() -> list[str]:
    """Return each RPC of each contract."""
    return [
        f"/{service.full_name}/{method.name}"
        for module in (
            router_pb2,
            jobs_pb2,
            features_pb2,
            inference_pb2,
            bulk_pb2,
            model_control_pb2,
            audit_pb2,
        )
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def may(name: str, method: str) -> bool:
    """Tell what the table says."""
    try:
        TABLE.check(method, IDENTITIES[name])
    except PermissionDeniedError:
        return False
    return True


def test_every_method_has_a_place_in_the_expectation() -> None:
    """A new RPC fails here until somebody has written down who may call it."""
    assert set(every_method()) == set(EXPECTED)


def test_every_row_of_the_table_is_about_a_method_that_exists() -> None:
    """A row with a typing mistake would deny without a word."""
    stars = {method for method in TABLE.rows if method.endswith("/*")}
    assert stars == {"/grpc.health.v1.Health/*", "/grpc.reflection.v1alpha.ServerReflection/*"}
    assert set(TABLE.rows) - stars <= set(every_method())


def test_every_name_in_the_table_is_known_here() -> None:
    """A new role or service fails here until it is among the identities that are tried."""
    names = set().union(*TABLE.rows.values()) - {"anyone"}
    assert names <= set(IDENTITIES)


@pytest.mark.parametrize("method", sorted(EXPECTED))
def test_who_may_call(method: str) -> None:
    """Each identity there is, against each method."""
    assert {name for name in IDENTITIES if may(name, method)} == EXPECTED[method]
    assert not TABLE.open_to_all(method)


@pytest.mark.parametrize("method", sorted(OPEN))
def test_what_is_open_to_all(method: str) -> None:
    """Health and reflection need no identity, and nothing else does."""
    assert TABLE.open_to_all(method)


def test_a_method_without_a_row_is_denied_to_everyone() -> None:
    """Deny by default, also for a new method of a known service."""
    for method in (f"{AUDIT}/Truncate", f"{ROUTER}/InferNow", "/other.v1.Other/Do", ""):
        assert not TABLE.open_to_all(method)
        assert [name for name in IDENTITIES if may(name, method)] == []


def test_roles_add_up() -> None:
    """Who has two roles may do what either may, and no more."""
    both = Identity("ann", roles=frozenset({"auditor", "privacy_officer"}))
    allowed = set()
    for method in EXPECTED:
        try:
            TABLE.check(method, both)
            allowed.add(method)
        except PermissionDeniedError:
            pass
    expected = {m for m, who in EXPECTED.items() if who & {"role:auditor", "role:privacy_officer"}}
    assert allowed == expected
