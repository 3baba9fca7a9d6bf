"""Tokens, certificates and the file of the access table."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.call import Identity
from services.chassis.errors import PermissionDeniedError, UnauthenticatedError
from services.chassis.identity import (
    AccessTable,
    TokenFile,
    TokenVerifier,
    certificate_subject,
    issue_token,
    read_access_table,
    read_public_keys,
)
from tests.support import MeshKeys, public_pem

KEY = Ed25519PrivateKey.generate()
VERIFIER = TokenVerifier([KEY.public_key()])


def claims(**changes: object) -> dict[str, object]:
    """Return good claims, changed; a value of None takes the claim away."""
    good = {"sub": "service:router", "aud": "twinpath", "exp": int(time.time()) + 60}
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


def reason_of(token: str) -> str:
    """Return for which reason a token is refused."""
    with pytest.raises(UnauthenticatedError) as error:
        VERIFIER.verify(token)
    return error.value.reason


def test_a_good_token_gives_subject_tenant_and_roles() -> None:
    """What the issuer signed is what the table and the handlers see, also from the cache."""
    token = issue_token(KEY, "ann", tenant="clinic", roles=["auditor", "caller"], lifetime_s=60)
    for _ in range(2):
        assert VERIFIER.verify(token) == Identity("ann", "clinic", frozenset({"auditor", "caller"}))


@pytest.mark.parametrize("missing", ["sub", "aud", "exp"])
def test_a_token_without_a_required_claim_is_refused(missing: str) -> None:
    """No subject, audience or expiry: no identity."""
    token = jwt.encode(claims(**{missing: None}), KEY, algorithm="EdDSA")
    assert reason_of(token) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "elsewhere"},
        {"sub": ""},
        {"sub": 5},
        {"sub": "role:privacy_officer"},
        {"sub": "anyone"},
        {"roles": "auditor"},
        {"roles": 5},
        {"roles": ["auditor", 5]},
        {"tenant": 5},
        {"nbf": int(time.time()) + 600},
    ],
    ids=str,
)
def test_claims_of_the_wrong_kind_are_refused(changes: dict[str, object]) -> None:
    """A subject can't pass itself off as a role, and lists are lists."""
    assert reason_of(jwt.encode(claims(**changes), KEY, algorithm="EdDSA")) == "TOKEN_INVALID"


def test_an_expired_token_is_refused_as_expired() -> None:
    """The caller learns that a new token would do."""
    assert reason_of(issue_token(KEY, "ann", lifetime_s=-5)) == "TOKEN_EXPIRED"


def test_a_token_that_was_verified_before_expires_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache of verified tokens does not outlive them."""
    token = issue_token(KEY, "ann", lifetime_s=60)
    VERIFIER.verify(token)
    later = time.time() + 61
    monkeypatch.setattr("services.chassis.identity.time.time", lambda: later)
    assert reason_of(token) == "TOKEN_EXPIRED"


def test_a_token_signed_by_a_stranger_is_refused() -> None:
    """Only the keys of TWINPATH_TRUSTED_KEYS count."""
    stranger = Ed25519PrivateKey.generate()
    assert reason_of(issue_token(stranger, "service:router", lifetime_s=60)) == "TOKEN_INVALID"


def test_an_outside_issuer_may_name_callers_but_no_service_of_the_mesh() -> None:
    """A key for callers signs callers' tokens; its word about being a service is refused."""
    mesh, outside = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    verifier = TokenVerifier([mesh.public_key()], [outside.public_key()])
    caller = issue_token(outside, "claims-agent", roles=["caller"], lifetime_s=60)
    assert verifier.verify(caller).subject == "claims-agent"
    assert verifier.verify(issue_token(mesh, "service:router", lifetime_s=60)).subject
    with pytest.raises(UnauthenticatedError):
        verifier.verify(issue_token(outside, "service:router", lifetime_s=60))


def test_any_of_several_keys_may_have_signed() -> None:
    """Keys rotate: while two are trusted, tokens of both verify."""
    other = Ed25519PrivateKey.generate()
    both = TokenVerifier([KEY.public_key(), other.public_key()])
    for key in (KEY, other):
        assert both.verify(issue_token(key, "ann", lifetime_s=60)).subject == "ann"


def unsigned(header: dict[str, object], body: dict[str, object]) -> str:
    """Return a token with an empty signature."""

    def part(data: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(body)}."


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, ["EdDSA"], "EdDSA"])
def test_a_token_without_a_signature_is_refused(alg: object) -> None:
    """The header does not choose whether a signature is checked."""
    assert reason_of(unsigned({"typ": "JWT", "alg": alg}, claims())) == "TOKEN_INVALID"


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused() -> None:
    """The classic confusion of algorithms: HMAC under a key that everybody knows."""
    raw = KEY.public_key().public_bytes_raw()
    token = jwt.encode(claims(), raw, algorithm="HS256")
    assert reason_of(token) == "TOKEN_INVALID"


def test_a_token_of_another_algorithm_is_refused() -> None:
    """ES256 is not what the mesh signs with."""
    token = jwt.encode(claims(), generate_private_key(SECP256R1()), algorithm="ES256")
    assert reason_of(token) == "TOKEN_INVALID"


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_whatever_is_sent_as_a_token_is_refused_and_nothing_else(text: str) -> None:
    """Garbage gives UNAUTHENTICATED, never another exception."""
    with pytest.raises(UnauthenticatedError):
        VERIFIER.verify(text)


def test_a_header_nested_without_end_is_refused() -> None:
    """A parser's limit of recursion is no way to an internal error."""
    deep = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    assert reason_of(f"{deep}.e30.e30") == "TOKEN_INVALID"


