"""Who is let in, by which token, in which mode."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from toska_mesh.discovery.auth import (
    AuthMode,
    Gatekeeper,
    Identity,
    PermissionDeniedError,
    UnauthenticatedError,
)
from toska_mesh.model.rules import problem_with_secret

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"
ROLE = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"
NAME = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)  # PyJWT reads the wall clock itself

    def __call__(self) -> datetime:
        return self.now


def keeper(mode: AuthMode = "required", clock: Clock | None = None) -> Gatekeeper:
    return Gatekeeper(mode, SECRET, "ToskaMesh.Services", "ToskaMesh.Services", clock or Clock())


def token(secret: str = SECRET, algorithm: str = "HS256", lives: float = 300, **claims: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    full = {
        "iss": "ToskaMesh.Services",
        "aud": "ToskaMesh.Services",
        "exp": now + lives,
        "iat": str(now),
        "jti": "x",
        "service_id": "orders",
        NAME: "orders",
        ROLE: "Service",
    } | claims
    return jwt.encode({k: v for k, v in full.items() if v is not None}, secret, algorithm=algorithm)


@pytest.mark.parametrize(
    ("claims", "identity"),
    [
        pytest.param({}, Identity("orders"), id="C# token: iat as a text, no sub"),
        pytest.param({"iat": 1, "sub": "gateway"}, Identity("orders"), id="Go token: iat as a number, sub"),
        pytest.param({ROLE: ["Reader", "Service"]}, Identity("orders"), id="several roles"),
        pytest.param({ROLE: None, "role": "Service"}, Identity("orders"), id="short claim name"),
        pytest.param({ROLE: "Admin"}, Identity("orders", True), id="admin"),
        pytest.param({"lives": -10}, Identity("orders"), id="expired within the leeway"),
        pytest.param({"aud": ["x", "ToskaMesh.Services"]}, Identity("orders"), id="several audiences"),
    ],
)
def test_let_in(claims: dict[str, Any], identity: Identity) -> None:
    assert keeper().admit(f"Bearer {token(**claims)}") == identity


@pytest.mark.parametrize(
    "bearer",
    [
        pytest.param("", id="nothing"),
        pytest.param("Basic dXNlcjpwYXNz", id="another scheme"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer x.y.z", id="no JWT"),
        pytest.param(f"Bearer {token(secret='y' * 16 + SECRET)}", id="another secret"),
        pytest.param(f"Bearer {token(iss='somebody')}", id="another issuer"),
        pytest.param(f"Bearer {token(aud='somebody')}", id="another audience"),
        pytest.param(f"Bearer {token(lives=-60)}", id="expired"),
        pytest.param(f"Bearer {token(exp=None)}", id="no expiry"),
        pytest.param(f"Bearer {token(nbf=4102444800)}", id="not yet"),
        pytest.param(f"Bearer {token(secret=SECRET * 2, algorithm='HS512')}", id="another algorithm"),
    ],
)
def test_kept_out(bearer: str) -> None:
    with pytest.raises(UnauthenticatedError):
        keeper().admit(bearer)


def test_an_unsigned_token_is_kept_out() -> None:
    payload = jwt.decode(token(), options={"verify_signature": False})
    part = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in ({"alg": "none"}, payload)]
    with pytest.raises(UnauthenticatedError):
        keeper().admit(f"Bearer {part[0]}.{part[1]}.")


@pytest.mark.parametrize("claims", [{ROLE: "User"}, {ROLE: None}, {"service_id": None}, {"service_id": ""}])
def test_a_valid_token_without_the_role_or_the_id_is_not_enough(claims: dict[str, Any]) -> None:
    with pytest.raises(PermissionDeniedError):
        keeper().admit(f"Bearer {token(**claims)}")


def test_optional_lets_the_anonymous_in_but_no_false_token() -> None:
    assert keeper("optional").admit(None) is None
    assert keeper("optional").admit(f"Bearer {token()}") == Identity("orders")
    with pytest.raises(UnauthenticatedError):
        keeper("optional").admit("Bearer nonsense")


def test_off_reads_no_token() -> None:
    assert keeper("off").admit("Bearer nonsense") is None


def test_a_remembered_token_still_expires() -> None:
    clock = Clock()
    gatekeeper = keeper(clock=clock)
    bearer = f"Bearer {token(lives=1)}"
    assert gatekeeper.admit(bearer) == gatekeeper.admit(bearer)
    held = dict(gatekeeper._held)
    assert len(held) == 1
    clock.now += timedelta(seconds=40)
    (_, until) = next(iter(held.values()))
    assert until < clock.now.timestamp()


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 40, "change-me-change-me-change-me-change-me", "a-placeholder-of-more-than-32-bytes!"]
)
def test_secrets_that_guard_nothing(secret: str) -> None:
    assert problem_with_secret(secret)


def test_a_secret_that_will_do() -> None:
    assert problem_with_secret(SECRET) is None
