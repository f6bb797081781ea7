"""What the service's token says, and how long one is used."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from toska_mesh.discovery.auth import Gatekeeper
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.tokens import ServiceToken

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"
ROLE = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"
NAME = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name"
NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def token_of(clock: Clock, **options: Any) -> ServiceToken:
    return ServiceToken(ConnectOptions(**{"auth_secret": SECRET, **options}), "orders", clock)


def claims_of(token: str) -> dict[str, Any]:
    options: Any = {"verify_exp": False, "verify_iat": False}
    return jwt.decode(token, SECRET, algorithms=["HS256"], audience="ToskaMesh.Services", options=options)


def test_the_token_carries_the_claims_of_the_mesh_family() -> None:
    token = ServiceToken(ConnectOptions(auth_secret=SECRET), "orders", lambda: NOON, lambda: uuid.UUID(int=1))
    assert claims_of(token.current()) == {
        "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier": "orders",
        NAME: "orders",
        ROLE: "Service",
        "role": "Service",
        "service_id": "orders",
        "sub": "orders",
        "jti": "00000000-0000-0000-0000-000000000001",
        "iss": "ToskaMesh.Services",
        "aud": "ToskaMesh.Services",
        "iat": int(NOON.timestamp()),
        "exp": int(NOON.timestamp()) + 600,
    }


def test_discovery_lets_its_bearer_in() -> None:
    clock = Clock()
    clock.now = datetime.now(UTC)
    gatekeeper = Gatekeeper("required", SECRET, "ToskaMesh.Services", "ToskaMesh.Services", clock)
    ((key, value),) = token_of(clock).call_metadata()
    identity = gatekeeper.admit(value)
    assert key == "authorization"
    assert identity is not None
    assert (identity.service_id, identity.is_admin) == ("orders", False)


def test_an_identity_of_its_own_and_further_roles() -> None:
    claims = claims_of(token_of(Clock(), identity="orders-team", roles=("Admin",)).current())
    assert claims["service_id"] == claims[NAME] == "orders-team"
    assert claims[ROLE] == ["Admin", "Service"]


def test_one_token_serves_many_calls_and_is_renewed_before_its_end() -> None:
    clock = Clock()
    token = token_of(clock)
    first = token.current()
    clock.now += timedelta(seconds=569)
    assert token.current() == first
    clock.now += timedelta(seconds=1)
    assert token.current() != first
    assert claims_of(token.current())["exp"] == int((clock.now + timedelta(minutes=10)).timestamp())


def test_a_token_of_one_minute_is_still_used_more_than_once() -> None:
    clock = Clock()
    token = token_of(clock, token_minutes=1)
    first = token.current()
    clock.now += timedelta(seconds=44)
    assert token.current() == first
    clock.now += timedelta(seconds=1)
    assert token.current() != first


def test_a_clock_that_was_set_back_makes_a_new_one() -> None:
    clock = Clock()
    token = token_of(clock)
    first = token.current()
    clock.now -= timedelta(hours=1)
    assert claims_of(token.current())["iat"] == int(clock.now.timestamp())
    assert token.current() != first


def test_without_a_secret_nothing_is_sent() -> None:
    token = ServiceToken(ConnectOptions(), "orders")
    assert token.current() == ""
    assert token.call_metadata() == ()


@pytest.mark.parametrize("setting", ["auth_issuer", "auth_audience"])
def test_issuer_and_audience_are_as_set(setting: str) -> None:
    claims = jwt.decode(token_of(Clock(), **{setting: "other"}).current(), options={"verify_signature": False})
    assert claims["iss" if setting == "auth_issuer" else "aud"] == "other"