def test_the_refusal_of_a_token_does_not_repeat_it() -> None:
    """Tokens are secrets: not in messages, not in metadata."""
    token = issue_token(Ed25519PrivateKey.generate(), "ann", lifetime_s=60)
    with pytest.raises(UnauthenticatedError) as error:
        VERIFIER.verify(token)
    assert token.split(".")[1] not in f"{error.value} {error.value.metadata}"


def test_trusted_keys_are_read_one_after_the_other(tmp_path: Path) -> None:
    """A file may hold several keys, with comments between them."""
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    path = tmp_path / "keys.pem"
    path.write_text("# old\n" + public_pem(keys[0]) + "# new\n" + public_pem(keys[1]))
    found = [key.public_bytes_raw() for key in read_public_keys(path)]
    assert found == [key.public_key().public_bytes_raw() for key in keys]


@pytest.mark.parametrize(
    "text",
    ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "ü"],
)
def test_a_file_without_a_usable_key_is_refused_by_name(tmp_path: Path, text: str) -> None:
    """An empty or broken key file would otherwise mean that nobody is trusted, silently."""
    path = tmp_path / "keys.pem"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"keys\.pem"):
        read_public_keys(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Tokens are Ed25519 only."""
    path = tmp_path / "keys.pem"
    path.write_text(public_pem(generate_private_key(SECP256R1())))
    with pytest.raises(ValueError, match="not Ed25519"):
        read_public_keys(path)


def test_a_token_file_is_read_again_after_a_rotation(
    keys: MeshKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service goes on with the new token, and with the old one while the file is away."""
    now = 0.0
    monkeypatch.setattr("services.chassis.identity.time.monotonic", lambda: now)
    path = keys.folder / "own.token"
    path.write_text("first\n")
    source = TokenFile(path)
    assert source.token() == "first"
    path.unlink()
    now = 2.0
    assert source.token() == "first"
    path.write_text("second\n")
    now = 4.0
    assert source.token() == "second"


def test_a_token_file_that_was_never_there_is_a_clear_error(tmp_path: Path) -> None:
    """The call fails with a reason, not with an exception of the file system."""
    with pytest.raises(UnauthenticatedError) as error:
        TokenFile(tmp_path / "missing").token()
    assert error.value.reason == "TOKEN_FILE_UNREADABLE"


def test_what_is_not_listed_is_denied() -> None:
    """No row, an empty row, or another's row: no."""
    table = AccessTable({"/a.B/C": ["service:x"], "/a.B/D": []})
    table.check("/a.B/C", Identity("service:x"))
    for method, who in [("/a.B/C", "service:y"), ("/a.B/D", "service:x"), ("/a.B/E", "service:x")]:
        with pytest.raises(PermissionDeniedError) as error:
            table.check(method, Identity(who))
        assert error.value.reason == "METHOD_NOT_ALLOWED"


def test_a_star_admits_to_a_service_but_a_row_of_its_own_wins() -> None:
    """The exact row is the whole truth about its method."""
    table = AccessTable({"/a.B/*": ["service:x"], "/a.B/C": ["role:y"]})
    table.check("/a.B/D", Identity("service:x"))
    with pytest.raises(PermissionDeniedError):
        table.check("/a.B/C", Identity("service:x"))


def test_a_subject_is_no_role() -> None:
    """Only what the issuer put into roles is a role."""
    table = AccessTable({"/a.B/C": ["role:auditor"]})
    with pytest.raises(PermissionDeniedError):
        table.check("/a.B/C", Identity("auditor"))
    table.check("/a.B/C", Identity("ann", roles=frozenset({"auditor"})))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "must map"),
        ("- a\n", 1, "must map"),
        ("/a.B/C: [x]\nNoMethod: [y]\n", 2, "NoMethod"),
        ("# c\n/a.B/C: service:x\n", 2, "list of names"),
        ("# c\n/a.B/C: [1]\n", 2, "list of names"),
        ("/a.B/C: [x]\n/a.B/D: [x]\n/a.B/C: [y]\n", 3, "duplicate"),
        ("/a.B/C: [x]\n/a.B/D: [x\n", 2, "expected"),
        ("5: [x]\n", 1, "no method"),
    ],
)
def test_a_wrong_access_table_names_file_and_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    """A table that can't be read is refused as a whole, and says where."""
    path = tmp_path / "access.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_access_table(path)
    assert f"{path}:{line}: " in str(error.value)
    assert what in str(error.value)


def test_an_access_table_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    """Nobody starts with an empty table by accident."""
    with pytest.raises(ValueError, match=r"missing\.yaml"):
        read_access_table(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("context", "subject"),
    [
        ({}, None),
        ({"x509_common_name": [b"ann"]}, "ann"),
        ({"x509_subject_alternative_name": [b"localhost"], "x509_common_name": [b"c"]}, "c"),
        (
            {
                "x509_subject_alternative_name": [b"spiffe://twinpath/service/router"],
                "x509_common_name": [b"c"],
            },
            "service:router",
        ),
        ({"x509_common_name": [b"role:privacy_officer"]}, None),
        ({"x509_common_name": [b"service:router"]}, None),
        ({"x509_common_name": [b"anyone"]}, None),
        ({"x509_subject_alternative_name": [b"spiffe://twinpath/service/"]}, None),
        ({"x509_subject_alternative_name": [b"spiffe://elsewhere/service/router"]}, None),
    ],
    ids=str,
)
def test_the_identity_of_a_certificate(context: dict, subject: str | None) -> None:
    """Only the SPIFFE name makes a service; a common name can't pass itself off as anything."""
    assert certificate_subject(context) == subject
